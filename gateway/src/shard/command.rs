//! The bound on commands under way, and the outcome of each.
//!
//! A command (a push, a join, a kick) is admitted by the [`CommandLimiter`] and gets a [`CommandPermit`]. All
//! shards that the command visits share the permit, and the command ends when the last of them drops it. So the
//! bound covers all shards, and the count of connections that a command reached is exact. A command without a
//! report allocates nothing for one.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::publisher::{CommandOutcome, Done, Nobody, PushOptions, Report};
use tidegate_backend::{PushError, RoomId};
use tokio::sync::oneshot;

use super::repeats::Remembered;

/// What a command is, and who gives it. Joins may use the bound that is configured. Each class beyond it has a reserve on top,
/// so that a lower class, which clients can cause, never takes the places of those above it (trunk reservation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandClass {
    /// A backend's join.
    Join,
    /// A backend's push.
    Push,
    /// A backend's leave, kick or expulsion: it frees what others wait for.
    Release,
    /// An operator's command.
    Operator,
}

impl CommandClass {
    /// How many commands may be under way for one of this class to be admitted, where `bound` is configured. A bound below 8
    /// has no reserve.
    const fn commands_max(self, bound: usize) -> usize {
        let reserves = match self {
            Self::Join => 0,
            Self::Push => 1,
            Self::Release => 2,
            Self::Operator => 3,
        };
        bound.saturating_add(bound / 8 * reserves)
    }

    /// How many bytes they may have. Only pushes have bytes.
    const fn bytes_max(self, bound: usize) -> usize {
        match self {
            Self::Join | Self::Push | Self::Release => bound,
            Self::Operator => bound.saturating_add(bound / 8),
        }
    }
}

/// The bound on commands under way, in number and in bytes.
#[derive(Debug)]
pub struct CommandLimiter {
    commands: AtomicUsize,
    bytes: AtomicUsize,
    commands_max: AtomicUsize,
    bytes_max: AtomicUsize,
    refused: AtomicU64,
    /// The limit on log lines of reports that panic.
    report_panics: LogLimit,
}

impl CommandLimiter {
    /// A limiter with these bounds on commands and on their bytes.
    #[must_use]
    pub const fn new(commands_max: usize, bytes_max: usize) -> Self {
        Self {
            commands: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            commands_max: AtomicUsize::new(commands_max),
            bytes_max: AtomicUsize::new(bytes_max),
            refused: AtomicU64::new(0),
            report_panics: LogLimit::new(),
        }
    }

    /// Uses other bounds from now on. Commands under way stay.
    pub fn set_bounds(&self, commands_max: usize, bytes_max: usize) {
        self.commands_max.store(commands_max, Ordering::Relaxed);
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Admits a command within the bound that is configured: see [`Self::admit_as`].
    ///
    /// # Errors
    /// [`PushError::Overloaded`].
    pub fn admit(
        self: &Arc<Self>,
        bytes: usize,
        report: &mut Option<Report>,
    ) -> Result<Arc<CommandPermit>, PushError> {
        self.admit_as(CommandClass::Join, bytes, report)
    }

    /// Admits a command of this many bytes and takes its report, if it has one. While no bytes are under way, a command of any
    /// size is admitted; one without bytes is never refused for those of others.
    ///
    /// # Errors
    /// [`PushError::Overloaded`] when what its class may use is taken. The report is not taken then.
    pub fn admit_as(
        self: &Arc<Self>,
        class: CommandClass,
        bytes: usize,
        report: &mut Option<Report>,
    ) -> Result<Arc<CommandPermit>, PushError> {
        let commands_max = class.commands_max(self.commands_max.load(Ordering::Relaxed));
        let bytes_max = class.bytes_max(self.bytes_max.load(Ordering::Relaxed));
        // Nothing is counted that does not fit, so refused commands take nothing of the reserves.
        if !add_if(&self.commands, 1, |commands| commands < commands_max) {
            return Err(self.count_refused());
        }
        let fits = |under_way| under_way == 0 || bytes <= bytes_max.saturating_sub(under_way);
        if bytes > 0 && !add_if(&self.bytes, bytes, fits) {
            self.release(0);
            return Err(self.count_refused());
        }
        let limiter = Arc::clone(self);
        let report = report.take();
        let watch =
            report.map(|report| Box::new(Watch { report: Some(report), ..Watch::default() }));
        Ok(Arc::new(CommandPermit {
            connections: AtomicU64::new(0),
            nobody: AtomicU8::new(NOT_A_PUSH),
            bytes,
            limiter,
            watch: Mutex::new(watch),
        }))
    }

    /// Commands under way.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }

    /// Whether more than half of a bound is used. Pushes that wait for a merge window then go out early.
    #[must_use]
    pub fn is_half_used(&self) -> bool {
        self.commands.load(Ordering::Relaxed) > self.commands_max.load(Ordering::Relaxed) / 2
            || self.bytes.load(Ordering::Relaxed) > self.bytes_max.load(Ordering::Relaxed) / 2
    }

    /// The bounds that are configured, on commands and on their bytes.
    #[must_use]
    pub fn bounds(&self) -> (usize, usize) {
        (self.commands_max.load(Ordering::Relaxed), self.bytes_max.load(Ordering::Relaxed))
    }

    fn count_refused(&self) -> PushError {
        self.refused.fetch_add(1, Ordering::Relaxed);
        PushError::Overloaded
    }

    /// Commands refused since the last call of this function.
    pub fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }

