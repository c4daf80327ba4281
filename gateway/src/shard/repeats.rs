//! Repeated pushes: the keys of the pushes whose home is this shard, and how each of them ended.
//!
//! Who does not know how a push ended gives it again with the same key. The first push with a key goes its way; a repeat
//! ends here. It gets the outcome of the first one, and waits while that is under way. A key is remembered for
//! [`KEY_LIFETIME`], unless its push is refused: then the next push with it is a first one again.
//!
//! Memory is bounded. When it is full, a push with a further key is refused. To forget an older key instead would
//! let its repeat go out twice, which is what the key was given for.
//!
//! The shard asks for each push with a key, before the users or the rooms get it. This part knows neither.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::{DefaultHashBuilder, HashTable};
use tidegate_backend::publisher::{CommandOutcome, Done, KEY_LIFETIME, Target};
use tidegate_backend::{PushError, RoomId};

use super::clock::millis;
use super::command::CommandPermit;
use super::stats::RepeatCounters;

/// Memory of a remembered push beyond its key and the name of its room: the push itself, its places in the table and in
/// the order of age, and the headers of its allocations.
pub const KEY_OVERHEAD_BYTES: usize = 256;

/// Keys that one call forgets because their time is over, at most.
const FORGET_MAX: usize = 1024;

/// A push with a key, at the home of its target.
#[derive(Debug)]
pub struct Keyed {
    /// The receivers.
    pub target: Target,
    /// The key.
    pub key: Box<[u8]>,
    /// The push's permit.
    pub permit: Arc<CommandPermit>,
}

/// The keys of a shard. See the [module](self).
#[derive(Debug)]
pub struct Repeats {
    bytes_max: usize,
    /// At most `bytes_max`.
    bytes: usize,
    hash_builder: DefaultHashBuilder,
    /// By target and key.
    table: HashTable<Arc<Remembered>>,
    /// The same, in the order in which they came, which is that in which their time is over.
    by_age: BTreeMap<u64, Arc<Remembered>>,
    next_number: u64,
    refused: Arc<RefusedPushes>,
    counters: RepeatCounters,
}

/// The numbers of remembered pushes that were refused, and are to be forgotten.
type RefusedPushes = Mutex<Vec<u64>>;

/// The first push with a key.
#[derive(Debug)]
pub struct Remembered {
    number: u64,
    /// When it is forgotten, on the shard's clock.
    ends_ms: u64,
    target: Target,
    key: Box<[u8]>,
    state: Mutex<State>,
    refused: Arc<RefusedPushes>,
}

#[derive(Debug)]
enum State {
    /// It has not ended. These repeats wait for it; each is a command under way.
    UnderWay(Vec<Arc<CommandPermit>>),
    Done(Done),
    Refused,
}

impl Repeats {
    /// Uses another bound for the keys that come from now on.
    pub const fn reconfigure(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// No key yet. They may take `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            hash_builder: DefaultHashBuilder::default(),
            table: HashTable::new(),
            by_age: BTreeMap::new(),
            next_number: 0,
            refused: Arc::default(),
            counters: RepeatCounters::default(),
        }
    }

    /// Keys that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> &RepeatCounters {
        &self.counters
    }

    /// Whether a push is the first one with its key, so that it is delivered. If not, the caller drops it: it is a repeat, or
    /// is refused since no further key can be remembered.
    pub fn is_first(&mut self, push: Keyed, now_ms: u64) -> bool {
        self.forget_old(now_ms);
        let Keyed { target, key, permit } = push;
        let hash = self.hash_builder.hash_one((&target, &key));
        let is_same = |other: &Arc<Remembered>| other.key == key && other.target == target;
        if let Some(first) = self.table.find(hash, is_same).cloned() {
            if first.ends_ms > now_ms && first.add_repeat(&permit) {
                self.counters.repeated_pushes += 1;
                return false;
            }
            self.forget(first.number);
        }
        let number = self.next_number;
        let ends_ms = now_ms.saturating_add(millis(KEY_LIFETIME));
        let (state, refused) = (Mutex::new(State::UnderWay(Vec::new())), Arc::clone(&self.refused));
        let first = Arc::new(Remembered { number, ends_ms, target, key, state, refused });
        if self.bytes + first.bytes() > self.bytes_max {
            self.counters.refused_keys += 1;
            permit.end_as(Err(PushError::KeysFull { bytes_max: self.bytes_max }));
            return false;
        }
        self.next_number += 1;
        self.bytes += first.bytes();
        permit.remember(Arc::clone(&first));
        let hasher = |other: &Arc<Remembered>| other.hash(&self.hash_builder);
        self.table.insert_unique(hash, Arc::clone(&first), hasher);
        self.by_age.insert(number, first);
        true
    }

    /// Forgets keys whose time is over, and those whose pushes were refused. Call it from time to time.
    pub fn forget_old(&mut self, now_ms: u64) {
        self.forget_refused();
        for _ in 0..FORGET_MAX {
            match self.by_age.first_key_value() {
                Some((&number, oldest)) if oldest.ends_ms <= now_ms => self.forget(number),
                _ => return,
            }
        }
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        let hasher = |other: &Arc<Remembered>| other.hash(&self.hash_builder);
        self.table.shrink_to_fit(hasher);
    }

    fn forget_refused(&mut self) {
        let refused = mem::take(&mut *lock(&self.refused));
        refused.into_iter().for_each(|number| self.forget(number));
    }

    fn forget(&mut self, number: u64) {
        let Some(forgotten) = self.by_age.remove(&number) else { return };
        self.bytes -= forgotten.bytes();
        let hash = forgotten.hash(&self.hash_builder);
        if let Ok(entry) = self.table.find_entry(hash, |other| other.number == number) {
            entry.remove();
        }
    }
}

