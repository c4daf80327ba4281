//! Worker threads for a handler.
//!
//! Each worker has a queue of its own, and a connection always uses the same worker, so that its
//! calls stay in order. Shards hand calls over in batches through a [`Submitter`]: one message and
//! at most one wake-up for each worker and turn.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::queue::ArrayQueue;

use crate::batch::Batch;

use crate::handler::{Call, Handler};
use crate::log_limit::LogLimit;
use crate::publisher::Gateway;

/// How large a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Threads: at least 1.
    pub workers: usize,
    /// Calls that may wait for a worker, all workers together; more are refused. Shards check before
    /// they hand over, so it may be exceeded by what the other shards hand over in the same turn.
    pub queue_calls_max: usize,
    /// Calls that one [`Handler::handle_batch`] gets at most: at least 1.
    pub batch_calls_max: usize,
}

/// Emptied batches on their way back to whoever fills them: memory that is freed by another thread than
/// allocated it is the dear kind.
type Spares = ArrayQueue<Vec<Call>>;

/// Emptied batches that are kept at most.
const SPARES_MAX: usize = 64;

/// Calls that an emptied batch may have room for, if it is to be kept. With [`SPARES_MAX`] and some
/// 80 bytes a call that is 5 MiB a pool.
const SPARE_CALLS_MAX: usize = 1024;

/// A handler and its worker threads. They end when the pool and its submitters are dropped.
#[derive(Clone, Debug)]
pub struct Pool {
    workers: Arc<[Sender<Vec<Call>>]>,
    spares: Arc<Spares>,
    queued: Arc<AtomicUsize>,
    queue_calls_max: usize,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        handler: &Arc<dyn Handler>,
        gateway: &Gateway,
        options: PoolOptions,
    ) -> io::Result<Self> {
        let (pool, workers) = Self::idle(handler, gateway, options);
        for (index, mut worker) in workers.into_iter().enumerate() {
            thread::Builder::new().name(format!("{name}-{index}")).spawn(move || worker.run())?;
        }
        Ok(pool)
    }

    /// A pool whose workers the caller runs itself, step by step: for tests and simulations.
    #[must_use]
    pub fn idle(
        handler: &Arc<dyn Handler>,
        gateway: &Gateway,
        options: PoolOptions,
    ) -> (Self, Vec<Worker>) {
        let queued = Arc::new(AtomicUsize::new(0));
        let spares = Arc::new(Spares::new(SPARES_MAX));
        let (senders, workers) = (0..options.workers.max(1))
            .map(|_| {
                let (sender, queue) = channel::unbounded();
                let worker = Worker {
                    queue,
                    spares: Arc::clone(&spares),
                    queued: Arc::clone(&queued),
                    handler: Arc::clone(handler),
                    gateway: gateway.clone(),
                    batch: Batch::default(),
                    batch_calls_max: options.batch_calls_max.max(1),
                    panics: LogLimit::new(),
                };
                (sender, worker)
            })
            .collect::<(Vec<_>, Vec<_>)>();
        let queue_calls_max = options.queue_calls_max;
        (Self { workers: senders.into(), spares, queued, queue_calls_max }, workers)
    }

    /// Calls that wait for a worker.
    #[must_use]
    pub fn queued_calls(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// A way in, for one shard.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        Submitter {
            pool: self.clone(),
            pending: self.workers.iter().map(|_| Vec::new()).collect(),
            pending_calls: 0,
        }
    }
}

/// One shard's way into a pool. Calls gather here until [`Submitter::flush`].
#[derive(Debug)]
pub struct Submitter {
    pool: Pool,
    /// By worker.
    pending: Vec<Vec<Call>>,
    pending_calls: usize,
}

impl Submitter {
    /// Whether the queue has room for a call: ask before making one.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pool.queued_calls() + self.pending_calls < self.pool.queue_calls_max
    }

    /// Gathers a call for the worker of its connection.
    #[inline]
    pub fn submit(&mut self, call: Call) {
        let worker = spread(call.session().0, self.pending.len());
        self.pending[worker].push(call);
        self.pending_calls += 1;
    }

    /// Hands over what was gathered. Says whether there was anything.
    pub fn flush(&mut self) -> bool {
        if self.pending_calls == 0 {
            return false;
        }
        self.pool.queued.fetch_add(self.pending_calls, Ordering::Relaxed);
        self.pending_calls = 0;
        for (pending, worker) in self.pending.iter_mut().zip(self.pool.workers.iter()) {
            if !pending.is_empty() {
                let spare = self.pool.spares.pop().unwrap_or_default();
                let calls = std::mem::replace(pending, spare);
                // A worker outlives its senders. If its thread is gone all the same, the calls come
                // back in the error and answer 101 as they are dropped.
                drop(worker.send(calls));
            }
        }
        true
    }
}

/// Picks one of `count` by a session's number, evenly (Lemire's multiply-shift on a mixed number).
#[expect(clippy::cast_possible_truncation, reason = "the product's high half is below count")]
fn spread(number: u64, count: usize) -> usize {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * count as u128) >> 64) as usize
}

/// One thread's end of a pool.
pub struct Worker {
    queue: Receiver<Vec<Call>>,
    spares: Arc<Spares>,
    queued: Arc<AtomicUsize>,
    handler: Arc<dyn Handler>,
    gateway: Gateway,
    batch: Batch,
    batch_calls_max: usize,
    /// The limit on log lines of panics.
    panics: LogLimit,
}

