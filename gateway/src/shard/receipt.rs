//! Who is still at work on a command: shared by everyone it was passed to, done when the last drops it.
//!
//! A [`Receipt`] counts the connections that a command went to, keeps why it was refused, and holds its place
//! in the [`Gate`]. So the bound on commands under way covers all shards that a command visits, and "went to
//! N connections" is exact. A command whose end nobody asked for has no report, and costs nothing for it.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_backend::PushError;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::publisher::{Done, Report};
use tokio::sync::oneshot;

/// The bound on commands under way, in number and in bytes.
#[derive(Debug)]
pub struct Gate {
    commands: AtomicUsize,
    bytes: AtomicUsize,
    commands_max: usize,
    bytes_max: usize,
    refused: AtomicU64,
    /// The limit on log lines of reports that panic.
    report_panics: LogLimit,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub const fn new(commands_max: usize, bytes_max: usize) -> Self {
        Self {
            commands: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            commands_max,
            bytes_max,
            refused: AtomicU64::new(0),
            report_panics: LogLimit::new(),
        }
    }

    /// Lets a command of this many bytes in, and takes its report, if it has one. Where nothing else is under
    /// way, any size may.
    ///
    /// # Errors
    /// [`PushError::Overloaded`]: the report is still there.
    pub fn enter(
        self: &Arc<Self>,
        bytes: usize,
        report: &mut Option<Report>,
    ) -> Result<Arc<Receipt>, PushError> {
        let commands = self.commands.fetch_add(1, Ordering::Relaxed);
        let under_way = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if commands > 0 && (commands >= self.commands_max || under_way + bytes > self.bytes_max) {
            self.leave(bytes);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(PushError::Overloaded);
        }
        let gate = Arc::clone(self);
        let watch = report.take().map(|report| Box::new(Watch { refusal: None, report }));
        let watch = Mutex::new(watch);
        Ok(Arc::new(Receipt { connections: AtomicU64::new(0), bytes, gate, watch }))
    }

    /// Commands under way.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }

    /// Whether more than half of it is taken: what only waits for company should go.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.commands.load(Ordering::Relaxed) > self.commands_max / 2
            || self.bytes.load(Ordering::Relaxed) > self.bytes_max / 2
    }

    /// Commands refused since the last time this was asked.
    pub fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }

    fn leave(&self, bytes: usize) {
        self.commands.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One command's place in the gate. See the [module](self).
#[derive(Debug)]
pub struct Receipt {
    connections: AtomicU64,
    bytes: usize,
    gate: Arc<Gate>,
    watch: Mutex<Option<Box<Watch>>>,
}

/// What somebody waits for.
struct Watch {
    /// The first reason, where the command was refused.
    refusal: Option<PushError>,
    report: Report,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("refusal", &self.refusal).finish_non_exhaustive()
    }
}

impl Receipt {
    /// Adds connections that the command went to.
    pub fn add(&self, connections: usize) {
        self.connections.fetch_add(connections as u64, Ordering::Relaxed);
    }

    /// Says that the command is not carried out, and why.
    pub fn refuse(&self, reason: PushError) {
        if let Some(watch) = &mut *self.watch.lock().unwrap_or_else(PoisonError::into_inner) {
            watch.refusal.get_or_insert(reason);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
        let watch = self.watch.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watch) = watch {
            let Watch { refusal, report } = *watch;
            let done = Done::with_connections(*self.connections.get_mut());
            let outcome = refusal.map_or(Ok(done), Err);
            // It is a backend's code on a shard's thread, like a handler.
            if panic::catch_unwind(AssertUnwindSafe(|| report(outcome))).is_err()
                && let Some(suppressed) = self.gate.report_panics.allow()
            {
                tracing::error!(
                    suppressed,
                    "a backend panicked when it was told how a command ended"
                );
            }
        }
    }
}

/// An answer that several shards add to; it is sent when the last of them is done.
#[derive(Debug)]
pub struct Gather<T> {
    inner: Mutex<Option<(T, oneshot::Sender<T>)>>,
}

impl<T> Gather<T> {
    /// Starts with what is known.
    #[must_use]
    pub fn new(known: T, reply: oneshot::Sender<T>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Some((known, reply))) })
    }

    /// Adds to it.
    pub fn add(&self, add: impl FnOnce(&mut T)) {
        if let Some((known, _)) = self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            add(known);
        }
    }
}

impl<T> Drop for Gather<T> {
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
    fn a_place_is_held_until_the_last_shard_is_done() {
        let gate = Arc::new(Gate::new(2, 100));
        let (mut reporting, outcome) = report();
        let first = gate.enter(10, &mut reporting).unwrap();
        assert!(reporting.is_none());
        let passed_on = Arc::clone(&first);
        first.add(2);
        drop(first);
        assert!(outcome.try_recv().is_err());
        assert!(!gate.is_crowded());
        let _second = gate.enter(90, &mut None).unwrap();
        assert!(gate.is_crowded());
        assert_eq!(gate.enter(0, &mut None).unwrap_err(), PushError::Overloaded);
        assert_eq!(gate.take_refused(), 1);
        passed_on.add(1);
        drop(passed_on);
        assert_eq!(outcome.try_recv(), Ok(Ok(Done::with_connections(3))));
        assert_eq!(gate.enter(11, &mut None).unwrap_err(), PushError::Overloaded, "too many bytes");
        assert!(gate.enter(10, &mut None).is_ok());
    }

    #[test]
    fn a_large_one_goes_alone() {
        let gate = Arc::new(Gate::new(2, 100));
        assert!(gate.enter(5000, &mut None).is_ok());
    }

    #[test]
    fn the_first_reason_is_told_and_a_report_that_panics_harms_nobody() {
        let gate = Arc::new(Gate::new(2, 100));
        let (mut reporting, outcome) = report();
        let receipt = gate.enter(0, &mut reporting).unwrap();
        receipt.add(2);
        receipt.refuse(PushError::SessionGone);
        receipt.refuse(PushError::Stopping);
        drop(receipt);
        assert_eq!(outcome.try_recv(), Ok(Err(PushError::SessionGone)));
        let mut panicking: Option<Report> = Some(Box::new(|_| panic!("a bug in a backend")));
        drop(gate.enter(0, &mut panicking).unwrap());
        assert_eq!(gate.commands(), 0);
        // Who asked for no outcome is told none.
        let receipt = gate.enter(0, &mut None).unwrap();
        receipt.refuse(PushError::Stopping);
    }

    #[test]
    fn a_refused_report_is_still_there() {
        let gate = Arc::new(Gate::new(1, 100));
        let (mut reporting, outcome) = report();
        let _first = gate.enter(0, &mut None).unwrap();
        assert!(gate.enter(0, &mut reporting).is_err());
        reporting.expect("it was not taken")(Err(PushError::Overloaded));
        assert_eq!(outcome.try_recv(), Ok(Err(PushError::Overloaded)));
    }

    /// What a subscriber wrote.
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

    #[test]
    fn reports_that_panic_are_logged_once_in_a_while() {
        let gate = Arc::new(Gate::new(2, 100));
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, || {
            for _ in 0..100 {
                let mut report: Option<Report> = Some(Box::new(|_| panic!("a report with a bug")));
                drop(gate.enter(0, &mut report).unwrap());
            }
        });
        assert_eq!(gate.commands(), 0, "each has left");
        let log = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines = log.lines().filter(|line| line.contains("a backend panicked")).count();
        assert!((1..10).contains(&lines), "{log}");
    }
}
