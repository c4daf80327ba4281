//! Signatures that take too long to check on a shard's thread: the threads that check them, and the queue before these.
//!
//! A check takes from some tens to some hundreds of microseconds, and a client needs no session to cause one. So shards
//! check everything else first, and then leave the signature to threads named `verify-N`. The queue before them is fair
//! between clients' addresses (`fair_queue`). A shard takes its lock to add an entry, and nobody holds that lock while a
//! signature is checked. The verdict comes as a message, like that on a token in Redis.
//!
//! The threads have the shards' priority. A thread with a lower one could hold up a shard: on a full machine it may wait
//! long for a core while it holds the queue's lock, or a mailbox's.
//!
//! An entry of the queue holds no token: the connection that wants to log in does. When that has gone, the signature is not
//! checked. If it goes during the check, the result is remembered nevertheless.

mod metrics;
#[cfg(test)]
mod tests;

pub use metrics::METRICS;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tidegate_backend::histogram::Durations;

use super::AuthError;
use super::claims::Demands;
use super::fair_queue::{FairQueue, Flow, FlowHasher, Pushed};
use super::jws::Key;
use super::verified::{TokenId, VerifiedTokens};
use crate::driver::ConnId;
use crate::shard::mailbox::Address;
use crate::shard::tokens::TokenMessage;

/// Bytes of a login that count as one entry of the queue.
const ENTRY_BYTES: usize = 1024;

/// A token of which all holds but the signature, which is to be checked.
pub struct SignatureCheck {
    pub(super) key: Arc<Key>,
    pub(super) token: Box<str>,
    pub(super) id: TokenId,
    /// Its `exp`.
    pub(super) expires_s: f64,
    /// What its claims were checked against.
    pub(super) demands: Arc<Demands>,
}

impl SignatureCheck {
    /// Checks the signature. This takes long.
    fn run(&self) -> Result<(), AuthError> {
        if self.key.has_signed(&self.token) { Ok(()) } else { Err(AuthError::Signature) }
    }
}

impl fmt::Debug for SignatureCheck {
    /// The token is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignatureCheck").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Who waits for a signature to be checked.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// Its connection, which the verdict names.
    pub conn: ConnId,
    /// What its address is counted as.
    pub flow: Flow,
    /// Where the verdict is posted.
    pub reply: Address,
}

/// An entry of the queue.
#[derive(Debug)]
struct Job {
    /// Gone when its waiter is.
    check: Weak<SignatureCheck>,
    conn: ConnId,
    reply: Address,
    asked: Instant,
}

impl Job {
    fn answer(&self, signed: Result<(), AuthError>) {
        self.reply.post(TokenMessage::Signature { conn: self.conn, signed });
    }
}

/// What was counted.
#[derive(Debug, Default)]
struct Counters {
    valid: AtomicU64,
    invalid: AtomicU64,
    abandoned: AtomicU64,
    refused: AtomicU64,
    known: AtomicU64,
}

#[derive(Debug)]
struct State {
    queue: FairQueue<Job>,
    waits: Durations,
    /// Threads that wait for a job.
    idle_threads: usize,
    is_stopped: bool,
}

/// A snapshot of what happened to signatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignatureStats {
    /// Signatures that were checked and are good.
    pub valid: u64,
    /// Signatures that were checked and are not good.
    pub invalid: u64,
    /// Not checked, as the client had gone.
    pub abandoned: u64,
    /// Not checked, as the queue was full.
    pub refused: u64,
    /// Not checked, as they had been before.
    pub known: u64,
    /// Waiting.
    pub waiting: usize,
    /// How long those had waited whose clients had not gone.
    pub waits: Durations,
}

/// See the [module](self).
#[derive(Debug)]
pub struct SignaturePool {
    state: Mutex<State>,
    has_work: Condvar,
    verified: VerifiedTokens,
    flows: FlowHasher,
    counters: Counters,
}

impl SignaturePool {
    /// A pool without threads. `verifications_max`: entries that wait, of 1 KiB. `verified_tokens_max`: tokens that are not
    /// verified again.
    #[must_use]
    pub fn new(verifications_max: u32, verified_tokens_max: usize) -> Self {
        let state = State {
            queue: FairQueue::new(verifications_max),
            waits: Durations::default(),
            idle_threads: 0,
            is_stopped: false,
        };
        Self {
            state: Mutex::new(state),
            has_work: Condvar::new(),
            verified: VerifiedTokens::new(verified_tokens_max),
            flows: FlowHasher::default(),
            counters: Counters::default(),
        }
    }

    /// What a client's address is counted as.
    #[must_use]
    pub fn flow(&self, address: IpAddr) -> Flow {
        self.flows.flow(address)
    }

