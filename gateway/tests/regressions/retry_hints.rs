//! How long refused requests have to wait.

use std::time::Duration;

use tidegate_backend::{Code, Placement};
use tidegate_protocol::Request;
use tidegate_testing::scripted::ECHO;
use tidegate_testing::{Phone, World, frame};

/// The requests that were refused with this code, by sequence, and how long each shall wait.
fn waits(phone: &Phone, code: Code) -> Vec<(u64, u32)> {
    let refused = phone.received.iter().filter(|received| received.code == Some(code));
    refused.map(|received| (received.sequence, received.retry_after_ms)).collect()
}

fn echoes(sequences: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let echo = |sequence| frame(&Request { kind: ECHO, sequence, ..Request::default() });
    sequences.into_iter().flat_map(echo).collect()
}

#[test]
fn requests_that_are_refused_together_are_served_when_retried_after_their_hints() {
    let mut world = World::new(|config| {
        config.limits.frames_per_second_max = Some(2);
        config.limits.frames_burst_max = 4;
    });
    // The login is the first of the burst.
    let mut phone = world.log_in(0);
    world.write_all(phone.peer, &echoes(1..=13));
    phone.read_for(&mut world, 6);
    assert_eq!(phone.received.iter().filter(|received| received.status == 1).count(), 3);
    let waits = waits(&phone, Code::RateLimited);
    let expected: Vec<_> = (4..=13).zip((1..=10).map(|interval| 500 * interval)).collect();
    assert_eq!(waits, expected);
    // Each is retried after its wait, and is served.
    phone.received.clear();
    for (sequence, _) in waits {
        world.pass(Duration::from_millis(500));
        world.write_all(phone.peer, &echoes([sequence]));
        phone.read_for(&mut world, 4);
    }
    let served: Vec<_> = phone.received.iter().map(|got| (got.sequence, got.status)).collect();
    assert_eq!(served, (4..=13).map(|sequence| (sequence, 1)).collect::<Vec<_>>());
}

#[test]
fn a_drain_refuses_new_requests_sends_the_answers_under_way_and_then_the_goodbye() {
    const RETRY_AFTER: std::ops::Range<u32> = 3_000..6_000;
    let mut world = World::new(|config| {
        config.backends[0].placement = Some(Placement::Worker);
        config.shutdown.retry_after = Duration::from_secs(3);
    });
    let mut phones: Vec<_> = (0..20).map(|_| world.log_in(0)).collect();
    for phone in &phones {
        world.write_all(phone.peer, &echoes([1, 2]));
    }
    world.turns(3);
    world.drain();
    world.turns(3);
    for phone in &phones {
        world.write_all(phone.peer, &echoes([3, 4]));
    }
    world.turns(3);
    let mut retry_after_ms = Vec::new();
    for phone in &mut phones {
        phone.read(&mut world);
        let refused = waits(phone, Code::Draining);
        assert_eq!(refused.iter().map(|&(sequence, _)| sequence).collect::<Vec<_>>(), [3, 4]);
        assert_eq!((phone.received.len(), &phone.end), (2, &None), "its answers are missing");
        retry_after_ms.extend(refused.iter().map(|&(_, wait_ms)| wait_ms));
    }
    world.run_workers();
    world.turns(6);
    for phone in &mut phones {
        phone.received.clear();
        phone.read(&mut world);
        let outcomes: Vec<_> = phone.received.iter().map(|got| (got.sequence, got.code)).collect();
        assert_eq!(outcomes, [(1, None), (2, None), (0, Some(Code::Draining))]);
        retry_after_ms.extend(waits(phone, Code::Draining).iter().map(|&(_, wait_ms)| wait_ms));
        assert!(phone.end.is_some());
    }
    assert!(retry_after_ms.iter().all(|wait_ms| RETRY_AFTER.contains(wait_ms)));
    // The clients are spread over the whole of it.
    retry_after_ms.sort_unstable();
    retry_after_ms.dedup();
    assert!(retry_after_ms.len() >= 18, "{retry_after_ms:?}");
    assert!(retry_after_ms.windows(2).all(|pair| pair[1] - pair[0] < 700), "{retry_after_ms:?}");
}
