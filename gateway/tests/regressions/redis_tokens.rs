//! Tokens that are looked up in Redis: connections that wait for their verdict. The test gives the verdicts.

use std::time::Duration;

use tidegate::cluster::message::ToCluster;
use tidegate::config::{AuthMode, Config, OnTokenExpiry};
use tidegate::session_id::SessionAddr;
use tidegate::shard::tokens::{TokenMessage, TokenPage, Verdict};
use tidegate_backend::Code;
use tidegate_protocol::Request;
use tidegate_protocol::message::AUTHENTICATE;
use tidegate_protocol::proto::v1::{Position, Recovery, Resume};
use tidegate_testing::scripted::ECHO;
use tidegate_testing::{Cause, Phone, Scripted, Setup, World, frame, login_again};

const KNOWN: Verdict = Verdict::Known { ends_in_ms: None };

fn world(configure: impl FnOnce(&mut Config)) -> World {
    let setup = Setup::new(Scripted::default(), |config| {
        config.auth.mode = AuthMode::Redis;
        configure(config);
    });
    Setup { has_cluster: true, ..setup }.world()
}

fn authentication(user_id: u64, token: &str, sequence: u64) -> Vec<u8> {
    frame(&Request { kind: AUTHENTICATE, user_id, token, sequence, ..Request::default() })
}

fn echo(sequence: u64) -> Vec<u8> {
    frame(&Request { kind: ECHO, sequence, ..Request::default() })
}

/// The lookups that were asked for since this was last called.
fn lookups(world: &mut World) -> Vec<SessionAddr> {
    let asked = world.asked_cluster().into_iter();
    let lookup = |message| match message {
        ToCluster::LookUp { addr, .. } => Some(addr),
        _ => None,
    };
    asked.filter_map(lookup).collect()
}

fn give(world: &mut World, addr: SessionAddr, verdict: Verdict) {
    world.post(addr.shard(), TokenMessage::Verdict { conn: addr.conn(), verdict });
    world.turns(6);
}

/// A client whose token is being looked up.
fn verifying(world: &mut World, user_id: u64, token: &str) -> (Phone, SessionAddr) {
    let phone = world.phone(0);
    world.write_all(phone.peer, &authentication(user_id, token, 1));
    world.turns(6);
    let asked = lookups(world);
    assert_eq!(asked.len(), 1);
    (phone, asked[0])
}

fn logged_in(world: &mut World, user_id: u64, token: &str) -> Phone {
    let (mut phone, addr) = verifying(world, user_id, token);
    give(world, addr, KNOWN);
    phone.read(world);
    assert_eq!((phone.received.len(), phone.last_code()), (1, None));
    phone.received.clear();
    phone
}

fn sequences(phone: &Phone) -> Vec<u64> {
    phone.received.iter().map(|received| received.sequence).collect()
}

#[test]
fn nothing_behind_an_authentication_is_read_before_its_verdict() {
    let mut world = world(|_| {});
    let mut phone = world.phone(0);
    let frames = [authentication(7, "a", 1), echo(2), echo(3)].concat();
    world.write_all(phone.peer, &frames);
    phone.read_for(&mut world, 6);
    assert_eq!(phone.received, []);
    let addr = lookups(&mut world)[0];
    give(&mut world, addr, KNOWN);
    phone.read_for(&mut world, 6);
    assert_eq!(sequences(&phone), [1, 2, 3]);
    assert!(phone.received.iter().all(|received| received.code.is_none()));
}

#[test]
fn an_unknown_token_is_a_failed_try_and_an_unavailable_redis_is_none() {
    let mut world = world(|config| config.auth.failures_max = 2);
    let (mut phone, mut addr) = verifying(&mut world, 7, "a");
    let again = authentication(7, "a", 1);
    let verdicts = [
        (Verdict::Unavailable, Code::Overloaded),
        (Verdict::Unknown, Code::Unauthenticated),
        (Verdict::Unavailable, Code::Overloaded),
        (Verdict::Unknown, Code::Unauthenticated),
    ];
    for (verdict, code) in verdicts {
        give(&mut world, addr, verdict);
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(code));
        let hint = phone.received.last().unwrap().retry_after_ms;
        assert_eq!((1_000..2_100).contains(&hint), code == Code::Overloaded, "{hint}");
        if phone.received.len() < 4 {
            world.write_all(phone.peer, &again);
            world.turns(6);
            addr = lookups(&mut world)[0];
        }
    }
    phone.read_for(&mut world, 4);
    assert!(phone.end.is_some(), "the second failed try was the last");
    assert_eq!(world.closed(Cause::AuthFailed), 1);
}

#[test]
fn a_session_continues_while_a_fresh_token_is_looked_up() {
    let mut world = world(|_| {});
    let mut phone = logged_in(&mut world, 7, "a");
    let frames = [authentication(7, "b", 1), echo(2), authentication(7, "c", 3), echo(4)].concat();
    world.write_all(phone.peer, &frames);
    phone.read_for(&mut world, 6);
    // One lookup of a connection at a time.
    assert_eq!(sequences(&phone), [2, 3, 4]);
    assert_eq!(phone.received[1].code, Some(Code::Overloaded));
    // Its peer sends no more, and still gets the answer.
    world.half_close(phone.peer);
    phone.read_for(&mut world, 6);
    assert_eq!(phone.end, None);
    let addr = lookups(&mut world)[0];
    give(&mut world, addr, KNOWN);
    phone.read_for(&mut world, 6);
    assert_eq!((sequences(&phone), phone.last_code()), (vec![2, 3, 4, 1], None));
    assert!(phone.end.is_some());
}

