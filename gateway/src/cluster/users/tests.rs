//! The parts together, without Redis: a test gives the answers.

use redis::{Arg, Cmd, Value};

use super::*;
use crate::driver::ConnId;

const UNIX_US: u64 = 1_795_000_000_000_000;
const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000_000;

/// The users' part, a test's clock, and what the part has asked for.
struct World {
    users: Users,
    now_us: u64,
    calls: VecDeque<(Tag, Vec<String>)>,
    subscriptions: Vec<u8>,
    posts: Vec<(u16, Message)>,
    limiter: Arc<CommandLimiter>,
}

fn words(cmd: &Cmd) -> Vec<String> {
    let word = |arg| match arg {
        Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => "a cursor".to_owned(),
    };
    cmd.args_iter().map(word).collect()
}

fn addr(slot: u32) -> SessionAddr {
    SessionAddr::new(0, ConnId { slot, generation: 1 })
}

fn pair(first: u64, second: u64) -> Value {
    let int = |number: u64| Value::Int(number.cast_signed());
    Value::Array(vec![int(first), int(second)])
}

impl World {
    /// Nobody is here, and there is no connection.
    fn new(sessions_max: usize) -> Self {
        let mut config = Config::embedded_default();
        config.shards = 1;
        config.session.connections_per_user_max = sessions_max;
        let limiter = Arc::new(CommandLimiter::new(4, 1000));
        let users = Users::new(&config, Arc::clone(&limiter), 500, 60 * SECOND, UNIX_US, 0);
        Self {
            users,
            now_us: SECOND,
            calls: VecDeque::new(),
            subscriptions: Vec::new(),
            posts: Vec::new(),
            limiter,
        }
    }

    /// The gateway "a" takes part. `was_alive`: Redis still has what it said before.
    fn up(sessions_max: usize) -> Self {
        let mut world = Self::new(sessions_max);
        world.connect(false);
        world
    }

    fn connect(&mut self, was_alive: bool) {
        self.users.on_up();
        self.gather();
        while let Some((tag, _)) = self.take(|tag| matches!(tag, Tag::GatewayId | Tag::Time)) {
            let answer = match tag {
                Tag::GatewayId => Value::SimpleString("a".into()),
                _ => Value::Int((UNIX_US + self.now_us).cast_signed()),
            };
            self.answer(tag, answer);
        }
        for partition in std::mem::take(&mut self.subscriptions) {
            self.users.on_subscribed(partition);
        }
        self.gather();
        while let Some((tag, _)) = self.take(|tag| matches!(tag, Tag::Alive(_))) {
            self.answer(tag, Value::Int(i64::from(was_alive)));
        }
    }

    fn disconnect(&mut self) {
        self.users.on_down();
        self.calls.clear();
        self.subscriptions.clear();
    }

    fn gather(&mut self) {
        while let Some(output) = self.users.next_output(self.now_us) {
            match output {
                Output::Call(tag, cmd) => self.calls.push_back((tag, words(&cmd))),
                Output::Subscribe(partition, _) => self.subscriptions.push(partition),
                Output::Post(shard, message) => self.posts.push((shard, message)),
            }
        }
    }

    fn take(&mut self, is: impl Fn(&Tag) -> bool) -> Option<(Tag, Vec<String>)> {
        let index = self.calls.iter().position(|(tag, _)| is(tag))?;
        self.calls.remove(index)
    }

    fn answer_with(&mut self, tag: Tag, answer: Result<Value, Fault>) {
        let times = Times { sent_us: self.now_us, received_us: self.now_us };
        self.users.on_answer(tag, answer, times);
        self.gather();
    }

    fn answer(&mut self, tag: Tag, answer: Value) {
        self.answer_with(tag, Ok(answer));
    }

    /// Time passes.
    fn pass(&mut self, micros: u64) {
        self.now_us += micros;
        self.users.tick(self.now_us);
        self.gather();
    }

    fn login(&mut self, user_id: UserId, slot: u32) {
        self.users.arrived(user_id, addr(slot), self.now_us);
        self.gather();
    }

