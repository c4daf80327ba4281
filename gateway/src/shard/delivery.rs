//! Delivery: how pushes get from the rooms' logs to connections.
//!
//! A push that a connection cannot take now is not copied: it waits in the log until the connection is flushed.
//! So these functions take both parts. They read logs and give bytes to connections, and change nothing else. A
//! connection that is too slow is closed by the caller.

use std::mem;

use bytes::Bytes;

use super::clients::Clients;
use super::clients::outbox::SHARED_BYTES_MIN;
use super::clock::Clock;
use super::rooms::reader::NextChunk;
use super::rooms::{ConnState, ReadOutcome, Rooms};
use crate::driver::{ConnId, Driver, SendState};

/// Bytes of rooms' pushes that one flush of a connection takes from the logs.
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// The connection is too slow for a room that closes slow members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow;

/// What the rooms need to know of a connection.
#[inline]
#[must_use]
pub fn conn_state(clients: &Clients, conn: ConnId) -> ConnState {
    match clients.get(conn) {
        Some(connection) if !connection.is_closing() => {
            if clients.is_resuming(conn.slot) {
                ConnState::Resuming
            } else if clients.is_backlogged(conn.slot) {
                ConnState::Backlogged
            } else {
                ConnState::Open
            }
        }
        _ => ConnState::Gone,
    }
}

/// Serves one turn's slice of `budget` members. A member with nothing under way gets everything that the log
/// has released; for the others the pushes are pending. `Some`: the connection in this slot is too slow. Close
/// it, and call this again.
#[inline]
pub fn fan_out(
    rooms: &mut Rooms,
    clients: &mut Clients,
    budget: &mut usize,
    driver: &mut impl Driver,
    clock: &Clock,
) -> Option<u32> {
    while let Some((member, slot)) = rooms.next_to_serve(budget) {
        if !clients.is_writable(slot) {
            clients.mark_pushes_pending(slot);
            continue;
        }
        loop {
            match rooms.next_chunk(member) {
                NextChunk::UpToDate => break,
                NextChunk::TooSlow => return Some(slot),
                NextChunk::Chunk { bytes, more, .. } => {
                    let state = clients.send(slot, bytes, driver, clock);
                    if !more {
                        break;
                    }
                    if state == SendState::UnderWay {
                        clients.mark_pushes_pending(slot);
                        break;
                    }
                }
            }
        }
    }
    None
}

/// The next piece to send: of the outbox, and of the logs of the connection's rooms. Short chunks are put together in
/// the outbox; a single chunk is sent as it is. While a long outbox is left, no log is read: pushes wait in the log,
/// where all members share them and a later read takes what the member still needs.
///
/// # Errors
/// [`TooSlow`].
#[inline]
pub fn next_piece(
    rooms: &mut Rooms,
    clients: &mut Clients,
    slot: u32,
) -> Result<Option<Bytes>, TooSlow> {
    let outbox_bytes = clients.outbox_bytes(slot);
    if outbox_bytes >= SHARED_BYTES_MIN || !clients.take_pending_pushes(slot) {
        return Ok(clients.next_piece(slot));
    }
    let mut alone: Option<Bytes> = None;
    let mut is_first = outbox_bytes == 0;
    let outcome = rooms.read_pending_pushes(slot, PENDING_BYTES_MAX, |chunk| {
        if mem::take(&mut is_first) {
            alone = Some(chunk);
        } else {
            let chunks = alone.take().into_iter().chain([chunk]);
            chunks.for_each(|chunk| clients.append_chunk(slot, chunk));
        }
    });
    match outcome {
        ReadOutcome::UpToDate => {}
        ReadOutcome::BytesMaxReached => clients.mark_pushes_pending(slot),
        ReadOutcome::TooSlow => return Err(TooSlow),
    }
    Ok(alone.or_else(|| clients.next_piece(slot)))
}

/// Writes the pushes that were published and not yet offered to a connection that is about to be closed gracefully. A
/// backlogged connection gets none.
pub fn write_last_pushes(rooms: &mut Rooms, clients: &mut Clients, slot: u32) {
    if !clients.is_backlogged(slot) {
        rooms.read_last_pushes(slot, |chunk| clients.append_shared(slot, chunk));
    }
}
