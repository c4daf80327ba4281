//! Tests of [`Rooms`]: one shard's part, without a shard.

use std::time::Duration;

use tidegate_protocol::proto::v1::Recovery;

use super::log::After;
use super::message::{AskedBy, Asker};
use super::*;
use crate::config::{Config, RoomsConfig, SlowMember};
use crate::session_id::SessionAddr;

const MINUTE_MS: u64 = 60_000;

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

fn room(name: &str) -> RoomId {
    RoomId::new(name).unwrap()
}

/// The rooms of a shard of two, and what they send to the other one.
struct Part {
    rooms: Rooms,
    limiter: Arc<CommandLimiter>,
    /// A room whose home is this shard.
    room: RoomId,
}

impl Part {
    /// The first of two shards.
    fn new(configure: impl FnOnce(&mut RoomsConfig)) -> Self {
        let mut config = Config::embedded_default().rooms;
        config.idle_ttl = Duration::from_secs(60);
        configure(&mut config);
        let limiter = Arc::new(CommandLimiter::new(100, 1 << 20));
        let settings = Settings {
            shard: 0,
            shards: 2,
            first_offset: 1_000,
            log_key: 1,
            is_shared: false,
            rooms: config,
        };
        let rooms = Rooms::new(settings, Arc::clone(&limiter));
        let room = (0..).map(|n| room(&format!("room-{n}"))).find(|room| home(room, 2) == 0);
        Self { rooms, limiter, room: room.unwrap() }
    }

    fn permit(&self) -> Arc<CommandPermit> {
        self.limiter.admit(1, &mut None).unwrap()
    }

    fn handle(&mut self, message: RoomMessage, now_ms: u64) {
        self.rooms.handle(message, now_ms, &|| now_ms, &|_| ConnState::Open);
    }

    fn join(&mut self, room: &RoomId, shard: u16, slot: u32, after_offset: Option<u64>) {
        let addr = SessionAddr::new(shard, conn(slot));
        let (room, asker) = (room.clone(), Asker::Backend(self.permit()));
        let after = after_offset.map_or(After::Now, After::Offset);
        self.handle(RoomMessage::Join { room, addr, after, asker }, 0);
    }

    fn leave(&mut self, room: &RoomId, slot: u32, now_ms: u64) {
        let (addr, room, permit) = (SessionAddr::new(0, conn(slot)), room.clone(), self.permit());
        self.handle(RoomMessage::Leave { room, addr, permit }, now_ms);
    }

    fn publish(&mut self, room: &RoomId, now_ms: u64) {
        let (room, permit) = (room.clone(), self.permit());
        let biz_data = Bytes::from_static(b"push");
        self.handle(
            RoomMessage::Publish(RoomPush { room, kind: 5, biz_data, options: None, permit }),
            now_ms,
        );
    }

    fn unsubscribe(&mut self, shard: u16, joins: u64) {
        let room = self.room.clone();
        self.handle(RoomMessage::Unsubscribe { room, shard, joins }, 0);
    }

    /// Effects, without those that were taken before.
    fn effects(&mut self) -> Vec<RoomEffect> {
        std::iter::from_fn(|| self.rooms.next_effect()).collect()
    }

    /// The same, without those that report memberships.
    fn other_effects(&mut self) -> Vec<RoomEffect> {
        let is_report =
            |effect: &RoomEffect| matches!(effect, RoomEffect::Joined(..) | RoomEffect::Left(..));
        self.effects().into_iter().filter(|effect| !is_report(effect)).collect()
    }

    /// Serves all members: the slots, and the pushes of each.
    fn serve(&mut self) -> Vec<(u32, u64)> {
        let mut served = Vec::new();
        while let Some((member, slot)) = self.rooms.next_to_serve(&mut 100) {
            if let NextChunk::Chunk { pushes, .. } = self.rooms.next_chunk(member) {
                served.push((slot, pushes));
            }
        }
        self.rooms.trim_logs();
        self.rooms.trim_logs();
        served
    }

    fn info(&mut self, room: &RoomId) -> Option<RoomInfo> {
        let (reply, mut answer) = oneshot::channel();
        self.handle(RoomMessage::Inspect { room: room.clone(), reply }, 0);
        answer.try_recv().unwrap()
    }
}

