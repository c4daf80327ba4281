//! Tells a service manager (sd_notify(3)) that the gateway is ready, alive, or stopping.
//!
//! Without `NOTIFY_SOCKET` in the environment it does nothing. A watchdog message vouches for the threads that serve clients,
//! not for the process: it is sent only after each shard, and the HTTP gateway if there is one, has answered a question from
//! its own loop. So the manager restarts a gateway of which one of these threads hangs.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError};
use sd_notify::NotifyState;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::{Control, Reply, ShardInfo};

/// How often the threads are checked within one watchdog interval. A question is asked at one check and answered
/// before the next, so the manager gets two messages in an interval even if every other answer is one check late.
/// The operators' HTTP has a separate [`Liveness`].
const CHECKS_PER_INTERVAL: u32 = 4;

/// How long the gateway waits for its service manager to take a message.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells the service manager about the gateway.
#[derive(Debug)]
pub struct Service {
    stopping: Arc<AtomicBool>,
}

impl Service {
    /// Notifies the manager that the gateway is ready. If the manager has a watchdog, feeds it from now on until the
    /// process ends.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn ready(control: Arc<dyn Control>) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        notify_in_time(NotifyState::Ready);
        if let Some(interval) = sd_notify::watchdog_enabled() {
            let (mut liveness, stopping) = (Liveness::new(control), Arc::clone(&stopping));
            thread::Builder::new().name("watchdog".into()).spawn(move || {
                loop {
                    // A stopping gateway's shards end one by one. Then the manager's own stop timeout is
                    // the bound.
                    if liveness.all_answered() || stopping.load(Ordering::Acquire) {
                        notify(NotifyState::Watchdog);
                    }
                    thread::sleep(interval / CHECKS_PER_INTERVAL);
                }
            })?;
        }
        Ok(Self { stopping })
    }

    /// Notifies the manager that the gateway is stopping.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
        notify_in_time(NotifyState::Stopping);
    }
}

/// A thread that has not answered for longer than this hangs. On an overloaded machine a turn takes a second or two,
/// and to restart a gateway that is only slow would cost all connections.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The most silence that one check adds. If a check is late, the whole machine may have been stopped, which says
/// nothing about the threads.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// A thread that serves clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServingThread {
    /// A shard.
    Shard(u16),
    /// The HTTP gateway.
    Http,
}

impl fmt::Display for ServingThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "shard {shard}"),
            Self::Http => f.write_str("the HTTP gateway"),
        }
    }
}

/// Whether all shards and the HTTP gateway run: it asks each a question that the thread's own loop answers. It never waits.
/// Its knowledge is as old as the last check.
pub struct Liveness {
    control: Arc<dyn Control>,
    threads: Vec<Asked>,
    looked_at: Instant,
}

/// The question to one thread.
struct Asked {
    thread: ServingThread,
    /// The answer to come. `None`: the thread has ended, as each does when the gateway drains.
    answer: Option<Reply<ShardInfo>>,
    /// How long the answer is missing, as far as checks have seen.
    silence: Duration,
    /// Whether it has answered or ended since `all_answered` last returned true.
    answered: bool,
}

/// A thread that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Which.
    pub thread: ServingThread,
    /// How long it has not answered.
    pub lasts: Duration,
}

impl Liveness {
    /// Asks every thread.
    #[must_use]
    pub fn new(control: Arc<dyn Control>) -> Self {
        let http = control.http().map(|answer| (ServingThread::Http, answer));
        let shard = |shard| (ServingThread::Shard(shard), control.shard(shard));
        let threads = (0..control.shards()).map(shard).chain(http);
        let threads = threads.map(|(thread, answer)| Asked {
            thread,
            answer: Some(answer),
            silence: Duration::ZERO,
            answered: false,
        });
        Self { threads: threads.collect(), control, looked_at: Instant::now() }
    }

