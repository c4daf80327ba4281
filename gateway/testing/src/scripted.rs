//! A backend that does what a request asks for.
//!
//! It runs on the shard's thread. Where a request names a room, an empty name means [`room`].

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tidegate_backend::{Call, Code, Gateway, Handler, Placement, RoomId};

/// Echoes; so does each type that is not listed here.
pub const ECHO: i32 = 1;
/// Keeps the call without an answer.
pub const KEEP: i32 = 2;
/// Answers all calls that were kept, each with [`RELEASED_BYTES`].
pub const RELEASE: i32 = 3;
/// Joins the room that the data names.
pub const JOIN: i32 = 4;
/// Leaves the room that the data names.
pub const LEAVE: i32 = 5;
/// Joins [`room`] from an offset on: the data is the last offset that the client saw.
pub const RESUME: i32 = 10;
/// Joins the room that the data names, and answers when the join has ended. A refusal answers with 101.
pub const JOIN_REPORTED: i32 = 11;
/// Pushes to the room that the data names, and answers when all members were offered the push. A refusal
/// answers with 101.
pub const PUSH_REPORTED: i32 = 12;
/// Pushes to a room or to everybody: see [`push_order`].
pub const PUSH: i32 = 13;

/// Bytes of the answer to a call that was kept.
pub const RELEASED_BYTES: usize = 5 * 1024;

/// The room of requests that name none.
#[must_use]
pub fn room() -> RoomId {
    RoomId::new("busy").expect("the name is good")
}

/// What a [`PUSH`] carries: the room, or `None` for everybody; the push's type and data.
#[must_use]
pub fn push_order(room: Option<&RoomId>, kind: i32, biz_data: &[u8]) -> Vec<u8> {
    let name = room.map_or("", RoomId::as_str);
    let length = u8::try_from(name.len()).expect("the name is short");
    [&kind.to_be_bytes(), &[length][..], name.as_bytes(), biz_data].concat()
}

/// The handler. See the [module](self).
#[derive(Debug, Default)]
pub struct Scripted {
    kept: Mutex<Vec<Call>>,
}

fn named(biz_data: &[u8]) -> RoomId {
    RoomId::new(String::from_utf8_lossy(biz_data)).unwrap_or_else(|_| room())
}

fn push(biz_data: &Bytes, gateway: &Gateway) {
    let kind = i32::from_be_bytes(biz_data[..4].try_into().expect("4 bytes"));
    let name_end = 5 + usize::from(biz_data[4]);
    let pushed = match &biz_data[5..name_end] {
        [] => gateway.push_all(kind, biz_data.slice(name_end..)),
        name => gateway.push_room(&named(name), kind, biz_data.slice(name_end..)),
    };
    pushed.expect("the push is accepted");
}

impl Scripted {
    fn keep(&self, call: Call) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    fn release(&self) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        kept.into_iter().for_each(|call| call.answer(vec![1; RELEASED_BYTES]));
    }

    /// Answers the call when the command that it asks for has ended.
    fn report(call: Call, gateway: &Gateway) {
        let (kind, session, room) = (call.kind(), call.session(), named(call.biz_data()));
        let gateway = gateway.report_to(move |outcome| match outcome {
            Ok(done) => call.answer(done.connections.to_string()),
            Err(_) => call.fail(Code::BackendFailed),
        });
        match kind {
            JOIN_REPORTED => gateway.join(session, &room, None),
            _ => gateway.push_room(&room, 5, "said"),
        }
    }
}

impl Handler for Scripted {
    fn handle(&self, call: Call, gateway: &Gateway) {
        let data = call.biz_data().clone();
        match call.kind() {
            KEEP => return self.keep(call),
            RELEASE => self.release(),
            JOIN => {
                gateway.join(call.session(), &named(&data), None).expect("the join is accepted");
            }
            LEAVE => gateway.leave(call.session(), &named(&data)).expect("the leave is accepted"),
            RESUME => {
                let seen = u64::from_be_bytes(data[..].try_into().expect("8 bytes"));
                let joined = gateway.join(call.session(), &room(), Some(seen));
                joined.expect("the join is accepted");
            }
            JOIN_REPORTED | PUSH_REPORTED => return Self::report(call, gateway),
            PUSH => push(&data, gateway),
            _ => return call.answer(data),
        }
        call.answer("");
    }

    fn placement(&self) -> Placement {
        Placement::Shard
    }
}
