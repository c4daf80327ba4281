//! Tickets: proofs that a user was in a room.
//!
//! A client shows a room's ticket when it reconnects, and is a member again. No backend is asked, so a million
//! clients that resume at once cost the gateway a hash each, and the backends nothing.
//!
//! A ticket is 21 bytes: the version (1), when it was made (4, seconds since the Unix epoch, big endian), and a
//! code (16) that only the holder of the key can make: HMAC-SHA-256 (RFC 2104) of these bytes, the user and the
//! room, truncated to its first half. It names neither the user nor the room: who shows it for another user or
//! another room shows a wrong code.

use std::time::Duration;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tidegate_backend::UserId;

/// What tickets of this form begin with.
const VERSION: u8 = 1;

/// Bytes of the version and the time.
const HEAD_BYTES: usize = 5;

/// Bytes of the code.
const CODE_BYTES: usize = 16;

/// Bytes of a ticket.
pub const TICKET_BYTES: usize = HEAD_BYTES + CODE_BYTES;

/// How far the clock of the gateway that made a ticket may be ahead of this one's, in seconds.
const AHEAD_MAX_S: u32 = 60;

/// Keeps these codes apart from others that are made with the same key.
const PURPOSE: &[u8] = b"tidegate ticket\0";

/// Keeps the fingerprint apart from tickets.
const FINGERPRINT_PURPOSE: &[u8] = b"tidegate fingerprint\0";

/// A fingerprint of a key, by which gateways see whether they have the same one: 8 hexadecimal digits of an HMAC. It does not
/// reveal the key.
#[must_use]
pub fn fingerprint(key: &[u8]) -> String {
    let mut keyed = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    keyed.update(FINGERPRINT_PURPOSE);
    let code = keyed.finalize().into_bytes();
    code.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Why a ticket does not let a client in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It was not made with this key for this user and room.
    #[error("the ticket was not made with this gateway's key for this user and room")]
    Forged,
    /// It is too old, or of a clock that is far ahead.
    #[error("the ticket has expired")]
    Expired,
}

/// Makes and checks tickets.
#[derive(Clone)]
pub struct Tickets {
    /// The state behind the key and the purpose: a ticket begins with a copy of it.
    keyed: Hmac<Sha256>,
    ttl_s: u32,
    fingerprint: String,
}

impl Tickets {
    /// Tickets that are made with `key` and are valid for `ttl`.
    #[must_use]
    pub fn new(key: &[u8], ttl: Duration) -> Self {
        let mut keyed = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        keyed.update(PURPOSE);
        let ttl_s = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        Self { keyed, ttl_s, fingerprint: fingerprint(key) }
    }

    /// The fingerprint of the key: see [`fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Makes a ticket that carries this time, in seconds since the Unix epoch.
    #[must_use]
    pub fn make(&self, user_id: UserId, room: &str, made_s: u32) -> [u8; TICKET_BYTES] {
        let mut ticket = [0; TICKET_BYTES];
        ticket[0] = VERSION;
        ticket[1..HEAD_BYTES].copy_from_slice(&made_s.to_be_bytes());
        let code = self.code(&ticket[..HEAD_BYTES], user_id, room).finalize().into_bytes();
        ticket[HEAD_BYTES..].copy_from_slice(&code[..CODE_BYTES]);
        ticket
    }

    /// Checks a ticket. Returns when it was made, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`TicketError`].
    pub fn check(
        &self,
        ticket: &[u8],
        user_id: UserId,
        room: &str,
        unix_ms: u64,
    ) -> Result<u32, TicketError> {
        let (head, code) = ticket.split_at_checked(HEAD_BYTES).ok_or(TicketError::Forged)?;
        if code.len() != CODE_BYTES || head[0] != VERSION {
            return Err(TicketError::Forged);
        }
        let expected = self.code(head, user_id, room);
        expected.verify_truncated_left(code).map_err(|_| TicketError::Forged)?;
        let made_s = head[1..].iter().fold(0, |made, &byte| made << 8 | u32::from(byte));
        let now_s = seconds(unix_ms);
        if now_s.saturating_sub(made_s) >= self.ttl_s || made_s.saturating_sub(now_s) > AHEAD_MAX_S
        {
            return Err(TicketError::Expired);
        }
        Ok(made_s)
    }

    fn code(&self, head: &[u8], user_id: UserId, room: &str) -> Hmac<Sha256> {
        let mut code = self.keyed.clone();
        code.update(head);
        code.update(&user_id.to_be_bytes());
        // The last of the inputs and the only one of variable length, so no two inputs are the same bytes.
        code.update(room.as_bytes());
        code
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").field("ttl_s", &self.ttl_s).finish_non_exhaustive()
    }
}

/// A time in milliseconds as tickets carry it: in seconds since the Unix epoch, enough until 2106.
#[must_use]
pub fn seconds(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / 1_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u32 = 1_790_000_000;
    const NOW_MS: u64 = NOW_S as u64 * 1_000;

    fn tickets() -> Tickets {
        Tickets::new(b"a key", Duration::from_secs(60))
    }

    #[test]
    fn a_ticket_lets_its_user_into_its_room_until_it_expires() {
        let tickets = tickets();
        let ticket = tickets.make(7, "quiz", NOW_S);
        assert_eq!(tickets.check(&ticket, 7, "quiz", NOW_MS), Ok(NOW_S));
        assert_eq!(tickets.check(&ticket, 7, "quiz", NOW_MS + 59_999), Ok(NOW_S));
        assert_eq!(tickets.check(&ticket, 7, "quiz", NOW_MS + 60_000), Err(TicketError::Expired));
        // The clock of the gateway that made it may be ahead of this one's.
        assert_eq!(tickets.check(&ticket, 7, "quiz", NOW_MS - 60_000), Ok(NOW_S));
        assert_eq!(tickets.check(&ticket, 7, "quiz", NOW_MS - 61_000), Err(TicketError::Expired));
    }

    #[test]
    fn a_ticket_of_another_user_room_or_key_is_forged() {
        let tickets = tickets();
        let ticket = tickets.make(7, "quiz", NOW_S);
        let check =
            |tickets: &Tickets, user_id, room| tickets.check(&ticket, user_id, room, NOW_MS);
        assert_eq!(check(&tickets, 8, "quiz"), Err(TicketError::Forged));
        assert_eq!(check(&tickets, 7, "quiz2"), Err(TicketError::Forged));
        let other = Tickets::new(b"another key", Duration::from_secs(60));
        assert_eq!(check(&other, 7, "quiz"), Err(TicketError::Forged));
    }

    #[test]
    fn a_ticket_with_any_bit_changed_or_of_another_length_is_forged() {
        let tickets = tickets();
        let ticket = tickets.make(7, "quiz", NOW_S);
        for bit in 0..TICKET_BYTES * 8 {
            let mut changed = ticket;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tickets.check(&changed, 7, "quiz", NOW_MS), Err(TicketError::Forged));
        }
        for bytes in 0..TICKET_BYTES {
            let cut = &ticket[..bytes];
            assert_eq!(tickets.check(cut, 7, "quiz", NOW_MS), Err(TicketError::Forged));
        }
        let longer = [&ticket[..], &[0]].concat();
        assert_eq!(tickets.check(&longer, 7, "quiz", NOW_MS), Err(TicketError::Forged));
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", tickets()), "Tickets { ttl_s: 60, .. }");
    }
}
