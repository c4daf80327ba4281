//! What clients send, and how many answers and pushes they get for it.
//!
//! A script has phases. A phase begins when all clients have received everything of the last one. Within a phase
//! only one client pushes to a room, and no client joins or leaves a room that gets pushes. So everything that a
//! client receives is certain, except for the order between its answers and the pushes of different rooms.

use std::collections::BTreeSet;

use fastrand::Rng;
use tidegate_backend::RoomId;
use tidegate_protocol::message::HEARTBEAT;
use tidegate_protocol::{Request, frame};
use tidegate_testing::login;
use tidegate_testing::scripted::{ECHO, JOIN, LEAVE, PUSH, push_order};

pub(crate) const CLIENTS: usize = 6;

/// The longest frame that the gateway accepts, in bytes.
pub(crate) const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Rooms by number; the last one is everybody's.
pub(crate) const ROOMS: usize = 4;
pub(crate) const EVERYBODY: usize = ROOMS - 1;

/// The type of a room's pushes is this plus the room's number.
pub(crate) const PUSHED: i32 = 100;

fn room_id(room: usize) -> RoomId {
    RoomId::new(format!("room-{room}")).unwrap()
}

pub(crate) struct Script {
    pub(crate) phases: Vec<Phase>,
}

/// What happens in a phase, by client.
#[derive(Default)]
pub(crate) struct Phase {
    pub(crate) bytes: [Vec<u8>; CLIENTS],
    /// How many responses the client gets.
    pub(crate) gets: [usize; CLIENTS],
    /// The client sends nothing more.
    pub(crate) ends: [bool; CLIENTS],
}

struct Writer {
    rng: Rng,
    sequence: u64,
    members: [BTreeSet<usize>; ROOMS],
}

impl Script {
    pub(crate) fn new(seed: u64) -> Self {
        let mut members = [const { BTreeSet::new() }; ROOMS];
        members[EVERYBODY] = (0..CLIENTS).collect();
        let mut writer = Writer { rng: Rng::with_seed(seed), sequence: 0, members };
        let mut phases = vec![writer.logins()];
        for _ in 0..3 {
            phases.push(writer.memberships());
            phases.push(writer.requests());
            phases.push(writer.pushes());
        }
        phases.push(writer.endings());
        Self { phases }
    }
}

impl Writer {
    fn ask(&mut self, phase: &mut Phase, client: usize, kind: i32, biz_data: &[u8]) {
        self.sequence += 1;
        let request = Request { kind, biz_data, sequence: self.sequence, ..Request::default() };
        request.encode_frame(&mut phase.bytes[client]);
        phase.gets[client] += 1;
    }

    fn logins(&mut self) -> Phase {
        let mut phase = Phase::default();
        for client in 0..CLIENTS {
            self.sequence += 1;
            phase.bytes[client] = login(7 + client as u64, self.sequence);
            phase.gets[client] = 1;
        }
        phase
    }

    fn memberships(&mut self) -> Phase {
        let mut phase = Phase::default();
        for client in 0..CLIENTS {
            for room in 0..EVERYBODY {
                if self.rng.bool() {
                    continue;
                }
                let leaves = self.members[room].remove(&client);
                if !leaves {
                    self.members[room].insert(client);
                }
                let kind = if leaves { LEAVE } else { JOIN };
                self.ask(&mut phase, client, kind, room_id(room).as_str().as_bytes());
            }
            self.some_requests(&mut phase, client);
        }
        phase
    }

    fn requests(&mut self) -> Phase {
        let mut phase = Phase::default();
        for client in 0..CLIENTS {
            for _ in 0..self.rng.usize(1..5) {
                self.some_requests(&mut phase, client);
            }
            if self.rng.u8(0..4) == 0 {
                // A burst: many requests in one write.
                (0..300).for_each(|_| self.ask(&mut phase, client, ECHO, b"burst"));
            }
        }
        phase
    }

    fn pushes(&mut self) -> Phase {
        let mut phase = Phase::default();
        for room in 0..ROOMS {
            let client = self.rng.usize(0..CLIENTS);
            for _ in 0..self.rng.usize(0..12) {
                let mut data = self.bytes();
                data.truncate(4000);
                let target = (room != EVERYBODY).then(|| room_id(room));
                let kind = PUSHED + i32::try_from(room).unwrap();
                let order = push_order(target.as_ref(), kind, &data);
                self.ask(&mut phase, client, PUSH, &order);
                self.members[room].iter().for_each(|&member| phase.gets[member] += 1);
            }
        }
        (0..CLIENTS).for_each(|client| self.some_requests(&mut phase, client));
        phase
    }

    fn endings(&mut self) -> Phase {
        let mut phase = Phase::default();
        for client in 0..CLIENTS {
            self.some_requests(&mut phase, client);
            match self.rng.u8(0..4) {
                0 => {
                    // No message: the first key names field 0.
                    frame::put_prefix(&mut phase.bytes[client], 20);
                    phase.bytes[client].extend([0; 20]);
                    phase.gets[client] += 1;
                }
                1 => {
                    frame::put_prefix(&mut phase.bytes[client], FRAME_BYTES_MAX + 1);
                    phase.gets[client] += 1;
                }
                2 => {
                    // The connection ends within a frame.
                    frame::put_prefix(&mut phase.bytes[client], 20);
                    phase.bytes[client].push(8);
                    phase.ends[client] = true;
                }
                _ => phase.ends[client] = true,
            }
        }
        phase
    }

    fn some_requests(&mut self, phase: &mut Phase, client: usize) {
        for _ in 0..self.rng.usize(0..10) {
            if self.rng.u8(0..4) == 0 {
                self.ask(phase, client, HEARTBEAT, b"");
            } else {
                let data = self.bytes();
                self.ask(phase, client, ECHO, &data);
            }
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most = *self.rng.choice(&[1, 100, 100, 3_000, 20_000, 60_000]).unwrap();
        let count = self.rng.usize(0..=most);
        (0..count).map(|_| self.rng.u8(..)).collect()
    }
}
