//! How a run ends: without faults every client is served; then all leave, and nothing is left behind.

use std::time::Duration;

use bytes::Bytes;
use tidegate::driver::sim::Faults;
use tidegate_testing::{Cause, SimDriver as _};

use super::Run;
use crate::backend::{INLINE, QUEUED, RANDOM, RANDOM_INLINE, Target, echo};

impl Run {
    /// Ends all faults of the network, the backend and the clients.
    pub(crate) fn stop_faults(&mut self) {
        for driver in &mut self.world.drivers {
            driver.sim().set_faults(Faults::default());
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

    /// The healing phase. Clients that are connected get all their answers. The others connect again. Then all clients
    /// send requests and get a push.
    pub(crate) fn heal(&mut self) {
        self.stop_faults();
        self.run_until(
            "each client has its answers, or its connection ended",
            Duration::from_secs(60),
            |run| {
                run.clients.iter().all(|client| {
                    let answered = client.is_live() && client.outstanding.is_empty();
                    answered || client.ended.is_some() || client.sent_garbage
                })
            },
        );
        // Connections may still wait to be accepted, and their authentication may replace another session. Let that
        // happen now: accepting resumes, and connections that linger make room.
        (0..40).for_each(|_| self.round(Duration::from_millis(100)));
        for index in 0..self.clients.len() {
            if !self.clients[index].is_live() || self.clients[index].session.is_none() {
                // A separate user, so that no other session is replaced.
                self.next_user += 1;
                let mut client = self.connect(self.next_user);
                client.never_reads = false;
                let old = std::mem::replace(&mut self.clients[index], client);
                self.skipped += old.skipped;
                self.world.hang_up(old.peer);
                self.clients[index].authenticate(self.world.now(), true);
            }
        }
        self.run_until("all clients have a session", Duration::from_secs(5), |run| {
            run.clients.iter().all(|client| client.session.is_some())
        });
        for client in &mut self.clients {
            client.pushes.clear();
            for kind in [INLINE, QUEUED, RANDOM, RANDOM_INLINE] {
                client.request(self.world.now(), kind, &Bytes::from_static(b"are you well?"));
            }
        }
        assert!(self.backend.push(Target::Everybody, self.world.gateway()), "the push is accepted");
        self.run_until(
            "all clients have their answers and the push",
            Duration::from_secs(5),
            |run| {
                run.clients.iter().all(|client| {
                    assert!(client.is_live(), "{client:?}");
                    client.outstanding.is_empty()
                        && client.pushes.get(&Target::Everybody) == Some(&1)
                        && client.is_up_to_date(&run.backend.record())
                })
            },
        );
        let missed = self.skipped + self.clients.iter().map(|client| client.skipped).sum::<u64>();
        let skipped = self.world.count(|stats| stats.skipped_pushes);
        assert!(self.rules.rooms_end || missed <= skipped, "{missed} missed, {skipped} skipped");
    }

    /// All clients leave, and nothing is left behind.
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
        // A room is idle from when its home learns that its last member has left.
        self.world.turns(4);
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
                "each connection is counted as closed once"
            );
            assert_eq!(stats.closed[Cause::Failed as usize], 0);
        }
    }
}