    fn leave(&mut self, user_id: UserId) {
        self.users.left(user_id, self.now_us);
        self.gather();
    }

    /// The next arrivals that were sent: users and their stamps.
    fn arrivals(&mut self) -> Option<(Tag, Vec<(u64, u64)>)> {
        let (tag, words) = self.take(|tag| matches!(tag, Tag::Arrive(..)))?;
        assert_eq!(words[1], "tidegate_arrive");
        let users = words[7..].chunks(3).map(|user| {
            assert_eq!(user[1], "0");
            (user[0].parse().unwrap(), user[2].parse().unwrap())
        });
        Some((tag, users.collect()))
    }

    /// The next departures that were sent: users and their stamps.
    fn departures(&mut self) -> Option<(Tag, Vec<(u64, u64)>)> {
        let (tag, words) = self.take(|tag| matches!(tag, Tag::Depart(..)))?;
        assert_eq!(words[1], "tidegate_depart");
        let users = words[7..].chunks(2);
        Some((
            tag,
            users.map(|user| (user[0].parse().unwrap(), user[1].parse().unwrap())).collect(),
        ))
    }

    /// Answers arrivals, none of which is replaced.
    fn accept(&mut self, tag: Tag, users: &[(u64, u64)]) {
        let stays = |&(_, stamp): &(u64, u64)| pair(stamp, stamp);
        self.answer(tag, Value::Array(users.iter().map(stays).collect()));
    }

    fn accept_arrivals(&mut self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        while let Some((tag, users)) = self.arrivals() {
            self.accept(tag, &users);
            all.extend(users);
        }
        all
    }

    fn message(&mut self, text: &str) {
        assert!(self.users.on_message(text.as_bytes(), self.now_us), "{text}");
        self.gather();
    }

    /// The logins that the home was told to end.
    fn replaced(&mut self) -> Vec<(UserId, SessionAddr)> {
        let posts = std::mem::take(&mut self.posts).into_iter();
        let replaced = posts.filter_map(|(_, message)| match message {
            Message::User(UserMessage::Replace { user_id, addr }) => Some((user_id, addr)),
            _ => None,
        });
        replaced.collect()
    }
}

#[test]
fn a_login_is_sent_with_the_time_at_which_it_came() {
    let mut world = World::up(1);
    let at_us = world.now_us;
    world.now_us += 300 * MILLI;
    world.users.arrived(7, addr(1), at_us);
    world.gather();
    let (tag, users) = world.arrivals().unwrap();
    let since_us = UNIX_US + at_us - 1_767_225_600_000_000;
    assert_eq!(users, [(7, since_us / 10)]);
    world.accept(tag, &users);
    assert!(world.users.is_settled());
    world.leave(7);
    let (tag, left) = world.departures().unwrap();
    assert!(left[0].0 == 7 && left[0].1 > users[0].1, "{left:?}");
    world.answer(tag, Value::Int(1));
    assert!(world.users.is_settled() && !world.users.presence().is_here(7));
}

#[test]
fn what_happens_to_a_user_while_a_round_is_under_way_waits_for_the_next_one() {
    let mut world = World::up(1);
    world.login(7, 1);
    let (tag, first) = world.arrivals().unwrap();
    // It leaves, comes back and leaves, beside others of the same partition.
    world.leave(7);
    world.login(7, 2);
    world.login(7 + 128, 3);
    world.login(7 + 256, 4);
    world.leave(7 + 256);
    world.leave(7);
    assert!(world.arrivals().is_none() && world.departures().is_none(), "one round at a time");
    world.accept(tag, &first);
    let (arrive, users) = world.arrivals().unwrap();
    assert_eq!(users.iter().map(|user| user.0).collect::<Vec<_>>(), [7 + 128]);
    let (depart, left) = world.departures().unwrap();
    assert_eq!(left.iter().map(|user| user.0).collect::<Vec<_>>(), [7], "nobody knew the other");
    // Both have to be answered before the next round.
    world.login(7, 5);
    world.accept(arrive, &users);
    assert!(world.arrivals().is_none());
    world.answer(depart, Value::Int(0));
    let (_, again) = world.arrivals().unwrap();
    assert!(again[0].1 > left[0].1, "a late departure does not remove it");
}

