//! Rooms: members, logs, and slow members.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bytes::Bytes;
use prost::Message as _;
use tidegate_protocol::proto::demo::JoinRoom;
use tidegate_tests::phone::{demo, said};
use tidegate_tests::{Code, Gateway, Phone, Push, Setup, until};

/// Bytes that each push carries beside its number.
const PADDING: usize = 1000;

/// Pushes to the room as an operator: one push for each of `numbers`.
fn publish(gateway: &Gateway, room: &str, numbers: std::ops::Range<u32>) {
    let operator = gateway.operator();
    for number in numbers {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(PADDING, b'.');
        operator.push_room(room, 50, &body);
    }
}

/// The data of a request that joins a room without a resume.
fn joined(room: &str) -> Vec<u8> {
    JoinRoom { room: room.into(), last_offset: 0 }.encode_to_vec()
}

/// A push's number.
fn number(push: &Push) -> u32 {
    assert_eq!(push.biz_data.len(), PADDING, "no push is cut");
    u32::from_be_bytes(push.biz_data[..4].try_into().unwrap())
}

/// Checks that the numbers increase, and have the same gaps as the offsets.
fn check_gaps_against_offsets(pushes: &[Push]) {
    for pair in pushes.windows(2) {
        let missed = pair[1].offset - pair[0].offset;
        assert!(missed >= 1, "{} after {}", pair[1].offset, pair[0].offset);
        assert_eq!(u64::from(number(&pair[1]) - number(&pair[0])), missed);
    }
}

#[test]
fn members_on_all_shards_get_pushes_and_former_members_do_not() {
    let gateway = Setup::demo().shards(4).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=16).map(|user_id| gateway.login(user_id)).collect();
    let mut outsider = gateway.login(99);
    for room in ["quiz", "lobby", "a room with a longer name"] {
        phones.iter_mut().for_each(|phone| phone.join(room, 0));
        outsider.say(room, "hello");
        let offsets: Vec<_> = phones
            .iter_mut()
            .map(|phone| {
                let push = phone.push();
                assert_eq!((push.kind, &*push.text()), (demo::SAY, "hello"));
                push.offset
            })
            .collect();
        assert!(offsets.iter().all(|offset| *offset == offsets[0]), "{offsets:?}");
    }
    assert_eq!(operator.members("quiz"), 16);
    let (leavers, stayers) = phones.split_at_mut(8);
    leavers.iter_mut().for_each(|phone| phone.leave("quiz"));
    outsider.say("quiz", "who is left?");
    stayers.iter_mut().for_each(|phone| assert_eq!(phone.push().text(), "who is left?"));
    // The push to the other room arrives first, so the former members got nothing before it.
    outsider.say("lobby", "you are");
    leavers.iter_mut().for_each(|phone| assert_eq!(phone.push().text(), "you are"));
    until("the room has only the members that stayed", || {
        (operator.members("quiz") == 8).then_some(())
    });
    stayers.iter_mut().for_each(|phone| assert_eq!(phone.push().text(), "you are"));
    // A second leave succeeds, and a new join gets pushes again.
    leavers.iter_mut().for_each(|phone| phone.leave("quiz"));
    leavers.iter_mut().for_each(|phone| phone.join("quiz", 0));
    outsider.say("quiz", "welcome back");
    phones.iter_mut().for_each(|phone| assert_eq!(phone.push().text(), "welcome back"));
}

#[test]
fn an_operators_push_counts_the_members_it_reaches() {
    let gateway = Setup::demo().shards(4).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=10).map(|user_id| gateway.login(user_id)).collect();
    phones.iter_mut().take(6).for_each(|phone| phone.join("quiz", 0));
    assert_eq!(operator.push_room("quiz", 50, b"a"), 6);
    assert_eq!(operator.push_room("nobody-is-here", 50, b"a"), 0);
    assert_eq!(operator.push_all(51, b"b"), 10);
    for phone in phones.iter_mut().take(6) {
        assert_eq!(phone.push().kind, 50);
    }
    for phone in &mut phones {
        assert_eq!(phone.push().kind, 51);
    }
}

