//! The table of connections, by slot, and the spans of their log lines.

use std::net::SocketAddr;

use hashbrown::HashMap;

use super::connection::{Connection, Flags, Phase};
use crate::driver::ConnId;

/// A shard's connections.
#[derive(Debug, Default)]
pub struct Table {
    connections: Vec<Connection>,
    /// The spans by slot, while the log shows them. Empty otherwise.
    spans: HashMap<u32, tracing::Span>,
    /// Connections that are not vacant.
    open: usize,
}

impl Table {
    /// Open connections.
    #[must_use]
    pub const fn open(&self) -> usize {
        self.open
    }

    /// Slots, vacant or not.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.connections.len()
    }

    /// The connection with this id, if it is still open.
    #[inline]
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Connection> {
        let connection = self.connections.get(conn.slot as usize)?;
        let is_open = connection.generation == conn.generation && connection.phase != Phase::Vacant;
        is_open.then_some(connection)
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(conn.slot as usize)?;
        let is_open = connection.generation == conn.generation && connection.phase != Phase::Vacant;
        is_open.then_some(connection)
    }

    /// The connection in a slot, vacant or not.
    #[inline]
    #[must_use]
    pub fn at(&self, slot: u32) -> &Connection {
        &self.connections[slot as usize]
    }

    /// The same, to be changed.
    #[inline]
    pub fn at_mut(&mut self, slot: u32) -> &mut Connection {
        &mut self.connections[slot as usize]
    }

    /// The id of the connection in a slot.
    #[inline]
    #[must_use]
    pub fn conn_id(&self, slot: u32) -> ConnId {
        ConnId { slot, generation: self.at(slot).generation }
    }

    /// Puts a new connection into its slot. `shard` and `peer` are for the log.
    pub fn insert(&mut self, conn: ConnId, now_ms: u32, shard: u16, peer: SocketAddr) {
        let index = conn.slot as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, Connection::vacant);
        }
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (slot, generation) = (conn.slot, conn.generation);
            let through = tracing::field::Empty;
            let span = tracing::debug_span!("connection", %peer, client = through, shard, slot, generation);
            span.in_scope(|| tracing::debug!("accepted"));
            self.spans.insert(conn.slot, span);
        }
        self.replace(conn.slot, Connection::accepted(conn.generation, now_ms));
        self.open += 1;
    }

    /// The client behind a balancer is known, for the log.
    pub fn name(&self, conn: ConnId, client: SocketAddr) {
        if self.get(conn).is_some()
            && let Some(span) = self.spans.get(&conn.slot)
        {
            span.record("client", tracing::field::display(client));
        }
    }

    /// Frees a slot.
    pub fn remove(&mut self, slot: u32) {
        self.spans.remove(&slot);
        self.replace(slot, Connection::vacant());
        self.open -= 1;
    }

    /// The slot may be in the list of those to flush. It stays in it, so that its next connection is not listed twice.
    fn replace(&mut self, slot: u32, connection: Connection) {
        let known = self.at_mut(slot);
        let listed = known.flags & Flags::LISTED_FOR_FLUSH;
        *known = connection;
        known.flags |= listed;
    }

    /// Runs `log` within the connection's span, if the log shows it.
    #[inline]
    pub fn log(&self, slot: u32, log: impl FnOnce()) {
        if let Some(span) = self.spans.get(&slot) {
            span.in_scope(log);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_means_one_connection_of_a_slot() {
        let mut table = Table::default();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let first = ConnId { slot: 2, generation: 1 };
        table.insert(first, 0, 0, peer);
        assert_eq!((table.open(), table.slots()), (1, 3));
        assert!(table.get(first).is_some());
        assert!(table.get(ConnId { slot: 1, generation: 0 }).is_none(), "it is vacant");
        table.at_mut(2).flags |= Flags::LISTED_FOR_FLUSH | Flags::READ_PAUSED;
        table.remove(2);
        assert!(table.get(first).is_none());
        let second = ConnId { slot: 2, generation: 2 };
        table.insert(second, 0, 0, peer);
        assert!(table.get(first).is_none() && table.get(second).is_some());
        assert_eq!(table.conn_id(2), second);
        assert_eq!(table.at(2).flags, Flags::LISTED_FOR_FLUSH, "the slot is in the list still");
        assert_eq!(table.open(), 1);
    }
}
