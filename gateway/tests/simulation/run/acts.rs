//! What clients do: requests, and faults of the client or its network.

use bytes::Bytes;

use super::{ROOMS, Run};
use crate::backend::{
    COMMAND, COMMAND_QUEUED, INLINE, LARGE, Order, QUEUED, RANDOM, RANDOM_INLINE, ROUTE_TYPES,
    UNROUTED, large_order,
};

impl Run {
    /// One random act of a client: a fault, or requests.
    pub(super) fn act(&mut self, index: usize) {
        let now = self.world.now();
        if self.clients[index].ended.is_some() {
            if self.rng.u32(0..4) == 0 {
                self.reconnect(index);
            }
            return;
        }
        let peer = self.clients[index].peer;
        match self.rng.u32(0..1000) {
            action @ 0..2 => {
                self.clients[index].may_be_cut_off = true;
                return if action == 0 { self.world.reset(peer) } else { self.world.hang_up(peer) };
            }
            2..4 if self.clients[index].is_live() => return self.clients[index].half_closed = true,
            4..30 if !self.clients[index].never_reads => {
                let client = &mut self.clients[index];
                client.stalled = !client.stalled;
                client.may_be_cut_off = true;
                let window = if client.stalled { self.rng.usize(0..600) } else { 100_000 };
                return self.world.set_window(peer, window);
            }
            30..33 if self.clients[index].is_live() => {
                self.clients[index].sent_garbage = true;
                let garbage: Bytes = (0..self.rng.usize(1..40)).map(|_| self.rng.u8(..)).collect();
                return self.clients[index].wire.outgoing().extend_from_slice(&garbage);
            }
            _ => {}
        }
        if !self.clients[index].is_live() {
            return;
        }
        if self.clients[index].session.is_none() {
            return match self.rng.u32(0..12) {
                0 => self.clients[index].authenticate(now, false),
                1 => self.clients[index].request(now, INLINE, &Bytes::from_static(b"too early")),
                2..7 => self.clients[index].authenticate(now, true),
                _ => {}
            };
        }
        if self.clients[index].never_reads && !self.clients[index].stalled {
            (self.clients[index].stalled, self.clients[index].may_be_cut_off) = (true, true);
            let window = self.rng.usize(0..600);
            self.world.set_window(peer, window);
        }
        self.ask(index);
    }

    fn ask(&mut self, index: usize) {
        let now = self.world.now();
        match self.rng.u32(0..40) {
            0 => self.clients[index].heartbeat(now),
            1 => self.clients[index].authenticate(now, true),
            2 => {
                let bytes = self.data();
                self.clients[index].request(now, UNROUTED, &bytes);
            }
            3 if self.large_answers => {
                let outbox_bytes_max = self.world.config().limits.outbox_bytes_max;
                let bytes = outbox_bytes_max / self.rng.usize(1..=4);
                self.clients[index].request(now, LARGE, &large_order(bytes));
            }
            3..20 => {
                for _ in 0..self.rng.u32(1..6) {
                    let route = *self.rng.choice(&[INLINE, QUEUED, RANDOM, RANDOM_INLINE]).unwrap();
                    let kind = route + self.rng.i32(0..ROUTE_TYPES);
                    let bytes = self.data();
                    self.clients[index].request(now, kind, &bytes);
                }
            }
            20..36 => {
                let order = self.order(index);
                let route = if self.rng.bool() { COMMAND } else { COMMAND_QUEUED };
                self.clients[index].request(now, route, &order.encode());
            }
            _ => self.clients[index].handle_timeout(now),
        }
    }

    fn order(&mut self, index: usize) -> Order {
        let room = self.rng.u64(0..ROOMS);
        match self.rng.u32(0..100) {
            0 => Order::Kick(self.rng.u64(1..=self.users)),
            1..20 => match self.clients[index].seen.get(&room) {
                Some(&(offset, number)) => Order::Resume(room, offset, number),
                None => Order::Join(room),
            },
            20..40 => Order::Join(room),
            40..47 => Order::Leave(room),
            _ => Order::Push(self.target()),
        }
    }

    fn data(&mut self) -> Bytes {
        let length = match self.rng.u32(0..30) {
            0 => self.rng.usize(0..5000),
            1..4 => self.rng.usize(0..1500),
            _ => self.rng.usize(0..60),
        };
        std::iter::repeat_with(|| self.rng.u8(..)).take(length).collect()
    }

    fn reconnect(&mut self, index: usize) {
        let user_id = self.rng.u64(1..=self.users);
        let mut client = self.connect(user_id);
        let old = &mut self.clients[index];
        self.skipped += old.skipped;
        self.world.hang_up(old.peer);
        // The client remembers offsets of a log that may be gone: the gateway must notice that by the offset.
        client.seen = std::mem::take(&mut old.seen);
        self.clients[index] = client;
    }
}