#[test]
fn many_logins_take_few_commands() {
    let mut world = World::up(1);
    for user_id in 0..1000 {
        world.users.arrived(user_id * 128, addr(1), world.now_us);
    }
    world.gather();
    let mut sizes = Vec::new();
    while let Some((tag, users)) = world.arrivals() {
        sizes.push(users.len());
        world.accept(tag, &users);
    }
    assert_eq!(sizes, [256, 256, 256, 232]);
}

#[test]
fn a_login_that_lost_is_ended_whether_by_the_answer_or_by_a_message() {
    let mut world = World::up(1);
    world.login(7, 1);
    let (tag, users) = world.arrivals().unwrap();
    let stamp = users[0].1;
    world.answer(tag, Value::Array(vec![pair(stamp, stamp + 5)]));
    assert_eq!(world.replaced(), [(7, addr(1))]);
    // The home ends the session. Redis has no entry of it.
    world.leave(7);
    assert!(world.departures().is_none() && world.users.is_settled());
    assert!(!world.users.presence().is_here(7));

    world.pass(SECOND);
    world.login(7, 2);
    let stamp = world.accept_arrivals()[0].1;
    world.message(&format!("r 7 {stamp}\n"));
    assert_eq!(world.replaced(), [], "its own stamp");
    world.message(&format!("r 7 {}\n", stamp + 1));
    assert_eq!(world.replaced(), [(7, addr(2))]);
    // The winner may have left, and the user may have been asserted again before the message came.
    world.leave(7);
    assert_eq!(world.departures().unwrap().1[0].0, 7);
}

#[test]
fn a_newer_login_here_survives_the_answer_about_the_older_one() {
    let mut world = World::up(1);
    world.login(7, 1);
    let (tag, old) = world.arrivals().unwrap();
    world.pass(MILLI);
    world.login(7, 2);
    let between = old[0].1 + 5;
    world.answer(tag, Value::Array(vec![pair(old[0].1, between)]));
    assert_eq!(world.replaced(), [], "its home has ended the older one");
    let (tag, new) = world.arrivals().unwrap();
    assert!(new[0].1 > between);
    world.accept(tag, &new);
    assert_eq!(world.replaced(), []);
    assert!(world.users.presence().is_here(7) && world.users.is_settled());
}

#[test]
fn a_newer_login_here_survives_a_message_about_the_older_one_and_an_older_one_does_not() {
    let mut world = World::up(1);
    world.login(7, 1);
    let old = world.accept_arrivals()[0].1;
    world.pass(MILLI);
    world.login(7, 2);
    // Another gateway's login came between the two. The message is here before the answer.
    world.message(&format!("r 7 {}\n", old + 5));
    assert_eq!(world.replaced(), []);
    let new = world.accept_arrivals()[0].1;
    // Another gateway's login came after both, and its message is here before the answer to this one.
    world.pass(MILLI);
    world.login(7, 3);
    let (tag, newest) = world.arrivals().unwrap();
    assert!(newest[0].1 > new);
    let winning = newest[0].1 + 1;
    world.message(&format!("r 7 {winning}\n"));
    assert_eq!(world.replaced(), [(7, addr(3))]);
    world.answer(tag, Value::Array(vec![pair(newest[0].1, winning)]));
    assert_eq!(world.replaced(), [(7, addr(3))], "the home ignores the second time");
}

#[test]
fn a_stamp_that_redis_has_raised_is_adopted() {
    let mut world = World::up(1);
    world.login(7, 1);
    let (tag, users) = world.arrivals().unwrap();
    let raised = users[0].1 + 1;
    world.answer(tag, Value::Array(vec![pair(raised, raised)]));
    world.message(&format!("r 7 {raised}\n"));
    assert_eq!(world.replaced(), []);
}

