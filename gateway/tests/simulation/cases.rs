//! Cases that random steps rarely reach, after a short random run.

use std::time::Duration;

use bytes::Bytes;

use tidegate_testing::Cause;

use crate::backend::{COMMAND, INLINE, Order, PUSH_BYTES_MAX, Target};
use crate::for_each_seed;
use crate::run::Run;

/// A room with a short log that closes slow members.
const STRICT: u64 = 2;

/// A run after its healing phase.
fn healed(seed: u64) -> Run {
    let mut run = Run::new(seed);
    (0..100).for_each(|_| run.step());
    run.heal();
    run
}

fn ask(run: &mut Run, kind: i32, data: &Bytes) {
    // After a second no rate limit refuses the request.
    run.round(Duration::from_secs(1));
    run.clients[0].request(run.world.now(), kind, data);
    run.run_until("an answer", Duration::from_secs(5), |run| run.clients[0].outstanding.is_empty());
}

#[test]
fn a_member_that_resumes_too_late_is_not_closed_as_slow() {
    for_each_seed(|seed| {
        let mut run = healed(seed);
        ask(&mut run, COMMAND, &Order::Join(STRICT).encode());
        let room = Target::Room(STRICT);
        assert!(run.backend.push(room, run.world.gateway()));
        run.run_until("the first push", Duration::from_secs(5), |run| {
            run.clients[0].seen.contains_key(&STRICT)
        });
        let (offset, number) = run.clients[0].seen[&STRICT];
        ask(&mut run, COMMAND, &Order::Leave(STRICT).encode());
        for _ in 0..100 {
            assert!(run.backend.push(room, run.world.gateway()));
            run.round(Duration::ZERO);
        }
        ask(&mut run, COMMAND, &Order::Resume(STRICT, offset, number).encode());
        let newest = run.backend.published(room) - 1;
        if run.world.config().rooms.idle_ttl > Duration::from_secs(10) {
            run.run_until("what the log holds", Duration::from_secs(5), |run| {
                run.clients[0].seen[&STRICT].1 == newest
            });
        }
        assert!(run.clients[0].is_live(), "{:?}", run.clients[0]);
    });
}

#[test]
fn a_client_that_reads_again_is_read_from_again() {
    for_each_seed(|seed| {
        let mut run = healed(seed);
        if run.world.config().limits.frames_per_second_max.is_some() {
            return;
        }
        let peer = run.clients[0].peer;
        run.world.set_window(peer, 0);
        let pauses = run.world.count(|stats| stats.receive_pauses);
        let data = Bytes::from(vec![7; 500]);
        while run.world.count(|stats| stats.receive_pauses) == pauses {
            for _ in 0..5 {
                run.clients[0].request(run.world.now(), INLINE, &data);
            }
            run.round(Duration::ZERO);
            assert!(run.clients[0].is_live() && run.clients[0].outstanding.len() < 10_000);
        }
        assert_eq!(
            run.world.level(|levels| levels.calls_in_flight),
            0,
            "reading is paused for unsent answers only"
        );
        run.world.set_window(peer, 1 << 20);
        run.run_until("all are answered", Duration::from_secs(5), |run| {
            run.clients[0].outstanding.is_empty()
        });
        assert!(run.clients[0].is_live(), "{:?}", run.clients[0]);
    });
}

#[test]
fn a_client_that_never_reads_is_closed_when_its_outbox_is_full() {
    for_each_seed(|seed| {
        let mut run = healed(seed);
        let (peer, user_id) = (run.clients[0].peer, run.clients[0].user_id);
        let closed = run.world.closed(Cause::OutboxFull);
        let unsent_bytes_max = run.world.config().limits.outbox_bytes_max + 2 * PUSH_BYTES_MAX;
        run.world.set_window(peer, 0);
        let mut unsent_bytes = 0;
        while run.world.closed(Cause::OutboxFull) == closed {
            assert!(unsent_bytes <= unsent_bytes_max, "{unsent_bytes} of {unsent_bytes_max}");
            assert!(run.backend.push(Target::User(user_id), run.world.gateway()));
            run.world.turns(2);
            unsent_bytes = run.world.level(|levels| levels.outbox_bytes);
        }
        assert_eq!(run.world.closed(Cause::OutboxFull), closed + 1);
    });
}
