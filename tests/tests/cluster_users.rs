//! Users over several gateways: real gateways and a real Redis.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::thread;

use tidegate_tests::{
    Cluster, Code, Deployment, Gateway, Operator, Phone, Redis, SentinelSet, Setup,
    on_each_deployment, until,
};

const MESSAGES: &str = "tidegate_user_messages_total";

/// A gateway of a set that shares this Redis.
fn setup(redis: &dyn Deployment) -> Setup {
    Setup::demo().set("redis.url", redis.url())
}

/// Starts a gateway and waits until it has a connection to Redis.
fn start(setup: Setup) -> Gateway {
    let gateway = setup.start();
    gateway.operator().wait_for_metric("tidegate_presence_up", "", |up| up == 1.0);
    gateway
}

fn users_key(user_id: u64) -> String {
    format!("tg1:users:{{u{}}}", user_id % 128)
}

/// Calls a function of the library that is about a user.
fn call(redis: &dyn Deployment, function: &str, user_id: u64, arguments: &[&str]) -> String {
    let (key, user) = (users_key(user_id), user_id.to_string());
    let mut words = vec!["FCALL", function, "1", &key, &user];
    words.extend(arguments);
    redis.cli(&words)
}

/// The gateways at which Redis knows a user: `gateway:stamp`, separated by spaces.
fn online(redis: &dyn Deployment, user_id: u64) -> String {
    call(redis, "tidegate_online", user_id, &[])
}

fn wait_until_online(redis: &dyn Deployment, user_id: u64) -> String {
    until("Redis knows the user", || {
        let gateways = online(redis, user_id);
        gateways.contains(':').then_some(gateways)
    })
}

fn wait_until_offline(redis: &dyn Deployment, user_id: u64) {
    until("Redis knows no session of the user", || online(redis, user_id).is_empty().then_some(()));
}

/// The events that users went offline.
fn offline_events(redis: &dyn Deployment) -> String {
    redis.cli(&["XRANGE", "tg1:offline", "-", "+"])
}

fn metric(operator: &Operator, name: &str) -> f64 {
    operator.metric(name, "").unwrap_or(0.0)
}

/// The number of sessions of a gateway.
fn sessions(operator: &Operator) -> u64 {
    operator.json("/stats")["totals"]["sessions"].as_u64().unwrap()
}

on_each_deployment!(
    a_push_goes_to_the_gateways_that_hold_the_user_and_to_no_other,
    pushes_to_one_user_at_another_gateway_keep_their_order,
    a_kick_and_an_expulsion_reach_other_gateways,
    the_newer_login_wins_over_gateways,
    logins_that_race_leave_one_session,
    an_event_says_that_a_user_went_offline_and_can_be_read_again,
    a_user_who_reconnects_within_the_grace_time_was_never_offline,
    while_redis_hangs_logins_succeed_and_the_newer_one_wins_when_it_is_back,
    users_are_known_again_to_a_redis_that_lost_its_data,
    a_push_waits_for_redis_and_is_refused_in_time,
    a_gateway_that_ends_in_order_leaves_no_user_behind,
    users_are_counted_over_all_gateways,
);

