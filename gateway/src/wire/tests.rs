//! What the drivers' contract has no word for: peers that lie, stall and flood, and what is said to them.

mod autobahn;
mod storms;

use std::mem::size_of;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_testing::wire::{RecordKind, WireClient, WireKind};

use super::lingering::{LINGER_MAX, LINGERING_MAX};
use super::open::Secured;
use super::proxy::ProxyRules;
use super::websocket::frames::Frames;
use super::*;
use crate::driver::CloseCause;
use crate::driver::conformance::wires::settings;
use crate::driver::conformance::{Fact, Recorder};
use crate::driver::sim::{Arrived, Faults, PeerId, Sim};

/// Polls after which a test gives up.
const POLLS_MAX: usize = 20_000;

/// A driver with wires over a simulated network, and what it has reported.
struct Bench {
    wired: Wired<Sim>,
    recorder: Recorder,
}

/// A peer that speaks its wire.
struct Peer {
    id: PeerId,
    client: WireClient,
    end: Option<Arrived>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let sim = Sim::new(7, Instant::now(), Faults::default());
        Self { wired: Wired::new(sim, settings), recorder: Recorder::default() }
    }

    fn on(kind: WireKind) -> Self {
        Self::new(settings(kind))
    }

    fn sim(&mut self) -> &mut Sim {
        self.wired.driver()
    }

    fn facts(&self) -> &[Fact] {
        &self.recorder.facts
    }

    fn poll(&mut self) {
        self.wired.poll(&mut self.recorder).unwrap();
    }

    fn polls(&mut self, count: usize) {
        (0..count).for_each(|_| self.poll());
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut happened: impl FnMut(&mut Self) -> bool) {
        for _ in 0..POLLS_MAX {
            if happened(self) {
                return;
            }
            self.poll();
        }
        let last: Vec<_> = self.facts().iter().rev().take(10).collect();
        panic!("{what}: {last:?}");
    }

    #[track_caller]
    fn until_fact(&mut self, fact: &Fact) {
        self.until(&format!("no {fact:?}"), |bench| bench.facts().contains(fact));
    }

    /// A peer that says nothing of itself, and its connection.
    fn connect_raw(&mut self) -> (PeerId, ConnId) {
        let accepted = |bench: &Self| {
            let accepted = |fact: &Fact| match fact {
                Fact::Accepted(conn) => Some(*conn),
                _ => None,
            };
            bench.facts().iter().filter_map(accepted).collect::<Vec<_>>()
        };
        let before = accepted(self).len();
        let id = self.sim().connect().unwrap();
        self.until("not accepted", |bench| accepted(bench).len() > before);
        (id, *accepted(self).last().unwrap())
    }

    /// A peer whose wire is open, and its connection.
    fn connect(&mut self, kind: WireKind) -> (Peer, ConnId) {
        let (id, conn) = self.connect_raw();
        let mut peer = Peer { id, client: WireClient::new(kind, 7), end: None };
        self.until("not open", |bench| {
            peer.pass(bench);
            peer.client.is_open() && bench.wired.is_open(conn)
        });
        (peer, conn)
    }

    fn received(&self, conn: ConnId) -> Vec<u8> {
        let bytes = |fact: &Fact| match fact {
            Fact::Received(from, bytes) if *from == conn => Some(bytes.clone()),
            _ => None,
        };
        self.facts().iter().filter_map(bytes).flatten().collect()
    }

    fn failure(&self, conn: ConnId) -> Option<Failure> {
        self.facts().iter().find_map(|fact| match fact {
            Fact::Failed(of, failure) if *of == conn => Some(*failure),
            _ => None,
        })
    }

    /// Writes bytes of the network. Says what the peer gets for them until it is quiet.
    fn say(&mut self, peer: PeerId, bytes: &[u8]) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut left = bytes;
        for _ in 0..30 {
            let written = self.sim().write(peer, left);
            left = &left[written..];
            self.poll();
            if let Arrived::Bytes(bytes) = self.sim().read(peer) {
                heard.extend_from_slice(&bytes);
            }
        }
        heard
    }
}