#[test]
fn a_member_that_resumes_gets_each_missed_push_once_and_then_the_new_ones() {
    let gateway = Setup::demo().shards(4).start();
    for round in 0..8 {
        let room = format!("room-{round}");
        let mut talker = gateway.login(100 + round);
        let mut phone = gateway.login(7);
        phone.join(&room, 0);
        talker.say(&room, "seen");
        let last_seen = phone.push().offset;
        drop(phone);
        let missed: Vec<_> = (0..20).map(|n| format!("missed {n}")).collect();
        missed.iter().for_each(|text| talker.say(&room, text));
        // It resumes while pushes continue.
        let newer: Vec<_> = (0..200).map(|n| format!("new {n}")).collect();
        let says: Vec<_> = newer.iter().map(|text| (demo::SAY, said(&room, text))).collect();
        let mut phone = gateway.login(7);
        let join = JoinRoom { room: room.clone(), last_offset: last_seen };
        let joined = phone.send(demo::JOIN, &join.encode_to_vec());
        talker.send_together(&says);
        let pushes = phone.pushes(220);
        assert_eq!(phone.outcome(joined), Ok(Bytes::new()));
        let offsets = pushes.iter().map(|push| push.offset);
        assert!(offsets.eq(last_seen + 1..=last_seen + 220));
        assert!(pushes.iter().map(Push::text).eq(missed.into_iter().chain(newer)));
    }
}

#[test]
fn a_join_without_an_offset_gets_only_new_pushes() {
    let gateway = Setup::demo().shards(2).start();
    let mut talker = gateway.login(8);
    talker.say("quiz", "old");
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    talker.say("quiz", "new");
    assert_eq!(phone.push().text(), "new");
    // An offset above the newest one does not delay the next push.
    phone.join("quiz", u64::MAX);
    talker.say("quiz", "newer");
    assert_eq!(phone.push().text(), "newer");
}

#[test]
fn pushes_that_the_log_no_longer_holds_show_as_a_gap_in_the_offsets() {
    let gateway = Setup::demo().shards(2).set("rooms.log_bytes_max", 10_000).start();
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    publish(&gateway, "quiz", 0..1);
    let first = phone.push();
    drop(phone);
    publish(&gateway, "quiz", 1..50);
    let mut phone = gateway.login(7);
    phone.join("quiz", first.offset);
    let next = phone.push();
    assert!(next.offset > first.offset + 1, "pushes are missing");
    check_gaps_against_offsets(&[first, next.clone()]);
    // From the oldest push in the log on, none is missing.
    let mut pushes = vec![next];
    while number(pushes.last().unwrap()) < 49 {
        pushes.push(phone.push());
    }
    assert!(pushes.len() >= 8, "the log holds as much as its bound allows: {}", pushes.len());
    assert!(pushes.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset));
    let room = gateway.operator().json("/rooms/quiz");
    assert_eq!(room["first_offset"], pushes[0].offset);
    assert_eq!(room["last_offset"], pushes.last().unwrap().offset);
}

/// A gateway with small send buffers, so that unread pushes soon wait in the gateway.
fn narrow(slow_member: &str) -> Setup {
    Setup::demo()
        .set("socket.send_buffer_bytes", 4096)
        .set("rooms.log_bytes_max", 20_000)
        .set("rooms.slow_member", slow_member)
}

fn join_narrow(gateway: &Gateway, user_id: u64) -> Phone {
    let mut phone = Phone::connect_narrow(gateway.clients());
    phone.login(user_id);
    phone.join("quiz", 0);
    phone
}

/// A member that gets 300 pushes, which are far more than the log holds.
fn serve_burst(gateway: &Gateway) -> Phone {
    let mut healthy = gateway.login(8);
    healthy.join("quiz", 0);
    for batch in 0..30 {
        publish(gateway, "quiz", batch * 10..(batch + 1) * 10);
        let pushes = healthy.pushes(10);
        assert!(pushes.iter().map(number).eq(batch * 10..(batch + 1) * 10));
    }
    healthy
}

