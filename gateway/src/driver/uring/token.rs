//! Which operation a completion is of: 64 bits that go to the kernel with each operation and come back with
//! its completion.

use crate::driver::ConnId;

/// Connections that a token can name: 2^26 slots, and all 2^30 generations of each.
pub(super) const SLOTS_MAX: u32 = 1 << SLOT_BITS;

const SLOT_BITS: u32 = 26;
const KIND_SHIFT: u32 = 56;

/// What an operation was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// No module waits for it: a cancellation, a close.
    Nothing,
    /// Another thread wakes the driver.
    Wake,
    /// A connection is accepted. The number says which of the ring's addresses it uses.
    Accept(u16),
    /// Bytes are received, in a completion each time.
    Receive(ConnId),
    /// A connection that is not received on is watched for its end.
    Watch(ConnId),
    /// A send that was reported as done, by its number. Only its failure completes.
    SendNow(u64),
    /// A step of a send, which completes in any case.
    Send(ConnId),
    /// The sending side is shut down.
    Shutdown(ConnId),
    /// The kernel is asked for the error of a dead connection.
    Error(ConnId),
    /// The next step of a send waits until the socket is writable.
    Writable(ConnId),
}

impl Token {
    /// As the kernel carries it.
    pub(super) fn to_bits(self) -> u64 {
        let (kind, payload) = match self {
            Self::Nothing => (0, 0),
            Self::Wake => (1, 0),
            Self::Accept(address) => (2, u64::from(address)),
            Self::Receive(conn) => (3, pack(conn)),
            Self::Watch(conn) => (4, pack(conn)),
            Self::SendNow(number) => (5, number),
            Self::Send(conn) => (6, pack(conn)),
            Self::Shutdown(conn) => (7, pack(conn)),
            Self::Error(conn) => (8, pack(conn)),
            Self::Writable(conn) => (9, pack(conn)),
        };
        debug_assert!(payload >> KIND_SHIFT == 0, "{self:?} needs more than 56 bits");
        kind << KIND_SHIFT | payload
    }

    /// From what came back.
    #[expect(clippy::cast_possible_truncation, reason = "it was made from 16 bits")]
    pub(super) fn from_bits(bits: u64) -> Self {
        let payload = bits & ((1 << KIND_SHIFT) - 1);
        match bits >> KIND_SHIFT {
            1 => Self::Wake,
            2 => Self::Accept(payload as u16),
            3 => Self::Receive(unpack(payload)),
            4 => Self::Watch(unpack(payload)),
            5 => Self::SendNow(payload),
            6 => Self::Send(unpack(payload)),
            7 => Self::Shutdown(unpack(payload)),
            8 => Self::Error(unpack(payload)),
            9 => Self::Writable(unpack(payload)),
            _ => Self::Nothing,
        }
    }
}

fn pack(conn: ConnId) -> u64 {
    u64::from(conn.generation) << SLOT_BITS | u64::from(conn.slot)
}

#[expect(clippy::cast_possible_truncation, reason = "the two parts of 56 bits")]
fn unpack(payload: u64) -> ConnId {
    ConnId { slot: payload as u32 & (SLOTS_MAX - 1), generation: (payload >> SLOT_BITS) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::GENERATIONS;

    #[test]
    fn tokens_round_trip() {
        let last = ConnId { slot: SLOTS_MAX - 1, generation: GENERATIONS - 1 };
        for conn in [ConnId { slot: 0, generation: 0 }, ConnId { slot: 1, generation: 2 }, last] {
            let of_conn = [
                Token::Receive,
                Token::Watch,
                Token::Send,
                Token::Shutdown,
                Token::Error,
                Token::Writable,
            ];
            for token in of_conn.map(|kind| kind(conn)) {
                assert_eq!(Token::from_bits(token.to_bits()), token);
            }
        }
        let last_send = Token::SendNow((1 << KIND_SHIFT) - 1);
        let others = [Token::Nothing, Token::Wake, Token::Accept(u16::MAX), last_send];
        for token in others {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
    }
}