    fn release(&self, bytes: usize) {
        self.commands.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Adds to a count if what it counts allows it. Returns whether it did.
fn add_if(count: &AtomicUsize, added: usize, allows: impl Fn(usize) -> bool) -> bool {
    let update = |before| allows(before).then(|| before + added);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).is_ok()
}

/// A push to a room, before it is numbered.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub struct RoomPush {
    pub room: RoomId,
    pub kind: i32,
    pub biz_data: Bytes,
    pub options: Option<Box<PushOptions>>,
    pub permit: Arc<CommandPermit>,
}

/// One command under way. See the [module](self).
#[derive(Debug)]
pub struct CommandPermit {
    connections: AtomicU64,
    /// Why no connection was offered the push, if none is: an index into [`REASONS`].
    nobody: AtomicU8,
    bytes: usize,
    limiter: Arc<CommandLimiter>,
    watch: Mutex<Option<Box<Watch>>>,
}

/// The command is not a push: there is no reason to record.
const NOT_A_PUSH: u8 = 0;

/// The reasons for which a push reaches no connection.
const REASONS: [Option<Nobody>; 5] = [
    None,
    Some(Nobody::NoConnection),
    Some(Nobody::NoMembers),
    Some(Nobody::Expired),
    Some(Nobody::Slow),
];

/// The outcome that a caller waits for.
#[derive(Default)]
struct Watch {
    /// The outcome, if it is not the count of connections: the first refusal, or the outcome of the push
    /// that this one repeats.
    fixed: Option<CommandOutcome>,
    report: Option<Report>,
    /// The push has a key, and is the first one with it.
    remembered: Option<Arc<Remembered>>,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("fixed", &self.fixed).finish_non_exhaustive()
    }
}

impl CommandPermit {
    /// Whether more than half of the bound that it belongs to is used.
    #[must_use]
    pub fn is_limiter_half_used(&self) -> bool {
        self.limiter.is_half_used()
    }

    /// Adds connections that the command reached.
    pub fn count_connections(&self, connections: usize) {
        self.connections.fetch_add(connections as u64, Ordering::Relaxed);
    }

    /// Takes back connections that were counted.
    pub fn uncount_connections(&self, connections: usize) {
        self.connections.fetch_sub(connections as u64, Ordering::Relaxed);
    }

    /// Sets why no connection is offered the push, if none is. The last reason counts.
    pub fn set_nobody(&self, reason: Nobody) {
        let index = REASONS.iter().position(|&known| known == Some(reason)).unwrap_or_default();
        self.nobody.store(u8::try_from(index).unwrap_or(NOT_A_PUSH), Ordering::Relaxed);
    }

