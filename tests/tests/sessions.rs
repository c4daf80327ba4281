//! Logins: tokens, and how many sessions a user may have.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use tidegate_tests::phone::quiz;
use tidegate_tests::{Code, Gateway, Phone, Setup};

#[derive(Serialize)]
struct Claims {
    sub: String,
    exp: u64,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(algorithm: Algorithm, key: &EncodingKey, user_id: u64, exp: u64) -> String {
    let claims = Claims { sub: user_id.to_string(), exp };
    jsonwebtoken::encode(&Header::new(algorithm), &claims, key).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../gateway/testdata").join(name)
}

/// The shards that hold a connection of a user.
fn shards_of(gateway: &Gateway, user_id: u64) -> BTreeSet<u64> {
    let user = gateway.operator().json(&format!("/users/{user_id}"));
    let connections = user["connections"].as_array().unwrap();
    connections.iter().map(|connection| connection["shard"].as_u64().unwrap()).collect()
}

/// Logs in until connections of the user are on two shards: the kernel spreads them by hash.
fn spread_over_two_shards(gateway: &Gateway, user_id: u64) -> Vec<Phone> {
    let mut phones = Vec::new();
    while shards_of(gateway, user_id).len() < 2 {
        assert!(phones.len() < 100, "a hundred connections are all on one shard");
        phones.push(gateway.login(user_id));
    }
    phones
}

#[test]
fn the_newest_login_wins_across_shards() {
    let gateway = Setup::demo().shards(4).start();
    let mut last = gateway.login(7);
    for _ in 0..20 {
        let mut newer = gateway.login(7);
        last.goodbye(Code::Replaced);
        newer.assert_is_served();
        last = newer;
    }
    assert_eq!(shards_of(&gateway, 7).len(), 1);
    let operator = gateway.operator();
    operator.wait_for_total("sessions", 1);
    operator.wait_for_total("users", 1);
    operator.wait_for_metric("tidegate_connections_closed_total", "replaced", |n| n == 20.0);
}

#[test]
fn the_oldest_session_is_replaced_beyond_connections_per_user_max() {
    let gateway = Setup::demo()
        .shards(4)
        .set("session.login", "many")
        .set("session.connections_per_user_max", 3)
        .start();
    let mut phones: Vec<_> = (0..3).map(|_| gateway.login(7)).collect();
    phones.iter_mut().for_each(Phone::assert_is_served);
    for _ in 0..5 {
        phones.push(gateway.login(7));
        phones.remove(0).goodbye(Code::Replaced);
        phones.iter_mut().for_each(Phone::assert_is_served);
    }
    // When a session ends, another one may open.
    drop(phones.remove(0));
    gateway.operator().wait_for_total("sessions", 2);
    phones.push(gateway.login(7));
    phones.iter_mut().for_each(Phone::assert_is_served);
}

#[test]
fn a_push_to_a_user_reaches_connections_on_all_shards() {
    let gateway = Setup::demo()
        .shards(4)
        .set("session.login", "many")
        .set("session.connections_per_user_max", 100)
        .start();
    let mut neighbour = gateway.login(8);
    let mut phones = spread_over_two_shards(&gateway, 7);
    let operator = gateway.operator();
    for text in ["one", "two", "three"] {
        assert_eq!(operator.push_user(7, 5, text.as_bytes()), phones.len() as u64);
    }
    for phone in &mut phones {
        for text in ["one", "two", "three"] {
            let push = phone.push();
            assert_eq!((push.kind, push.offset, &*push.biz_data), (5, 0, text.as_bytes()));
        }
    }
    assert_eq!(neighbour.leftovers(), []);
    let count = phones.len() as u64;
    assert_eq!(operator.kick(7), count);
    phones.iter_mut().for_each(|phone| {
        phone.goodbye(Code::Kicked);
    });
    operator.wait_for_total("users", 1);
}

#[test]
fn the_secret_is_made_on_first_start_and_tide_makes_tokens_with_it() {
    let gateway = Setup::jwt().start();
    for secret in ["jwt-hs256.key", "admin.token"] {
        let path = gateway.folder().join(".tidegate").join(secret);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
        assert!(fs::read_to_string(path).unwrap().trim().len() >= 32, "{secret}");
    }
    let (status, token, log) = gateway.tide(&["token", "--user", "7"], "");
    assert!(status.success(), "{log}");
    let mut phone = gateway.connect();
    phone.login_with(7, token.trim());
    phone.assert_is_served();
    let mut other = gateway.connect();
    let failure = other.try_login(8, token.trim()).unwrap_err();
    assert_eq!(failure.code, Some(Code::Unauthenticated), "the token is of another user");
    let failure = other.try_login(8, "token-8").unwrap_err();
    assert_eq!(failure.code, Some(Code::Unauthenticated), "the token is a demo token");
}

#[test]
fn the_secret_survives_a_restart() {
    let mut gateway = Setup::jwt().start();
    let (_, token, _) = gateway.tide(&["token", "--user", "7"], "");
    gateway.crash_and_restart();
    gateway.connect().login_with(7, token.trim());
}

#[test]
fn an_expired_token_is_refused() {
    let gateway = Setup::jwt().start();
    let secret = fs::read_to_string(gateway.folder().join(".tidegate/jwt-hs256.key")).unwrap();
    let key = EncodingKey::from_secret(secret.trim().as_bytes());
    let mut phone = gateway.connect();
    let expired = token(Algorithm::HS256, &key, 7, now_s() - 60);
    let failure = phone.try_login(7, &expired).unwrap_err();
    assert_eq!(failure.code, Some(Code::Unauthenticated));
    phone.login_with(7, &token(Algorithm::HS256, &key, 7, now_s() + 60));
}

#[test]
fn a_session_ends_with_its_token_unless_a_fresh_one_is_shown_on_its_connection() {
    let gateway = Setup::jwt()
        .shards(2)
        .set("session.on_token_expiry", "close")
        .set("session.token_expiry_grace_ms", 0)
        .start();
    let secret = fs::read_to_string(gateway.folder().join(".tidegate/jwt-hs256.key")).unwrap();
    let key = EncodingKey::from_secret(secret.trim().as_bytes());
    // With the leeway of 5 s, the first session would end first.
    let exp = now_s() + 1;
    let mut renewed = gateway.connect();
    renewed.login_with(8, &token(Algorithm::HS256, &key, 8, exp));
    let mut forgotten = gateway.connect();
    let session = forgotten.login_with(7, &token(Algorithm::HS256, &key, 7, exp + 1));
    assert!((1..=2_000).contains(&session.expires_in_ms), "{session:?}");
    let later = token(Algorithm::HS256, &key, 8, now_s() + 3_600);
    let session = renewed.login_with(8, &later);
    assert!((3_000_000..=3_600_000).contains(&session.expires_in_ms), "{session:?}");
    forgotten.goodbye(Code::Unauthenticated);
    renewed.assert_is_served();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_connections_closed_total", "token_expired", |n| n == 1.0);
    operator.wait_for_total("sessions", 1);
    // The user logs in again with a fresh token.
    gateway.connect().login_with(7, &token(Algorithm::HS256, &key, 7, now_s() + 3_600));
}

#[test]
fn tokens_are_verified_with_a_public_key() {
    for algorithm in [Algorithm::RS256, Algorithm::EdDSA] {
        let name = if algorithm == Algorithm::RS256 { "rs256" } else { "eddsa" };
        let public = fixture(&format!("{name}.public.pem"));
        let private = fixture(&format!("{name}.private.pem"));
        let gateway = Setup::jwt()
            .set("auth.algorithm", format!("{algorithm:?}"))
            .set("auth.key_file", public.display())
            .start();
        let algorithm_flag = format!("{algorithm:?}");
        let private = private.to_str().unwrap();
        let arguments =
            ["token", "--user", "7", "--algorithm", &algorithm_flag, "--key-file", private];
        let (status, token, log) = gateway.tide(&arguments, "");
        assert!(status.success(), "{log}");
        let mut phone = gateway.connect();
        phone.login_with(7, token.trim());
        phone.assert_is_served();
        // The public key is no secret, so a token that is signed with it by HS256 must be refused.
        let pem = fs::read(&public).unwrap();
        let forged =
            self::token(Algorithm::HS256, &EncodingKey::from_secret(&pem), 8, now_s() + 60);
        let failure = gateway.connect().try_login(8, &forged).unwrap_err();
        assert_eq!(failure.code, Some(Code::Unauthenticated));
    }
}

#[test]
fn demo_tokens_work_only_on_loopback() {
    let setup = Setup::jwt().flag("--auth").flag("demo").set("listen", "0.0.0.0:0");
    let (status, _, log) = setup.run();
    assert_eq!(status.code(), Some(2));
    assert!(log.contains("auth.mode") && log.contains("loopback"), "{log}");
}

#[test]
fn a_session_that_ends_leaves_nothing_behind() {
    let gateway = Setup::demo().shards(4).start();
    let operator = gateway.operator();
    for round in 0..3 {
        let mut phones: Vec<_> = (1..=20).map(|user_id| gateway.login(user_id)).collect();
        phones.iter_mut().for_each(|phone| phone.join("lobby", 0));
        operator.wait_for_total("sessions", 20);
        for (index, phone) in phones.into_iter().enumerate() {
            match (index + round) % 3 {
                0 => phone.reset(),
                1 => phone.stop_sending(),
                _ => drop(phone),
            }
        }
        for figure in ["connections", "sessions", "users", "memberships", "outbox_bytes"] {
            operator.wait_for_total(figure, 0);
        }
    }
}

/// A connection ends while another is accepted. Kernel operations of the first one must not affect the other.
#[test]
fn a_client_that_leaves_at_once_does_not_lose_another_clients_goodbye() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    for user_id in 1..=1_000 {
        let mut phone = gateway.login(user_id);
        phone.assert_is_served();
        assert_eq!(operator.kick(user_id), 1);
        // It closes as soon as it has read the goodbye.
        phone.wait_for_goodbye();
    }
}

#[test]
fn a_connection_that_is_too_old_is_closed_with_108_after_its_answers() {
    let setup = Setup::quiz().set("session.age_max_ms", 2_000);
    let gateway = setup.set("shutdown.drain_timeout_ms", 600_000).start();
    let operator = gateway.operator();
    let mut idle = gateway.login(7);
    let mut busy = gateway.login(8);
    let asked = busy.send(quiz::THINK, b"4000");
    idle.goodbye(Code::Draining);
    assert_eq!(busy.outcome(asked).unwrap(), "thought about it");
    busy.goodbye(Code::Draining);
    operator.wait_for_metric("tidegate_connections_closed_total", "aged", |n| n == 2.0);
    assert_eq!(operator.get("/readyz").0, 200);
    gateway.login(9).assert_is_served();
}
