//! Tokens whose signatures are checked apart from the shards. A world has no threads: the test says when they are checked.

use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use tidegate::config::{AuthMode, Config, JwtAlgorithm, JwtKeys};
use tidegate_backend::Code;
use tidegate_protocol::Request;
use tidegate_protocol::message::AUTHENTICATE;
use tidegate_protocol::proto::v1::{Position, Recovery, Resume};
use tidegate_testing::scripted::ECHO;
use tidegate_testing::{Cause, Phone, Scripted, Setup, World, frame, resume_with};

/// The end of the tokens, in seconds since the Unix epoch: long after the world's begin.
const EXP_S: u64 = 1_800_000_000;

fn world(configure: impl FnOnce(&mut Config)) -> World {
    let setup = Setup::new(Scripted::default(), |config| {
        let key_file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/eddsa.public.pem");
        let keys = JwtKeys::One { algorithm: JwtAlgorithm::EdDsa, key_file };
        config.auth.mode = AuthMode::Jwt { keys, audience: None, issuer: None };
        configure(config);
    });
    setup.world()
}

/// A token of a user. Two with different ids are different tokens.
fn token(user_id: u64, id: &str) -> String {
    let key = include_bytes!("../../testdata/eddsa.private.pem");
    let claims = json!({ "sub": user_id.to_string(), "exp": EXP_S, "jti": id });
    encode(&Header::new(Algorithm::EdDSA), &claims, &EncodingKey::from_ed_pem(key).unwrap())
        .unwrap()
}

/// The same token with a signature of the right length that is not the key's.
fn forged(user_id: u64, id: &str) -> String {
    let token = token(user_id, id);
    let (message, signature) = token.rsplit_once('.').unwrap();
    // S, the second half, has to be less than the order of the group: otherwise nothing is computed.
    let first = if signature.starts_with('A') { "B" } else { "A" };
    format!("{message}.{first}{}", &signature[1..])
}

fn authentication(user_id: u64, token: &str, sequence: u64) -> Vec<u8> {
    frame(&Request { kind: AUTHENTICATE, user_id, token, sequence, ..Request::default() })
}

fn echo(sequence: u64) -> Vec<u8> {
    frame(&Request { kind: ECHO, sequence, ..Request::default() })
}

fn sequences(phone: &Phone) -> Vec<u64> {
    phone.received.iter().map(|received| received.sequence).collect()
}

/// Checks the signatures that wait. The shards take the verdicts.
fn check(world: &mut World) {
    world.check_signatures();
    world.turns(6);
}

/// A client whose token's signature waits to be checked.
fn waiting(world: &mut World, user_id: u64, token: &str) -> Phone {
    let phone = world.phone(0);
    world.write_all(phone.peer, &authentication(user_id, token, 1));
    world.turns(6);
    phone
}

fn logged_in(world: &mut World, user_id: u64, token: &str) -> Phone {
    let mut phone = waiting(world, user_id, token);
    check(world);
    phone.read(world);
    assert_eq!((phone.received.len(), phone.last_code()), (1, None));
    phone.received.clear();
    phone
}