    /// Marks the command as refused. The first reason is reported.
    pub fn refuse(&self, reason: PushError) {
        self.end_as(Err(reason));
    }

    /// Sets the outcome, unless one is set.
    pub fn end_as(&self, outcome: CommandOutcome) {
        if let Some(watch) = &mut *self.watch.lock().unwrap_or_else(PoisonError::into_inner) {
            watch.fixed.get_or_insert(outcome);
        }
    }

    /// The push is the first one with its key: repeats get its outcome when it has ended.
    pub fn remember(&self, remembered: Arc<Remembered>) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.get_or_insert_default().remembered = Some(remembered);
    }

    fn done(&mut self) -> Done {
        let reason = REASONS.get(usize::from(*self.nobody.get_mut())).copied().flatten();
        match (*self.connections.get_mut(), reason) {
            (0, Some(reason)) => Done::nobody(reason),
            (connections, _) => Done::with_connections(connections),
        }
    }
}

impl Drop for CommandPermit {
    fn drop(&mut self) {
        self.limiter.release(self.bytes);
        let watch = self.watch.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watch) = watch {
            let Watch { fixed, report, remembered } = *watch;
            let outcome = fixed.unwrap_or_else(|| Ok(self.done()));
            if let Some(remembered) = remembered {
                remembered.end(outcome);
            }
            let Some(report) = report else { return };
            // The report is a backend's code on a shard's thread, as a handler is.
            if panic::catch_unwind(AssertUnwindSafe(|| report(outcome))).is_err()
                && let Some(suppressed) = self.limiter.report_panics.allow()
            {
                tracing::error!(
                    suppressed,
                    "a backend panicked in the report of a command's outcome"
                );
            }
        }
    }
}

/// An answer that several shards add to. It is sent when the last of them drops it.
#[derive(Debug)]
pub struct Aggregate<T> {
    inner: Mutex<Option<(T, oneshot::Sender<T>)>>,
}

impl<T> Aggregate<T> {
    /// Starts with what the first shard knows.
    #[must_use]
    pub fn new(known: T, reply: oneshot::Sender<T>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Some((known, reply))) })
    }

    /// Adds what one more shard knows.
    pub fn add(&self, add: impl FnOnce(&mut T)) {
        if let Some((known, _)) = self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            add(known);
        }
    }
}

impl<T> Drop for Aggregate<T> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((known, reply)) = inner {
            drop(reply.send(known));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use tidegate_backend::CommandOutcome;

    use super::*;

    fn report() -> (Option<Report>, Receiver<CommandOutcome>) {
        let (sender, outcome) = mpsc::channel();
        (Some(Box::new(move |outcome| sender.send(outcome).unwrap())), outcome)
    }

    #[test]
    fn a_command_ends_when_the_last_shard_drops_its_permit() {
        let limiter = Arc::new(CommandLimiter::new(2, 100));
        let (mut reporting, outcome) = report();
        let first = limiter.admit(10, &mut reporting).unwrap();
        assert!(reporting.is_none());
        let passed_on = Arc::clone(&first);
        first.count_connections(2);
        drop(first);
        assert!(outcome.try_recv().is_err());
        assert!(!limiter.is_half_used());
        let _second = limiter.admit(90, &mut None).unwrap();
        assert!(limiter.is_half_used());
        assert_eq!(limiter.admit(0, &mut None).unwrap_err(), PushError::Overloaded);
        assert_eq!(limiter.take_refused(), 1);
        passed_on.count_connections(1);
        drop(passed_on);
        assert_eq!(outcome.try_recv(), Ok(Ok(Done::with_connections(3))));
        assert_eq!(
            limiter.admit(11, &mut None).unwrap_err(),
            PushError::Overloaded,
            "too many bytes"
        );
        assert!(limiter.admit(10, &mut None).is_ok());
    }

