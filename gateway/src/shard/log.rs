//! A room's log: the pushes that it still remembers, each encoded once, numbered by offset.

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
        Self { frames: VecDeque::new(), first, bytes: 0, bytes_max, merged: None }
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

    /// Appends a frame. It may make the log longer than its bound, until [`Self::trim`].
    pub fn append(&mut self, frame: Bytes) {
        self.bytes += frame.len() + FRAME_OVERHEAD_BYTES;
        self.frames.push_back(frame);
    }

    /// Lets the oldest frames go where the bound says so, up to the offset `offered`: what comes
    /// before it, every member had the chance to take. The newest is always held.
    pub fn trim(&mut self, offered: u64) {
        while self.bytes > self.bytes_max && self.frames.len() > 1 && self.first < offered {
            if let Some(oldest) = self.frames.pop_front() {
                self.bytes -= oldest.len() + FRAME_OVERHEAD_BYTES;
                self.first += 1;
            }
        }
    }

    /// The frames from `cursor` on, as one run of bytes, and the cursor behind them; `None` when
    /// there are none. `cursor` must not be older than [`Self::first`].
    #[inline]
    pub fn read(&mut self, cursor: u64) -> Option<(Bytes, u64)> {
        let skip = usize::try_from(cursor.checked_sub(self.first)?).ok()?;
        let frame = self.frames.get(skip)?;
        if skip + 1 == self.frames.len() {
            return Some((frame.clone(), cursor + 1));
        }
        if let Some(merged) = &self.merged
            && merged.from == cursor
            && (merged.to == self.end() || merged.bytes.len() >= MERGE_BYTES_MAX / 2)
        {
            return Some((merged.bytes.clone(), merged.to));
        }
        Some(self.merge(cursor, skip))
    }

    /// Forgets the merged frames: nobody will ask for them for a while.
    pub fn forget_merged(&mut self) {
        self.merged = None;
    }

    fn merge(&mut self, cursor: u64, skip: usize) -> (Bytes, u64) {
        let mut bytes = 0;
        let count = self
            .frames
            .range(skip..)
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
        assert_eq!(log.read(101), Some(("bcd".into(), 104)));
        assert_eq!(log.read(101), Some(("bcd".into(), 104)));
    }

    #[test]
    fn the_oldest_go_and_the_newest_stays() {
        let mut log = log(&["a", "b", "c"], 2 * (FRAME_OVERHEAD_BYTES + 1));
        assert_eq!((log.first(), log.end()), (101, 103));
        log.append(Bytes::from(vec![0; 5000]));
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
        let (bytes, to) = log.read(1).unwrap();
        assert_eq!((bytes.len(), to), (MERGE_BYTES_MAX, 3));
        assert_eq!(
            log.read(5).map(|(bytes, to)| (bytes.len(), to)),
            Some((MERGE_BYTES_MAX / 2, 6))
        );
        assert_eq!(log.read(6).map(|(bytes, _)| bytes.len()), Some(2 * MERGE_BYTES_MAX));
    }
}
