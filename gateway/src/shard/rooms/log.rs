//! A room's log: the pushes that the room keeps, each encoded once, numbered by offset.
//!
//! A *chunk* is what one read of the log gives: consecutive frames as one block of bytes.
//!
//! Frames are appended, then released. Members are sent released frames only, so a merge window holds back
//! the frames that it waits for.

mod name;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tidegate_protocol::proto::v1::Recovery;

use super::lifetimes::{LIFETIME_BYTES, Lifetimes, NEVER_MS};
pub use name::{LogId, LogIds, LogName};

/// Memory of a frame beyond its bytes: its entry in the queue and the allocation's header.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Bytes of one chunk, at most. It bounds what a slow connection has under way. A longer frame is a separate chunk.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// Pushes of a shared log that a client may have seen and this gateway not, at most: as many as Redis keeps.
const AHEAD_MAX: u64 = 1_000;

/// Which pushes a new member wants that were published before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Those that the room's policy replays.
    Now,
    /// Those after this offset, whatever the log's id was: a backend asks. 0: all.
    Offset(u64),
    /// Those after an offset of a log, by its number on the wire: a client that resumes asks for them. Offset 0 is before the
    /// log's first push.
    Position {
        /// The log's number on the wire.
        log: u64,
        /// The last offset that the client has seen.
        offset: u64,
    },
}

/// Frames by offset. Offsets have no holes within a log's life. A push whose time to live is over keeps its offset, as an
/// empty frame.
#[derive(Clone, Debug)]
pub struct Log {
    name: LogName,
    /// The offset of the first frame that the log ever had.
    began: u64,
    frames: VecDeque<Bytes>,
    /// The offset of the oldest frame.
    first: u64,
    /// Bytes of the frames, overhead included.
    bytes: usize,
    bytes_max: usize,
    /// Frames before this offset are released. first <= released <= end
    released: u64,
    /// Bytes of the frames that are not released, overhead included.
    unreleased_bytes: usize,
    /// The chunk that was merged last. Members at the same offset share it.
    merged: Option<Merged>,
    /// The pushes with a time to live, if the log has any.
    lifetimes: Option<Box<Lifetimes>>,
    /// Gateways share it.
    is_shared: bool,
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
    pub const fn new(name: LogName, first: u64, bytes_max: usize) -> Self {
        let frames = VecDeque::new();
        Self {
            name,
            began: first,
            frames,
            first,
            bytes: 0,
            bytes_max,
            released: first,
            unreleased_bytes: 0,
            merged: None,
            lifetimes: None,
            is_shared: false,
        }
    }

    /// A released log that other gateways write too: its first push had, or will have, the offset 1. It holds
    /// `frames`, as far as its bound allows: the oldest has the offset `first`. With each comes when its time to live is
    /// over, on the shard's clock.
    #[must_use]
    pub fn shared(
        name: LogName,
        first: u64,
        frames: impl IntoIterator<Item = (Bytes, u64)>,
        bytes_max: usize,
    ) -> Self {
        let mut log = Self { began: 1, is_shared: true, ..Self::new(name, first, bytes_max) };
        for (frame, ends_ms) in frames {
            match ends_ms {
                NEVER_MS => log.append(frame),
                // It is not counted: its publisher knows its outcome already.
                ends_ms => log.append_expiring(frame, ends_ms, 0),
            }
        }
        log.release();
        log.trim(log.end());
        log
    }

    /// The same log under another name, without its pushes from the offset `cut` on: they were lost where the log is
    /// kept. If the next push has an offset above `cut`, those before it are gone too, and the log begins with
    /// that push. It is released.
    #[must_use]
    pub fn renamed(&self, id: LogId, cut: u64, next: u64) -> Self {
        let name = LogName { id, ..self.name };
        if next > cut || cut <= self.first {
            let Self { began, bytes_max, is_shared, .. } = *self;
            return Self { began, is_shared, ..Self::new(name, next, bytes_max) };
        }
        let mut log = Self { name, merged: None, ..self.clone() };
        while log.end() > cut
            && let Some(lost) = log.frames.pop_back()
        {
            log.bytes -= lost.len() + FRAME_OVERHEAD_BYTES;
        }
        if let Some(lifetimes) = &mut log.lifetimes {
            log.bytes -= lifetimes.forget_from(cut) * LIFETIME_BYTES;
        }
        log.release();
        log
    }

