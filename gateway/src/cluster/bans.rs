//! Bans that hold at all gateways of a system.
//!
//! A stream of Redis has every change, in one order: bans, and their ends by operators. Each gateway appends its own changes, reads
//! all once a second after the entry that it read last, and applies them in that order, its own too. So all gateways
//! have the same bans, and nothing is missed while Redis is away. A hash has the operators' bans that hold: a gateway that starts
//! learns these also when bans that attackers caused have displaced them in the stream. How long a ban still lasts is by
//! Redis' clock. Rates and counts are not shared: that would be a command to Redis for each accept.
//!
//! One command is under way at a time, and reads come before changes. This part does no I/O and reads no clock.

use std::mem;
use std::sync::Arc;

use redis::{Cmd, Value, from_redis_value};

use super::user_contract;
use super::users::Fault;
use crate::limits::addresses::AddressLimits;
use crate::limits::ban_changes::BanChange;
use crate::limits::bans::Maker;
use crate::limits::prefix::Prefix;

/// The stream.
const CHANGES_KEY: &str = "tg1:bans";

/// The hash: an operator's ban by prefix, and its end in milliseconds since 1970 by Redis' clock.
const OPERATORS_KEY: &str = "tg1:bans:operators";

/// Changes that the stream keeps, about: as many as a gateway has bans of a kind.
const KEEP: usize = 65_536;

/// Entries that are read at once, at most.
const READ_MAX: usize = 1_000;

/// Time between two reads, and until a command that failed is repeated, in milliseconds.
const EVERY_MS: u64 = 1_000;

/// Time between two looks at Redis' clock, in milliseconds.
const CLOCK_EVERY_MS: u64 = 60_000;

/// A change that Redis refuses this many times is not shared.
const REFUSALS_MAX: u8 = 5;

/// The longest ban that is taken from Redis, in milliseconds: as long as an operator's may be.
const BAN_MS_MAX: u64 = 30 * 86_400_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Redis' clock.
    Clock,
    /// What was appended since the last read.
    Read,
    /// The operators' bans that hold.
    ReadOperators,
    /// Bans that have ended leave the hash.
    Prune,
    /// The change that is being shared changes the hash.
    Store,
    /// The change that is being shared is appended.
    Append,
}

/// A change on its way to other gateways.
#[derive(Clone, Copy, Debug)]
struct Sharing {
    change: BanChange,
    /// Numbers this gateway's changes.
    number: u64,
    /// The hash has it, or need not.
    is_stored: bool,
    /// The command was lost: a read shows whether it was carried out.
    is_in_doubt: bool,
    refusals: u8,
}

/// A command to be sent. Its answer has to carry the number.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct Request {
    pub number: u64,
    pub cmd: Cmd,
}

/// See the [module](self).
#[derive(Debug)]
pub struct SharedBans {
    limits: Arc<AddressLimits>,
    /// Names this gateway's run.
    gateway: String,
    under_way: Option<(u64, Command)>,
    requests: u64,
    sharing: Option<Sharing>,
    shared: u64,
    /// Redis' clock, less the shards'. `None`: unknown.
    redis_ahead_ms: Option<u64>,
    /// When Redis' clock is asked for again.
    clock_at_ms: u64,
    /// The entry that was read last; empty: none.
    last_id: String,
    /// When the stream is read next.
    read_at_ms: u64,
    /// The operators' bans are to be read once the stream was.
    lacks_operators: bool,
    /// Bans of the hash that have ended.
    ended: Vec<String>,
    /// No command before this.
    not_before_ms: u64,
}

impl SharedBans {
    /// Nothing was read yet.
    #[must_use]
    pub const fn new(limits: Arc<AddressLimits>, gateway: String) -> Self {
        Self {
            limits,
            gateway,
            under_way: None,
            requests: 0,
            sharing: None,
            shared: 0,
            redis_ahead_ms: None,
            clock_at_ms: 0,
            last_id: String::new(),
            read_at_ms: 0,
            lacks_operators: true,
            ended: Vec::new(),
            not_before_ms: 0,
        }
    }

    /// There is a new connection, perhaps to another server, which may have lost entries: all of them are read again.
    pub fn on_up(&mut self) {
        if let Some((_, Command::Append)) = self.under_way.take()
            && let Some(sharing) = &mut self.sharing
        {
            sharing.is_in_doubt = true;
        }
        self.last_id.clear();
        self.redis_ahead_ms = None;
        self.lacks_operators = true;
        (self.read_at_ms, self.not_before_ms) = (0, 0);
    }

