//! Commands to users on their way to other gateways: pushes, kicks and expulsions.
//!
//! A partition of users has one batch under way, and what comes meanwhile waits for the next one. So what is sent to one
//! user keeps its order, and the more pushes come the fewer commands they take. Redis passes each push to the
//! gateways that have the user, and to no other. The sessions at this gateway get it directly.
//!
//! A push may have been carried out when its answer is lost. Without a key it is not sent again then, since it would come
//! twice, and it is refused as unreachable. A push with a key, a kick or an expulsion is sent again, since it does no
//! more the second time.
//!
//! Each command holds its permit until it has its outcome, so the bound on commands bounds what waits here.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use redis::{Cmd, Value};
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{PushError, UserId};

use super::{Fault, Tag};
use crate::cluster::contract::PushArgs;
use crate::cluster::message::UserOrder;
use crate::cluster::user_contract::{self as contract, PARTITIONS, partition_of};
use crate::shard::command::CommandPermit;

/// Pushes of one batch, at most.
const BATCH_PUSHES_MAX: usize = 64;

/// Bytes of one batch, at most, or one longer push.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Time until a batch that failed is sent again, in microseconds.
const RETRY_US: u64 = 250_000;

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Commands to users that Redis carried out.
    pub commands: u64,
    /// Gateways that heard one.
    pub heard: u64,
}

/// A command that waits.
#[derive(Debug)]
struct Waiting {
    user_id: UserId,
    order: UserOrder,
    permit: Arc<CommandPermit>,
    since_us: u64,
}

impl Waiting {
    const fn bytes(&self) -> usize {
        match &self.order {
            UserOrder::Push { biz_data, .. } => biz_data.len(),
            UserOrder::Kick | UserOrder::Expel(_) => 0,
        }
    }

    const fn is_push(&self) -> bool {
        matches!(self.order, UserOrder::Push { .. })
    }

    /// The arguments of a push. It has waited until now, so it lives no longer than the rest of its time.
    fn push(&self, now_us: u64) -> Option<(UserId, PushArgs<'_>)> {
        let UserOrder::Push { kind, biz_data, options } = &self.order else { return None };
        let key = options.as_ref().and_then(|options| options.key.as_deref()).unwrap_or_default();
        let ttl = options.as_ref().and_then(|options| options.ttl);
        let waited_ms = now_us.saturating_sub(self.since_us) / 1000;
        let ttl_ms = ttl.map_or(0, |ttl| {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            ttl_ms.saturating_sub(waited_ms).max(1)
        });
        Some((self.user_id, PushArgs { kind: *kind, biz_data, key, ttl_ms }))
    }

    /// Whether it does no more the second time.
    fn is_repeatable(&self) -> bool {
        match &self.order {
            UserOrder::Push { options, .. } => {
                options.as_ref().is_some_and(|options| options.key.is_some())
            }
            UserOrder::Kick | UserOrder::Expel(_) => true,
        }
    }

    /// Redis answered how many gateways heard it.
    fn end(self, heard: u64) {
        self.permit.count_connections(usize::try_from(heard).unwrap_or(usize::MAX));
    }

    fn refuse(self, error: PushError) {
        self.permit.refuse(error);
    }
}

/// Pushes, or one command of another kind.
#[derive(Debug)]
struct Batch {
    number: u64,
    commands: Vec<Waiting>,
}