impl Remembered {
    fn hash(&self, builder: &DefaultHashBuilder) -> u64 {
        builder.hash_one((&self.target, &self.key))
    }

    fn bytes(&self) -> usize {
        let name = match &self.target {
            Target::User(_) => 0,
            Target::Room(room) => RoomId::as_str(room).len(),
        };
        KEY_OVERHEAD_BYTES + self.key.len() + name
    }

    /// Gives a repeat the outcome, now or when it is known. `false`: the push was refused, so there is none.
    fn add_repeat(&self, repeat: &Arc<CommandPermit>) -> bool {
        match &mut *lock(&self.state) {
            State::UnderWay(repeats) => repeats.push(Arc::clone(repeat)),
            State::Done(done) => repeat.end_as(Ok(*done)),
            State::Refused => return false,
        }
        true
    }

    /// The push has ended: so have its repeats. May be called on any thread.
    pub(super) fn end(&self, outcome: CommandOutcome) {
        let ended = outcome.map_or(State::Refused, State::Done);
        let before = mem::replace(&mut *lock(&self.state), ended);
        if outcome.is_err() {
            lock(&self.refused).push(self.number);
        }
        if let State::UnderWay(repeats) = before {
            // A repeat whose permit is dropped here calls its report, which may give further pushes. No lock is held.
            repeats.into_iter().for_each(|repeat| repeat.end_as(outcome));
        }
    }
}