    /// How it is named on the wire.
    #[must_use]
    pub const fn name(&self) -> LogName {
        self.name
    }

    /// The offset of the newest push; 0 if there was none.
    #[must_use]
    pub fn head(&self) -> u64 {
        if self.end() == self.began { 0 } else { self.end() - 1 }
    }

    /// The offset of the newest push that is released; 0 if there is none.
    #[must_use]
    pub const fn released_head(&self) -> u64 {
        if self.released == self.began { 0 } else { self.released - 1 }
    }

    /// Where a member begins to read, and whether it gets all that it asks for. `replayed`: how many of the
    /// last pushes a member gets that asks for none.
    #[must_use]
    pub fn start_after(&self, after: After, replayed: u64) -> (u64, Recovery) {
        let (first, end) = (self.first, self.end());
        let newest = end.saturating_sub(replayed).max(first);
        let wanted = match after {
            After::Now => return (newest, Recovery::NotAsked),
            After::Position { log, .. } if log != self.name.id.get() => {
                return (newest, Recovery::Gap);
            }
            After::Position { offset: 0, .. } | After::Offset(0) => self.began,
            After::Position { offset, .. } | After::Offset(offset) => offset.saturating_add(1),
        };
        // The other gateways' logs are the same, and may have pushes that have not arrived here yet. The client has seen them, and
        // drops what it gets a second time.
        let ahead = wanted.saturating_sub(end);
        let is_client = matches!(after, After::Position { .. });
        if self.is_shared && is_client && (1..=AHEAD_MAX).contains(&ahead) {
            return (end, Recovery::Complete);
        }
        let is_held = (first..=end).contains(&wanted) && !self.has_ended_from(wanted);
        let recovery = if is_held { Recovery::Complete } else { Recovery::Gap };
        (wanted.clamp(first, end), recovery)
    }

    /// The offset of the oldest push that the log holds; [`Self::end`] if it holds none.
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

    /// The offset behind the last released push.
    #[inline]
    #[must_use]
    pub const fn released(&self) -> u64 {
        self.released
    }

    /// Uses another bound. What is beyond it goes with the next [`Self::trim`].
    pub const fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Whether the frames that are not released are longer than the bound. A member that misses the
    /// next release would then miss pushes.
    #[must_use]
    pub const fn must_release(&self) -> bool {
        self.unreleased_bytes > self.bytes_max
    }

    /// Appends a frame. The log may then exceed its bound until [`Self::trim`].
    pub fn append(&mut self, frame: Bytes) {
        self.bytes += frame.len() + FRAME_OVERHEAD_BYTES;
        self.unreleased_bytes += frame.len() + FRAME_OVERHEAD_BYTES;
        self.frames.push_back(frame);
    }

    /// Appends a frame whose time to live ends at `ends_ms`. `counted`: the members that it was counted for.
    pub fn append_expiring(&mut self, frame: Bytes, ends_ms: u64, counted: usize) {
        let offset = self.end();
        self.append(frame);
        self.bytes += LIFETIME_BYTES;
        self.lifetimes.get_or_insert_default().add(offset, ends_ms, counted);
    }

    /// Whether some push of the log has a time to live, or had one.
    #[inline]
    #[must_use]
    pub const fn has_lifetimes(&self) -> bool {
        self.lifetimes.is_some()
    }