fn a_push_goes_to_the_gateways_that_hold_the_user_and_to_no_other(redis: &mut dyn Deployment) {
    let gateways = [(); 3].map(|()| start(setup(redis).set("session.login", "many")));
    let operators = gateways.each_ref().map(Gateway::operator);
    let mut phone = gateways[1].login(7);
    wait_until_online(redis, 7);
    // One connection at this gateway counts as one, and another gateway that hears it counts as one.
    assert_eq!(operators[0].push_user(7, 5, b"to another gateway"), 1);
    assert_eq!(phone.push().biz_data, "to another gateway");
    let mut here = [gateways[0].login(7), gateways[0].login(7)];
    until("Redis knows both gateways", || online(redis, 7).contains(' ').then_some(()));
    assert_eq!(operators[0].push_user(7, 5, b"everywhere"), 3);
    assert_eq!(phone.push().biz_data, "everywhere");
    here.iter_mut().for_each(|phone| assert_eq!(phone.push().biz_data, "everywhere"));
    assert_eq!(operators[1].push_user(7, 5, b"from the other one"), 2);
    assert_eq!(phone.push().biz_data, "from the other one");
    here.iter_mut().for_each(|phone| assert_eq!(phone.push().biz_data, "from the other one"));
    // From anybody who speaks Redis.
    let answer = call(redis, "tidegate_push_user", 7, &["5", "from a script"]);
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), ["2", "2"]);
    assert_eq!(phone.push().biz_data, "from a script");
    assert_eq!(operators[2].push_user(8, 5, b"to nobody"), 0);
    let messages = [2.0, 3.0, 0.0];
    for (operator, messages) in operators.iter().zip(messages) {
        operator.wait_for_metric(MESSAGES, "", |count| count == messages);
        assert_eq!(metric(operator, "tidegate_user_messages_astray_total"), 0.0);
    }
    assert!(phone.leftovers().is_empty(), "each push came once");
}

fn pushes_to_one_user_at_another_gateway_keep_their_order(redis: &mut dyn Deployment) {
    const PUSHES: usize = 500;
    let gateways = [(); 2].map(|()| start(setup(redis)));
    let mut phone = gateways[1].login(7);
    wait_until_online(redis, 7);
    let operator = gateways[0].operator();
    for number in 0..PUSHES {
        assert_eq!(operator.push_user(7, 5, number.to_string().as_bytes()), 1);
    }
    let pushes = phone.pushes(PUSHES);
    let numbers = pushes.iter().map(|push| std::str::from_utf8(&push.biz_data).unwrap());
    assert!(numbers.eq((0..PUSHES).map(|number| number.to_string()).collect::<Vec<_>>()));
}

fn a_kick_and_an_expulsion_reach_other_gateways(redis: &mut dyn Deployment) {
    let gateways = [(); 2].map(|()| start(setup(redis)));
    let mut phone = gateways[1].login(7);
    phone.join("quiz", 0);
    phone.joined();
    wait_until_online(redis, 7);
    let answer = call(redis, "tidegate_expel", 7, &["quiz"]);
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), ["1", "1"]);
    let left = phone.notice();
    assert!(format!("{left:?}").contains("Left(\"quiz\")"), "{left:?}");
    assert_eq!(gateways[0].operator().kick(7), 1);
    phone.goodbye(Code::Kicked);
    wait_until_offline(redis, 7);
    assert_eq!(gateways[0].operator().kick(7), 0);
}

fn the_newer_login_wins_over_gateways(redis: &mut dyn Deployment) {
    let gateways = [(); 2].map(|()| start(setup(redis)));
    for user_id in 0..20 {
        let mut old = gateways[0].login(user_id);
        wait_until_online(redis, user_id);
        let mut new = gateways[1].login(user_id);
        old.goodbye(Code::Replaced);
        new.assert_is_served();
        // And back, where the user was before.
        let mut newest = gateways[0].login(user_id);
        new.goodbye(Code::Replaced);
        newest.assert_is_served();
        let at = online(redis, user_id);
        assert!(!at.contains(' '), "{at}");
    }
    for gateway in &gateways {
        let (operator, name) = (gateway.operator(), "tidegate_users_replaced_elsewhere_total");
        operator.wait_for_metric(name, "", |count| count == 20.0);
    }
}

/// When the second login of a race is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    AtOnce,
    AfterTheFirstAnswer,
}

