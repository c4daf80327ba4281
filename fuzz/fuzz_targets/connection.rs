//! A whole shard survives whatever one connection sends, answers it as the protocol says, and serves its neighbour
//! as before.

#![no_main]

use std::cell::RefCell;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tidegate::driver::sim::Arrived;
use tidegate_backend::{Call, Code, Gateway, Handler, Placement};
use tidegate_fuzz::oracle::{Arrival, split_plan};
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT};
use tidegate_protocol::server::Incoming;
use tidegate_protocol::{Reassembler, Request};
use tidegate_testing::{Phone, Received, Setup, World, frame, login};

/// Small, so that a fuzzer soon makes a frame that is too long.
const PAYLOAD_BYTES_MAX: usize = 300;

/// Authentications of a connection that may fail.
const FAILURES_MAX: u8 = 3;

/// The last type that is routed.
const TYPE_MAX: i32 = 99;

/// The user that is logged in before the input.
const USER: u64 = 7;

/// The shard must have finished after this number of turns.
const TURNS_MAX: usize = 10_000;

/// Echoes. The data of a request of type 2 is pushed to everybody too.
struct Echo;

impl Handler for Echo {
    fn handle(&self, call: Call, gateway: &Gateway) {
        let same = call.biz_data().clone();
        if call.kind() == 2 {
            gateway.push_all(2, same.clone()).expect("the push is accepted");
        }
        call.answer(same);
    }

    fn placement(&self) -> Placement {
        Placement::Shard
    }
}

/// An answer: the request's type and sequence, and how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    kind: i32,
    sequence: u64,
    code: Option<Code>,
}

impl From<Received> for Answer {
    fn from(received: Received) -> Self {
        let Received { kind, sequence, code, .. } = received;
        Self { kind, sequence, code }
    }
}

/// The answers that a stream must get, found by reading it at once.
#[derive(Debug, Default)]
struct Expected {
    answers: Vec<Answer>,
    user_id: Option<u64>,
    failures: u8,
}

impl Expected {
    fn of(stream: &[u8], user_id: Option<u64>) -> Vec<Answer> {
        let mut expected = Self { user_id, ..Self::default() };
        let mut reassembler = Reassembler::new();
        let mut frames = reassembler.frames(stream, PAYLOAD_BYTES_MAX);
        loop {
            let request = match frames.next() {
                Ok(None) => break,
                Ok(Some(payload)) => Incoming::decode(payload).ok(),
                Err(_) => None,
            };
            let Some(request) = request else {
                let code = Some(Code::Malformed);
                expected.answers.push(Answer { kind: AUTHENTICATE, sequence: 0, code });
                break;
            };
            expected.take(&request);
            if expected.failures == FAILURES_MAX {
                break;
            }
        }
        expected.answers
    }

    fn take(&mut self, request: &Incoming<'_>) {
        let (kind, sequence, succeeds) = match *request {
            Incoming::Heartbeat { sequence } => (HEARTBEAT, sequence, true),
            Incoming::Business { kind, sequence, .. } => (kind, sequence, self.user_id.is_some()),
            Incoming::Authenticate { user_id, token, sequence, resume: _ } => {
                let proven = token == format!("token-{user_id}");
                let succeeds = proven && self.user_id.is_none_or(|known| known == user_id);
                if succeeds {
                    self.user_id = Some(user_id);
                }
                (AUTHENTICATE, sequence, succeeds)
            }
        };
        self.failures += u8::from(!succeeds);
        let code = match kind {
            _ if !succeeds => Some(Code::Unauthenticated),
            ..=TYPE_MAX => None,
            _ => Some(Code::NoRoute),
        };
        self.answers.push(Answer { kind, sequence, code });
    }
}

/// A world with one logged-in client, the neighbour. Both are kept from input to input.
struct Target {
    world: World,
    neighbour: Phone,
    echoes: u64,
}