#[test]
fn a_verdict_for_a_connection_that_has_ended_does_nothing_to_the_next_one_of_its_slot() {
    let mut world = world(|config| config.auth.lookups_max = 2);
    let (first, first_addr) = verifying(&mut world, 7, "a");
    world.reset(first.peer);
    world.turns(6);
    let (mut second, second_addr) = verifying(&mut world, 8, "a");
    assert_eq!(first_addr.conn().slot, second_addr.conn().slot);
    // The lookup of the first counts until its verdict.
    let mut third = world.phone(0);
    world.write_all(third.peer, &authentication(9, "a", 1));
    third.read_for(&mut world, 6);
    assert_eq!(third.last_code(), Some(Code::Overloaded));
    give(&mut world, first_addr, KNOWN);
    second.read(&mut world);
    assert_eq!(second.received, []);
    world.write_all(third.peer, &authentication(9, "a", 2));
    world.turns(6);
    assert_eq!(lookups(&mut world).len(), 1);
    give(&mut world, second_addr, KNOWN);
    second.read(&mut world);
    assert_eq!((second.received.len(), second.last_code()), (1, None));
}

#[test]
fn a_client_that_resumes_keeps_its_positions_while_its_token_is_looked_up() {
    let mut world = world(|_| {});
    let phone = &mut world.phone(0);
    let position = Position { room: "quiz".into(), log: 5, offset: 3, ticket: vec![1].into() };
    let resume = Resume { positions: vec![position] };
    world.write_all(phone.peer, &login_again(7, 1, &resume));
    world.turns(6);
    let addr = lookups(&mut world)[0];
    give(&mut world, addr, KNOWN);
    phone.read_for(&mut world, 6);
    let rooms = phone.session().rooms;
    assert_eq!((rooms[1].name.as_str(), rooms[1].recovery()), ("quiz", Recovery::Refused));
}

#[test]
fn a_connection_that_waits_for_a_verdict_keeps_its_deadline_and_is_closed_by_a_drain() {
    let mut world = world(|config| config.auth.timeout = Duration::from_secs(5));
    let (mut late, addr) = verifying(&mut world, 7, "a");
    world.pass(Duration::from_secs(6));
    late.read(&mut world);
    assert_eq!(late.last_code(), Some(Code::Idle));
    give(&mut world, addr, KNOWN);
    world.hang_up(late.peer);
    world.turns(4);
    let (mut phone, addr) = verifying(&mut world, 8, "a");
    world.drain();
    phone.read_for(&mut world, 6);
    assert_eq!(phone.last_code(), Some(Code::Draining));
    give(&mut world, addr, KNOWN);
    world.hang_up(phone.peer);
    world.pass(Duration::from_secs(3));
    assert!(world.is_finished());
}

#[test]
fn a_revocation_ends_the_sessions_that_came_with_the_token() {
    let mut world = world(|config| {
        config.session.connections_per_user_max = 8;
        config.session.on_token_expiry = OnTokenExpiry::Close;
    });
    let mut revoked = logged_in(&mut world, 7, "a");
    let mut other = logged_in(&mut world, 7, "b");
    let mut stranger = logged_in(&mut world, 8, "a");
    // The page that the shard lists names all three.
    world.post(0, TokenMessage::List { from: 0 });
    world.turns(2);
    let pages = world.asked_cluster().into_iter().filter_map(|message| match message {
        ToCluster::Tokens(TokenPage { tokens, next, .. }) => Some((tokens, next)),
        _ => None,
    });
    let [(tokens, None)] = &pages.collect::<Vec<_>>()[..] else { panic!("one page") };
    let users: Vec<_> = tokens.iter().map(|listed| listed.user_id).collect();
    assert_eq!(users, [7, 7, 8]);
    world.post(0, TokenMessage::Revoke { user_id: 7, token: Some(tokens[0].token) });
    for phone in [&mut revoked, &mut other, &mut stranger] {
        phone.read_for(&mut world, 6);
    }
    assert_eq!(revoked.last_code(), Some(Code::Kicked));
    assert_eq!((&other.received, &stranger.received), (&vec![], &vec![]));
    assert_eq!(world.closed(Cause::TokenRevoked), 1);
    // The session's end moves with the token's.
    let listed = tokens[2];
    let (conn, token, ends_in_ms) = (listed.conn, listed.token, Some(1_000));
    world.post(0, TokenMessage::NewEnd { conn, token, ends_in_ms });
    world.pass(Duration::from_secs(1) + Duration::from_secs(36));
    stranger.read(&mut world);
    assert_eq!(stranger.last_code(), Some(Code::Unauthenticated));
    world.post(0, TokenMessage::Revoke { user_id: 7, token: None });
    other.read_for(&mut world, 6);
    assert_eq!(other.last_code(), Some(Code::Kicked));
}

#[test]
fn a_revocation_right_behind_its_verdict_finds_the_session_that_is_being_opened() {
    let mut world = world(|config| config.shards = 2);
    // Its home is the other shard.
    let user_id = (1..).find(|&user_id| tidegate::shard::users::home(user_id, 2) == 1).unwrap();
    let (mut phone, addr) = verifying(&mut world, user_id, "a");
    world.post(0, TokenMessage::Verdict { conn: addr.conn(), verdict: KNOWN });
    world.post(0, TokenMessage::Revoke { user_id, token: None });
    phone.read_for(&mut world, 6);
    assert_eq!(phone.last_code(), Some(Code::Kicked));
    assert_eq!(world.level(|levels| levels.users), 0);
}