/// Logs each user in at both gateways. Waits until one session of each is left, and checks that it is the one that Redis
/// knows. Returns how often it is the one of the first login.
fn race(
    redis: &dyn Deployment,
    gateways: &[Gateway; 2],
    users: std::ops::Range<u64>,
    second: Second,
) -> usize {
    let count = users.end - users.start;
    let operators = gateways.each_ref().map(Gateway::operator);
    let all_sessions = || operators.iter().map(sessions).sum::<u64>();
    let ids = gateways.each_ref().map(|gateway| {
        let marker = u64::from(gateway.clients().port()) << 32;
        let _phone = gateway.login(marker);
        let entry = wait_until_online(redis, marker);
        entry.split(':').next().unwrap().to_owned()
    });
    until("the marks have left", || (all_sessions() == 0).then_some(()));
    // The phones of each user in the order of its logins, and the gateways that they are at.
    let mut logins: Vec<(u64, [(Phone, usize); 2])> = users
        .map(|user_id| {
            let first = usize::from(user_id % 2 == 1);
            (user_id, [first, 1 - first].map(|at| (gateways[at].connect(), at)))
        })
        .collect();
    for (user_id, phones) in &mut logins {
        for (phone, _) in phones {
            if second == Second::AfterTheFirstAnswer {
                phone.login(*user_id);
            } else {
                phone.send_login(*user_id, &format!("token-{user_id}"));
            }
        }
    }
    until("one session of each user is left", || (all_sessions() == count).then_some(()));
    let mut won_by_first = 0;
    for (user_id, phones) in &mut logins {
        let entry = online(redis, *user_id);
        assert!(!entry.contains(' '), "{entry}");
        for (order, (phone, at)) in phones.iter_mut().enumerate() {
            if entry.starts_with(&format!("{}:", ids[*at])) {
                phone.assert_is_served();
                won_by_first += usize::from(order == 0);
            } else {
                assert_eq!(phone.wait_for_goodbye().code, Some(Code::Replaced), "{entry}");
            }
        }
    }
    assert_eq!(all_sessions(), count, "no winner was closed later");
    drop(logins);
    until("all have left", || (all_sessions() == 0).then_some(()));
    won_by_first
}

fn logins_that_race_leave_one_session(redis: &mut dyn Deployment) {
    let gateways = [(); 2].map(|()| start(setup(redis)));
    race(redis, &gateways, 0..200, Second::AtOnce);
}

