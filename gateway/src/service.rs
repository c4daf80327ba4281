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

use sd_notify::NotifyState;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::{Control, Reply, ShardInfo};

/// Looks at the shards within one watchdog interval. A question is asked at one and answered before the
/// next, so signs of life come twice in an interval even where every other answer is late by a look.
/// The operators' HTTP has a [`Pulse`] of its own.
const LOOKS_PER_INTERVAL: u32 = 4;

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
        tell(NotifyState::Ready);
        if let Some(interval) = sd_notify::watchdog_enabled() {
            let (mut pulse, stopping) = (Pulse::new(control), Arc::clone(&stopping));
            thread::Builder::new().name("watchdog".into()).spawn(move || {
                loop {
                    // Shards end one by one while the gateway stops, and then there is another bound:
                    // how long the manager lets it take.
                    if pulse.beats() || stopping.load(Ordering::Acquire) {
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
        tell(NotifyState::Stopping);
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
    /// It has answered, or ended, since the last beat.
    beats: bool,
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
            beats: false,
        };
        let shards = (0..control.shards()).map(ask).collect();
        Self { control, shards, looked_at: Instant::now() }
    }

    /// Looks who has answered, and asks them again.
    pub fn look(&mut self) {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.looked_at).min(LOOK_MAX);
        self.looked_at = now;
        for (shard, asked) in (0..).zip(&mut self.shards) {
            let Some(answer) = &mut asked.answer else { continue };
            match answer.try_recv() {
                Err(TryRecvError::Empty) => asked.silence += since,
                Err(TryRecvError::Closed) => *asked = Asked::ended(),
                Ok(_) => {
                    let answer = Some(self.control.shard(shard));
                    *asked = Asked { answer, silence: Duration::ZERO, beats: true };
                }
            }
        }
    }

    /// Looks, and says whether every shard has answered since this last said so.
    pub fn beats(&mut self) -> bool {
        self.look();
        let all_beat = self.shards.iter().all(|asked| asked.beats);
        if all_beat {
            self.shards.iter_mut().for_each(|asked| asked.beats = asked.answer.is_none());
        }
        all_beat
    }

    /// The shards that hang, as of the last look.
    pub fn silent(&self) -> impl Iterator<Item = Silence> {
        (0..).zip(&self.shards).filter(|(_, asked)| asked.silence > SILENCE_MAX).map(
            |(shard, asked)| Silence { shard, lasts: asked.silence },
        )
    }
}

impl Asked {
    const fn ended() -> Self {
        Self { answer: None, silence: Duration::ZERO, beats: true }
    }
}

fn tell(state: NotifyState<'_>) {
    let text = state.to_string();
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't tell the service manager {text}: is its NOTIFY_SOCKET gone?");
    }
}
