//! The client's side of a WebSocket (RFC 6455): the upgrade, and the frames. The crate `tungstenite` parses and writes
//! their headers.

use std::io::Cursor;

use tungstenite::handshake::client::{Response, generate_key};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse as _;
use tungstenite::http::StatusCode;
use tungstenite::http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{Place, WireError};

/// The subprotocol.
const SUBPROTOCOL: &str = "tidegate.v1";
/// The most bytes of the answer to an upgrade.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;
/// A normal close (RFC 6455, section 7.4.1).
const CLOSE_NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// One WebSocket.
#[derive(Debug)]
pub(super) struct WebSocket {
    /// `None` once it is open.
    upgrade: Option<Box<Upgrade>>,
    /// Received bytes that can't be used before more come: of the answer to the upgrade, or of a header.
    rest: Vec<u8>,
    /// Bytes of the current frame's payload that are still to come.
    left: u64,
    /// A close frame was sent.
    has_closed: bool,
}

#[derive(Debug)]
struct Upgrade {
    request: String,
    accept: String,
}

impl WebSocket {
    /// A WebSocket whose upgrade has not been sent.
    pub(super) fn new(place: &Place) -> Self {
        let key = generate_key();
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n",
            place.path(),
            place.authority()
        );
        let upgrade = Upgrade { request, accept: derive_accept_key(key.as_bytes()) };
        Self { upgrade: Some(Box::new(upgrade)), rest: Vec::new(), left: 0, has_closed: false }
    }

    /// Takes the request, which has to be sent once.
    pub(super) fn request(&mut self) -> String {
        self.upgrade
            .as_mut()
            .map(|upgrade| std::mem::take(&mut upgrade.request))
            .unwrap_or_default()
    }

    /// Whether the upgrade was accepted.
    pub(super) fn is_open(&self) -> bool {
        self.upgrade.is_none()
    }

    /// The refusal whose text was cut off.
    pub(super) fn incomplete_refusal(&self) -> Option<WireError> {
        self.upgrade.as_ref()?;
        let (head_bytes, response) = Response::try_parse(&self.rest).ok()??;
        Some(refused(&response, &self.rest[head_bytes..]))
    }

    /// Takes received bytes. Appends the payload of messages to `payload`, and control frames to send to `out`. Returns whether
    /// the other side sends no more.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        payload: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<bool, WireError> {
        if self.rest.is_empty() && self.is_open() {
            let taken = self.read_frames(bytes, payload, out)?;
            return Ok(self.keep(bytes, taken));
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let mut begin = 0;
        if let Some(upgrade) = &self.upgrade {
            match read_response(&rest, &upgrade.accept)? {
                Some(head_bytes) => (self.upgrade, begin) = (None, head_bytes),
                None => {
                    self.rest = rest;
                    return Ok(false);
                }
            }
        }
        let taken = self.read_frames(&rest[begin..], payload, out)?;
        Ok(self.keep(&rest[begin..], taken))
    }

    /// Keeps what was not used. `None`: a close frame came. Returns whether one did.
    fn keep(&mut self, bytes: &[u8], taken: Option<usize>) -> bool {
        if let Some(taken) = taken {
            self.rest.extend_from_slice(&bytes[taken..]);
        }
        taken.is_none()
    }

    /// Returns how many bytes were used; `None`: a close frame came, after which nothing counts.
    fn read_frames(
        &mut self,
        bytes: &[u8],
        payload: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, WireError> {
        let mut taken = 0;
        while taken < bytes.len() {
            if self.left > 0 {
                let count =
                    usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - taken);
                payload.extend_from_slice(&bytes[taken..taken + count]);
                taken += count;
                self.left -= count as u64;
                continue;
            }
            let mut cursor = Cursor::new(&bytes[taken..]);
            let parsed = FrameHeader::parse(&mut cursor)
                .map_err(|_| WireError::WebSocket("a WebSocket frame is malformed"))?;
            let Some((header, length)) = parsed else { break };
            let header_bytes = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            if header.mask.is_some() || header.rsv1 || header.rsv2 || header.rsv3 {
                return Err(WireError::WebSocket(
                    "a WebSocket frame is masked, or has reserved bits",
                ));
            }
            match header.opcode {
                OpCode::Data(Data::Binary | Data::Continue) => {
                    taken += header_bytes;
                    self.left = length;
                }
                OpCode::Data(_) => {
                    return Err(WireError::WebSocket("a WebSocket message is text, not binary"));
                }
                OpCode::Control(control) => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    if length > 125 {
                        return Err(WireError::WebSocket("a WebSocket control frame is too long"));
                    }
                    let end = taken + header_bytes + length;
                    if bytes.len() < end {
                        break;
                    }
                    let content = &bytes[taken + header_bytes..end];
                    taken = end;
                    match control {
                        Control::Ping => put(OpCode::Control(Control::Pong), content, out),
                        Control::Close => {
                            if !std::mem::replace(&mut self.has_closed, true) {
                                let code = &content[..content.len().min(2)];
                                put(OpCode::Control(Control::Close), code, out);
                            }
                            return Ok(None);
                        }
                        Control::Pong | Control::Reserved(_) => {}
                    }
                }
            }
        }
        Ok(Some(taken))
    }

    /// Appends a message to `out`.
    pub(super) fn put_message(&self, payload: &[u8], out: &mut Vec<u8>) {
        put(OpCode::Data(Data::Binary), payload, out);
    }

    /// Appends a close frame to `out`, once.
    pub(super) fn put_close(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_closed, true) {
            put(OpCode::Control(Control::Close), &CLOSE_NORMAL, out);
        }
    }
}

/// The length of the answer to an upgrade; `None`: it is incomplete.
fn read_response(bytes: &[u8], accept: &str) -> Result<Option<usize>, WireError> {
    let no_http = WireError::WebSocket(
        "it does not answer in HTTP, so it is no WebSocket: is it a plain listener? Then write HOST:PORT alone",
    );
    if super::Spoken::instead_of_the_protocol(bytes) == Some(super::Spoken::Tls) {
        return Err(WireError::Foreign(super::Spoken::Tls));
    }
    let Ok(parsed) = Response::try_parse(bytes) else { return Err(no_http) };
    let Some((head_bytes, response)) = parsed else {
        return if bytes.len() > RESPONSE_BYTES_MAX { Err(no_http) } else { Ok(None) };
    };
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let text_bytes = header(CONTENT_LENGTH).and_then(|text| text.parse::<usize>().ok());
        let end = head_bytes + text_bytes.unwrap_or(0).min(RESPONSE_BYTES_MAX);
        return if bytes.len() < end {
            Ok(None)
        } else {
            Err(refused(&response, &bytes[head_bytes..]))
        };
    }
    if header(SEC_WEBSOCKET_ACCEPT) != Some(accept) {
        return Err(WireError::WebSocket("its answer to the upgrade is to another request"));
    }
    if header(SEC_WEBSOCKET_PROTOCOL) != Some(SUBPROTOCOL) {
        return Err(WireError::WebSocket(
            "its WebSocket does not have the subprotocol tidegate.v1",
        ));
    }
    Ok(Some(head_bytes))
}

fn refused(response: &Response, text: &[u8]) -> WireError {
    let text = String::from_utf8_lossy(text);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(500).collect();
    WireError::Refused { status: response.status().to_string(), text }
}

fn put(opcode: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    let mask = fastrand::u32(..).to_ne_bytes();
    let header = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
    header.format(payload.len() as u64, out).expect("a vector takes all bytes");
    let start = out.len();
    out.extend_from_slice(payload);
    for (byte, mask) in out[start..].iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}