#[test]
fn a_slow_member_skips_pushes_and_sees_the_gap() {
    let gateway = narrow("skip").start();
    let mut slow = join_narrow(&gateway, 7);
    let mut healthy = serve_burst(&gateway);
    let mut pushes = Vec::new();
    while pushes.last().is_none_or(|push| number(push) < 299) {
        pushes.push(slow.push());
    }
    check_gaps_against_offsets(&pushes);
    assert_eq!(number(&pushes[0]), 0);
    let missed = 300 - pushes.len();
    assert!(missed > 0, "the member was not too slow");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_room_pushes_skipped_total", "", |n| n == missed as f64);
    // It is still a member.
    publish(&gateway, "quiz", 300..301);
    assert_eq!(number(&slow.push()), 300);
    assert_eq!(number(&healthy.push()), 300);
}

#[test]
fn a_member_gets_the_newest_push_alone_where_the_latest_counts() {
    let gateway = narrow("latest").start();
    let mut slow = join_narrow(&gateway, 7);
    publish(&gateway, "quiz", 0..300);
    let mut pushes = Vec::new();
    while pushes.last().is_none_or(|push| number(push) < 299) {
        pushes.push(slow.push());
    }
    check_gaps_against_offsets(&pushes);
    // It does not get what the log still holds before the newest push.
    let before = &pushes[pushes.len() - 2];
    assert!(number(before) < 298, "{} is before the newest", number(before));
    let missed = 300 - pushes.len();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_room_pushes_skipped_total", "", |n| n == missed as f64);
    // Pushes that come one by one arrive one by one.
    for n in 300..303 {
        publish(&gateway, "quiz", n..n + 1);
        assert_eq!(number(&slow.push()), n);
    }
}

#[test]
fn a_slow_member_is_closed_if_the_policy_demands_it() {
    let gateway = narrow("close").start();
    let mut slow = join_narrow(&gateway, 7);
    let mut healthy = serve_burst(&gateway);
    // The gateway notices at its next send, when the client reads.
    slow.end();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_connections_closed_total", "slow_member", |n| n == 1.0);
    operator.wait_for_total("sessions", 1);
    healthy.assert_is_served();
}

#[test]
fn a_policy_applies_only_to_rooms_with_its_prefix() {
    let policy = r#"
        [[room_policies]]
        prefix = "short-"
        log_bytes_max = 3000
    "#;
    let gateway = Setup::demo().toml(policy).start();
    for (room, held) in [("short-1", 2), ("long-1", 20)] {
        publish(&gateway, room, 0..20);
        let room = gateway.operator().json(&format!("/rooms/{room}"));
        let first = room["first_offset"].as_u64().unwrap();
        let last = room["last_offset"].as_u64().unwrap();
        assert_eq!(last - first + 1, held, "{room}");
    }
}

#[test]
fn pushes_within_a_window_arrive_together_and_in_order() {
    let policies = r#"
        [[room_policies]]
        prefix = "barrage-"
        merge_window_ms = 1000
        [[room_policies]]
        prefix = "*"
        merge_window_ms = 10000
        urgent_types = [51, 51]
    "#;
    let gateway = Setup::demo().shards(2).toml(policies).start();
    let operator = gateway.operator();
    let (mut phone, mut talker) = (gateway.login(7), gateway.login(8));
    phone.join("barrage-1", 0);
    talker.send_together(&["one", "two"].map(|text| (demo::SAY, said("barrage-1", text))));
    let pushes = phone.pushes(2);
    assert!(pushes.iter().map(Push::text).eq(["one", "two"]));
    assert_eq!(pushes[1].offset, pushes[0].offset + 1);
    operator.wait_for_metric("tidegate_room_pushes_merged_total", "", |n| n == 1.0);
    // Everybody's room has a policy too: an urgent push releases those that wait.
    talker.ask(demo::PUSH_ALL, b"three").unwrap();
    assert_eq!(operator.push_all(51, b"four"), 2);
    for phone in [&mut phone, &mut talker] {
        let pushes = phone.pushes(2);
        assert!(pushes.iter().map(|push| &push.biz_data[..]).eq([&b"three"[..], b"four"]));
    }
    // A push to a room without a policy arrives at once: other rooms have no window.
    phone.join("lobby", 0);
    assert_eq!(operator.push_room("lobby", 50, b"five"), 1);
    assert_eq!(phone.push().biz_data, "five");
}

