//! Session tokens that the app's login writes to a real Redis: `auth.mode = "redis"`.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::{Command, Stdio};
use std::thread;

use tidegate::auth::TokenDigest;
use tidegate_protocol::Code;
use tidegate_tests::phone::demo;
use tidegate_tests::web::{Raw, Web};
use tidegate_tests::{
    Cluster, Deployment, Gateway, Phone, Redis, Setup, on_each_deployment, until,
};

const CHECKS: &str = "tidegate_token_checks_total";

/// Longer than a test: sessions are checked only after a doubt, and a client may wait for Redis before it logs in.
const NEVER_MS: u32 = 86_400_000;

fn setup(url: &str) -> Setup {
    Setup::jwt()
        .shards(2)
        .set("auth.mode", "redis")
        .set("auth.recheck_ms", NEVER_MS)
        .set("auth.timeout_ms", NEVER_MS)
        .set("session.login", "many")
        .set("redis.url", format!("\"{url}\""))
}

fn start(setup: Setup) -> Gateway {
    let gateway = setup.start();
    wait_for_revocations(&gateway);
    gateway
}

/// Waits until the gateway receives all revocations.
fn wait_for_revocations(gateway: &Gateway) {
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_token_partitions_heard", "", |heard| heard == 128.0);
}

fn partition_key(user_id: u64) -> String {
    format!("tg1:tokens:{{u{}}}", user_id % 128)
}

fn token_key(user_id: u64, token: &str) -> String {
    format!("{}:{user_id}:{}", partition_key(user_id), TokenDigest::of(token))
}

/// Does what the app's login does.
fn issue(redis: &dyn Deployment, user_id: u64, token: &str) {
    redis.ok(&["SET", &token_key(user_id, token), "1", "EX", "86400"]);
}

/// Returns how many gateways received it.
fn revoke(redis: &dyn Deployment, user_id: u64, digest: &str) -> String {
    let (key, user_id) = (partition_key(user_id), user_id.to_string());
    let answer = redis.cli(&["FCALL", "tidegate_revoke", "1", &key, &user_id, digest]);
    answer.lines().last().unwrap_or_default().to_owned()
}

fn login(gateway: &Gateway, user_id: u64, token: &str) -> Phone {
    let mut phone = gateway.connect();
    phone.login_with(user_id, token);
    phone
}

/// The code with which a login fails.
fn refusal(phone: &mut Phone, user_id: u64, token: &str) -> Option<Code> {
    phone.try_login(user_id, token).expect_err("the login should fail").code
}

on_each_deployment!(
    a_token_that_the_apps_login_has_written_opens_a_session,
    wrong_tokens_close_the_connection_as_with_any_mode,
    requests_right_behind_the_authentication_are_served_in_order,
    a_session_ends_with_its_token_unless_a_fresh_one_is_shown,
    a_revoked_token_ends_its_sessions_on_all_gateways,
    while_redis_is_away_logins_get_104_with_a_wait_and_sessions_continue,
    a_revocation_that_was_missed_is_noticed_after_the_connection_is_made_again,
    sessions_are_checked_now_and_then_though_nothing_was_missed,
    many_logins_take_few_commands,
);

fn a_token_that_the_apps_login_has_written_opens_a_session(redis: &mut dyn Deployment) {
    let gateway = start(setup(&redis.url()).set("auth.failures_max", 255));
    // As any program makes it.
    let shell = "printf %s \"$0\" | sha256sum | cut -c1-64";
    let digest = Command::new("sh").args(["-c", shell, "a token"]).stdout(Stdio::piped()).output();
    let digest = String::from_utf8(digest.unwrap().stdout).unwrap();
    let key = format!("tg1:tokens:{{u7}}:7:{}", digest.trim());
    redis.ok(&["SET", &key, "whatever the app keeps there", "EX", "86400"]);
    let mut phone = gateway.connect();
    for (user_id, token) in [
        (7, "another token"),
        (8, "a token"),
        (7, digest.trim()),
        (7, "*"),
        (7, "a token\n"),
        (7, ""),
    ] {
        let code = refusal(&mut phone, user_id, token);
        assert_eq!(code, Some(Code::Unauthenticated), "{user_id} {token:?}");
    }
    let session = phone.login_with(7, "a token");
    assert_eq!(session.expires_in_ms, 0, "by default a token's end does not end a session");
    phone.assert_is_served();
    for user_id in [0, 127, 128, u64::MAX] {
        issue(redis, user_id, "same for all");
        login(&gateway, user_id, "same for all").assert_is_served();
    }
    for (reason, count) in [("unknown_token", 5.0), ("malformed", 1.0)] {
        let label = format!("reason=\"{reason}\"");
        gateway
            .operator()
            .wait_for_metric("tidegate_auth_failures_total", &label, |it| it == count);
    }
}