#[test]
fn only_a_member_that_has_missed_pushes_is_flushed_when_it_joins() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.publish(&room, 0);
    part.publish(&room, 0);
    let info = part.info(&room).unwrap();
    assert_eq!((info.first_offset, info.last_offset, info.members), (1_000, 1_001, 0));
    part.join(&room, 0, 1, None);
    part.join(&room, 0, 2, Some(1_001));
    assert!(part.other_effects().is_empty(), "they have everything");
    part.join(&room, 0, 3, Some(1_000));
    part.join(&room, 0, 4, Some(5));
    part.join(&room, 0, 1, Some(999));
    let flushed: Vec<u32> = part
        .other_effects()
        .iter()
        .map(|effect| match effect {
            RoomEffect::PushesPending(slot) => *slot,
            effect => panic!("{effect:?}"),
        })
        .collect();
    assert_eq!(flushed, [3, 4, 1]);
    let mut got = Vec::new();
    for slot in 1..=4 {
        let before = part.rooms.counters().room_deliveries;
        assert_eq!(part.rooms.read_pending_pushes(slot, 1_000, drop), ReadOutcome::UpToDate);
        got.push(part.rooms.counters().room_deliveries - before);
    }
    assert_eq!(got, [2, 0, 1, 2]);
    assert_eq!(part.limiter.commands(), 0, "each command has ended");
}

#[test]
fn a_shard_gets_the_log_with_its_first_member_and_every_push_after_it() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.publish(&room, 0);
    part.join(&room, 1, 7, None);
    part.join(&room, 1, 8, Some(999));
    part.publish(&room, 0);
    let effects = part.effects();
    let [
        RoomEffect::Post(1, RoomMessage::Joined { log: Some(log), conn: first, .. }),
        RoomEffect::Post(1, RoomMessage::Joined { log: None, after: After::Offset(999), .. }),
        RoomEffect::Post(1, RoomMessage::Append { offset: 1_001, .. }),
    ] = &effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!((log.first(), log.end(), log.released()), (1_000, 1_001, 1_001));
    assert_eq!(*first, conn(7));
    drop(effects);
    assert_eq!(part.limiter.commands(), 0);
}

#[test]
fn a_subscription_ends_unless_a_join_is_on_its_way() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.join(&room, 1, 7, None);
    part.join(&room, 1, 8, None);
    part.effects();
    part.unsubscribe(1, 1);
    assert!(part.effects().is_empty(), "the shard has not seen the second join yet");
    part.unsubscribe(1, 2);
    let effects = part.effects();
    assert!(
        matches!(&effects[..], [RoomEffect::Post(1, RoomMessage::Unsubscribed { .. })]),
        "{effects:?}"
    );
    part.publish(&room, 0);
    assert!(part.effects().is_empty(), "nothing more goes to that shard");
    part.unsubscribe(1, 2);
    assert!(part.effects().is_empty(), "it ended before");
}

#[test]
fn a_replica_without_members_notifies_the_home() {
    let mut part = Part::new(|_| {});
    let far = (0..).map(|n| room(&format!("room-{n}"))).find(|room| home(room, 2) == 1).unwrap();
    let joined = |part: &mut Part, slot, log: Option<Log>| {
        let (room, asker) = (far.clone(), Asker::Backend(part.permit()));
        let log = log.map(Box::new);
        let message = RoomMessage::Joined {
            room,
            conn: conn(slot),
            after: After::Now,
            ticket_s: 0,
            log,
            asker,
        };
        part.handle(message, 0);
    };
    joined(&mut part, 1, Some(Log::of_tests(50, 1_000)));
    joined(&mut part, 2, None);
    part.rooms.leave_all(1, 0);
    assert!(part.other_effects().is_empty(), "there is another member");
    part.rooms.leave_all(2, 0);
    let effects = part.other_effects();
    assert!(
        matches!(
            &effects[..],
            [RoomEffect::Post(1, RoomMessage::Unsubscribe { shard: 0, joins: 2, .. })]
        ),
        "{effects:?}"
    );
    assert_eq!(part.rooms.len(), 2, "the home may have a join on its way");
    part.handle(RoomMessage::Unsubscribed { room: far }, 0);
    assert_eq!(part.rooms.len(), 1);
    assert!(part.rooms.take_freed_bytes() > 0);
    assert_eq!(part.rooms.take_freed_bytes(), 0);
}

#[test]
fn everybodys_room_never_ends() {
    let mut part = Part::new(|_| {});
    part.rooms.join_everybody(3, After::Now);
    part.rooms.leave_all(3, 0);
    part.rooms.close_idle_rooms(10 * MINUTE_MS);
    assert!(part.effects().is_empty());
    assert_eq!((part.rooms.len(), part.rooms.membership_count()), (1, 0));
    assert!(!part.rooms.is_empty());
}

