//! The clients' side of a wire: PROXY protocol, TLS and WebSocket, without I/O.
//!
//! [`WireClient`] stands between what a test's client sends and receives, and the network. It draws at random how it cuts
//! messages into frames, and where it sends pings. The same seed gives the same number of bytes at the same places, so that a
//! run of a simulation repeats.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use fastrand::Rng;
use rustls::{ClientConfig, ClientConnection};
use tidegate_tls::fixture::server_name;
pub use tidegate_tls::fixture::{Certificate, RecordKind, Records, certificate};

mod websocket;

use websocket::WebSocket;

/// What a client says of a PROXY header's client: see [`PROXY_CLIENT`].
const PROXY_HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 7400\r\n";

/// The address that clients have by their PROXY header.
pub const PROXY_CLIENT: &str = "192.0.2.1:5000";

/// Bytes of a client that wait for a wire to open, or for the network, before it takes no more.
const WAITING_BYTES_MAX: usize = 64 * 1024;

/// What stands between a client and the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireKind {
    /// A PROXY header comes first.
    pub proxy: bool,
    /// Then TLS.
    pub tls: bool,
    /// Then a WebSocket.
    pub websocket: bool,
}

impl WireKind {
    /// Nothing.
    pub const PLAIN: Self = Self { proxy: false, tls: false, websocket: false };
    /// A PROXY header alone.
    pub const PROXY: Self = Self { proxy: true, ..Self::PLAIN };
    /// TLS.
    pub const TLS: Self = Self { tls: true, ..Self::PLAIN };
    /// A WebSocket.
    pub const WEBSOCKET: Self = Self { websocket: true, ..Self::PLAIN };
    /// A WebSocket in TLS.
    pub const WSS: Self = Self { tls: true, ..Self::WEBSOCKET };
    /// All.
    pub const PROXY_WSS: Self = Self { proxy: true, ..Self::WSS };
    /// Each of these but [`Self::PLAIN`].
    pub const WIRES: [Self; 5] =
        [Self::PROXY, Self::TLS, Self::WEBSOCKET, Self::WSS, Self::PROXY_WSS];
}

/// The client's side of one connection.
pub struct WireClient {
    tls: Option<Box<ClientConnection>>,
    websocket: Option<WebSocket>,
    /// What waits for the wire to open.
    waiting: Vec<u8>,
    ends: bool,
    /// Pings that wait.
    pings: Vec<Vec<u8>>,
    /// What the network is to carry.
    pub out: Vec<u8>,
    /// What the gateway has sent.
    pub received: Vec<u8>,
    /// The gateway has said that it sends no more: by `close_notify`, if there is TLS, and by a close frame, if there is a
    /// WebSocket.
    pub has_goodbye: bool,
}

impl std::fmt::Debug for WireClient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (is_open, out) = (self.is_open(), self.out.len());
        let mut debug = formatter.debug_struct("WireClient");
        debug.field("is_open", &is_open).field("waiting", &self.waiting.len());
        debug.field("out", &out).field("has_goodbye", &self.has_goodbye).finish_non_exhaustive()
    }
}

impl WireClient {
    /// A client that has just connected.
    ///
    /// # Panics
    /// When TLS can't begin.
    #[must_use]
    pub fn new(kind: WireKind, seed: u64) -> Self {
        Self::with_tls(kind, seed, &certificate().client)
    }

    /// The same, with another configuration of TLS.
    ///
    /// # Panics
    /// When TLS can't begin.
    #[must_use]
    pub fn with_tls(kind: WireKind, seed: u64, config: &Arc<ClientConfig>) -> Self {
        let tls = kind.tls.then(|| {
            let tls = ClientConnection::new(Arc::clone(config), server_name());
            let mut tls = tls.expect("TLS begins");
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        let mut client = Self {
            tls,
            websocket: kind.websocket.then(|| WebSocket::new(Rng::with_seed(seed))),
            waiting: Vec::new(),
            ends: false,
            pings: Vec::new(),
            out: Vec::new(),
            received: Vec::new(),
            has_goodbye: false,
        };
        if kind.proxy {
            client.out.extend_from_slice(PROXY_HEADER);
        }
        client.advance(&[]);
        client
    }

    /// Ends the client's own TLS. From now on a test makes each record itself.
    ///
    /// # Panics
    /// When the connection has no TLS 1.3, or its handshake is not over.
    #[must_use]
    pub fn into_records(self) -> Records {
        Records::after(*self.tls.expect("it has TLS"))
    }

    /// Whether what is sent reaches the gateway, as far as the client knows.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let is_secured = self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking());
        is_secured && self.websocket.as_ref().is_none_or(WebSocket::is_open)
    }

    /// The code of the close frame that has come.
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        self.websocket.as_ref()?.close_code
    }

    /// What the gateway has answered instead of opening the WebSocket.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.websocket.as_ref()?.refusal.as_deref()
    }

    /// Whether more may be sent now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.len() + self.out.len() < WAITING_BYTES_MAX
    }

    /// Sends as much as there is [room](Self::has_room) for, and a little more. Says how much.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.has_room() {
            let count = (bytes.len() - taken).min(16 * 1024);
            self.waiting.extend_from_slice(&bytes[taken..taken + count]);
            taken += count;
            self.advance(&[]);
        }
        taken
    }

    /// Pings. The pong has to come in its turn.
    pub fn ping(&mut self, payload: &[u8]) {
        self.pings.push(payload.to_vec());
        self.advance(&[]);
    }

    /// Says that no more will be sent.
    pub fn end(&mut self) {
        self.ends = true;
        self.advance(&[]);
    }

    /// Takes what has come from the network.
    ///
    /// # Panics
    /// When the gateway breaks a protocol.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.advance(bytes);
    }

    fn advance(&mut self, mut bytes: &[u8]) {
        let mut plain = Vec::new();
        if let Some(tls) = &mut self.tls {
            loop {
                if !bytes.is_empty() {
                    tls.read_tls(&mut bytes).expect("memory can be read");
                }
                let state = tls.process_new_packets().expect("the gateway's TLS is good");
                self.has_goodbye |= state.peer_has_closed();
                // `WouldBlock`, or the end without `close_notify`.
                let _ = tls.reader().read_to_end(&mut plain);
                if bytes.is_empty() || state.peer_has_closed() {
                    break;
                }
            }
        } else {
            plain.extend_from_slice(bytes);
        }
        let mut to_send = Vec::new();
        match &mut self.websocket {
            Some(websocket) => {
                websocket.receive(&plain, &mut self.received);
                for ping in self.pings.drain(..) {
                    websocket.ping(ping, &mut to_send);
                }
                websocket.send(&mut self.waiting, self.ends, &mut to_send);
                if self.tls.is_none() {
                    self.has_goodbye = websocket.close_code.is_some();
                }
            }
            None => {
                self.received.append(&mut plain);
                if self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking()) {
                    to_send.append(&mut self.waiting);
                }
            }
        }
        let Some(tls) = &mut self.tls else { return self.out.append(&mut to_send) };
        tls.writer().write_all(&to_send).expect("there is no limit");
        if self.ends && self.waiting.is_empty() && !tls.is_handshaking() {
            tls.send_close_notify();
            self.ends = false;
        }
        while tls.wants_write() {
            tls.write_tls(&mut self.out).expect("a vector takes all");
        }
    }
}