impl Target {
    fn new() -> Self {
        let setup = Setup::new(Echo, |config| {
            config.auth.failures_max = FAILURES_MAX;
            config.limits.frame_bytes_max = PAYLOAD_BYTES_MAX;
            config.routes[0].last_type = TYPE_MAX;
            config.session.connections_per_user_max = 2;
            config.rooms.default_policy.log_bytes_max = 1 << 20;
        });
        let mut world = setup.world();
        world.next_user_id = 1;
        let neighbour = world.log_in(0);
        Self { world, neighbour, echoes: 0 }
    }

    /// The neighbour is still served.
    fn check_neighbour(&mut self) {
        self.echoes += 1;
        let sequence = self.echoes;
        let request = Request { kind: 1, biz_data: b"hello", sequence, ..Request::default() };
        write(&mut self.world, &self.neighbour, &frame(&request));
        let answers = answers(&mut self.world, &mut self.neighbour, 1);
        assert_eq!(answers, [Answer { kind: 1, sequence, code: None }]);
    }

    /// One connection sends a stream, in pieces, and then ends.
    fn run(&mut self, mut stream: &[u8], arrivals: &[Arrival], user_id: Option<u64>) {
        let mut expected = Expected::of(stream, user_id);
        let mut phone = Phone::on(self.world.connect(0));
        if let Some(user_id) = user_id {
            write(&mut self.world, &phone, &login(user_id, 0));
            expected.insert(0, Answer { kind: AUTHENTICATE, sequence: 0, code: None });
        }
        for arrival in arrivals {
            let (arrived, later) = stream.split_at(arrival.bytes.min(stream.len()));
            stream = later;
            write(&mut self.world, &phone, arrived);
            if arrival.frames_max < usize::MAX {
                self.world.turns(1);
            }
        }
        self.check_neighbour();
        write(&mut self.world, &phone, stream);
        self.world.half_close(phone.peer);
        assert_eq!(answers(&mut self.world, &mut phone, usize::MAX), expected);
        self.world.hang_up(phone.peer);
        self.check_neighbour();
        for _ in 0..TURNS_MAX {
            if self.world.level(|levels| levels.connections) == 1 {
                return self.check_nothing_is_left();
            }
            self.world.turns(1);
        }
        panic!("the connection stays: {:?}", self.world.levels());
    }

    /// Only the neighbour is left.
    fn check_nothing_is_left(&self) {
        let levels = &self.world.levels()[0];
        assert_eq!((levels.sessions, levels.users, levels.memberships), (1, 1, 1));
        assert_eq!((levels.outbox_bytes, levels.calls_in_flight), (0, 0));
    }
}

fn write(world: &mut World, phone: &Phone, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = world.write(phone.peer, bytes);
        bytes = &bytes[written..];
        world.turns(1);
    }
}

/// Reads until `count` answers have arrived, or until the connection ends. Pushes are ignored.
fn answers(world: &mut World, phone: &mut Phone, count: usize) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for _ in 0..TURNS_MAX {
        phone.read(world);
        let received = phone.received.drain(..).filter(|received| received.offset == 0);
        answers.extend(received.map(Answer::from));
        assert_ne!(phone.end, Some(Arrived::Reset), "with {answers:?}");
        if phone.end.is_some() {
            assert_eq!(phone.unread_bytes(), 0, "no frame is cut");
            return answers;
        }
        if answers.len() >= count {
            return answers;
        }
        world.turns(1);
    }
    panic!("no end, with {answers:?}");
}

thread_local! {
    static TARGET: RefCell<Target> = RefCell::new(Target::new());
}

fuzz_target!(|data: &[u8]| {
    let (arrivals, stream) = split_plan(data);
    TARGET.with_borrow_mut(|target| {
        for user_id in [None, Some(USER)] {
            target.run(stream, &arrivals, user_id);
        }
        // The clock does not move within an input, so no input is long enough for a timeout.
        target.world.advance(Duration::from_millis(1));
    });
});
