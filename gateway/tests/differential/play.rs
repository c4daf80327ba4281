//! Plays a script, and records what each client receives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tidegate::driver::sim::Arrived;
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT};
use tidegate_testing::{Phone, Received, Setup};

use crate::networks::Network;
use crate::script::{CLIENTS, FRAME_BYTES_MAX, PUSHED, Phase, Script};

/// The time after which a script has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What each client received, by source.
pub(crate) type Outcome = Vec<BTreeMap<Source, Vec<Got>>>;

/// A source of responses. The order within a source is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Answers,
    /// A room's pushes, by their type.
    Pushes(i32),
    /// How the connection ends.
    End,
}

/// What a client received from a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Response(Received),
    End(Arrived),
}

impl Got {
    /// The offset of a room's push.
    fn offset(&self) -> Option<u64> {
        match self {
            Self::Response(received) if received.offset > 0 => Some(received.offset),
            _ => None,
        }
    }
}

/// A gateway of one shard.
pub(crate) fn setup() -> Setup {
    Setup::scripted(|config| config.limits.frame_bytes_max = FRAME_BYTES_MAX)
}

/// Plays a script; `cuts` says where its bytes are cut.
pub(crate) fn play(script: &Script, network: &mut impl Network, cuts: u64) -> Outcome {
    let mut player = Player {
        network,
        rng: Rng::with_seed(cuts),
        phones: [(); CLIENTS].map(Phone::on),
        outcome: vec![BTreeMap::new(); CLIENTS],
        got: [0; CLIENTS],
        deadline: Instant::now() + PATIENCE,
    };
    for (number, phase) in script.phases.iter().enumerate() {
        let last = number + 1 == script.phases.len();
        player.phase(number, phase, last);
    }
    count_offsets_from_zero(&mut player.outcome);
    player.outcome
}

/// A room's first offset says when the room was opened, which differs from run to run. The drivers must agree on the
/// offsets relative to it.
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
            if let Got::Response(Received { offset, .. }) = got
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
    phones: [Phone<()>; CLIENTS],
    outcome: Outcome,
    /// Responses in this phase, by client.
    got: [usize; CLIENTS],
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
            let ended_count = self.phones.iter().filter(|phone| phone.end.is_some()).count();
            if all_written && self.got == phase.gets && (!last || ended_count == CLIENTS) {
                return;
            }
            let lacks = (self.got, phase.gets, ended_count, number);
            assert!(Instant::now() < self.deadline, "got, expected, ended, in phase: {lacks:?}");
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
            // All clients read.
            if (0..CLIENTS).filter(|&client| self.read(client)).count() == 0 {
                self.network.pass();
            }
        }
    }

    /// Reads what has arrived. Says whether there was anything.
    fn read(&mut self, client: usize) -> bool {
        let phone = &mut self.phones[client];
        if phone.end.is_some() || !phone.take(self.network.read(client)) {
            return false;
        }
        let outcome = &mut self.outcome[client];
        for received in phone.received.drain(..) {
            self.got[client] += 1;
            let (source, got) = certain(received);
            outcome.entry(source).or_default().push(got);
        }
        if let Some(end) = &phone.end {
            outcome.entry(Source::End).or_default().push(Got::End(end.clone()));
        }
        true
    }
}

/// Removes what differs from run to run: times and session ids.
fn certain(mut received: Received) -> (Source, Got) {
    let kind = received.kind;
    if kind == HEARTBEAT || kind == AUTHENTICATE && received.code.is_none() {
        received.biz_data.clear();
    }
    // Rooms have their numbers in the order in which they open, which depends on the shards' turns.
    received.room = received.room.min(1);
    let source = if kind >= PUSHED { Source::Pushes(kind) } else { Source::Answers };
    (source, Got::Response(received))
}
