//! A room's log: the pushes that it still remembers, each encoded once, numbered by offset.
//!
//! Its end may be held back for a while: what was appended is read only when it is released, so that
//! members get it together with what comes soon after.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// What a frame costs beyond its bytes: the handle in the queue and the allocation's header.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// One send takes at most this many bytes from a log, so that what a slow connection has under way
/// stays small; a longer frame goes alone.
const MERGE_BYTES_MAX: usize = 64 * 1024;

/// Frames by offset. Offsets have no holes within a log's life.
#[derive(Clone, Debug)]
pub struct Log {
    frames: VecDeque<Bytes>,
    /// The offset of the oldest frame that is left.
    first: u64,
    /// Bytes of the frames, overhead included.
    bytes: usize,
    bytes_max: usize,
    /// What comes before this offset may be read. first <= released <= end
    released: u64,
    /// Bytes of the frames that may not be read yet, overhead included.
    held_bytes: usize,
    /// The last frames that were put together: members at the same place share them.
    merged: Option<Merged>,
}

#[derive(Clone, Debug)]
struct Merged {
    from: u64,
    to: u64,
    bytes: Bytes,
}

impl Log {
    /// An empty log whose first push will have the offset `first`: greater than 0.
    #[must_use]
    pub const fn new(first: u64, bytes_max: usize) -> Self {
        let frames = VecDeque::new();
        Self { frames, first, bytes: 0, bytes_max, released: first, held_bytes: 0, merged: None }
    }

    /// The offset of the oldest push that is left; [`Self::end`] when none is.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The offset that the next push will have.
    #[inline]
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// Bytes that it holds, overhead included.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The end of what may be read.
    #[inline]
    #[must_use]
    pub const fn released(&self) -> u64 {
        self.released
    }

    /// Whether what may not be read yet is longer than the bound: then the log holds no more than
    /// that, and who misses the next release would miss pushes.
    #[must_use]
    pub const fn holds_too_much(&self) -> bool {
        self.held_bytes > self.bytes_max
    }

    /// Appends a frame, to be read once it is released. It may make the log longer than its bound,
    /// until [`Self::trim`].
    pub fn append(&mut self, frame: Bytes) {
        self.bytes += frame.len() + FRAME_OVERHEAD_BYTES;
        self.held_bytes += frame.len() + FRAME_OVERHEAD_BYTES;
        self.frames.push_back(frame);
    }

    /// Lets everything be read.
    #[inline]
    pub fn release(&mut self) {
        self.released = self.end();
        self.held_bytes = 0;
    }

    /// Lets the oldest frames go where the bound says so, up to the offset `offered`: what comes
    /// before it, every member had the chance to take: released, that is. The newest is always held.
    pub fn trim(&mut self, offered: u64) {
        debug_assert!(offered <= self.released, "what may not be read was not offered");
        while self.bytes > self.bytes_max && self.frames.len() > 1 && self.first < offered {
            if let Some(oldest) = self.frames.pop_front() {
                self.bytes -= oldest.len() + FRAME_OVERHEAD_BYTES;
                self.first += 1;
            }
        }
    }

    /// The released frames from `cursor` on, as one run of bytes, and the cursor behind them; `None`
    /// when there are none. `cursor` must not be older than [`Self::first`].
    #[inline]
    pub fn read(&mut self, cursor: u64) -> Option<(Bytes, u64)> {
        if cursor >= self.released {
            return None;
        }
        let skip = usize::try_from(cursor.checked_sub(self.first)?).ok()?;
        let frame = self.frames.get(skip)?;
        if cursor + 1 == self.released {
            return Some((frame.clone(), cursor + 1));
        }
        if let Some(merged) = &self.merged
            && merged.from == cursor
            && (merged.to == self.released || merged.bytes.len() >= MERGE_BYTES_MAX / 2)
        {
            return Some((merged.bytes.clone(), merged.to));
        }
        Some(self.merge(cursor, skip))
    }

    /// All frames from `cursor` on, released or not.
    pub fn frames_from(&self, cursor: u64) -> impl Iterator<Item = &Bytes> {
        let skip = usize::try_from(cursor.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.frames.iter().skip(skip)
    }

    /// Forgets the merged frames: nobody will ask for them for a while.
    pub fn forget_merged(&mut self) {
        self.merged = None;
    }

    fn merge(&mut self, cursor: u64, skip: usize) -> (Bytes, u64) {
        let released = usize::try_from(self.released - self.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let count = self
            .frames
            .range(skip..released)
            .take_while(|frame| {
                bytes += frame.len();
                bytes <= MERGE_BYTES_MAX
            })
            .count()
            .max(1);
        let to = cursor + count as u64;
        let taken = self.frames.range(skip..skip + count);
        if count == 1 {
            return (taken.last().expect("one frame").clone(), to);
        }
        let mut merged = BytesMut::with_capacity(taken.clone().map(Bytes::len).sum());
        taken.for_each(|frame| merged.extend_from_slice(frame));
        let bytes = merged.freeze();
        self.merged = Some(Merged { from: cursor, to, bytes: bytes.clone() });
        (bytes, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(frames: &[&'static str], bytes_max: usize) -> Log {
        let mut log = Log::new(100, bytes_max);
        frames.iter().for_each(|frame| log.append(Bytes::from_static(frame.as_bytes())));
        log.release();
        log.trim(log.end());
        log
    }

    #[test]
    fn one_read_takes_everything_from_the_cursor_on() {
        let mut log = log(&["a", "b", "c"], 10_000);
        assert_eq!(log.read(100), Some(("abc".into(), 103)));
        assert_eq!(log.read(101), Some(("bc".into(), 103)));
        assert_eq!(log.read(102), Some(("c".into(), 103)));
        assert_eq!(log.read(103), None);
        log.append("d".into());
        assert_eq!(log.read(101), Some(("bc".into(), 103)), "it is not released");
        assert_eq!(log.read(103), None);
        log.release();
        assert_eq!(log.read(101), Some(("bcd".into(), 104)));
        assert_eq!(log.read(101), Some(("bcd".into(), 104)));
    }

    #[test]
    fn the_oldest_go_and_the_newest_stays() {
        let mut log = log(&["a", "b", "c"], 2 * (FRAME_OVERHEAD_BYTES + 1));
        assert_eq!((log.first(), log.end()), (101, 103));
        log.append(Bytes::from(vec![0; 5000]));
        assert!(log.holds_too_much());
        log.release();
        assert!(!log.holds_too_much());
        log.trim(102);
        assert_eq!((log.first(), log.end()), (102, 104), "what was not offered stays");
        log.trim(104);
        assert_eq!((log.first(), log.end()), (103, 104));
        assert_eq!(log.bytes(), 5000 + FRAME_OVERHEAD_BYTES);
    }

    #[test]
    fn a_merge_is_bounded_and_a_long_frame_goes_alone() {
        let mut log = Log::new(1, usize::MAX);
        for _ in 0..5 {
            log.append(Bytes::from(vec![1; MERGE_BYTES_MAX / 2]));
        }
        log.append(Bytes::from(vec![2; 2 * MERGE_BYTES_MAX]));
        log.release();
        let (bytes, to) = log.read(1).unwrap();
        assert_eq!((bytes.len(), to), (MERGE_BYTES_MAX, 3));
        assert_eq!(
            log.read(5).map(|(bytes, to)| (bytes.len(), to)),
            Some((MERGE_BYTES_MAX / 2, 6))
        );
        assert_eq!(log.read(6).map(|(bytes, _)| bytes.len()), Some(2 * MERGE_BYTES_MAX));
    }
}