#[test]
fn while_redis_is_away_logins_wait_as_state_and_not_as_a_queue() {
    let mut world = World::up(1);
    world.login(1, 1);
    world.login(2, 2);
    world.accept_arrivals();
    world.disconnect();
    let before_us = world.now_us;
    for round in 0..1000 {
        world.now_us += MILLI;
        world.login(3, round);
        world.leave(3);
        world.login(4, round);
    }
    world.leave(2);
    assert!(world.calls.is_empty());
    world.now_us += 30 * SECOND;
    world.connect(true);
    // The subscription is new, so all are asserted again: a message may have been missed.
    let mut users = world.accept_arrivals();
    users.sort_unstable();
    assert_eq!(users.iter().map(|user| user.0).collect::<Vec<_>>(), [1, 4]);
    let age_us = (users[1].1 - users[0].1) * 10;
    assert!(age_us >= world.now_us - before_us - 31 * SECOND, "the time of the login counts");
    assert_eq!(world.departures().unwrap().1[0].0, 2, "Redis knew this one");
    assert!(world.departures().is_none(), "and not the others");
}

#[test]
fn logins_before_the_first_connection_get_their_stamps_later() {
    let mut world = World::new(1);
    world.login(1, 1);
    world.pass(SECOND);
    world.login(2, 2);
    world.login(3, 3);
    world.leave(3);
    world.pass(10 * SECOND);
    world.connect(false);
    let mut users = world.accept_arrivals();
    users.sort_unstable();
    assert_eq!(users.len(), 2);
    assert_eq!(users[1].1 - users[0].1, SECOND / 10);
}

#[test]
fn a_user_who_was_replaced_while_no_message_could_come_is_told_on_return() {
    let mut world = World::up(1);
    world.login(7, 1);
    let stamp = world.accept_arrivals()[0].1;
    world.disconnect();
    world.connect(true);
    let (tag, users) = world.arrivals().unwrap();
    assert_eq!(users, [(7, stamp)], "the same login");
    world.answer(tag, Value::Array(vec![pair(stamp, stamp + 100)]));
    assert_eq!(world.replaced(), [(7, addr(1))]);
}

#[test]
fn where_users_have_many_sessions_a_return_sends_only_what_redis_may_not_know() {
    let mut world = World::up(8);
    world.login(1, 1);
    world.login(2, 2);
    world.accept_arrivals();
    world.disconnect();
    world.login(3, 3);
    world.connect(true);
    let users = world.accept_arrivals();
    assert_eq!(users.iter().map(|user| user.0).collect::<Vec<_>>(), [3]);
    // Redis has lost its data.
    world.disconnect();
    world.connect(false);
    assert_eq!(world.accept_arrivals().len(), 3);
    // No login at another gateway ends one here.
    world.message("r 1 99999999999999\n");
    assert_eq!(world.replaced(), []);
}

#[test]
fn a_sign_of_life_that_finds_nothing_asserts_the_users_of_its_partition_again() {
    let mut world = World::up(1);
    world.login(1, 1);
    world.login(2, 2);
    world.accept_arrivals();
    world.pass(5 * SECOND);
    while let Some((tag, _)) = world.take(|tag| matches!(tag, Tag::Alive(_))) {
        world.answer(tag, Value::Int(i64::from(tag != Tag::Alive(2))));
    }
    let users = world.accept_arrivals();
    assert_eq!(users.iter().map(|user| user.0).collect::<Vec<_>>(), [2]);
    assert_eq!(world.users.presence().counters().asserted, 1);
}