/// `cargo test -p tidegate-tests --test cluster_users -- --ignored --nocapture ten_thousand`
#[test]
#[ignore = "takes minutes; and which of two logins within a tenth of a millisecond is newer depends on the machine"]
fn of_ten_thousand_races_one_session_is_left_each_and_it_is_the_newer_one() {
    let redis = &Redis::single();
    let gateways = [(); 2].map(|()| start(setup(redis)));
    let rounds = std::env::var("RACE_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap());
    let all = |second| -> usize {
        (0..rounds)
            .map(|round| race(redis, &gateways, 200 * round..200 * (round + 1), second))
            .sum()
    };
    let races = 200 * rounds;
    let first = all(Second::AtOnce);
    println!(
        "{races} pairs of logins at once: one session left of each; {first} times the first one"
    );
    let first = all(Second::AfterTheFirstAnswer);
    println!("{races} logins after a login: one session left of each; {first} times the first one");
    assert_eq!(first, 0);
}

/// Both at once, apart from the other tests, since it takes as long as a gateway may be silent.
#[test]
fn the_users_of_a_gateway_that_was_killed_go_offline_on_each_deployment() {
    thread::scope(|scope| {
        scope.spawn(|| users_of_a_killed_gateway_go_offline(&mut Cluster::start()));
        users_of_a_killed_gateway_go_offline(&mut Redis::single());
    });
}

fn users_of_a_killed_gateway_go_offline(redis: &mut dyn Deployment) {
    let grace = |setup: Setup| setup.set("redis.offline_grace_ms", 100);
    let mut dying = start(grace(setup(redis)));
    let other = start(grace(setup(redis)));
    let _phones = [dying.login(7), other.login(8)];
    wait_until_online(redis, 7);
    wait_until_online(redis, 8);
    let operator = other.operator();
    operator.wait_for_metric("tidegate_gateways_alive", "", |count| count == 2.0);
    dying.process.kill();
    wait_until_offline(redis, 7);
    // A push finds nobody.
    assert_eq!(operator.push_user(7, 5, b"x"), 0);
    operator.wait_for_metric("tidegate_gateways_alive", "", |count| count == 1.0);
    operator.wait_for_metric("tidegate_presence_swept_total", "", |count| count == 1.0);
    operator.wait_for_metric("tidegate_offline_events_total", "", |count| count == 1.0);
    let events = offline_events(redis);
    assert!(events.contains("user\n7\nat\n"), "{events}");
    assert!(online(redis, 8).contains(':'));
}

fn an_event_says_that_a_user_went_offline_and_can_be_read_again(redis: &mut dyn Deployment) {
    let gateway = start(setup(redis).set("redis.offline_grace_ms", 0));
    let phone = gateway.login(7);
    wait_until_online(redis, 7);
    drop(phone);
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_offline_events_total", "", |count| count == 1.0);
    let events = offline_events(redis);
    assert!(events.contains("user\n7\nat\n"), "{events}");
    assert_eq!(offline_events(redis), events, "a backend that has failed reads it again");
    until("the event comes once", || {
        (redis.cli(&["ZCARD", "tg1:users:{u7}:left"]) == "0").then_some(())
    });
}

fn a_user_who_reconnects_within_the_grace_time_was_never_offline(redis: &mut dyn Deployment) {
    let gateway = start(setup(redis).set("redis.offline_grace_ms", 3_600_000));
    let count = || redis.cli(&["ZCARD", "tg1:users:{u7}:left"]);
    let phone = gateway.login(7);
    wait_until_online(redis, 7);
    drop(phone);
    until("the user is on the list", || (count() == "1").then_some(()));
    let _phone = gateway.login(7);
    until("the user is off the list", || (count() == "0").then_some(()));
    assert_eq!(offline_events(redis), "");
}

fn while_redis_hangs_logins_succeed_and_the_newer_one_wins_when_it_is_back(
    redis: &mut dyn Deployment,
) {
    let gateways = [(); 2].map(|()| start(setup(redis)));
    let mut kept = gateways[0].login(1);
    wait_until_online(redis, 1);
    redis.pause();
    let mut old = gateways[1].login(7);
    let mut new = gateways[0].login(7);
    // A session from before, which a login replaces while nobody can say so.
    let mut newer = gateways[1].login(1);
    [&mut kept, &mut old, &mut new, &mut newer].into_iter().for_each(Phone::assert_is_served);
    // Users who come and go meanwhile leave nothing behind.
    (100..150).for_each(|user_id| drop(gateways[0].login(user_id)));
    let operators = gateways.each_ref().map(Gateway::operator);
    for operator in &operators {
        operator.wait_for_metric("tidegate_presence_up", "", |up| up == 0.0);
    }
    redis.resume();
    old.goodbye(Code::Replaced);
    kept.goodbye(Code::Replaced);
    new.assert_is_served();
    newer.assert_is_served();
    for user_id in [1, 7] {
        let entry = wait_until_online(redis, user_id);
        assert!(!entry.contains(' '), "{entry}");
    }
    // Some had reached Redis before it hung: then their end follows when it is back.
    until("nothing is left of the users who came and went", || {
        (100..150).all(|user_id| online(redis, user_id).is_empty()).then_some(())
    });
}

fn users_are_known_again_to_a_redis_that_lost_its_data(redis: &mut dyn Deployment) {
    let gateways = [(); 2].map(|()| start(setup(redis)));
    let mut phones: Vec<_> = (0..100).map(|user_id| gateways[0].login(user_id)).collect();
    wait_until_online(redis, 99);
    redis.kill();
    // Waits for Redis, and has its outcome when Redis is back.
    let operator = gateways[1].operator();
    operator.wait_for_metric("tidegate_presence_up", "", |up| up == 0.0);
    let gone = gateways[0].login(200);
    drop(gone);
    redis.restart();
    for user_id in 0..100 {
        wait_until_online(redis, user_id);
    }
    until("the user who has left is not online", || online(redis, 200).is_empty().then_some(()));
    // The other gateway has presented its users again. This one may still try to connect.
    for link in ["tidegate_presence_up", "tidegate_redis_up"] {
        operator.wait_for_metric(link, "", |up| up >= 1.0);
    }
    assert_eq!(operator.push_user(5, 9, b"again"), 1);
    assert_eq!(phones[5].push().biz_data, "again");
}

fn a_push_waits_for_redis_and_is_refused_in_time(redis: &mut dyn Deployment) {
    let gateway = start(setup(redis).set("redis.push_wait_ms", 1_000));
    let mut phone = gateway.login(7);
    redis.kill();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_presence_up", "", |up| up == 0.0);
    let (status, body) = operator.post("/push/users/7?type=5", b"here");
    // The sessions of this gateway have it all the same.
    assert_eq!(phone.push().biz_data, "here");
    assert!(status >= 500 && body.contains("Redis"), "{status} {body}");
    redis.restart();
}

fn a_gateway_that_ends_in_order_leaves_no_user_behind(redis: &mut dyn Deployment) {
    let mut gateway = start(setup(redis));
    let _phones: Vec<_> = (0..50).map(|user_id| gateway.login(user_id)).collect();
    wait_until_online(redis, 49);
    gateway.terminate();
    gateway.process.wait();
    assert!((0..50).all(|user_id| online(redis, user_id).is_empty()));
}

fn users_are_counted_over_all_gateways(redis: &mut dyn Deployment) {
    let gateways = [(); 2].map(|()| start(setup(redis).set("session.login", "many")));
    let _phones: Vec<_> = (0..30)
        .map(|user_id| gateways[usize::from(user_id % 3 == 0)].login(user_id))
        .chain([gateways[0].login(0)])
        .collect();
    for gateway in &gateways {
        gateway.operator().wait_for_metric("tidegate_cluster_users", "", |count| count == 30.0);
        let operator = gateway.operator();
        operator.wait_for_metric("tidegate_gateways_alive", "", |count| count == 2.0);
    }
}

/// Pushes to a user at another gateway until a gateway hears the push.
fn push_until_heard(operator: &Operator, user_id: u64, text: &str) {
    let mut unheard = 0;
    until("a gateway hears the push", || {
        let path = format!("/push/users/{user_id}?type=5&key={text}.{unheard}");
        let (status, answer) = operator.post(&path, text.as_bytes());
        if status != 200 {
            // Whether Redis has carried it out is unknown. With the same key, it does so once.
            assert!(status >= 500, "{status} {answer}");
            return None;
        }
        let is_heard = answer.contains(r#""connections":1"#);
        // Redis remembers for the key that no gateway heard the push.
        unheard += u32::from(!is_heard);
        is_heard.then_some(())
    });
}

/// Moves the slot of a key from node to node. `is_back` tells when the gateways serve its users again after a move.
fn move_often(cluster: &Cluster, key: &str, is_back: impl Fn() -> bool) {
    let slot = cluster.slot_of(key);
    for _ in 0..6 {
        cluster.move_slot(slot, (cluster.owner_of(slot) + 1) % 3);
        until("the gateways serve the users of the slot", || is_back().then_some(()));
    }
}

#[test]
fn no_push_is_lost_unnoticed_while_the_slot_of_its_users_moves() {
    let cluster = Cluster::start();
    let gateways = [(); 2].map(|()| start(setup(&cluster)));
    let operators = gateways.each_ref().map(Gateway::operator);
    // All in one partition, and so in one slot.
    let users: Vec<u64> = (0..6).map(|number| 7 + 128 * number).collect();
    let at = |user_id: u64| usize::from(user_id % 256 == 7);
    let mut phones: Vec<_> = users.iter().map(|&user| gateways[at(user)].login(user)).collect();
    users.iter().for_each(|&user| drop(wait_until_online(&cluster, user)));
    let mut count = 0;
    let are_online = || users.iter().all(|&user| online(&cluster, user).contains(':'));
    thread::scope(|scope| {
        let mover = scope.spawn(|| move_often(&cluster, &users_key(7), are_online));
        while !mover.is_finished() {
            let text = count.to_string();
            for &user in &users {
                if count % 2 == 0 {
                    until("a gateway hears the push", || {
                        let answer = call(&cluster, "tidegate_push_user", user, &["5", &text]);
                        answer.lines().eq(["1", "1"]).then_some(())
                    });
                } else {
                    push_until_heard(&operators[1 - at(user)], user, &text);
                }
            }
            count += 1;
        }
        mover.join().unwrap();
    });
    for phone in &mut phones {
        let pushes = phone.pushes(count);
        let numbers = pushes.iter().map(|push| std::str::from_utf8(&push.biz_data).unwrap());
        assert!(numbers.eq((0..count).map(|number| number.to_string()).collect::<Vec<_>>()));
        assert!(phone.leftovers().is_empty(), "each push came once");
    }
    for operator in &operators {
        assert_eq!(metric(operator, "tidegate_user_messages_astray_total"), 0.0);
    }
    drop(phones);
    users.iter().for_each(|&user| wait_until_offline(&cluster, user));
}

#[test]
fn the_newer_login_wins_while_the_slot_of_its_user_moves() {
    let cluster = Cluster::start();
    let gateways = [(); 2].map(|()| start(setup(&cluster)));
    // Always at the same gateway: it must not be ended.
    let mut other = gateways[0].login(135);
    wait_until_online(&cluster, 135);
    let mut newest = gateways[0].login(7);
    let mut logins = 1;
    let are_online = || [7, 135].iter().all(|&user| online(&cluster, user).contains(':'));
    thread::scope(|scope| {
        let mover = scope.spawn(|| move_often(&cluster, &users_key(7), are_online));
        while !mover.is_finished() {
            let mut newer = gateways[logins % 2].login(7);
            newest.goodbye(Code::Replaced);
            newer.assert_is_served();
            newest = newer;
            logins += 1;
        }
        mover.join().unwrap();
    });
    newest.assert_is_served();
    other.assert_is_served();
    until("Redis knows the newest session alone", || {
        let entry = wait_until_online(&cluster, 7);
        (!entry.contains(' ')).then_some(())
    });
    drop(newest);
    wait_until_offline(&cluster, 7);
}

#[test]
fn a_failover_of_sentinel_keeps_presence_and_the_newest_login() {
    let mut redis = SentinelSet::start();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    let operators = gateways.each_ref().map(Gateway::operator);
    let mut phones: Vec<_> = (0..20).map(|user| gateways[0].login(user)).collect();
    (0..20).for_each(|user| drop(wait_until_online(&redis, user)));
    let master = until("the set has a master", || redis.master());
    redis.servers[master].kill();
    for operator in &operators {
        operator.wait_for_metric("tidegate_presence_up", "", |up| up == 0.0);
    }
    // Nobody can tell the other gateway of these logins now.
    let mut newer: Vec<_> = (0..10).map(|user| gateways[1].login(user)).collect();
    drop(phones.pop());
    let _new_master = redis.wait_for_another_master(master);
    for operator in &operators {
        operator.wait_for_metric("tidegate_presence_up", "", |up| up == 1.0);
    }
    for (old, new) in phones.iter_mut().zip(&mut newer) {
        old.goodbye(Code::Replaced);
        new.assert_is_served();
    }
    wait_until_offline(&redis, 19);
    for user in 0..19_u64 {
        let holder = usize::from(user < 10);
        let text = format!("to {user}");
        until("the push finds the user", || {
            (operators[1 - holder].push_user(user, 5, text.as_bytes()) == 1).then_some(())
        });
        let phone = if holder == 1 { &mut newer[index(user)] } else { &mut phones[index(user)] };
        assert_eq!(phone.push().biz_data, text);
        let entry = online(&redis, user);
        assert!(entry.contains(':') && !entry.contains(' '), "{user}: {entry}");
    }
    // And a login after the failover wins.
    let mut newest = gateways[0].login(0);
    newer[0].goodbye(Code::Replaced);
    newest.assert_is_served();
}

fn index(user_id: u64) -> usize {
    usize::try_from(user_id).unwrap()
}
