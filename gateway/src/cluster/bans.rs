//! Bans that hold at all gateways of a system: a stream of Redis has every change, in one order.
//!
//! Each gateway appends the bans that it makes, and those that its operators end. It reads what others have appended, once a
//! second, after the entry that it read last. So nothing is missed while Redis is away, a gateway that starts learns the
//! bans that still hold, and the cost does not depend on the number of clients. A pub/sub channel would be faster by half a second,
//! and would need the stream all the same. Rates and counts are not shared: that would be a command to Redis for each accept.
//!
//! One command is under way at a time. This part does no I/O and reads no clock.

use std::sync::Arc;

use redis::{Cmd, Value, from_redis_value};

use crate::limits::addresses::AddressLimits;
use crate::limits::ban_changes::BanChange;
use crate::limits::bans::Maker;
use crate::limits::prefix::Prefix;

/// The stream.
const KEY: &str = "tg1:bans";

/// Changes that Redis keeps, about: as many as a gateway has bans of a kind.
const KEEP: usize = 65_536;

/// Entries that are read at once, at most.
const READ_MAX: usize = 1_000;

/// Time between two reads, and until a command that failed is repeated, in milliseconds.
const EVERY_MS: u64 = 1_000;

/// The longest ban that is taken from Redis, in milliseconds: as long as an operator's may be.
const BAN_MS_MAX: u64 = 30 * 86_400_000;

/// What the time is.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// On the shards' clock, in milliseconds.
    pub ms: u64,
    /// Since 1970, in milliseconds.
    pub unix_ms: u64,
}

/// The command that is under way.
#[derive(Debug)]
enum UnderWay {
    /// This change is being appended.
    Append(BanChange),
    Read,
}

/// See the [module](self).
#[derive(Debug)]
pub struct SharedBans {
    limits: Arc<AddressLimits>,
    /// Names this gateway's run. What it has appended itself is skipped.
    gateway: String,
    /// A change whose command failed. It may have been appended: a repetition changes nothing.
    failed: Option<BanChange>,
    under_way: Option<UnderWay>,
    /// The entry that was read last; empty: none.
    last_id: String,
    /// When the stream is read next.
    read_at_ms: u64,
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
            failed: None,
            under_way: None,
            last_id: String::new(),
            read_at_ms: 0,
            not_before_ms: 0,
        }
    }

    /// The next command, if there is one to send. Its answer has to come to [`Self::on_answer`].
    pub fn next_request(&mut self, now: Now) -> Option<Cmd> {
        if self.under_way.is_some() || now.ms < self.not_before_ms || !self.limits.shares_bans() {
            return None;
        }
        if let Some(change) = self.failed.take().or_else(|| self.limits.next_change()) {
            self.under_way = Some(UnderWay::Append(change));
            return Some(self.append(change, now));
        }
        if now.ms < self.read_at_ms {
            return None;
        }
        self.under_way = Some(UnderWay::Read);
        let mut cmd = redis::cmd("XRANGE");
        let from = if self.last_id.is_empty() { "-".into() } else { format!("({}", self.last_id) };
        cmd.arg(KEY).arg(from).arg("+").arg("COUNT").arg(READ_MAX);
        Some(cmd)
    }

    fn append(&self, change: BanChange, now: Now) -> Cmd {
        let (prefix, maker, end_unix_ms) = match change {
            BanChange::Add { prefix, maker, until_ms } => {
                (prefix, maker, now.unix_ms + until_ms.saturating_sub(now.ms))
            }
            BanChange::Lift { prefix } => (prefix, Maker::Operator, 0),
        };
        let mut cmd = redis::cmd("XADD");
        cmd.arg(KEY).arg("MAXLEN").arg("~").arg(KEEP).arg("*");
        cmd.arg("p").arg(prefix.to_string()).arg("e").arg(end_unix_ms);
        cmd.arg("m").arg(maker.name()).arg("g").arg(&self.gateway);
        cmd
    }

    /// Redis has answered, or the command failed: `None`. Returns how many entries can't be read.
    pub fn on_answer(&mut self, answer: Option<Value>, now: Now) -> u64 {
        match (self.under_way.take(), answer) {
            (Some(UnderWay::Append(change)), None) => {
                (self.failed, self.not_before_ms) = (Some(change), now.ms + EVERY_MS);
            }
            (Some(UnderWay::Read), None) => self.not_before_ms = now.ms + EVERY_MS,
            (Some(UnderWay::Read), Some(answer)) => return self.on_read(answer, now),
            (Some(UnderWay::Append(_)) | None, _) => {}
        }
        0
    }

    fn on_read(&mut self, answer: Value, now: Now) -> u64 {
        let Ok(entries) = from_redis_value::<Vec<(String, Vec<(String, String)>)>>(answer) else {
            self.read_at_ms = now.ms + EVERY_MS;
            return 1;
        };
        if entries.len() < READ_MAX {
            self.read_at_ms = now.ms + EVERY_MS;
        }
        let mut unreadable = 0;
        for (id, fields) in entries {
            self.last_id = id;
            match read_change(&fields, now) {
                Some((by, _)) if by == self.gateway => {}
                Some((_, change)) => self.limits.hear(change, now.ms),
                None => unreadable += 1,
            }
        }
        unreadable
    }
}