#[test]
fn after_a_restart_offsets_begin_above_all_earlier_ones() {
    let mut gateway = Setup::demo().on_a_reserved_port().shards(2).start();
    let mut last_offset = 0;
    for _ in 0..3 {
        let mut phone = gateway.login(7);
        phone.join("quiz", last_offset);
        let mut talker = gateway.login(8);
        (0..50).for_each(|n| talker.say("quiz", &format!("{n}")));
        let pushes = phone.pushes(50);
        assert!(
            pushes[0].offset > last_offset,
            "the offsets after a restart are above the earlier ones"
        );
        assert!(pushes.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset));
        last_offset = pushes[49].offset;
        gateway.crash_and_restart();
    }
}

#[test]
fn a_room_that_was_closed_opens_above_its_earlier_offsets() {
    let gateway = Setup::demo().set("rooms.idle_ttl_ms", 0).start();
    let operator = gateway.operator();
    let mut last_offset = 0;
    for _ in 0..3 {
        let mut phone = gateway.login(7);
        phone.join("quiz", 0);
        (0..20).for_each(|_| phone.say("quiz", "hello"));
        let pushes = phone.pushes(20);
        assert!(pushes[0].offset > last_offset);
        last_offset = pushes[19].offset;
        drop(phone);
        until("the room is closed", || (operator.get("/rooms/quiz").0 == 404).then_some(()));
    }
}

#[test]
fn a_client_that_joins_and_leaves_takes_no_places_of_rooms_from_others() {
    let gateway = Setup::demo().shards(1).set("rooms.rooms_per_shard_max", 10).start();
    let mut phone = gateway.login(7);
    let mut other = gateway.login(8);
    other.join("kept", 0);
    for room in (0..50).map(|n| format!("room-{n}")) {
        phone.join(&room, 0);
        phone.leave(&room);
    }
    other.join("other", 0);
    let operator = gateway.operator();
    // Of 50 rooms that were left, 9 and then 8 are open beside the others.
    operator.wait_for_metric("tidegate_rooms_displaced_total", "", |n| n == 42.0);
    operator.wait_for_metric("tidegate_rooms_refused_total", "", |n| n == 0.0);
    assert_eq!(operator.push_room("kept", 50, b"x"), 1);
}

#[test]
fn a_session_that_joins_too_often_is_refused_and_may_leave() {
    let setup = Setup::demo().set("rooms.joins_per_second_max", 1).set("rooms.joins_burst_max", 3);
    let gateway = setup.set("rooms.rooms_per_connection_max", 3).start();
    let (mut phone, mut other) = (gateway.login(7), gateway.login(8));
    let refused = until("a join is refused", || phone.ask(demo::JOIN, &joined("room")).err());
    assert_eq!(refused.code, Some(Code::RateLimited));
    assert!(!refused.retry_after.is_zero());
    other.join("room", 0);
    // A backend can always end a membership.
    (0..20).for_each(|_| phone.leave("room"));
    let operator = gateway.operator();
    assert_eq!(operator.push_room("room", 50, b"x"), 1, "the other one alone");
    operator.wait_for_metric("tidegate_room_commands_limited_total", "", |n| n >= 1.0);
    gateway.process.stderr.wait_for("rooms.joins_per_second_max");
    // Later it may again.
    until("a join is accepted", || phone.ask(demo::JOIN, &joined("room")).ok());
}

