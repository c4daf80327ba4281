//! The client's end of a connection: the core of an SDK.
//!
//! [`Client`] knows sequences, heartbeats and what a frame means. It has no socket and no clock: the
//! caller writes [`Client::outgoing`] to its socket, hands what it reads to [`Client::receive`], and
//! says what time it is.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use prost::Message as _;

use crate::code::Code;
use crate::frame::{FrameError, Reassembler};
use crate::limits::{FRAME_TO_CLIENT_BYTES_MAX, HEARTBEAT_INTERVAL_MS};
use crate::message::{AUTHENTICATE, HEARTBEAT, NOTICE, Request, Response, SUCCESS};
use crate::proto::v1;
use crate::wire::WireError;

/// Why a client can't continue to read. It is the gateway's fault: close the connection and report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The stream is broken.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame is not a `Response`.
    #[error(transparent)]
    Message(#[from] WireError),
    /// The answer to a heartbeat or an authentication, or a notice, does not carry what it should.
    #[error("the response of type {0} does not carry its message")]
    BadAnswer(i32),
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code; `None` when this version does not know it.
    pub code: Option<Code>,
    /// How long to wait before trying again; zero if the gateway did not say.
    pub retry_after: Duration,
}

/// What came from the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open.
    Authenticated {
        /// The sequence of the request.
        sequence: u64,
        /// The session's properties.
        session: v1::Session,
    },
    /// A heartbeat was answered.
    Pong {
        /// The sequence of the request.
        sequence: u64,
        /// The gateway's clock, in milliseconds since the Unix epoch.
        server_time_ms: u64,
    },
    /// A business request succeeded.
    Answer {
        /// The type that it answers.
        kind: i32,
        /// The sequence of the request.
        sequence: u64,
        /// What the backend returned.
        biz_data: Bytes,
    },
    /// A request failed.
    Failed {
        /// The type that it answers.
        kind: i32,
        /// The sequence of the request.
        sequence: u64,
        /// Why.
        failure: Failure,
    },
    /// A push.
    Push {
        /// Its type.
        kind: i32,
        /// The number of its room on this connection; 0 when it came to this user alone.
        room: u32,
        /// Its place in the room's log; 0 when it came to this user alone.
        offset: u64,
        /// What the backend sent.
        biz_data: Bytes,
    },
    /// The session has become a member of a room; or it was refused: see the room's `recovery`.
    Joined(v1::Room),
    /// The session is no longer a member of a room.
    Left {
        /// The room's name.
        room: String,
    },
    /// The gateway ends the session and closes.
    Goodbye(Failure),
}

/// A client's end of one connection.
#[derive(Debug)]
pub struct Client {
    reassembler: Reassembler,
    outgoing: BytesMut,
    next_sequence: u64,
    frame_bytes_max: usize,
    heartbeat_interval: Duration,
    /// When the last frame was written; a heartbeat is due an interval later.
    last_sent: Instant,
}

impl Client {
    /// A client on a fresh connection.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            reassembler: Reassembler::new(),
            outgoing: BytesMut::new(),
            next_sequence: 1,
            frame_bytes_max: FRAME_TO_CLIENT_BYTES_MAX,
            heartbeat_interval: Duration::from_millis(u64::from(HEARTBEAT_INTERVAL_MS)),
            last_sent: now,
        }
    }

    /// Accepts frames of up to this many bytes of payload.
    #[must_use]
    pub fn with_frame_bytes_max(mut self, frame_bytes_max: usize) -> Self {
        self.frame_bytes_max = frame_bytes_max;
        self
    }

    /// Asks to open a session. Returns the sequence that the answer will carry.
    pub fn authenticate(&mut self, now: Instant, user_id: u64, token: &str) -> u64 {
        self.write(now, Request { kind: AUTHENTICATE, user_id, token, ..Request::default() })
    }

    /// Asks to open a session, and to be a member again of the rooms of `resume`. Returns the sequence that the
    /// answer will carry.
    pub fn resume(&mut self, now: Instant, user_id: u64, token: &str, resume: &v1::Resume) -> u64 {
        let biz_data = &resume.encode_to_vec();
        self.write(now, Request { kind: AUTHENTICATE, user_id, token, biz_data, sequence: 0 })
    }

    /// Sends a business request. Returns the sequence that the answer will carry.
    pub fn request(&mut self, now: Instant, kind: i32, biz_data: &[u8]) -> u64 {
        self.write(now, Request { kind, biz_data, ..Request::default() })
    }

    /// Sends a heartbeat. Returns the sequence that the answer will carry.
    pub fn heartbeat(&mut self, now: Instant) -> u64 {
        self.write(now, Request { kind: HEARTBEAT, ..Request::default() })
    }

    /// When to call [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.last_sent + self.heartbeat_interval
    }

    /// Sends a heartbeat if one is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.poll_timeout() {
            self.heartbeat(now);
        }
    }

    /// What has to be written to the socket: take from its front what the socket took.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Takes bytes that came from the socket; hands each event to `event`, in order.
    ///
    /// # Errors
    /// [`ClientError`]: the stream can't be read any further.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(Event),
    ) -> Result<(), ClientError> {
        let mut frames = self.reassembler.frames(bytes, self.frame_bytes_max);
        while let Some(payload) = frames.next()? {
            let Some(happened) = read_event(&Response::decode(payload)?)? else { continue };
            if let Event::Authenticated { session, .. } = &happened
                && session.heartbeat_interval_ms > 0
            {
                self.heartbeat_interval =
                    Duration::from_millis(u64::from(session.heartbeat_interval_ms));
            }
            event(happened);
        }
        Ok(())
    }

    fn write(&mut self, now: Instant, request: Request<'_>) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let request = Request { sequence, ..request };
        self.outgoing.reserve(crate::frame::frame_len(request.payload_len()));
        request.encode_frame(&mut self.outgoing);
        self.last_sent = now;
        sequence
    }
}

