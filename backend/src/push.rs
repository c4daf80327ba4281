//! A push: who gets it, what it carries, and how long it is worth sending.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::limits;

use crate::publisher::{CommandOutcome, PushError, RoomId, UserId};

/// Bytes of a push's key, at most.
pub const KEY_BYTES_MAX: usize = limits::PUSH_KEY_BYTES_MAX;

/// How long a key is remembered: a repeat within this time is not pushed again.
pub const KEY_LIFETIME: Duration = Duration::from_secs(300);

/// The longest time to live: some 49 days.
pub const TTL_MAX: Duration = Duration::from_millis(u32::MAX as u64);

/// The receivers of a push.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every connection of a user.
    User(UserId),
    /// Every member of a room; [`RoomId::everybody`] for every authenticated connection.
    Room(RoomId),
}

/// A push, for [`Gateway::push`](crate::Gateway::push) and [`Gateway::push_many`](crate::Gateway::push_many).
///
/// ```
/// # use std::time::Duration;
/// # use tidegate_backend::{Push, RoomId};
/// let room = RoomId::new("quiz").unwrap();
/// let question = Push::to_room(&room, 101, "3 + 4 = ?").key("quiz-7/question-3");
/// let barrage = Push::to_all(6, "hi!").ttl(Duration::from_secs(2));
/// # assert!(question.check().is_ok() && barrage.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Push {
    /// The receivers.
    pub target: Target,
    /// The push's type: greater than 0.
    pub kind: i32,
    /// The push's `biz_data`.
    pub biz_data: Bytes,
    /// What most pushes do without. `None` costs no memory.
    pub options: Option<Box<PushOptions>>,
}

/// What most pushes do without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PushOptions {
    /// Identifies the push among those to the same target: see [`Push::key`].
    pub key: Option<Box<[u8]>>,
    /// How long it is worth sending: see [`Push::ttl`].
    pub ttl: Option<Duration>,
}

impl Push {
    /// A push to a target.
    #[must_use]
    pub fn new(target: Target, kind: i32, biz_data: impl Into<Bytes>) -> Self {
        Self { target, kind, biz_data: biz_data.into(), options: None }
    }

    /// A push to every connection of a user.
    #[must_use]
    pub fn to_user(user_id: UserId, kind: i32, biz_data: impl Into<Bytes>) -> Self {
        Self::new(Target::User(user_id), kind, biz_data)
    }

    /// A push to every member of a room.
    #[must_use]
    pub fn to_room(room: &RoomId, kind: i32, biz_data: impl Into<Bytes>) -> Self {
        Self::new(Target::Room(room.clone()), kind, biz_data)
    }

    /// A push to every authenticated connection.
    #[must_use]
    pub fn to_all(kind: i32, biz_data: impl Into<Bytes>) -> Self {
        Self::to_room(&RoomId::everybody(), kind, biz_data)
    }

    /// Gives the push an idempotency key of 1 to [`KEY_BYTES_MAX`] bytes. A second push to the same target with the
    /// same key within [`KEY_LIFETIME`] is not sent: its outcome is that of the first one, and it waits for it. What
    /// else the second one carries is not compared.
    ///
    /// The same key for two targets is two pushes. A refused push is not remembered: a repeat of it is a new attempt.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.options.get_or_insert_default().key = Some(key.as_ref().into());
        self
    }

    /// Gives the push a time to live, of 1 ms to [`TTL_MAX`]. It counts from when the gateway's shard for the target
    /// takes the push. After it, the push is offered to no one: neither at the end of a merge window nor to
    /// a slow member, to a client that resumes or to one that joins. A room's offsets are not renumbered, so a
    /// client that did not get the push sees a gap where it was.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.options.get_or_insert_default().ttl = Some(ttl);
        self
    }

    /// Checks the type, the key and the time to live.
    ///
    /// # Errors
    /// [`PushError::BadType`], [`PushError::BadKey`], [`PushError::BadTtl`].
    pub fn check(&self) -> Result<(), PushError> {
        if self.kind <= 0 {
            return Err(PushError::BadType(self.kind));
        }
        let Some(options) = &self.options else { return Ok(()) };
        if let Some(key) = &options.key
            && !(1..=KEY_BYTES_MAX).contains(&key.len())
        {
            return Err(PushError::BadKey(key.len()));
        }
        if let Some(ttl) = options.ttl
            && !(Duration::from_millis(1)..=TTL_MAX).contains(&ttl)
        {
            return Err(PushError::BadTtl(ttl));
        }
        Ok(())
    }
}

