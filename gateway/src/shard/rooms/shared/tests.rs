use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::proto::v1::Recovery;

use super::*;
use crate::cluster::message::ToCluster;
use crate::config::Config;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;
use crate::shard::command::{CommandLimiter, CommandPermit, RoomPush};
use crate::shard::rooms::log::{After, LogId};
use crate::shard::rooms::message::{Asker, ConnState, FetchedLog, RoomEffect, SharedPush};
use crate::shard::rooms::{Joined, Rooms, Settings};
use std::sync::Arc;

/// The rooms of a shard that is alone, whose rooms gateways share.
struct Part {
    rooms: Rooms,
    limiter: Arc<CommandLimiter>,
}

fn room() -> RoomId {
    RoomId::new("quiz").unwrap()
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

/// A push whose payload is a letter: "a" has the offset 0.
fn push(offset: u64) -> SharedPush {
    let letter = b'a' + u8::try_from(offset % 26).unwrap();
    let biz_data = Bytes::from(vec![letter]);
    SharedPush { offset, kind: 5, biz_data, ends_unix_ms: 0 }
}

fn fetched(id: u64, offsets: std::ops::Range<u64>) -> RoomMessage {
    let (first, pushes) = (offsets.start, offsets.map(push).collect());
    let log = FetchedLog { id: LogId::shared(id), first, pushes, barred: Vec::new() };
    RoomMessage::Fetched { room: room(), log }
}

impl Part {
    fn new() -> Self {
        let mut config = Config::embedded_default().rooms;
        config.idle_ttl = Duration::from_secs(60);
        config.default_policy.replay_on_join = 0;
        let limiter = Arc::new(CommandLimiter::new(100_000, 1 << 30));
        let settings = Settings {
            shard: 0,
            shards: 1,
            first_offset: 1_000,
            log_key: 1,
            is_shared: true,
            rooms: config,
        };
        let mut part = Self { rooms: Rooms::new(settings, Arc::clone(&limiter)), limiter };
        // The cluster's thread follows everybody's room by itself.
        assert_eq!(part.cluster_messages(), [""; 0]);
        part
    }

    /// A shard whose members in these slots have read the pushes 1 to 5 of log 7.
    fn with_members(slots: impl Iterator<Item = u32>) -> Self {
        let mut part = Self::new();
        slots.for_each(|slot| part.join(slot));
        assert_eq!(part.cluster_messages(), ["follow quiz"]);
        part.handle(fetched(7, 1..1));
        (1..=5).for_each(|offset| part.shared(offset));
        part.serve();
        part
    }

    fn permit(&self) -> Arc<CommandPermit> {
        self.limiter.admit(1, &mut None).unwrap()
    }

    fn handle(&mut self, message: RoomMessage) {
        self.rooms.handle(message, 0, &|| 0, &|_| ConnState::Open);
    }

    fn join(&mut self, slot: u32) {
        let (addr, after) = (SessionAddr::new(0, conn(slot)), After::Now);
        let asker = Asker::Backend(self.permit());
        self.handle(RoomMessage::Join { room: room(), addr, after, asker });
    }

    fn shared(&mut self, offset: u64) {
        let permit = self.permit();
        self.handle(RoomMessage::Shared { room: room(), push: push(offset), permit });
    }

    fn renamed(&mut self, id: u64, cut: u64, next: u64) {
        let id = LogId::shared(id).unwrap();
        self.handle(RoomMessage::Renamed { room: room(), id, cut, next });
    }

    fn effects(&mut self) -> Vec<RoomEffect> {
        std::iter::from_fn(|| self.rooms.next_effect()).collect()
    }

    /// The messages to the cluster's thread. Other effects are dropped.
    fn cluster_messages(&mut self) -> Vec<String> {
        let text = |effect| match effect {
            RoomEffect::ToCluster(ToCluster::Follow { room, .. }) => Some(format!("follow {room}")),
            RoomEffect::ToCluster(ToCluster::Unfollow { room }) => Some(format!("unfollow {room}")),
            RoomEffect::ToCluster(ToCluster::FirstMember { room }) => Some(format!("first {room}")),
            RoomEffect::ToCluster(ToCluster::Publish(push)) => Some(format!("push {}", push.room)),
            _ => None,
        };
        self.effects().into_iter().filter_map(text).collect()
    }

    /// Notices of memberships, by slot.
    fn joined(&mut self) -> Vec<(u32, Joined)> {
        let joined = |effect| match effect {
            RoomEffect::Joined(slot, joined, _) => Some((slot, joined)),
            _ => None,
        };
        self.effects().into_iter().filter_map(joined).collect()
    }

    /// What each served member gets: its slot, and the payloads' letters.
    fn serve(&mut self) -> Vec<(u32, String)> {
        let mut served = Vec::new();
        let mut budget = usize::MAX;
        while let Some((member, slot)) = self.rooms.next_to_serve(&mut budget) {
            if let super::super::reader::NextChunk::Chunk { bytes, .. } =
                self.rooms.next_chunk(member)
            {
                // No other byte of these frames is a small letter.
                let letters = bytes.iter().filter(|byte| byte.is_ascii_lowercase());
                served.push((slot, letters.map(|&byte| char::from(byte)).collect()));
            }
        }
        self.rooms.trim_logs();
        served
    }
}

#[test]
fn joins_and_leaves_wait_in_order_until_the_log_arrives() {
    let mut part = Part::new();
    (1..=3).for_each(|slot| part.join(slot));
    let (addr, permit) = (SessionAddr::new(0, conn(2)), part.permit());
    part.handle(RoomMessage::Leave { room: room(), addr, permit });
    assert_eq!(part.cluster_messages(), ["follow quiz"], "once");
    assert_eq!(part.rooms.membership_count(), 0);
    part.handle(fetched(7, 4..6));
    let joined = part.joined();
    assert_eq!(joined.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1, 2, 3]);
    let (_, first) = &joined[0];
    assert_eq!((first.head, first.log.unwrap().id.get()), (5, 7));
    assert_eq!(part.rooms.membership_count(), 2);
    part.shared(6);
    assert_eq!(part.serve(), [(1, "g".into()), (3, "g".into())]);
    // A push that comes again is ignored.
    part.shared(6);
    assert!(part.serve().is_empty());
}

