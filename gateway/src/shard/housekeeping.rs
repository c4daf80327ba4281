//! Time in: what is due, and what is looked after now and then.

use std::mem;

use bytes::BytesMut;

use super::Shard;
use crate::allocator::Turn;

/// Deadlines of connections, and of calls, that one turn looks at: a crowd that falls silent at once is parted
/// with by and by.
const DEADLINES_MAX: usize = 1024;

/// How often figures are exported, idle rooms looked for and memory given back, in milliseconds.
const HOUSEKEEPING_MS: u64 = 250;

impl Shard {
    pub(super) fn expire(&mut self) {
        let mut expired = mem::take(&mut self.expired);
        self.deadlines_left =
            self.timers.expire(self.now_ms, DEADLINES_MAX, |slot| expired.push(slot));
        for slot in expired.drain(..) {
            self.on_deadline(slot);
        }
        self.expired = expired;
        let mut left = DEADLINES_MAX;
        while left > 0
            && let Some(pending) = self.router.pending.take_expired(self.now_ms)
        {
            self.on_timeout(pending);
            left -= 1;
        }
        self.deadlines_left |= left == 0;
        self.end_windows(self.now_ms);
        if self.now_ms >= self.housekeeping_at_ms {
            self.housekeeping_at_ms = self.now_ms + HOUSEKEEPING_MS;
            self.close_idle_rooms();
            self.give_back_memory();
            self.export();
        }
    }

    /// Once a burst is over, leaves nothing of it behind.
    fn give_back_memory(&mut self) {
        let Some(over_since_ms) = self.burst.over_since_ms(self.now_ms) else { return };
        let turn = self.shared.heap.turn(over_since_ms, self.now_ms);
        if turn == Turn::Later {
            return;
        }
        self.burst.dealt_with();
        self.outboxes.give_back();
        self.arena = BytesMut::new();
        if turn == Turn::Mine {
            self.shared.heap.give_back();
            self.stats.memory_give_backs += 1;
        }
    }

    pub(super) fn export(&mut self) {
        let levels = self.levels();
        self.stats.refused_commands += self.shared.gate.take_refused();
        let commands = self.shared.gate.commands();
        self.exporter.export(&self.stats, levels, commands);
        self.shared.call_durations.add(&mut self.durations);
    }
}
