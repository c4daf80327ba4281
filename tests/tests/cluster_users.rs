//! Users over several gateways: real gateways and a real Redis.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use tidegate_tests::{Code, Gateway, Operator, Phone, Redis, Setup, until};

const MESSAGES: &str = "tidegate_user_messages_total";

/// A gateway of a set that shares this Redis.
fn setup(redis: &Redis) -> Setup {
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
fn call(redis: &Redis, function: &str, user_id: u64, arguments: &[&str]) -> String {
    let (key, user) = (users_key(user_id), user_id.to_string());
    let mut words = vec!["FCALL", function, "1", &key, &user];
    words.extend(arguments);
    redis.cli(&words)
}

/// The gateways at which Redis knows a user: `gateway:stamp`, separated by spaces.
fn online(redis: &Redis, user_id: u64) -> String {
    call(redis, "tidegate_online", user_id, &[])
}

fn wait_until_online(redis: &Redis, user_id: u64) -> String {
    until("Redis knows the user", || {
        let gateways = online(redis, user_id);
        gateways.contains(':').then_some(gateways)
    })
}

fn wait_until_offline(redis: &Redis, user_id: u64) {
    until("Redis knows no session of the user", || online(redis, user_id).is_empty().then_some(()));
}

/// The events that users went offline.
fn offline_events(redis: &Redis) -> String {
    redis.cli(&["XRANGE", "tg1:offline", "-", "+"])
}

fn metric(operator: &Operator, name: &str) -> f64 {
    operator.metric(name, "").unwrap_or(0.0)
}

/// The number of sessions of a gateway.
fn sessions(operator: &Operator) -> u64 {
    operator.json("/stats")["totals"]["sessions"].as_u64().unwrap()
}

#[test]
fn a_push_goes_to_the_gateways_that_hold_the_user_and_to_no_other() {
    let redis = Redis::single();
    let gateways = [(); 3].map(|()| start(setup(&redis).set("session.login", "many")));
    let operators = gateways.each_ref().map(Gateway::operator);
    let mut phone = gateways[1].login(7);
    wait_until_online(&redis, 7);
    // One connection at this gateway counts as one, and another gateway that receives it counts as one.
    assert_eq!(operators[0].push_user(7, 5, b"to another gateway"), 1);
    assert_eq!(phone.push().biz_data, "to another gateway");
    let mut here = [gateways[0].login(7), gateways[0].login(7)];
    until("Redis knows both gateways", || online(&redis, 7).contains(' ').then_some(()));
    assert_eq!(operators[0].push_user(7, 5, b"everywhere"), 3);
    assert_eq!(phone.push().biz_data, "everywhere");
    here.iter_mut().for_each(|phone| assert_eq!(phone.push().biz_data, "everywhere"));
    assert_eq!(operators[1].push_user(7, 5, b"from the other one"), 2);
    assert_eq!(phone.push().biz_data, "from the other one");
    here.iter_mut().for_each(|phone| assert_eq!(phone.push().biz_data, "from the other one"));
    // From anybody who speaks Redis.
    let answer = call(&redis, "tidegate_push_user", 7, &["5", "from a script"]);
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

#[test]
fn pushes_to_one_user_at_another_gateway_keep_their_order() {
    const PUSHES: usize = 500;
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    let mut phone = gateways[1].login(7);
    wait_until_online(&redis, 7);
    let operator = gateways[0].operator();
    for number in 0..PUSHES {
        assert_eq!(operator.push_user(7, 5, number.to_string().as_bytes()), 1);
    }
    let pushes = phone.pushes(PUSHES);
    let numbers = pushes.iter().map(|push| std::str::from_utf8(&push.biz_data).unwrap());
    assert!(numbers.eq((0..PUSHES).map(|number| number.to_string()).collect::<Vec<_>>()));
}

#[test]
fn a_kick_and_an_expulsion_reach_other_gateways() {
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    let mut phone = gateways[1].login(7);
    phone.join("quiz", 0);
    phone.joined();
    wait_until_online(&redis, 7);
    let answer = call(&redis, "tidegate_expel", 7, &["quiz"]);
    assert_eq!(answer.split_whitespace().collect::<Vec<_>>(), ["1", "1"]);
    let left = phone.notice();
    assert!(format!("{left:?}").contains("Left(\"quiz\")"), "{left:?}");
    assert_eq!(gateways[0].operator().kick(7), 1);
    phone.goodbye(Code::Kicked);
    wait_until_offline(&redis, 7);
    assert_eq!(gateways[0].operator().kick(7), 0);
}

#[test]
fn the_newer_login_wins_over_gateways() {
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    for user_id in 0..20 {
        let mut old = gateways[0].login(user_id);
        wait_until_online(&redis, user_id);
        let mut new = gateways[1].login(user_id);
        old.goodbye(Code::Replaced);
        new.assert_is_served();
        // And back, where the user was before.
        let mut newest = gateways[0].login(user_id);
        new.goodbye(Code::Replaced);
        newest.assert_is_served();
        let at = online(&redis, user_id);
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
    redis: &Redis,
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

#[test]
fn logins_that_race_leave_one_session() {
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    race(&redis, &gateways, 0..200, Second::AtOnce);
}

/// `cargo test -p tidegate-tests --test cluster_users -- --ignored --nocapture ten_thousand`
#[test]
#[ignore = "takes minutes; and which of two logins within a tenth of a millisecond is newer depends on the machine"]
fn of_ten_thousand_races_one_session_is_left_each_and_it_is_the_newer_one() {
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    let rounds = std::env::var("RACE_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap());
    let all = |second| -> usize {
        (0..rounds)
            .map(|round| race(&redis, &gateways, 200 * round..200 * (round + 1), second))
            .sum()
    };
    let first = all(Second::AtOnce);
    println!(
        "10000 pairs of logins at once: one session left of each; {first} times the first one"
    );
    let first = all(Second::AfterTheFirstAnswer);
    println!("10000 logins after a login: one session left of each; {first} times the first one");
    assert_eq!(first, 0);
}

#[test]
fn the_users_of_a_gateway_that_was_killed_go_offline() {
    let redis = Redis::single();
    let grace = |setup: Setup| setup.set("redis.offline_grace_ms", 100);
    let mut dying = start(grace(setup(&redis)));
    let other = start(grace(setup(&redis)));
    let _phones = [dying.login(7), other.login(8)];
    wait_until_online(&redis, 7);
    wait_until_online(&redis, 8);
    let operator = other.operator();
    operator.wait_for_metric("tidegate_cluster_gateways", "", |count| count == 2.0);
    dying.process.kill();
    wait_until_offline(&redis, 7);
    // A push finds nobody.
    assert_eq!(operator.push_user(7, 5, b"x"), 0);
    operator.wait_for_metric("tidegate_cluster_gateways", "", |count| count == 1.0);
    operator.wait_for_metric("tidegate_presence_swept_total", "", |count| count == 1.0);
    operator.wait_for_metric("tidegate_offline_events_total", "", |count| count == 1.0);
    let events = offline_events(&redis);
    assert!(events.contains("user\n7\nat\n"), "{events}");
    assert!(online(&redis, 8).contains(':'));
}

#[test]
fn an_event_says_that_a_user_went_offline_and_can_be_read_again() {
    let redis = Redis::single();
    let gateway = start(setup(&redis).set("redis.offline_grace_ms", 0));
    let phone = gateway.login(7);
    wait_until_online(&redis, 7);
    drop(phone);
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_offline_events_total", "", |count| count == 1.0);
    let events = offline_events(&redis);
    assert!(events.contains("user\n7\nat\n"), "{events}");
    assert_eq!(offline_events(&redis), events, "a backend that has failed reads it again");
    until("the event comes once", || {
        (redis.cli(&["ZCARD", "tg1:users:{u7}:left"]) == "0").then_some(())
    });
}

#[test]
fn a_user_who_reconnects_within_the_grace_time_was_never_offline() {
    let redis = Redis::single();
    let gateway = start(setup(&redis).set("redis.offline_grace_ms", 3_600_000));
    let count = || redis.cli(&["ZCARD", "tg1:users:{u7}:left"]);
    let phone = gateway.login(7);
    wait_until_online(&redis, 7);
    drop(phone);
    until("the user is on the list", || (count() == "1").then_some(()));
    let _phone = gateway.login(7);
    until("the user is off the list", || (count() == "0").then_some(()));
    assert_eq!(offline_events(&redis), "");
}

#[test]
fn while_redis_hangs_logins_succeed_and_the_newer_one_wins_when_it_is_back() {
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    let mut kept = gateways[0].login(1);
    wait_until_online(&redis, 1);
    redis.pause();
    let mut old = gateways[1].login(7);
    let mut new = gateways[0].login(7);
    // A session from before, which a login replaces while no message can arrive.
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
        let entry = wait_until_online(&redis, user_id);
        assert!(!entry.contains(' '), "{entry}");
    }
    assert!((100..150).all(|user_id| online(&redis, user_id).is_empty()));
}

#[test]
fn users_are_known_again_to_a_redis_that_lost_its_data() {
    let mut redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis)));
    let mut phones: Vec<_> = (0..100).map(|user_id| gateways[0].login(user_id)).collect();
    wait_until_online(&redis, 99);
    redis.kill();
    // Waits for Redis, and has its outcome when Redis is back.
    let operator = gateways[1].operator();
    operator.wait_for_metric("tidegate_presence_up", "", |up| up == 0.0);
    let gone = gateways[0].login(200);
    drop(gone);
    redis.restart();
    for user_id in 0..100 {
        wait_until_online(&redis, user_id);
    }
    assert_eq!(online(&redis, 200), "");
    assert_eq!(operator.push_user(5, 9, b"again"), 1);
    assert_eq!(phones[5].push().biz_data, "again");
}

#[test]
fn a_push_waits_for_redis_and_is_refused_in_time() {
    let mut redis = Redis::single();
    let gateway = start(setup(&redis).set("redis.push_wait_ms", 1_000));
    let mut phone = gateway.login(7);
    redis.kill();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_presence_up", "", |up| up == 0.0);
    let (status, body) = operator.post("/push/users/7?type=5", b"here");
    // The sessions of this gateway have it all the same.
    assert_eq!(phone.push().biz_data, "here");
    assert!(status >= 500 && body.contains("Redis"), "{status} {body}");
}

#[test]
fn a_gateway_that_ends_in_order_leaves_no_user_behind() {
    let redis = Redis::single();
    let mut gateway = start(setup(&redis));
    let _phones: Vec<_> = (0..50).map(|user_id| gateway.login(user_id)).collect();
    wait_until_online(&redis, 49);
    gateway.terminate();
    gateway.process.wait();
    assert!((0..50).all(|user_id| online(&redis, user_id).is_empty()));
}

#[test]
fn users_are_counted_over_all_gateways() {
    let redis = Redis::single();
    let gateways = [(); 2].map(|()| start(setup(&redis).set("session.login", "many")));
    let _phones: Vec<_> = (0..30)
        .map(|user_id| gateways[usize::from(user_id % 3 == 0)].login(user_id))
        .chain([gateways[0].login(0)])
        .collect();
    for gateway in &gateways {
        gateway.operator().wait_for_metric("tidegate_cluster_users", "", |count| count == 30.0);
        let operator = gateway.operator();
        operator.wait_for_metric("tidegate_cluster_gateways", "", |count| count == 2.0);
    }
}