#[test]
fn no_shard_checks_a_signature_and_none_is_checked_twice() {
    let mut world = world(|config| config.auth.failures_max = 1);
    let mut repeating: Vec<_> =
        (1..=20).map(|user_id| logged_in(&mut world, user_id, &token(user_id, "a"))).collect();
    assert_eq!((world.signatures().valid, world.signatures().known), (20, 0));
    // Sessions show the token again that they came with.
    for (user_id, phone) in (1..).zip(&mut repeating) {
        for sequence in 2..12 {
            world.write_all(phone.peer, &authentication(user_id, &token(user_id, "a"), sequence));
        }
        phone.read_for(&mut world, 6);
        assert_eq!(sequences(phone), (2..12).collect::<Vec<_>>());
        assert!(phone.received.iter().all(|received| received.code.is_none()));
    }
    assert_eq!((world.signatures().valid, world.signatures().known), (20, 200));
    // Connections with wrong signatures wait, and an honest client is served meanwhile.
    let mut wrong: Vec<_> =
        (0..100).map(|user_id| waiting(&mut world, user_id, &forged(user_id, "a"))).collect();
    let honest = &mut repeating[0];
    honest.received.clear();
    world.write_all(honest.peer, &echo(100));
    honest.read_for(&mut world, 6);
    assert_eq!(sequences(honest), [100]);
    let mut newcomer = waiting(&mut world, 200, &token(200, "a"));
    for phone in &mut wrong {
        phone.read(&mut world);
        assert_eq!(phone.received, [], "a shard has checked a signature");
    }
    assert_eq!((world.signatures().waiting, world.signatures().invalid), (101, 0));
    check(&mut world);
    newcomer.read(&mut world);
    assert_eq!((newcomer.received.len(), newcomer.last_code()), (1, None));
    for phone in &mut wrong {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Unauthenticated));
    }
    let stats = world.signatures();
    assert_eq!((stats.valid, stats.invalid, stats.waiting), (21, 100, 0));
    assert_eq!(world.closed(Cause::AuthFailed), 100, "each is a failed try");
}

#[test]
fn a_client_that_comes_back_to_another_shard_waits_for_no_check() {
    let mut world = world(|config| config.shards = 2);
    let first = logged_in(&mut world, 7, &token(7, "a"));
    world.hang_up(first.peer);
    world.turns(6);
    let mut again = world.phone(1);
    world.write_all(again.peer, &authentication(7, &token(7, "a"), 1));
    again.read_for(&mut world, 6);
    assert_eq!((again.received.len(), again.last_code()), (1, None));
    assert_eq!((world.signatures().valid, world.signatures().known), (1, 1));
    // For another user, or once it has expired, it is no better than any other.
    let mut other = world.phone(1);
    world.write_all(other.peer, &authentication(8, &token(7, "a"), 1));
    other.read_for(&mut world, 6);
    assert_eq!(other.last_code(), Some(Code::Unauthenticated));
    world.set_wall_ms(1_000 * (EXP_S + 60));
    world.write_all(again.peer, &authentication(7, &token(7, "a"), 2));
    again.read_for(&mut world, 6);
    assert_eq!(again.last_code(), Some(Code::Unauthenticated));
    assert_eq!(world.signatures().waiting, 0);
}

#[test]
fn nothing_behind_an_authentication_is_read_before_its_signature_is_checked() {
    let mut world = world(|_| {});
    let mut phone = world.phone(0);
    world.write_all(phone.peer, &[authentication(7, &token(7, "a"), 1), echo(2), echo(3)].concat());
    phone.read_for(&mut world, 6);
    assert_eq!(phone.received, []);
    check(&mut world);
    phone.read_for(&mut world, 6);
    assert_eq!(sequences(&phone), [1, 2, 3]);
    assert!(phone.received.iter().all(|received| received.code.is_none()));
}

#[test]
fn a_session_continues_while_a_fresh_token_waits_and_has_one_check_at_a_time() {
    let mut world = world(|_| {});
    let mut phone = logged_in(&mut world, 7, &token(7, "a"));
    let (fresh, third) = (token(7, "b"), token(7, "c"));
    let frames =
        [authentication(7, &fresh, 1), echo(2), authentication(7, &third, 3), echo(4)].concat();
    world.write_all(phone.peer, &frames);
    phone.read_for(&mut world, 6);
    assert_eq!(sequences(&phone), [2, 3, 4]);
    assert_eq!(phone.received[1].code, Some(Code::Overloaded));
    assert!((1_000..2_100).contains(&phone.received[1].retry_after_ms));
    // Its peer sends no more, and still gets the answer.
    world.half_close(phone.peer);
    phone.read_for(&mut world, 6);
    assert_eq!(phone.end, None);
    check(&mut world);
    phone.read_for(&mut world, 6);
    assert_eq!((sequences(&phone), phone.last_code()), (vec![2, 3, 4, 1], None));
    assert!(phone.end.is_some());
}