    /// Has a signature checked. There is one verdict, unless the pool is stopped meanwhile. `kept_bytes`: what its waiter keeps
    /// until then, beside the token.
    ///
    /// # Errors
    /// [`AuthError::TooManyVerifications`]: there is no place in the queue.
    pub fn submit(
        &self,
        check: &Arc<SignatureCheck>,
        waiter: Waiter,
        kept_bytes: usize,
        now: Instant,
    ) -> Result<(), AuthError> {
        let bytes = check.token.len() + kept_bytes;
        let size = u32::try_from(bytes.div_ceil(ENTRY_BYTES)).unwrap_or(u32::MAX);
        let Waiter { conn, flow, reply } = waiter;
        let job = Job { check: Arc::downgrade(check), conn, reply, asked: now };
        let mut state = self.lock();
        let pushed = if state.is_stopped {
            Pushed::Refused(job)
        } else {
            state.queue.push(flow, size, job, now)
        };
        let wakes = state.idle_threads > 0;
        drop(state);
        match pushed {
            Pushed::Refused(_) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                return Err(AuthError::TooManyVerifications);
            }
            Pushed::Waits { displaced } => {
                let lost = displaced.len() as u64;
                self.counters.refused.fetch_add(lost, Ordering::Relaxed);
                displaced.iter().for_each(|job| job.answer(Err(AuthError::TooManyVerifications)));
            }
        }
        if wakes {
            self.has_work.notify_one();
        }
        Ok(())
    }

    /// What a token is known by, with the key that has to verify it.
    pub(super) fn id(&self, token: &str, key: &Key) -> TokenId {
        self.verified.id(token, key)
    }

    /// Whether a token's signature was checked before, and is good.
    pub(super) fn is_known(&self, id: TokenId) -> bool {
        let is_known = self.verified.contains(id);
        self.counters.known.fetch_add(u64::from(is_known), Ordering::Relaxed);
        is_known
    }

    /// Checks a signature, unless that of an equal token was checked while this one waited. Remembers a good one, whether its
    /// client has gone or not: when the token is shown again, its key and its claims are read again.
    ///
    /// # Errors
    /// [`AuthError::Signature`].
    pub(super) fn verify(&self, check: &SignatureCheck) -> Result<(), AuthError> {
        if self.is_known(check.id) {
            return Ok(());
        }
        // A token on which the library panics must not take the thread with it.
        let signed = panic::catch_unwind(AssertUnwindSafe(|| check.run()))
            .unwrap_or(Err(AuthError::Signature));
        let Counters { valid, invalid, .. } = &self.counters;
        let counter = if signed.is_ok() { valid } else { invalid };
        counter.fetch_add(1, Ordering::Relaxed);
        if signed.is_ok() {
            self.verified.insert(check.id);
        }
        signed
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives none.
    pub fn start(self: &Arc<Self>, threads: usize) -> io::Result<SignatureThreads> {
        let mut started = SignatureThreads { pool: Arc::clone(self), threads: Vec::new() };
        for number in 0..threads {
            let pool = Arc::clone(self);
            let thread = thread::Builder::new().name(format!("verify-{number}"));
            started.threads.push(thread.spawn(move || pool.run())?);
        }
        Ok(started)
    }

    /// Checks what waits now, on this thread: for a world without threads.
    pub fn run_pending(&self, now: Instant) {
        while let Some(job) = self.take_job() {
            self.serve(&job, now);
        }
    }

    fn take_job(&self) -> Option<Job> {
        self.lock().queue.pop()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> SignatureStats {
        let state = self.lock();
        let (waiting, waits) = (state.queue.len(), state.waits);
        drop(state);
        let Counters { valid, invalid, abandoned, refused, known } = &self.counters;
        let [valid, invalid, abandoned, refused, known] =
            [valid, invalid, abandoned, refused, known].map(|count| count.load(Ordering::Relaxed));
        SignatureStats { valid, invalid, abandoned, refused, known, waiting, waits }
    }

    fn run(&self) {
        while let Some(job) = self.next_job() {
            self.serve(&job, Instant::now());
        }
    }

    /// Waits for a job. `None`: the pool is stopped.
    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.is_stopped {
                return None;
            }
            if let Some(job) = state.queue.pop() {
                return Some(job);
            }
            state.idle_threads += 1;
            state = self.has_work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle_threads -= 1;
        }
    }

    fn serve(&self, job: &Job, now: Instant) {
        let Some(check) = job.check.upgrade() else {
            self.counters.abandoned.fetch_add(1, Ordering::Relaxed);
            // Its waiter counts the verifications that have no verdict yet.
            return job.answer(Err(AuthError::Signature));
        };
        let waited = now.saturating_duration_since(job.asked);
        self.lock().waits.note(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
        let signed = self.verify(&check);
        // Then the waiter has the only one, and frees the token.
        drop(check);
        job.answer(signed);
    }

    fn stop(&self) {
        self.lock().is_stopped = true;
        self.has_work.notify_all();
    }

    /// Only a lack of memory can panic while the lock is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads of a pool. They end when this is dropped, after the signature that they are at.
#[derive(Debug)]
pub struct SignatureThreads {
    pool: Arc<SignaturePool>,
    threads: Vec<JoinHandle<()>>,
}

impl SignatureThreads {
    /// Ends the threads, and waits for them.
    pub fn join(mut self) {
        self.pool.stop();
        // No thread panics.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Drop for SignatureThreads {
    fn drop(&mut self) {
        self.pool.stop();
    }
}
