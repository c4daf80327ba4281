//! What a service manager is told (sd_notify(3)): that the gateway is ready, alive, going away.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is told to anybody. A sign of life is one of the
//! shards, not of the process: it is given only after each has answered a question from its own loop,
//! so that one shard that hangs has the gateway restarted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError};
use sd_notify::NotifyState;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::{Control, Reply, ShardInfo};

/// Looks at the shards within one watchdog interval. A question is asked at one and answered before the
/// next, so signs of life come twice in an interval even where every other answer is late by a look.
/// The operators' HTTP has a [`Pulse`] of its own.
const LOOKS_PER_INTERVAL: u32 = 4;

/// How long the gateway waits for its service manager to take a message.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// The gateway, as its service manager sees it.
#[derive(Debug)]
pub struct Service {
    stopping: Arc<AtomicBool>,
}

impl Service {
    /// Says that the gateway listens and, where the manager wants signs of life, gives them from now on
    /// until the process ends.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn ready(control: Arc<dyn Control>) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        tell_in_time(NotifyState::Ready);
        if let Some(interval) = sd_notify::watchdog_enabled() {
            let (mut pulse, stopping) = (Pulse::new(control), Arc::clone(&stopping));
            thread::Builder::new().name("watchdog".into()).spawn(move || {
                loop {
                    // Shards end one by one while the gateway stops, and then there is another bound:
                    // how long the manager lets it take.
                    if pulse.all_answered() || stopping.load(Ordering::Acquire) {
                        tell(NotifyState::Watchdog);
                    }
                    thread::sleep(interval / LOOKS_PER_INTERVAL);
                }
            })?;
        }
        Ok(Self { stopping })
    }

    /// Says that the gateway is going away.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
        tell_in_time(NotifyState::Stopping);
    }
}

/// A shard that has not answered for longer than this hangs: on a crowded machine a turn takes a second or
/// two, and a restart of what was only slow costs everybody's connection.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The longest that one look counts as silence. Who looks late may have been away with the whole machine,
/// and then says nothing of the shards.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Whether all shards turn: asks each a question that its own loop answers. Never waits; what it knows is as
/// fresh as the last look.
pub struct Pulse {
    control: Arc<dyn Control>,
    shards: Vec<Asked>,
    looked_at: Instant,
}

/// What a shard was asked.
struct Asked {
    /// `None`: the shard has ended, as each does when the gateway drains.
    answer: Option<Reply<ShardInfo>>,
    /// For how long the answer is due, as far as somebody looked.
    silence: Duration,
    /// It has answered, or ended, since `all_answered` last returned true.
    answered: bool,
}

/// A shard that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Which.
    pub shard: u16,
    /// For how long it has not answered.
    pub lasts: Duration,
}

impl Pulse {
    /// Asks every shard.
    #[must_use]
    pub fn new(control: Arc<dyn Control>) -> Self {
        let ask = |shard| Asked {
            answer: Some(control.shard(shard)),
            silence: Duration::ZERO,
            answered: false,
        };
        let shards = (0..control.shards()).map(ask).collect();
        Self { control, shards, looked_at: Instant::now() }
    }

    /// Notes which shards have answered, and asks those again.
    pub fn look(&mut self) {
        self.look_at(Instant::now());
    }

    fn look_at(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.looked_at).min(LOOK_MAX);
        self.looked_at = now;
        for (shard, asked) in (0..).zip(&mut self.shards) {
            let Some(answer) = &mut asked.answer else { continue };
            match answer.try_recv() {
                Err(TryRecvError::Empty) => asked.silence += since,
                Err(TryRecvError::Closed) => *asked = Asked::ended(),
                Ok(_) => {
                    let answer = Some(self.control.shard(shard));
                    *asked = Asked { answer, silence: Duration::ZERO, answered: true };
                }
            }
        }
    }

    /// Looks, and returns whether every shard has answered since this last returned true.
    pub fn all_answered(&mut self) -> bool {
        self.look();
        let all = self.shards.iter().all(|asked| asked.answered);
        if all {
            self.shards.iter_mut().for_each(|asked| asked.answered = asked.answer.is_none());
        }
        all
    }

    /// The shards that hang, as of the last look.
    pub fn silent(&self) -> impl Iterator<Item = Silence> {
        (0..)
            .zip(&self.shards)
            .filter(|(_, asked)| asked.silence > SILENCE_MAX)
            .map(|(shard, asked)| Silence { shard, lasts: asked.silence })
    }
}

