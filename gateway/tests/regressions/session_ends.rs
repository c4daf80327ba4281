//! Sessions that the gateway ends: with their tokens, by a kick, by a login elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;
use tidegate::config::{AuthMode, Config, JwtAlgorithm, JwtKeys, OnTokenExpiry};
use tidegate_backend::Code;
use tidegate_protocol::Request;
use tidegate_protocol::message::AUTHENTICATE;
use tidegate_testing::scripted::{ECHO, KEEP};
use tidegate_testing::{Cause, Phone, World, frame};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const LEEWAY: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(20);

/// A world whose tokens are signed, and whose sessions end with them.
pub(crate) fn world_with_tokens(configure: impl FnOnce(&mut Config)) -> World {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    fs::write(&key_file, SECRET).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    World::new(|config| {
        let algorithm = JwtAlgorithm::Hs256;
        let keys = JwtKeys::One { algorithm, key_file };
        config.auth.mode = AuthMode::Jwt { keys, audience: None, issuer: None };
        config.auth.leeway = LEEWAY;
        config.session.on_token_expiry = OnTokenExpiry::Close;
        config.session.token_expiry_grace = GRACE;
        configure(config);
    })
}

/// An authentication of user 7 with a token that ends so many seconds after now.
fn authentication(world: &World, ends_in_s: i64) -> Vec<u8> {
    authentication_of(7, i64::try_from(world.wall_ms() / 1_000).unwrap() + ends_in_s)
}

/// An authentication with a token that ends at this date.
pub(crate) fn authentication_of(user_id: u64, exp: i64) -> Vec<u8> {
    let claims = json!({ "sub": user_id.to_string(), "exp": exp });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = &jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap();
    frame(&Request { kind: AUTHENTICATE, user_id, token, sequence: 1, ..Request::default() })
}

/// Authenticates. Returns what the session says of the token's end.
fn authenticate(world: &mut World, phone: &mut Phone, ends_in_s: i64) -> u64 {
    let authentication = authentication(world, ends_in_s);
    world.write_all(phone.peer, &authentication);
    phone.read_for(world, 6);
    phone.session().expires_in_ms
}

/// Lets time pass while the client sends heartbeats, in which it is served all the time.
fn stays(world: &mut World, phone: &mut Phone, seconds: u64) {
    for second in 0..seconds {
        phone.received.clear();
        world.pass(Duration::from_secs(1));
        world.heartbeat(phone);
        phone.read(world);
        assert_eq!((phone.count(-1), &phone.end), (1, &None), "after {second} s of {seconds}");
    }
}

/// The session ends within some seconds, with the goodbye 100 as its last frame, and for this cause.
fn ends(world: &mut World, phone: &mut Phone) {
    assert_eq!(world.closed(Cause::TokenExpired), 0);
    world.pass(Duration::from_secs(4));
    phone.read(world);
    let goodbye = phone.received.last().unwrap();
    assert_eq!((goodbye.kind, goodbye.status, goodbye.sequence), (AUTHENTICATE, 0, 0));
    assert_eq!((goodbye.code, goodbye.retry_after_ms), (Some(Code::Unauthenticated), 0));
    assert!(phone.end.is_some());
    assert_eq!(world.closed(Cause::TokenExpired), 1);
    assert_eq!(world.level(|levels| levels.sessions + levels.users), 0);
}

#[test]
fn a_session_ends_with_its_token_the_leeway_and_the_grace_period_later() {
    let mut world = world_with_tokens(|_| {});
    let mut phone = world.phone(0);
    assert_eq!(authenticate(&mut world, &mut phone, 60), 60_000);
    stays(&mut world, &mut phone, 60 + 5 + 20 - 2);
    ends(&mut world, &mut phone);
}

#[test]
fn a_token_in_its_leeway_opens_a_session_that_says_to_refresh_at_once() {
    let mut world = world_with_tokens(|config| config.session.token_expiry_grace = Duration::ZERO);
    let mut phone = world.phone(0);
    assert_eq!(authenticate(&mut world, &mut phone, -3), 1);
    world.pass(Duration::from_secs(1));
    phone.read(&mut world);
    assert_eq!((phone.received.len(), &phone.end), (1, &None));
    ends(&mut world, &mut phone);
}