    /// Records which threads have answered, and asks those again.
    pub fn check(&mut self) {
        self.look_at(Instant::now());
    }

    fn look_at(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.looked_at).min(LOOK_MAX);
        self.looked_at = now;
        for asked in &mut self.threads {
            let Some(answer) = &mut asked.answer else { continue };
            match answer.try_recv() {
                Err(TryRecvError::Empty) => asked.silence += since,
                Err(TryRecvError::Closed) => asked.answered(None),
                Ok(_) => asked.answered(match asked.thread {
                    ServingThread::Shard(shard) => Some(self.control.shard(shard)),
                    ServingThread::Http => self.control.http(),
                }),
            }
        }
    }

    /// Checks, and returns whether every thread has answered since this last returned true.
    pub fn all_answered(&mut self) -> bool {
        self.check();
        let all = self.threads.iter().all(|asked| asked.answered);
        if all {
            self.threads.iter_mut().for_each(|asked| asked.answered = asked.answer.is_none());
        }
        all
    }

    /// The threads that hang, as of the last check.
    pub fn silent(&self) -> impl Iterator<Item = Silence> {
        let silent = self.threads.iter().filter(|asked| asked.silence > SILENCE_MAX);
        silent.map(|asked| Silence { thread: asked.thread, lasts: asked.silence })
    }
}

impl Asked {
    /// It has answered, or ended. `next`: the answer to the next question.
    fn answered(&mut self, next: Option<Reply<ShardInfo>>) {
        (self.answer, self.silence, self.answered) = (next, Duration::ZERO, true);
    }
}

/// Sends a message to the manager from a separate thread, since a socket that is not read blocks once it is full.
/// Waits for that thread no longer than [`NOTIFY_TIMEOUT`].
fn notify_in_time(state: NotifyState<'static>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let text = state.to_string();
    let (done, notified) = channel::bounded::<()>(1);
    let work = move || {
        let _done = done;
        notify(state);
    };
    let spawned = thread::Builder::new().name("notify".into()).spawn(work);
    if spawned.is_err() || notified.recv_timeout(NOTIFY_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
        tracing::warn!("the service manager does not take {text}: is its NOTIFY_SOCKET read?");
    }
}