fn wrong_tokens_close_the_connection_as_with_any_mode(redis: &mut dyn Deployment) {
    let gateway = start(setup(&redis.url()).set("auth.failures_max", 2));
    let mut phone = gateway.connect();
    assert_eq!(refusal(&mut phone, 7, "wrong"), Some(Code::Unauthenticated));
    assert_eq!(refusal(&mut phone, 7, "wrong"), Some(Code::Unauthenticated));
    phone.end();
}

fn requests_right_behind_the_authentication_are_served_in_order(redis: &mut dyn Deployment) {
    let gateway = start(setup(&redis.url()));
    issue(redis, 7, "a");
    for _ in 0..20 {
        let mut phone = gateway.connect();
        let login = phone.send_login(7, "a");
        let requests: Vec<_> = (0..10_u8).map(|number| (demo::ECHO, [number])).collect();
        let sequences = phone.send_together(&requests);
        for (sequence, number) in sequences.into_iter().zip(0..) {
            assert_eq!(phone.outcome(sequence), Ok(vec![number].into()));
        }
        assert!(login > 0);
    }
}

fn a_session_ends_with_its_token_unless_a_fresh_one_is_shown(redis: &mut dyn Deployment) {
    let gateway = start(
        setup(&redis.url())
            .set("session.on_token_expiry", "close")
            .set("session.token_expiry_grace_ms", 0)
            .set("auth.leeway_ms", 0)
            .set("session.idle_timeout_ms", 40_000),
    );
    redis.ok(&["SET", &token_key(7, "short"), "1", "PX", "3000"]);
    issue(redis, 7, "long");
    let mut phones: Vec<_> = (0..2).map(|_| gateway.connect()).collect();
    for phone in &mut phones {
        let session = phone.login_with(7, "short");
        assert!((1..=3_000).contains(&session.expires_in_ms), "{session:?}");
    }
    let renewed = phones[1].login_with(7, "long");
    assert!(renewed.expires_in_ms > 80_000_000, "{renewed:?}");
    assert_eq!(renewed.session_id, phones[1].session().session_id);
    phones[0].goodbye(Code::Unauthenticated);
    phones[1].assert_is_served();
    assert_eq!(refusal(&mut phones[1], 7, "short"), Some(Code::Unauthenticated));
    phones[1].assert_is_served();
}

fn a_revoked_token_ends_its_sessions_on_all_gateways(redis: &mut dyn Deployment) {
    let gateways = [start(setup(&redis.url())), start(setup(&redis.url()))];
    for (user_id, token) in [(7, "a"), (7, "b"), (7 + 128, "a")] {
        issue(redis, user_id, token);
    }
    let on_both = |user_id, token| gateways.each_ref().map(|it| login(it, user_id, token));
    let mut revoked = [on_both(7, "a"), on_both(7, "a")].into_iter().flatten().collect::<Vec<_>>();
    let mut others = [on_both(7, "b"), on_both(7 + 128, "a")];
    // It came with the token, and has shown another one since.
    let mut renewed = login(&gateways[0], 7, "a");
    renewed.login_with(7, "b");
    assert_eq!(revoke(redis, 7, &TokenDigest::of("a").to_string()), "2");
    for phone in &mut revoked {
        phone.goodbye(Code::Kicked);
    }
    assert_eq!(refusal(&mut gateways[0].connect(), 7, "a"), Some(Code::Unauthenticated));
    others.iter_mut().flatten().for_each(Phone::assert_is_served);
    renewed.assert_is_served();
    assert_eq!(revoke(redis, 7, "*"), "2");
    for phone in others[0].iter_mut().chain([&mut renewed]) {
        phone.goodbye(Code::Kicked);
    }
    others[1].iter_mut().for_each(Phone::assert_is_served);
    for gateway in &gateways {
        let label = "reason=\"token_revoked\"";
        let closed = |count| count >= 3.0;
        gateway.operator().wait_for_metric("tidegate_connections_closed_total", label, closed);
    }
}

fn while_redis_is_away_logins_get_104_with_a_wait_and_sessions_continue(
    redis: &mut dyn Deployment,
) {
    let gateway = start(setup(&redis.url()).set("auth.failures_max", 1));
    issue(redis, 7, "a");
    let mut here = login(&gateway, 7, "a");
    redis.pause();
    let mut late = gateway.connect();
    for _ in 0..3 {
        let failure = late.try_login(7, "a").expect_err("nobody can know");
        assert_eq!(failure.code, Some(Code::Overloaded));
        let retry_after_ms = failure.retry_after.as_millis();
        assert!((1_000..2_100).contains(&retry_after_ms), "{failure:?}");
    }
    // A session that shows a fresh token stays.
    let renewal = here.send_login(7, "a");
    here.assert_is_served();
    here.fails(renewal, Code::Overloaded);
    here.assert_is_served();
    redis.resume();
    wait_for_revocations(&gateway);
    until("the login goes on", || late.try_login(7, "a").ok());
    late.assert_is_served();
    // Its failures did not count: one more, and the connection is closed.
    assert_eq!(refusal(&mut gateway.connect(), 7, "wrong"), Some(Code::Unauthenticated));
}