#[test]
fn a_fresh_token_on_the_same_connection_moves_the_end_and_a_refused_one_does_not() {
    let mut world = world_with_tokens(|_| {});
    let mut phone = world.phone(0);
    authenticate(&mut world, &mut phone, 60);
    let session_id = phone.session().session_id;
    stays(&mut world, &mut phone, 50);
    assert_eq!(authenticate(&mut world, &mut phone, 100), 100_000);
    assert_eq!(phone.session().session_id, session_id);
    phone.received.clear();
    let expired = authentication(&world, -10);
    world.write_all(phone.peer, &expired);
    phone.read_for(&mut world, 6);
    assert_eq!(phone.last_code(), Some(Code::Unauthenticated));
    stays(&mut world, &mut phone, 100 + 25 - 2);
    ends(&mut world, &mut phone);
}

#[test]
fn a_token_that_ends_sooner_than_the_last_one_counts_too() {
    let mut world = world_with_tokens(|_| {});
    let mut phone = world.phone(0);
    authenticate(&mut world, &mut phone, 3_600);
    assert_eq!(authenticate(&mut world, &mut phone, 10), 10_000);
    stays(&mut world, &mut phone, 10 + 25 - 2);
    ends(&mut world, &mut phone);
}

#[test]
fn a_wall_clock_that_is_set_moves_the_end_of_no_open_session() {
    for hours in [-1, 1] {
        let mut world = world_with_tokens(|_| {});
        let mut phone = world.phone(0);
        authenticate(&mut world, &mut phone, 60);
        world.set_wall_ms(world.wall_ms().wrapping_add_signed(hours * 3_600_000));
        stays(&mut world, &mut phone, 60 + 25 - 2);
        ends(&mut world, &mut phone);
    }
}

#[test]
fn a_client_that_is_not_read_from_does_not_outlive_its_token() {
    let mut world = world_with_tokens(|config| {
        config.limits.calls_per_connection_max = 1;
        config.routes[0].timeout = Duration::from_secs(3_600);
    });
    let mut phone = world.phone(0);
    authenticate(&mut world, &mut phone, 60);
    world.ask(&phone, KEEP, 2, b"");
    world.ask(&phone, ECHO, 3, b"");
    world.pass(Duration::from_secs(60 + 25 - 2));
    phone.read(&mut world);
    assert_eq!(phone.end, None);
    ends(&mut world, &mut phone);
}

#[test]
fn a_session_outlives_its_token_unless_it_is_configured_to_end() {
    let mut world = world_with_tokens(|config| {
        config.session.on_token_expiry = Config::embedded_default().session.on_token_expiry;
    });
    let mut phone = world.phone(0);
    assert_eq!(authenticate(&mut world, &mut phone, 60), 0);
    stays(&mut world, &mut phone, 200);
}

#[test]
fn a_token_without_an_end_ends_no_session() {
    let mut world = World::new(|config| config.session.on_token_expiry = OnTokenExpiry::Close);
    let mut phone = world.phone(0);
    world.write_all(phone.peer, &tidegate_testing::login(7, 1));
    phone.read_for(&mut world, 6);
    assert_eq!(phone.session().expires_in_ms, 0);
    stays(&mut world, &mut phone, 200);
}

#[test]
fn a_new_connection_does_not_inherit_the_end_of_its_slots_last_one() {
    let mut world = world_with_tokens(|_| {});
    let mut first = world.phone(0);
    authenticate(&mut world, &mut first, 10);
    world.reset(first.peer);
    world.turns(4);
    let mut second = world.phone(0);
    assert_eq!(authenticate(&mut world, &mut second, 600), 600_000);
    stays(&mut world, &mut second, 100);
}

#[test]
fn a_kick_ends_each_session_of_the_user_with_110_and_a_login_elsewhere_with_107() {
    let mut world = World::new(|config| config.session.connections_per_user_max = 2);
    let mut phones: Vec<_> = (0..3).map(|_| world.phone(0)).collect();
    for phone in &phones {
        world.write_all(phone.peer, &tidegate_testing::login(7, 1));
        world.turns(6);
    }
    world.kick(7);
    world.turns(6);
    phones.iter_mut().for_each(|phone| phone.read(&mut world));
    let codes: Vec<_> = phones.iter().map(Phone::last_code).collect();
    assert_eq!(codes, [Code::Replaced, Code::Kicked, Code::Kicked].map(Some));
    assert_eq!([Cause::Replaced, Cause::Kicked].map(|cause| world.closed(cause)), [1, 2]);
}