    /// Whether all changes of this gateway are shared.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.sharing.is_none() && self.limits.has_shared_all()
    }

    /// The next command, if there is one to send. Its answer has to come to [`Self::on_answer`].
    pub fn next_request(&mut self, now_ms: u64) -> Option<Request> {
        if self.under_way.is_some() || now_ms < self.not_before_ms || !self.limits.shares_bans() {
            return None;
        }
        let (command, cmd) = match self.redis_ahead_ms {
            Some(redis_ahead_ms) if now_ms < self.clock_at_ms => {
                self.next_command(now_ms, now_ms + redis_ahead_ms)?
            }
            _ => (Command::Clock, user_contract::time()),
        };
        self.requests += 1;
        self.under_way = Some((self.requests, command));
        Some(Request { number: self.requests, cmd })
    }

    fn next_command(&mut self, now_ms: u64, redis_ms: u64) -> Option<(Command, Cmd)> {
        if now_ms >= self.read_at_ms {
            let mut cmd = redis::cmd("XRANGE");
            let from = match &*self.last_id {
                "" => "-".to_owned(),
                last_id => format!("({last_id}"),
            };
            cmd.arg(CHANGES_KEY).arg(from).arg("+").arg("COUNT").arg(READ_MAX);
            return Some((Command::Read, cmd));
        }
        if self.lacks_operators {
            let mut cmd = redis::cmd("HGETALL");
            cmd.arg(OPERATORS_KEY);
            return Some((Command::ReadOperators, cmd));
        }
        if !self.ended.is_empty() {
            let mut cmd = redis::cmd("HDEL");
            cmd.arg(OPERATORS_KEY).arg(mem::take(&mut self.ended));
            return Some((Command::Prune, cmd));
        }
        let sharing = match self.sharing {
            Some(sharing) => sharing,
            None => self.take_change(now_ms)?,
        };
        self.sharing = Some(sharing);
        if !sharing.is_stored {
            return Some((Command::Store, store(sharing.change, now_ms, redis_ms)));
        }
        Some((Command::Append, append(sharing, &self.gateway, now_ms)))
    }

    /// The next change that is still of use.
    fn take_change(&mut self, now_ms: u64) -> Option<Sharing> {
        loop {
            let change = self.limits.next_change()?;
            let has_ended = matches!(change, BanChange::Add { until_ms, .. } if until_ms <= now_ms);
            if !has_ended || change.is_operators() {
                self.shared += 1;
                let (number, is_stored) = (self.shared, !change.is_operators());
                let (is_in_doubt, refusals) = (false, 0);
                return Some(Sharing { change, number, is_stored, is_in_doubt, refusals });
            }
        }
    }

    /// The answer to a command. Returns how many entries can't be read.
    pub fn on_answer(&mut self, number: u64, answer: Result<Value, Fault>, now_ms: u64) -> u64 {
        let Some((_, command)) = self.under_way.take_if(|(it, _)| *it == number) else { return 0 };
        let answer = match answer {
            Ok(answer) => answer,
            Err(fault) => {
                self.on_fault(command, fault, now_ms);
                return 0;
            }
        };
        match command {
            Command::Clock => {
                self.clock_at_ms = now_ms + CLOCK_EVERY_MS;
                self.redis_ahead_ms =
                    user_contract::read_time(&answer).map(|us| (us / 1000).saturating_sub(now_ms));
                u64::from(self.redis_ahead_ms.is_none())
            }
            Command::Read => self.on_read(answer, now_ms),
            Command::ReadOperators => self.on_operators(answer, now_ms),
            Command::Prune => 0,
            Command::Store => {
                self.sharing.iter_mut().for_each(|sharing| sharing.is_stored = true);
                0
            }
            Command::Append => {
                self.sharing = None;
                0
            }
        }
    }

    fn on_fault(&mut self, command: Command, fault: Fault, now_ms: u64) {
        self.not_before_ms = now_ms + EVERY_MS;
        let Some(sharing) = &mut self.sharing else { return };
        match (command, fault) {
            (Command::Append, Fault::Unknown) => {
                (sharing.is_in_doubt, self.read_at_ms) = (true, now_ms);
            }
            (Command::Append | Command::Store, Fault::Refused | Fault::NotDone) => {
                sharing.refusals += 1;
                if sharing.refusals >= REFUSALS_MAX {
                    self.sharing = None;
                    self.limits.count_unshared();
                }
            }
            (Command::Store, Fault::Unknown) | (_, _) => {}
        }
    }

    fn on_read(&mut self, answer: Value, now_ms: u64) -> u64 {
        let Value::Array(entries) = answer else {
            self.read_at_ms = now_ms + EVERY_MS;
            return 1;
        };
        let is_all = entries.len() < READ_MAX;
        let mut unreadable = 0;
        for entry in entries {
            let Value::Array(parts) = entry else { continue };
            let mut parts = parts.into_iter();
            let id = parts.next().and_then(|id| from_redis_value::<String>(id).ok());
            let Some(id) = id else { continue };
            let entry = parts.next().and_then(|fields| self.read_entry(&id, fields, now_ms));
            self.last_id = id;
            match entry {
                Some((change, own_number)) => {
                    self.limits.apply_shared(change, own_number.is_some(), now_ms);
                    // The command that was lost was carried out.
                    self.sharing.take_if(|it| it.is_in_doubt && own_number == Some(it.number));
                }
                None => unreadable += 1,
            }
        }
        if is_all {
            self.read_at_ms = now_ms + EVERY_MS;
            self.sharing.iter_mut().for_each(|sharing| sharing.is_in_doubt = false);
        }
        unreadable
    }

    /// A change, and its number if it is this gateway's own.
    fn read_entry(&self, id: &str, fields: Value, now_ms: u64) -> Option<(BanChange, Option<u64>)> {
        let fields: Vec<(String, String)> = from_redis_value(fields).ok()?;
        let field =
            |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
        let prefix: Prefix = field("p")?.parse().ok()?;
        let lasts_ms: u64 = field("l")?.parse().ok()?;
        let maker = Maker::named(field("m")?)?;
        let number: u64 = field("n")?.parse().ok()?;
        let own_number = (field("g")? == self.gateway).then_some(number);
        if lasts_ms == 0 {
            return Some((BanChange::Lift { prefix }, own_number));
        }
        let appended_ms: u64 = id.split('-').next()?.parse().ok()?;
        let end_ms = appended_ms.saturating_add(lasts_ms.min(BAN_MS_MAX));
        let until_ms = self.on_own_clock(end_ms, now_ms);
        Some((BanChange::Add { prefix, maker, until_ms }, own_number))
    }

    /// The operators' bans that the stream may no longer have.
    fn on_operators(&mut self, answer: Value, now_ms: u64) -> u64 {
        self.lacks_operators = false;
        let Ok(bans) = from_redis_value::<Vec<(String, u64)>>(answer) else { return 1 };
        let mut unreadable = 0;
        for (text, end_ms) in bans {
            let Ok(prefix) = text.parse() else {
                unreadable += 1;
                continue;
            };
            if self.on_own_clock(end_ms, now_ms) <= now_ms {
                self.ended.push(text);
                continue;
            }
            let until_ms = self.on_own_clock(end_ms, now_ms).min(now_ms + BAN_MS_MAX);
            let maker = Maker::Operator;
            self.limits.apply_shared(BanChange::Add { prefix, maker, until_ms }, false, now_ms);
        }
        unreadable
    }

    /// A time by Redis' clock, on the shards' clock. Times before now are one millisecond ago.
    fn on_own_clock(&self, redis_ms: u64, now_ms: u64) -> u64 {
        let left_ms = redis_ms.checked_sub(now_ms + self.redis_ahead_ms.unwrap_or(0));
        left_ms.map_or(now_ms.saturating_sub(1), |left_ms| now_ms + left_ms)
    }
}

