//! A backend that behaves at random, and a record of what it did. Clients are checked against the record.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use fastrand::Rng;
use tidegate_backend::{Call, Code, Gateway, Handler, Push, RoomId};

/// Each route has this many types.
pub(crate) const ROUTE_TYPES: i32 = 10;
/// Echo on the shard's thread, in order.
pub(crate) const INLINE: i32 = 10;
/// Echo on workers, in order.
pub(crate) const QUEUED: i32 = 20;
/// A random behaviour, on workers.
pub(crate) const RANDOM: i32 = 30;
/// A random behaviour, on the shard's thread.
pub(crate) const RANDOM_INLINE: i32 = 40;
/// Pushes, memberships and kicks, on the shard's thread.
pub(crate) const COMMAND: i32 = 50;
/// The same, on workers.
pub(crate) const COMMAND_QUEUED: i32 = 60;
/// Answers with as many bytes as the request asks for, on workers.
pub(crate) const LARGE: i32 = 70;
/// A type without a route.
pub(crate) const UNROUTED: i32 = 90;
/// The type of every push.
pub(crate) const PUSH: i32 = 7;
/// The longest push.
pub(crate) const PUSH_BYTES_MAX: usize = 20_000;

/// Who a push went to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Everybody,
    Room(u64),
    User(u64),
}

impl Target {
    /// The name of the room; `None` for a user.
    pub(crate) fn room(self) -> Option<String> {
        match self {
            Self::Room(room) => Some(room_id(room).to_string()),
            Self::Everybody => Some(RoomId::everybody().to_string()),
            Self::User(_) => None,
        }
    }
}

/// What happened to a session's membership of a room, in the order of the room's pushes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Membership {
    /// It joined: the next push is this.
    Joined(u64),
    /// It joined and asked for pushes from this one on.
    Resumed(u64),
    /// It left: it gets neither this push nor later ones.
    Left(u64),
}

/// What a request of a command route asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Join(u64),
    /// The room, the last offset that was seen, and that push's number.
    Resume(u64, u64, u64),
    Leave(u64),
    Push(Target),
    Kick(u64),
}

/// What the backend did.
#[derive(Debug)]
pub(crate) struct Record {
    rng: Rng,
    /// How many pushes were accepted.
    pub(crate) published: BTreeMap<Target, u64>,
    /// Membership events by session and room.
    pub(crate) memberships: BTreeMap<(u64, u64), Vec<Membership>>,
    /// Calls that are answered later.
    pub(crate) deferred: Vec<Call>,
    /// Every call is answered at once.
    pub(crate) answers_at_once: bool,
    /// Calls of the random routes stay in `deferred` until a test takes them.
    pub(crate) keeps_calls: bool,
}

/// The record, which the handler and the run share.
#[derive(Clone, Debug)]
pub(crate) struct Backend(Arc<Mutex<Record>>);

/// What a push carries: its target, its number, and bytes that reveal a cut or mixed-up push.
pub(crate) fn push_data(target: Target, number: u64) -> Bytes {
    let (tag, id) = match target {
        Target::Everybody => (0, 0),
        Target::Room(room) => (1, room),
        Target::User(user_id) => (2, user_id),
    };
    let length = match number {
        _ if number % 50 == 49 => PUSH_BYTES_MAX - 17,
        _ if number % 17 == 16 => 2500,
        _ => number as usize * 31 % 200,
    };
    let mut data = BytesMut::with_capacity(17 + length);
    data.put_u8(tag);
    data.put_u64(id);
    data.put_u64(number);
    data.extend((0..length).map(|index| (number as usize + index) as u8));
    data.freeze()
}

/// The data of a request of type [`LARGE`].
pub(crate) fn large_order(bytes: usize) -> Bytes {
    Bytes::copy_from_slice(&(bytes as u64).to_be_bytes())
}

/// What a successful answer to a request carries.
pub(crate) fn answer_data(kind: i32, asked: &Bytes) -> Bytes {
    if kind / ROUTE_TYPES * ROUTE_TYPES != LARGE {
        return asked.clone();
    }
    let bytes = u64::from_be_bytes(asked[..].try_into().unwrap());
    vec![b'l'; bytes as usize].into()
}

/// Reads what [`push_data`] wrote.
pub(crate) fn read_push(data: &[u8]) -> (Target, u64) {
    let id = u64::from_be_bytes(data[1..9].try_into().unwrap());
    let number = u64::from_be_bytes(data[9..17].try_into().unwrap());
    let target = [Target::Everybody, Target::Room(id), Target::User(id)][usize::from(data[0])];
    assert_eq!(data, push_data(target, number), "the push arrives as it was sent");
    (target, number)
}

pub(crate) fn room_id(room: u64) -> RoomId {
    // One third of the rooms each: a long log; a short log with skips; a short log that closes slow members.
    RoomId::new(format!("{}-{room}", ["big", "small", "strict"][room as usize % 3])).unwrap()
}

