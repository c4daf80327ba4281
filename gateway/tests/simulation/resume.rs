//! Clients that reconnect again and again, on any shard, with what they remember of their rooms.
//!
//! The clients are honest SDKs: they keep [`Memberships`], and hand on what it calls new. Each push carries the
//! number of its place in its room. Whatever is cut, no push may come twice or out of order, and each that is
//! missing must have been reported as a gap.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tidegate::driver::sim::{Arrived, Faults};
use tidegate_backend::RoomId;
use tidegate_protocol::client::{Client as Wire, Event};
use tidegate_protocol::limits::RESUME_BYTES_MAX;
use tidegate_protocol::memberships::{Change, Delivery, Memberships};
use tidegate_testing::scripted::{JOIN, LEAVE};
use tidegate_testing::{Peer, Setup, World, sim};

use crate::for_each_seed;

const CLIENTS: u64 = 6;
const ROOMS: [&str; 4] = ["*", "one", "two", "three"];
const PUSH: i32 = 60;

/// What an app has had of a room since it became a member.
#[derive(Debug, Default)]
struct Had {
    /// The place of the last push; `None`: none came.
    last: Option<u64>,
    /// A gap was reported, and no push has arrived since.
    is_gap: bool,
}

struct Phone {
    user_id: u64,
    connection: Option<(Peer, Wire)>,
    memberships: Memberships,
    had: BTreeMap<String, Had>,
    /// The session of the connection is answered.
    is_open: bool,
    /// Pushes that were handed to the app.
    pushes: usize,
    gaps: usize,
}

struct Run {
    rng: Rng,
    world: World,
    phones: Vec<Phone>,
    /// No log is ever trimmed or replaced.
    keeps_all: bool,
    /// Pushes that were made, by room.
    places: BTreeMap<&'static str, u64>,
}