/// Why a push that was not refused was offered to no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nobody {
    /// The user has no connection.
    NoConnection,
    /// The room has no members. The push is in the room's log.
    NoMembers,
    /// The push's time to live was over before it was offered to anybody.
    Expired,
    /// The user's connections were too slow for it, and `session.slow_pushes` has it dropped then.
    Slow,
}

impl Nobody {
    /// Its name in the operators' HTTP.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::NoMembers => "no_members",
            Self::Expired => "expired",
            Self::Slow => "slow",
        }
    }
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoConnection => "the user has no connection",
            Self::NoMembers => "the room has no members",
            Self::Expired => "its time to live was over before it was offered to anybody",
            Self::Slow => "the user's connections were too slow for it",
        })
    }
}

/// Is called once, with the outcomes of several pushes, in their order. What [`Report`](crate::publisher::Report) says
/// of its thread holds here too.
pub type ManyReport = Box<dyn FnOnce(Vec<CommandOutcome>) + Send>;

pub(crate) mod many {
    //! Gathers the outcomes of several pushes.

    use std::sync::{Arc, Mutex, PoisonError};

    use super::ManyReport;
    use crate::publisher::{CommandOutcome, PushError, Report};

    /// The outcomes that are known. The last report to be called or dropped passes them on.
    struct Gathered(Mutex<(Vec<CommandOutcome>, Option<ManyReport>)>);

    impl Drop for Gathered {
        fn drop(&mut self) {
            let (outcomes, report) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
            if let Some(report) = report.take() {
                report(std::mem::take(outcomes));
            }
        }
    }

    /// A report for each of `count` pushes. When all are called, `report` is.
    pub(crate) fn reports(count: usize, report: ManyReport) -> impl Iterator<Item = Report> {
        let outcomes = vec![Err(PushError::Stopping); count];
        let gathered = Arc::new(Gathered(Mutex::new((outcomes, Some(report)))));
        // The iterator holds `gathered` until it is dropped, so `report` is not called before.
        (0..count).map(move |index| {
            let gathered = Arc::clone(&gathered);
            Box::new(move |outcome| {
                let mut known = gathered.0.lock().unwrap_or_else(PoisonError::into_inner);
                known.0[index] = outcome;
            }) as Report
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::publisher::Done;

    #[test]
    fn a_push_is_checked() {
        let push = || Push::to_user(7, 5, "x");
        assert_eq!(push().check(), Ok(()));
        assert!(push().options.is_none());
        assert_eq!(Push::to_all(0, "x").check(), Err(PushError::BadType(0)));
        for bytes in [0, KEY_BYTES_MAX + 1] {
            assert_eq!(push().key(vec![7; bytes]).check(), Err(PushError::BadKey(bytes)));
        }
        for ttl in [Duration::ZERO, Duration::from_micros(999), TTL_MAX + Duration::from_millis(1)]
        {
            assert_eq!(push().ttl(ttl).check(), Err(PushError::BadTtl(ttl)));
        }
        for bytes in [1, KEY_BYTES_MAX] {
            let longest = push().key(vec![0; bytes]).ttl(TTL_MAX);
            assert_eq!(longest.ttl(Duration::from_millis(1)).check(), Ok(()));
        }
    }

    #[test]
    fn the_outcomes_of_several_pushes_are_reported_once_and_in_order() {
        let (sender, outcomes) = mpsc::channel();
        let report = Box::new(move |outcomes| sender.send(outcomes).unwrap());
        let mut reports: Vec<_> = many::reports(3, report).collect();
        let done = |connections| Ok(Done::with_connections(connections));
        reports.remove(2)(done(3));
        reports.remove(0)(done(1));
        assert!(outcomes.try_recv().is_err());
        drop(reports);
        let expected = vec![done(1), Err(PushError::Stopping), done(3)];
        assert_eq!(outcomes.try_recv(), Ok(expected));

        let (sender, outcomes) = mpsc::channel();
        let report = Box::new(move |outcomes| sender.send(outcomes).unwrap());
        assert_eq!(many::reports(0, report).count(), 0);
        assert_eq!(outcomes.try_recv(), Ok(Vec::new()));
    }
}