#[test]
fn a_room_is_closed_a_while_after_its_last_push_or_member_and_opens_again_above() {
    let mut part = Part::new(|_| {});
    let (room, now_ms) = (part.room.clone(), 7);
    part.publish(&room, now_ms);
    part.join(&room, 0, 1, None);
    part.rooms.close_idle_rooms(now_ms + 2 * MINUTE_MS);
    assert_eq!(part.rooms.len(), 2, "it has a member");
    let left_ms = now_ms + 3 * MINUTE_MS;
    part.leave(&room, 1, left_ms);
    part.rooms.close_idle_rooms(left_ms + MINUTE_MS - 1);
    assert_eq!(part.rooms.len(), 2);
    let end = part.info(&room).unwrap().last_offset + 1;
    part.rooms.close_idle_rooms(left_ms + MINUTE_MS);
    assert_eq!(part.rooms.len(), 1);
    // The clock of the part may stand still: the offset is above all that were given here.
    part.publish(&room, 0);
    assert_eq!(part.info(&room).unwrap().first_offset, end);
    part.join(&room, 1, 9, None);
    part.rooms.close_idle_rooms(100 * MINUTE_MS);
    assert_eq!(part.rooms.len(), 2, "another shard has members");
}

#[test]
fn a_room_begins_a_thousand_offsets_higher_for_each_millisecond() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.publish(&room, 5);
    assert_eq!(part.info(&room).unwrap().first_offset, 1_000 + 5_000);
}

#[test]
fn rooms_beyond_the_limit_are_refused_and_the_known_ones_are_not() {
    let mut part = Part::new(|config| {
        config.rooms_per_shard_max = 2;
        config.rooms_per_connection_max = 1;
    });
    let rooms = ["a", "b", "c"].map(room);
    rooms.iter().for_each(|room| part.publish(room, 0));
    assert_eq!((part.rooms.len(), part.rooms.counters().refused_rooms), (3, 1));
    part.publish(&rooms[1], 0);
    part.publish(&RoomId::everybody(), 0);
    assert_eq!(part.rooms.counters().refused_rooms, 1);
    part.join(&rooms[0], 0, 1, None);
    part.join(&rooms[1], 0, 1, None);
    assert_eq!(part.rooms.counters().refused_rooms, 2);
    assert_eq!(part.rooms.membership_count(), 1);
    // The other shard gets everybody's push.
    assert_eq!(part.other_effects().len(), 1);
    assert_eq!(part.limiter.commands(), 0);
}

#[test]
fn rooms_that_were_joined_and_left_give_their_places_to_others() {
    let mut part = Part::new(|config| config.rooms_per_shard_max = 3);
    let rooms: Vec<_> = (0..100).map(|n| room(&format!("left-{n}"))).collect();
    let (kept, pushed) = (room("kept"), room("pushed"));
    part.join(&kept, 0, 1, None);
    part.publish(&pushed, 0);
    for (room, now_ms) in rooms.iter().zip(1..) {
        part.join(room, 0, 2, None);
        part.leave(room, 2, now_ms);
    }
    let counters = part.rooms.counters();
    assert_eq!((counters.refused_rooms, counters.displaced_rooms), (0, 99));
    assert!(part.info(&kept).is_some() && part.info(&pushed).is_some());
    // A member on another shard keeps its room, and so does a push.
    part.join(&rooms[0], 1, 7, None);
    part.join(&rooms[1], 0, 2, None);
    let counters = part.rooms.counters();
    assert_eq!((counters.refused_rooms, counters.displaced_rooms), (1, 100));
    assert_eq!(part.rooms.len(), 4, "everybody's, and three");
    // With a push, a room without members keeps its place.
    part.leave(&kept, 1, 200);
    part.publish(&kept, 200);
    part.join(&rooms[1], 0, 2, None);
    assert_eq!(part.rooms.counters().refused_rooms, 2, "a push is kept for those who come back");
}

