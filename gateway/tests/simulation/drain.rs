//! A gateway that drains: it sends the answers, closes each connection with 108, and ends.

use std::time::Duration;

use bytes::Bytes;
use tidegate_backend::Code;

use tidegate_testing::SimDriver as _;

use crate::backend::{INLINE, RANDOM, RANDOM_INLINE, Target, echo};
use crate::for_each_seed;
use crate::run::Run;

#[test]
fn a_draining_gateway_answers_closes_gracefully_and_ends() {
    for_each_seed(|seed| {
        let mut run = Run::new(seed);
        (0..300).for_each(|_| run.step());
        run.heal();
        {
            let mut record = run.backend.record();
            record.answers_at_once = false;
            record.keeps_calls = true;
        }
        // After a second no rate limit holds back a client.
        run.round(Duration::from_secs(1));
        for client in &mut run.clients {
            client.answers = 0;
            let kind = [INLINE, RANDOM, RANDOM_INLINE][run.rng.usize(0..3)];
            client.request(run.world.now(), kind, &Bytes::from_static(b"before you go"));
        }
        (0..3).for_each(|_| run.round(Duration::ZERO));
        let waiting: Vec<_> = run.clients.iter().map(|client| client.outstanding.len()).collect();
        assert_eq!(waiting.iter().sum::<usize>(), run.backend.record().deferred.len());

        // The push reaches all shards, and may wait there for the end of a merge window.
        assert!(run.backend.push(Target::Everybody, run.world.gateway()), "the push is accepted");
        (0..2).for_each(|_| run.round(Duration::ZERO));
        run.world.drain();
        (0..3).for_each(|_| run.round(Duration::ZERO));
        for (client, &waiting) in run.clients.iter().zip(&waiting) {
            let is_closed = client.goodbye == Some(Code::Draining);
            assert_eq!(is_closed, waiting == 0, "{client:?}");
        }
        loop {
            // Unlock the record before the answer: a handler that runs at the answer may lock it.
            let Some(call) = run.backend.record().deferred.pop() else { break };
            echo(call);
            (0..run.rng.u32(0..3)).for_each(|_| run.round(Duration::from_millis(5)));
        }
        run.run_until("the shards end", Duration::from_secs(10), |run| run.world.is_finished());
        (0..3).for_each(|_| run.round(Duration::ZERO));
        for client in &run.clients {
            assert_eq!(client.goodbye, Some(Code::Draining), "{client:?}");
            assert_eq!(client.answers, 1, "{client:?}");
            assert_eq!(client.pushes[&Target::Everybody], 2, "no push is lost: {client:?}");
            assert!(client.ended.is_some());
        }
        assert!(run.world.drivers.iter_mut().all(|driver| driver.sim().connect().is_none()));
    });
}
