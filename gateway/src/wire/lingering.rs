//! Closed connections that linger: until their goodbye is out, or until the peer has shut down its sending side.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::driver::ConnId;
use crate::spare::{shrink_list, shrink_map, shrink_queue};

/// How long a closed connection lingers, at most.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(2);

/// Connections of one shard that linger, at most. Of more, the ones that have lingered for longest are closed.
pub(super) const LINGERING_MAX: usize = 1024;

#[derive(Debug)]
struct Lingerer {
    /// It lingers until the peer has shut down its sending side, and not only until the goodbye is out.
    awaits_end: bool,
    /// Bytes of the core that could not be said to the peer.
    lost_bytes: usize,
}

/// The connections of a shard that linger.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    connections: HashMap<ConnId, Lingerer>,
    /// Until when they linger, in order. Some of them are closed already.
    ends: VecDeque<(Instant, ConnId)>,
    /// Those that need not linger any longer.
    done: Vec<ConnId>,
}

impl Lingering {
    /// A connection begins to linger.
    pub(super) fn insert(
        &mut self,
        conn: ConnId,
        awaits_end: bool,
        lost_bytes: usize,
        now: Instant,
    ) {
        self.connections.insert(conn, Lingerer { awaits_end, lost_bytes });
        self.ends.push_back((now + LINGER_MAX, conn));
        while self.connections.len() - self.done.len().min(self.connections.len()) > LINGERING_MAX
            && let Some((_, oldest)) = self.ends.pop_front()
        {
            if self.connections.contains_key(&oldest) {
                self.done.push(oldest);
            }
        }
    }

    pub(super) fn contains(&self, conn: ConnId) -> bool {
        !self.connections.is_empty() && self.connections.contains_key(&conn)
    }

    /// The connection is closed. Says how many bytes of the core were lost; `None`: it did not linger.
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<usize> {
        self.connections.remove(&conn).map(|lingerer| lingerer.lost_bytes)
    }

    /// All that the connection had to send is out.
    pub(super) fn all_is_sent(&mut self, conn: ConnId) {
        if self.connections.get(&conn).is_some_and(|lingerer| !lingerer.awaits_end) {
            self.done.push(conn);
        }
    }

    /// The peer has shut down its sending side. `false`: the connection does not linger.
    pub(super) fn peer_shut_down(&mut self, conn: ConnId) -> bool {
        let Some(lingerer) = self.connections.get_mut(&conn) else { return false };
        lingerer.awaits_end = false;
        true
    }

    /// Whether there may be something in [`Self::next_done`].
    pub(super) fn is_busy(&self) -> bool {
        !self.done.is_empty() || !self.ends.is_empty()
    }

    /// The next connection that need not linger any longer.
    pub(super) fn next_done(&mut self, now: Option<Instant>) -> Option<ConnId> {
        while let Some(&(end, conn)) = self.ends.front()
            && (now.is_some_and(|now| end <= now) || !self.connections.contains_key(&conn))
        {
            self.done.push(conn);
            self.ends.pop_front();
        }
        loop {
            let conn = self.done.pop()?;
            if self.connections.contains_key(&conn) {
                return Some(conn);
            }
        }
    }

    /// How long the driver may wait.
    pub(super) fn idle_for(&self, now: Option<Instant>) -> Option<Duration> {
        if !self.done.is_empty() {
            return Some(Duration::ZERO);
        }
        let (&(end, _), now) = self.ends.front().zip(now)?;
        Some(end.saturating_duration_since(now))
    }

    pub(super) fn free_spare_memory(&mut self) {
        shrink_map(&mut self.connections);
        shrink_list(&mut self.done);
        shrink_queue(&mut self.ends);
    }

    /// Whether none lingers.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }
}
