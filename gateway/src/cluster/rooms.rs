//! The rooms that this gateway follows: what it knows of their shared logs, and how it keeps up with them.
//!
//! A room is followed while a shard of this gateway is its home. Following it takes two steps: subscribe to its channel,
//! then *open* it, which returns what the log holds. From then on pushes come through the channel. Each
//! confirmation of a subscription opens the room again, whatever the reason: a new connection, a failover, a slot that
//! has moved. So a push that was published while there was no subscription is fetched. A push with a later offset
//! than the next one also opens the room again, and a few rooms are opened again each second in any case.
//!
//! A room has at most one request under way, and a bounded number of rooms have one, so that a return of Redis is no
//! stampede. What a shard is given is never renumbered: its next push is the next of the log. Otherwise the shard is
//! notified first that the log has another id or that pushes are gone ([`RoomMessage::Renamed`]).
//!
//! This part does no I/O and reads no clock.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use tidegate_backend::RoomId;

use super::contract::{Opened, RoomEvent};
use crate::shard::command::CommandLimiter;
use crate::shard::rooms::log::LogId;
use crate::shard::rooms::message::{Bar, FetchedLog, RoomMessage, SharedPush};

/// Rooms with a request under way, at most.
const UNDER_WAY_MAX: usize = 256;

/// Time until a request that failed is made again, in milliseconds.
const RETRY_MS: u64 = 500;

/// Time until a subscription without any outcome is made again, in milliseconds: longer than a command may take. When a
/// Cluster's node ends a subscription as its slot moves, the client may take that for the outcome of another subscription, whose
/// own outcome is then lost.
const CONFIRM_MS: u64 = 10_000;

/// How long a shard waits for a room at most, in milliseconds: then the room opens with a local log.
pub const PATIENCE_MS: u64 = 2_000;

/// Time between two openings of a room to which nothing happens, in milliseconds.
const CHECK_EVERY_MS: u64 = 30_000;

/// Rooms that one tick opens again only to check them, at most.
const CHECKS_MAX: usize = 64;

/// What this part asks for.
#[derive(Debug)]
pub enum Output {
    /// Subscribe to the room's channel.
    Subscribe(RoomId),
    /// End the subscription.
    Unsubscribe(RoomId),
    /// Ask what the log holds: after an offset, or the newest pushes.
    Open(Open),
    /// Post a message to a shard.
    Post(u16, RoomMessage),
}

/// A request for what a log holds.
#[derive(Clone, Debug)]
pub struct Open {
    /// The room.
    pub room: RoomId,
    /// After this offset. `None`: the newest.
    pub after: Option<u64>,
    /// The answer has to carry it.
    pub number: u64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Pushes that were passed to shards.
    pub pushes: u64,
    /// Pushes that came again, and were ignored.
    pub repeated: u64,
    /// Times that a later push than the next one came, and the room was opened again.
    pub holes: u64,
    /// Times that a log had another id than before.
    pub new_logs: u64,
    /// Pushes that Redis no longer held when they were missed.
    pub lost: u64,
    /// Fleeting pushes that were dropped because too many pushes are under way.
    pub dropped: u64,
    /// Times that a room opened without its log, because Redis did not answer in time.
    pub opened_alone: u64,
}

#[derive(Debug)]
struct Room {
    home: u16,
    phase: Phase,
    /// What the shard was given. `None`: it waits.
    known: Option<Known>,
    is_fleeting: bool,
    /// The newest offset that the channel has announced.
    announced: u64,
    /// When the shard began to wait, or the room was opened last.
    since_ms: u64,
    /// The latest time until which tickets are worthless, as the shard knows.
    barred_until_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is in the queue of those to subscribe to.
    Queued,
    /// The subscription is under way. It is made again at this time if it is not confirmed before.
    Subscribing(u64),
    /// The request with this number is under way.
    Opening(u64),
    /// Pushes come by the channel.
    Live,
    /// The last request failed: it is made again later. `is_subscribed`: what has to be made.
    Failed { is_subscribed: bool },
}