impl Peer {
    /// Moves bytes in both directions.
    fn pass(&mut self, bench: &mut Bench) {
        let written = bench.sim().write(self.id, &self.client.out);
        self.client.out.drain(..written);
        match bench.sim().read(self.id) {
            Arrived::Bytes(bytes) => self.client.receive(&bytes),
            Arrived::Nothing => {}
            end => self.end = Some(end),
        }
        let written = bench.sim().write(self.id, &self.client.out);
        self.client.out.drain(..written);
    }

    #[track_caller]
    fn until(&mut self, bench: &mut Bench, what: &str, happened: impl Fn(&Self) -> bool) {
        bench.until(what, |bench| {
            self.pass(bench);
            happened(self)
        });
    }
}

const HELLO: &[u8] = b"\x16\x03\x01\x00\x30\x01\x00\x00";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n";

/// A client's first bytes on each wire, incomplete.
const BEGINNINGS: [(WireKind, &[u8]); 4] = [
    (WireKind::PROXY, b"PROXY TCP4 192.0.2.1"),
    (WireKind::TLS, HELLO),
    (WireKind::WEBSOCKET, REQUEST),
    (WireKind::PROXY_WSS, b"PROXY UNKNOWN\r\n\x16\x03\x01"),
];

#[test]
fn a_peer_that_stalls_while_its_wire_opens_fails_at_the_deadline_and_not_before() {
    for (kind, beginning) in BEGINNINGS {
        for count in [0, 1, beginning.len()] {
            let mut bench = Bench::on(kind);
            let (peer, conn) = bench.connect_raw();
            let from = bench.sim().now();
            bench.say(peer, &beginning[..count]);
            bench.recorder.idle_for = None;
            bench.until_fact(&Fact::Failed(conn, Failure::TimedOut));
            assert!(bench.sim().now() - from >= Settings::default().open_timeout);
            assert!(bench.sim().now() - from < 2 * Settings::default().open_timeout);
            bench.say(peer, &beginning[count..]);
            bench.wired.close(conn);
            bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
            assert_eq!(bench.received(conn), b"");
        }
    }
}

#[test]
fn a_peer_that_resets_while_its_wire_opens_leaves_nothing() {
    for (kind, beginning) in BEGINNINGS {
        for count in 0..beginning.len() {
            let mut bench = Bench::on(kind);
            let (peer, conn) = bench.connect_raw();
            bench.sim().write(peer, &beginning[..count]);
            bench.polls(count % 3);
            bench.sim().reset(peer);
            bench.until_fact(&Fact::Closed(conn, CloseCause::Reset));
            bench.polls(2);
            let wires = &bench.wired.wires;
            assert!(wires.opening.is_empty() && wires.flows.is_empty());
            assert_eq!(wires.handshakes.waiting(), 0);
            assert_eq!(bench.failure(conn), None);
        }
    }
}

#[test]
fn an_end_while_a_wire_opens_is_reported_once() {
    for (kind, beginning) in BEGINNINGS {
        for count in 0..beginning.len() {
            let mut bench = Bench::on(kind);
            let (peer, conn) = bench.connect_raw();
            bench.sim().write(peer, &beginning[..count]);
            bench.sim().half_close(peer);
            // The recorder refuses a second one.
            bench.until_fact(&Fact::Ended(conn));
            bench.polls(5);
        }
    }
}