fn a_revocation_that_was_missed_is_noticed_after_the_connection_is_made_again(
    redis: &mut dyn Deployment,
) {
    let gateway = start(setup(&redis.url()));
    for (user_id, token) in [(7, "a"), (7, "b"), (8, "a")] {
        issue(redis, user_id, token);
    }
    let mut missed = login(&gateway, 7, "a");
    let mut others = [login(&gateway, 7, "b"), login(&gateway, 8, "a")];
    redis.pause();
    gateway.operator().wait_for_metric("tidegate_redis_tokens_up", "", |up| up == 0.0);
    redis.resume();
    // Nobody hears this, whether the connection is there or not.
    assert_eq!(redis.cli(&["DEL", &token_key(7, "a")]), "1");
    missed.goodbye(Code::Kicked);
    others.iter_mut().for_each(Phone::assert_is_served);
    gateway.operator().wait_for_metric(CHECKS, "", |checks| checks >= 1.0);
}

fn sessions_are_checked_now_and_then_though_nothing_was_missed(redis: &mut dyn Deployment) {
    let gateway = start(
        setup(&redis.url()).set("auth.recheck_ms", 1_000).set("session.on_token_expiry", "close"),
    );
    issue(redis, 7, "a");
    issue(redis, 8, "a");
    let (mut gone, mut stays) = (login(&gateway, 7, "a"), login(&gateway, 8, "a"));
    assert!(stays.session().expires_in_ms > 0);
    assert_eq!(redis.cli(&["DEL", &token_key(7, "a")]), "1");
    gone.goodbye(Code::Kicked);
    // The app has prolonged the token; the session follows it.
    assert_eq!(redis.cli(&["PERSIST", &token_key(8, "a")]), "1");
    let checks = gateway.operator().metric(CHECKS, "").unwrap();
    gateway.operator().wait_for_metric(CHECKS, "", |now| now >= checks + 2.0);
    stays.assert_is_served();
}

fn many_logins_take_few_commands(redis: &mut dyn Deployment) {
    const LOGINS: usize = 300;
    let gateway = start(setup(&redis.url()));
    // All in two partitions.
    let users: Vec<_> = (0..LOGINS as u64).map(|number| number / 2 * 128 + number % 2).collect();
    let keys: Vec<_> = users.iter().map(|&user_id| token_key(user_id, "a")).collect();
    for partition in 0..2 {
        // Of one slot.
        let keys = keys.iter().skip(partition).step_by(2);
        let set = keys.flat_map(|key| [key.as_str(), "1"]);
        redis.ok(&["MSET"].into_iter().chain(set).collect::<Vec<_>>());
    }
    let mut phones: Vec<_> = users.iter().map(|_| gateway.connect()).collect();
    log_all_commands(redis, true);
    redis.pause();
    for (phone, &user_id) in phones.iter_mut().zip(&users) {
        phone.send_login(user_id, "a");
    }
    redis.resume();
    let mut repeated = 0;
    for (phone, &user_id) in phones.iter_mut().zip(&users) {
        // On a machine that is too slow for the above, it got 104.
        if phone.ask(demo::ECHO, b"in?").is_err() {
            until("it logs in", || {
                repeated += 1;
                phone.try_login(user_id, "a").ok()
            });
        }
    }
    let lookups = logged_lookups(redis);
    log_all_commands(redis, false);
    assert!(lookups >= 2, "each partition has its own");
    assert!(lookups <= LOGINS / 5 + repeated, "{LOGINS} logins took {lookups} commands");
}

/// Whether Redis logs each command.
fn log_all_commands(redis: &dyn Deployment, is_on: bool) {
    let slower_than_us = if is_on { "0" } else { "-1" };
    for server in redis.servers() {
        server.ok(&["CONFIG", "SET", "slowlog-max-len", "100000"]);
        server.ok(&["CONFIG", "SET", "slowlog-log-slower-than", slower_than_us]);
    }
}

/// The commands in Redis' log that look tokens up.
fn logged_lookups(redis: &dyn Deployment) -> usize {
    let logs = redis.servers().iter().map(|server| server.cli(&["SLOWLOG", "GET", "-1"]));
    let is_lookup = |line: &&str| *line == "tidegate_tokens";
    logs.map(|log| log.lines().filter(is_lookup).count()).sum()
}