#[test]
fn few_partitions_are_asserted_at_once_and_logins_do_not_wait_for_them() {
    let mut world = World::up(1);
    for user_id in 0..128 * 600 {
        world.users.arrived(user_id, addr(1), world.now_us);
    }
    world.gather();
    world.accept_arrivals();
    world.disconnect();
    world.connect(false);
    let under_way = |world: &World| {
        world.calls.iter().filter(|(tag, _)| matches!(tag, Tag::Arrive(..))).count()
    };
    assert_eq!(under_way(&world), 2);
    let (tag, users) = world.arrivals().unwrap();
    assert_eq!(users.len(), 256);
    // A login in the partition that is being asserted is in its next round, and one in another partition goes at once.
    let Tag::Arrive(busy, _) = tag else { panic!("{tag:?}") };
    world.login(u64::from(busy) + 128 * 10_000, 2);
    world.login(127 + 128 * 10_000, 3);
    assert_eq!(under_way(&world), 2);
    world.accept(tag, &users);
    let rounds: Vec<_> = std::iter::from_fn(|| world.arrivals()).collect();
    let logins = rounds.iter().flat_map(|(_, users)| users);
    assert_eq!(logins.filter(|(user_id, _)| *user_id >= 128 * 10_000).count(), 2);
    for (tag, users) in rounds {
        world.accept(tag, &users);
    }
    world.accept_arrivals();
    assert!(world.users.is_settled());
    // The login in the other partition was sent before its partition was asserted.
    assert_eq!(world.users.presence().counters().asserted, 128 * 600 + 1);
}

#[test]
fn a_round_that_failed_is_sent_again_with_the_same_stamps() {
    let mut world = World::up(1);
    world.login(7, 1);
    let (tag, users) = world.arrivals().unwrap();
    world.answer_with(tag, Err(Fault::Unknown));
    assert!(world.arrivals().is_none(), "not at once");
    world.pass(SECOND);
    let (tag, again) = world.arrivals().unwrap();
    assert_eq!(again, users);
    world.answer_with(tag, Err(Fault::Refused));
    world.pass(SECOND);
    assert!(world.arrivals().is_none(), "it would be refused again");
    world.leave(7);
    let (tag, _) = world.departures().unwrap();
    world.answer_with(tag, Err(Fault::Unknown));
    world.pass(SECOND);
    assert!(world.departures().is_some());
}

#[test]
fn messages_for_users_are_passed_on_within_the_bound_and_counted() {
    let mut world = World::up(8);
    world.login(7, 1);
    world.accept_arrivals();
    world.message("p 7 5 0\nhello");
    world.message("k 7\n");
    world.message("e 7\nquiz");
    let posts = std::mem::take(&mut world.posts);
    assert!(matches!(
        &posts[..],
        [
            (0, Message::User(UserMessage::Push { user_id: 7, .. })),
            (0, Message::User(UserMessage::Kick { user_id: 7, .. })),
            (0, Message::Room(RoomMessage::Expel { user_id: 7, .. })),
        ]
    ));
    assert_eq!((world.limiter.commands(), world.users.counters().received), (3, 3));
    // The bound is 4.
    world.message("p 7 5 0\nhello");
    world.message("p 7 5 0\nhello");
    assert_eq!(world.users.counters().dropped, 1);
    drop((posts, std::mem::take(&mut world.posts)));
    let over = (UNIX_US + world.now_us) / 1000;
    world.message(&format!("p 7 5 {over}\nlate"));
    world.message(&format!("p 7 5 {}\nnot late", over + 1));
    assert_eq!((world.users.counters().expired, world.posts.len()), (1, 1));
    world.posts.clear();
    world.message(&format!("p 7 5 0\n{}", "x".repeat(2 << 20)));
    assert_eq!((world.users.counters().dropped, world.posts.len()), (2, 0), "too long");
    for text in ["", "p 7 5 0", "p 7 0 0\n", "q 7\n", "r 7\n", "e 7\n", "k x\n"] {
        assert!(!world.users.on_message(text.as_bytes(), 0), "{text:?}");
    }
}

#[test]
fn an_entry_of_a_user_who_is_not_here_is_removed() {
    let mut world = World::up(1);
    world.message("p 7 5 0\nhello");
    assert_eq!((world.users.counters().astray, world.posts.len()), (1, 0));
    let (tag, users) = world.departures().unwrap();
    assert_eq!(users[0].0, 7);
    world.answer(tag, Value::Int(1));
    assert!(world.users.is_settled());
}