/// The event that a response is; `None` for a response or a notice of a later version.
fn read_event(response: &Response<'_>) -> Result<Option<Event>, ClientError> {
    let &Response { kind, status, biz_data, sequence, retry_after_ms, offset, room } = response;
    if status != SUCCESS {
        let retry_after = Duration::from_millis(u64::from(retry_after_ms));
        let failure = Failure { code: response.code(), retry_after };
        let unasked = kind == AUTHENTICATE && sequence == 0;
        return Ok(Some(if unasked {
            Event::Goodbye(failure)
        } else {
            Event::Failed { kind, sequence, failure }
        }));
    }
    match kind {
        NOTICE => v1::Notice::decode(biz_data)
            .map(|notice| {
                Some(match notice.what? {
                    v1::notice::What::Joined(room) => Event::Joined(room),
                    v1::notice::What::Left(room) => Event::Left { room },
                })
            })
            .map_err(|_| ClientError::BadAnswer(kind)),
        ..HEARTBEAT => Ok(None),
        HEARTBEAT => v1::Pong::decode(biz_data)
            .map(|pong| Some(Event::Pong { sequence, server_time_ms: pong.server_time_ms }))
            .map_err(|_| ClientError::BadAnswer(kind)),
        AUTHENTICATE => v1::Session::decode(biz_data)
            .map(|session| Some(Event::Authenticated { sequence, session }))
            .map_err(|_| ClientError::BadAnswer(kind)),
        _ => {
            let biz_data = Bytes::copy_from_slice(biz_data);
            Ok(Some(if sequence == 0 {
                Event::Push { kind, room, offset, biz_data }
            } else {
                Event::Answer { kind, sequence, biz_data }
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::{Position, Positions};
    use crate::server::{self, Incoming};

    #[test]
    fn a_client_and_a_server_half_understand_each_other() {
        let now = Instant::now();
        let mut client = Client::new(now);
        let login = client.authenticate(now, 7, "token-7");
        let ask = client.request(now, 1, b"hello");
        let mut server = Reassembler::new();
        let asked = client.outgoing().split();
        let mut frames = server.frames(&asked, 1000);
        let first = Incoming::decode(frames.next().unwrap().unwrap()).unwrap();
        let resume = Positions::default();
        let wanted =
            Incoming::Authenticate { user_id: 7, token: "token-7", resume, sequence: login };
        assert_eq!(first, wanted);
        let second = Incoming::decode(frames.next().unwrap().unwrap()).unwrap();
        assert_eq!(second, Incoming::Business { kind: 1, biz_data: b"hello", sequence: ask });
        drop(frames);

        let mut out = Vec::new();
        let session = v1::Session {
            session_id: 9,
            heartbeat_interval_ms: 50,
            server_time_ms: 1,
            ..v1::Session::default()
        };
        server::put_session(&mut out, login, &session);
        server::put_answer(&mut out, 1, ask, b"hello");
        server::put_push(&mut out, 12, b"hi", 33, 5);
        server::put_failure(&mut out, 3, 4, Code::RateLimited, 250);
        server::put_goodbye(&mut out, Code::Idle, 0);
        let mut events = Vec::new();
        for byte in out {
            client.receive(&[byte], |event| events.push(event)).unwrap();
        }
        let failure =
            Failure { code: Some(Code::RateLimited), retry_after: Duration::from_millis(250) };
        let hello = Bytes::from_static(b"hello");
        let hi = Bytes::from_static(b"hi");
        assert_eq!(
            events,
            [
                Event::Authenticated { sequence: login, session },
                Event::Answer { kind: 1, sequence: ask, biz_data: hello },
                Event::Push { kind: 12, room: 5, offset: 33, biz_data: hi },
                Event::Failed { kind: 3, sequence: 4, failure },
                Event::Goodbye(Failure { code: Some(Code::Idle), retry_after: Duration::ZERO }),
            ]
        );
    }

    #[test]
    fn a_resume_and_a_notice_come_over() {
        let now = Instant::now();
        let mut client = Client::new(now);
        let position =
            v1::Position { room: "quiz".into(), log: 5, offset: 33, ticket: "proof".into() };
        client.resume(now, 7, "token-7", &v1::Resume { positions: vec![position] });
        let asked = client.outgoing().split();
        let mut server = Reassembler::new();
        let mut frames = server.frames(&asked, 1000);
        let asked = Incoming::decode(frames.next().unwrap().unwrap()).unwrap();
        let Incoming::Authenticate { resume, .. } = asked else { panic!("{asked:?}") };
        let read = Position { room: "quiz", log: 5, offset: 33, ticket: b"proof" };
        assert_eq!(resume.iter().collect::<Vec<_>>(), [read]);

        let room = v1::Room { name: "quiz".into(), number: 3, log: 5, ..v1::Room::default() };
        let mut out = Vec::new();
        let joined = v1::notice::What::Joined(room.clone());
        server::put_notice(&mut out, &v1::Notice { what: Some(joined) });
        let left = v1::notice::What::Left("quiz".into());
        server::put_notice(&mut out, &v1::Notice { what: Some(left) });
        let mut events = Vec::new();
        client.receive(&out, |event| events.push(event)).unwrap();
        assert_eq!(events, [Event::Joined(room), Event::Left { room: "quiz".into() }]);
    }

    #[test]
    fn a_silent_client_sends_a_heartbeat_when_the_session_says() {
        let now = Instant::now();
        let mut client = Client::new(now);
        client.handle_timeout(now + Duration::from_secs(29));
        assert!(client.outgoing().is_empty());
        client.handle_timeout(now + Duration::from_secs(30));
        assert!(!client.outgoing().is_empty());
        assert_eq!(client.poll_timeout(), now + Duration::from_secs(60));
    }

    #[test]
    fn a_session_sets_the_heartbeat_interval_unless_it_names_none() {
        let now = Instant::now();
        let mut client = Client::new(now);
        for (heartbeat_interval_ms, due_ms) in [(0, 30_000), (50, 50), (0, 50)] {
            let session = v1::Session { heartbeat_interval_ms, ..v1::Session::default() };
            let mut out = Vec::new();
            server::put_session(&mut out, 1, &session);
            client.receive(&out, drop).unwrap();
            assert_eq!(client.poll_timeout(), now + Duration::from_millis(due_ms));
        }
    }

    #[test]
    fn a_client_reads_no_longer_frames_than_it_accepts() {
        let mut client = Client::new(Instant::now()).with_frame_bytes_max(100);
        let mut out = Vec::new();
        server::put_push(&mut out, 5, &[7; 90], 0, 0);
        client.receive(&out, drop).unwrap();
        out.clear();
        server::put_push(&mut out, 5, &[7; 100], 0, 0);
        let error = client.receive(&out, drop).unwrap_err();
        assert!(matches!(error, ClientError::Frame(FrameError::TooLong { bytes_max: 100, .. })));
    }

    #[test]
    fn a_response_of_a_later_version_is_passed_over_and_a_bad_one_is_an_error() {
        let mut client = Client::new(Instant::now());
        let mut out = Vec::new();
        server::put_answer(&mut out, NOTICE - 1, 3, b"of a later version");
        server::put_notice(&mut out, &v1::Notice::default());
        client.receive(&out, |event| panic!("{event:?}")).unwrap();
        for kind in [HEARTBEAT, AUTHENTICATE, NOTICE] {
            let mut out = Vec::new();
            server::put_answer(&mut out, kind, 3, &[0xff]);
            let error = Client::new(Instant::now()).receive(&out, drop).unwrap_err();
            assert_eq!(error, ClientError::BadAnswer(kind));
        }
    }
}