#[test]
fn a_cluster_holds_tokens_on_all_of_its_nodes() {
    let cluster = Cluster::start();
    let gateway = start(setup(&cluster.url()));
    for user_id in 0..12 {
        issue(&cluster, user_id, "a");
    }
    let mut phones: Vec<_> = (0..12).map(|user_id| login(&gateway, user_id, "a")).collect();
    for (user_id, phone) in (0..).zip(&mut phones).step_by(2) {
        assert_eq!(revoke(&cluster, user_id, &TokenDigest::of("a").to_string()), "1");
        phone.goodbye(Code::Kicked);
    }
    phones.iter_mut().skip(1).step_by(2).for_each(Phone::assert_is_served);
}

#[test]
fn a_request_over_http_shows_a_token_in_redis_and_says_whose_it_is() {
    let redis = Redis::single();
    let setup = setup(&redis.url())
        .set("listeners.web.listen", "127.0.0.1:0")
        .set("listeners.web.wire", "http")
        .set("http_routes", "[{path=\"/echo\",type=1}]");
    let gateway = start(setup);
    let web = Web::new(&gateway);
    let ask = |user_id: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Tidegate-User", user_id)];
        web.ask("POST", "/echo", &headers, b"1")
    };
    issue(&redis, 7, "good");
    assert_eq!(ask("7", "good").ok(), "1");
    assert_eq!(ask("8", "good").code(401), 100);
    assert_eq!(ask("7", "bad").code(401), 100);
    let nobody = web.ask("POST", "/echo", &[("Authorization", "Bearer good")], b"1");
    assert_eq!(nobody.code(401), 100);
    assert!(nobody.body.contains("Tidegate-User"), "{nobody:?}");
    // Each request looks the token up, so a revocation holds at once.
    revoke(&redis, 7, &TokenDigest::of("good").to_string());
    assert_eq!(ask("7", "good").code(401), 100);
}

#[test]
fn requests_over_http_have_a_share_of_the_lookups_and_others_wait() {
    let redis = Redis::single();
    // Each of two shards, and HTTP, may look one token up at a time.
    let setup = setup(&redis.url())
        .set("listeners.web.listen", "127.0.0.1:0")
        .set("listeners.web.wire", "http")
        .set("http_routes", "[{path=\"/echo\",type=1}]")
        .set("auth.lookups_max", 2);
    let gateway = start(setup);
    redis.pause();
    let get = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTidegate-User: 7\r\nAuthorization: Bearer a\r\n\r\n1";
    let mut asked: Vec<_> = (0..5).map(|_| Raw::with(&gateway, get)).collect();
    for raw in &mut asked {
        let answer = raw.answer().unwrap();
        assert_eq!(answer.code(503), 104);
        assert!(answer.header("retry-after").is_some());
    }
    let refused = "tidegate_auth_failures_total";
    gateway.operator().wait_for_metric(refused, "too_many_verifications", |n| n >= 1.0);
    redis.resume();
}

/// Logs in, again and again while the gateway says that it can't know.
fn login_at_last(gateway: &Gateway, user_id: u64, token: &str) -> Phone {
    let mut phone = gateway.connect();
    until("the gateway can look the token up", || match phone.try_login(user_id, token) {
        Ok(_) => Some(()),
        Err(failure) => {
            assert_eq!(failure.code, Some(Code::Overloaded), "{failure:?}");
            None
        }
    });
    phone
}

#[test]
fn no_login_and_no_revocation_is_lost_while_the_slot_of_the_tokens_moves() {
    let cluster = Cluster::start();
    let gateways = [(); 2].map(|()| start(setup(&cluster.url())));
    let mut kept = Vec::new();
    let slot = cluster.slot_of(&partition_key(7));
    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for _ in 0..4 {
                cluster.move_slot(slot, (cluster.owner_of(slot) + 1) % 3);
                gateways.iter().for_each(wait_for_revocations);
            }
        });
        // All users are in one partition, and so in one slot.
        for user_id in (7..).step_by(128) {
            issue(&cluster, user_id, "kept");
            issue(&cluster, user_id, "revoked");
            let login = |token| gateways.each_ref().map(|it| login_at_last(it, user_id, token));
            kept.extend(login("kept"));
            let mut revoked = login("revoked");
            let digest = TokenDigest::of("revoked").to_string();
            until("the token is revoked", || {
                // How many gateways hear it, depends: those that don't find it out when they hear again.
                revoke(&cluster, user_id, &digest).parse::<u64>().ok()
            });
            for phone in &mut revoked {
                phone.goodbye(Code::Kicked);
            }
            if mover.is_finished() {
                break;
            }
        }
        mover.join().unwrap();
    });
    kept.iter_mut().for_each(Phone::assert_is_served);
}