#[test]
fn a_connection_may_be_in_64_rooms_and_no_more() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    (0..64).for_each(|n| phone.join(&format!("room-{n}"), 0));
    let asked = phone.send(demo::JOIN, &joined("room-64"));
    phone.fails(asked, Code::BackendFailed);
    let operator = gateway.operator();
    operator.wait_for_total("memberships", 65);
    operator.wait_for_metric("tidegate_rooms_refused_total", "", |n| n == 1.0);
    for n in 0..64 {
        assert_eq!(operator.push_room(&format!("room-{n}"), 50, b"x"), 1, "{n}");
    }
    assert_eq!(operator.push_room("room-64", 50, b"x"), 0);
    assert_eq!(phone.pushes(64).len(), 64);
    // After a leave it may join another room.
    phone.leave("room-0");
    phone.join("room-64", 0);
    assert_eq!(operator.push_room("room-64", 50, b"x"), 1);
}

#[test]
fn a_join_or_push_beyond_rooms_max_is_refused_until_a_room_closes() {
    for shards in [1, 2] {
        let setup = Setup::demo().shards(shards).set("rooms.rooms_per_shard_max", 1);
        let gateway = setup.set("rooms.idle_ttl_ms", 0).start();
        let operator = gateway.operator();
        let mut phone = gateway.login(7);
        // With this room each home shard has as many rooms as it may have.
        let mut taken = Vec::new();
        for name in (0..100).map(|n| format!("room-{n}")) {
            let asked = phone.send(demo::JOIN, &joined(&name));
            match phone.outcome(asked) {
                Ok(_) => taken.push(name),
                Err(failure) => {
                    assert_eq!(failure.code, Some(Code::Overloaded));
                    assert!(!failure.retry_after.is_zero());
                }
            }
        }
        assert_eq!(taken.len(), usize::from(shards));
        let asked = phone.send(demo::SAY, &said("room-100", "hello"));
        assert!(!phone.fails(asked, Code::Overloaded).retry_after.is_zero());
        assert_eq!(operator.members("room-100"), 0);
        phone.say(&taken[0], "hello");
        assert_eq!(phone.push().text(), "hello");
        taken.iter().for_each(|name| phone.leave(name));
        until("a room may be opened again", || phone.ask(demo::JOIN, &joined("room-100")).ok());
    }
}

#[test]
fn a_burst_longer_than_one_send_arrives_without_a_further_push() {
    // One member is served per turn, so pushes accumulate meanwhile.
    let gateway = Setup::demo().set("limits.fan_out_slice_members", 1).start();
    let mut members: Vec<_> = (1..=20).map(|user_id| gateway.login(user_id)).collect();
    members.iter_mut().for_each(|member| member.join("quiz", 0));
    let text = "x".repeat(700);
    let says = vec![(demo::SAY, said("quiz", &text)); 100];
    let mut talkers: Vec<_> = (100..103).map(|user_id| gateway.login(user_id)).collect();
    talkers.iter_mut().for_each(|talker| drop(talker.send_together(&says)));
    for member in &mut members {
        let pushes = member.pushes(300);
        assert!(pushes.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset));
    }
}

#[test]
fn a_connection_in_many_rooms_gets_all_pushes_when_it_reads_again() {
    let gateway = Setup::demo().shards(2).set("socket.send_buffer_bytes", 4096).start();
    let mut slow = Phone::connect_narrow(gateway.clients());
    slow.login(7);
    let rooms: Vec<_> = (0..10_u32).map(|n| (n * 100, format!("room-{n}"))).collect();
    rooms.iter().for_each(|(_, room)| slow.join(room, 0));
    for round in 0..20 {
        for (base, room) in &rooms {
            publish(&gateway, room, base + round..base + round + 1);
        }
    }
    let pushes = slow.pushes(200);
    for (base, _) in rooms {
        let of_room: Vec<_> =
            pushes.iter().filter(|push| number(push) / 100 * 100 == base).cloned().collect();
        assert!(of_room.iter().map(number).eq(base..base + 20), "room {base}");
        check_gaps_against_offsets(&of_room);
    }
    slow.assert_is_served();
}
