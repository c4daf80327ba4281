//! Connections whose wire is open: received bytes are decrypted and unframed, sent bytes are framed and encrypted.

use bytes::Bytes;
use hashbrown::HashMap;
use tidegate_tls::{Received, ServerSession};

use super::settings::{Settings, Wire};
use super::websocket::frames::{self, Found, Frames, Violation};
use super::{Failure, marks};
use crate::conn_table::Table;
use crate::driver::{ConnId, Event, RECEIVE_BYTES_MAX, Sink};

/// A message that is longer is compared by its place in memory with the one that was framed last, and not by its bytes.
const COMPARED_BYTES_MAX: usize = 4096;

/// A normal close (RFC 6455, section 7.4.1).
const CLOSE_NORMAL: u16 = 1000;

/// A close because of a limit that has no code of its own.
const CLOSE_POLICY: u16 = 1008;

/// The connections of a shard whose wire is open.
#[derive(Debug)]
pub(super) struct Open {
    message_bytes_max: u32,
    marks_messages: bool,
    /// WebSockets without TLS: most of them idle, so nothing more is kept of one.
    websockets: Table<Frames>,
    secured: Table<Option<Box<Secured>>>,
    /// Of WebSockets: received bytes that can't be used before more come.
    kept: HashMap<ConnId, Vec<u8>>,
    /// Connections that are about to end.
    endings: HashMap<ConnId, Ending>,
    last: LastMessage,
    /// Kept for its memory.
    payload: Vec<u8>,
}

/// A connection with TLS. It stays where it is from the handshake's first step on: one more place for each session would be
/// a hole in the memory between what lives as long as the connection.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) tls: ServerSession,
    frames: Option<Frames>,
}

impl Secured {
    /// A connection whose client has sent nothing yet. `None`: the wire has no TLS, or a configuration that can't be used.
    pub(super) fn begin(wire: &Wire) -> Option<Box<Self>> {
        let tls = ServerSession::new(wire.tls.as_ref()?.load_full()).ok()?;
        Some(Box::new(Self { tls, frames: None }))
    }
}

#[derive(Debug, Default)]
struct Ending {
    /// The code of the close frame.
    code: Option<u16>,
    /// The core knows that the peer sends no more.
    is_reported: bool,
    /// So does the kernel: the peer has shut down its sending side.
    is_peer_shut_down: bool,
    /// The peer has broken the protocol: what it sends is ignored.
    is_broken: bool,
    /// The wire's goodbye was sent.
    is_goodbye_sent: bool,
    /// The sending side is, or is about to be.
    is_shut_down: bool,
    /// Bytes of the core that can't be said to the peer any more.
    lost_bytes: usize,
}

/// The message that was framed last. All members of a room get the same bytes, so they are framed once.
#[derive(Debug, Default)]
struct LastMessage {
    /// Keeps long bytes from being freed, so that their place is theirs alone.
    long: Option<Bytes>,
    framed: Bytes,
    header_bytes: usize,
}

impl LastMessage {
    fn framed(&mut self, payload: &Bytes) -> Bytes {
        let is_same = self.framed.len() == self.header_bytes + payload.len()
            && match &self.long {
                Some(long) => long.as_ptr() == payload.as_ptr(),
                None => self.framed[self.header_bytes..] == payload[..],
            };
        if !is_same || self.framed.is_empty() {
            let mut framed = Vec::with_capacity(frames::message_bytes(payload.len()));
            frames::put_message(&mut framed, false, payload);
            self.header_bytes = framed.len() - payload.len();
            self.framed = framed.into();
            self.long = (payload.len() > COMPARED_BYTES_MAX).then(|| payload.clone());
        }
        self.framed.clone()
    }
}

