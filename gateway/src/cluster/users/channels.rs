//! The channels on which this gateway hears of its users, and the sign of life that it gives in each partition.
//!
//! A partition's channel is subscribed to with each connection, and again when the server has ended the subscription,
//! since the slot has moved. Then the gateway says that it is alive, and says so again every few seconds. Only
//! then does it say who is here: an entry of a gateway that is not alive would be swept. An answer says whether Redis
//! still has all that this gateway said before.

use super::{Output, Tag};
use crate::cluster::user_contract::{self as contract, PARTITIONS};

/// Time between two signs of life in a partition, in microseconds.
const ALIVE_EVERY_US: u64 = 5_000_000;

/// How long a sign of life counts, in milliseconds. Two may be missing.
const ALIVE_FOR_MS: u64 = 15_000;

/// Time until something that failed is done again, in microseconds.
const RETRY_US: u64 = 500_000;

/// Time until a subscription without any outcome is made again, in microseconds: longer than a command may take. When a Cluster's
/// node ends a subscription as its slot moves, the client may take that for the outcome of another subscription, whose own
/// outcome is then lost.
const CONFIRM_US: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is no connection.
    #[default]
    Down,
    /// The subscription failed or ended: it is made again at this time.
    Ended(u64),
    /// The subscription is made again at this time if it is not confirmed before.
    Subscribing(u64),
    Subscribed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    state: State,
    /// No sign of life was confirmed since the subscription.
    is_new: bool,
    is_alive_under_way: bool,
    alive_at_us: u64,
}

/// What a partition's sign of life has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// The subscription is new: messages may have been missed.
    pub is_new: bool,
    /// Redis still has what this gateway said before.
    pub was_alive: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Channels {
    channels: Vec<Channel>,
    /// Nothing is due before.
    next_us: u64,
}

impl Default for Channels {
    fn default() -> Self {
        Self { channels: vec![Channel::default(); usize::from(PARTITIONS)], next_us: 0 }
    }
}

impl Channels {
    /// There is a connection.
    pub fn on_up(&mut self) {
        self.channels.fill(Channel { state: State::Ended(0), is_new: true, ..Channel::default() });
        self.next_us = 0;
    }

    /// The connection is lost.
    pub fn on_down(&mut self) {
        self.channels.fill(Channel::default());
    }

    /// A subscription is confirmed.
    pub fn on_subscribed(&mut self, partition: u8) {
        let channel = &mut self.channels[usize::from(partition)];
        // Also when a Cluster's connection was made again by itself.
        if channel.state != State::Down {
            (channel.state, channel.is_new, channel.alive_at_us) = (State::Subscribed, true, 0);
            self.next_us = 0;
        }
    }

    /// A subscription has failed, or the server has ended it.
    pub fn on_unsubscribed(&mut self, partition: u8, now_us: u64) {
        let channel = &mut self.channels[usize::from(partition)];
        if channel.state != State::Down {
            channel.state = State::Ended(now_us + RETRY_US);
            self.next_us = self.next_us.min(now_us + RETRY_US);
        }
    }

    /// The next channel to subscribe to, or the next sign of life.
    pub fn next_output(&mut self, gateway: &str, now_us: u64) -> Option<Output> {
        if now_us < self.next_us {
            return None;
        }
        let mut next_us = u64::MAX;
        for (partition, channel) in (0..PARTITIONS).zip(&mut self.channels) {
            match channel.state {
                State::Ended(at_us) | State::Subscribing(at_us) if at_us <= now_us => {
                    channel.state = State::Subscribing(now_us + CONFIRM_US);
                    let name = contract::users_channel(partition, gateway);
                    return Some(Output::Subscribe(partition, name));
                }
                State::Ended(at_us) | State::Subscribing(at_us) => next_us = next_us.min(at_us),
                State::Subscribed if channel.is_alive_under_way => {}
                State::Subscribed if channel.alive_at_us <= now_us => {
                    channel.is_alive_under_way = true;
                    channel.alive_at_us = now_us + ALIVE_EVERY_US;
                    let cmd = contract::alive(partition, gateway, ALIVE_FOR_MS);
                    return Some(Output::Call(Tag::Alive(partition), cmd));
                }
                State::Subscribed => next_us = next_us.min(channel.alive_at_us),
                State::Down => {}
            }
        }
        self.next_us = next_us;
        None
    }

    /// The answer to a sign of life. `None`: it failed.
    pub fn on_alive(
        &mut self,
        partition: u8,
        was_alive: Option<bool>,
        now_us: u64,
    ) -> Option<Confirmed> {
        let channel = &mut self.channels[usize::from(partition)];
        if !std::mem::take(&mut channel.is_alive_under_way) {
            return None;
        }
        self.next_us = self.next_us.min(channel.alive_at_us);
        let Some(was_alive) = was_alive else {
            channel.alive_at_us = now_us + RETRY_US;
            self.next_us = self.next_us.min(channel.alive_at_us);
            return None;
        };
        // The subscription may have been confirmed again since the request. Then another sign of life follows.
        if channel.alive_at_us == 0 {
            return None;
        }
        Some(Confirmed { is_new: std::mem::take(&mut channel.is_new), was_alive })
    }
}
