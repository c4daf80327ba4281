//! Whole shards on the simulated driver, a backend that does as it is asked, and phones.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidegate::auth::Verifier;
use tidegate::clock::WallClock;
use tidegate::config::{AuthMode, Config};
use tidegate::driver::sim::{Arrived, Faults, PeerId, Sim};
use tidegate::parts::{Origin, Parts};
use tidegate::router::Backend;
use tidegate::shard::Shard;
use tidegate::shard::clients::cause::Cause;
use tidegate_backend::{Call, Code, Gateway, Handler, RoomId};
use tidegate_protocol::{Reassembler, Request, Response};

/// Echoes.
pub(crate) const ECHO: i32 = 1;
/// Keeps the call.
pub(crate) const KEEP: i32 = 2;
/// Answers all that were kept, with 5 KiB each.
pub(crate) const RELEASE: i32 = 3;
/// Joins the room, or the one that the data names.
pub(crate) const JOIN: i32 = 4;
/// Leaves it.
pub(crate) const LEAVE: i32 = 5;
/// Joins it again: the data is the last offset that was seen.
pub(crate) const RESUME: i32 = 10;

/// Joins the room that the data names, and answers when that has ended: what is refused fails with 101.
pub(crate) const JOIN_TOLD: i32 = 11;
/// Says something in the room that the data names, and answers when all were offered it, likewise.
pub(crate) const SAY_TOLD: i32 = 12;

#[derive(Default)]
pub(crate) struct Keeper {
    kept: Mutex<Vec<Call>>,
}

pub(crate) fn room() -> RoomId {
    RoomId::new("busy").unwrap()
}

impl Handler for Keeper {
    fn handle(&self, call: Call, gateway: &Gateway) {
        match call.kind() {
            KEEP => self.kept.lock().unwrap().push(call),
            RELEASE => {
                let kept = std::mem::take(&mut *self.kept.lock().unwrap());
                kept.into_iter().for_each(|kept| kept.answer(vec![1; 5 * 1024]));
                call.answer("");
            }
            JOIN => {
                let named = RoomId::new(String::from_utf8_lossy(call.biz_data()));
                let room = named.unwrap_or_else(|_| room());
                gateway.join(call.session(), &room, None).unwrap();
                call.answer("");
            }
            LEAVE => {
                gateway.leave(call.session(), &room()).unwrap();
                call.answer("");
            }
            JOIN_TOLD | SAY_TOLD => {
                let room = RoomId::new(String::from_utf8_lossy(call.biz_data())).unwrap();
                let (kind, session) = (call.kind(), call.session());
                let gateway = gateway.report_to(move |outcome| match outcome {
                    Ok(done) => call.answer(done.connections.to_string()),
                    Err(_) => call.fail(Code::BackendFailed),
                });
                if kind == JOIN_TOLD {
                    gateway.join(session, &room, None);
                } else {
                    gateway.push_room(&room, 5, "said");
                }
            }
            RESUME => {
                let seen = u64::from_be_bytes(call.biz_data()[..].try_into().unwrap());
                gateway.join(call.session(), &room(), Some(seen)).unwrap();
                call.answer("");
            }
            _ => {
                let same = call.biz_data().clone();
                call.answer(same);
            }
        }
    }
}

pub(crate) struct World {
    pub(crate) parts: Parts,
    pub(crate) shards: Vec<Shard>,
    pub(crate) sims: Vec<Sim>,
    /// The next client's user.
    pub(crate) user_id: u64,
}

/// A response, as far as these stories need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) kind: i32,
    pub(crate) code: Option<Code>,
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
}

pub(crate) struct Phone {
    pub(crate) shard: usize,
    pub(crate) peer: PeerId,
    pub(crate) reassembler: Reassembler,
    pub(crate) got: Vec<Got>,
    pub(crate) end: Option<Arrived>,
}