/// Bytes that break the wire's protocol, how the wire fails, and how the answer begins.
#[test]
fn a_peer_that_lies_hears_why_and_fails_once() {
    let v12 = b"\x16\x03\x01\x00\x04\x01\x00\x00\x00";
    let cases: [(WireKind, &[u8], Failure, &[u8]); 9] = [
        (WireKind::PROXY, b"GET / HTTP/1.1\r\n", Failure::Proxy, b""),
        (WireKind::PROXY_WSS, b"\x16\x03\x01", Failure::Proxy, b""),
        (WireKind::TLS, b"GET / HTTP/1.1\r\n\r\n", Failure::Tls, b"\x15"),
        (WireKind::TLS, v12, Failure::Tls, b"\x15"),
        (WireKind::WSS, b"\x17\x03\x03\x00\x02hi", Failure::Tls, b"\x15"),
        (WireKind::TLS, b"\x16\x03\x01\xff\xff", Failure::Tls, b"\x15"),
        (WireKind::WEBSOCKET, HELLO, Failure::Upgrade, b"HTTP/1.1 400 "),
        (WireKind::WEBSOCKET, b"POST / HTTP/1.1\r\n\r\n", Failure::Upgrade, b"HTTP/1.1 405 "),
        (WireKind::WEBSOCKET, b"GET /a HTTP/1.1\r\n\r\n", Failure::Upgrade, b"HTTP/1.1 404 "),
    ];
    for (kind, bytes, failure, answer) in cases {
        for whole in [true, false] {
            let mut bench = Bench::on(kind);
            let (peer, conn) = bench.connect_raw();
            let mut heard = Vec::new();
            for bytes in bytes.chunks(if whole { bytes.len() } else { 1 }) {
                heard.extend(bench.say(peer, bytes));
            }
            assert_eq!(bench.failure(conn), Some(failure), "{kind:?} {bytes:?}");
            assert!(heard.starts_with(answer), "{kind:?} {bytes:?}: {heard:?}");
            assert!(!answer.is_empty() || heard.is_empty(), "{heard:?}");
            // What it says now is ignored, and nothing is said to it.
            assert_eq!(bench.say(peer, bytes), b"");
            assert_eq!(bench.wired.send(conn, Bytes::from_static(b"hello")), SendState::Done);
            bench.wired.shutdown(conn);
            bench.until("no end", |bench| bench.sim().read(peer) == Arrived::End);
            bench.sim().half_close(peer);
            bench.until_fact(&Fact::Ended(conn));
            bench.wired.close(conn);
            bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
            assert_eq!(bench.received(conn), b"");
            assert_eq!(bench.recorder.unsent_bytes, 5, "what was not said is not sent");
        }
    }
}

#[test]
fn a_peer_that_is_not_trusted_with_a_proxy_header_fails_at_once() {
    let mut settings = settings(WireKind::PROXY);
    let trusted = ["192.0.2.0/24".parse().unwrap()];
    settings.wires[0].proxy = Some(Arc::new(ProxyRules::new("balanced", trusted)));
    let mut bench = Bench::new(settings);
    let (peer, conn) = bench.connect_raw();
    assert_eq!(bench.failure(conn), Some(Failure::Untrusted));
    bench.say(peer, b"PROXY UNKNOWN\r\nhello");
    assert_eq!(bench.received(conn), b"");
}

#[test]
fn what_a_peer_sends_before_its_wire_is_open_has_a_bound() {
    let record = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; 16 * 1024 - 4]].concat();
    let endless: [(WireKind, Vec<u8>, Failure); 4] = [
        (WireKind::TLS, record.repeat(20), Failure::TooMuch),
        (
            WireKind::PROXY_WSS,
            [b"PROXY UNKNOWN\r\n", &record.repeat(2)[..]].concat(),
            Failure::TooMuch,
        ),
        (WireKind::WEBSOCKET, [REQUEST, &b"A: b\r\n".repeat(50_000)].concat(), Failure::Upgrade),
        (WireKind::PROXY, [b'1'; 300_000].to_vec(), Failure::Proxy),
    ];
    for (kind, bytes, failure) in endless {
        let mut bench = Bench::on(kind);
        let (peer, conn) = bench.connect_raw();
        bench.say(peer, &bytes);
        assert_eq!(bench.failure(conn), Some(failure), "{kind:?}");
    }
}

#[test]
fn a_refusal_in_tls_arrives_whole() {
    let mut settings = settings(WireKind::WSS);
    let rules = settings.wires[0].websocket.as_ref().unwrap();
    let rules =
        super::websocket::upgrade::UpgradeRules { path: "/other".into(), ..(**rules).clone() };
    settings.wires[0].websocket = Some(std::sync::Arc::new(rules));
    let mut bench = Bench::new(settings);
    let (id, conn) = bench.connect_raw();
    let mut peer = Peer { id, client: WireClient::new(WireKind::WSS, 1), end: None };
    peer.until(&mut bench, "no refusal", |peer| peer.client.refusal().is_some());
    assert!(peer.client.refusal().unwrap().starts_with("HTTP/1.1 404 Not Found\r\n"));
    assert!(peer.client.has_goodbye, "without close_notify it counts as cut off");
    assert_eq!(bench.failure(conn), Some(Failure::Upgrade));
    assert_eq!(bench.wired.figures().completed_handshakes, 1, "it was one, whatever came of it");
}