#[test]
fn a_log_that_arrives_when_no_join_waits_opens_no_room() {
    let mut part = Part::new();
    part.handle(fetched(7, 1..4));
    assert_eq!(part.rooms.len(), 1, "everybody's");
}

#[test]
fn a_push_that_has_expired_when_the_log_arrives_is_a_gap() {
    let mut part = Part::new();
    let (addr, permit) = (SessionAddr::new(0, conn(1)), part.permit());
    let after = After::Position { log: 7, offset: 1 };
    let asker = Asker::Backend(permit);
    part.handle(RoomMessage::Join { room: room(), addr, after, asker });
    part.cluster_messages();
    let RoomMessage::Fetched { room, mut log } = fetched(7, 1..4) else { panic!() };
    log.pushes[1].ends_unix_ms = 1;
    let fetched = RoomMessage::Fetched { room, log };
    part.rooms.handle(fetched, 5_000, &|| 5_000, &|_| ConnState::Open);
    assert_eq!(part.joined()[0].1.recovery, Recovery::Gap);
}

#[test]
fn a_client_that_is_ahead_of_its_gateway_gets_the_head_that_it_has_seen() {
    let mut part = Part::with_members(1..2);
    part.effects();
    let (addr, permit) = (SessionAddr::new(0, conn(2)), part.permit());
    let (room, after) = (room(), After::Position { log: 7, offset: 7 });
    let asker = Asker::Backend(permit);
    part.handle(RoomMessage::Join { room, addr, after, asker });
    let (_, joined) = part.joined().remove(0);
    assert_eq!((joined.head, joined.recovery), (7, Recovery::Complete));
    part.shared(6);
    part.serve();
}

#[test]
fn a_push_of_a_backend_goes_to_redis_and_not_into_the_log() {
    let mut part = Part::with_members(1..2);
    let (biz_data, permit) = (Bytes::from_static(b"6"), part.permit());
    let push = RoomPush { room: room(), kind: 5, biz_data, options: None, permit };
    part.handle(RoomMessage::Publish(push));
    assert_eq!(part.cluster_messages(), ["first quiz", "push quiz"]);
    assert!(part.serve().is_empty());
}

#[test]
fn members_continue_where_they_are_when_nothing_was_lost() {
    let mut part = Part::with_members(1..3);
    part.effects();
    part.shared(6);
    part.renamed(9, 7, 7);
    part.shared(7);
    part.rooms.notify_renamed();
    let joined = part.joined();
    assert_eq!(joined.len(), 2);
    for (_, joined) in joined {
        assert_eq!((joined.head, joined.recovery), (6, Recovery::Gap));
        assert_eq!(joined.log.unwrap().id.get(), 9);
    }
    let mut served = part.serve();
    served.sort();
    assert_eq!(served, [(1, "gh".into()), (2, "gh".into())]);
}

