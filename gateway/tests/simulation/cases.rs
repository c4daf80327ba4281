//! Cases that random steps seldom come to, in worlds that are otherwise random.

use std::time::Duration;

use bytes::Bytes;

use crate::backend::{COMMAND, INLINE, Order, Target};
use crate::for_each_seed;
use crate::world::World;

/// A room whose log is short, and whose slow members are closed.
const STRICT: u64 = 2;

/// A world after its healing.
fn healed(seed: u64) -> World {
    let mut world = World::new(seed);
    (0..100).for_each(|_| world.step());
    world.heal();
    world
}

fn ask(world: &mut World, kind: i32, data: &Bytes) {
    // A second, so that no rate limit says no.
    world.round(Duration::from_secs(1));
    world.clients[0].request(world.now, kind, data);
    world.until("an answer", Duration::from_secs(5), |world| {
        world.clients[0].outstanding.is_empty()
    });
}

#[test]
fn who_resumes_too_late_is_not_slow() {
    for_each_seed(|seed| {
        let mut world = healed(seed);
        ask(&mut world, COMMAND, &Order::Join(STRICT).encode());
        let room = Target::Room(STRICT);
        assert!(world.backend.push(room, &world.parts.gateway));
        world.until("the first push", Duration::from_secs(5), |world| {
            world.clients[0].seen.contains_key(&STRICT)
        });
        let (offset, number) = world.clients[0].seen[&STRICT];
        ask(&mut world, COMMAND, &Order::Leave(STRICT).encode());
        for _ in 0..100 {
            assert!(world.backend.push(room, &world.parts.gateway));
            world.round(Duration::ZERO);
        }
        ask(&mut world, COMMAND, &Order::Resume(STRICT, offset, number).encode());
        let newest = world.backend.published(room) - 1;
        if world.parts.shared.config.rooms.idle_ttl > Duration::from_secs(10) {
            world.until("what the log holds", Duration::from_secs(5), |world| {
                world.clients[0].seen[&STRICT].1 == newest
            });
        }
        assert!(world.clients[0].is_live(), "{:?}", world.clients[0]);
    });
}

#[test]
fn who_reads_again_is_read_from_again() {
    for_each_seed(|seed| {
        let mut world = healed(seed);
        if world.parts.shared.config.limits.requests_per_second.is_some() {
            return;
        }
        let (shard, peer) = (world.clients[0].shard, world.clients[0].peer);
        world.shards[shard].1.set_window(peer, 0);
        let pauses = world.shards[shard].0.stats().receive_pauses;
        let data = Bytes::from(vec![7; 500]);
        while world.shards[shard].0.stats().receive_pauses == pauses {
            for _ in 0..5 {
                world.clients[0].request(world.now, INLINE, &data);
            }
            world.round(Duration::ZERO);
            assert!(world.clients[0].is_live() && world.clients[0].outstanding.len() < 10_000);
        }
        assert_eq!(world.shards[shard].0.levels().calls_in_flight, 0, "only sending holds it up");
        world.shards[shard].1.set_window(peer, 1 << 20);
        world.until("all are answered", Duration::from_secs(5), |world| {
            world.clients[0].outstanding.is_empty()
        });
        assert!(world.clients[0].is_live(), "{:?}", world.clients[0]);
    });
}
