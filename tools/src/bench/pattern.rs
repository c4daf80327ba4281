//! Message contents that follow from the sender and the sequence, so that every byte of an answer can be checked.

/// Positions in the table at which a message can start: many enough to differ, few enough to stay in the L1
/// cache.
const STARTS: usize = 4096;
/// Bytes at the front of a message that identify it.
const TAG_BYTES: usize = 8;

/// Generates contents of one size.
#[derive(Debug)]
pub(super) struct Pattern {
    /// `STARTS` bytes longer than a message.
    table: Vec<u8>,
    /// The message generated last.
    message: Vec<u8>,
}

impl Pattern {
    pub(super) fn new(bytes: usize) -> Self {
        let table = (0..STARTS + bytes).map(|index| mix(index as u64).to_le_bytes()[0]).collect();
        Self { table, message: vec![0; bytes] }
    }

    /// The contents of message `sequence` from `sender`.
    #[inline]
    pub(super) fn message(&mut self, sender: usize, sequence: u64) -> &[u8] {
        let tag = mix(((sender as u64) << 40) ^ sequence);
        let start = usize::try_from(tag >> 52).unwrap_or_default();
        let bytes = self.message.len();
        self.message.copy_from_slice(&self.table[start..start + bytes]);
        let tag_bytes = bytes.min(TAG_BYTES);
        self.message[..tag_bytes].copy_from_slice(&tag.to_le_bytes()[..tag_bytes]);
        &self.message
    }
}

/// The finalizer of splitmix64: every bit of the input changes every bit of the output.
#[inline]
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_sender_and_sequence_give_the_same_message() {
        let mut pattern = Pattern::new(64);
        let first = pattern.message(3, 7).to_vec();
        assert_ne!(pattern.message(3, 8), first);
        assert_ne!(pattern.message(4, 7), first);
        assert_eq!(pattern.message(3, 7), first);
        assert_eq!(Pattern::new(3).message(1, 1).len(), 3);
        assert!(Pattern::new(0).message(1, 1).is_empty());
    }
}