#[test]
fn a_close_frame_is_answered_with_its_code_behind_what_is_owed() {
    for kind in [WireKind::WEBSOCKET, WireKind::WSS] {
        let mut bench = Bench::on(kind);
        let (mut peer, conn) = bench.connect(kind);
        peer.client.send(b"ask");
        peer.client.end();
        peer.until(&mut bench, "bytes are left", |peer| peer.client.out.is_empty());
        bench.until_fact(&Fact::Ended(conn));
        assert_eq!(bench.received(conn), b"ask");
        let _ = bench.wired.send(conn, Bytes::from_static(b"answer"));
        peer.until(&mut bench, "no answer", |peer| peer.client.received == b"answer");
        assert_eq!(peer.client.close_code(), None);
        bench.wired.shutdown(conn);
        peer.until(&mut bench, "no end", |peer| peer.end.is_some());
        assert_eq!(peer.client.close_code(), Some(1000));
        bench.sim().half_close(peer.id);
        bench.polls(5);
    }
}

/// The frame of each violation, the code that the peer hears, and that nothing is received from it any more.
#[test]
fn a_violation_is_answered_with_its_code() {
    // The mask is 0.
    let cases: [(&[u8], u16); 6] = [
        (b"\x82\x02hi", 1002),
        (b"\xc2\x82\0\0\0\0hi", 1002),
        (b"\x83\x82\0\0\0\0hi", 1002),
        (b"\x81\x82\0\0\0\0hi", 1003),
        (b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007),
        (b"\x82\xff\0\0\0\0\0\x10\0\0\0\0\0\0", 1009),
    ];
    for (frame, code) in cases {
        let mut bench = Bench::on(WireKind::WEBSOCKET);
        let (mut peer, conn) = bench.connect(WireKind::WEBSOCKET);
        bench.say(peer.id, b"\x82\x82\0\0\0\0ok");
        bench.say(peer.id, frame);
        bench.say(peer.id, b"\x82\x82\0\0\0\0no");
        assert_eq!(bench.failure(conn), Some(Failure::WebSocket), "{frame:?}");
        assert_eq!(bench.received(conn), b"ok");
        // The core still may say what it has to say, and then closes.
        let _ = bench.wired.send(conn, Bytes::from_static(b"bye"));
        bench.wired.close(conn);
        peer.until(&mut bench, "no end", |peer| peer.end.is_some());
        assert_eq!(peer.client.received, b"bye");
        assert_eq!(peer.client.close_code(), Some(code), "{frame:?}");
    }
}

#[test]
fn a_record_that_is_broken_ends_tls_with_an_alert() {
    let mut bench = Bench::on(WireKind::TLS);
    let (mut peer, conn) = bench.connect(WireKind::TLS);
    peer.client.send(b"hello");
    let last = peer.client.out.len() - 1;
    peer.client.out[last] ^= 1;
    let record = std::mem::take(&mut peer.client.out);
    let heard = bench.say(peer.id, &record);
    assert_eq!(bench.failure(conn), Some(Failure::Tls));
    assert_eq!(bench.received(conn), b"");
    assert_eq!(heard.len(), 24, "an alert that is encrypted");
    assert_eq!(bench.say(peer.id, &record), b"");
    bench.wired.close(conn);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
}

/// Each comes in one read with a ping before it, whose pong can't be encrypted any more.
#[test]
fn a_failure_of_tls_behind_a_ping_harms_no_other_connection() {
    // rustls has no alert for a message that is interrupted.
    let fatal: [&[(RecordKind, &[u8])]; 2] = [
        &[(RecordKind::Handshake, &[20, 0, 0, 0, 20, 0, 0, 0])],
        &[(RecordKind::Handshake, &[20, 0, 1]), (RecordKind::Data, b"more")],
    ];
    for (content, alert_bytes) in fatal.into_iter().zip([24, 0]) {
        let mut bench = Bench::on(WireKind::WSS);
        let (mut neighbour, other) = bench.connect(WireKind::WSS);
        let (peer, conn) = bench.connect(WireKind::WSS);
        let id = peer.id;
        let mut records = peer.client.into_records();
        let frames = b"\x82\x82\0\0\0\0ok\x89\x80\0\0\0\0";
        let mut bytes = records.record(RecordKind::Data, frames);
        content.iter().for_each(|(kind, content)| bytes.extend(records.record(*kind, content)));
        let heard = bench.say(id, &bytes);
        assert_eq!(
            (&bench.received(conn)[..], bench.failure(conn)),
            (&b"ok"[..], Some(Failure::Tls))
        );
        assert_eq!(heard.len(), alert_bytes, "an alert that is encrypted, and no pong");
        let _ = bench.wired.send(conn, Bytes::from_static(b"bye"));
        bench.wired.shutdown(conn);
        assert_eq!(bench.say(id, &records.record(RecordKind::Data, frames)), b"");
        bench.wired.close(conn);
        bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
        neighbour.client.send(b"hello");
        neighbour.until(&mut bench, "bytes are left", |peer| peer.client.out.is_empty());
        bench.until("bytes are lost", |bench| bench.received(other) == b"hello");
    }
}

