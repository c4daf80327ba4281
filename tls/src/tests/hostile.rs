//! Each side against a peer that breaks the protocol after the handshake, with records that are properly encrypted. What is
//! wrong is such that rustls still knows of messages in the bytes that it was given: it panics when it is then called with others.

use crate::fixture::{RecordKind, Records, open_client, open_server};
use crate::{Session, Side};

/// Neither side expects an empty `Finished` after the handshake.
const BAD_MESSAGE: &[u8] = &[20, 0, 0, 0];

const FATAL: [&[(RecordKind, &[u8])]; 4] = [
    // Two messages in one record: the second is known, and not read.
    &[(RecordKind::Handshake, &[20, 0, 0, 0, 20, 0, 0, 0])],
    // The beginning of a message, and then something else.
    &[(RecordKind::Handshake, &[20, 0, 1]), (RecordKind::Data, b"more")],
    &[(RecordKind::Handshake, &[20, 0, 0, 9, 1, 2]), (RecordKind::Alert, &[2, 0])],
    &[(RecordKind::Handshake, BAD_MESSAGE), (RecordKind::Data, b"more")],
];

/// What a peer sends in one write: payload, and then these records.
fn fatal(records: &mut Records, behind: &[(RecordKind, &[u8])]) -> Vec<u8> {
    let first = (RecordKind::Data, &b"hello"[..]);
    let content = std::iter::once(&first).chain(behind);
    content.flat_map(|(kind, content)| records.record(*kind, content)).collect()
}

/// Each method fails, in any order, and appends nothing.
pub(super) fn assert_stays_failed<S: Side>(session: &mut Session<S>, mut later: Vec<u8>) {
    let (mut out, mut payload) = (Vec::new(), Vec::new());
    assert!(session.encrypt(b"pong", &mut out).is_err());
    assert!(session.close(&mut out).is_err());
    assert!(session.receive(&mut later, &mut out, &mut payload).is_err());
    assert!(session.receive(&mut [], &mut out, &mut payload).is_err());
    assert!(session.receive(&mut [0x16; 300], &mut out, &mut payload).is_err());
    assert!(session.encrypt(b"pong", &mut out).is_err());
    assert!(session.close(&mut out).is_err());
    let _ = (session.is_handshaking(), session.has_record(&later));
    assert_eq!((out.len(), payload.len(), session.rest.capacity()), (0, 0, 0));
}

fn fails_for_good<S: Side>(open: fn() -> (Session<S>, Records)) {
    for content in FATAL {
        for piece in [usize::MAX, 30, 1] {
            let (mut session, mut records) = open();
            let (mut out, mut payload) = (Vec::new(), Vec::new());
            let mut bytes = fatal(&mut records, content);
            let piece = piece.min(bytes.len());
            let mut received =
                bytes.chunks_mut(piece).map(|bytes| session.receive(bytes, &mut out, &mut payload));
            assert!(received.any(|received| received.is_err()), "{content:?}");
            assert_eq!(payload, b"hello", "what came before is good");
            assert_stays_failed(&mut session, records.record(RecordKind::Data, b"later"));
        }
    }
}

#[test]
fn a_server_that_has_failed_says_nothing_more_and_does_not_panic() {
    fails_for_good(open_server);
}

#[test]
fn a_client_that_has_failed_says_nothing_more_and_does_not_panic() {
    fails_for_good(open_client);
}

/// A handshake message of `bytes`, in records of `record_bytes`. `true`: a session keeps it, and goes on.
fn takes_a_message<S: Side>(
    open: fn() -> (Session<S>, Records),
    bytes: u16,
    record_bytes: usize,
) -> bool {
    let (mut session, mut records) = open();
    let mut message = vec![0; 4 + usize::from(bytes)];
    message[0] = 20;
    message[2..4].copy_from_slice(&bytes.to_be_bytes());
    // The last byte stays away: the message would be read, and is a wrong one.
    message.pop();
    for part in message.chunks(record_bytes) {
        let (mut out, mut payload) = (Vec::new(), Vec::new());
        let mut record = records.record(RecordKind::Handshake, part);
        let received = session.receive(&mut record, &mut out, &mut payload);
        assert!(session.rest.len() <= S::REST_BYTES_MAX, "{}", session.rest.len());
        if received.is_err() {
            assert_stays_failed(&mut session, records.record(RecordKind::Data, b"later"));
            return false;
        }
    }
    true
}

#[test]
fn a_message_that_is_too_long_fails_and_a_long_one_of_a_server_does_not() {
    assert!(takes_a_message(open_server, 15_000, 15_000));
    assert!(takes_a_message(open_server, 15_000, 1_000));
    assert!(!takes_a_message(open_server, 60_000, 15_000));
    assert!(takes_a_message(open_client, 60_000, 15_000));
    assert!(takes_a_message(open_client, u16::MAX, 16_000));
    // What records add counts too.
    assert!(!takes_a_message(open_client, 60_000, 20));
}