impl Asked {
    const fn ended() -> Self {
        Self { answer: None, silence: Duration::ZERO, answered: true }
    }
}

/// Tells the manager from a thread of its own, since a socket that nobody reads blocks once it is full, and
/// waits for that thread no longer than [`TOLD_WITHIN`].
fn tell_in_time(state: NotifyState<'static>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let text = state.to_string();
    let (done, told) = channel::bounded::<()>(1);
    let work = move || {
        let _done = done;
        tell(state);
    };
    let spawned = thread::Builder::new().name("notify".into()).spawn(work);
    if spawned.is_err() || told.recv_timeout(TOLD_WITHIN) == Err(RecvTimeoutError::Timeout) {
        tracing::warn!("the service manager does not take {text}: is its NOTIFY_SOCKET read?");
    }
}

fn tell(state: NotifyState<'_>) {
    let text = state.to_string();
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't tell the service manager {text}: is its NOTIFY_SOCKET gone?");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use tidegate_backend::CommandOutcome;
    use tidegate_backend::publisher::{Command, RoomId, UserId};
    use tokio::sync::oneshot;

    use super::*;
    use crate::control::{Readiness, RoomInfo, UserInfo};

    /// Two shards that answer when they are told to.
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
    }

    /// Looks twice a second for this many seconds; the shards of `answers` answer.
    fn pass(pulse: &mut Pulse, shards: &Shards, answers: &[u16], seconds: u32) {
        for _ in 0..2 * seconds {
            answers.iter().for_each(|&shard| shards.answer(shard));
            let next = pulse.looked_at + Duration::from_millis(500);
            pulse.look_at(next);
        }
    }

    fn silent(pulse: &Pulse) -> Vec<(u16, u64)> {
        pulse.silent().map(|silence| (silence.shard, silence.lasts.as_secs())).collect()
    }

    #[test]
    fn a_shard_that_hangs_is_named_until_it_answers() {
        let shards = Arc::<Shards>::default();
        let mut pulse = Pulse::new(Arc::clone(&shards) as Arc<dyn Control>);
        pass(&mut pulse, &shards, &[0, 1], 60);
        assert_eq!(silent(&pulse), []);
        pass(&mut pulse, &shards, &[0], 5);
        assert_eq!(silent(&pulse), [], "a turn may take a while");
        pass(&mut pulse, &shards, &[0], 1);
        assert_eq!(silent(&pulse), [(1, 6)]);
        pass(&mut pulse, &shards, &[], 10);
        assert_eq!(silent(&pulse), [(0, 10), (1, 16)], "each is asked by itself");
        assert_eq!(shards.0.lock().unwrap_or_else(PoisonError::into_inner).len(), 2, "once");
        pass(&mut pulse, &shards, &[1], 1);
        assert_eq!(silent(&pulse), [(0, 11)]);
        pass(&mut pulse, &shards, &[0, 1], 1);
        assert_eq!(silent(&pulse), []);
    }

    #[test]
    fn a_shard_that_has_ended_does_not_hang() {
        let shards = Arc::<Shards>::default();
        let mut pulse = Pulse::new(Arc::clone(&shards) as Arc<dyn Control>);
        shards.asked(1).for_each(drop);
        pass(&mut pulse, &shards, &[0], 60);
        assert_eq!(silent(&pulse), []);
        assert!(pulse.all_answered());
        shards.answer(0);
        assert!(pulse.all_answered());
    }

    #[test]
    fn a_machine_that_was_stopped_says_nothing_of_the_shards() {
        let shards = Arc::<Shards>::default();
        let mut pulse = Pulse::new(Arc::clone(&shards) as Arc<dyn Control>);
        pass(&mut pulse, &shards, &[0, 1], 1);
        // The whole process was: whoever looks first finds what was asked before.
        let next = pulse.looked_at + Duration::from_secs(3600);
        pulse.look_at(next);
        assert_eq!(silent(&pulse), []);
        pass(&mut pulse, &shards, &[0, 1], 1);
        assert_eq!(silent(&pulse), []);
    }

    #[test]
    fn all_have_answered_once_each_has_since_the_last_time() {
        let shards = Arc::<Shards>::default();
        let mut pulse = Pulse::new(Arc::clone(&shards) as Arc<dyn Control>);
        assert!(!pulse.all_answered());
        shards.answer(0);
        assert!(!pulse.all_answered());
        shards.answer(0);
        assert!(!pulse.all_answered(), "one shard does not answer for the other");
        shards.answer(1);
        assert!(pulse.all_answered() && !pulse.all_answered());
    }
}