impl Phase {
    const fn is_under_way(self) -> bool {
        matches!(self, Self::Subscribing(_) | Self::Opening(_))
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// `None`: the gateway's own, since the room is fleeting or Redis did not answer in time.
    log: Option<LogId>,
    /// The offset that the next push has.
    end: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Rooms {
    rooms: HashMap<RoomId, Room>,
    /// Rooms to subscribe to, or to open, when fewer requests are under way.
    queue: VecDeque<RoomId>,
    under_way: usize,
    /// Rooms that were subscribed to, and when that is done again if it is not confirmed before: in this order.
    subscribing: VecDeque<(u64, RoomId)>,
    /// Rooms whose request failed, and when it is made again: in this order.
    failed: VecDeque<(u64, RoomId)>,
    /// Rooms that shards wait for, and since when: in this order.
    waited_for: VecDeque<(u64, RoomId)>,
    /// Rooms by the time at which they are checked: in this order.
    checks: VecDeque<(u64, RoomId)>,
    is_up: bool,
    /// The time of the last tick.
    now_ms: u64,
    next_number: u64,
    /// The bound on pushes that shards have not offered to their members yet.
    limiter: Arc<CommandLimiter>,
    /// Gives permits to what ends memberships, which no bound may hold back.
    bars: Arc<CommandLimiter>,
    /// This gateway: it does not do again what it did itself.
    gateway: String,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Rooms {
    /// No room is followed, and Redis is not there yet. `limiter`: the bound on pushes that come from Redis.
    #[must_use]
    pub fn new(limiter: Arc<CommandLimiter>, gateway: String) -> Self {
        Self {
            bars: Arc::new(CommandLimiter::new(usize::MAX, usize::MAX)),
            gateway,
            rooms: HashMap::new(),
            queue: VecDeque::new(),
            under_way: 0,
            subscribing: VecDeque::new(),
            failed: VecDeque::new(),
            waited_for: VecDeque::new(),
            checks: VecDeque::new(),
            is_up: false,
            now_ms: 0,
            next_number: 0,
            limiter,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Rooms that are followed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Rooms that are not up to date: to be subscribed to, or opened.
    #[must_use]
    pub fn behind(&self) -> usize {
        self.queue.len() + self.under_way + self.failed.len()
    }

    /// Whether the room's pushes come by its channel: its home has what the log held.
    #[must_use]
    pub fn is_live(&self, room: &RoomId) -> bool {
        self.rooms.get(room).is_some_and(|room| room.phase == Phase::Live)
    }

    /// The home of a followed room.
    #[must_use]
    pub fn home(&self, room: &RoomId) -> Option<u16> {
        self.rooms.get(room).map(|room| room.home)
    }

    /// The next thing to do for this part.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether a push to this room has to wait: its home waits for the log, and a join was given before the push.
    #[must_use]
    pub fn must_wait(&self, room: &RoomId) -> bool {
        self.rooms.get(room).is_some_and(|room| room.known.is_none())
    }

    /// A shard needs a room.
    pub fn follow(&mut self, room: &RoomId, home: u16, is_fleeting: bool, now_ms: u64) {
        self.unfollow(room);
        // Everybody's room is open at its home from the start.
        let known = room.is_everybody().then_some(Known { log: None, end: u64::MAX });
        if known.is_none() {
            self.waited_for.push_back((now_ms + PATIENCE_MS, room.clone()));
        }
        let followed = Room {
            home,
            phase: Phase::Queued,
            known,
            is_fleeting,
            announced: 0,
            since_ms: now_ms,
            barred_until_s: 0,
        };
        self.rooms.insert(room.clone(), followed);
        self.queue.push_back(room.clone());
        self.start_queued();
    }

    /// No shard needs it now.
    pub fn unfollow(&mut self, room: &RoomId) {
        let Some(ended) = self.rooms.remove(room) else { return };
        self.under_way -= usize::from(ended.phase.is_under_way());
        if ended.phase == Phase::Queued {
            self.queue.retain(|queued| queued != room);
        }
        self.outputs.push_back(Output::Unsubscribe(room.clone()));
        self.start_queued();
    }

    /// There is a connection.
    pub fn on_up(&mut self) {
        self.is_up = true;
        self.queue.clear();
        self.subscribing.clear();
        self.failed.clear();
        for (id, room) in &mut self.rooms {
            self.under_way -= usize::from(room.phase.is_under_way());
            room.phase = Phase::Queued;
            self.queue.push_back(id.clone());
        }
        // Everybody's room first: most clients are in no other.
        self.queue.make_contiguous().sort_by_key(|room| !room.is_everybody());
        self.start_queued();
    }

    /// The connection is lost.
    pub fn on_down(&mut self) {
        self.is_up = false;
    }

    /// The subscription to a room's channel is confirmed.
    pub fn on_subscribed(&mut self, room: &RoomId) {
        let Some(followed) = self.rooms.get(room) else { return };
        match followed.phase {
            Phase::Subscribing(_) => {
                self.under_way -= 1;
                self.open(room);
            }
            // Its answer may be from before the subscription.
            Phase::Opening(_) => {
                self.under_way -= 1;
                self.open(room);
            }
            Phase::Live | Phase::Failed { .. } => self.open(room),
            Phase::Queued => {}
        }
    }

    /// The server has ended the subscription, since the channel's slot has moved, or it was refused.
    pub fn on_unsubscribed(&mut self, room: &RoomId, now_ms: u64) {
        self.fail(room, false, now_ms);
    }

    /// A request to open a room failed.
    pub fn on_open_failed(&mut self, room: &RoomId, number: u64, now_ms: u64) {
        if self.rooms.get(room).is_some_and(|room| room.phase == Phase::Opening(number)) {
            self.fail(room, true, now_ms);
        }
    }

    fn fail(&mut self, room: &RoomId, is_subscribed: bool, now_ms: u64) {
        let Some(followed) = self.rooms.get_mut(room) else { return };
        let was_under_way = followed.phase.is_under_way();
        if !matches!(followed.phase, Phase::Failed { .. } | Phase::Queued) {
            self.failed.push_back((now_ms + RETRY_MS, room.clone()));
            followed.phase = Phase::Failed { is_subscribed };
        } else if !is_subscribed && followed.phase != Phase::Queued {
            followed.phase = Phase::Failed { is_subscribed };
        }
        self.under_way -= usize::from(was_under_way);
        self.start_queued();
    }

    /// Something came through a room's channel.
    pub fn on_event(&mut self, room: &RoomId, event: RoomEvent, now_ms: u64) {
        let Some(followed) = self.rooms.get_mut(room) else { return };
        let (is_live, known) = (followed.phase == Phase::Live, followed.known);
        match (event, known) {
            (RoomEvent::Fleeting(push), Some(_)) if followed.is_fleeting => {
                self.pass_fleeting(room, push);
            }
            // A fleeting push has no place in the log of a room that this gateway takes for durable.
            (RoomEvent::Fleeting(_), _) => {}
            (RoomEvent::Durable { log, push }, known) => {
                followed.announced = followed.announced.max(push.offset);
                let Some(known) = known.filter(|_| is_live) else { return };
                if known.log != Some(log) {
                    self.open(room);
                } else if push.offset < known.end {
                    self.counters.repeated += 1;
                } else if push.offset > known.end {
                    self.counters.holes += 1;
                    self.open(room);
                } else if !self.pass(room, push) {
                    self.fail(room, true, now_ms);
                }
            }
            (RoomEvent::Barred { bar, by }, known) => {
                // Before the log has arrived: the answer will hold it.
                if known.is_some() && by != self.gateway {
                    self.pass_bar(room, bar);
                }
            }
            (RoomEvent::NewLog, _) if is_live => self.open(room),
            (RoomEvent::NewLog, _) => followed.announced = u64::MAX,
        }
    }

    /// The answer to a request.
    pub fn on_opened(&mut self, room: &RoomId, number: u64, opened: Opened, now_ms: u64) {
        let Some(followed) = self.rooms.get_mut(room) else { return };
        if followed.phase != Phase::Opening(number) {
            return;
        }
        self.under_way -= 1;
        followed.phase = Phase::Live;
        followed.since_ms = now_ms;
        let announced = mem::take(&mut followed.announced);
        let (head, log) = (opened.head, opened.log);
        let is_whole = if followed.is_fleeting {
            self.give_fleeting(room, opened.barred);
            true
        } else {
            self.give(room, opened)
        };
        let end = self.rooms.get(room).and_then(|room| room.known).map_or(0, |known| known.end);
        if !is_whole {
            self.fail(room, true, now_ms);
        } else if end <= head || announced > head {
            tracing::trace!(%room, ?log, head, end, "there is more of a room's log");
            self.open(room);
        } else {
            self.checks.push_back((now_ms + CHECK_EVERY_MS, room.clone()));
        }
        self.start_queued();
    }

    /// Passes what a log holds to the room's home. Returns whether the home could take all of it.
    fn give(&mut self, room: &RoomId, opened: Opened) -> bool {
        let Opened { log, base, head, pushes, barred } = opened;
        let Some(followed) = self.rooms.get_mut(room) else { return true };
        let home = followed.home;
        let (known, known_s) = (followed.known, followed.barred_until_s);
        let newest_s = barred.iter().map(|bar| bar.until_s).max();
        followed.barred_until_s = known_s.max(newest_s.unwrap_or(0));
        let Some(known) = known.filter(|known| known.log.is_some()) else {
            // The shard waits, or has a local log.
            let first = pushes.first().map_or(head + 1, |push| push.offset);
            followed.known = Some(Known { log: Some(log), end: head + 1 });
            let log = FetchedLog { id: Some(log), first, pushes, barred };
            self.post(home, RoomMessage::Fetched { room: room.clone(), log });
            return true;
        };
        // Messages that did not come through the channel.
        for bar in barred.into_iter().filter(|bar| bar.until_s > known_s) {
            self.pass_bar(room, bar);
        }
        let mut end = known.end;
        if known.log != Some(log) {
            self.counters.new_logs += 1;
            // What the home holds above `base` was lost. The request was for what follows on `end`.
            let cut = end.min(base + 1);
            self.know(room, log, cut);
            let room = room.clone();
            self.post(home, RoomMessage::Renamed { room, id: log, cut, next: cut });
            if cut < end {
                return true;
            }
            end = cut;
        }
        let next = pushes.first().map_or(head + 1, |push| push.offset);
        if next > end {
            self.counters.lost += next - end;
            self.know(room, log, next);
            let room = room.clone();
            self.post(home, RoomMessage::Renamed { room, id: log, cut: end, next });
        }
        pushes.into_iter().all(|push| self.pass(room, push))
    }

    fn know(&mut self, room: &RoomId, log: LogId, end: u64) {
        if let Some(followed) = self.rooms.get_mut(room) {
            followed.known = Some(Known { log: Some(log), end });
        }
    }

    /// A fleeting room's log is the gateway's own.
    fn give_fleeting(&mut self, room: &RoomId, barred: Vec<Bar>) {
        let Some(followed) = self.rooms.get_mut(room) else { return };
        let newest_s = barred.iter().map(|bar| bar.until_s).max().unwrap_or(0);
        let known_s = followed.barred_until_s;
        followed.barred_until_s = known_s.max(newest_s);
        if followed.known.is_some() {
            let news = barred.into_iter().filter(|bar| bar.until_s > known_s);
            news.for_each(|bar| self.pass_bar(room, bar));
        } else {
            followed.known = Some(Known { log: None, end: u64::MAX });
            let log = FetchedLog { id: None, first: 1, pushes: Vec::new(), barred };
            let (home, room) = (followed.home, room.clone());
            self.post(home, RoomMessage::Fetched { room, log });
        }
    }

    /// Passes the next push of a log to the room's home. Returns whether there was room for it.
    fn pass(&mut self, room: &RoomId, push: SharedPush) -> bool {
        let Some(Room { home, known: Some(known), .. }) = self.rooms.get_mut(room) else {
            return true;
        };
        if push.offset < known.end {
            self.counters.repeated += 1;
            return true;
        }
        let Ok(permit) = self.limiter.admit(push.biz_data.len(), &mut None) else { return false };
        let (home, missing_from, log) = (*home, known.end, known.log);
        known.end = push.offset + 1;
        if let Some(id) = log.filter(|_| push.offset > missing_from) {
            // An operator has deleted entries of the stream.
            self.counters.lost += push.offset - missing_from;
            let (room, next) = (room.clone(), push.offset);
            self.post(home, RoomMessage::Renamed { room, id, cut: missing_from, next });
        }
        self.counters.pushes += 1;
        self.post(home, RoomMessage::Shared { room: room.clone(), push, permit });
        true
    }

    fn pass_fleeting(&mut self, room: &RoomId, push: SharedPush) {
        let Some(Room { home, .. }) = self.rooms.get(room) else { return };
        let Ok(permit) = self.limiter.admit(push.biz_data.len(), &mut None) else {
            self.counters.dropped += 1;
            return;
        };
        self.counters.pushes += 1;
        self.post(*home, RoomMessage::Shared { room: room.clone(), push, permit });
    }

    /// Passes on which users are barred. What the shard does not know yet ends memberships too.
    fn pass_bar(&mut self, room: &RoomId, bar: Bar) {
        let Some(followed) = self.rooms.get_mut(room) else { return };
        followed.barred_until_s = followed.barred_until_s.max(bar.until_s);
        let home = followed.home;
        // A bar is a few bytes, and there are few: it is never refused.
        let permit = self.bars.admit(0, &mut None);
        let Ok(permit) = permit else { return };
        self.post(home, RoomMessage::Barred { room: room.clone(), bar, ends: true, permit });
    }

    fn post(&mut self, home: u16, message: RoomMessage) {
        self.outputs.push_back(Output::Post(home, message));
    }

    /// Asks what a log holds, now or when fewer requests are under way. The room has no request under way.
    fn open(&mut self, room: &RoomId) {
        let Some(followed) = self.rooms.get_mut(room) else { return };
        if self.under_way >= UNDER_WAY_MAX {
            followed.phase = Phase::Failed { is_subscribed: true };
            self.failed.push_back((self.now_ms + RETRY_MS, room.clone()));
            return;
        }
        self.next_number += 1;
        let number = self.next_number;
        followed.phase = Phase::Opening(number);
        let known = followed.known.filter(|known| known.log.is_some());
        let after = known.map(|known| known.end - 1);
        self.under_way += 1;
        let open = Open { room: room.clone(), after, number };
        self.outputs.push_back(Output::Open(open));
    }

    /// Starts requests of queued rooms, as many as may be under way.
    fn start_queued(&mut self) {
        while self.is_up
            && self.under_way < UNDER_WAY_MAX
            && let Some(room) = self.queue.pop_front()
        {
            if let Some(followed) = self.rooms.get_mut(&room)
                && followed.phase == Phase::Queued
            {
                let again_ms = self.now_ms + CONFIRM_MS;
                followed.phase = Phase::Subscribing(again_ms);
                self.under_way += 1;
                self.subscribing.push_back((again_ms, room.clone()));
                self.outputs.push_back(Output::Subscribe(room));
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.open_alone(now_ms);
        if !self.is_up {
            return;
        }
        while let Some(room) = next_due(&mut self.subscribing, now_ms) {
            // It may have been subscribed to again since.
            let is_due =
                |room: &Room| matches!(room.phase, Phase::Subscribing(at_ms) if at_ms <= now_ms);
            if self.rooms.get(&room).is_some_and(is_due) {
                self.fail(&room, false, now_ms);
            }
        }
        while let Some(room) = next_due(&mut self.failed, now_ms) {
            match self.rooms.get_mut(&room).map(|room| &mut room.phase) {
                Some(Phase::Failed { is_subscribed: true }) => self.open(&room),
                Some(phase @ Phase::Failed { is_subscribed: false }) => {
                    *phase = Phase::Queued;
                    self.queue.push_back(room);
                }
                _ => {}
            }
        }
        for _ in 0..CHECKS_MAX {
            let Some(room) = next_due(&mut self.checks, now_ms) else { break };
            let is_due =
                |room: &Room| room.phase == Phase::Live && room.since_ms + CHECK_EVERY_MS <= now_ms;
            if self.rooms.get(&room).is_some_and(is_due) {
                self.open(&room);
            }
        }
        self.start_queued();
    }

    /// Opens rooms whose homes have waited long enough without a shared log. They get that later.
    fn open_alone(&mut self, now_ms: u64) {
        while let Some(room) = next_due(&mut self.waited_for, now_ms) {
            let Some(followed) = self.rooms.get_mut(&room) else { continue };
            // It may have been followed again since.
            if followed.known.is_none() && followed.since_ms + PATIENCE_MS <= now_ms {
                followed.known = Some(Known { log: None, end: u64::MAX });
                self.counters.opened_alone += 1;
                let (home, barred) = (followed.home, Vec::new());
                let log = FetchedLog { id: None, first: 1, pushes: Vec::new(), barred };
                self.post(home, RoomMessage::Fetched { room, log });
            }
        }
    }
}

/// Takes the first room of a queue if it is due.
fn next_due(queue: &mut VecDeque<(u64, RoomId)>, now_ms: u64) -> Option<RoomId> {
    queue.front().filter(|(at_ms, _)| *at_ms <= now_ms)?;
    queue.pop_front().map(|(_, room)| room)
}

#[cfg(test)]
mod tests;
