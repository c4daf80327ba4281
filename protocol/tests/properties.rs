//! Properties that hold for any input: what is decoded is what prost decodes, what is written comes
//! back, and where TCP cuts a stream makes no difference.

pub mod oracle;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use tidegate_protocol::client::{Client, Event};
use tidegate_protocol::frame::{put_prefix, read_prefix};
use tidegate_protocol::proto::v1::{self, notice};
use tidegate_protocol::resume::Positions;
use tidegate_protocol::server::{self, Incoming};
use tidegate_protocol::{Code, Reassembler, Request, Response};

use oracle::{
    Arrival, check_request, check_response, check_resume, owned_resume, read_at_once, read_cut,
};

const PAYLOAD_BYTES_MAX: usize = 1000;

#[derive(Clone, Debug)]
struct OwnedRequest {
    kind: i32,
    user_id: u64,
    token: String,
    biz_data: Vec<u8>,
    sequence: u64,
}

impl OwnedRequest {
    fn lend(&self) -> Request<'_> {
        let Self { kind, user_id, ref token, ref biz_data, sequence } = *self;
        Request { kind, user_id, token, biz_data, sequence }
    }
}

/// Numbers of every size: a uniform one nearly always takes the longest varint.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64_u32).prop_map(|(value, shift)| value >> shift)
}

#[expect(clippy::cast_possible_truncation, reason = "any 32 bits will do")]
fn number_32() -> impl Strategy<Value = u32> {
    (any::<u64>(), 32..64_u32).prop_map(|(value, shift)| (value >> shift) as u32)
}

prop_compose! {
    fn request()(
        kind in prop_oneof![Just(-1), Just(0), 1..1000, 1..=i32::MAX],
        user_id in number(),
        token in any::<String>(),
        biz_data in vec(any::<u8>(), 0..200),
        sequence in number(),
    ) -> OwnedRequest {
        OwnedRequest { kind, user_id, token, biz_data, sequence }
    }
}

prop_compose! {
    fn response()(
        kind in any::<i32>(),
        status in prop_oneof![Just(0), Just(1), number_32()],
        biz_data in vec(any::<u8>(), 0..200),
        sequence in number(),
        retry_after_ms in number_32(),
        offset in number(),
        room in number_32(),
    ) -> (Response<'static>, Vec<u8>) {
        (Response { kind, status, biz_data: b"", sequence, retry_after_ms, offset, room }, biz_data)
    }
}

prop_compose! {
    fn position()(
        room in any::<String>(),
        log in number(),
        offset in number(),
        ticket in vec(any::<u8>(), 0..80),
    ) -> v1::Position {
        v1::Position { room, log, offset, ticket: ticket.into() }
    }
}

fn resume() -> impl Strategy<Value = v1::Resume> {
    vec(position(), 0..6).prop_map(|positions| v1::Resume { positions })
}

/// A session with the fields of version 1.1, and rooms of every kind.
fn session() -> impl Strategy<Value = v1::Session> {
    let room =
        (position(), number_32(), number(), 0..5).prop_map(|(position, number, head, recovery)| {
            let v1::Position { room: name, log, ticket, .. } = position;
            v1::Room { name, number, log, head, recovery, ticket }
        });
    (number(), number_32(), number(), vec(room, 0..6)).prop_map(
        |(session_id, idle_timeout_ms, expires_in_ms, rooms)| v1::Session {
            session_id,
            idle_timeout_ms,
            expires_in_ms,
            rooms,
            ..v1::Session::default()
        },
    )
}

fn payload_of(frame: &[u8]) -> &[u8] {
    let prefix = read_prefix(frame, frame.len()).expect("written in the fewest bytes");
    &frame[prefix.expect("a whole frame").prefix_bytes..]
}

