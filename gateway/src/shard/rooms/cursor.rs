//! A member's cursor in the log of its room: 4 bytes.

/// The offset that a member gets next: its low half, which is enough beside the end of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u32);

impl Cursor {
    /// A cursor at this offset.
    #[inline]
    #[must_use]
    pub const fn new(offset: u64) -> Self {
        Self(low_half(offset))
    }

    /// The offset, in a log that ends at `end`. A member that is 2^32 pushes behind is taken for one that is
    /// less behind, and skips more than is counted. 2^32 pushes are 71 minutes at a million a second: a member
    /// would have to be in one send for so long.
    #[inline]
    #[must_use]
    pub const fn get(self, end: u64) -> u64 {
        end - low_half(end).wrapping_sub(self.0) as u64
    }

    /// Moves the cursor, in a log that ends at `end`. offset <= end
    #[inline]
    pub const fn set(&mut self, offset: u64, end: u64) {
        debug_assert!(offset <= end, "no member is ahead of the log");
        self.0 = low_half(offset);
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low_half(offset: u64) -> u32 {
    offset as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_half_of_a_cursor_is_enough() {
        for end in [1_u64, 7, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, (5 << 32) + 1, 1 << 53] {
            for behind in [0, 1, 7, 1 << 20, u64::from(u32::MAX)] {
                let Some(offset) = end.checked_sub(behind) else { continue };
                let mut cursor = Cursor::default();
                cursor.set(offset, end);
                assert_eq!(cursor.get(end), offset, "{behind} behind {end}");
                assert_eq!(cursor, Cursor::new(offset));
            }
        }
    }
}