    #[test]
    fn a_command_beyond_the_bound_is_admitted_alone() {
        let limiter = Arc::new(CommandLimiter::new(2, 100));
        assert!(limiter.admit(5000, &mut None).is_ok());
    }

    #[test]
    fn each_class_of_commands_has_a_reserve_on_top_of_the_one_below() {
        use CommandClass::{Join, Operator, Push, Release};
        let limiter = Arc::new(CommandLimiter::new(80, 800));
        let mut held = Vec::new();
        let mut fill = |class: CommandClass, bytes: usize| {
            let before = held.len();
            while let Ok(permit) = limiter.admit_as(class, bytes, &mut None) {
                held.push(permit);
            }
            held.len() - before
        };
        for (class, admitted) in [(Join, 80), (Push, 10), (Release, 10), (Operator, 10)] {
            assert_eq!((fill(class, 0), fill(class, 0)), (admitted, 0), "{class:?}");
        }
        held.clear();
        // A bound of a few commands is for all.
        let small = Arc::new(CommandLimiter::new(7, 800));
        let permits = (0..8).filter_map(|_| small.admit_as(Operator, 0, &mut None).ok());
        assert_eq!(permits.collect::<Vec<_>>().len(), 7);
    }

    #[test]
    fn operators_have_a_reserve_of_bytes_and_commands_without_bytes_need_none() {
        use CommandClass::{Join, Operator, Push, Release};
        let limiter = Arc::new(CommandLimiter::new(80, 800));
        let _first = limiter.admit_as(Push, 800, &mut None).unwrap();
        assert!(limiter.admit_as(Push, 1, &mut None).is_err());
        let _without_bytes =
            [Join, Push, Release].map(|class| limiter.admit_as(class, 0, &mut None).unwrap());
        assert!(limiter.admit_as(Operator, 101, &mut None).is_err());
        let _operators = limiter.admit_as(Operator, 100, &mut None).unwrap();
        assert_eq!((limiter.commands(), limiter.take_refused()), (5, 2), "none that was refused");
        assert_eq!(limiter.bytes.load(Ordering::Relaxed), 900);
    }

    #[test]
    fn the_first_refusal_is_reported() {
        let limiter = Arc::new(CommandLimiter::new(2, 100));
        let (mut reporting, outcome) = report();
        let permit = limiter.admit(0, &mut reporting).unwrap();
        permit.count_connections(2);
        permit.refuse(PushError::SessionGone);
        permit.refuse(PushError::Stopping);
        drop(permit);
        assert_eq!(outcome.try_recv(), Ok(Err(PushError::SessionGone)));
        // A command without a report can be refused too.
        let permit = limiter.admit(0, &mut None).unwrap();
        permit.refuse(PushError::Stopping);
    }

    #[test]
    fn a_refused_command_leaves_its_report_with_the_caller() {
        let limiter = Arc::new(CommandLimiter::new(1, 100));
        let (mut reporting, outcome) = report();
        let _first = limiter.admit(0, &mut None).unwrap();
        assert!(limiter.admit(0, &mut reporting).is_err());
        reporting.expect("the limiter did not take it")(Err(PushError::Overloaded));
        assert_eq!(outcome.try_recv(), Ok(Err(PushError::Overloaded)));
    }

    /// Collects what a subscriber writes.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    // The only test in which a report panics. The log decides once for all threads whether a line is wanted, so another
    // thread without a log would race with this one.
    #[test]
    fn a_panic_in_a_report_is_caught_and_its_log_lines_are_limited() {
        let limiter = Arc::new(CommandLimiter::new(2, 100));
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, || {
            for _ in 0..100 {
                let mut report: Option<Report> = Some(Box::new(|_| panic!("a report with a bug")));
                drop(limiter.admit(0, &mut report).unwrap());
            }
        });
        assert_eq!(limiter.commands(), 0, "each command has ended");
        let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines =
            log.lines().filter(|line| line.contains("a backend panicked in the report")).count();
        assert!((1..10).contains(&lines), "{log}");
    }
}
