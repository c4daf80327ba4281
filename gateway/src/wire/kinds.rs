//! Which wire each connection of a shard has: two bits for each slot that a wire other than plain has ever used.

/// What stands between the driver and a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Plain,
    /// The wire is being opened: a PROXY header, a TLS handshake or an upgrade is expected.
    Opening,
    /// A WebSocket without TLS.
    WebSocket,
    /// TLS, and perhaps a WebSocket in it.
    Secured,
}

/// Slots in one word.
const SLOTS: u32 = 32;

/// The kinds of all slots. Without wires it is empty, and a look at it is one comparison.
#[derive(Debug, Default)]
pub(super) struct Kinds(Vec<u64>);

impl Kinds {
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Kind {
        let Some(word) = self.0.get((slot / SLOTS) as usize) else { return Kind::Plain };
        match word >> (slot % SLOTS * 2) & 0b11 {
            0 => Kind::Plain,
            1 => Kind::Opening,
            2 => Kind::WebSocket,
            _ => Kind::Secured,
        }
    }

    #[cfg(test)]
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn set(&mut self, slot: u32, kind: Kind) {
        let index = (slot / SLOTS) as usize;
        if index >= self.0.len() {
            if kind == Kind::Plain {
                return;
            }
            self.0.resize(index + 1, 0);
        }
        let shift = slot % SLOTS * 2;
        self.0[index] = self.0[index] & !(0b11 << shift) | (kind as u64) << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_kind_of_its_own() {
        let kinds = [Kind::Plain, Kind::Opening, Kind::WebSocket, Kind::Secured];
        let mut table = Kinds::default();
        for slot in 0..200 {
            table.set(slot, kinds[slot as usize % 4]);
        }
        for slot in (0..200).rev() {
            assert_eq!(table.get(slot), kinds[slot as usize % 4], "{slot}");
            table.set(slot, kinds[(slot as usize + 1) % 4]);
        }
        for slot in 0..200 {
            assert_eq!(table.get(slot), kinds[(slot as usize + 1) % 4], "{slot}");
        }
        assert_eq!(table.get(1_000_000), Kind::Plain);
    }

    #[test]
    fn plain_connections_need_no_memory() {
        let mut table = Kinds::default();
        (0..1000).for_each(|slot| table.set(slot, Kind::Plain));
        assert_eq!(table.0.capacity(), 0);
    }
}