impl Worker {
    /// Works until the pool and its submitters are gone.
    fn run(&mut self) {
        while let Ok(calls) = self.queue.recv() {
            self.work(calls);
        }
    }

    /// Works on what waits now, without blocking. Says whether there was anything.
    pub fn run_pending(&mut self) -> bool {
        let mut any = false;
        while let Ok(calls) = self.queue.try_recv() {
            self.work(calls);
            any = true;
        }
        any
    }

    fn work(&mut self, mut calls: Vec<Call>) {
        let mut rest = calls.drain(..);
        while rest.len() > 0 {
            let taken = rest.len().min(self.batch_calls_max);
            self.batch.extend(rest.by_ref().take(taken));
            self.queued.fetch_sub(taken, Ordering::Relaxed);
            let (handler, gateway) = (&*self.handler, &self.gateway);
            self.batch.run(|batch| {
                // A panic takes one call with it; the batch still holds the rest.
                while !batch.is_empty() {
                    let before = batch.len();
                    let work = AssertUnwindSafe(|| handler.handle_batch(batch, gateway));
                    if panic::catch_unwind(work).is_err()
                        && let Some(suppressed) = self.panics.allow()
                    {
                        tracing::error!(
                            suppressed,
                            "a handler panicked; its call is answered with 101"
                        );
                    }
                    if batch.len() == before {
                        // It took none: what it leaves is dropped, and so answered with 101.
                        batch.by_ref().for_each(drop);
                    }
                }
            });
        }
        drop(rest);
        if calls.capacity() <= SPARE_CALLS_MAX {
            // Where there are enough of them it is freed.
            drop(self.spares.push(calls));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use tidegate_protocol::Code;

    use super::*;
    use crate::handler::{AnswerPort, CallId, Outcome};
    use crate::harness::Harness;
    use crate::publisher::SessionId;

    /// Panics on "boom", answers with the bytes otherwise.
    struct Fragile;

    impl Handler for Fragile {
        fn handle(&self, call: Call, _gateway: &Gateway) {
            assert_ne!(call.biz_data(), "boom");
            let same = call.biz_data().clone();
            call.answer(same);
        }
    }

    #[derive(Default)]
    struct Answers(Mutex<Vec<(u64, Outcome)>>);

    impl AnswerPort for Answers {
        fn answer(&self, call: CallId, outcome: Outcome) {
            self.0.lock().unwrap().push((call.0, outcome));
        }
    }

    fn call(id: u64, session: u64, biz_data: &'static str, port: &Arc<Answers>) -> Call {
        let port = Arc::clone(port) as Arc<dyn AnswerPort>;
        Call::new(
            1,
            7,
            SessionId(session),
            Bytes::from_static(biz_data.as_bytes()),
            CallId(id),
            port,
        )
    }

    fn idle_pool(options: PoolOptions) -> (Pool, Vec<Worker>) {
        let handler: Arc<dyn Handler> = Arc::new(Fragile);
        Pool::idle(&handler, Harness::new(Fragile).gateway(), options)
    }

    #[test]
    fn a_panic_costs_one_call_and_the_others_are_served_in_order() {
        let options = PoolOptions { workers: 1, queue_calls_max: 100, batch_calls_max: 3 };
        let (pool, mut workers) = idle_pool(options);
        let answers = Arc::<Answers>::default();
        let mut submitter = pool.submitter();
        for (id, biz_data) in ["a", "boom", "c", "d", "boom"].into_iter().enumerate() {
            submitter.submit(call(id as u64, 1, biz_data, &answers));
        }
        submitter.flush();
        assert_eq!(pool.queued_calls(), 5);
        assert!(workers[0].run_pending());
        let failed = || Err(Code::BackendFailed.into());
        let want = [(0, Ok("a".into())), (1, failed()), (2, Ok("c".into())), (3, Ok("d".into()))];
        assert_eq!(answers.0.lock().unwrap()[..4], want);
        assert_eq!(answers.0.lock().unwrap()[4], (4, failed()));
        assert_eq!(pool.queued_calls(), 0);
    }

    #[test]
    fn a_full_queue_says_so_before_a_call_is_made() {
        let options = PoolOptions { workers: 2, queue_calls_max: 2, batch_calls_max: 8 };
        let (pool, mut workers) = idle_pool(options);
        let answers = Arc::<Answers>::default();
        let mut submitter = pool.submitter();
        submitter.submit(call(0, 1, "a", &answers));
        assert!(submitter.has_room());
        submitter.submit(call(1, 2, "b", &answers));
        assert!(!submitter.has_room());
        submitter.flush();
        assert!(!submitter.has_room() && !pool.submitter().has_room());
        for worker in &mut workers {
            worker.run_pending();
        }
        assert!(submitter.has_room());
        assert_eq!(answers.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn threads_answer_and_end_with_the_pool() {
        let handler: Arc<dyn Handler> = Arc::new(Fragile);
        let gateway = Harness::new(Fragile).gateway().clone();
        let options = PoolOptions { workers: 2, queue_calls_max: 100, batch_calls_max: 8 };
        let pool = Pool::start("test", &handler, &gateway, options).unwrap();
        let answers = Arc::<Answers>::default();
        let mut submitter = pool.submitter();
        for id in 0..10 {
            submitter.submit(call(id, id, "x", &answers));
        }
        submitter.flush();
        drop((pool, submitter));
        // The workers hold the handler until they end.
        while Arc::strong_count(&handler) > 1 {
            thread::yield_now();
        }
        assert_eq!(answers.0.lock().unwrap().len(), 10);
    }
}