/// Only a lack of memory can panic while a lock is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use tidegate_backend::publisher::Report;

    use super::*;
    use crate::shard::command::CommandLimiter;

    const LIFETIME_MS: u64 = 300_000;

    struct World {
        repeats: Repeats,
        limiter: Arc<CommandLimiter>,
    }

    /// A push that is under way, and its outcome.
    struct Given {
        permit: Option<Arc<CommandPermit>>,
        outcome: Receiver<CommandOutcome>,
    }

    impl Given {
        fn end(&mut self, connections: usize) {
            let permit = self.permit.take().unwrap();
            permit.count_connections(connections);
        }

        fn outcome(&self) -> Option<CommandOutcome> {
            let outcome = self.outcome.try_recv().ok();
            assert!(self.outcome.try_recv().is_err(), "it ends once");
            outcome
        }
    }

    fn room(name: &str) -> Target {
        Target::Room(RoomId::new(name).unwrap())
    }

    fn done(connections: u64) -> Option<CommandOutcome> {
        Some(Ok(Done::with_connections(connections)))
    }

    impl World {
        fn new(bytes_max: usize) -> Self {
            let limiter = Arc::new(CommandLimiter::new(1000, 1000));
            Self { repeats: Repeats::new(bytes_max), limiter }
        }

        /// Gives a push. A repeat no longer has its own permit.
        fn give(&mut self, target: &Target, key: &str, now_ms: u64) -> Given {
            let (sender, outcome) = mpsc::channel();
            let mut report: Option<Report> =
                Some(Box::new(move |outcome| sender.send(outcome).unwrap()));
            let permit = self.limiter.admit(0, &mut report).unwrap();
            let (target, key) = (target.clone(), key.as_bytes().into());
            let push = Keyed { target, key, permit: Arc::clone(&permit) };
            let is_first = self.repeats.is_first(push, now_ms);
            Given { permit: is_first.then_some(permit), outcome }
        }
    }

    #[test]
    fn a_repeat_waits_for_the_first_and_ends_as_it_did() {
        let mut world = World::new(10_000);
        let target = Target::User(7);
        let mut first = world.give(&target, "k", 0);
        let waiting = world.give(&target, "k", 1);
        assert!(waiting.permit.is_none());
        assert_eq!((first.outcome(), waiting.outcome()), (None, None));
        assert_eq!(world.limiter.commands(), 2, "a repeat that waits is a command under way");
        first.end(3);
        assert_eq!((first.outcome(), waiting.outcome()), (done(3), done(3)));
        let later = world.give(&target, "k", LIFETIME_MS - 1);
        assert_eq!((later.permit.is_none(), later.outcome()), (true, done(3)));
        assert_eq!(world.repeats.counters().repeated_pushes, 2);
        assert_eq!((world.limiter.commands(), world.repeats.len()), (0, 1));
    }

    #[test]
    fn a_key_is_that_of_one_target_and_one_spelling() {
        let mut world = World::new(10_000);
        for (target, key) in [
            (Target::User(7), "k"),
            (Target::User(8), "k"),
            (room("7"), "k"),
            (room("8"), "k"),
            (Target::Room(RoomId::everybody()), "k"),
            (Target::User(7), "K"),
            (Target::User(7), "kk"),
        ] {
            assert!(world.give(&target, key, 0).permit.is_some(), "{target:?} {key}");
        }
        assert_eq!(world.repeats.len(), 7);
    }

    #[test]
    fn a_key_is_forgotten_after_5_minutes() {
        let mut world = World::new(10_000);
        let target = room("quiz");
        world.give(&target, "k", 10).end(1);
        world.give(&target, "other", 20).end(1);
        assert!(world.give(&target, "k", 10 + LIFETIME_MS - 1).permit.is_none());
        let mut again = world.give(&target, "k", 10 + LIFETIME_MS);
        again.end(2);
        assert_eq!(again.outcome(), done(2));
        assert_eq!(world.repeats.len(), 2);
        world.repeats.forget_old(20 + LIFETIME_MS);
        assert_eq!(world.repeats.len(), 1, "it counts from the first push");
        world.repeats.forget_old(10 + 2 * LIFETIME_MS);
        assert_eq!((world.repeats.len(), world.repeats.bytes), (0, 0));
    }

    #[test]
    fn a_refused_push_is_not_remembered_and_its_waiting_repeats_are_refused_too() {
        let mut world = World::new(10_000);
        let target = room("quiz");
        let first = world.give(&target, "k", 0);
        let waiting = world.give(&target, "k", 0);
        let refusal = Some(Err(PushError::Stopping));
        first.permit.as_ref().unwrap().refuse(PushError::Stopping);
        drop(first.permit);
        assert_eq!(waiting.outcome(), refusal);
        let mut retry = world.give(&target, "k", 1);
        retry.end(4);
        assert_eq!(world.give(&target, "k", 2).outcome(), done(4));
        assert_eq!(world.repeats.len(), 1);
    }

    #[test]
    fn a_key_that_can_not_be_remembered_is_refused_until_there_is_memory() {
        let bytes_max = 2 * (KEY_OVERHEAD_BYTES + 1);
        let mut world = World::new(bytes_max);
        let target = Target::User(7);
        world.give(&target, "a", 0).end(1);
        let mut second = world.give(&target, "b", 5);
        let refused = world.give(&target, "c", 6);
        assert!(refused.permit.is_none());
        assert_eq!(refused.outcome(), Some(Err(PushError::KeysFull { bytes_max })));
        assert_eq!(world.repeats.counters().refused_keys, 1);
        assert_eq!(world.give(&target, "a", 7).outcome(), done(1), "no key is forgotten for it");
        // A refused push leaves its place at once.
        second.permit.as_ref().unwrap().refuse(PushError::Stopping);
        second.permit = None;
        world.give(&target, "c", 8).end(1);
        assert!(world.give(&target, "d", LIFETIME_MS - 1).permit.is_none());
        assert!(world.give(&target, "d", LIFETIME_MS).permit.is_some(), "the oldest is over");
        assert_eq!((world.repeats.len(), world.repeats.bytes), (2, bytes_max));
    }

    #[test]
    fn the_name_of_a_room_and_the_key_take_memory() {
        let mut world = World::new(KEY_OVERHEAD_BYTES + 7);
        assert!(world.give(&room("quiz"), "1234", 0).permit.is_none());
        assert!(world.give(&room("quiz"), "123", 0).permit.is_some());
    }
}