#[test]
fn the_signature_of_a_connection_that_has_gone_is_not_checked_and_its_verdict_concerns_no_other() {
    let mut world = world(|_| {});
    let first = waiting(&mut world, 7, &token(7, "a"));
    world.reset(first.peer);
    world.turns(6);
    // It has the slot of the first.
    let mut second = waiting(&mut world, 8, &token(8, "a"));
    assert_eq!(world.signatures().waiting, 2);
    check(&mut world);
    second.read(&mut world);
    assert_eq!((second.received.len(), second.last_code()), (1, None));
    let stats = world.signatures();
    assert_eq!((stats.valid, stats.invalid, stats.abandoned), (1, 0, 1));
    assert_eq!(world.level(|levels| levels.sessions), 1);
}

#[test]
fn more_than_may_wait_get_104_and_it_is_no_failed_try() {
    let mut world = world(|config| {
        config.auth.verifications_max = 2;
        config.auth.failures_max = 1;
    });
    let mut phones: Vec<_> =
        (0..3).map(|user_id| waiting(&mut world, user_id, &token(user_id, "a"))).collect();
    // Two have a place. The last one takes that of another address, which has as many entries.
    phones.iter_mut().for_each(|phone| phone.read(&mut world));
    let codes: Vec<_> = phones.iter().map(Phone::last_code).collect();
    let refused = codes.iter().position(Option::is_some).unwrap();
    assert_eq!((codes[refused], codes.iter().flatten().count()), (Some(Code::Overloaded), 1));
    assert!((1_000..2_100).contains(&phones[refused].received[0].retry_after_ms));
    check(&mut world);
    let user_id = u64::try_from(refused).unwrap();
    world.write_all(phones[refused].peer, &authentication(user_id, &token(user_id, "a"), 2));
    world.turns(6);
    check(&mut world);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), None);
    }
    assert_eq!((world.signatures().valid, world.signatures().refused), (3, 1));
    // Positions that wait count too: one client can't fill the shard's memory with them.
    let position = || Position { room: "r".repeat(100), log: 5, offset: 3, ticket: vec![1].into() };
    let resume = Resume { positions: vec![position(); 20] };
    let mut others = [50, 51].map(|user_id| waiting(&mut world, user_id, &token(user_id, "a")));
    let mut long = world.phone(0);
    world.write_all(long.peer, &resume_with(52, &token(52, "a"), 1, &resume));
    world.turns(6);
    for other in &mut others {
        other.read(&mut world);
        assert_eq!(other.last_code(), Some(Code::Overloaded));
    }
    check(&mut world);
    long.read_for(&mut world, 6);
    assert_eq!(long.session().rooms[1].recovery(), Recovery::Refused, "its positions were kept");
}

#[test]
fn a_connection_that_waits_for_a_check_keeps_its_deadline_and_is_closed_by_a_drain() {
    let mut world = world(|config| config.auth.timeout = Duration::from_secs(5));
    let mut late = waiting(&mut world, 7, &token(7, "a"));
    world.pass(Duration::from_secs(6));
    late.read(&mut world);
    assert_eq!(late.last_code(), Some(Code::Idle));
    world.hang_up(late.peer);
    world.turns(4);
    let mut phone = waiting(&mut world, 8, &token(8, "a"));
    world.drain();
    phone.read_for(&mut world, 6);
    assert_eq!(phone.last_code(), Some(Code::Draining));
    check(&mut world);
    world.hang_up(phone.peer);
    world.pass(Duration::from_secs(3));
    assert!(world.is_finished());
    assert_eq!((world.signatures().valid, world.signatures().abandoned), (0, 2));
}
