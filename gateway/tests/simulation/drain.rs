//! A gateway that goes away: answers first, then a goodbye, then the end.

use std::time::Duration;

use bytes::Bytes;
use tidegate::shard::mailbox::Message;
use tidegate_backend::Code;

use crate::backend::{INLINE, Target, WILD, WILD_INLINE, echo};
use crate::for_each_seed;
use crate::world::World;

#[test]
fn a_draining_gateway_answers_says_goodbye_and_ends() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        (0..300).for_each(|_| world.step());
        world.heal();
        {
            let mut book = world.backend.book();
            book.calm = false;
            book.keeps = true;
        }
        // Who has just asked much may ask again.
        world.round(Duration::from_secs(1));
        for client in &mut world.clients {
            client.answers = 0;
            let kind = [INLINE, WILD, WILD_INLINE][world.rng.usize(0..3)];
            client.request(world.now, kind, &Bytes::from_static(b"before you go"));
        }
        (0..3).for_each(|_| world.round(Duration::ZERO));
        let waiting: Vec<_> = world.clients.iter().map(|client| client.outstanding.len()).collect();
        assert_eq!(waiting.iter().sum::<usize>(), world.backend.book().deferred.len());

        // It has come to all shards, and may wait there for the end of a window.
        assert!(world.backend.push(Target::Everybody, &world.parts.gateway), "a push is taken");
        (0..2).for_each(|_| world.round(Duration::ZERO));
        world.parts.hub.tell_all(|| Message::Drain);
        (0..3).for_each(|_| world.round(Duration::ZERO));
        for (client, &waiting) in world.clients.iter().zip(&waiting) {
            let told = client.goodbye == Some(Code::Draining);
            assert_eq!(told, waiting == 0, "{client:?}");
        }
        loop {
            // The book is let go of before the answer, which may want it.
            let Some(call) = world.backend.book().deferred.pop() else { break };
            echo(call);
            (0..world.rng.u32(0..3)).for_each(|_| world.round(Duration::from_millis(5)));
        }
        world.until("the shards end", Duration::from_secs(10), |world| {
            world.shards.iter().all(|(shard, _)| shard.is_finished())
        });
        (0..3).for_each(|_| world.round(Duration::ZERO));
        for client in &world.clients {
            assert_eq!(client.goodbye, Some(Code::Draining), "{client:?}");
            assert_eq!(client.answers, 1, "{client:?}");
            assert_eq!(client.pushes[&Target::Everybody], 2, "nothing is lost: {client:?}");
            assert!(client.over.is_some());
        }
        assert!(world.shards.iter_mut().all(|(_, sim)| sim.connect().is_none()));
    });
}