impl World {
    /// So many shards, that were started so long ago.
    pub(crate) fn aged(shards: u16, age: Duration, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::embedded_default();
        config.shards = shards;
        config.auth.mode = AuthMode::Demo;
        configure(&mut config);
        let started = Instant::now();
        let origin =
            Origin { started, wall_clock: WallClock::system(), first_offset: 1, session_key: 1 };
        let verifier = Verifier::new(&config.auth).unwrap();
        let handler: Arc<dyn Handler> = Arc::new(Keeper::default());
        let Ok(parts) = Parts::new(config, verifier, origin, |config, _| {
            let name = config.backends[0].name.as_str().into();
            Ok::<_, Infallible>(vec![Backend { name, handler, pool: None }])
        });
        let sim = |id: u16| {
            let mut sim = Sim::new(id.into(), started + age, Faults::default());
            sim.set_wait_max(Duration::ZERO);
            sim
        };
        let sims = (0..shards).map(sim).collect();
        let shards = (0..shards).map(|id| parts.shard(id)).collect();
        let mut world = Self { parts, shards, sims, user_id: 7 };
        world.turns(1);
        // What a shard that was away gives everybody is over.
        world.pass(Duration::from_secs(31));
        world
    }

    pub(crate) fn new(configure: impl FnOnce(&mut Config)) -> Self {
        Self::aged(1, Duration::ZERO, configure)
    }

    pub(crate) fn turns(&mut self, count: usize) {
        for _ in 0..count {
            for (shard, sim) in self.shards.iter_mut().zip(&mut self.sims) {
                if !shard.is_finished() {
                    shard.turn(sim).unwrap();
                }
            }
        }
    }

    /// Time passes, in steps too short for a shard to think that it was away.
    pub(crate) fn pass(&mut self, time: Duration) {
        let step = Duration::from_millis(500);
        let mut left = time;
        while left > Duration::ZERO {
            for sim in &mut self.sims {
                let now = sim.now() + step.min(left);
                sim.set_now(now);
            }
            left = left.saturating_sub(step);
            self.turns(4);
        }
    }

    pub(crate) fn connect(&mut self, shard: usize) -> Phone {
        let peer = self.sims[shard].connect().expect("the shard listens");
        self.turns(2);
        Phone::on(shard, peer)
    }

    /// A client with a session; what it got until then is forgotten.
    pub(crate) fn log_in(&mut self, shard: usize) -> Phone {
        let mut phone = self.connect(shard);
        let user_id = self.user_id;
        self.user_id += 1;
        let token = format!("token-{user_id}");
        let login = Request { user_id, token: &token, sequence: 1, ..Request::default() };
        self.send(&phone, &login);
        phone.read(self);
        assert_eq!((phone.got.len(), phone.got[0].code), (1, None));
        phone.got.clear();
        phone
    }

    pub(crate) fn send(&mut self, phone: &Phone, request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode_frame(&mut bytes);
        assert_eq!(self.sims[phone.shard].write(phone.peer, &bytes), bytes.len());
        self.turns(6);
    }

    pub(crate) fn ask(&mut self, phone: &Phone, kind: i32, sequence: u64, biz_data: &[u8]) {
        self.send(phone, &Request { kind, sequence, biz_data, ..Request::default() });
    }

    pub(crate) fn heartbeat(&mut self, phone: &Phone) {
        self.ask(phone, -1, 99, b"");
    }

    pub(crate) fn push_all(&mut self, kind: i32, bytes: usize) {
        self.parts.gateway.push_all(kind, vec![7; bytes]).unwrap();
    }

    pub(crate) fn closed(&self, cause: Cause) -> u64 {
        self.shards.iter().map(|shard| shard.stats().closed[cause as usize]).sum()
    }
}

impl Phone {
    pub(crate) fn on(shard: usize, peer: PeerId) -> Self {
        Self { shard, peer, reassembler: Reassembler::new(), got: Vec::new(), end: None }
    }

    pub(crate) fn read(&mut self, world: &mut World) {
        loop {
            match world.sims[self.shard].read(self.peer) {
                Arrived::Bytes(bytes) => {
                    let mut frames = self.reassembler.frames(&bytes, usize::MAX);
                    while let Some(frame) = frames.next().unwrap() {
                        let response = Response::decode(frame).unwrap();
                        let Response { kind, sequence, offset, .. } = response;
                        let (code, bytes) = (response.code(), response.biz_data.len());
                        self.got.push(Got { kind, code, sequence, offset, bytes });
                    }
                }
                Arrived::Nothing => return,
                end => return self.end = Some(end),
            }
        }
    }

    /// Reads what comes within so many turns.
    pub(crate) fn read_for(&mut self, world: &mut World, turns: usize) {
        for _ in 0..turns {
            world.turns(1);
            self.read(world);
        }
    }

    pub(crate) fn count(&self, kind: i32) -> usize {
        self.got.iter().filter(|got| got.kind == kind).count()
    }
}
