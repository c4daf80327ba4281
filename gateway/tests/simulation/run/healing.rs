//! How a run ends: all is well again, and then nothing is left.

use std::time::Duration;

use bytes::Bytes;
use tidegate::driver::sim::Faults;
use tidegate::shard::clients::cause::Cause;

use super::Run;
use crate::backend::{INLINE, QUEUED, RANDOM, RANDOM_INLINE, Target, echo};

impl Run {
    /// The network heals, and so does the backend; clients read.
    pub(crate) fn stop_faults(&mut self) {
        for sim in &mut self.world.drivers {
            sim.set_faults(Faults::default());
        }
        self.hung_workers.fill(false);
        for client in &mut self.clients {
            (client.stalled, client.never_reads) = (false, false);
            self.world.set_window(client.peer, 1 << 20);
        }
        let deferred = {
            let mut record = self.backend.record();
            record.answers_at_once = true;
            std::mem::take(&mut record.deferred)
        };
        deferred.into_iter().for_each(echo);
    }

    /// Everybody who is left gets all answers; who is not can come back, ask, and hear a push.
    pub(crate) fn heal(&mut self) {
        self.stop_faults();
        self.run_until("all are answered, or gone", Duration::from_secs(60), |run| {
            run.clients.iter().all(|client| {
                let answered = client.is_live() && client.outstanding.is_empty();
                answered || client.ended.is_some() || client.sent_garbage
            })
        });
        // Who still waits to be accepted, with a login to come, comes in and ends another's session: once
        // accepting goes on, and those that linger have made room.
        (0..40).for_each(|_| self.round(Duration::from_millis(100)));
        for index in 0..self.clients.len() {
            if !self.clients[index].is_live() || self.clients[index].session.is_none() {
                // Nobody else is this user.
                self.next_user += 1;
                let mut client = self.connect(self.next_user);
                client.never_reads = false;
                let old = std::mem::replace(&mut self.clients[index], client);
                self.skipped += old.skipped;
                self.world.hang_up(old.peer);
                self.clients[index].authenticate(self.world.now(), true);
            }
        }
        self.run_until("all can come in", Duration::from_secs(5), |run| {
            run.clients.iter().all(|client| client.session.is_some())
        });
        for client in &mut self.clients {
            client.pushes.clear();
            for kind in [INLINE, QUEUED, RANDOM, RANDOM_INLINE] {
                client.request(self.world.now(), kind, &Bytes::from_static(b"are you well?"));
            }
        }
        assert!(self.backend.push(Target::Everybody, self.world.gateway()), "a push is taken");
        self.run_until("all are answered and hear", Duration::from_secs(5), |run| {
            run.clients.iter().all(|client| {
                assert!(client.is_live(), "{client:?}");
                client.outstanding.is_empty()
                    && client.pushes.get(&Target::Everybody) == Some(&1)
                    && client.is_up_to_date(&run.backend.record())
            })
        });
        let missed = self.skipped + self.clients.iter().map(|client| client.skipped).sum::<u64>();
        let skipped = self.world.count(|stats| stats.skipped_pushes);
        assert!(self.rules.rooms_end || missed <= skipped, "{missed} missed, {skipped} skipped");
    }

    /// Everybody goes, and nothing is left behind.
    pub(crate) fn end(&mut self) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            client.may_be_cut_off = true;
            match self.rng.u32(0..3) {
                0 => self.world.reset(client.peer),
                1 => self.world.hang_up(client.peer),
                _ => client.half_closed = true,
            }
        }
        self.run_until("the connections are gone", Duration::from_secs(10), |run| {
            run.world.level(|levels| levels.connections) == 0
        });
        self.world.advance(self.world.config().rooms.idle_ttl);
        self.run_until("nothing is left", Duration::from_secs(10), |run| {
            run.world.levels().iter().all(|levels| {
                let left = levels.sessions
                    + levels.users
                    + levels.memberships
                    + levels.calls_in_flight
                    + levels.outbox_bytes;
                left == 0 && levels.rooms == 1
            })
        });
        assert_eq!(self.world.commands_in_flight(), 0);
        for shard in &self.world.shards {
            let stats = shard.stats();
            assert_eq!(
                stats.accepted,
                stats.closed.iter().sum::<u64>(),
                "each parting counts once"
            );
            assert_eq!(stats.closed[Cause::Failed as usize], 0);
        }
    }
}
