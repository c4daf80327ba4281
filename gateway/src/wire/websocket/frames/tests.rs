//! Frames, whole and cut.

use proptest::prelude::*;

use super::*;

const MESSAGE_BYTES_MAX: u32 = 100_000;

/// The same as [`Found`], with bytes of its own. The parts of a message are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Message { is_text: bool, bytes: Vec<u8> },
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Violation(Violation),
}

/// A client's frame.
fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Reads bytes that come in pieces of these sizes, again and again; what is not used is passed again.
fn read(bytes: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let mut frames = Frames::default();
    let mut seen = Vec::new();
    let mut message = Vec::new();
    let mut kept = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().copied().cycle();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(cuts.next().unwrap().clamp(1, rest.len()));
        rest = later;
        kept.extend_from_slice(piece);
        let mut input = &mut kept[..];
        loop {
            match frames.next(&mut input, MESSAGE_BYTES_MAX) {
                Ok(None) => break,
                Ok(Some(Found::Binary { bytes, ends_message })) => {
                    message.extend_from_slice(bytes);
                    if ends_message {
                        let bytes = std::mem::take(&mut message);
                        seen.push(Seen::Message { is_text: false, bytes });
                    }
                }
                Ok(Some(Found::Text { bytes, ends_message })) => {
                    message.extend_from_slice(bytes);
                    if ends_message {
                        let bytes = std::mem::take(&mut message);
                        seen.push(Seen::Message { is_text: true, bytes });
                    }
                }
                Ok(Some(Found::Ping(bytes))) => seen.push(Seen::Ping(bytes.to_vec())),
                Ok(Some(Found::Pong)) => seen.push(Seen::Pong),
                Ok(Some(Found::Close(code))) => seen.push(Seen::Close(code)),
                Err(violation) => {
                    seen.push(Seen::Violation(violation));
                    return seen;
                }
            }
        }
        assert!(input.len() < CONTROL_BYTES_MAX, "{} bytes are kept", input.len());
        kept = input.to_vec();
    }
    seen
}

fn message(is_text: bool, bytes: &[u8]) -> Seen {
    Seen::Message { is_text, bytes: bytes.to_vec() }
}

#[test]
fn frames_are_found_however_they_are_cut() {
    let mask = [1, 2, 3, 250];
    let bytes = [
        frame(0x82, b"hello", mask),
        frame(0x01, b"", mask),
        frame(0x89, b"are you there?", mask),
        frame(0x00, b"wor", [0; 4]),
        frame(0x8a, b"", mask),
        frame(0x80, b"ld", mask),
        frame(0x82, b"", mask),
        frame(0x82, &[7; 300], mask),
        frame(0x88, b"\x03\xe8bye", mask),
        frame(0x82, b"nobody reads this", mask),
    ]
    .concat();
    let expected = [
        message(false, b"hello"),
        Seen::Ping(b"are you there?".to_vec()),
        Seen::Pong,
        message(true, b"world"),
        message(false, b""),
        message(false, &[7; 300]),
        Seen::Close(Some(1000)),
    ];
    assert_eq!(read(&bytes, &[1]), expected);
    for cut in 1..bytes.len() {
        assert_eq!(read(&bytes, &[cut, usize::MAX]), expected, "cut at {cut}");
    }
}

#[test]
fn each_length_has_its_shortest_form() {
    let mask = [9, 8, 7, 6];
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
        let bytes = frame(0x82, &vec![5; length], mask);
        assert_eq!(read(&bytes, &[usize::MAX]), [message(false, &vec![5; length])]);
    }
    for long in [
        &b"\x82\xfe\0\x7d\0\0\0\0"[..],
        b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0",
        b"\x82\xff\0\0\0\0\0\0\0\x01\0\0\0\0a",
    ] {
        assert_eq!(read(long, &[1]), [Seen::Violation(Violation::Protocol)], "{long:?}");
    }
}

