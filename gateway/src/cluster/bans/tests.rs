use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::limits::addresses::Settings;

const HOUR: Duration = Duration::from_secs(3_600);

/// How far Redis' clock is ahead of the gateways'.
const AHEAD_MS: u64 = 1_700_000_000_000;

/// What the commands of this part do in Redis.
#[derive(Default)]
struct Redis {
    entries: Vec<(String, Vec<String>)>,
    operators: BTreeMap<String, u64>,
}

fn words(cmd: &Cmd) -> Vec<String> {
    let word = |arg: redis::Arg<&[u8]>| match arg {
        redis::Arg::Simple(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        _ => panic!("there is no cursor"),
    };
    cmd.args_iter().map(word).collect()
}

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

impl Redis {
    fn carry_out(&mut self, cmd: &Cmd, now_ms: u64) -> Value {
        let words = words(cmd);
        match &*words[0] {
            "FCALL" => Value::Int((1_000 * (now_ms + AHEAD_MS)).cast_signed()),
            "XADD" => {
                let id = format!("{}-{}", now_ms + AHEAD_MS, self.entries.len());
                self.entries.push((id, words[6..].to_vec()));
                Value::Okay
            }
            "XRANGE" => {
                let after = words[2].strip_prefix('(');
                let known = |id: &str| self.entries.iter().position(|(it, _)| it == id);
                let from = after.map_or(0, |id| known(id).map_or(usize::MAX, |at| at + 1));
                let entry = |(id, fields): &(String, Vec<String>)| {
                    let fields = fields.iter().map(|field| text(field)).collect();
                    Value::Array(vec![text(id), Value::Array(fields)])
                };
                let entries = self.entries.iter().skip(from).take(READ_MAX);
                Value::Array(entries.map(entry).collect())
            }
            "HSET" => {
                self.operators.insert(words[2].clone(), words[3].parse().unwrap());
                Value::Int(1)
            }
            "HDEL" => {
                self.operators.retain(|prefix, _| !words[2..].contains(prefix));
                Value::Int(1)
            }
            "HGETALL" => {
                let pair = |(prefix, end): (&String, &u64)| (text(prefix), text(&end.to_string()));
                Value::Map(self.operators.iter().map(pair).collect())
            }
            other => panic!("{other}"),
        }
    }
}

struct Gateway {
    limits: Arc<AddressLimits>,
    bans: SharedBans,
}

impl Gateway {
    fn new(name: &str) -> Self {
        Self::with_exempt(name, &[])
    }

    fn with_exempt(name: &str, exempt: &[&str]) -> Self {
        let exempt = exempt.iter().map(|exempt| exempt.parse().unwrap()).collect();
        let settings = Settings { shares_bans: true, exempt, ..Settings::default() };
        let limits = Arc::new(AddressLimits::new(settings, Instant::now()));
        let mut bans = SharedBans::new(Arc::clone(&limits), name.into());
        bans.on_up();
        Self { limits, bans }
    }

    /// Sends what there is to send. Returns the commands.
    fn exchange(&mut self, redis: &mut Redis, now_ms: u64) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(Request { number, cmd }) = self.bans.next_request(now_ms) {
            sent.push(words(&cmd)[0].clone());
            let answer = redis.carry_out(&cmd, now_ms);
            assert_eq!(self.bans.on_answer(number, Ok(answer), now_ms), 0);
        }
        sent
    }

    /// Sends commands until the change is appended, whose answer is lost.
    fn lose_append(&mut self, redis: &mut Redis, is_carried_out: bool, now_ms: u64) {
        while let Some(Request { number, cmd }) = self.bans.next_request(now_ms) {
            let is_append = words(&cmd)[0] == "XADD";
            if !is_append || is_carried_out {
                let answer = redis.carry_out(&cmd, now_ms);
                if !is_append {
                    self.bans.on_answer(number, Ok(answer), now_ms);
                }
            }
            if is_append {
                self.bans.on_answer(number, Err(Fault::Unknown), now_ms);
                return;
            }
        }
        panic!("nothing was appended");
    }

    fn ban(&self, text: &str, lasts: Duration) {
        assert_eq!(self.limits.ban_for_operator(prefix(text), lasts).is_shared, Some(true));
    }

    fn lift(&self, text: &str) {
        assert_eq!(self.limits.lift_ban(prefix(text)).is_shared, Some(true));
    }

    fn banned(&self, now_ms: u64) -> Vec<(String, u64)> {
        let bans = self.limits.bans().list(9, now_ms);
        bans.iter().map(|(prefix, until_ms)| (prefix.to_string(), *until_ms)).collect()
    }

    fn bans(&self, now_ms: u64) -> Vec<String> {
        self.banned(now_ms).into_iter().map(|(prefix, _)| prefix).collect()
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
fn a_gateway_that_starts_learns_what_holds_and_then_reads_once_a_second() {
    let (mut redis, mut one, mut other) = (Redis::default(), Gateway::new("a"), Gateway::new("b"));
    one.ban("192.0.2.7", HOUR);
    one.ban("192.0.2.0/24", HOUR);
    one.lift("192.0.2.7");
    one.exchange(&mut redis, 1_000);
    assert_eq!(other.exchange(&mut redis, 2_000), ["FCALL", "XRANGE", "HGETALL"]);
    assert_eq!(other.bans(2_000), ["192.0.2.0/24"]);
    assert!(other.exchange(&mut redis, 2_999).is_empty());
    assert_eq!(other.exchange(&mut redis, 3_000), ["XRANGE"]);
    assert!(other.bans.is_settled() && one.bans.is_settled());
}

#[test]
fn all_gateways_have_the_same_bans_whichever_of_them_changed_them() {
    let (mut redis, mut one, mut other) = (Redis::default(), Gateway::new("a"), Gateway::new("b"));
    other.ban("192.0.2.7", HOUR);
    other.exchange(&mut redis, 1_000);
    // Before it has read that.
    one.lift("192.0.2.7");
    one.ban("192.0.2.8", HOUR);
    other.ban("192.0.2.8", 2 * HOUR);
    for now_ms in [2_000, 3_000, 4_000] {
        one.exchange(&mut redis, now_ms);
        other.exchange(&mut redis, now_ms);
    }
    assert_eq!(one.bans(4_000), ["192.0.2.8"]);
    let [(_, one_ms)] = one.banned(4_000)[..] else { panic!() };
    let [(_, other_ms)] = other.banned(4_000)[..] else { panic!() };
    assert!(one_ms.abs_diff(other_ms) < 1_000, "{one_ms} {other_ms}");
}

#[test]
fn a_change_whose_answer_was_lost_is_appended_once() {
    for is_carried_out in [true, false] {
        let (mut redis, mut one) = (Redis::default(), Gateway::new("a"));
        one.ban("192.0.2.7", HOUR);
        one.lose_append(&mut redis, is_carried_out, 1_000);
        assert!(one.exchange(&mut redis, 1_500).is_empty(), "it waits");
        one.exchange(&mut redis, 2_000);
        assert_eq!(redis.entries.len(), 1, "{is_carried_out}");
        assert!(one.bans.is_settled());
    }
}

#[test]
fn a_connection_that_ends_with_a_command_loses_no_change_and_no_ban() {
    let (mut redis, mut one) = (Redis::default(), Gateway::new("a"));
    one.exchange(&mut redis, 1_000);
    one.ban("192.0.2.7", HOUR);
    let store = one.bans.next_request(1_000).unwrap();
    one.bans.on_up();
    assert_eq!(one.bans.on_answer(store.number, Err(Fault::Unknown), 1_000), 0, "of before");
    let mut another = Redis::default();
    one.exchange(&mut another, 1_001);
    assert_eq!((another.entries.len(), another.operators.len()), (1, 1));
}

#[test]
fn what_others_have_changed_is_read_though_changes_never_cease() {
    let (mut redis, mut one) = (Redis::default(), Gateway::new("a"));
    let mut reads = 0;
    for now_ms in 1_000..6_000 {
        one.ban("192.0.2.7", HOUR);
        let Request { number, cmd } = one.bans.next_request(now_ms).unwrap();
        reads += usize::from(words(&cmd)[0] == "XRANGE");
        let answer = redis.carry_out(&cmd, now_ms);
        one.bans.on_answer(number, Ok(answer), now_ms);
    }
    assert_eq!(reads, 5);
}

#[test]
fn a_change_that_redis_refuses_again_and_again_holds_up_nothing() {
    let (mut redis, mut one, mut other) = (Redis::default(), Gateway::new("a"), Gateway::new("b"));
    other.ban("192.0.2.9", HOUR);
    other.exchange(&mut redis, 500);
    one.ban("192.0.2.7", HOUR);
    for second in 1..=8 {
        let now_ms = 1_000 * second;
        while let Some(Request { number, cmd }) = one.bans.next_request(now_ms) {
            let is_write = ["HSET", "XADD"].contains(&&*words(&cmd)[0]);
            let answer = redis.carry_out(&cmd, now_ms);
            one.bans.on_answer(
                number,
                if is_write { Err(Fault::NotDone) } else { Ok(answer) },
                now_ms,
            );
        }
    }
    assert!(one.bans.is_settled(), "it is given up");
    assert_eq!(one.bans(8_000).len(), 2, "what others appended was read");
}

#[test]
fn operators_bans_outlast_the_entries_of_the_stream() {
    let (mut redis, mut one) = (Redis::default(), Gateway::new("a"));
    one.ban("192.0.2.7", HOUR);
    one.ban("192.0.2.8", Duration::from_secs(2));
    one.exchange(&mut redis, 1_000);
    redis.entries.clear();
    let mut late = Gateway::new("b");
    late.exchange(&mut redis, 10_000);
    assert_eq!(late.bans(10_000), ["192.0.2.7"]);
    assert_eq!(redis.operators.len(), 1, "one that has ended is removed");
}

#[test]
fn entries_that_are_wrong_are_passed_over_one_by_one() {
    let (mut redis, mut one) = (Redis::default(), Gateway::with_exempt("b", &["198.51.100.0/24"]));
    let mut add = |prefix: &str, lasts: &str, maker: &str| {
        let id = format!("{}-{}", AHEAD_MS, redis.entries.len());
        let fields = ["p", prefix, "l", lasts, "m", maker, "g", "a", "n", "1"];
        redis.entries.push((id, fields.iter().map(ToString::to_string).collect()));
    };
    let month = "99999999999";
    add("198.51.100.9", month, "limit");
    add("192.0.2.7", "1", "limit");
    add("192.0.0.0/8", month, "limit");
    add("192.0.2.8", month, "somebody");
    add("192.0.2.9", month, "limit");
    let mut entries = Vec::new();
    while let Some(Request { number, cmd }) = one.bans.next_request(10_000) {
        let mut answer = redis.carry_out(&cmd, 10_000);
        if let (Value::Array(read), "XRANGE") = (&mut answer, &*words(&cmd)[0]) {
            let fields = Value::Array(vec![text("p"), Value::BulkString(vec![0xff])]);
            read.insert(0, Value::Array(vec![text("1-0"), fields]));
        }
        entries.push(one.bans.on_answer(number, Ok(answer), 10_000));
    }
    assert_eq!(entries, [0, 3, 0]);
    assert_eq!(one.banned(10_000), [("192.0.2.9".into(), BAN_MS_MAX)], "no ban lasts longer");
}