/// Which gateway has made a change, and the change.
fn read_change(fields: &[(String, String)], now: Now) -> Option<(&str, BanChange)> {
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    let prefix: Prefix = field("p")?.parse().ok()?;
    let end_unix_ms: u64 = field("e")?.parse().ok()?;
    let maker = Maker::named(field("m")?)?;
    let left_ms = end_unix_ms.saturating_sub(now.unix_ms).min(BAN_MS_MAX);
    let change = match end_unix_ms {
        0 => BanChange::Lift { prefix },
        _ => BanChange::Add { prefix, maker, until_ms: now.ms + left_ms },
    };
    Some((field("g")?, change))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::limits::addresses::Settings;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn now(ms: u64) -> Now {
        Now { ms, unix_ms: 1_700_000_000_000 + ms }
    }

    fn gateway(name: &str, exempt: &str) -> (Arc<AddressLimits>, SharedBans) {
        let exempt = exempt.parse().into_iter().collect();
        let settings = Settings { shares_bans: true, exempt, ..Settings::default() };
        let limits = Arc::new(AddressLimits::new(settings, Instant::now()));
        (Arc::clone(&limits), SharedBans::new(limits, name.into()))
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn banned(limits: &AddressLimits) -> Vec<String> {
        limits.bans().list(9, 10_000).iter().map(|(prefix, _)| prefix.to_string()).collect()
    }

    fn words(cmd: &Cmd) -> Vec<String> {
        let word = |arg: redis::Arg<&[u8]>| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => panic!("there is no cursor"),
        };
        cmd.args_iter().map(word).collect()
    }

    /// The stream's entries that these `XADD` commands make.
    fn entries(adds: &[Vec<String>]) -> Value {
        let text = |text: &str| Value::BulkString(text.into());
        let entry = |(number, add): (usize, &Vec<String>)| {
            let fields = add[6..].iter().map(|word| text(word)).collect();
            Value::Array(vec![text(&format!("{number}-0")), Value::Array(fields)])
        };
        Value::Array(adds.iter().enumerate().map(entry).collect())
    }

    /// Sends all changes of a gateway. Returns the commands.
    fn appended(bans: &mut SharedBans) -> Vec<Vec<String>> {
        let mut adds = Vec::new();
        bans.read_at_ms = u64::MAX;
        while let Some(cmd) = bans.next_request(now(10_000)) {
            adds.push(words(&cmd));
            bans.on_answer(Some(Value::Okay), now(10_000));
        }
        bans.read_at_ms = 0;
        adds
    }

    #[test]
    fn a_ban_and_its_end_reach_another_gateway_in_their_order() {
        let (one, mut from_one) = gateway("a", "");
        one.ban_for_operator(prefix("192.0.2.7"), HOUR);
        one.ban_for_operator(prefix("192.0.2.0/24"), HOUR);
        one.lift_ban(prefix("192.0.2.7"));
        let adds = appended(&mut from_one);
        let (other, mut to_other) = gateway("b", "");
        let read = words(&to_other.next_request(now(10_000)).unwrap());
        assert_eq!(read, ["XRANGE", "tg1:bans", "-", "+", "COUNT", "1000"]);
        assert!(to_other.next_request(now(10_000)).is_none(), "one command at a time");
        assert_eq!(to_other.on_answer(Some(entries(&adds)), now(10_000)), 0);
        assert_eq!(banned(&other), ["192.0.2.0/24"]);
        assert!(to_other.next_request(now(10_999)).is_none(), "not yet");
        let read = words(&to_other.next_request(now(11_000)).unwrap());
        assert_eq!(read[2], format!("({}-0", adds.len() - 1), "after the last one that was read");
        assert!(other.next_change().is_none(), "what was heard is not said again");
    }

    #[test]
    fn what_a_gateway_has_appended_changes_nothing_for_itself() {
        let (one, mut bans) = gateway("a", "");
        one.ban_for_operator(prefix("192.0.2.7"), HOUR);
        let adds = appended(&mut bans);
        one.bans().lift(prefix("192.0.2.7"), 0);
        bans.next_request(now(10_000)).unwrap();
        bans.on_answer(Some(entries(&adds)), now(10_000));
        assert!(banned(&one).is_empty());
    }

    #[test]
    fn a_change_is_repeated_until_redis_has_it() {
        let (one, mut bans) = gateway("a", "");
        one.ban_for_operator(prefix("192.0.2.7"), HOUR);
        let first = words(&bans.next_request(now(10_000)).unwrap());
        bans.on_answer(None, now(10_000));
        assert!(bans.next_request(now(10_500)).is_none(), "it waits");
        let lift = words(&bans.next_request(now(11_000)).unwrap());
        assert_eq!(lift, first);
    }

    #[test]
    fn exempt_addresses_ended_bans_and_what_cannot_be_read_ban_nobody() {
        let (other, mut bans) = gateway("b", "198.51.100.0/24");
        let add = |prefix: &str, end: &str, maker: &str| {
            let words = ["XADD", "k", "MAXLEN", "~", "1", "*", "p", prefix, "e", end, "m", maker];
            [&words[..], &["g", "a"]].concat().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let later = "1800000000000";
        let adds = [
            add("198.51.100.9", later, "limit"),
            add("192.0.2.7", "1700000000001", "limit"),
            add("192.0.0.0/8", later, "limit"),
            add("192.0.2.8", later, "somebody"),
            add("192.0.2.9", later, "limit"),
        ];
        bans.next_request(now(10_000)).unwrap();
        assert_eq!(bans.on_answer(Some(entries(&adds)), now(10_000)), 2);
        assert_eq!(banned(&other), ["192.0.2.9"]);
        let [(_, until_ms)] = other.bans().list(9, 10_000)[..] else { panic!() };
        assert_eq!(until_ms, 10_000 + BAN_MS_MAX, "no ban lasts longer");
    }
}