impl Phone {
    fn receive(&mut self, bytes: &[u8]) {
        let mut events = Vec::new();
        let (_, wire) = self.connection.as_mut().unwrap();
        wire.receive(bytes, |event| events.push(event)).expect("the gateway's frames are good");
        for event in events {
            match event {
                Event::Authenticated { session, .. } => {
                    self.is_open = true;
                    let changes = self.memberships.opened(&session);
                    changes.into_iter().for_each(|change| self.changed(change));
                }
                Event::Joined(room) => {
                    let change = self.memberships.joined(&room);
                    change.into_iter().for_each(|change| self.changed(change));
                }
                Event::Left { room } => {
                    self.memberships.left(&room);
                    self.had.remove(&room);
                }
                Event::Push { room, offset, biz_data, .. } => self.pushed(room, offset, &biz_data),
                Event::Answer { .. } | Event::Failed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Gap { room } => {
                self.gaps += 1;
                self.had.entry(room).or_default().is_gap = true;
            }
            Change::Refused { room } => drop(self.had.remove(&room)),
            Change::NotKept { room } => panic!("{room} is not kept"),
        }
    }

    fn pushed(&mut self, number: u32, offset: u64, biz_data: &[u8]) {
        let place = u64::from_be_bytes(biz_data[..8].try_into().unwrap());
        let (room, is_gap) = match self.memberships.pushed(number, offset) {
            Delivery::New { room } => (room, false),
            Delivery::AfterGap { room, .. } => (room, true),
            Delivery::Repeat { room } => {
                let last = self.had.get(room).and_then(|had| had.last);
                assert!(last.is_some_and(|last| place <= last), "{room}: {place} was never had");
                return;
            }
            other => panic!("{other:?}"),
        };
        let had = self.had.entry(room.to_owned()).or_default();
        if let Some(last) = had.last {
            assert!(place > last, "{room}: {place} after {last}");
            let missing = place - last - 1;
            assert!(
                missing == 0 || is_gap || had.is_gap,
                "{room}: {place} after {last}, unreported"
            );
        }
        *had = Had { last: Some(place), is_gap: false };
        self.pushes += 1;
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (shards, log_bytes_max) = (rng.u16(1..=3), *rng.choice(&[600, 1 << 20]).unwrap());
        let window = Duration::from_millis(*rng.choice(&[0, 0, 30]).unwrap());
        let idle_ttl = Duration::from_millis(*rng.choice(&[500, 3_600_000]).unwrap());
        let mut setup = Setup::scripted(|config| {
            config.shards = shards;
            config.rooms.default_policy.log_bytes_max = log_bytes_max;
            config.rooms.default_policy.merge_window = window;
            config.rooms.idle_ttl = idle_ttl;
        });
        setup.session_key = rng.u64(..);
        let faults = Faults {
            cut: rng.f64() * 0.9,
            short_send: rng.f64() * 0.9,
            late_send: rng.f64(),
            shuffle: true,
            ..Faults::default()
        };
        let world = setup.world_on(|_, now| sim(rng.u64(..), now, faults.clone()));
        let phone = |user_id| Phone {
            user_id,
            connection: None,
            memberships: Memberships::default(),
            had: BTreeMap::new(),
            is_open: false,
            pushes: 0,
            gaps: 0,
        };
        let phones = (1..=CLIENTS).map(phone).collect();
        let keeps_all = log_bytes_max > 600 && idle_ttl > Duration::from_secs(60);
        Self { rng, world, phones, keeps_all, places: BTreeMap::new() }
    }

    fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..35 => {
                let shard = self.rng.usize(0..self.world.shards.len());
                self.world.turn(shard);
            }
            35..45 => self.publish(),
            45..50 => self.world.advance(Duration::from_millis(self.rng.u64(0..60))),
            50..52 => self.cut(),
            _ => {
                let phone = self.rng.usize(0..self.phones.len());
                self.act(phone);
            }
        }
    }

    fn publish(&mut self) {
        let room = *self.rng.choice(&ROOMS).unwrap();
        for _ in 0..self.rng.u32(1..4) {
            let place = self.places.entry(room).or_default();
            *place += 1;
            let data = place.to_be_bytes().to_vec();
            let gateway = self.world.gateway();
            match room {
                "*" => gateway.push_all(PUSH, data),
                room => gateway.push_room(&RoomId::new(room).unwrap(), PUSH, data),
            }
            .expect("the push is accepted");
        }
    }

    /// A connection breaks.
    fn cut(&mut self) {
        let phone = self.rng.usize(0..self.phones.len());
        if let Some((peer, _)) = self.phones[phone].connection.take() {
            self.phones[phone].memberships.disconnected();
            self.phones[phone].is_open = false;
            self.world.reset(peer);
        }
    }

    fn act(&mut self, index: usize) {
        let now = self.world.now();
        let shard = self.rng.usize(0..self.world.shards.len());
        let phone = &mut self.phones[index];
        if let Some((_, wire)) = &mut phone.connection {
            if self.rng.u32(0..8) == 0 {
                let room = ROOMS[self.rng.usize(1..ROOMS.len())].as_bytes();
                let kind = if self.rng.u32(0..4) == 0 { LEAVE } else { JOIN };
                wire.request(now, kind, room);
            }
        } else {
            let (peer, mut wire) = (self.world.connect(shard), Wire::new(now));
            let resume = phone.memberships.resume(RESUME_BYTES_MAX);
            wire.resume(now, phone.user_id, &format!("token-{}", phone.user_id), &resume);
            phone.connection = Some((peer, wire));
        }
        let bytes_max = self.rng.usize(1..2_000);
        self.pump(index, bytes_max);
    }

    /// Moves bytes in both directions.
    fn pump(&mut self, index: usize, bytes_max: usize) {
        let phone = &mut self.phones[index];
        let Some((peer, wire)) = &mut phone.connection else { return };
        let outgoing = wire.outgoing();
        let written = self.world.write(*peer, outgoing);
        let _ = outgoing.split_to(written);
        match self.world.read_at_most(*peer, bytes_max) {
            Arrived::Bytes(bytes) => phone.receive(&bytes),
            Arrived::Nothing => {}
            // A second connection of the same user has replaced this one.
            Arrived::End | Arrived::Reset => panic!("the gateway has ended a session"),
        }
    }

    /// No more faults: each client gets all that its rooms have.
    fn settle(&mut self) {
        for round in 0..400 {
            (0..self.phones.len()).for_each(|index| self.act_calmly(index, round == 0));
            self.world.turns(2);
            self.world.advance(Duration::from_millis(20));
        }
        for phone in &self.phones {
            assert!(phone.connection.is_some() && phone.is_open, "user {}", phone.user_id);
            assert!(phone.gaps == 0 || !self.keeps_all, "a gap though nothing is lost");
            for (room, had) in &phone.had {
                let made = self.places.get(room.as_str()).copied();
                let is_whole = had.last == made || had.last.is_none() || had.is_gap;
                assert!(is_whole, "{room}: {had:?} of {made:?}");
            }
        }
    }

    fn act_calmly(&mut self, index: usize, may_connect: bool) {
        if may_connect && self.phones[index].connection.is_none() {
            self.act(index);
        }
        (0..8).for_each(|_| self.pump(index, usize::MAX));
    }
}

#[test]
fn clients_that_resume_miss_nothing_unreported_and_get_nothing_twice() {
    let (mut pushes, mut gaps) = (0, 0);
    let totals = std::cell::RefCell::new((&mut pushes, &mut gaps));
    for_each_seed(|seed| {
        let mut run = Run::new(seed);
        (0..2_000).for_each(|_| run.step());
        run.settle();
        let mut totals = totals.borrow_mut();
        for phone in &run.phones {
            *totals.0 += phone.pushes;
            *totals.1 += phone.gaps;
        }
    });
    assert!(pushes > 0 && gaps > 0, "both happen: {pushes} pushes, {gaps} gaps");
}