#[test]
fn the_room_that_was_used_for_the_shortest_time_gives_its_place_first() {
    let mut part = Part::new(|config| config.rooms_per_shard_max = 2);
    let [long, brief, new] = ["long", "brief", "new"].map(room);
    part.join(&long, 0, 1, None);
    part.leave(&long, 1, 50_000);
    let (addr, asker) = (SessionAddr::new(0, conn(2)), Asker::Backend(part.permit()));
    let join = RoomMessage::Join { room: brief.clone(), addr, after: After::Now, asker };
    part.handle(join, 51_000);
    part.leave(&brief, 2, 51_001);
    part.join(&new, 0, 3, None);
    assert_eq!(part.rooms.counters().displaced_rooms, 1);
    assert!(part.info(&long).is_some(), "its member may have lost its connection");
    assert!(part.info(&brief).is_none() && part.info(&new).is_some());
}

#[test]
fn a_room_that_was_left_on_another_shard_gives_its_place_too() {
    let mut part = Part::new(|config| config.rooms_per_shard_max = 1);
    let (left, new) = (part.room.clone(), room("new"));
    part.join(&left, 1, 7, None);
    part.join(&new, 0, 1, None);
    assert_eq!(part.rooms.counters().displaced_rooms, 0, "it has a member");
    part.unsubscribe(1, 1);
    part.join(&new, 0, 1, None);
    assert_eq!(part.rooms.counters().displaced_rooms, 1);
    assert!(part.info(&left).is_none() && part.info(&new).is_some());
}

#[test]
fn a_push_is_under_way_until_each_member_was_offered_it() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.publish(&room, 0);
    assert_eq!(part.limiter.commands(), 0, "nobody waits for it");
    part.join(&room, 0, 1, None);
    part.join(&room, 0, 2, None);
    part.publish(&room, 0);
    part.publish(&room, 0);
    assert!(part.rooms.is_busy());
    assert_eq!(part.limiter.commands(), 2);
    assert_eq!(part.serve(), [(1, 2), (2, 2)]);
    assert_eq!(part.limiter.commands(), 0);
    assert!(!part.rooms.is_busy());
    assert_eq!(part.rooms.counters().room_deliveries, 4);
}

#[test]
fn the_log_of_a_room_without_members_is_within_its_bound_after_each_push() {
    let mut part = Part::new(|config| config.default_policy.log_bytes_max = 0);
    let room = part.room.clone();
    for last_offset in 1_000..1_004 {
        part.publish(&room, 0);
        let info = part.info(&room).unwrap();
        assert_eq!((info.first_offset, info.last_offset), (last_offset, last_offset));
    }
    // So is that of a member that comes: it has seen the push before.
    part.join(&room, 1, 7, Some(1_002));
    let effects = part.effects();
    let [RoomEffect::Post(1, RoomMessage::Joined { log: Some(log), .. })] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((log.first(), log.end()), (1_003, 1_004));
}

#[test]
fn a_member_that_leaves_gets_what_waits_for_a_window_unless_it_is_backlogged() {
    let window = Duration::from_millis(50);
    let mut part = Part::new(|config| config.default_policy.merge_window = window);
    let room = part.room.clone();
    (1..=3).for_each(|slot| part.join(&room, 0, slot, None));
    part.publish(&room, 100);
    part.publish(&room, 120);
    assert_eq!(part.rooms.next_window_end_ms(), Some(150));
    assert_eq!(part.rooms.counters().merged_pushes, 1);
    part.leave(&room, 1, 130);
    let effects = part.other_effects();
    assert!(
        matches!(&effects[..], [RoomEffect::LastPushes(1, chunk)] if chunk.len() > 8),
        "{effects:?}"
    );
    let (addr, permit) = (SessionAddr::new(0, conn(2)), part.permit());
    let message = RoomMessage::Leave { room: room.clone(), addr, permit };
    part.rooms.handle(message, 130, &|| 130, &|_| ConnState::Backlogged);
    assert!(part.other_effects().is_empty());
    part.rooms.end_windows(149);
    assert!(part.serve().is_empty());
    part.rooms.end_windows(150);
    assert_eq!(part.serve(), [(3, 2)]);
    assert_eq!(part.rooms.next_window_end_ms(), None);
}

