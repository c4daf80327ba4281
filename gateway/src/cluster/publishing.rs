//! Pushes to rooms on their way into Redis.
//!
//! A room has one batch under way; pushes that come meanwhile wait for the next one. So a room's pushes keep their order
//! whatever fails, and the more pushes come the fewer commands they take. A batch that may or may not have been
//! carried out is sent again under the same number, which Redis remembers: it is carried out once.
//!
//! Each push holds its permit until it has its outcome, so the bound on commands bounds what waits here. A push that
//! waits too long is refused.
//!
//! This part does no I/O and reads no clock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Cmd;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::publisher::{Done, Nobody};
use tidegate_backend::push::PushOptions;
use tidegate_backend::{PushError, RoomId};

use super::contract::{self, Published, PushArgs};
use crate::shard::command::CommandPermit;

/// Pushes of one batch, at most.
const BATCH_PUSHES_MAX: usize = 64;

/// Bytes of one batch, at most, or one longer push.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Time until a batch that failed is sent again, in milliseconds.
const RETRY_MS: u64 = 250;

/// A push that waits.
#[derive(Debug)]
pub struct Push {
    /// Its type.
    pub kind: i32,
    /// Its payload.
    pub biz_data: Bytes,
    /// Its key and its time to live, if it has them.
    pub options: Option<Box<PushOptions>>,
    /// Is dropped with the outcome.
    pub permit: Arc<CommandPermit>,
}

impl Push {
    /// It has waited for so long. Returns whether its time to live is over.
    fn shorten_life(&mut self, waited_ms: u64) -> bool {
        let ttl = self.options.as_mut().and_then(|options| options.ttl.as_mut());
        ttl.is_some_and(|ttl| {
            *ttl = ttl.saturating_sub(Duration::from_millis(waited_ms));
            *ttl < Duration::from_millis(1)
        })
    }

    fn key(&self) -> &[u8] {
        self.options.as_ref().and_then(|options| options.key.as_deref()).unwrap_or_default()
    }