#[derive(Debug, Default)]
struct Queue {
    batch: Option<Batch>,
    waiting: VecDeque<Waiting>,
    retry_at_us: u64,
    /// It is in the list of queues that may have a batch to start.
    is_touched: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Sending {
    queues: Vec<Queue>,
    wait_max_us: u64,
    touched: VecDeque<u8>,
    next_number: u64,
    refusals_logged: LogLimit,
    counters: Counters,
}

impl Sending {
    /// Nothing waits. A command that waits `wait_max_us` is refused.
    #[must_use]
    pub fn new(wait_max_us: u64) -> Self {
        Self {
            queues: (0..PARTITIONS).map(|_| Queue::default()).collect(),
            wait_max_us,
            touched: VecDeque::new(),
            next_number: 0,
            refusals_logged: LogLimit::new(),
            counters: Counters::default(),
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Commands without an outcome.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let sent = |queue: &Queue| queue.batch.as_ref().map_or(0, |batch| batch.commands.len());
        self.queues.iter().map(|queue| queue.waiting.len() + sent(queue)).sum()
    }

    /// Takes a command.
    pub fn send(
        &mut self,
        user_id: UserId,
        order: UserOrder,
        permit: Arc<CommandPermit>,
        now_us: u64,
    ) {
        let index = partition_of(user_id);
        let waiting = Waiting { user_id, order, permit, since_us: now_us };
        self.queues[usize::from(index)].waiting.push_back(waiting);
        self.touch(index);
    }

    fn touch(&mut self, index: u8) {
        if !mem::replace(&mut self.queues[usize::from(index)].is_touched, true) {
            self.touched.push_back(index);
        }
    }

    /// The next command for Redis. Is asked only while there is a connection.
    pub fn next_request(&mut self, gateway: &str, now_us: u64) -> Option<(Tag, Cmd)> {
        while let Some(index) = self.touched.pop_front() {
            let queue = &mut self.queues[usize::from(index)];
            queue.is_touched = false;
            if queue.batch.is_some() || queue.retry_at_us > now_us {
                continue;
            }
            let commands = take_batch(&mut queue.waiting);
            let Some(first) = commands.first() else { continue };
            let cmd = match &first.order {
                UserOrder::Push { .. } => {
                    let pushes: Vec<_> =
                        commands.iter().filter_map(|command| command.push(now_us)).collect();
                    contract::push_users(index, gateway, pushes.into_iter())
                }
                UserOrder::Kick => contract::kick(gateway, first.user_id),
                UserOrder::Expel(room) => contract::expel(gateway, first.user_id, room),
            };
            self.next_number += 1;
            let number = self.next_number;
            queue.batch = Some(Batch { number, commands });
            return Some((Tag::Send(index, number), cmd));
        }
        None
    }

    /// The answer to a batch.
    pub fn on_sent(&mut self, index: u8, number: u64, answer: Result<&Value, Fault>, now_us: u64) {
        let queue = &mut self.queues[usize::from(index)];
        let Some(batch) = queue.batch.take_if(|batch| batch.number == number) else { return };
        match answer {
            Ok(answer) => self.end(batch.commands, answer),
            Err(Fault::Refused) => refuse_all(batch.commands, PushError::Refused),
            Err(fault) => {
                queue.retry_at_us = now_us + RETRY_US;
                for command in batch.commands.into_iter().rev() {
                    if !command.is_repeatable() && fault == Fault::Unknown {
                        command.refuse(PushError::Unreachable);
                    } else {
                        queue.waiting.push_front(command);
                    }
                }
            }
        }
        self.touch(index);
    }

    fn end(&mut self, commands: Vec<Waiting>, answer: &Value) {
        let is_push = commands.first().is_some_and(Waiting::is_push);
        let outcomes = if is_push {
            contract::read_pushed(answer)
        } else {
            contract::read_heard(answer).map(|heard| vec![Ok(heard)])
        };
        let outcomes = outcomes.unwrap_or_default().into_iter().map(Some);
        let outcomes = outcomes.chain(std::iter::repeat(None));
        for (command, outcome) in commands.into_iter().zip(outcomes) {
            match outcome {
                Some(Ok(heard)) => {
                    self.counters.commands += 1;
                    self.counters.heard += heard;
                    command.end(heard);
                }
                refused => {
                    let reason = refused.and_then(Result::err);
                    if let Some(suppressed) = self.refusals_logged.allow() {
                        let user = command.user_id;
                        tracing::warn!(
                            suppressed,
                            user,
                            ?reason,
                            "Redis refused a command to a user"
                        );
                    }
                    command.refuse(PushError::Refused);
                }
            }
        }
    }

    /// Refuses what has waited too long, and starts batches again that failed.
    pub fn tick(&mut self, now_us: u64) {
        for index in 0..PARTITIONS {
            let queue = &mut self.queues[usize::from(index)];
            let wait_max_us = self.wait_max_us;
            let is_late = |waiting: &Waiting| waiting.since_us + wait_max_us <= now_us;
            while queue.waiting.front().is_some_and(is_late) {
                let late = queue.waiting.pop_front();
                late.into_iter().for_each(|late| late.refuse(PushError::Unreachable));
            }
            if !queue.waiting.is_empty() {
                self.touch(index);
            }
        }
    }

    /// The thread ends: refuses what waits.
    pub fn refuse_all(&mut self) {
        for queue in &mut self.queues {
            let batch = queue.batch.take().map(|batch| batch.commands).unwrap_or_default();
            refuse_all(batch, PushError::Stopping);
            refuse_all(mem::take(&mut queue.waiting), PushError::Stopping);
        }
    }
}

fn refuse_all(commands: impl IntoIterator<Item = Waiting>, error: PushError) {
    commands.into_iter().for_each(|command| command.refuse(error));
}

/// Takes pushes from the front of a queue, or one command of another kind.
fn take_batch(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < BATCH_PUSHES_MAX
        && let Some(next) = waiting.front()
        && (batch.is_empty() || next.is_push() && bytes + next.bytes() <= BATCH_BYTES_MAX)
    {
        bytes += next.bytes();
        let is_push = next.is_push();
        batch.extend(waiting.pop_front());
        if !is_push {
            break;
        }
    }
    batch
}
