//! A connection whose wire is being opened: PROXY header, TLS handshake, upgrade, one after the other, each if its
//! listening socket asks for it.

use std::mem;
use std::net::SocketAddr;

use tidegate_tls::{RECEIVED_RECORD_BYTES_MAX, Received};

use super::open::Secured;
use super::settings::Wire;
use super::websocket::upgrade::{EarlyLogin, Upgrade, upgrade};
use super::{Failure, proxy};
use crate::driver::RECEIVE_BYTES_MAX;

/// The most bytes that wait for the first step of a handshake: a client hello in one record. A client has nothing else to
/// send before it is answered.
const BEGINNING_BYTES_MAX: usize = RECEIVED_RECORD_BYTES_MAX;

/// The most bytes that wait for a further step: the end of the handshake, and a first frame or an upgrade behind it.
const CONTINUING_BYTES_MAX: usize = RECEIVED_RECORD_BYTES_MAX + 16 * 1024;

/// The same while few handshakes wait. A client may send as much as it likes behind its part of the handshake: what one poll
/// brings, and what comes before the connection's reading is paused.
const CONTINUING_BYTES_MAX_OF_FEW: usize = RECEIVED_RECORD_BYTES_MAX + 2 * RECEIVE_BYTES_MAX;

/// Few.
const FEW: usize = 128;

/// A connection whose wire is being opened.
#[derive(Debug)]
pub(super) struct Opening {
    wire: Wire,
    peer: SocketAddr,
    stage: Stage,
    /// Received, and not used yet: encrypted before [`Stage::Upgrade`], and payload from then on.
    bytes: Vec<u8>,
    /// It waits for its turn among the handshakes.
    pub(super) is_queued: bool,
    /// The driver has paused receiving until its turn.
    pub(super) is_paused: bool,
    /// A first step of the handshake was done.
    has_begun: bool,
    /// The peer has shut down its sending side.
    has_ended: bool,
    /// The kernel has said so, and not only TLS.
    is_peer_shut_down: bool,
    /// The core has heard of that.
    is_end_reported: bool,
    /// Bytes of the core that can't be said to the peer, as the wire is not open.
    pub(super) lost_bytes: usize,
}

#[derive(Debug)]
enum Stage {
    Proxy,
    /// The TLS session begins with the handshake's first step: a client that says nothing, or waits for its turn, costs none.
    Handshake(Option<Box<Secured>>),
    Upgrade(Option<Box<Secured>>),
    /// It will not open. What still comes is ignored.
    Failed,
}

/// What a step came to.
#[derive(Debug)]
pub(super) enum Step {
    /// More bytes are needed.
    Waits,
    /// The next step is a TLS handshake's, which is to be done in its turn.
    Handshake {
        /// It is the first one.
        begins: bool,
    },
    /// The client's address is known.
    Named(SocketAddr),
    /// It will not open.
    Failed(Failure, &'static str),
    /// It is open.
    Open(Opened),
}

/// A wire that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) secured: Option<Box<Secured>>,
    pub(super) is_websocket: bool,
    /// Received behind what opened the wire: payload of TLS, if there is TLS.
    pub(super) rest: Vec<u8>,
    pub(super) login: Option<EarlyLogin>,
}

impl Opening {
    /// A connection that was just accepted. `Err`: it will not open.
    pub(super) fn new(wire: &Wire, peer: SocketAddr) -> Result<Self, Failure> {
        let wire = wire.clone();
        let stage = match &wire.proxy {
            Some(rules) if !rules.trusts(peer) => {
                rules.warn(peer, proxy::Mistake::Untrusted);
                return Err(Failure::Untrusted);
            }
            Some(_) => Stage::Proxy,
            None => Self::after_proxy(&wire),
        };
        Ok(Self::at(stage, wire, peer))
    }

    /// One that will not open.
    pub(super) fn failed(wire: &Wire, peer: SocketAddr) -> Self {
        Self::at(Stage::Failed, wire.clone(), peer)
    }

