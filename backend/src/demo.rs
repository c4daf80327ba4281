//! The demo backend: enough of an app to try the gateway with, and an example to read.
//!
//! | type | `biz_data` | what it does |
//! |---|---|---|
//! | 1 | anything | answers with the same bytes |
//! | 2 | anything | pushes it, as type 2, to everybody; answers with nothing |
//! | 10 | `JoinRoom` | joins a room; answers with nothing |
//! | 11 | `LeaveRoom` | leaves it; answers with nothing |
//! | 12 | `SayInRoom` | pushes a `RoomMessage`, as type 12, to the room; answers with nothing |
//! | 20 | `MessageUser` | pushes a `UserMessage`, as type 20, to a user; answers with nothing |
//!
//! The messages are those of `tidegate_demo.proto`. A request that can't be decoded, or whose type is not listed,
//! fails with 101. If the gateway refuses a push because too many are in progress, the request fails with 104.
//!
//! Types 10, 11 and 12 are answered when the gateway has carried out their command or has refused it. So a
//! connection is a member when its join is answered, and a room's members are sent a message before its sender
//! gets the answer. A join or a push that would open a room beyond `rooms.rooms_per_shard_max` fails with 104,
//! because rooms without members are closed after a while. A join beyond `rooms.rooms_per_connection_max` fails
//! with 101, because it can only succeed after the client has left a room. Types 2 and 20 open no room and are
//! answered at once.

use bytes::Bytes;
use prost::Message;
use tidegate_protocol::Code;
use tidegate_protocol::proto::demo::{
    JoinRoom, LeaveRoom, MessageUser, RoomMessage, SayInRoom, UserMessage,
};

use crate::handler::{Call, Failure, Handler, Outcome, Placement};
use crate::publisher::{Gateway, PushError, Reporting, RoomId, RoomIdError, UserId};

/// Answers with the bytes that came.
pub const ECHO: i32 = 1;
/// Pushes the bytes that came to everybody.
pub const PUSH_ALL: i32 = 2;
/// Joins a room.
pub const JOIN: i32 = 10;
/// Leaves a room.
pub const LEAVE: i32 = 11;
/// Says something in a room.
pub const SAY: i32 = 12;
/// Says something to a user.
pub const MESSAGE: i32 = 20;

/// The `retry_after_ms` of a push that is refused because too many are in progress.
const OVERLOADED_RETRY_MS: u32 = 100;

/// The `retry_after_ms` of a request that would open one room too many. Empty rooms are closed after a minute by
/// default.
const ROOMS_FULL_RETRY_MS: u32 = 1000;

/// How long a client waits that joins rooms too often. The rate is a number of joins in one second.
const JOINS_RETRY_MS: u32 = 1000;

/// The demo backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demo {
    placement: Placement,
}

impl Demo {
    /// A demo backend that runs on this kind of thread. It never blocks, so both are possible.
    #[must_use]
    pub const fn new(placement: Placement) -> Self {
        Self { placement }
    }
}

impl Handler for Demo {
    fn handle(&self, call: Call, gateway: &Gateway) {
        let request = match Request::decode(&call) {
            Ok(request) => request,
            Err(failure) => return call.fail(failure),
        };
        let session = call.session();
        match request {
            Request::Echo => {
                let same = call.biz_data().clone();
                call.answer(same);
            }
            Request::PushAll => {
                let taken = gateway.push_all(PUSH_ALL, call.biz_data().clone());
                call.finish(answer(taken));
            }
            Request::Join(room, after_offset) => {
                answer_when_ended(call, gateway).join(session, &room, after_offset);
            }
            Request::Leave(room) => answer_when_ended(call, gateway).leave(session, &room),
            Request::Say(room, message) => {
                answer_when_ended(call, gateway).push_room(&room, SAY, message);
            }
            Request::Message(user_id, message) => {
                call.finish(answer(gateway.push_user(user_id, MESSAGE, message)));
            }
        }
    }

    fn placement(&self) -> Placement {
        self.placement
    }
}

/// A decoded request.
enum Request {
    Echo,
    PushAll,
    Join(RoomId, Option<u64>),
    Leave(RoomId),
    Say(RoomId, Vec<u8>),
    Message(UserId, Vec<u8>),
}

impl Request {
    fn decode(call: &Call) -> Result<Self, Failure> {
        let from_user_id = call.user_id();
        Ok(match call.kind() {
            ECHO => Self::Echo,
            PUSH_ALL => Self::PushAll,
            JOIN => {
                let JoinRoom { room, last_offset } = decode(call)?;
                Self::Join(room_id(&room)?, (last_offset > 0).then_some(last_offset))
            }
            LEAVE => {
                let LeaveRoom { room } = decode(call)?;
                Self::Leave(room_id(&room)?)
            }
            SAY => {
                let SayInRoom { room, text } = decode(call)?;
                let id = room_id(&room)?;
                Self::Say(id, RoomMessage { room, from_user_id, text }.encode_to_vec())
            }
            MESSAGE => {
                let MessageUser { user_id, text } = decode(call)?;
                Self::Message(user_id, UserMessage { from_user_id, text }.encode_to_vec())
            }
            _ => return Err(Code::BackendFailed.into()),
        })
    }
}