impl Order {
    pub(crate) fn encode(self) -> Bytes {
        let fields = match self {
            Self::Join(room) => [0, room, 0, 0],
            Self::Resume(room, offset, number) => [1, room, offset, number],
            Self::Leave(room) => [2, room, 0, 0],
            Self::Push(Target::Everybody) => [3, 0, 0, 0],
            Self::Push(Target::Room(room)) => [4, room, 0, 0],
            Self::Push(Target::User(user_id)) => [5, user_id, 0, 0],
            Self::Kick(user_id) => [6, user_id, 0, 0],
        };
        fields.into_iter().flat_map(u64::to_be_bytes).collect()
    }

    fn decode(data: &[u8]) -> Self {
        let field = |at: usize| u64::from_be_bytes(data[at * 8..][..8].try_into().unwrap());
        match field(0) {
            0 => Self::Join(field(1)),
            1 => Self::Resume(field(1), field(2), field(3)),
            2 => Self::Leave(field(1)),
            3 => Self::Push(Target::Everybody),
            4 => Self::Push(Target::Room(field(1))),
            5 => Self::Push(Target::User(field(1))),
            _ => Self::Kick(field(1)),
        }
    }
}

impl Backend {
    pub(crate) fn new(seed: u64) -> Self {
        let record = Record {
            rng: Rng::with_seed(seed),
            published: BTreeMap::new(),
            memberships: BTreeMap::new(),
            deferred: Vec::new(),
            answers_at_once: false,
            keeps_calls: false,
        };
        Self(Arc::new(Mutex::new(record)))
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        // Handlers panic on purpose.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pushes the next push to a target. Some pushes have a key, and are given twice; some have a time to live, which does
    /// not end within a run. Says whether the gateway accepted it.
    pub(crate) fn push(&self, target: Target, gateway: &Gateway) -> bool {
        let number = self.published(target);
        let data = push_data(target, number);
        let mut push = match target {
            Target::Everybody => Push::to_all(PUSH, data),
            Target::Room(room) => Push::to_room(&room_id(room), PUSH, data),
            Target::User(user_id) => Push::to_user(user_id, PUSH, data),
        };
        let is_repeated = number % 5 == 1;
        if is_repeated {
            push = push.key(number.to_be_bytes());
        }
        if number % 7 == 2 {
            push = push.ttl(Duration::from_secs(86_400));
        }
        let pushed = gateway.push(push.clone());
        if pushed.is_ok() {
            self.record().published.insert(target, number + 1);
            if is_repeated {
                // It changes nothing, whether it is accepted or not.
                let _ = gateway.push(push);
            }
        }
        pushed.is_ok()
    }

    pub(crate) fn published(&self, target: Target) -> u64 {
        self.record().published.get(&target).copied().unwrap_or_default()
    }

    fn apply(&self, order: Order, session: tidegate_backend::SessionId, gateway: &Gateway) -> bool {
        let (room, outcome, membership) = match order {
            Order::Push(target) => return self.push(target, gateway),
            Order::Kick(user_id) => return gateway.kick(user_id).is_ok(),
            Order::Join(room) => {
                let next = self.published(Target::Room(room));
                let outcome = gateway.join(session, &room_id(room), None);
                (room, outcome, Membership::Joined(next))
            }
            Order::Resume(room, offset, number) => {
                let outcome = gateway.join(session, &room_id(room), Some(offset));
                (room, outcome, Membership::Resumed(number + 1))
            }
            Order::Leave(room) => {
                let next = self.published(Target::Room(room));
                (room, gateway.leave(session, &room_id(room)), Membership::Left(next))
            }
        };
        if outcome.is_ok() {
            self.record().memberships.entry((session.0, room)).or_default().push(membership);
        }
        outcome.is_ok()
    }

    fn answer_at_random(&self, call: Call) {
        let (behaviour, other) = {
            let record = &mut *self.record();
            let behaviour = match (record.answers_at_once, record.keeps_calls) {
                (true, _) => 0,
                (_, true) => 5,
                _ => record.rng.u32(0..12),
            };
            let other = (behaviour == 11 && !record.deferred.is_empty()).then(|| {
                let index = record.rng.usize(0..record.deferred.len());
                record.deferred.swap_remove(index)
            });
            (behaviour, other)
        };
        match behaviour {
            4..=6 => self.record().deferred.push(call),
            7 => drop(call),
            // Unlike `panic!`, this prints nothing.
            8 => std::panic::resume_unwind(Box::new("the backend panics")),
            9 => call.fail(Code::BackendFailed),
            10 => call.fail(Code::Overloaded),
            _ => echo(call),
        }
        if let Some(other) = other {
            echo(other);
        }
    }
}

pub(crate) fn echo(call: Call) {
    let data = answer_data(call.kind(), call.biz_data());
    call.answer(data);
}

impl Handler for Backend {
    fn handle(&self, call: Call, gateway: &Gateway) {
        match call.kind() / ROUTE_TYPES * ROUTE_TYPES {
            RANDOM | RANDOM_INLINE => self.answer_at_random(call),
            COMMAND | COMMAND_QUEUED => {
                let order = Order::decode(call.biz_data());
                if self.apply(order, call.session(), gateway) {
                    echo(call);
                } else {
                    call.fail(Code::Overloaded);
                }
            }
            _ => echo(call),
        }
    }
}
