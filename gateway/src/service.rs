//! What a service manager is told (sd_notify(3)): that the gateway is ready, alive, going away.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is told to anybody. A sign of life is one of the
//! shards, not of the process: it is given only after each has answered a question from its own loop,
//! so that one shard that hangs has the gateway restarted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError};
use sd_notify::NotifyState;
use tokio::sync::oneshot::error::TryRecvError;

use crate::control::{Control, Reply, ShardInfo};

/// Looks at the shards within one watchdog interval. A question is asked at one and answered before the
/// next, so signs of life come twice in an interval even where every other answer is late by a look.
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
        tell_in_time(NotifyState::Stopping);
    }
}

/// Whether all shards turn.
pub struct Pulse {
    control: Arc<dyn Control>,
    /// Answers that are still to come.
    asked: Vec<Reply<ShardInfo>>,
}

impl Pulse {
    /// Asks every shard.
    #[must_use]
    pub fn new(control: Arc<dyn Control>) -> Self {
        let asked = control.stats();
        Self { control, asked }
    }

    /// Whether every shard has answered since they were asked; if so they are asked again. Never waits.
    pub fn beats(&mut self) -> bool {
        self.asked.retain_mut(|answer| answer.try_recv() == Err(TryRecvError::Empty));
        let all_answered = self.asked.is_empty();
        if all_answered {
            self.asked = self.control.stats();
        }
        all_answered
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