#[test]
fn each_violation_has_its_code() {
    let mask = [0; 4];
    let long = |length: u64| [&b"\x82\xff"[..], &length.to_be_bytes(), &mask].concat();
    let cases = [
        ("no mask", b"\x82\x01a".to_vec(), Violation::Protocol),
        ("the first reserved bit", frame(0xc2, b"", mask), Violation::Protocol),
        ("the second", frame(0xa2, b"", mask), Violation::Protocol),
        ("the third", frame(0x92, b"", mask), Violation::Protocol),
        ("an opcode of data", frame(0x83, b"", mask), Violation::Protocol),
        ("the last of data", frame(0x87, b"", mask), Violation::Protocol),
        ("an opcode of control", frame(0x8b, b"", mask), Violation::Protocol),
        ("the last of control", frame(0x8f, b"", mask), Violation::Protocol),
        ("a ping that is too long", frame(0x89, &[0; 126], mask), Violation::Protocol),
        ("a ping in parts", frame(0x09, b"", mask), Violation::Protocol),
        ("a close in parts", frame(0x08, b"", mask), Violation::Protocol),
        ("nothing to continue", frame(0x80, b"", mask), Violation::Protocol),
        (
            "a message within a message",
            [frame(0x02, b"", mask), frame(0x82, b"", mask)].concat(),
            Violation::Protocol,
        ),
        ("half a code", frame(0x88, b"\x03", mask), Violation::Protocol),
        ("a reason that is no text", frame(0x88, b"\x03\xe8\xff", mask), Violation::NotUtf8),
        ("a message that is too long", long(100_001), Violation::TooLong),
        ("one far too long", long(1 << 40), Violation::TooLong),
        (
            "a message that is too long in parts",
            [frame(0x02, &[0; 60_000], mask), frame(0x80, &[0; 40_001], mask)].concat(),
            Violation::TooLong,
        ),
    ];
    for (what, bytes, violation) in cases {
        for cuts in [&[usize::MAX][..], &[1], &[2, 3]] {
            let seen = read(&bytes, cuts);
            assert_eq!(seen.last(), Some(&Seen::Violation(violation)), "{what}");
            assert_eq!(seen.len(), 1, "{what}: {seen:?}");
        }
    }
    let codes = [Violation::Protocol, Violation::Text, Violation::NotUtf8, Violation::TooLong];
    assert_eq!(codes.map(Violation::close_code), [1002, 1003, 1007, 1009]);
}

#[test]
fn codes_of_close_frames_are_those_that_may_be_sent() {
    let read = |code: u16| read(&frame(0x88, &code.to_be_bytes(), [3; 4]), &[usize::MAX]);
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        assert_eq!(read(code), [Seen::Close(Some(code))]);
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(read(code), [Seen::Violation(Violation::Protocol)], "{code}");
    }
    assert_eq!(super::tests::read(&frame(0x88, b"", [3; 4]), &[1]), [Seen::Close(None)]);
}

#[test]
fn what_the_gateway_writes_is_short_and_not_masked() {
    for (length, header) in [
        (0, &b"\x82\0"[..]),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\0\x7e"),
        (65_535, b"\x82\x7e\xff\xff"),
        (65_536, b"\x82\x7f\0\0\0\0\0\x01\0\0"),
    ] {
        let mut out = Vec::new();
        put_message(&mut out, false, &vec![7; length]);
        assert_eq!(out, [header, &vec![7; length]].concat());
        assert_eq!(out.len(), message_bytes(length));
    }
    let mut out = Vec::new();
    put_message(&mut out, true, b"a");
    put_pong(&mut out, b"b");
    put_close(&mut out, Some(1000));
    put_close(&mut out, None);
    assert_eq!(out, b"\x81\x01a\x8a\x01b\x88\x02\x03\xe8\x88\0");
}

proptest! {
    #[test]
    fn anything_is_the_same_however_it_is_cut(
        frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>()), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..40),
        cuts in prop::collection::vec(1_usize..200, 1..20),
    ) {
        // Mostly good opcodes, so that more than the first frame is read.
        let good = [0x82, 0x02, 0x80, 0x00, 0x89, 0x8a, 0x81, 0x01];
        let frames = frames.iter().map(|(first, payload, mask)| {
            let first = good.get(usize::from(*first % 9)).copied().unwrap_or(*first);
            let payload = if first & 8 == 0 { &payload[..] } else { &payload[..payload.len().min(125)] };
            frame(first, payload, *mask)
        });
        let bytes = [frames.collect::<Vec<_>>().concat(), noise].concat();
        prop_assert_eq!(read(&bytes, &cuts), read(&bytes, &[usize::MAX]));
    }
}