#[test]
fn a_peer_that_pings_and_does_not_read_fails_within_a_bound() {
    for kind in [WireKind::WEBSOCKET, WireKind::WSS] {
        for at_once in [1, 400] {
            let mut bench = Bench::on(kind);
            let (mut peer, conn) = bench.connect(kind);
            bench.sim().set_window(peer.id, 0);
            let mut pings = 0;
            while bench.failure(conn).is_none() {
                pings += at_once;
                assert!(pings <= 20.max(4 * at_once), "{pings} pings");
                (0..at_once).for_each(|_| peer.client.ping(&[7; 125]));
                peer.pass(&mut bench);
                bench.polls(2);
                let waiting = bench.wired.wires.flows[&conn].own_bytes();
                assert!(waiting <= 192 * 1024, "{waiting}");
            }
            assert_eq!(bench.failure(conn), Some(Failure::TooMuch));
            bench.sim().set_window(peer.id, 1 << 20);
            bench.wired.shutdown(conn);
            peer.until(&mut bench, "no end", |peer| peer.end.is_some());
            assert!(peer.client.has_goodbye);
        }
    }
}

/// A socket that is closed before the peer's last bytes were read is reset, and the reset may overtake the goodbye.
#[test]
fn a_connection_that_is_closed_behind_its_peers_goodbye_waits_for_the_peers_end() {
    for kind in [WireKind::WEBSOCKET, WireKind::WSS, WireKind::TLS] {
        for ends in [true, false] {
            let mut bench = Bench::on(kind);
            let (mut peer, conn) = bench.connect(kind);
            if kind.websocket {
                peer.client.ping(b"still there?");
            }
            peer.client.end();
            peer.until(&mut bench, "bytes are left", |peer| peer.client.out.is_empty());
            bench.until_fact(&Fact::Ended(conn));
            let from = bench.sim().now();
            bench.wired.close(conn);
            bench.wired.close(conn);
            assert_eq!(bench.wired.send(conn, Bytes::from_static(b"late")), SendState::Done);
            bench.sim().write(peer.id, b"what comes after a goodbye");
            bench.polls(5);
            let closed = Fact::Closed(conn, CloseCause::Local);
            assert!(!bench.facts().contains(&closed), "{kind:?}: it does not linger");
            peer.until(&mut bench, "no end", |peer| peer.end.is_some());
            assert_eq!(peer.end, Some(Arrived::End), "{kind:?}");
            assert!(peer.client.has_goodbye && peer.client.received.is_empty());
            if ends {
                bench.sim().half_close(peer.id);
            }
            bench.recorder.idle_for = None;
            bench.until_fact(&closed);
            let lingered = bench.sim().now() - from;
            assert_eq!(lingered >= LINGER_MAX, !ends, "{kind:?}: {lingered:?}");
            let wires = &bench.wired.wires;
            assert!(wires.lingering.is_empty() && wires.flows.is_empty());
        }
    }
}

