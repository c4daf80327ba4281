//! The loop's part for session tokens: facts of the tokens' Redis, and what [`tokens`] asks for.

use redis::PushKind;

use super::{Completion, Runner};
use crate::cluster::links::Concern;
use crate::cluster::token_contract;
use crate::cluster::tokens;
use crate::shard::tokens::TokenMessage;

impl Runner {
    pub(super) fn on_token_arrival(&mut self, kind: &PushKind, channel: &[u8], message: &[u8]) {
        let now_ms = self.now_ms();
        let partition = || token_contract::partition_of_channel(channel).into_iter();
        match kind {
            PushKind::SMessage => match token_contract::revocation(message) {
                Some((user_id, token)) => self.tokens.on_revoked(user_id, token),
                None => self.exporter.unreadable += 1,
            },
            PushKind::SSubscribe => partition().for_each(|it| self.tokens.on_subscribed(it)),
            PushKind::SUnsubscribe => {
                partition().for_each(|it| self.tokens.on_unsubscribed(it, now_ms));
            }
            PushKind::Disconnection => self.tokens.on_node_lost(),
            _ => {}
        }
    }

    pub(super) fn carry_out_tokens(&mut self) {
        let now_ms = self.now_ms();
        while let Some(output) = self.tokens.next_output() {
            match output {
                tokens::Output::Post(shard, message) => {
                    // The only other number that asks is the HTTP gateway's.
                    let address = self.shards.get(usize::from(shard)).or(self.http.as_ref());
                    if let Some(address) = address {
                        address.post(message);
                    }
                }
                tokens::Output::Revoke(user_id, token) => {
                    let message = || TokenMessage::Revoke { user_id, token };
                    self.shards.iter().for_each(|address| address.post(message()));
                }
                tokens::Output::Subscribe(partition) => {
                    let link = self.links.get(Concern::Tokens);
                    let Some((mut connection, epoch)) = link.connection() else { continue };
                    self.exporter.commands += 1;
                    self.requests.spawn(async move {
                        let channel = token_contract::tokens_key(partition);
                        let outcome = connection.subscribe(&channel, true).await;
                        Completion::TokensSubscribed { partition, epoch, outcome }
                    });
                }
            }
        }
        let Some((connection, epoch)) = self.links.get(Concern::Tokens).connection() else {
            return;
        };
        while let Some(request) = self.tokens.next_request(now_ms) {
            let tokens::Request { partition, number, cmd } = request;
            self.exporter.commands += 1;
            let mut connection = connection.clone();
            self.requests.spawn(async move {
                let answer = connection.call(&cmd).await;
                Completion::LookedUp { partition, number, epoch, answer }
            });
        }
    }
}