#[test]
fn lost_pushes_are_offered_to_no_member() {
    let mut part = Part::with_members(1..3);
    part.shared(6);
    part.shared(7);
    // Both had 6 and 7 offered to the first member only.
    let mut budget = 1;
    let (member, _) = part.rooms.next_to_serve(&mut budget).unwrap();
    part.rooms.next_chunk(member);
    part.effects();
    part.renamed(9, 6, 6);
    part.rooms.notify_renamed();
    assert!(part.joined().iter().all(|(_, joined)| joined.head == 5));
    part.shared(6);
    let mut served = part.serve();
    served.sort();
    assert_eq!(served, [(1, "g".into()), (2, "g".into())]);
}

#[test]
fn after_a_gap_members_continue_with_the_next_available_push() {
    let mut part = Part::with_members(1..2);
    part.effects();
    part.renamed(7, 6, 90);
    part.rooms.notify_renamed();
    assert_eq!(part.joined()[0].1.head, 89);
    part.shared(90);
    assert_eq!(part.serve(), [(1, "m".into())]);
}

#[test]
fn members_are_notified_of_a_new_log_over_several_turns_and_before_its_pushes() {
    let members = 3 * u32::try_from(RENAMED_MAX).unwrap() - 10;
    let mut part = Part::with_members(0..members);
    part.effects();
    part.renamed(9, 6, 6);
    part.shared(6);
    let mut notified = Vec::new();
    for _ in 0..2 {
        assert!(part.rooms.is_busy());
        part.rooms.notify_renamed();
        let now: Vec<_> = part.joined().into_iter().map(|(slot, _)| slot).collect();
        assert_eq!(now.len(), RENAMED_MAX);
        notified.extend(now);
        assert!(part.serve().is_empty(), "pushes wait until all were notified");
    }
    // A member that leaves in between does not keep others from being notified.
    for slot in 0..100 {
        let (addr, permit) = (SessionAddr::new(0, conn(slot)), part.permit());
        part.handle(RoomMessage::Leave { room: room(), addr, permit });
    }
    part.effects();
    part.rooms.notify_renamed();
    notified.extend(part.joined().into_iter().map(|(slot, _)| slot));
    notified.sort_unstable();
    notified.dedup();
    assert!((100..members).all(|slot| notified.binary_search(&slot).is_ok()));
    assert_eq!(part.serve().len(), members as usize - 100);
}

#[test]
fn pushes_do_not_keep_an_empty_room_open() {
    let mut part = Part::with_members(1..2);
    let (addr, permit) = (SessionAddr::new(0, conn(1)), part.permit());
    part.handle(RoomMessage::Leave { room: room(), addr, permit });
    part.effects();
    for (at_ms, offset) in [(30_000, 6), (59_000, 7)] {
        let permit = part.permit();
        let shared = RoomMessage::Shared { room: room(), push: push(offset), permit };
        part.rooms.handle(shared, at_ms, &|| 0, &|_| ConnState::Open);
    }
    part.rooms.close_idle_rooms(59_999);
    assert!(part.cluster_messages().is_empty());
    part.rooms.close_idle_rooms(60_000);
    assert_eq!(part.cluster_messages(), ["unfollow quiz"]);
}

#[test]
fn an_unused_room_gives_its_place_and_is_followed_no_longer() {
    let mut part = Part::new();
    let mut config = Config::embedded_default().rooms;
    config.rooms_per_shard_max = 1;
    part.rooms.reconfigure(&config);
    part.join(1);
    part.handle(fetched(7, 1..1));
    let (addr, permit) = (SessionAddr::new(0, conn(1)), part.permit());
    part.handle(RoomMessage::Leave { room: room(), addr, permit });
    part.cluster_messages();
    let join = |part: &mut Part, name| {
        let (room, addr) = (RoomId::new(name).unwrap(), SessionAddr::new(0, conn(2)));
        let asker = Asker::Backend(part.permit());
        part.handle(RoomMessage::Join { room, addr, after: After::Now, asker });
        part.cluster_messages()
    };
    // With pushes it keeps its place, also with those that another log brings.
    part.handle(fetched(8, 1..3));
    assert_eq!(join(&mut part, "other"), [""; 0]);
    assert_eq!(part.rooms.counters().refused_rooms, 1);
    part.handle(fetched(9, 1..1));
    assert_eq!(join(&mut part, "other"), ["unfollow quiz", "follow other"]);
    assert_eq!((part.rooms.counters().displaced_rooms, part.rooms.len()), (1, 1));
}