/// The peer reads nothing until the connection is closed. Its end does not cut the goodbye off, and when that is out the
/// connection lingers no longer.
#[test]
fn a_goodbye_that_has_to_wait_is_not_cut_off_and_is_the_last_that_is_waited_for() {
    for kind in [WireKind::WEBSOCKET, WireKind::WSS] {
        for ends_first in [true, false] {
            let mut bench = Bench::on(kind);
            let (mut peer, conn) = bench.connect(kind);
            bench.sim().set_window(peer.id, 0);
            peer.client.ping(&[7; 125]);
            peer.client.end();
            peer.until(&mut bench, "bytes are left", |peer| peer.client.out.is_empty());
            bench.until_fact(&Fact::Ended(conn));
            let from = bench.sim().now();
            if ends_first {
                bench.sim().half_close(peer.id);
                bench.polls(5);
            }
            bench.wired.close(conn);
            if !ends_first {
                bench.sim().half_close(peer.id);
            }
            bench.polls(5);
            bench.sim().set_window(peer.id, 1 << 20);
            peer.until(&mut bench, "no end", |peer| peer.end.is_some());
            assert!(peer.client.has_goodbye, "{kind:?}");
            bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
            assert!(bench.sim().now() - from < LINGER_MAX, "{kind:?}: it lingered for nothing");
        }
    }
}

#[test]
fn of_too_many_connections_that_linger_the_oldest_are_closed() {
    let mut bench = Bench::on(WireKind::WEBSOCKET);
    let from = bench.sim().now();
    let mut conns = Vec::new();
    for _ in 0..LINGERING_MAX + 3 {
        let (mut peer, conn) = bench.connect(WireKind::WEBSOCKET);
        peer.client.end();
        peer.until(&mut bench, "bytes are left", |peer| peer.client.out.is_empty());
        bench.until_fact(&Fact::Ended(conn));
        bench.wired.close(conn);
        conns.push(conn);
    }
    bench.polls(5);
    let lingering = &bench.wired.wires.lingering;
    let is_closed = |conn: &&ConnId| !lingering.contains(**conn);
    let closed: Vec<_> = conns.iter().filter(is_closed).copied().collect();
    assert_eq!(closed, conns[..3]);
    assert!(bench.sim().now() - from < LINGER_MAX, "nothing was closed since its time was over");
}

#[test]
fn nothing_is_sent_behind_the_goodbye() {
    for kind in [WireKind::WEBSOCKET, WireKind::WSS, WireKind::TLS] {
        let mut bench = Bench::on(kind);
        let (mut peer, conn) = bench.connect(kind);
        bench.wired.shutdown(conn);
        peer.until(&mut bench, "no end", |peer| peer.end.is_some());
        assert!(peer.client.has_goodbye);
        // Among these are pings, and the simulation refuses a send after a shutdown.
        for _ in 0..100 {
            peer.client.send(b"hello");
            peer.pass(&mut bench);
            bench.poll();
        }
        bench.until("bytes are lost", |bench| bench.received(conn) == b"hello".repeat(100));
    }
}

#[test]
fn a_shutdown_while_the_wire_opens_ends_it() {
    for (kind, _) in BEGINNINGS {
        for polls in 0..6 {
            let mut bench = Bench::on(kind);
            let (id, conn) = bench.connect_raw();
            let mut peer = Peer { id, client: WireClient::new(kind, 7), end: None };
            for _ in 0..polls {
                peer.pass(&mut bench);
                bench.poll();
            }
            let _ = bench.wired.send(conn, Bytes::from_static(b"bye"));
            bench.wired.shutdown(conn);
            peer.until(&mut bench, "no end", |peer| peer.end.is_some());
            peer.client.send(b"hello");
            peer.pass(&mut bench);
            bench.polls(5);
        }
    }
}

/// The wire's own records and those of the core, while the peer reads a little at a time: TLS numbers them.
#[test]
fn what_a_wire_sends_of_its_own_keeps_its_place() {
    for kind in [WireKind::WEBSOCKET, WireKind::WSS] {
        let mut bench = Bench::on(kind);
        let (mut peer, conn) = bench.connect(kind);
        bench.sim().set_window(peer.id, 700);
        let (mut sent, mut is_busy) = (Vec::new(), false);
        for round in 0..400_usize {
            // Some of them carry pings.
            peer.client.send(b"ask");
            if !is_busy {
                let bytes = vec![u8::try_from(round % 251).unwrap(); 1 + round * 7 % 3000];
                sent.extend_from_slice(&bytes);
                let before = bench.facts().len();
                is_busy = bench.wired.send(conn, bytes.into()) == SendState::UnderWay;
                assert_eq!(before, bench.facts().len(), "nothing is reported inline");
            }
            let before = bench.facts().len();
            peer.pass(&mut bench);
            bench.poll();
            let is_sent = |fact: &Fact| matches!(fact, Fact::Sent(..));
            is_busy &= !bench.facts()[before..].iter().any(is_sent);
        }
        bench.sim().set_window(peer.id, 1 << 20);
        peer.until(&mut bench, "bytes are lost", |peer| peer.client.received.len() == sent.len());
        assert!(peer.client.received == sent);
        assert_eq!(bench.failure(conn), None);
        bench.polls(2);
        assert!(bench.wired.wires.flows.is_empty());
    }
}