    /// When the next push's time to live is over.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.lifetimes.as_ref()?.next_end_ms()
    }

    /// Empties the frames of pushes whose time is over at `now_ms`. Passes the offset of each to `expired`.
    pub fn expire(&mut self, now_ms: u64, mut expired: impl FnMut(u64)) {
        let Some(lifetimes) = &mut self.lifetimes else { return };
        while let Some(offset) = lifetimes.take_ended(now_ms) {
            let index =
                offset.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
            let Some(frame) = index.and_then(|index| self.frames.get_mut(index)) else { continue };
            let bytes = std::mem::take(frame).len();
            self.bytes -= bytes;
            if offset >= self.released {
                self.unreleased_bytes -= bytes;
            }
            // It may hold the frame.
            self.merged = None;
            expired(offset);
        }
    }

    /// Whether the time of some push from this offset on is over.
    fn has_ended_from(&self, from: u64) -> bool {
        self.lifetimes.as_ref().is_some_and(|lifetimes| lifetimes.has_ended_from(from))
    }

    /// The pushes from one offset on, before another, whose time is over, and how many members each was counted for.
    pub fn ended_between(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, usize)> {
        self.lifetimes.iter().flat_map(move |lifetimes| lifetimes.ended_between(from, to))
    }

    /// Releases all frames.
    #[inline]
    pub fn release(&mut self) {
        self.released = self.end();
        self.unreleased_bytes = 0;
    }

    /// Drops the oldest frames until the log is within its bound. It keeps the frames from the offset `offered`
    /// on, which some member was not offered yet, and it always keeps the newest.
    pub fn trim(&mut self, offered: u64) {
        debug_assert!(offered <= self.released, "only released frames are offered");
        while self.bytes > self.bytes_max && self.frames.len() > 1 && self.first < offered {
            if let Some(oldest) = self.frames.pop_front() {
                self.bytes -= oldest.len() + FRAME_OVERHEAD_BYTES;
                self.first += 1;
                if let Some(lifetimes) = &mut self.lifetimes {
                    self.bytes -= lifetimes.forget_before(self.first) * LIFETIME_BYTES;
                }
            }
        }
        self.lifetimes.take_if(|lifetimes| lifetimes.is_empty());
    }

    /// The chunk of frames from the offset `from`, before `to`, and the offset behind the chunk; `None` when
    /// there are no such frames. A chunk has at most [`CHUNK_BYTES_MAX`] bytes, or one longer frame. `from`
    /// must not be before [`Self::first`], and `to` must not be behind [`Self::end`].
    ///
    /// Members at the same offset share the bytes: a single frame as it is, several frames merged once. Where the log
    /// [has lifetimes](Self::has_lifetimes), a chunk may be empty.
    #[inline]
    pub fn chunk(&mut self, from: u64, to: u64) -> Option<(Bytes, u64)> {
        if from >= to {
            return None;
        }
        let skip = usize::try_from(from.checked_sub(self.first)?).ok()?;
        let frame = self.frames.get(skip)?;
        if from + 1 == to {
            return Some((frame.clone(), to));
        }
        if let Some(merged) = &self.merged
            && merged.from == from
            && (merged.to == to || (merged.to < to && merged.bytes.len() >= CHUNK_BYTES_MAX / 2))
        {
            return Some((merged.bytes.clone(), merged.to));
        }
        Some(self.merge(from, to, skip))
    }

    /// Frees the merged frames. Call it when no further member is expected to read them soon.
    pub fn forget_merged(&mut self) {
        self.merged = None;
    }

    /// A copy for a shard that subscribes. It is released and within its bound: the members for whom this log
    /// holds more, or holds pushes back, are on this shard.
    #[must_use]
    pub fn released_copy(&mut self) -> Self {
        self.forget_merged();
        let mut copy = self.clone();
        copy.release();
        copy.trim(copy.end());
        copy
    }

    fn merge(&mut self, from: u64, to: u64, skip: usize) -> (Bytes, u64) {
        let end = usize::try_from(to - self.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let count = self
            .frames
            .range(skip..end)
            .take_while(|frame| {
                bytes += frame.len();
                bytes <= CHUNK_BYTES_MAX
            })
            .count()
            .max(1);
        let to = from + count as u64;
        let taken = self.frames.range(skip..skip + count);
        if count == 1 {
            return (taken.last().expect("one frame").clone(), to);
        }
        let mut merged = BytesMut::with_capacity(taken.clone().map(Bytes::len).sum());
        taken.for_each(|frame| merged.extend_from_slice(frame));
        let bytes = merged.freeze();
        self.merged = Some(Merged { from, to, bytes: bytes.clone() });
        (bytes, to)
    }
}

#[cfg(test)]
impl Log {
    /// An empty log for tests: its id is 7, its room's number 3.
    pub(super) const fn of_tests(first: u64, bytes_max: usize) -> Self {
        Self::new(LogName { id: LogId(7), number: 3 }, first, bytes_max)
    }
}
