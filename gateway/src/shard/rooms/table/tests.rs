use std::time::Duration;

use super::*;
use crate::config::{Rejoin, RoomClass, SlowMember};
use crate::shard::rooms::subscribers::Subscribers;

#[test]
fn a_membership_is_20_bytes_and_a_slot_8() {
    assert_eq!((size_of::<Membership>(), size_of::<Slot>()), (20, 8));
}

/// A table with everybody's room and rooms of these names.
fn table(names: &[&str]) -> (Table, Vec<RoomIndex>) {
    let policy = RoomPolicy {
        log_bytes_max: 0,
        slow_member: SlowMember::Skip,
        merge_window: Duration::ZERO,
        urgent_types: None,
        replay_on_join: 0,
        rejoin: Rejoin::Ticket,
        class: RoomClass::Durable,
    };
    let mut table = Table::default();
    let mut open = |id| table.open(id, policy, Log::of_tests(1, 0), Role::Replica { joins: 0 }, 0);
    assert_eq!(open(RoomId::everybody()), EVERYBODY);
    let rooms = names.iter().map(|name| open(RoomId::new(*name).unwrap())).collect();
    (table, rooms)
}

/// The rooms of a connection, in the order in which they are served.
fn order(table: &Table, slot: u32) -> Vec<RoomIndex> {
    let members = std::iter::successors(table.first_member(slot), |&m| table.next_member(m));
    members.map(|member| table.room_of(member)).collect()
}

#[test]
fn a_connection_is_served_all_its_rooms_and_none_twice() {
    let (mut table, rooms) = table(&["a", "b"]);
    let (a, b) = (rooms[0], rooms[1]);
    assert!(order(&table, 7).is_empty());
    table.join(7, EVERYBODY, 1);
    table.join(7, a, 1);
    table.join(7, b, 1);
    table.join(9, b, 1);
    assert_eq!(order(&table, 7), [b, a, EVERYBODY]);
    assert_eq!((table.rooms_of(7), table.rooms_of(9), table.membership_count()), (2, 1, 4));
    let member = table.find_member(7, a).unwrap();
    assert_eq!((table.slot_of(member), table.room_of(member)), (7, a));
    table.leave(member);
    assert_eq!(order(&table, 7), [b, EVERYBODY]);
    table.leave(Member::OfEverybody(7));
    assert_eq!(order(&table, 7), [b]);
    assert_eq!(table.find_member(7, EVERYBODY), None);
}

#[test]
fn the_room_that_was_served_last_does_not_come_first_again() {
    let (mut table, rooms) = table(&["a", "b"]);
    let (a, b) = (rooms[0], rooms[1]);
    for room in [EVERYBODY, a, b] {
        table.join(7, room, 1);
    }
    assert_eq!(order(&table, 7), [b, a, EVERYBODY]);
    // Whatever room uses up each flush, each of the three is reached within three of them.
    let mut reached = Vec::new();
    for _ in 0..9 {
        let first = table.first_member(7).unwrap();
        reached.push(table.room_of(first));
        table.rotate(first);
    }
    for room in [EVERYBODY, a, b] {
        assert!(reached.chunks(4).take(2).all(|flushes| flushes.contains(&room)), "{reached:?}");
    }
}

#[test]
fn a_member_that_moves_within_a_round_is_returned() {
    let (mut table, rooms) = table(&["a"]);
    let members: Vec<Member> = (0..3).map(|slot| table.join(slot, rooms[0], 1)).collect();
    assert_eq!(table.leave(members[0]), None, "no round is under way");
    table.get(rooms[0]).start_round();
    assert_eq!(table.leave(members[2]), Some(1));
    assert_eq!(table.get(rooms[0]).member_count, 1);
}

#[test]
fn closed_rooms_leave_little_behind() {
    let (mut table, _) = table(&[]);
    let policy = table.get(EVERYBODY).policy;
    let indexes: Vec<RoomIndex> = (0..20_000)
        .map(|number| {
            let id = RoomId::new(format!("room-{number}")).unwrap();
            let role = Role::Home { subscribers: Subscribers::default() };
            table.open(id, policy, Log::of_tests(1, 0), role, 0)
        })
        .collect();
    assert_eq!(table.homes(), 20_000);
    for index in indexes {
        let before = table.by_id.capacity();
        drop(table.close(index));
        let after = table.by_id.capacity();
        // An entry that was removed may stay taken. Where the table shrinks, it keeps room for more rooms.
        let has_shrunk = after + 1 < before;
        assert!(!has_shrunk || after >= 2 * table.len(), "{after} for {}", table.len());
    }
    assert_eq!((table.homes(), table.len()), (0, 1));
    assert!(table.by_id.capacity() < 3_000, "{}", table.by_id.capacity());
}
