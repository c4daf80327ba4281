//! What is free goes back to the kernel once a burst is over.
//!
//! glibc's allocator gives back what is free at the end of its heap, and one small block that lives there
//! keeps megabytes. [`Burst`] tells when it is worth asking for the rest.

/// Bytes of large blocks within one look that make a burst, and fewer of them its end.
const BURST_BYTES_MIN: usize = 256 * 1024;

/// Watches how much memory goes through large blocks.
#[derive(Debug, Default)]
pub struct Burst {
    /// Since the last look.
    bytes: usize,
    under_way: bool,
}

impl Burst {
    /// A large block was needed.
    #[inline]
    pub fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Whether a burst has ended, once. To be asked at regular intervals.
    pub fn has_ended(&mut self) -> bool {
        let before = self.under_way;
        self.under_way = std::mem::take(&mut self.bytes) >= BURST_BYTES_MIN;
        before && !self.under_way
    }
}

/// Gives whole free pages back to the kernel, of the whole process: some milliseconds for megabytes.
///
/// Without glibc it does nothing.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library has no safe door, and 3 MB would stay for ever")]
    // SAFETY: malloc_trim(3) takes the allocator's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_once_and_a_trickle_is_none() {
        let mut burst = Burst::default();
        burst.add(BURST_BYTES_MIN - 1);
        assert!(!burst.has_ended() && !burst.has_ended());
        for _ in 0..3 {
            burst.add(BURST_BYTES_MIN);
            assert!(!burst.has_ended());
        }
        burst.add(BURST_BYTES_MIN - 1);
        assert!(burst.has_ended());
        assert!(!burst.has_ended());
    }
}
