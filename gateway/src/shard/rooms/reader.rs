//! The one reader of a room's log.
//!
//! All pushes that a member gets go through [`next_chunk`]: when a round comes to the member, when an earlier send
//! is done, when the member resumes, and before it leaves. So one function decides what a member gets, and
//! what happens to a member that is too slow.

use std::ops::Range;

use bytes::Bytes;

use super::cursor::Cursor;
use super::room::Room;
use super::table::{Member, Table};
use crate::config::SlowMember;
use crate::shard::stats::RoomCounters;

/// How far a member is read to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpTo {
    /// To the end of what the log has released.
    Released,
    /// To the log's end: the member is about to leave, so it does not wait for a merge window.
    End,
}

/// What a member gets next.
#[derive(Debug, PartialEq, Eq)]
pub enum NextChunk {
    /// The member has everything.
    UpToDate,
    /// The next frames; the member's cursor is behind them.
    Chunk {
        /// The frames.
        bytes: Bytes,
        /// How many pushes they are.
        pushes: u64,
        /// Pushes before them that the log no longer holds. The member misses them.
        skipped: u64,
        /// There is more to read.
        more: bool,
    },
    /// The log no longer holds what the member needs, and the room closes slow members.
    TooSlow,
}

/// Reads what a member gets next and moves its cursor.
///
/// A member whose cursor is before the log's first frame is too slow. By the room's policy it skips to the first
/// frame, or is closed. Where only the latest push counts, a member skips to that one, slow or not.
#[inline]
pub fn next_chunk(room: &mut Room, cursor: &mut Cursor, up_to: UpTo) -> NextChunk {
    let end = room.log.end();
    let wanted = cursor.get(end);
    let mut skipped = room.log.first().saturating_sub(wanted);
    if skipped > 0 && room.policy.slow_member == SlowMember::Close {
        return NextChunk::TooSlow;
    }
    let to = match up_to {
        UpTo::Released => room.log.released(),
        UpTo::End => end,
    };
    if room.policy.slow_member == SlowMember::Latest {
        skipped = skipped.max(to.saturating_sub(wanted + 1));
    }
    let from = wanted + skipped;
    if room.log.has_lifetimes() {
        return next_live_chunk(room, cursor, from..to, skipped);
    }
    let Some((bytes, next)) = room.log.chunk(from, to) else { return NextChunk::UpToDate };
    cursor.set(next, end);
    NextChunk::Chunk { bytes, pushes: next - from, skipped, more: next < to }
}

/// The same for a log in which the time to live of pushes may be over: passes over those.
fn next_live_chunk(
    room: &mut Room,
    cursor: &mut Cursor,
    Range { start: mut from, end: to }: Range<u64>,
    skipped: u64,
) -> NextChunk {
    let end = room.log.end();
    while let Some((bytes, next)) = room.log.chunk(from, to) {
        cursor.set(next, end);
        if !bytes.is_empty() {
            let pushes = next - from - room.log.ended_between(from, next).count() as u64;
            return NextChunk::Chunk { bytes, pushes, skipped, more: next < to };
        }
        from = next;
    }
    NextChunk::UpToDate
}

/// How [`read_pending`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The connection has all that its rooms have released.
    UpToDate,
    /// It has as many bytes as it may be given at once: the rest is for its next send.
    BytesMaxReached,
    /// The connection is too slow for a room that closes slow members.
    TooSlow,
}

/// What a member gets next of the released pushes, counted.
#[inline]
pub fn next_released(table: &mut Table, member: Member, counters: &mut RoomCounters) -> NextChunk {
    let (room, cursor) = table.room_and_cursor(member);
    let next = next_chunk(room, cursor, UpTo::Released);
    if let NextChunk::Chunk { pushes, skipped, .. } = &next {
        counters.room_deliveries += pushes;
        counters.skipped_pushes += skipped;
    }
    next
}

/// Passes to `write` what a member that is about to leave gets beyond what it was offered. A member that did
/// not take what it was offered was too slow, and gets no more.
pub fn read_unoffered(
    table: &mut Table,
    member: Member,
    counters: &mut RoomCounters,
    mut write: impl FnMut(Bytes),
) {
    let (room, cursor) = table.room_and_cursor(member);
    while cursor.get(room.log.end()) >= room.round.offered
        && let NextChunk::Chunk { bytes, pushes, .. } = next_chunk(room, cursor, UpTo::End)
    {
        counters.room_deliveries += pushes;
        write(bytes);
    }
}

/// Passes to `write` all that a member that is about to leave has not got: no round could offer it anything.
pub fn read_all(
    table: &mut Table,
    member: Member,
    counters: &mut RoomCounters,
    mut write: impl FnMut(Bytes),
) {
    let (room, cursor) = table.room_and_cursor(member);
    while let NextChunk::Chunk { bytes, pushes, .. } = next_chunk(room, cursor, UpTo::End) {
        counters.room_deliveries += pushes;
        write(bytes);
    }
}

/// Passes to `write` the pushes that were published and not yet offered to a connection, of all its rooms.
pub fn read_last(
    table: &mut Table,
    slot: u32,
    counters: &mut RoomCounters,
    mut write: impl FnMut(Bytes),
) {
    let mut next = table.first_member(slot);
    while let Some(member) = next {
        read_unoffered(table, member, counters, &mut write);
        next = table.next_member(member);
    }
}

