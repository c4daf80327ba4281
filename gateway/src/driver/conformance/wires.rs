//! Drivers with wires under test: each peer's bytes pass through the client's side of the wire.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tidegate_testing::wire::{WireClient, WireKind, certificate};

use super::worlds::{Real, Simulated};
use super::{Read, World};
use crate::driver::sim::Sim;
use crate::driver::{ConnId, Driver, Mechanism, SendState, Sink};
use crate::wire::proxy::ProxyRules;
use crate::wire::websocket::upgrade::{TokenSources, UpgradeRules};
use crate::wire::{Settings, Wire, Wired};

/// The gateway's side of a wire.
pub(crate) fn wire(kind: WireKind) -> Wire {
    let everybody = ["0.0.0.0/0".parse().unwrap()];
    let rules = UpgradeRules {
        path: "/".to_owned(),
        origins: Vec::new(),
        request_bytes_max: 8 * 1024,
        token: TokenSources::default(),
    };
    Wire {
        proxy: kind.proxy.then(|| Arc::new(ProxyRules::new("proxied", everybody))),
        tls: kind.tls.then(|| Arc::new(ArcSwap::new(Arc::clone(&certificate().server)))),
        websocket: kind.websocket.then(|| Arc::new(rules)),
    }
}

/// Wires whose handshakes take their turn, and are bounded by nothing else.
pub(crate) fn settings(kind: WireKind) -> Settings {
    let handshakes_per_second = 1_000_000;
    Settings { wires: vec![wire(kind)], handshakes_per_second, ..Settings::default() }
}

/// A driver whose connections have a wire.
pub(super) trait OnWire: Driver {
    const KIND: WireKind;
    fn is_open(&self, conn: ConnId) -> bool;
}

macro_rules! on_wire {
    ($($name:ident: $kind:ident;)+) => { $(
        pub(super) struct $name<D>(Wired<D>);

        impl<D: Driver> OnWire for $name<D> {
            const KIND: WireKind = WireKind::$kind;

            fn is_open(&self, conn: ConnId) -> bool {
                self.0.is_open(conn)
            }
        }

        impl<D: Real> Real for $name<D> {
            fn new(listener: TcpListener) -> Self {
                Self(Wired::new(D::new(listener), settings(Self::KIND)))
            }
        }

        impl Simulated for $name<Sim> {
            fn over(sim: Sim) -> Self {
                Self(Wired::new(sim, settings(Self::KIND)))
            }

            fn sim(&mut self) -> &mut Sim {
                self.0.driver()
            }
        }

        impl<D: Driver> Driver for $name<D> {
            fn mechanism(&self) -> Mechanism {
                self.0.mechanism()
            }

            fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
                self.0.poll(sink)
            }

            fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
                self.0.send(conn, bytes)
            }

            fn pause_receive(&mut self, conn: ConnId) {
                self.0.pause_receive(conn);
            }

            fn resume_receive(&mut self, conn: ConnId) {
                self.0.resume_receive(conn);
            }

            fn shutdown(&mut self, conn: ConnId) {
                self.0.shutdown(conn);
            }

            fn close(&mut self, conn: ConnId) {
                self.0.close(conn);
            }

            fn set_accepting(&mut self, accepting: bool) {
                self.0.set_accepting(accepting);
            }

            fn stop_listening(&mut self, until: Instant) {
                self.0.stop_listening(until);
            }
        }
    )+ };
}

on_wire! {
    OnProxy: PROXY;
    OnTls: TLS;
    OnWebSocket: WEBSOCKET;
    OnWss: WSS;
}

/// A world whose peers speak the wire of its driver.
pub(super) struct WireWorld<W> {
    world: W,
    peers: Vec<Peer>,
}

struct Peer {
    client: WireClient,
    /// How the connection has ended, if it has.
    end: Option<Read>,
    half_closes: bool,
}

impl<W: World> WireWorld<W> {
    /// Writes what the peer's wire has to send, and the end behind it.
    fn flush(&mut self, peer: usize) {
        let Peer { client, end, half_closes } = &mut self.peers[peer];
        if *end == Some(Read::Reset) {
            return;
        }
        let written = self.world.write(peer, &client.out);
        client.out.drain(..written);
        if *half_closes && client.out.is_empty() && client.is_open() {
            *half_closes = false;
            self.world.half_close(peer);
        }
    }

    fn receive(&mut self, peer: usize) {
        let Peer { client, end, .. } = &mut self.peers[peer];
        if end.is_some() {
            return;
        }
        match self.world.read(peer) {
            Read::Bytes(bytes) => client.receive(&bytes),
            Read::Nothing => {}
            Read::End => *end = Some(Read::End),
            Read::Reset => *end = Some(Read::Reset),
        }
    }
}

impl<W: World<Driver: OnWire>> World for WireWorld<W> {
    type Driver = W::Driver;

    /// A TLS record, or a control frame of a WebSocket.
    const KEPT_BYTES_MAX: usize = 17 * 1024;

    fn with_backlog(backlog: u16) -> Self {
        Self { world: W::with_backlog(backlog), peers: Vec::new() }
    }

    fn driver(&mut self) -> &mut W::Driver {
        self.world.driver()
    }

    fn connect(&mut self) -> Option<usize> {
        let peer = self.world.connect()?;
        let client = WireClient::new(W::Driver::KIND, peer as u64);
        self.peers.push(Peer { client, end: None, half_closes: false });
        assert_eq!(peer + 1, self.peers.len());
        Some(peer)
    }

    fn write(&mut self, peer: usize, bytes: &[u8]) -> usize {
        let mut written = 0;
        loop {
            self.flush(peer);
            let more = self.peers[peer].client.send(&bytes[written..]);
            written += more;
            if more == 0 || written == bytes.len() {
                self.flush(peer);
                return written;
            }
        }
    }

    fn read(&mut self, peer: usize) -> Read {
        loop {
            self.flush(peer);
            let Peer { client, end, .. } = &mut self.peers[peer];
            if !client.received.is_empty() {
                return Read::Bytes(std::mem::take(&mut client.received));
            }
            match end {
                None => {}
                Some(Read::End) => return Read::End,
                Some(_) => return Read::Reset,
            }
            self.receive(peer);
            let Peer { client, end, .. } = &self.peers[peer];
            if client.received.is_empty() && end.is_none() {
                return Read::Nothing;
            }
        }
    }

    fn half_close(&mut self, peer: usize) {
        if W::Driver::KIND.websocket {
            // Its answer and the goodbye are made in one turn.
            self.peers[peer].client.ping(b"?");
        }
        self.peers[peer].client.end();
        self.peers[peer].half_closes = true;
        self.flush(peer);
    }

    fn reset(&mut self, peer: usize) {
        self.peers[peer].end = Some(Read::Reset);
        self.world.reset(peer);
    }

    fn advance(&mut self) {
        for peer in 0..self.peers.len() {
            if !self.peers[peer].client.is_open() {
                self.receive(peer);
            }
            self.flush(peer);
        }
    }

    fn is_open(&mut self, conn: ConnId) -> bool {
        self.world.driver().is_open(conn)
    }

    fn has_goodbye(&self, peer: usize) -> bool {
        let WireKind { tls, websocket, .. } = W::Driver::KIND;
        self.peers[peer].client.has_goodbye || !(tls || websocket)
    }

    /// Of a send that is cut, nobody knows how many of its bytes are the wire's own: headers, tags, and a record that came
    /// incompletely.
    fn may_be_unsent(count: usize, reported: usize) -> bool {
        count.abs_diff(reported) <= 20 * 1024 + count / 100
    }
}