#[test]
fn an_event_is_appended_before_its_user_is_struck_from_the_list() {
    let mut world = World::up(1);
    world.pass(SECOND);
    let (tag, _) = world.take(|tag| *tag == Tag::Due(5)).unwrap();
    let text = |number: u64| Value::BulkString(number.to_string().into());
    let users = vec![text(5), Value::Int(100), text(u64::MAX - 122), Value::Int(200)];
    world.answer(tag, Value::Array(users));
    let (first, words) = world.take(|tag| matches!(tag, Tag::Append(..))).unwrap();
    let expected = ["XADD", "tg1:offline", "MAXLEN", "~", "100000", "*", "user", "5", "at", "100"];
    assert_eq!(words, expected);
    let (second, words) = world.take(|tag| matches!(tag, Tag::Append(..))).unwrap();
    assert_eq!(words[7], (u64::MAX - 122).to_string());
    world.answer(first, Value::SimpleString("1-0".into()));
    world.pass(SECOND);
    assert!(world.take(|tag| matches!(tag, Tag::Told(_) | Tag::Due(5))).is_none());
    // The second one fails: it is reported again later.
    world.answer_with(second, Err(Fault::Unknown));
    let (tag, words) = world.take(|tag| matches!(tag, Tag::Told(_))).unwrap();
    assert_eq!(words[4..], ["5", "100"]);
    assert_eq!(world.users.chores().counters().offline_events, 1);
    world.answer(tag, Value::Int(1));
    world.pass(SECOND);
    assert!(world.take(|tag| *tag == Tag::Due(5)).is_some());
}

#[test]
fn gateways_share_the_chores_and_sweep_faster_after_a_death() {
    let mut world = World::up(1);
    world.pass(MILLI);
    let (tag, _) = world.take(|tag| *tag == Tag::Gateways).unwrap();
    let now_ms = (UNIX_US + world.now_us) / 1000;
    let gateway = |id: &str, until_ms: u64| {
        let until = format!("{until_ms} abc");
        (Value::BulkString(id.into()), Value::BulkString(until.into()))
    };
    let three = [gateway("0", now_ms + 9), gateway("a", now_ms + 9), gateway("dead", now_ms - 9)];
    world.answer(tag, Value::Map(three.into()));
    assert_eq!(world.users.chores().gateways(), 2);
    while let Some((tag, _)) = world.take(|tag| matches!(tag, Tag::Due(_))) {
        world.answer(tag, Value::Array(Vec::new()));
    }
    while let Some((tag, _)) = world.take(|tag| matches!(tag, Tag::Sweep(_))) {
        world.answer(tag, Value::Int(0));
    }
    world.pass(SECOND);
    let due = world.calls.iter().filter_map(|(tag, _)| match tag {
        Tag::Due(partition) => Some(*partition),
        _ => None,
    });
    assert!(due.eq((1..128).step_by(2)), "the second of two");
    let mut swept = 0;
    while let Some((tag, words)) = world.take(|tag| matches!(tag, Tag::Sweep(_))) {
        swept += 1;
        assert_eq!(words[1], "tidegate_sweep");
        world.answer(tag, Value::Int(2));
    }
    assert_eq!((swept, world.users.chores().counters().swept), (32, 64));
}

#[test]
fn a_death_is_swept_in_a_whole_pass_though_redis_forgets_the_gateway_meanwhile() {
    let mut world = World::up(1);
    world.pass(MILLI);
    let dead_ms = (UNIX_US + world.now_us) / 1000 - 1;
    let gateway = |id: &str, until_ms: u64| {
        let until = format!("{until_ms} abc");
        (Value::BulkString(id.into()), Value::BulkString(until.into()))
    };
    let mut swept = std::collections::HashSet::new();
    // Each answer takes 200 ms, and the hash holds the dead gateway for a minute.
    for number in 0..1_500 {
        while let Some((tag, _)) = world.take(|tag| *tag == Tag::Gateways) {
            let now_ms = (UNIX_US + world.now_us) / 1000;
            let mut fields = vec![gateway("a", now_ms + 9)];
            if number < 300 {
                fields.push(gateway("dead", dead_ms));
            }
            world.answer(tag, Value::Map(fields));
        }
        let sweeps: Vec<_> =
            std::iter::from_fn(|| world.take(|tag| matches!(tag, Tag::Sweep(_)))).collect();
        for (tag, words) in sweeps {
            // In the first seconds, other partitions still take it for alive.
            if number > 35 {
                swept.insert((words[3].clone(), words[4].clone()));
            }
            let (sent_us, received_us) = (world.now_us - 200 * MILLI, world.now_us);
            world.users.on_answer(tag, Ok(Value::Int(0)), Times { sent_us, received_us });
        }
        world.pass(200 * MILLI);
        if swept.len() == 4_096 {
            return;
        }
    }
    panic!("only {} buckets were swept", swept.len());
}

