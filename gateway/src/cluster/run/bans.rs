//! The loop's part for bans that all gateways share.

use redis::{RedisError, Value};

use super::{Completion, Runner};
use crate::cluster::bans::Now;
use crate::cluster::links::Concern;

impl Runner {
    fn now_for_bans(&self) -> Now {
        Now { ms: self.now_ms(), unix_ms: self.wall_clock.unix_us() / 1000 }
    }

    pub(super) fn carry_out_bans(&mut self) {
        let Some((mut connection, epoch)) = self.links.get(Concern::Presence).connection() else {
            return;
        };
        let Some(cmd) = self.bans.next_request(self.now_for_bans()) else { return };
        self.exporter.commands += 1;
        self.requests.spawn(async move {
            let answer = connection.call(&cmd).await;
            Completion::Bans { epoch, answer }
        });
    }

    pub(super) fn on_bans_answer(&mut self, epoch: u64, answer: Result<Value, RedisError>) {
        let answer = self.checked(epoch, answer).ok();
        self.exporter.unreadable += self.bans.on_answer(answer, self.now_for_bans());
    }
}