/// One field as an adversary would write it: any number, any wire type, values padded or cut.
fn field() -> impl Strategy<Value = Vec<u8>> {
    let key = (0..10_u32, 0..8_u8, 0..3_u8);
    (key, number(), vec(any::<u8>(), 0..12), any::<bool>()).prop_map(
        |((field, wire_type, padding), value, bytes, honest)| {
            let mut out = Vec::new();
            put_varint_padded(&mut out, u64::from(field << 3 | u32::from(wire_type)), padding);
            match wire_type {
                0 => put_varint_padded(&mut out, value, padding),
                1 => out.extend_from_slice(&value.to_le_bytes()),
                2 => {
                    let length = if honest { bytes.len() as u64 } else { value };
                    put_varint_padded(&mut out, length, padding);
                    out.extend_from_slice(&bytes);
                }
                5 => out.extend_from_slice(&value.to_le_bytes()[..4]),
                _ => {}
            }
            out
        },
    )
}

#[expect(clippy::cast_possible_truncation, reason = "masked to seven bits")]
fn put_varint_padded(out: &mut Vec<u8>, mut value: u64, padding: u8) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    for _ in 0..padding {
        *out.last_mut().expect("a varint has a byte") |= 0x80;
        out.push(0);
    }
}

/// A change to valid bytes: overwrite, insert, remove or cut.
#[derive(Clone, Debug)]
enum Mutation {
    Overwrite(prop::sample::Index, u8),
    FlipBit(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Truncate(prop::sample::Index),
    Append(Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Overwrite(at, byte)),
        (index(), 0..8_u8).prop_map(|(at, bit)| Mutation::FlipBit(at, bit)),
        (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        index().prop_map(Mutation::Remove),
        index().prop_map(Mutation::Truncate),
        field().prop_map(Mutation::Append),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutations: Vec<Mutation>) {
    for mutation in mutations {
        let length = bytes.len();
        match mutation {
            Mutation::Append(field) => bytes.extend(field),
            Mutation::Insert(at, byte) => bytes.insert(at.index(length + 1), byte),
            _ if length == 0 => {}
            Mutation::Overwrite(at, byte) => bytes[at.index(length)] = byte,
            Mutation::FlipBit(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Mutation::Remove(at) => drop(bytes.remove(at.index(length))),
            Mutation::Truncate(at) => bytes.truncate(at.index(length)),
        }
    }
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let frames_max = prop_oneof![Just(usize::MAX), 0..4_usize];
    vec((0..80_usize, frames_max), 0..40).prop_map(|arrivals| {
        arrivals.into_iter().map(|(bytes, frames_max)| Arrival { bytes, frames_max }).collect()
    })
}

/// A stream of mostly good frames, which may end in bytes that are none.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        Just(Vec::new()),
        vec(any::<u8>(), 0..8),
        vec(any::<u8>(), 120..136),
        vec(any::<u8>(), PAYLOAD_BYTES_MAX - 2..PAYLOAD_BYTES_MAX + 1),
    ];
    let tail = prop_oneof![Just(Vec::new()), vec(any::<u8>(), 0..12)];
    (vec(payload, 0..12), tail).prop_map(|(payloads, tail)| {
        let mut out = Vec::new();
        for payload in payloads {
            put_prefix(&mut out, payload.len());
            out.extend_from_slice(&payload);
        }
        out.extend(tail);
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_get_prosts_verdict(payload in vec(any::<u8>(), 0..64)) {
        check_request(&payload);
        check_response(&payload);
        check_resume(&payload);
    }

    #[test]
    fn arbitrary_fields_get_prosts_verdict(fields in vec(field(), 0..8)) {
        let payload = fields.concat();
        check_request(&payload);
        check_response(&payload);
        check_resume(&payload);
        // The same fields as those of a position.
        let mut resume = vec![0x0a];
        put_varint_padded(&mut resume, payload.len() as u64, 0);
        resume.extend(&payload);
        check_resume(&resume);
    }

    #[test]
    fn mutated_resumes_get_prosts_verdict(
        resume in resume(),
        mutations in vec(mutation(), 1..6),
    ) {
        let mut biz_data = resume.encode_to_vec();
        check_resume(&biz_data);
        mutate(&mut biz_data, mutations);
        check_resume(&biz_data);
    }

    #[test]
    fn an_authentication_with_any_data_gets_prosts_verdict_on_it(
        resume in resume(),
        mutations in vec(mutation(), 0..3),
    ) {
        let mut biz_data = resume.encode_to_vec();
        mutate(&mut biz_data, mutations);
        let mut frame = Vec::new();
        Request { biz_data: &biz_data, ..Request::default() }.encode_frame(&mut frame);
        let incoming = Incoming::decode(payload_of(&frame));
        prop_assert_eq!(incoming.is_ok(), v1::Resume::decode(biz_data.as_slice()).is_ok());
        // To a backend's data the gateway is blind.
        let mut frame = Vec::new();
        Request { kind: 1, biz_data: &biz_data, ..Request::default() }.encode_frame(&mut frame);
        prop_assert!(Incoming::decode(payload_of(&frame)).is_ok());
    }

    #[test]
    fn a_clients_positions_are_what_a_server_reads(resume in resume()) {
        let now = Instant::now();
        let mut client = Client::new(now);
        client.resume(now, 7, "token-7", &resume);
        let bytes = client.outgoing().split();
        let Incoming::Authenticate { resume: read, .. } = Incoming::decode(payload_of(&bytes)).unwrap()
        else {
            panic!("an authentication");
        };
        prop_assert_eq!(owned_resume(read), resume);
    }

    #[test]
    fn sessions_and_notices_are_what_prost_writes_and_a_client_reads(session in session()) {
        let mut out = Vec::new();
        server::put_session(&mut out, 3, &session);
        let as_prost = v1::Response {
            status: 1,
            biz_data: session.encode_to_vec().into(),
            sequence: 3,
            ..v1::Response::default()
        };
        prop_assert_eq!(&out, &as_prost.encode_length_delimited_to_vec());
        let mut wanted = vec![Event::Authenticated { sequence: 3, session: session.clone() }];
        for room in session.rooms {
            let left = room.name.clone();
            for what in [notice::What::Joined(room.clone()), notice::What::Left(left.clone())] {
                server::put_notice(&mut out, &v1::Notice { what: Some(what) });
            }
            wanted.extend([Event::Joined(room), Event::Left { room: left }]);
        }
        let mut events = Vec::new();
        Client::new(Instant::now()).receive(&out, |event| events.push(event)).unwrap();
        prop_assert_eq!(events, wanted);
    }

    #[test]
    fn mutated_requests_get_prosts_verdict(
        request in request(),
        mutations in vec(mutation(), 1..6),
    ) {
        let mut frame = Vec::new();
        request.lend().encode_frame(&mut frame);
        let mut payload = payload_of(&frame).to_vec();
        check_request(&payload);
        mutate(&mut payload, mutations);
        check_request(&payload);
    }

    #[test]
    fn mutated_responses_get_prosts_verdict(
        (response, biz_data) in response(),
        mutations in vec(mutation(), 1..6),
    ) {
        let mut frame = Vec::new();
        Response { biz_data: &biz_data, ..response }.encode_frame(&mut frame);
        let mut payload = payload_of(&frame).to_vec();
        check_response(&payload);
        mutate(&mut payload, mutations);
        check_response(&payload);
    }

    #[test]
    fn a_request_round_trips(request in request()) {
        let mut frame = Vec::new();
        request.lend().encode_frame(&mut frame);
        prop_assert_eq!(Request::decode(payload_of(&frame)), Ok(request.lend()));
    }

    #[test]
    fn a_response_round_trips((response, biz_data) in response()) {
        let response = Response { biz_data: &biz_data, ..response };
        let mut frame = Vec::new();
        response.encode_frame(&mut frame);
        prop_assert_eq!(Response::decode(payload_of(&frame)), Ok(response));
    }

    #[test]
    fn cuts_and_interruptions_change_nothing(stream in stream(), arrivals in arrivals()) {
        let cut = read_cut(&stream, &arrivals, PAYLOAD_BYTES_MAX);
        prop_assert_eq!(cut, read_at_once(&stream, PAYLOAD_BYTES_MAX));
    }

    #[test]
    fn what_a_client_asks_is_what_a_server_reads(
        asked in vec((1..i32::MAX, vec(any::<u8>(), 0..200)), 0..8),
        user_id in number(),
        token in any::<String>(),
    ) {
        let now = Instant::now();
        let mut client = Client::new(now);
        client.authenticate(now, user_id, &token);
        for (kind, biz_data) in &asked {
            client.request(now, *kind, biz_data);
        }
        client.heartbeat(now);
        let bytes = client.outgoing().split();
        let mut server = Reassembler::new();
        let mut frames = server.frames(&bytes, bytes.len());
        let mut next = |wanted: Incoming<'_>| {
            assert_eq!(Incoming::decode(frames.next().unwrap().unwrap()), Ok(wanted));
        };
        let resume = Positions::default();
        next(Incoming::Authenticate { user_id, token: &token, resume, sequence: 1 });
        for ((kind, biz_data), sequence) in asked.iter().zip(2..) {
            next(Incoming::Business { kind: *kind, biz_data, sequence });
        }
        next(Incoming::Heartbeat { sequence: asked.len() as u64 + 2 });
    }

    #[test]
    fn a_client_never_panics(stream in stream(), cuts in vec(0..80_usize, 0..40)) {
        let now = Instant::now();
        let mut client = Client::new(now).with_frame_bytes_max(PAYLOAD_BYTES_MAX);
        let mut rest = stream.as_slice();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (arrived, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            if client.receive(arrived, |event| drop(format!("{event:?}"))).is_err() {
                break;
            }
            client.handle_timeout(client.poll_timeout());
        }
        prop_assert!(client.poll_timeout() >= now);
    }

    #[test]
    fn a_client_reads_what_a_server_writes(
        answers in vec((1..i32::MAX, 1..u64::MAX, vec(any::<u8>(), 0..200)), 0..8),
        code in 0..Code::ALL.len(),
        retry_after_ms in number_32(),
        room in number_32(),
    ) {
        let mut out = Vec::new();
        for (kind, sequence, biz_data) in &answers {
            server::put_answer(&mut out, *kind, *sequence, biz_data);
            server::put_push(&mut out, *kind, biz_data, *sequence, room);
        }
        server::put_failure(&mut out, 3, 4, Code::ALL[code], retry_after_ms);
        let mut events = Vec::new();
        let mut client = Client::new(Instant::now());
        client.receive(&out, |event| events.push(event)).unwrap();
        let Some(Event::Failed { kind: 3, sequence: 4, failure }) = events.pop() else {
            panic!("a failure");
        };
        prop_assert_eq!(failure.code, Some(Code::ALL[code]));
        prop_assert_eq!(failure.retry_after, Duration::from_millis(u64::from(retry_after_ms)));
        let mut events = events.into_iter();
        for (kind, sequence, biz_data) in answers {
            let biz_data = bytes::Bytes::from(biz_data);
            let answer = Event::Answer { kind, sequence, biz_data: biz_data.clone() };
            prop_assert_eq!(events.next(), Some(answer));
            let push = Event::Push { kind, room, offset: sequence, biz_data };
            prop_assert_eq!(events.next(), Some(push));
        }
        prop_assert_eq!(events.next(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_message_split_at_every_byte_is_the_same(request in request(), other in request()) {
        let mut stream = Vec::new();
        request.lend().encode_frame(&mut stream);
        other.lend().encode_frame(&mut stream);
        for cut in 0..=stream.len() {
            let mut reassembler = Reassembler::new();
            let mut read = 0;
            for part in [&stream[..cut], &stream[cut..]] {
                let mut frames = reassembler.frames(part, stream.len());
                while let Some(payload) = frames.next().unwrap() {
                    let wanted = if read == 0 { &request } else { &other };
                    prop_assert_eq!(Request::decode(payload), Ok(wanted.lend()), "cut at {}", cut);
                    read += 1;
                }
            }
            prop_assert_eq!(read, 2);
            prop_assert_eq!(reassembler.kept_bytes(), 0);
        }
    }
}

/// A message inside a message is a level of nesting, as a group is.
#[test]
fn groups_nest_as_deep_in_a_position_as_in_prost() {
    for depth in 90..110 {
        let groups = [vec![0x4b; depth], vec![0x4c; depth]].concat();
        check_resume(&groups);
        let length = u8::try_from(groups.len()).expect("two bytes of varint");
        check_resume(&[&[0x0a, length | 0x80, 1], groups.as_slice()].concat());
    }
}