/// Passes to `write` the released pushes of a connection's rooms: at most `bytes_max`, and the excess of the
/// last chunk. A connection that is in several rooms begins with another room the next time, so that no room
/// waits for one that is always busy.
pub fn read_pending(
    table: &mut Table,
    slot: u32,
    bytes_max: usize,
    counters: &mut RoomCounters,
    mut write: impl FnMut(Bytes),
) -> ReadOutcome {
    let mut left = bytes_max;
    let mut next = table.first_member(slot);
    while let Some(member) = next {
        next = table.next_member(member);
        loop {
            let (bytes, more) = match next_released(table, member, counters) {
                NextChunk::UpToDate => break,
                NextChunk::TooSlow => return ReadOutcome::TooSlow,
                NextChunk::Chunk { bytes, more, .. } => (bytes, more),
            };
            left = left.saturating_sub(bytes.len());
            write(bytes);
            if left == 0 {
                table.rotate(member);
                return ReadOutcome::BytesMaxReached;
            }
            if !more {
                break;
            }
        }
    }
    ReadOutcome::UpToDate
}

#[cfg(test)]
mod tests {
    use tidegate_backend::RoomId;

    use super::*;
    use crate::config::{Rejoin, RoomClass, RoomPolicy};
    use crate::shard::rooms::log::Log;
    use crate::shard::rooms::subscribers::Role;

    /// A room with one member and a log from offset 10 that holds `frames`, of which it keeps the last.
    fn room(slow_member: SlowMember, frames: &[&'static str]) -> (Table, Member) {
        let policy = RoomPolicy {
            log_bytes_max: 0,
            slow_member,
            merge_window: std::time::Duration::ZERO,
            urgent_types: None,
            replay_on_join: 0,
            rejoin: Rejoin::Ticket,
            class: RoomClass::Durable,
        };
        let mut table = Table::default();
        let everybody = RoomId::everybody();
        table.open(everybody, policy, Log::of_tests(1, 0), Role::Replica { joins: 0 }, 0);
        let id = RoomId::new("room").unwrap();
        let index = table.open(id, policy, Log::of_tests(10, 0), Role::Replica { joins: 0 }, 0);
        let member = table.join(3, index, 10);
        let log = &mut table.get(index).log;
        frames.iter().for_each(|frame| log.append(Bytes::from_static(frame.as_bytes())));
        (table, member)
    }

    fn chunk(bytes: &'static str, pushes: u64, skipped: u64) -> NextChunk {
        NextChunk::Chunk {
            bytes: Bytes::from_static(bytes.as_bytes()),
            pushes,
            skipped,
            more: false,
        }
    }

    #[test]
    fn a_member_gets_released_frames_and_a_leaving_member_all() {
        let (mut table, member) = room(SlowMember::Skip, &["a", "b"]);
        let (room, cursor) = table.room_and_cursor(member);
        assert_eq!(next_chunk(room, cursor, UpTo::Released), NextChunk::UpToDate);
        room.log.release();
        room.log.append("c".into());
        assert_eq!(next_chunk(room, cursor, UpTo::Released), chunk("ab", 2, 0));
        assert_eq!(next_chunk(room, cursor, UpTo::Released), NextChunk::UpToDate);
        assert_eq!(next_chunk(room, cursor, UpTo::End), chunk("c", 1, 0));
        assert_eq!(next_chunk(room, cursor, UpTo::End), NextChunk::UpToDate);
    }

    #[test]
    fn a_slow_member_skips_to_the_first_frame_that_is_left() {
        let (mut table, member) = room(SlowMember::Skip, &["a", "b", "c"]);
        let (room, cursor) = table.room_and_cursor(member);
        room.log.release();
        room.log.trim(13);
        assert_eq!(next_chunk(room, cursor, UpTo::Released), chunk("c", 1, 2));
    }

    #[test]
    fn a_slow_member_is_closed_where_the_policy_demands_it() {
        let (mut table, member) = room(SlowMember::Close, &["a", "b", "c"]);
        let (room, cursor) = table.room_and_cursor(member);
        room.log.release();
        room.log.trim(13);
        assert_eq!(next_chunk(room, cursor, UpTo::Released), NextChunk::TooSlow);
    }

    #[test]
    fn a_member_gets_the_latest_push_alone_where_that_is_the_policy() {
        let (mut table, member) = room(SlowMember::Latest, &["a", "b", "c"]);
        let (room, cursor) = table.room_and_cursor(member);
        assert_eq!(next_chunk(room, cursor, UpTo::Released), NextChunk::UpToDate);
        room.log.release();
        assert_eq!(next_chunk(room, cursor, UpTo::Released), chunk("c", 1, 2));
        assert_eq!(next_chunk(room, cursor, UpTo::Released), NextChunk::UpToDate);
        room.log.append("d".into());
        room.log.release();
        assert_eq!(next_chunk(room, cursor, UpTo::Released), chunk("d", 1, 0));
        room.log.append("e".into());
        room.log.append("f".into());
        room.log.trim(14);
        assert_eq!(next_chunk(room, cursor, UpTo::End), chunk("f", 1, 1));
        assert_eq!(next_chunk(room, cursor, UpTo::End), NextChunk::UpToDate);
    }

    #[test]
    fn a_read_says_whether_there_is_more() {
        let (mut table, member) = room(SlowMember::Skip, &[]);
        let (room, cursor) = table.room_and_cursor(member);
        for _ in 0..3 {
            room.log.append(Bytes::from(vec![7; crate::shard::rooms::log::CHUNK_BYTES_MAX]));
        }
        room.log.release();
        let more = |read| matches!(read, NextChunk::Chunk { pushes: 1, more: true, .. });
        assert!(more(next_chunk(room, cursor, UpTo::Released)));
        assert!(more(next_chunk(room, cursor, UpTo::Released)));
        assert!(matches!(
            next_chunk(room, cursor, UpTo::Released),
            NextChunk::Chunk { more: false, .. }
        ));
    }
}