#[test]
fn an_open_room_gets_its_new_policy_and_its_window_ends() {
    let window = Duration::from_millis(50);
    let mut part = Part::new(|config| config.default_policy.merge_window = window);
    let room = part.room.clone();
    part.join(&room, 0, 1, None);
    part.publish(&room, 100);
    assert!(part.serve().is_empty());
    let same = part.rooms.settings.rooms.clone();
    part.rooms.reconfigure(&same);
    assert_eq!(part.rooms.next_window_end_ms(), Some(150), "nothing has changed");
    let mut other = same;
    other.policies.push((room.as_str().to_owned(), other.default_policy));
    other.policies[0].1.merge_window = Duration::ZERO;
    other.policies[0].1.log_bytes_max = 0;
    part.rooms.reconfigure(&other);
    assert_eq!(part.rooms.next_window_end_ms(), None);
    assert_eq!(part.serve(), [(1, 1)]);
    part.publish(&room, 101);
    assert_eq!(part.serve(), [(1, 1)], "a push does not wait");
    part.rooms.trim_logs();
    let index = part.rooms.table.find(&room).unwrap();
    let log = &part.rooms.table.get(index).log;
    assert_eq!(log.end() - log.first(), 1, "the log has its new bound");
}

#[test]
fn no_push_waits_for_a_window_while_the_shard_drains() {
    let window = Duration::from_millis(50);
    let mut part = Part::new(|config| config.default_policy.merge_window = window);
    let room = part.room.clone();
    part.join(&room, 0, 1, None);
    part.publish(&room, 100);
    part.rooms.start_draining();
    assert_eq!(part.serve(), [(1, 1)]);
    part.publish(&room, 110);
    assert_eq!(part.serve(), [(1, 1)]);
}

#[test]
fn a_chunk_has_at_most_64_kib() {
    for (last_frame_bytes, chunk) in [(536, (65_536, 3)), (537, (65_000, 2))] {
        let mut log = Log::of_tests(1, usize::MAX);
        for bytes in [65_000, last_frame_bytes] {
            log.append(Bytes::from(vec![7; bytes]));
        }
        assert_eq!(log.chunk(1, 3).map(|(bytes, to)| (bytes.len(), to)), Some(chunk));
    }
}

fn reports(effects: Vec<RoomEffect>) -> Vec<(u32, Joined, AskedBy)> {
    let report = |effect| match effect {
        RoomEffect::Joined(slot, joined, asked_by) => Some((slot, joined, asked_by)),
        _ => None,
    };
    effects.into_iter().filter_map(report).collect()
}

#[test]
fn each_new_membership_is_reported_with_the_name_of_its_log() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.join(&room, 0, 1, None);
    part.publish(&room, 0);
    part.join(&room, 0, 2, None);
    part.join(&room, 0, 1, None);
    part.join(&room, 0, 1, Some(999));
    let reports = reports(part.effects());
    let slots: Vec<u32> = reports.iter().map(|report| report.0).collect();
    assert_eq!(
        slots,
        [1, 2, 1],
        "a member that joins again is one already, unless it asks for more"
    );
    let joined: Vec<&Joined> = reports.iter().map(|report| &report.1).collect();
    assert_eq!(joined[0].log, joined[1].log);
    assert_eq!((joined[0].head, joined[1].head), (0, 1_000));
    let recoveries: Vec<Recovery> = joined.iter().map(|joined| joined.recovery).collect();
    assert_eq!(recoveries, [Recovery::NotAsked, Recovery::NotAsked, Recovery::Complete]);
    part.leave(&room, 2, 0);
    let effects = part.effects();
    assert!(matches!(&effects[..], [RoomEffect::Left(2, left)] if *left == room), "{effects:?}");
}

#[test]
fn a_client_that_resumes_a_room_of_which_the_latest_counts_is_told_what_it_misses() {
    for (seen, recovery) in [(1, Recovery::Gap), (2, Recovery::Complete), (3, Recovery::Complete)] {
        let mut part = Part::new(|config| config.default_policy.slow_member = SlowMember::Latest);
        let room = part.room.clone();
        (0..3).for_each(|_| part.publish(&room, 0));
        let first = part.info(&room).unwrap().first_offset;
        part.join(&room, 0, 1, Some(first + seen - 1));
        let reported = reports(part.effects());
        assert_eq!(reported[0].1.recovery, recovery, "{seen} were seen");
    }
}