/// Changes the hash of operators' bans.
fn store(change: BanChange, now_ms: u64, redis_ms: u64) -> Cmd {
    match change {
        BanChange::Add { prefix, until_ms, .. } => {
            let mut cmd = redis::cmd("HSET");
            let end_ms = redis_ms + until_ms.saturating_sub(now_ms);
            cmd.arg(OPERATORS_KEY).arg(prefix.to_string()).arg(end_ms);
            cmd
        }
        BanChange::Lift { prefix } => {
            let mut cmd = redis::cmd("HDEL");
            cmd.arg(OPERATORS_KEY).arg(prefix.to_string());
            cmd
        }
    }
}

/// Appends a change. A lift has no time left.
fn append(sharing: Sharing, gateway: &str, now_ms: u64) -> Cmd {
    let (prefix, maker, lasts_ms) = match sharing.change {
        BanChange::Add { prefix, maker, until_ms } => {
            (prefix, maker, until_ms.saturating_sub(now_ms).max(1))
        }
        BanChange::Lift { prefix } => (prefix, Maker::Operator, 0),
    };
    let mut cmd = redis::cmd("XADD");
    cmd.arg(CHANGES_KEY).arg("MAXLEN").arg("~").arg(KEEP).arg("*");
    cmd.arg("p").arg(prefix.to_string()).arg("l").arg(lasts_ms);
    cmd.arg("m").arg(maker.name()).arg("g").arg(gateway).arg("n").arg(sharing.number);
    cmd
}

#[cfg(test)]
mod tests;
