//! A client that speaks the protocol and remembers what it received.

use bytes::Bytes;
use prost::Message as _;
use tidegate::driver::sim::Arrived;
use tidegate_backend::{Code, UserId};
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT, NOTICE};
use tidegate_protocol::proto::v1::{self, notice::What};
use tidegate_protocol::{Reassembler, Request, Response};

use crate::{Peer, World};

/// A response: an answer, a push, or the last word of the gateway before it closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its type.
    pub kind: i32,
    /// 1 is success.
    pub status: u32,
    /// Why it failed; `None` for a success.
    pub code: Option<Code>,
    /// How long the client should wait, with some failures; 0 otherwise.
    pub retry_after_ms: u32,
    /// The sequence of the request that it answers; 0 for a push.
    pub sequence: u64,
    /// The offset of a room's push; 0 otherwise.
    pub offset: u64,
    /// The number of the room of a room's push; 0 otherwise.
    pub room: u32,
    /// The payload.
    pub biz_data: Bytes,
}

impl From<Response<'_>> for Received {
    fn from(response: Response<'_>) -> Self {
        let Response { kind, status, biz_data, sequence, retry_after_ms, offset, room } = response;
        let biz_data = Bytes::copy_from_slice(biz_data);
        let code = response.code();
        Self { kind, status, code, retry_after_ms, sequence, offset, room, biz_data }
    }
}

/// A client and all that it received. `P` says where it is connected: with a [`Peer`] it is in a world.
#[derive(Debug)]
pub struct Phone<P = Peer> {
    /// Its end of the connection.
    pub peer: P,
    /// What it received, oldest first, without notices. A test may clear it.
    pub received: Vec<Received>,
    /// The notices that it received, each with how many others were in `received` then.
    pub notices: Vec<(usize, What)>,
    /// How the connection ended.
    pub end: Option<Arrived>,
    reassembler: Reassembler,
}

/// The bytes of a request.
#[must_use]
pub fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode_frame(&mut bytes);
    bytes
}

/// The bytes of an authentication with a good token.
#[must_use]
pub fn login(user_id: UserId, sequence: u64) -> Vec<u8> {
    let token = format!("token-{user_id}");
    frame(&Request { kind: AUTHENTICATE, user_id, token: &token, sequence, ..Request::default() })
}

/// The bytes of an authentication of a client that resumes.
#[must_use]
pub fn login_again(user_id: UserId, sequence: u64, resume: &v1::Resume) -> Vec<u8> {
    resume_with(user_id, &format!("token-{user_id}"), sequence, resume)
}

/// The same with a token of the test's own.
#[must_use]
pub fn resume_with(user_id: UserId, token: &str, sequence: u64, resume: &v1::Resume) -> Vec<u8> {
    let biz_data = &resume.encode_to_vec();
    let kind = AUTHENTICATE;
    frame(&Request { kind, user_id, token, biz_data, sequence })
}

impl<P> Phone<P> {
    /// A client that has received nothing.
    #[must_use]
    pub fn on(peer: P) -> Self {
        Self {
            peer,
            received: Vec::new(),
            notices: Vec::new(),
            end: None,
            reassembler: Reassembler::new(),
        }
    }

    /// Takes what a read from the network returned. Says whether that was anything.
    pub fn take(&mut self, arrived: Arrived) -> bool {
        match arrived {
            Arrived::Nothing => return false,
            Arrived::Bytes(bytes) => {
                let mut frames = self.reassembler.frames(&bytes, usize::MAX);
                while let Some(payload) = frames.next().expect("the gateway's frames are good") {
                    let response = Response::decode(payload).expect("its messages are good");
                    if response.kind == NOTICE {
                        let notice = v1::Notice::decode(response.biz_data).expect("a notice");
                        let what = notice.what.expect("a notice says something");
                        self.notices.push((self.received.len(), what));
                    } else {
                        self.received.push(response.into());
                    }
                }
            }
            end @ (Arrived::End | Arrived::Reset) => self.end = Some(end),
        }
        true
    }

    /// How many responses of this type it received.
    #[must_use]
    pub fn count(&self, kind: i32) -> usize {
        self.received.iter().filter(|received| received.kind == kind).count()
    }

    /// Bytes of a frame whose rest did not arrive.
    #[must_use]
    pub fn unread_bytes(&self) -> usize {
        self.reassembler.kept_bytes()
    }

    /// The session of the last successful authentication.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn session(&self) -> v1::Session {
        let is_session =
            |received: &&Received| received.kind == AUTHENTICATE && received.status == 1;
        let session = self.received.iter().rev().find(is_session).expect("a session");
        v1::Session::decode(session.biz_data.clone()).expect("it is one")
    }

    /// The code of the last response.
    #[must_use]
    pub fn last_code(&self) -> Option<Code> {
        self.received.last().and_then(|received| received.code)
    }
}

impl Phone {
    /// Reads all that has arrived.
    pub fn read(&mut self, world: &mut World) {
        while self.end.is_none() && self.take(world.read_at_most(self.peer, usize::MAX)) {}
    }

    /// Reads what arrives within `turns` turns.
    pub fn read_for(&mut self, world: &mut World, turns: usize) {
        for _ in 0..turns {
            world.turns(1);
            self.read(world);
        }
    }
}

impl World {
    /// A client without a session.
    pub fn phone(&mut self, shard: usize) -> Phone {
        let peer = self.connect(shard);
        self.turns(2);
        Phone::on(peer)
    }

    /// A client with a session, of a separate user. It has received nothing else.
    pub fn log_in(&mut self, shard: usize) -> Phone {
        let mut phone = self.phone(shard);
        self.write_all(phone.peer, &login(self.next_user_id, 1));
        self.next_user_id += 1;
        self.turns(6);
        phone.read(self);
        assert_eq!((phone.received.len(), phone.received[0].code), (1, None));
        phone.received.clear();
        phone
    }

    /// A client asks, and gets the turns that an answer on the shard's thread needs.
    pub fn ask(&mut self, phone: &Phone, kind: i32, sequence: u64, biz_data: &[u8]) {
        let request = Request { kind, sequence, biz_data, ..Request::default() };
        self.write_all(phone.peer, &frame(&request));
        self.turns(6);
    }

    /// A client sends a heartbeat.
    pub fn heartbeat(&mut self, phone: &Phone) {
        self.ask(phone, HEARTBEAT, 99, b"");
    }
}