    fn ttl_ms(&self) -> u64 {
        let ttl = self.options.as_ref().and_then(|options| options.ttl);
        ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A batch to be sent.
#[derive(Debug)]
pub struct Request {
    /// The room.
    pub room: RoomId,
    /// The answer has to carry it.
    pub number: u64,
    /// The command.
    pub cmd: Cmd,
}

#[derive(Debug)]
struct Batch {
    /// What Redis remembers it by.
    number: u64,
    pushes: Vec<Push>,
    since_ms: u64,
    /// It failed, and is to be sent again at this time.
    again_at_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct Queue {
    batch: Option<Batch>,
    waiting: VecDeque<(u64, Push)>,
    /// It is in the queue of those that may have a batch to start.
    is_ready: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.batch.is_none() && self.waiting.is_empty()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Publishing {
    /// Names this gateway's batches in Redis: it differs from run to run.
    writer: String,
    wait_max_ms: u64,
    rooms: HashMap<RoomId, Queue>,
    /// Rooms that may have a batch to start.
    ready: VecDeque<RoomId>,
    next_number: u64,
    waiting: usize,
    requests: VecDeque<Request>,
    refusals_logged: LogLimit,
}

impl Publishing {
    /// Nothing waits. A push that waits `wait_max_ms` is refused.
    #[must_use]
    pub fn new(writer: String, wait_max_ms: u64) -> Self {
        Self {
            writer,
            wait_max_ms,
            rooms: HashMap::new(),
            ready: VecDeque::new(),
            next_number: 0,
            waiting: 0,
            requests: VecDeque::new(),
            refusals_logged: LogLimit::new(),
        }
    }

    /// Pushes without an outcome.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.waiting
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Takes a push.
    pub fn push(&mut self, room: &RoomId, push: Push, now_ms: u64) {
        self.waiting += 1;
        let queue = self.rooms.entry(room.clone()).or_default();
        queue.waiting.push_back((now_ms, push));
        if queue.batch.is_none() {
            Self::set_ready(queue, &mut self.ready, room);
        }
    }

    /// The next request. `must_wait`: whether a room's pushes may not be sent yet.
    pub fn next_request(
        &mut self,
        must_wait: impl Fn(&RoomId) -> bool,
        now_ms: u64,
    ) -> Option<Request> {
        for _ in 0..self.ready.len() {
            let room = self.ready.pop_front()?;
            if must_wait(&room) {
                self.ready.push_back(room);
            } else {
                self.start(&room, now_ms);
            }
        }
        self.requests.pop_front()
    }

    /// Starts a room's next batch.
    fn start(&mut self, room: &RoomId, now_ms: u64) {
        let Some(queue) = self.rooms.get_mut(room) else { return };
        queue.is_ready = false;
        if queue.batch.is_some() {
            return;
        }
        let (mut pushes, mut bytes) = (Vec::new(), 0);
        while pushes.len() < BATCH_PUSHES_MAX
            && let Some((since_ms, push)) = queue.waiting.front_mut()
            && (pushes.is_empty() || bytes + push.biz_data.len() <= BATCH_BYTES_MAX)
        {
            let has_ended = push.shorten_life(now_ms.saturating_sub(*since_ms));
            let push = queue.waiting.pop_front().map(|(_, push)| push);
            if has_ended {
                self.waiting -= 1;
                let expired = Ok(Done::nobody(Nobody::Expired));
                push.into_iter().for_each(|push| push.permit.end_as(expired));
                continue;
            }
            bytes += push.as_ref().map_or(0, |push| push.biz_data.len());
            pushes.extend(push);
        }
        if pushes.is_empty() {
            self.rooms.remove(room);
            return;
        }
        self.next_number += 1;
        let batch = Batch { number: self.next_number, pushes, since_ms: now_ms, again_at_ms: None };
        self.requests.push_back(request(&self.writer, room, &batch));
        queue.batch = Some(batch);
    }

    /// Redis has answered a batch.
    pub fn on_published(&mut self, room: &RoomId, number: u64, published: &Published) {
        let Some(queue) = self.rooms.get_mut(room) else { return };
        let Some(batch) = queue.batch.take_if(|batch| batch.number == number) else { return };
        self.waiting -= batch.pushes.len();
        let outcomes = published.pushes.iter().map(Some).chain(std::iter::repeat(None));
        for (push, outcome) in batch.pushes.into_iter().zip(outcomes) {
            match outcome {
                Some(Ok(())) => {
                    push.permit.set_nobody(Nobody::NoMembers);
                    let members = usize::try_from(published.members).unwrap_or(usize::MAX);
                    push.permit.count_connections(members);
                }
                refused => {
                    let reason = refused.and_then(|refused| refused.as_ref().err());
                    if let Some(suppressed) = self.refusals_logged.allow() {
                        tracing::warn!(suppressed, %room, ?reason, "Redis refused a push to a room");
                    }
                    push.permit.refuse(PushError::Refused);
                }
            }
        }
        Self::set_ready(queue, &mut self.ready, room);
    }

    fn set_ready(queue: &mut Queue, ready: &mut VecDeque<RoomId>, room: &RoomId) {
        if !std::mem::replace(&mut queue.is_ready, true) {
            ready.push_back(room.clone());
        }
    }

    /// A batch failed: it may or may not have been carried out. `is_final`: sending it again is of no use.
    pub fn on_failed(&mut self, room: &RoomId, number: u64, is_final: bool, now_ms: u64) {
        let Some(queue) = self.rooms.get_mut(room) else { return };
        let Some(batch) = queue.batch.as_mut().filter(|batch| batch.number == number) else {
            return;
        };
        if is_final || batch.since_ms + self.wait_max_ms <= now_ms {
            let error = if is_final { PushError::Refused } else { PushError::Unreachable };
            self.waiting -= batch.pushes.len();
            batch.pushes.iter().for_each(|push| push.permit.refuse(error));
            queue.batch = None;
            Self::set_ready(queue, &mut self.ready, room);
        } else {
            batch.again_at_ms = Some(now_ms + RETRY_MS);
        }
    }

    /// Does what is due. `is_up`: there is a connection.
    pub fn tick(&mut self, is_up: bool, now_ms: u64) {
        let Self { rooms, requests, writer, ready, waiting, wait_max_ms, .. } = self;
        for (room, queue) in rooms.iter_mut() {
            if let Some(batch) = &mut queue.batch
                && batch.again_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
            {
                if batch.since_ms + *wait_max_ms <= now_ms {
                    *waiting -= batch.pushes.len();
                    batch.pushes.iter().for_each(|push| push.permit.refuse(PushError::Unreachable));
                    queue.batch = None;
                    Self::set_ready(queue, ready, room);
                } else if is_up {
                    batch.again_at_ms = None;
                    requests.push_back(request(writer, room, batch));
                }
            }
            let is_late = |(since_ms, _): &(u64, Push)| *since_ms + *wait_max_ms <= now_ms;
            while queue.waiting.front().is_some_and(is_late) {
                let late = queue.waiting.pop_front();
                *waiting -= 1;
                late.into_iter().for_each(|(_, push)| push.permit.refuse(PushError::Unreachable));
            }
        }
        if !is_up {
            // The turn of a room does not come as long as there is no connection.
            ready.retain(|room| rooms.get(room).is_some_and(|queue| !queue.is_empty()));
            rooms.retain(|_, queue| !queue.is_empty());
        }
    }

    /// The thread ends: refuses what waits.
    pub fn refuse_all(&mut self) {
        for queue in self.rooms.drain().map(|(_, queue)| queue) {
            let sent = queue.batch.into_iter().flat_map(|batch| batch.pushes);
            let waiting = queue.waiting.into_iter().map(|(_, push)| push);
            sent.chain(waiting).for_each(|push| push.permit.refuse(PushError::Stopping));
        }
        self.waiting = 0;
    }
}

fn request(writer: &str, room: &RoomId, batch: &Batch) -> Request {
    let pushes = batch.pushes.iter().map(|push| PushArgs {
        kind: push.kind,
        biz_data: &push.biz_data,
        key: push.key(),
        ttl_ms: push.ttl_ms(),
    });
    let cmd = contract::publish_many(room, writer, batch.number, pushes);
    Request { room: room.clone(), number: batch.number, cmd }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use tidegate_backend::publisher::{CommandOutcome, Report};

    use super::*;
    use crate::shard::command::CommandLimiter;

    struct World {
        publishing: Publishing,
        limiter: Arc<CommandLimiter>,
    }

    impl World {
        fn new() -> Self {
            let publishing = Publishing::new("writer".into(), 1_000);
            Self { publishing, limiter: Arc::new(CommandLimiter::new(1_000, 1 << 30)) }
        }

        fn push(
            &mut self,
            bytes: usize,
            options: PushOptions,
            now_ms: u64,
        ) -> Receiver<CommandOutcome> {
            let (sender, outcome) = mpsc::channel();
            let mut report: Option<Report> = Some(Box::new(move |outcome| {
                sender.send(outcome).unwrap();
            }));
            let permit = self.limiter.admit(bytes, &mut report).unwrap();
            let biz_data = vec![0; bytes].into();
            let options = Some(Box::new(options));
            self.publishing.push(&room(), Push { kind: 5, biz_data, options, permit }, now_ms);
            outcome
        }

        /// The numbers of the requests, and how many pushes each has.
        fn requests(&mut self, now_ms: u64) -> Vec<(u64, usize)> {
            std::iter::from_fn(|| self.publishing.next_request(|_| false, now_ms))
                .map(|request| (request.number, (request.cmd.args_iter().count() - 7) / 4))
                .collect()
        }

        fn answer(&mut self, number: u64, pushes: Vec<Result<(), String>>) {
            self.publishing.on_published(&room(), number, &Published { members: 3, pushes });
        }
    }

    fn room() -> RoomId {
        RoomId::new("quiz").unwrap()
    }

    #[test]
    fn a_room_has_one_batch_under_way_and_the_next_takes_what_came_meanwhile() {
        let mut world = World::new();
        let none = PushOptions::default;
        let first = world.push(10, none(), 0);
        assert_eq!(world.requests(0), [(1, 1)]);
        let others: Vec<_> = (0..100).map(|_| world.push(10, none(), 1)).collect();
        assert!(world.requests(1).is_empty());
        world.answer(1, vec![Ok(())]);
        assert_eq!(first.try_recv().unwrap(), Ok(Done::with_connections(3)));
        assert_eq!(world.requests(2), [(2, BATCH_PUSHES_MAX)]);
        let outcomes =
            (0..BATCH_PUSHES_MAX).map(|n| if n == 1 { Err("no".into()) } else { Ok(()) });
        world.answer(2, outcomes.collect());
        assert_eq!(others[1].try_recv().unwrap(), Err(PushError::Refused));
        assert_eq!(others[2].try_recv().unwrap(), Ok(Done::with_connections(3)));
        assert_eq!(world.requests(3), [(3, 100 - BATCH_PUSHES_MAX)]);
        world.answer(3, vec![Ok(()); 100 - BATCH_PUSHES_MAX]);
        assert!(world.publishing.is_empty() && world.requests(4).is_empty());
        assert!(world.publishing.rooms.is_empty());
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_and_a_longer_push_goes_alone() {
        let mut world = World::new();
        for bytes in [2 * BATCH_BYTES_MAX, BATCH_BYTES_MAX / 2, BATCH_BYTES_MAX / 2, 1] {
            drop(world.push(bytes, PushOptions::default(), 0));
        }
        for (number, pushes) in [(1, 1), (2, 2), (3, 1)] {
            assert_eq!(world.requests(0), [(number, pushes)]);
            world.answer(number, vec![Ok(()); pushes]);
        }
    }

    #[test]
    fn a_batch_that_failed_is_sent_again_under_its_number() {
        let mut world = World::new();
        let outcome = world.push(10, PushOptions::default(), 0);
        assert_eq!(world.requests(0), [(1, 1)]);
        world.publishing.on_failed(&room(), 1, false, 100);
        drop(world.push(10, PushOptions::default(), 100));
        assert!(world.requests(100).is_empty(), "no push overtakes it");
        world.publishing.tick(false, 100 + RETRY_MS);
        assert!(world.requests(100 + RETRY_MS).is_empty(), "there is no connection");
        world.publishing.tick(true, 100 + RETRY_MS);
        assert_eq!(world.requests(100 + RETRY_MS), [(1, 1)]);
        world.publishing.on_failed(&room(), 1, true, 400);
        assert_eq!(outcome.try_recv().unwrap(), Err(PushError::Refused));
        assert_eq!(world.requests(400), [(2, 1)]);
    }

    #[test]
    fn a_push_waits_for_redis_as_long_as_it_may() {
        let mut world = World::new();
        let sent = world.push(10, PushOptions::default(), 0);
        assert_eq!(world.requests(0), [(1, 1)]);
        let waiting = world.push(10, PushOptions::default(), 0);
        world.publishing.on_failed(&room(), 1, false, 10);
        world.publishing.tick(false, 999);
        assert!(sent.try_recv().is_err() && waiting.try_recv().is_err());
        world.publishing.tick(false, 1_000);
        assert_eq!(sent.try_recv().unwrap(), Err(PushError::Unreachable));
        assert_eq!(waiting.try_recv().unwrap(), Err(PushError::Unreachable));
        assert!(world.publishing.is_empty());
        for now_ms in [2_000, 3_000, 4_000] {
            drop(world.push(10, PushOptions::default(), now_ms - 1_000));
            world.publishing.tick(false, now_ms);
        }
        let Publishing { rooms, ready, .. } = &world.publishing;
        assert!(rooms.is_empty() && ready.is_empty(), "nothing is left of what was refused");
        let stopped = world.push(10, PushOptions::default(), 1_000);
        world.publishing.refuse_all();
        assert_eq!(stopped.try_recv().unwrap(), Err(PushError::Stopping));
    }

    #[test]
    fn a_time_to_live_runs_while_a_push_waits() {
        let mut world = World::new();
        let ttl = |ms| {
            let mut options = PushOptions::default();
            options.ttl = Some(Duration::from_millis(ms));
            options
        };
        let (short, long) = (world.push(10, ttl(100), 0), world.push(10, ttl(500), 0));
        let request = world.publishing.next_request(|_| false, 200).unwrap();
        let last = request.cmd.args_iter().last().map(|arg| format!("{arg:?}"));
        assert!(last.unwrap().contains(&format!("{:?}", b"300")), "{:?}", request.cmd);
        assert_eq!(short.try_recv().unwrap(), Ok(Done::nobody(Nobody::Expired)));
        assert!(long.try_recv().is_err());
    }
}
