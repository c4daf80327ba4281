//! The loop's part for bans that all gateways share.

use redis::{RedisError, Value};

use super::{Completion, Runner};
use crate::cluster::bans::Request;
use crate::cluster::links::Concern;

impl Runner {
    pub(super) fn carry_out_bans(&mut self) {
        let now_ms = self.now_ms();
        let Some((mut connection, epoch)) = self.links.get(Concern::Presence).connection() else {
            return;
        };
        let Some(Request { number, cmd }) = self.bans.next_request(now_ms) else { return };
        self.exporter.commands += 1;
        self.requests.spawn(async move {
            let answer = connection.call(&cmd).await;
            Completion::Bans { number, epoch, answer }
        });
    }

    pub(super) fn on_bans_answer(
        &mut self,
        number: u64,
        epoch: u64,
        answer: Result<Value, RedisError>,
    ) {
        let (answer, now_ms) = (self.checked(epoch, answer), self.now_ms());
        self.exporter.unreadable += self.bans.on_answer(number, answer, now_ms);
    }
}
