//! Session ids: where a connection is, packed into 64 bits and scrambled.
//!
//! A session id says which shard, slot and generation it means, so a command that names one needs no
//! table to find it. It is scrambled with a number drawn at start, so ids of one run mean nothing in
//! the next, and they do not reveal a gateway's size. Scrambling is a bijection (the finalizer
//! of `SplitMix64`, Steele, Lea and Flood 2014), so ids stay unique.

use tidegate_backend::SessionId;

use crate::driver::ConnId;

/// Bits of a slot: 67 million connections a shard.
pub const SLOT_BITS: u32 = 26;
/// Bits of a shard's number: 256 shards.
pub const SHARD_BITS: u32 = 8;
// The generation has the 30 bits that are left: `driver::GENERATIONS`.

const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
const SHARD_MASK: u64 = (1 << SHARD_BITS) - 1;

/// Where a session lives. Packed: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionAddr(u64);

impl SessionAddr {
    /// Packs an address.
    #[inline]
    #[must_use]
    pub const fn new(shard: u16, conn: ConnId) -> Self {
        let generation = (conn.generation as u64) << (SLOT_BITS + SHARD_BITS);
        Self(generation | (shard as u64) << SLOT_BITS | conn.slot as u64)
    }

    /// The shard.
    #[inline]
    #[must_use]
    pub const fn shard(self) -> u16 {
        (self.0 >> SLOT_BITS & SHARD_MASK) as u16
    }

    /// The connection within it.
    #[inline]
    #[must_use]
    pub const fn conn(self) -> ConnId {
        ConnId {
            slot: (self.0 & SLOT_MASK) as u32,
            generation: (self.0 >> (SLOT_BITS + SHARD_BITS)) as u32,
        }
    }
}

/// The finalizer of `SplitMix64`: a bijection whose result depends on all bits of `z`.
#[inline]
#[must_use]
pub const fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Converts addresses of sessions to the session ids of one run, and back.
#[derive(Clone, Copy, Debug)]
pub struct SessionIds {
    key: u64,
}

impl SessionIds {
    /// Scrambles with `key`: a number that differs from run to run.
    #[must_use]
    pub const fn new(key: u64) -> Self {
        Self { key }
    }

    /// The session id of an address.
    #[inline]
    #[must_use]
    pub const fn id(self, addr: SessionAddr) -> SessionId {
        SessionId(scramble(addr.0 ^ self.key))
    }

    /// The address that a session id means. A made-up id means a random address: its generation, or
    /// its shard, won't fit anything that is there.
    #[inline]
    #[must_use]
    pub const fn addr(self, id: SessionId) -> SessionAddr {
        let mut z = id.0;
        z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
        z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
        z = z ^ (z >> 30) ^ (z >> 60);
        SessionAddr(z ^ self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_back_to_their_places() {
        let ids = SessionIds::new(0x1234_5678_9abc_def0);
        for generation in [0, 1, 77, crate::driver::GENERATIONS - 1] {
            for slot in [0, 1, 5000, (1 << SLOT_BITS) - 1] {
                for shard in [0, 1, 255] {
                    let conn = ConnId { slot, generation };
                    let addr = ids.addr(ids.id(SessionAddr::new(shard, conn)));
                    assert_eq!((addr.shard(), addr.conn()), (shard, conn));
                }
            }
        }
    }
}