#[test]
fn a_refused_membership_is_reported_too() {
    let mut part = Part::new(|config| {
        config.rooms_per_shard_max = 2;
        config.rooms_per_connection_max = 1;
    });
    let rooms = ["a", "b", "c"].map(room);
    // With a push the room is not closed for another.
    part.publish(&rooms[1], 0);
    part.effects().clear();
    rooms.iter().for_each(|room| part.join(room, 0, 1, None));
    // The third room can't be opened: its home notifies the shard of the connection, which is the same here.
    let effects = part.effects();
    let refused = |effect: &&RoomEffect| {
        matches!(effect, RoomEffect::Post(0, RoomMessage::JoinRefused { .. }))
    };
    assert_eq!(effects.iter().filter(refused).count(), 1);
    for effect in &effects {
        if let RoomEffect::Post(0, RoomMessage::JoinRefused { room, conn, .. }) = effect {
            let asker = Asker::Client { user_id: 7, ticket_made_s: 0 };
            let message = RoomMessage::JoinRefused { room: room.clone(), conn: *conn, asker };
            part.handle(message, 0);
        }
    }
    let late = reports(part.effects());
    assert_eq!(late, [(1, Joined::refused("c"), AskedBy::Client)]);
    let recoveries: Vec<Recovery> =
        reports(effects).into_iter().map(|(_, joined, _)| joined.recovery).collect();
    assert_eq!(recoveries, [Recovery::NotAsked, Recovery::Refused]);
}

#[test]
fn the_rooms_of_all_shards_have_different_numbers_and_their_own_logs() {
    let config = Config::embedded_default().rooms;
    let mut names = Vec::new();
    for shard in 0..2 {
        let limiter = Arc::new(CommandLimiter::new(100, 1 << 20));
        let rooms = config.clone();
        let settings =
            Settings { shard, shards: 2, first_offset: 1_000, log_key: 1, is_shared: false, rooms };
        let mut part =
            Part { rooms: Rooms::new(settings, limiter.clone()), limiter, room: room("-") };
        names.push(part.rooms.everybody().log.unwrap());
        let here = (0..).map(|n| room(&format!("room-{n}"))).filter(|room| home(room, 2) == shard);
        for room in here.take(3) {
            part.join(&room, shard, 1, None);
            names.extend(reports(part.effects()).into_iter().filter_map(|report| report.1.log));
        }
    }
    assert_eq!(names[0], names[4], "everybody's room has one log");
    names.remove(4);
    let mut numbers: Vec<u32> = names.iter().map(|name| name.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 3, 4, 5, 6, 7, 8]);
    let ids: std::collections::HashSet<u64> = names.iter().map(|name| name.id.get()).collect();
    assert_eq!(ids.len(), names.len());
}

#[test]
fn a_push_carries_the_number_of_its_room() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.join(&room, 0, 1, None);
    let number = reports(part.effects())[0].1.log.unwrap().number;
    part.publish(&room, 0);
    let (member, _) = part.rooms.next_to_serve(&mut 10).unwrap();
    let NextChunk::Chunk { bytes, .. } = part.rooms.next_chunk(member) else { panic!("a push") };
    let push = tidegate_protocol::Response::decode(&bytes[1..]).unwrap();
    assert_eq!((push.room, push.offset), (number, 1_000));
}

#[test]
fn a_member_that_joins_again_gets_no_replay() {
    let mut part = Part::new(|config| config.default_policy.replay_on_join = 2);
    let room = part.room.clone();
    (0..3).for_each(|_| part.publish(&room, 0));
    part.join(&room, 0, 1, None);
    let read = |part: &mut Part| {
        let before = part.rooms.counters().room_deliveries;
        part.rooms.read_pending_pushes(1, 1_000, drop);
        part.rooms.counters().room_deliveries - before
    };
    assert_eq!(read(&mut part), 2);
    part.join(&room, 0, 1, None);
    assert_eq!(read(&mut part), 0);
    part.rooms.join_everybody(1, After::Now);
    part.publish(&RoomId::everybody(), 0);
    part.rooms.join_everybody(1, After::Now);
    assert_eq!(read(&mut part), 1);
}

#[test]
fn a_member_that_leaves_while_it_resumes_gets_what_no_round_could_offer() {
    let mut part = Part::new(|_| {});
    let room = part.room.clone();
    part.join(&room, 0, 1, None);
    part.publish(&room, 0);
    // The round passes over the connection, which takes nothing yet.
    while part.rooms.next_to_serve(&mut 10).is_some() {}
    part.rooms.trim_logs();
    part.effects();
    let (addr, permit) = (SessionAddr::new(0, conn(1)), part.permit());
    let message = RoomMessage::Leave { room: room.clone(), addr, permit };
    part.rooms.handle(message, 0, &|| 0, &|_| ConnState::Resuming);
    let effects = part.effects();
    assert!(matches!(&effects[..], [RoomEffect::LastPushes(1, _), RoomEffect::Left(1, _)]));
}
