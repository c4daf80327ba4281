//! The pool, stepped by hand and with threads.

use std::collections::VecDeque;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};

use super::*;
use crate::shard::mailbox::Message;

const PUBLIC: &[u8] = include_bytes!("../../../testdata/eddsa.public.pem");
const PRIVATE: &[u8] = include_bytes!("../../../testdata/eddsa.private.pem");

/// What waits for a good or a wrong signature.
fn check(pool: &SignaturePool, message: &str, is_good: bool) -> Arc<SignatureCheck> {
    let key = DecodingKey::from_ed_pem(PUBLIC).unwrap();
    let key = Arc::new(Key::new(key, Algorithm::EdDSA, &[PUBLIC]));
    let signed = if is_good { message } else { "another" };
    let private = EncodingKey::from_ed_pem(PRIVATE).unwrap();
    let signature = crypto::sign(signed.as_bytes(), &private, Algorithm::EdDSA).unwrap();
    let token = format!("{message}.{signature}");
    let id = pool.id(&token, &key);
    let demands = Arc::new(Demands { audience: None, issuer: None, leeway_s: 0.0 });
    Arc::new(SignatureCheck { key, token: token.into(), id, expires_s: 0.0, demands })
}

fn waiter(pool: &SignaturePool, slot: u32, address: &str, reply: &Address) -> Waiter {
    let flow = pool.flow(address.parse().unwrap());
    Waiter { conn: ConnId { slot, generation: 1 }, flow, reply: reply.clone() }
}

/// The verdicts that have come, with the slots that they are for.
fn verdicts(address: &Address) -> Vec<(u32, Result<(), AuthError>)> {
    let mut messages = VecDeque::new();
    address.mailbox().take_all(&mut messages);
    let verdict = |message| match message {
        Message::Token(TokenMessage::Signature { conn, signed }) => (conn.slot, signed),
        other => panic!("{other:?}"),
    };
    messages.into_iter().map(verdict).collect()
}

#[test]
fn each_waiter_gets_a_verdict_and_the_signature_of_one_that_has_gone_is_not_checked() {
    let (pool, address, now) = (SignaturePool::new(100, 0), Address::new(), Instant::now());
    let mut checks: Vec<_> =
        [true, false, true].iter().map(|is_good| check(&pool, "a.b", *is_good)).collect();
    for (slot, check) in (0..).zip(&checks) {
        pool.submit(check, waiter(&pool, slot, "10.0.0.1", &address), 0, now).unwrap();
    }
    assert_eq!((pool.stats().waiting, verdicts(&address).len()), (3, 0));
    // The last one's client has gone.
    checks.pop();
    pool.run_pending(now);
    let signature = Err(AuthError::Signature);
    assert_eq!(verdicts(&address), [(0, Ok(())), (1, signature), (2, signature)]);
    let SignatureStats { valid, invalid, abandoned, waiting, waits, .. } = pool.stats();
    assert_eq!((valid, invalid, abandoned, waiting), (1, 1, 1, 0));
    assert_eq!(waits.counts.iter().sum::<u64>(), 2);
}

#[test]
fn a_valid_signature_is_remembered_without_its_client_and_an_equal_token_is_not_checked_again() {
    let (pool, address, now) = (SignaturePool::new(100, 100), Address::new(), Instant::now());
    let wrong = check(&pool, "a.b", false);
    let equal = [check(&pool, "a.b", true), check(&pool, "a.b", true)];
    for (slot, check) in (0..).zip([&wrong, &equal[0], &equal[1]]) {
        pool.submit(check, waiter(&pool, slot, "10.0.0.1", &address), 0, now).unwrap();
    }
    pool.run_pending(now);
    let SignatureStats { valid, invalid, known, .. } = pool.stats();
    assert_eq!((valid, invalid, known), (1, 1, 1));
    // No client has taken its verdict yet.
    assert!(pool.is_known(equal[0].id) && !pool.is_known(wrong.id));
    assert_eq!(verdicts(&address), [(0, Err(AuthError::Signature)), (1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_full_queue_refuses_the_address_that_filled_it_and_not_a_new_one() {
    let (pool, address, now) = (SignaturePool::new(4, 0), Address::new(), Instant::now());
    let check = check(&pool, "a.b", true);
    let submit = |slot, from: &str, kept_bytes| {
        pool.submit(&check, waiter(&pool, slot, from, &address), kept_bytes, now)
    };
    // 4 KiB: three of less than one, and positions that fill the rest.
    for slot in 0..3 {
        assert_eq!(submit(slot, "10.0.0.1", 0), Ok(()));
    }
    let refused = Err(AuthError::TooManyVerifications);
    assert_eq!(submit(3, "10.0.0.1", 1024), refused);
    assert_eq!(submit(4, "10.0.0.1", 0), Ok(()));
    // Two addresses share a bucket with a chance of 1 in 1,024.
    let honest = (2..=9).map(|last| format!("10.0.0.{last}"));
    let other = honest.into_iter().find(|other| submit(5, other, 0).is_ok()).unwrap();
    assert_eq!(verdicts(&address), [(4, refused)]);
    assert_eq!(submit(6, &other, 4096), refused);
    pool.run_pending(now);
    let slots: Vec<_> = verdicts(&address).into_iter().map(|(slot, _)| slot).collect();
    assert_eq!(slots, [0, 5, 1, 2]);
    assert!(pool.stats().refused >= 3);
}

#[test]
fn threads_check_what_waits_and_end_when_they_are_joined() {
    let (pool, address, now) =
        (Arc::new(SignaturePool::new(100, 0)), Address::new(), Instant::now());
    let threads = pool.start(2).unwrap();
    let checks: Vec<_> = (0..20).map(|number| check(&pool, &format!("a.{number}"), true)).collect();
    for (slot, check) in (0..).zip(&checks) {
        pool.submit(check, waiter(&pool, slot, "10.0.0.1", &address), 0, now).unwrap();
    }
    let mut answered = Vec::new();
    while answered.len() < 20 {
        answered.extend(verdicts(&address));
        thread::yield_now();
    }
    answered.sort_by_key(|(slot, _)| *slot);
    assert!((0..20).eq(answered.iter().map(|(slot, _)| *slot)));
    assert!(answered.iter().all(|(_, signed)| signed.is_ok()));
    threads.join();
    let late = pool.submit(&checks[0], waiter(&pool, 0, "10.0.0.1", &address), 0, now);
    assert_eq!(late, Err(AuthError::TooManyVerifications));
}

#[test]
fn the_metrics_are_written() {
    let mut page = String::new();
    SignatureStats { invalid: 3, waiting: 2, ..SignatureStats::default() }.render(&mut page);
    for line in [
        "tidegate_signature_checks_total{result=\"invalid\"} 3",
        "tidegate_signature_checks_total{result=\"known\"} 0",
        "tidegate_signatures_waiting 2",
        "tidegate_signature_wait_seconds_bucket{le=\"+Inf\"} 0",
        "tidegate_signature_wait_seconds_count 0",
    ] {
        assert!(page.lines().any(|there| there == line), "{line} is not in:\n{page}");
    }
    for (name, _, help) in METRICS {
        assert!(page.contains(&format!("# HELP {name} {help}\n")));
    }
}
