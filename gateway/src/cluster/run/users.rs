//! The loop's part for users: facts of presence's Redis, and what [`users`] asks for.

use std::time::Instant;

use redis::{Cmd, PushKind};

use super::{Completion, Runner};
use crate::cluster::links::Concern;
use crate::cluster::user_contract;
use crate::cluster::users::{self, Tag, Times};

impl Runner {
    pub(super) fn on_user_arrival(&mut self, kind: &PushKind, channel: &[u8], message: &[u8]) {
        let now_us = self.now_us();
        let partition = || user_contract::partition_of_channel(channel).into_iter();
        match kind {
            PushKind::SMessage if !self.users.on_message(message, now_us) => {
                self.exporter.unreadable += 1;
            }
            PushKind::SSubscribe => partition().for_each(|it| self.users.on_subscribed(it)),
            PushKind::SUnsubscribe => {
                partition().for_each(|it| self.users.on_unsubscribed(it, now_us));
            }
            _ => {}
        }
    }

    pub(super) fn carry_out_users(&mut self) {
        let now_us = self.now_us();
        while let Some(output) = self.users.next_output(now_us) {
            match output {
                users::Output::Post(shard, message) => {
                    if let Some(address) = self.shards.get(usize::from(shard)) {
                        address.post(message);
                    }
                }
                users::Output::Call(tag, cmd) => self.call_users(tag, cmd),
                users::Output::Subscribe(partition, channel) => {
                    let link = self.links.get(Concern::Presence);
                    let Some((mut connection, epoch)) = link.connection() else { continue };
                    self.exporter.commands += 1;
                    self.requests.spawn(async move {
                        let outcome = connection.subscribe(&channel, true).await;
                        Completion::UsersSubscribed { partition, epoch, outcome }
                    });
                }
            }
        }
    }

    fn call_users(&mut self, tag: Tag, cmd: Cmd) {
        // It asks for commands only while there is a connection.
        let Some((mut connection, epoch)) = self.links.get(Concern::Presence).connection() else {
            return;
        };
        self.exporter.commands += 1;
        let started = self.started;
        let micros = move || {
            let since = Instant::now().saturating_duration_since(started);
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        };
        self.requests.spawn(async move {
            let sent_us = micros();
            let answer = connection.call(&cmd).await;
            let times = Times { sent_us, received_us: micros() };
            Completion::Users { tag, epoch, answer, times }
        });
    }
}