impl Open {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            message_bytes_max: settings.message_bytes_max,
            marks_messages: settings.marks_messages,
            websockets: Table::default(),
            secured: Table::default(),
            kept: HashMap::new(),
            endings: HashMap::new(),
            last: LastMessage::default(),
            payload: Vec::new(),
        }
    }

    /// A wire is open: of a WebSocket, of TLS, or of a WebSocket in TLS.
    pub(super) fn add(&mut self, conn: ConnId, secured: Option<Box<Secured>>, is_websocket: bool) {
        let frames = is_websocket.then(Frames::default);
        match (secured, frames) {
            (Some(mut secured), frames) => {
                secured.frames = frames;
                self.secured.insert(conn, Some(secured));
            }
            (None, Some(frames)) => {
                self.websockets.insert(conn, frames);
            }
            (None, None) => {}
        }
    }

    /// Forgets a connection. Says how many bytes of the core were lost.
    pub(super) fn remove(&mut self, conn: ConnId) -> usize {
        self.websockets.remove(conn);
        self.secured.remove(conn);
        self.kept.remove(&conn);
        self.endings.remove(&conn).map_or(0, |ending| ending.lost_bytes)
    }

    /// Whether no memory was ever needed.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.websockets.is_unused() && self.secured.is_unused() && self.endings.capacity() == 0
    }

    /// Whether nothing is kept but what each connection has.
    #[cfg(test)]
    pub(super) fn keeps_nothing(&self) -> bool {
        self.kept.is_empty() && self.endings.is_empty()
    }

    /// Frees memory that a storm has left, and the last message.
    pub(super) fn free_spare_memory(&mut self) {
        self.websockets.free_spare_memory();
        self.secured.free_spare_memory();
        crate::spare::shrink_map(&mut self.kept);
        crate::spare::shrink_map(&mut self.endings);
        self.last = LastMessage::default();
        if self.payload.capacity() > RECEIVE_BYTES_MAX {
            self.payload = Vec::new();
        }
    }

    fn contains(&self, conn: ConnId) -> bool {
        self.websockets.contains(conn) || self.secured.contains(conn)
    }

    fn secured_of(&mut self, conn: ConnId) -> Option<&mut Secured> {
        self.secured.get_mut(conn)?.as_deref_mut()
    }

    /// Counts bytes of the core that can't be said to the peer. `false`: the connection is none of these.
    pub(super) fn lose(&mut self, conn: ConnId, bytes: usize) -> bool {
        let is_open = self.contains(conn);
        if is_open {
            self.endings.entry(conn).or_default().lost_bytes += bytes;
        }
        is_open
    }

    /// Whether the wire's goodbye was sent: nothing of the core may follow it.
    fn is_goodbye_sent(&self, conn: ConnId) -> bool {
        self.endings.get(&conn).is_some_and(|ending| ending.is_goodbye_sent)
    }

    /// Nothing is sent on a connection any more, also nothing of the wire's own.
    pub(super) fn shut_down(&mut self, conn: ConnId) {
        if self.contains(conn) {
            self.endings.entry(conn).or_default().is_shut_down = true;
        }
    }

    pub(super) fn is_shut_down(&self, conn: ConnId) -> bool {
        self.endings.get(&conn).is_some_and(|ending| ending.is_shut_down)
    }

    /// Takes bytes of the network. Appends to `out` what the wire answers: pings only if it `may_answer`.
    pub(super) fn receive(
        &mut self,
        conn: ConnId,
        bytes: &mut [u8],
        may_answer: bool,
        out: &mut Vec<u8>,
        sink: &mut impl Sink,
    ) {
        if self.endings.get(&conn).is_some_and(|ending| ending.is_broken) {
            return;
        }
        if self.websockets.contains(conn) {
            return self.read_frames(conn, bytes, may_answer, out, sink);
        }
        let mut payload = std::mem::take(&mut self.payload);
        let Some(secured) = self.secured_of(conn) else { return };
        let received = secured.tls.receive(bytes, out, &mut payload);
        if received.is_err() {
            // The payload of the records before is the core's. But the alert was the last that can be said: no pong may follow.
            self.endings.entry(conn).or_default().is_goodbye_sent = true;
        }
        self.hand_over(conn, &mut payload, may_answer, out, sink);
        payload.clear();
        self.payload = payload;
        match received {
            Ok(Received::Open) => {}
            Ok(Received::Ended) => {
                if self.may_report_end(conn) {
                    sink.event(Event::Ended { conn });
                }
            }
            Err(_) => self.break_off(conn, Failure::Tls, Failure::Tls.reason(), None, sink),
        }
    }

    /// Takes bytes that were behind what opened the wire: payload of TLS, if there is TLS.
    pub(super) fn receive_payload(
        &mut self,
        conn: ConnId,
        mut bytes: Vec<u8>,
        out: &mut Vec<u8>,
        sink: &mut impl Sink,
    ) {
        self.hand_over(conn, &mut bytes, true, out, sink);
    }

    /// Hands over what TLS has decrypted, or what a WebSocket has received.
    fn hand_over(
        &mut self,
        conn: ConnId,
        payload: &mut [u8],
        may_answer: bool,
        out: &mut Vec<u8>,
        sink: &mut impl Sink,
    ) {
        if payload.is_empty() {
            return;
        }
        let is_plain_tls = self.secured_of(conn).is_some_and(|secured| secured.frames.is_none());
        if is_plain_tls {
            for bytes in payload.chunks_mut(RECEIVE_BYTES_MAX) {
                sink.event(Event::Received { conn, bytes });
            }
        } else {
            self.read_frames(conn, payload, may_answer, out, sink);
        }
    }

    fn read_frames(
        &mut self,
        conn: ConnId,
        bytes: &mut [u8],
        may_answer: bool,
        out: &mut Vec<u8>,
        sink: &mut impl Sink,
    ) {
        let mut secured = self.secured.get_mut(conn).and_then(Option::as_deref_mut);
        let frames = match &mut secured {
            Some(secured) => secured.frames.as_mut(),
            None => self.websockets.get_mut(conn),
        };
        let Some(frames) = frames else { return };
        let mut kept;
        let mut input = match self.kept.remove(&conn) {
            None => bytes,
            Some(before) => {
                kept = before;
                kept.extend_from_slice(bytes);
                &mut kept[..]
            }
        };
        let mut control = Vec::new();
        let end = loop {
            let found = match frames.next(&mut input, self.message_bytes_max) {
                Ok(Some(found)) => found,
                Ok(None) => break None,
                Err(violation) => break Some(Err(violation)),
            };
            let (bytes, is_text, ends_message) = match found {
                Found::Binary { bytes, ends_message } => (bytes, false, ends_message),
                Found::Text { bytes, ends_message } if self.marks_messages => {
                    (bytes, true, ends_message)
                }
                Found::Text { .. } => break Some(Err(Violation::Text)),
                Found::Ping(payload) => {
                    frames::put_pong(&mut control, payload);
                    continue;
                }
                Found::Pong => continue,
                Found::Close(code) => break Some(Ok(code)),
            };
            if self.marks_messages {
                let bytes = &mut marks::of(is_text, ends_message, bytes.len());
                sink.event(Event::Received { conn, bytes });
            }
            for bytes in bytes.chunks_mut(RECEIVE_BYTES_MAX) {
                sink.event(Event::Received { conn, bytes });
            }
        };
        if end.is_none() && !input.is_empty() {
            self.kept.insert(conn, input.to_vec());
        }
        if !control.is_empty() && !may_answer {
            let (failure, code) = (Failure::TooMuch, Some(CLOSE_POLICY));
            return self.break_off(conn, failure, failure.reason(), code, sink);
        }
        if !control.is_empty() {
            match secured {
                // It fails only where nothing can be encrypted any more: TLS has failed, and the caller says so.
                Some(secured) => drop(secured.tls.encrypt(&control, out)),
                None => out.extend_from_slice(&control),
            }
        }
        match end {
            None => {}
            Some(Ok(code)) => {
                // The answer goes out when the core has sent what it owes: after it nothing may follow.
                let ending = self.endings.entry(conn).or_default();
                ending.code = code;
                if !std::mem::replace(&mut ending.is_reported, true) {
                    sink.event(Event::Ended { conn });
                }
            }
            Some(Err(violation)) => {
                let (code, reason) = (Some(violation.close_code()), violation.reason());
                self.break_off(conn, Failure::WebSocket, reason, code, sink);
            }
        }
    }

    /// The peer has broken the protocol.
    pub(super) fn break_off(
        &mut self,
        conn: ConnId,
        failure: Failure,
        reason: &'static str,
        code: Option<u16>,
        sink: &mut impl Sink,
    ) {
        if !self.contains(conn) {
            return;
        }
        let ending = self.endings.entry(conn).or_default();
        ending.code = code;
        // Of TLS, the alert was the last that could be said.
        ending.is_goodbye_sent |= failure == Failure::Tls;
        if !std::mem::replace(&mut ending.is_broken, true) {
            sink.event(Event::Failed { conn, failure, reason });
        }
    }

    /// The peer has shut down its sending side. Says whether that is news for the core.
    pub(super) fn peer_shut_down(&mut self, conn: ConnId) -> bool {
        if self.contains(conn) {
            self.endings.entry(conn).or_default().is_peer_shut_down = true;
        }
        self.may_report_end(conn)
    }

    /// Whether the peer has said in the wire's own way that it sends no more, while its sending side is still open: it
    /// may be about to send more, if only a `close_notify` behind its close frame.
    pub(super) fn may_still_send(&self, conn: ConnId) -> bool {
        self.endings
            .get(&conn)
            .is_some_and(|ending| ending.is_reported && !ending.is_peer_shut_down)
    }

    /// Whether the end of the peer's bytes is news for the core.
    pub(super) fn may_report_end(&mut self, conn: ConnId) -> bool {
        self.contains(conn)
            && !std::mem::replace(&mut self.endings.entry(conn).or_default().is_reported, true)
    }

    /// Frames and encrypts what the core sends. `None`: nothing can be said on this wire now.
    pub(super) fn encode(&mut self, conn: ConnId, bytes: &Bytes) -> Option<Bytes> {
        if self.is_goodbye_sent(conn) {
            return None;
        }
        if self.marks_messages {
            return self.encode_marked(conn, bytes);
        }
        if self.websockets.contains(conn) {
            return Some(self.last.framed(bytes));
        }
        let secured = self.secured.get_mut(conn)?.as_deref_mut()?;
        let plain = match secured.frames {
            Some(_) => self.last.framed(bytes),
            None => bytes.clone(),
        };
        let mut out = Vec::new();
        secured.tls.encrypt(&plain, &mut out).ok()?;
        Some(out.into())
    }

    /// Frames what a test sends on a WebSocket without TLS.
    fn encode_marked(&mut self, conn: ConnId, bytes: &Bytes) -> Option<Bytes> {
        let (&mark, payload) = bytes.split_first()?;
        if mark & marks::CLOSE != 0 {
            let code = payload.try_into().ok().map(u16::from_be_bytes);
            self.endings.entry(conn).or_default().code = code;
            return None;
        }
        let mut framed = Vec::new();
        frames::put_message(&mut framed, mark & marks::TEXT != 0, payload);
        self.websockets.contains(conn).then(|| framed.into())
    }

    /// Appends the wire's goodbye to `out`, once.
    pub(super) fn goodbye(&mut self, conn: ConnId, out: &mut Vec<u8>) {
        let is_websocket = self.websockets.contains(conn);
        let secured = self.secured.get_mut(conn).and_then(Option::as_deref_mut);
        if !is_websocket && secured.is_none() {
            return;
        }
        let ending = self.endings.entry(conn).or_default();
        if std::mem::replace(&mut ending.is_goodbye_sent, true) {
            return;
        }
        let peer_has_closed = ending.is_reported;
        let code = match ending.code {
            // A peer that closed without a code gets none.
            None if peer_has_closed => None,
            code => code.or(Some(CLOSE_NORMAL)),
        };
        let mut close = Vec::new();
        match secured {
            None => frames::put_close(out, code),
            Some(secured) => {
                if secured.frames.is_some() {
                    frames::put_close(&mut close, code);
                    drop(secured.tls.encrypt(&close, out));
                }
                // It fails only where nothing can be encrypted any more.
                drop(secured.tls.close(out));
            }
        }
    }
}