#[test]
fn a_push_to_many_websockets_is_framed_once() {
    let mut open = Open::new(&Settings::default());
    let conns: Vec<_> = (0..50).map(|slot| ConnId { slot, generation: 0 }).collect();
    conns.iter().for_each(|&conn| open.add(conn, None, true));
    for length in [1, 125, 126, 4096, 4097, 100_000] {
        let push = Bytes::from(vec![7; length]);
        let framed: Vec<_> =
            conns.iter().map(|&conn| open.encode(conn, &push.clone()).unwrap()).collect();
        assert!(framed.iter().all(|other| other.as_ptr() == framed[0].as_ptr()), "{length}");
        assert!(framed[0].ends_with(&push) && framed[0].len() <= length + 10);
        // Other bytes of the same length are others.
        let mut other = vec![7; length];
        other[length - 1] = 8;
        let other = open.encode(conns[0], &other.into()).unwrap();
        assert_eq!(other.last(), Some(&8));
    }
}

#[test]
fn a_plain_connection_beside_wires_costs_no_memory() {
    let mut settings = settings(WireKind::WSS);
    settings.wires.insert(0, Wire::default());
    let mut bench = Bench::new(settings);
    for _ in 0..100 {
        let (peer, conn) = bench.connect_raw();
        bench.say(peer, b"hello");
        assert_eq!(bench.received(conn), b"hello");
        assert_eq!(bench.wired.send(conn, Bytes::from_static(b"hello")), SendState::Done);
    }
    let wires = &bench.wired.wires;
    assert_eq!((wires.flows.capacity(), wires.opening.capacity()), (0, 0));
    assert_eq!(wires.deadlines.capacity(), 0);
    assert_eq!(bench.wired.figures(), Figures::default());
    assert!(wires.kinds.is_empty() && wires.open.is_empty());
}

#[test]
fn an_idle_connection_keeps_little() {
    assert_eq!(size_of::<Frames>(), 16);
    assert_eq!(size_of::<(ConnId, Frames)>(), 24);
    assert_eq!(size_of::<(ConnId, Box<Secured>)>(), 16);
    assert!(size_of::<Secured>() <= 1200, "{}", size_of::<Secured>());
    for kind in [WireKind::WEBSOCKET, WireKind::WSS] {
        let mut bench = Bench::on(kind);
        let (mut peer, conn) = bench.connect(kind);
        for _ in 0..50 {
            peer.client.send(b"hello");
            let _ = bench.wired.send(conn, Bytes::from_static(b"hello"));
            peer.until(&mut bench, "no answer", |peer| peer.client.received == b"hello");
            peer.client.received.clear();
        }
        bench.polls(3);
        let wires = &bench.wired.wires;
        assert!(wires.flows.is_empty() && wires.opening.is_empty());
        assert!(wires.unblocked.is_empty() && wires.open.keeps_nothing());
    }
}

#[test]
fn a_login_of_the_request_comes_before_what_follows_it() {
    let mut settings = settings(WireKind::WEBSOCKET);
    let rules = settings.wires[0].websocket.as_ref().unwrap();
    let mut rules = super::websocket::upgrade::UpgradeRules::clone(rules);
    rules.token.query = true;
    settings.wires[0].websocket = Some(std::sync::Arc::new(rules));
    let mut bench = Bench::new(settings);
    let (peer, conn) = bench.connect_raw();
    let request = b"GET /?token=secret&user_id=7 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1\r\n\r\n\
        \x82\x85\0\0\0\0hello";
    let heard = bench.say(peer, request);
    assert!(heard.starts_with(b"HTTP/1.1 101 Switching Protocols\r\n"));
    let login = super::websocket::upgrade::EarlyLogin { user_id: 7, token: "secret".into() };
    assert_eq!(bench.received(conn), [&login.frame()[..], b"hello"].concat());
}