    const fn at(stage: Stage, wire: Wire, peer: SocketAddr) -> Self {
        Self {
            wire,
            peer,
            stage,
            bytes: Vec::new(),
            is_queued: false,
            is_paused: false,
            has_begun: false,
            has_ended: false,
            is_peer_shut_down: false,
            is_end_reported: false,
            lost_bytes: 0,
        }
    }

    const fn after_proxy(wire: &Wire) -> Stage {
        match &wire.tls {
            Some(_) => Stage::Handshake(None),
            None => Stage::Upgrade(None),
        }
    }

    pub(super) const fn is_failed(&self) -> bool {
        matches!(self.stage, Stage::Failed)
    }

    /// Bytes that wait for a step.
    #[cfg(test)]
    pub(super) const fn kept_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is memory of TLS.
    #[cfg(test)]
    pub(super) const fn has_session(&self) -> bool {
        matches!(self.stage, Stage::Handshake(Some(_)) | Stage::Upgrade(Some(_)))
    }

    /// Whether the TLS handshake is not over yet.
    pub(super) const fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Handshake(_))
    }

    /// Logs a failure that a wrong configuration can cause.
    pub(super) fn warn(&self, failure: Failure) {
        if let (Stage::Proxy, Some(rules)) = (&self.stage, &self.wire.proxy) {
            match failure {
                Failure::Proxy => rules.warn(self.peer, proxy::Mistake::of(&self.bytes)),
                Failure::TimedOut => rules.warn(self.peer, proxy::Mistake::Late),
                _ => {}
            }
        }
    }

    /// It will not open. It waits for no step any more.
    pub(super) fn fail(&mut self) {
        self.stage = Stage::Failed;
        self.bytes = Vec::new();
    }

    /// The peer has shut down its sending side. Says whether that takes the connection from the queue: a handshake that has
    /// not begun can't be completed any more, and is not worth a signature.
    pub(super) fn end(&mut self) -> bool {
        (self.has_ended, self.is_peer_shut_down) = (true, true);
        let is_hopeless = self.is_queued && !self.has_begun;
        if is_hopeless {
            (self.is_queued, self.bytes) = (false, Vec::new());
        }
        is_hopeless
    }

    /// Whether the peer has shut down its sending side.
    pub(super) const fn is_peer_shut_down(&self) -> bool {
        self.is_peer_shut_down
    }

    /// Whether the peer has said that it sends no more, by TLS or by the kernel.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether receiving may be paused while it waits. Before the first step it may not: little can come, and a peer's end
    /// would not be noticed.
    pub(super) const fn may_pause(&self) -> bool {
        self.is_queued && self.has_begun
    }

    /// Whether the core is to hear now that the peer has ended: after all that it has sent before, and once.
    pub(super) const fn reports_end(&mut self) -> bool {
        let reports = self.has_ended && !self.is_queued && !self.is_end_reported;
        self.is_end_reported |= reports;
        reports
    }

    /// Takes received bytes. `out`: what the peer is to be sent.
    pub(super) fn receive(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        match &mut self.stage {
            Stage::Failed => return Ok(()),
            Stage::Upgrade(Some(secured)) => {
                let received = secured.tls.receive(bytes, out, &mut self.bytes);
                self.has_ended |= received.map_err(|_| Failure::Tls)? == Received::Ended;
            }
            Stage::Proxy | Stage::Handshake(_) | Stage::Upgrade(None) => {
                self.bytes.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// Does the next step with what was received. `may_handshake`: it is this connection's turn. `continuing`: how many
    /// handshakes wait for a further step.
    pub(super) fn step(
        &mut self,
        may_handshake: bool,
        continuing: usize,
        out: &mut Vec<u8>,
    ) -> Step {
        match &mut self.stage {
            Stage::Failed => Step::Waits,
            Stage::Proxy => self.read_proxy_header(),
            Stage::Handshake(secured) if !has_record(secured.as_deref(), &self.bytes) => {
                Step::Waits
            }
            Stage::Handshake(_) if !may_handshake => self.wait_for_turn(continuing),
            Stage::Handshake(_) => self.handshake(out),
            Stage::Upgrade(_) => self.read_upgrade(out),
        }
    }

    fn wait_for_turn(&self, continuing: usize) -> Step {
        let bytes_max = match self.has_begun {
            false => BEGINNING_BYTES_MAX,
            true if continuing < FEW => CONTINUING_BYTES_MAX_OF_FEW,
            true => CONTINUING_BYTES_MAX,
        };
        if self.bytes.len() > bytes_max {
            return Step::Failed(Failure::TooMuch, Failure::TooMuch.reason());
        }
        Step::Handshake { begins: !self.has_begun }
    }

    fn read_proxy_header(&mut self) -> Step {
        match proxy::parse(&self.bytes) {
            proxy::Parsed::Incomplete => Step::Waits,
            proxy::Parsed::Invalid => {
                Step::Failed(Failure::Proxy, "the connection does not begin with a PROXY header")
            }
            proxy::Parsed::Header { bytes, client } => {
                self.bytes.drain(..bytes);
                self.stage = Self::after_proxy(&self.wire);
                Step::Named(client.unwrap_or(self.peer))
            }
        }
    }

    fn handshake(&mut self, out: &mut Vec<u8>) -> Step {
        let Stage::Handshake(secured) = &mut self.stage else { return Step::Waits };
        self.has_begun = true;
        let mut received = mem::take(&mut self.bytes);
        let secured = match secured {
            Some(secured) => secured,
            None => match Secured::begin(&self.wire) {
                Some(begun) => secured.insert(begun),
                None => return Step::Failed(Failure::Tls, "TLS can't begin"),
            },
        };
        match secured.tls.receive(&mut received, out, &mut self.bytes) {
            Err(_) => return Step::Failed(Failure::Tls, "the TLS handshake failed"),
            Ok(Received::Ended) => self.has_ended = true,
            Ok(Received::Open) => {}
        }
        if secured.tls.is_handshaking() {
            return Step::Waits;
        }
        let Stage::Handshake(secured) = mem::replace(&mut self.stage, Stage::Failed) else {
            return Step::Waits;
        };
        self.stage = Stage::Upgrade(secured);
        self.read_upgrade(out)
    }

    fn read_upgrade(&mut self, out: &mut Vec<u8>) -> Step {
        let Stage::Upgrade(secured) = &mut self.stage else { return Step::Waits };
        let Some(rules) = &self.wire.websocket else {
            let (secured, rest) = (secured.take(), mem::take(&mut self.bytes));
            return Step::Open(Opened { secured, is_websocket: false, rest, login: None });
        };
        if self.bytes.is_empty() {
            return Step::Waits;
        }
        let (response, result) = match upgrade(&self.bytes, rules) {
            Upgrade::Incomplete => return Step::Waits,
            Upgrade::Refused { response, reason } => (response, Err(reason)),
            Upgrade::Accepted { request_bytes, response, login } => {
                self.bytes.drain(..request_bytes);
                (response, Ok(login))
            }
        };
        match secured {
            Some(secured) => {
                if secured.tls.encrypt(&response, out).is_err() {
                    return Step::Failed(Failure::Tls, "TLS can't encrypt");
                }
            }
            None => out.extend_from_slice(&response),
        }
        match result {
            Ok(login) => {
                let (secured, rest) = (secured.take(), mem::take(&mut self.bytes));
                Step::Open(Opened { secured, is_websocket: true, rest, login })
            }
            Err(reason) => {
                if let Some(secured) = secured {
                    // Without it the response counts as cut off.
                    drop(secured.tls.close(out));
                }
                Step::Failed(Failure::Upgrade, reason)
            }
        }
    }
}

/// Whether a step of the handshake can be done with these bytes, behind those that the session keeps.
fn has_record(secured: Option<&Secured>, bytes: &[u8]) -> bool {
    match secured {
        Some(secured) => secured.tls.has_record(bytes),
        None => tidegate_tls::has_record(&[], bytes),
    }
}