/// Answers the call when the command given with this has ended.
fn answer_when_ended(call: Call, gateway: &Gateway) -> Reporting<'_> {
    gateway.report_to(move |outcome| call.finish(answer(outcome.map(|_| ()))))
}

fn answer(outcome: Result<(), PushError>) -> Outcome {
    let shed = |retry_after_ms| Failure { code: Code::Overloaded, retry_after_ms };
    let limited = Failure { code: Code::RateLimited, retry_after_ms: JOINS_RETRY_MS };
    outcome.map(|()| Bytes::new()).map_err(|error| match error {
        PushError::Overloaded => shed(OVERLOADED_RETRY_MS),
        PushError::RoomsFull { .. } => shed(ROOMS_FULL_RETRY_MS),
        PushError::TooManyJoins { .. } => limited,
        _ => Code::BackendFailed.into(),
    })
}

fn decode<M: Message + Default>(call: &Call) -> Result<M, Failure> {
    M::decode(call.biz_data().clone()).map_err(|_| Code::BackendFailed.into())
}

fn room_id(room: &str) -> Result<RoomId, Failure> {
    RoomId::new(room).map_err(|_: RoomIdError| Code::BackendFailed.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use crate::publisher::{Command, Push, SessionId, Target};

    #[test]
    fn echo_answers_with_the_same_bytes() {
        let harness = Harness::new(Demo::default());
        assert_eq!(harness.call(7, ECHO, "hello"), Ok("hello".into()));
        assert_eq!(harness.commands(), []);
    }

    #[test]
    fn each_type_gives_the_command_that_is_documented() {
        let harness = Harness::new(Demo::default());
        let room = RoomId::new("quiz").unwrap();
        let join = JoinRoom { room: "quiz".into(), last_offset: 5 };
        let say = SayInRoom { room: "quiz".into(), text: "hi".into() };
        let message = MessageUser { user_id: 9, text: "psst".into() };
        let leave = LeaveRoom { room: "quiz".into() };
        assert_eq!(harness.call(7, PUSH_ALL, "all"), Ok(Bytes::new()));
        assert_eq!(harness.call(7, JOIN, join.encode_to_vec()), Ok(Bytes::new()));
        assert_eq!(harness.call(7, SAY, say.encode_to_vec()), Ok(Bytes::new()));
        assert_eq!(harness.call(7, LEAVE, leave.encode_to_vec()), Ok(Bytes::new()));
        assert_eq!(harness.call(7, MESSAGE, message.encode_to_vec()), Ok(Bytes::new()));

        let said = RoomMessage { room: "quiz".into(), from_user_id: 7, text: "hi".into() };
        let message = UserMessage { from_user_id: 7, text: "psst".into() };
        let session = SessionId(7);
        let push =
            |target, kind, biz_data: Vec<u8>| Command::Push(Push::new(target, kind, biz_data));
        assert_eq!(
            harness.commands(),
            [
                push(Target::Room(RoomId::everybody()), PUSH_ALL, b"all".to_vec()),
                Command::Join { session, room: room.clone(), after_offset: Some(5) },
                push(Target::Room(room.clone()), SAY, said.encode_to_vec()),
                Command::Leave { session, room },
                push(Target::User(9), MESSAGE, message.encode_to_vec()),
            ]
        );
    }

    #[test]
    fn bad_input_and_a_full_gateway_fail_with_their_codes() {
        let harness = Harness::new(Demo::default());
        let everybody = JoinRoom { room: "*".into(), last_offset: 0 };
        let failed = Err(Code::BackendFailed.into());
        assert_eq!(harness.call(7, JOIN, "\u{1}"), failed);
        assert_eq!(harness.call(7, JOIN, everybody.encode_to_vec()), failed);
        assert_eq!(harness.call(7, 99, ""), failed);
        harness.refuse_commands(Some(PushError::Overloaded));
        let overloaded = harness.call(7, PUSH_ALL, "x").unwrap_err();
        assert_eq!(overloaded.code, Code::Overloaded);
        assert!(overloaded.retry_after_ms > 0);
    }

    #[test]
    fn a_command_that_is_refused_after_it_was_taken_fails_the_call() {
        let harness = Harness::new(Demo::default());
        let room = || "quiz".to_owned();
        let requests = [
            (JOIN, JoinRoom { room: room(), last_offset: 0 }.encode_to_vec()),
            (LEAVE, LeaveRoom { room: room() }.encode_to_vec()),
            (SAY, SayInRoom { room: room(), text: "hi".into() }.encode_to_vec()),
        ];
        for (refusal, code) in [
            (PushError::RoomsFull { rooms_max: 1 }, Code::Overloaded),
            (PushError::TooManyRooms { rooms_max: 1 }, Code::BackendFailed),
            (PushError::TooManyJoins { per_second_max: 1 }, Code::RateLimited),
            (PushError::SessionGone, Code::BackendFailed),
            (PushError::Stopping, Code::BackendFailed),
        ] {
            harness.end_commands_with(Err(refusal));
            for (kind, biz_data) in requests.clone() {
                let failure = harness.call(7, kind, biz_data).unwrap_err();
                assert_eq!(failure.code, code, "{refusal}");
                // A code that asks for another try says when.
                assert_eq!(failure.retry_after_ms > 0, code != Code::BackendFailed);
            }
        }
        assert_eq!(harness.commands().len(), 15, "each was taken");
    }
}
