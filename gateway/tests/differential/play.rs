//! Plays a script, and notes what comes of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tidegate::auth::Verifier;
use tidegate::clock::WallClock;
use tidegate::config::{AuthMode, Config};
use tidegate::driver::sim::Arrived;
use tidegate::parts::{Origin, Parts};
use tidegate::router::Backend;
use tidegate_backend::{Call, Gateway, Handler, RoomId};
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT};
use tidegate_protocol::{Reassembler, Response};

use crate::networks::Network;
use crate::script::{CLIENTS, ECHO, EVERYBODY, FRAME_BYTES_MAX, JOIN, LEAVE, PUSH, Phase, Script};

/// How long a script may take before its test has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Above any offset that a log would begin with by the wall clock.
const FIRST_OFFSET: u64 = (1 << 53) - 5;

/// The type of a room's pushes: this and the room's number.
const PUSHED: i32 = 100;

/// What a client got, by where it came from.
pub(crate) type Outcome = Vec<BTreeMap<Source, Vec<Got>>>;

/// Where responses come from, each in one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Answers,
    /// A room's pushes, by their type.
    Pushes(i32),
    /// How the connection ends.
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Response {
        kind: i32,
        status: u32,
        sequence: u64,
        offset: u64,
        /// None where they tell times or names of sessions.
        biz_data: Option<Vec<u8>>,
    },
    End(Arrived),
}

impl Got {
    /// A push's offset in its room.
    fn offset(&self) -> Option<u64> {
        match self {
            Self::Response { offset, .. } if *offset > 0 => Some(*offset),
            _ => None,
        }
    }
}

/// A gateway of one shard.
pub(crate) fn parts() -> Parts {
    let mut config = Config::embedded_default();
    config.shards = 1;
    config.auth.mode = AuthMode::Demo;
    config.limits.frame_bytes_max = FRAME_BYTES_MAX;
    let origin = Origin {
        started: Instant::now(),
        wall_clock: WallClock::system(),
        first_offset: FIRST_OFFSET,
        session_key: 1,
    };
    let verifier = Verifier::new(&config.auth).unwrap();
    let Ok(parts) = Parts::new(config, verifier, origin, |config, _| {
        let name = config.backends[0].name.as_str().into();
        Ok::<_, Infallible>(vec![Backend { name, handler: Arc::new(Rooms), pool: None }])
    });
    parts
}

struct Rooms;

impl Handler for Rooms {
    fn handle(&self, call: Call, gateway: &Gateway) {
        let data = call.biz_data().clone();
        let room = |number: u8| RoomId::new(format!("room-{number}")).unwrap();
        match call.kind() {
            ECHO => return call.answer(data),
            JOIN => gateway.join(call.session(), &room(data[0]), None).unwrap(),
            LEAVE => gateway.leave(call.session(), &room(data[0])).unwrap(),
            PUSH => {
                let kind = PUSHED + i32::from(data[0]);
                if usize::from(data[0]) == EVERYBODY {
                    gateway.push_all(kind, data).unwrap();
                } else {
                    gateway.push_room(&room(data[0]), kind, data).unwrap();
                }
            }
            kind => panic!("nobody asks for {kind}"),
        }
        call.answer("");
    }
}

/// Plays a script; `cuts` says where its bytes are cut.
pub(crate) fn play(script: &Script, network: &mut impl Network, cuts: u64) -> Outcome {
    let mut player = Player {
        network,
        rng: Rng::with_seed(cuts),
        reassemblers: Default::default(),
        outcome: vec![BTreeMap::new(); CLIENTS],
        got: [0; CLIENTS],
        over: [false; CLIENTS],
        deadline: Instant::now() + PATIENCE,
    };
    for (number, phase) in script.phases.iter().enumerate() {
        let last = number + 1 == script.phases.len();
        player.phase(number, phase, last);
    }
    count_offsets_from_zero(&mut player.outcome);
    player.outcome
}

/// A room's first offset says when the room was opened, which differs from run to run. What the drivers must agree on is
/// how the offsets go on from it.
fn count_offsets_from_zero(outcome: &mut Outcome) {
    let mut firsts = BTreeMap::<Source, u64>::new();
    for (source, got) in outcome.iter().flatten() {
        for offset in got.iter().filter_map(Got::offset) {
            let first = firsts.entry(*source).or_insert(offset);
            *first = offset.min(*first);
        }
    }
    for (source, got) in outcome.iter_mut().flatten() {
        for got in got {
            if let Got::Response { offset, .. } = got
                && *offset > 0
            {
                *offset -= firsts[source];
            }
        }
    }
}

struct Player<'a, N> {
    network: &'a mut N,
    rng: Rng,
    reassemblers: [Reassembler; CLIENTS],
    outcome: Outcome,
    /// Frames in this phase.
    got: [usize; CLIENTS],
    over: [bool; CLIENTS],
    deadline: Instant,
}

impl<N: Network> Player<'_, N> {
    fn phase(&mut self, number: usize, phase: &Phase, last: bool) {
        self.got = [0; CLIENTS];
        let mut written = [0; CLIENTS];
        let mut ended = [false; CLIENTS];
        loop {
            let all_written =
                (0..CLIENTS).all(|client| written[client] == phase.bytes[client].len());
            if all_written && self.got == phase.gets && (!last || self.over == [true; CLIENTS]) {
                return;
            }
            let lacks = (self.got, phase.gets, self.over, number);
            assert!(Instant::now() < self.deadline, "got, expected, over, in phase: {lacks:?}");
            for _ in 0..self.rng.usize(1..8) {
                let client = self.rng.usize(0..CLIENTS);
                let left = &phase.bytes[client][written[client]..];
                let most = *self.rng.choice(&[1, 5, 50, 3_000, 100_000]).unwrap();
                let count = self.rng.usize(0..=most.min(left.len()));
                if count > 0 {
                    written[client] += self.network.write(client, &left[..count]);
                }
                let all = written[client] == phase.bytes[client].len();
                if all && phase.ends[client] && !std::mem::replace(&mut ended[client], true) {
                    self.network.half_close(client);
                }
            }
            // Everybody reads.
            if (0..CLIENTS).filter(|&client| self.read(client)).count() == 0 {
                self.network.pass();
            }
        }
    }

    /// Reads what is there. Says whether there was something.
    fn read(&mut self, client: usize) -> bool {
        if self.over[client] {
            return false;
        }
        let outcome = &mut self.outcome[client];
        match self.network.read(client) {
            Arrived::Nothing => return false,
            Arrived::Bytes(bytes) => {
                let mut frames = self.reassemblers[client].frames(&bytes, usize::MAX);
                while let Some(frame) = frames.next().unwrap() {
                    self.got[client] += 1;
                    let (source, got) = read(&Response::decode(frame).unwrap());
                    outcome.entry(source).or_default().push(got);
                }
            }
            end => {
                self.over[client] = true;
                outcome.entry(Source::End).or_default().push(Got::End(end));
            }
        }
        true
    }
}

fn read(response: &Response<'_>) -> (Source, Got) {
    let &Response { kind, status, sequence, offset, biz_data, .. } = response;
    let source = if kind >= PUSHED { Source::Pushes(kind) } else { Source::Answers };
    let certain = kind != HEARTBEAT && (kind != AUTHENTICATE || status == 0);
    let biz_data = certain.then(|| biz_data.to_vec());
    (source, Got::Response { kind, status, sequence, offset, biz_data })
}