/// Users of partition 5, from this number on.
fn users_of_a_partition(from: u64, count: u64) -> impl Iterator<Item = UserId> + Clone {
    (from..from + count).map(|number| 5 + 128 * number)
}

#[test]
fn a_login_that_redis_did_not_carry_out_leaves_nothing_when_the_user_goes() {
    for fault in [Fault::NotDone, Fault::Refused] {
        let mut world = World::up(1);
        world.login(5, 1);
        let (tag, _) = world.arrivals().unwrap();
        world.leave(5);
        world.answer_with(tag, Err(fault));
        world.pass(SECOND);
        assert!(world.departures().is_none(), "{fault:?}");
        assert_eq!((world.users.presence().departed(), world.users.presence().waiting()), (0, 0));
    }
    // It may have been carried out, so the departure follows.
    let mut world = World::up(1);
    world.login(5, 1);
    let (tag, _) = world.arrivals().unwrap();
    world.leave(5);
    world.answer_with(tag, Err(Fault::Unknown));
    assert_eq!(world.users.presence().departed(), 1);
    world.pass(SECOND);
    let (tag, users) = world.departures().unwrap();
    assert_eq!(users.len(), 1);
    world.answer(tag, Value::Int(1));
    assert_eq!(world.users.presence().departed(), 0);
}

#[test]
fn while_redis_confirms_nothing_users_who_come_and_go_are_remembered_within_a_bound() {
    let mut world = World::up(1);
    let most = u64::try_from(presence::DEPARTED_MAX).unwrap();
    let mut from = 0;
    for slot in 0..30 {
        users_of_a_partition(from, 256).for_each(|user_id| world.login(user_id, slot));
        // Enough rounds for all who are remembered and those who have come.
        for _ in 0..20 {
            let is_round = |tag: &Tag| matches!(tag, Tag::Arrive(..) | Tag::Depart(..));
            while let Some((tag, _)) = world.take(is_round) {
                world.answer_with(tag, Err(Fault::Unknown));
            }
            world.pass(SECOND);
        }
        users_of_a_partition(from, 256).for_each(|user_id| world.leave(user_id));
        from += 256;
    }
    let departed = world.users.presence().departed() as u64;
    assert!((most..most + 512).contains(&departed), "{departed}");
    // Somebody logs in, and Redis carries out commands again: it learns of all.
    world.login(5 + 128 * from, 60);
    let mut arrived = Vec::new();
    for _ in 0..200 {
        world.pass(SECOND);
        if let Some((tag, users)) = world.arrivals() {
            world.accept(tag, &users);
            arrived.extend(users.iter().map(|(user_id, _)| *user_id));
        }
        if let Some((tag, _)) = world.departures() {
            world.answer(tag, Value::Int(0));
        }
    }
    assert_eq!((world.users.presence().departed(), world.users.presence().waiting()), (0, 0));
    assert!(arrived.contains(&(5 + 128 * from)));
}

#[test]
fn a_subscription_without_an_outcome_is_made_again() {
    let mut world = World::up(1);
    world.users.on_unsubscribed(7, world.now_us);
    world.pass(SECOND);
    assert_eq!(std::mem::take(&mut world.subscriptions), [7]);
    world.pass(SECOND);
    assert!(world.subscriptions.is_empty(), "its outcome may still come");
    world.pass(10 * SECOND);
    assert_eq!(std::mem::take(&mut world.subscriptions), [7]);
    world.users.on_subscribed(7);
    world.pass(20 * SECOND);
    assert!(world.subscriptions.is_empty());
}