fn notify(state: NotifyState<'_>) {
    let text = state.to_string();
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't notify the service manager of {text}; check that the socket in NOTIFY_SOCKET exists");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use tidegate_backend::CommandOutcome;
    use tidegate_backend::publisher::{Command, Push, RoomId, UserId};
    use tokio::sync::oneshot;

    use super::*;
    use crate::control::{Readiness, RoomInfo, UserInfo};
    use crate::shard::rebalance::Share;

    /// Two shards that answer when the test says so.
    #[derive(Default)]
    struct Shards(Mutex<Vec<(u16, oneshot::Sender<ShardInfo>)>>);

    impl Shards {
        fn asked(&self, shard: u16) -> impl Iterator<Item = oneshot::Sender<ShardInfo>> {
            let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (of_this, others) = asked.drain(..).partition(|(of, _)| *of == shard);
            *asked = others;
            Vec::into_iter(of_this).map(|(_, reply)| reply)
        }

        fn answer(&self, shard: u16) {
            self.asked(shard).for_each(|reply| drop(reply.send(ShardInfo::default())));
        }
    }

    impl Control for Shards {
        fn readiness(&self) -> Readiness {
            Readiness::Ready
        }
        fn command(&self, _command: Command) -> Reply<CommandOutcome> {
            oneshot::channel().1
        }
        fn push_many(&self, _pushes: Vec<Push>) -> Reply<Vec<CommandOutcome>> {
            oneshot::channel().1
        }
        fn user(&self, _user_id: UserId) -> Reply<UserInfo> {
            oneshot::channel().1
        }
        fn room(&self, _room: RoomId) -> Reply<Option<RoomInfo>> {
            oneshot::channel().1
        }
        fn shards(&self) -> u16 {
            2
        }
        fn shard(&self, shard: u16) -> Reply<ShardInfo> {
            let (reply, answer) = oneshot::channel();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((shard, reply));
            answer
        }
        fn count_movable(&self, _shard: u16, _spared_s: u16) -> Reply<u64> {
            oneshot::channel().1
        }
        fn send_away(&self, _shard: u16, _share: Share) {}
        fn drain(&self) {}
        fn hurry_drain(&self) {}
    }

    /// Looks twice a second for this many seconds; the shards of `answers` answer.
    fn pass(liveness: &mut Liveness, shards: &Shards, answers: &[u16], seconds: u32) {
        for _ in 0..2 * seconds {
            answers.iter().for_each(|&shard| shards.answer(shard));
            let next = liveness.looked_at + Duration::from_millis(500);
            liveness.look_at(next);
        }
    }

    fn silent(liveness: &Liveness) -> Vec<(u16, u64)> {
        let shard = |thread| match thread {
            ServingThread::Shard(shard) => shard,
            ServingThread::Http => panic!("there is none"),
        };
        let silent = liveness.silent();
        silent.map(|silence| (shard(silence.thread), silence.lasts.as_secs())).collect()
    }

    #[test]
    fn a_shard_that_hangs_is_named_until_it_answers() {
        let shards = Arc::<Shards>::default();
        let mut liveness = Liveness::new(Arc::clone(&shards) as Arc<dyn Control>);
        pass(&mut liveness, &shards, &[0, 1], 60);
        assert_eq!(silent(&liveness), []);
        pass(&mut liveness, &shards, &[0], 5);
        assert_eq!(silent(&liveness), [], "a turn may take a while");
        pass(&mut liveness, &shards, &[0], 1);
        assert_eq!(silent(&liveness), [(1, 6)]);
        pass(&mut liveness, &shards, &[], 10);
        assert_eq!(silent(&liveness), [(0, 10), (1, 16)], "each is asked separately");
        assert_eq!(shards.0.lock().unwrap_or_else(PoisonError::into_inner).len(), 2, "once");
        pass(&mut liveness, &shards, &[1], 1);
        assert_eq!(silent(&liveness), [(0, 11)]);
        pass(&mut liveness, &shards, &[0, 1], 1);
        assert_eq!(silent(&liveness), []);
    }

    #[test]
    fn a_shard_that_has_ended_does_not_hang() {
        let shards = Arc::<Shards>::default();
        let mut liveness = Liveness::new(Arc::clone(&shards) as Arc<dyn Control>);
        shards.asked(1).for_each(drop);
        pass(&mut liveness, &shards, &[0], 60);
        assert_eq!(silent(&liveness), []);
        assert!(liveness.all_answered());
        shards.answer(0);
        assert!(liveness.all_answered());
    }

    #[test]
    fn a_machine_that_was_stopped_says_nothing_of_the_shards() {
        let shards = Arc::<Shards>::default();
        let mut liveness = Liveness::new(Arc::clone(&shards) as Arc<dyn Control>);
        pass(&mut liveness, &shards, &[0, 1], 1);
        // The whole process was stopped: the first check finds what was asked before.
        let next = liveness.looked_at + Duration::from_secs(3600);
        liveness.look_at(next);
        assert_eq!(silent(&liveness), []);
        pass(&mut liveness, &shards, &[0, 1], 1);
        assert_eq!(silent(&liveness), []);
    }

    #[test]
    fn all_have_answered_once_each_has_since_the_last_time() {
        let shards = Arc::<Shards>::default();
        let mut liveness = Liveness::new(Arc::clone(&shards) as Arc<dyn Control>);
        assert!(!liveness.all_answered());
        shards.answer(0);
        assert!(!liveness.all_answered());
        shards.answer(0);
        assert!(!liveness.all_answered(), "one shard does not answer for the other");
        shards.answer(1);
        assert!(liveness.all_answered() && !liveness.all_answered());
    }
}
