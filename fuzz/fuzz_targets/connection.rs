//! A whole shard survives whatever one connection sends, answers it by the rules, and its neighbour
//! notices nothing.

#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tidegate::clock::WallClock;
use tidegate::auth::Verifier;
use tidegate::config::{AuthMode, Config};
use tidegate::driver::sim::{Arrived, Faults, PeerId, Sim};
use tidegate::parts::{Origin, Parts};
use tidegate::router::Backend;
use tidegate::shard::Shard;
use tidegate_backend::{Call, Code, Gateway, Handler};
use tidegate_fuzz::oracle::{Arrival, split_plan};
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT, SUCCESS};
use tidegate_protocol::server::Incoming;
use tidegate_protocol::{Reassembler, Request, Response};

/// Small, so that a fuzzer soon finds a frame that is too long.
const PAYLOAD_BYTES_MAX: usize = 300;

/// Tries to authenticate that a connection has.
const FAILURES_MAX: u8 = 3;

/// The last type that is routed.
const TYPE_MAX: i32 = 99;

/// The user who is logged in before the input comes.
const USER: u64 = 7;

/// Turns after which something hangs.
const TURNS_MAX: usize = 10_000;

/// Echoes; what is of type 2 is pushed to everybody as well.
struct Echo;

impl Handler for Echo {
    fn handle(&self, call: Call, gateway: &Gateway) {
        let same = call.biz_data().clone();
        if call.kind() == 2 {
            gateway.push_all(2, same.clone()).expect("there is room for a push");
        }
        call.answer(same);
    }
}

/// An answer: the request's type and sequence, and how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    kind: i32,
    sequence: u64,
    code: Option<Code>,
}

/// What a stream has to get, read at once.
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
            Incoming::Authenticate { user_id, token, sequence } => {
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

/// A shard and a neighbour, which outlive the inputs.
struct World {
    shard: Shard,
    sim: Sim,
    neighbour: PeerId,
    echoes: u64,
}

impl World {
    fn new() -> Self {
        let mut config = Config::embedded_default();
        config.shards = 1;
        config.auth.mode = AuthMode::Demo;
        config.auth.failures_max = FAILURES_MAX;
        config.limits.frame_bytes_max = PAYLOAD_BYTES_MAX;
        config.routes[0].last_type = TYPE_MAX;
        config.session.connections_per_user_max = 2;
        config.rooms.default_policy.log_bytes_max = 1 << 20;
        let now = Instant::now();
        let origin = Origin { started: now, wall_clock: WallClock::system(), first_offset: 1, session_key: 1 };
        let verifier = Verifier::new(&config.auth).expect("demo tokens need no key");
        let Ok(parts) = Parts::new(config, verifier, origin, |config, _| {
            let name = config.backends[0].name.as_str().into();
            Ok::<_, Infallible>(vec![Backend { name, handler: Arc::new(Echo), pool: None }])
        });
        let mut sim = Sim::new(1, now, Faults::default());
        // Time stands still within an input: nobody is too late because of a long one.
        sim.set_wait_max(Duration::ZERO);
        let neighbour = sim.connect().expect("it listens");
        let mut world = Self { shard: parts.shard(0), sim, neighbour, echoes: 0 };
        world.write(neighbour, &login(1, 1));
        world.answers_until(neighbour, |answers| answers.len() == 1);
        world
    }

    fn turn(&mut self) {
        self.shard.turn(&mut self.sim).expect("the simulation doesn't fail");
    }

    fn write(&mut self, peer: PeerId, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = self.sim.write(peer, bytes);
            bytes = &bytes[written..];
            self.turn();
        }
    }

    /// Reads answers until they suffice, or the connection ends; pushes are passed over.
    fn answers_until(&mut self, peer: PeerId, suffice: impl Fn(&[Answer]) -> bool) -> Vec<Answer> {
        let mut answers = Vec::new();
        let mut reassembler = Reassembler::new();
        for _ in 0..TURNS_MAX {
            match self.sim.read(peer) {
                Arrived::Bytes(bytes) => {
                    let mut frames = reassembler.frames(&bytes, usize::MAX);
                    while let Some(payload) = frames.next().expect("frames are good") {
                        let response = Response::decode(payload).expect("messages are good");
                        if response.offset == 0 {
                            let Response { kind, sequence, status, .. } = response;
                            let code = if status == SUCCESS { None } else { response.code() };
                            answers.push(Answer { kind, sequence, code });
                        }
                    }
                }
                Arrived::Nothing => self.turn(),
                Arrived::End => {
                    assert_eq!(reassembler.kept_bytes(), 0, "no frame is cut");
                    return answers;
                }
                Arrived::Reset => panic!("reset, with {answers:?}"),
            }
            if suffice(&answers) {
                return answers;
            }
        }
        panic!("no end, with {answers:?}");
    }

    /// The neighbour is there and well.
    fn greet(&mut self) {
        self.echoes += 1;
        let sequence = self.echoes;
        let request = Request { kind: 1, biz_data: b"hello", sequence, ..Request::default() };
        let mut frame = Vec::new();
        request.encode_frame(&mut frame);
        self.write(self.neighbour, &frame);
        let answers = self.answers_until(self.neighbour, |answers| !answers.is_empty());
        assert_eq!(answers, [Answer { kind: 1, sequence, code: None }]);
    }

    /// One connection sends a stream, in pieces, and then ends.
    fn run(&mut self, mut stream: &[u8], arrivals: &[Arrival], user_id: Option<u64>) {
        let mut expected = Expected::of(stream, user_id);
        let peer = self.sim.connect().expect("it listens");
        if let Some(user_id) = user_id {
            self.write(peer, &login(user_id, 0));
            expected.insert(0, Answer { kind: AUTHENTICATE, sequence: 0, code: None });
        }
        for arrival in arrivals {
            let (arrived, later) = stream.split_at(arrival.bytes.min(stream.len()));
            stream = later;
            self.write(peer, arrived);
            if arrival.frames_max < usize::MAX {
                self.turn();
            }
        }
        self.greet();
        self.write(peer, stream);
        self.sim.half_close(peer);
        let answers = self.answers_until(peer, |_| false);
        assert_eq!(answers, expected);
        self.sim.hang_up(peer);
        self.greet();
        for _ in 0..TURNS_MAX {
            let levels = self.shard.levels();
            if levels.connections == 1 {
                assert_eq!((levels.sessions, levels.users, levels.memberships), (1, 1, 1));
                assert_eq!((levels.outbox_bytes, levels.calls_in_flight), (0, 0));
                return;
            }
            self.turn();
        }
        panic!("the connection stays: {:?}", self.shard.levels());
    }
}

fn login(user_id: u64, sequence: u64) -> Vec<u8> {
    let token = format!("token-{user_id}");
    let request =
        Request { kind: AUTHENTICATE, user_id, token: &token, sequence, ..Request::default() };
    let mut frame = Vec::new();
    request.encode_frame(&mut frame);
    frame
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fuzz_target!(|data: &[u8]| {
    let (arrivals, stream) = split_plan(data);
    WORLD.with_borrow_mut(|world| {
        for user_id in [None, Some(USER)] {
            world.run(stream, &arrivals, user_id);
        }
        let now = world.sim.now() + Duration::from_millis(1);
        world.sim.set_now(now);
    });
});
