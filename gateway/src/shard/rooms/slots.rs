//! A set of connections, by slot: the members of everybody's room.

/// A set of slots: a bit each.
#[derive(Debug, Default)]
pub struct Slots {
    words: Vec<u64>,
}

impl Slots {
    const BITS: usize = u64::BITS as usize;

    /// Whether a slot is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        let word = self.words.get(slot as usize / Self::BITS).copied().unwrap_or_default();
        word & (1 << (slot as usize % Self::BITS)) != 0
    }

    /// Adds a slot, or removes it.
    pub fn set(&mut self, slot: u32, is_in: bool) {
        let (index, bit) = (slot as usize / Self::BITS, 1 << (slot as usize % Self::BITS));
        if self.words.len() <= index {
            self.words.resize(index + 1, 0);
        }
        if is_in {
            self.words[index] |= bit;
        } else {
            self.words[index] &= !bit;
        }
    }

    /// The first slot of the set from `first` on.
    #[inline]
    #[must_use]
    pub fn next(&self, first: usize) -> Option<u32> {
        let mut index = first / Self::BITS;
        let mut word = self.words.get(index)? & (u64::MAX << (first % Self::BITS));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        u32::try_from(index * Self::BITS + word.trailing_zeros() as usize).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_slots_finds_the_next_one() {
        let mut slots = Slots::default();
        for slot in [3, 63, 64, 500] {
            slots.set(slot, true);
        }
        slots.set(64, false);
        let all: Vec<u32> =
            std::iter::successors(slots.next(0), |&slot| slots.next(slot as usize + 1)).collect();
        assert_eq!(all, [3, 63, 500]);
        assert!(slots.contains(63) && !slots.contains(64) && !slots.contains(10_000));
    }
}
