//! Buffers that the kernel receives into. It takes one when bytes come, not when a receive is armed, so
//! a million connections share a few hundred.
//!
//! [`Buffers`] owns the memory, and a [`Ring`](super::ring::Ring) owns it. Each buffer is either the
//! kernel's, or lent to the driver between a completion and [`Buffers::recycle`].

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// Bytes of one buffer: most requests of phones are far shorter, and a longer one takes several.
pub(super) const BUFFER_BYTES: u32 = 1024;

/// The kernel wants the ring at the start of a page.
const PAGE_BYTES: usize = 4096;

/// A ring's buffers. See `io_uring_register_buf_ring(3)`.
#[derive(Debug)]
pub(super) struct Buffers {
    /// `count` entries. The kernel reads them. The tail that it sees is in the first.
    entries: NonNull<BufRingEntry>,
    /// `count * BUFFER_BYTES` bytes. The kernel writes to the buffers that it has.
    bytes: NonNull<u8>,
    /// A power of two, at most 2^15.
    count: u16,
    /// The entry for the next buffer that is given to the kernel, before it wraps.
    tail: u16,
}

impl Buffers {
    /// `count` buffers, all of them the kernel's once they are [registered](Self::register).
    pub(super) fn new(count: u16) -> Self {
        assert!(count.is_power_of_two() && count <= 1 << 15, "{count} buffers");
        let entries = allocate(entries_layout(count)).cast();
        let bytes = allocate(bytes_layout(count));
        let mut buffers = Self { entries, bytes, count, tail: 0 };
        (0..count).for_each(|buffer| buffers.recycle(buffer));
        buffers.publish();
        buffers
    }

    /// Registers them with a ring, as group 0.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.as_ptr().expose_provenance() as u64;
        // SAFETY: `entries` is page-aligned, has `count` entries that name memory of `bytes`, and both live
        // as long as the ring: `Ring` drops them after it, once nothing is under way.
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, 0, 0) }
    }

    /// What the kernel wrote to a buffer.
    ///
    /// The kernel doesn't write to it again before it is [recycled](Self::recycle), which takes
    /// `&mut self`.
    #[inline]
    pub(super) fn bytes(&self, buffer: u16, bytes: usize) -> &[u8] {
        assert!(buffer < self.count && bytes <= BUFFER_BYTES as usize, "no buffer of this ring");
        // SAFETY: the range lies within the allocation, and a completion has handed it over.
        unsafe { slice::from_raw_parts(self.address(buffer), bytes) }
    }

    /// The same, to be written to.
    #[inline]
    pub(super) fn bytes_mut(&mut self, buffer: u16, bytes: usize) -> &mut [u8] {
        assert!(buffer < self.count && bytes <= BUFFER_BYTES as usize, "no buffer of this ring");
        // SAFETY: as in `bytes`, and `&mut self` keeps every other access through this value away.
        unsafe { slice::from_raw_parts_mut(self.address(buffer), bytes) }
    }

    /// Gives a buffer to the kernel with the next [`Self::publish`].
    #[inline]
    pub(super) fn recycle(&mut self, buffer: u16) {
        debug_assert!(buffer < self.count);
        let place = usize::from(self.tail & (self.count - 1));
        let address = self.address(buffer).expose_provenance() as u64;
        // SAFETY: `place` is below `count`, and the kernel doesn't read this entry: it lies beyond the tail
        // that it knows. The fields that are set don't overlap the tail, which is in the first entry.
        let entry = unsafe { &mut *self.entries.as_ptr().add(place) };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the buffers that were given back visible to the kernel.
    #[inline]
    pub(super) fn publish(&self) {
        // SAFETY: the tail is an aligned `u16` within the first entry, which the kernel reads with acquire.
        let tail =
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        // SAFETY: the caller's buffer is below `count`, so this stays within the allocation.
        unsafe { self.bytes.as_ptr().add(usize::from(buffer) * BUFFER_BYTES as usize) }
    }
}

// SAFETY: both allocations are this value's alone; threads may pass it on, and no method takes `&self` to
// write to them but `publish`, which is atomic.
unsafe impl Send for Buffers {}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: both were allocated in `new` with these layouts.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), entries_layout(self.count));
            dealloc(self.bytes.as_ptr(), bytes_layout(self.count));
        }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here has size zero.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

fn entries_layout(count: u16) -> Layout {
    let bytes = usize::from(count) * size_of::<BufRingEntry>();
    Layout::from_size_align(bytes, PAGE_BYTES).expect("at most 512 KiB")
}

fn bytes_layout(count: u16) -> Layout {
    let bytes = usize::from(count) * BUFFER_BYTES as usize;
    Layout::from_size_align(bytes, PAGE_BYTES).expect("at most 32 MiB")
}
