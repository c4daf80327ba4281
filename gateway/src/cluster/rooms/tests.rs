use bytes::Bytes;

use super::*;

const ROOM: &str = "quiz";

/// The part, with a room that shard 3 follows.
struct Part {
    rooms: Rooms,
    room: RoomId,
}

fn log(id: u64) -> LogId {
    LogId::shared(id).unwrap()
}

fn push(offset: u64) -> SharedPush {
    let biz_data = Bytes::from(format!("push {offset}"));
    SharedPush { offset, kind: 5, biz_data, ends_unix_ms: 0 }
}

fn durable(id: u64, offset: u64) -> RoomEvent {
    RoomEvent::Durable { log: log(id), push: push(offset) }
}

fn opened(id: u64, base: u64, head: u64, pushes: impl IntoIterator<Item = u64>) -> Opened {
    let pushes = pushes.into_iter().map(push).collect();
    Opened { log: log(id), base, head, barred: Vec::new(), pushes }
}

impl Part {
    fn new(name: &str, commands_max: usize) -> Self {
        let limiter = Arc::new(CommandLimiter::new(commands_max, 1 << 20));
        let room = if name == "*" { RoomId::everybody() } else { RoomId::new(name).unwrap() };
        let mut part = Self { rooms: Rooms::new(limiter, "here".into()), room };
        part.rooms.follow(&part.room, 3, name == "fleeting", 0);
        part
    }

    /// A room that is live, with log 7, whose next push has the offset 6.
    fn live(commands_max: usize) -> Self {
        let mut part = Self::new(ROOM, commands_max);
        part.rooms.on_up();
        assert_eq!(part.outputs(), ["subscribe"]);
        part.rooms.on_subscribed(&part.room);
        assert_eq!(part.outputs(), ["open -"]);
        part.open(opened(7, 0, 5, [4, 5]), 10);
        assert_eq!(part.outputs(), ["3: fetched 7 from 4: 4 5"]);
        part
    }

    /// Answers the request that is under way.
    fn open(&mut self, opened: Opened, now_ms: u64) {
        let number = self.rooms.next_number;
        self.rooms.on_opened(&self.room.clone(), number, opened, now_ms);
    }

    fn event(&mut self, event: RoomEvent) {
        self.rooms.on_event(&self.room.clone(), event, 20);
    }

    /// What it asked for, as text. Permits are dropped.
    fn outputs(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.rooms.next_output()).map(|output| text(&output)).collect()
    }
}

fn text(output: &Output) -> String {
    let offsets = |pushes: &[SharedPush]| {
        pushes.iter().map(|push| format!(" {}", push.offset)).collect::<String>()
    };
    match output {
        Output::Subscribe(_) => "subscribe".into(),
        Output::Unsubscribe(_) => "unsubscribe".into(),
        Output::Open(Open { after: None, .. }) => "open -".into(),
        Output::Open(Open { after: Some(after), .. }) => format!("open {after}"),
        Output::Post(
            home,
            RoomMessage::Fetched { log: FetchedLog { id, first, pushes, .. }, .. },
        ) => {
            let id = id.map_or("own".into(), |id| id.get().to_string());
            format!("{home}: fetched {id} from {first}:{}", offsets(pushes))
        }
        Output::Post(home, RoomMessage::Shared { push, .. }) => format!("{home}: {}", push.offset),
        Output::Post(home, RoomMessage::Renamed { id, cut, next, .. }) => {
            format!("{home}: log {}, cut {cut}, next {next}", id.get())
        }
        Output::Post(home, RoomMessage::Barred { bar, .. }) => {
            format!("{home}: {:?} barred until {}", bar.user_id, bar.until_s)
        }
        Output::Post(..) => "another message".into(),
    }
}

#[test]
fn pushes_of_a_live_room_are_passed_on_once_and_in_order() {
    let mut part = Part::live(100);
    [6, 7, 6, 5, 8].into_iter().for_each(|offset| part.event(durable(7, offset)));
    assert_eq!(part.outputs(), ["3: 6", "3: 7", "3: 8"]);
    assert_eq!(part.rooms.counters().repeated, 2);
}

#[test]
fn a_push_that_is_missing_is_fetched_and_nothing_overtakes_it() {
    let mut part = Part::live(100);
    part.event(durable(7, 8));
    assert_eq!(part.outputs(), ["open 5"]);
    part.event(durable(7, 9));
    assert!(part.outputs().is_empty(), "the answer may hold it");
    part.open(opened(7, 0, 8, [6, 7, 8]), 20);
    assert_eq!(part.outputs(), ["3: 6", "3: 7", "3: 8", "open 8"], "9 was announced");
    part.open(opened(7, 0, 9, [9]), 20);
    assert_eq!(part.outputs(), ["3: 9"]);
    part.event(durable(7, 10));
    assert_eq!(part.outputs(), ["3: 10"]);
}

#[test]
fn an_answer_that_holds_less_than_the_log_is_followed_by_another_request() {
    let mut part = Part::live(1000);
    part.event(durable(7, 300));
    part.outputs();
    part.open(opened(7, 0, 300, 6..200), 20);
    assert_eq!(part.outputs().last().unwrap(), "open 199");
    part.open(opened(7, 0, 300, 200..=300), 20);
    assert_eq!(part.outputs().last().unwrap(), "3: 300");
}

#[test]
fn pushes_that_the_log_no_longer_holds_are_a_gap_that_the_shard_gets_first() {
    let mut part = Part::live(100);
    part.event(durable(7, 50));
    part.outputs();
    part.open(opened(7, 0, 50, [49, 50]), 20);
    assert_eq!(part.outputs(), ["3: log 7, cut 6, next 49", "3: 49", "3: 50"]);
    assert_eq!(part.rooms.counters().lost, 43);
}

#[test]
fn after_a_failover_that_lost_writes_the_shard_forgets_what_was_lost() {
    let mut part = Part::live(100);
    [6, 7, 8].into_iter().for_each(|offset| part.event(durable(7, offset)));
    part.outputs();
    // 7 and 8 were lost, another 7 was published.
    part.event(durable(9, 7));
    assert_eq!(part.outputs(), ["open 8"]);
    part.open(opened(9, 6, 7, []), 20);
    assert_eq!(part.outputs(), ["3: log 9, cut 7, next 7", "open 6"]);
    part.open(opened(9, 6, 7, [7]), 20);
    assert_eq!(part.outputs(), ["3: 7"]);
    assert_eq!(part.rooms.counters().new_logs, 1);
}

#[test]
fn after_a_failover_that_lost_nothing_the_log_continues_under_its_new_id() {
    let mut part = Part::live(100);
    part.rooms.on_down();
    part.rooms.on_up();
    assert_eq!(part.outputs(), ["subscribe"]);
    part.rooms.on_subscribed(&part.room.clone());
    assert_eq!(part.outputs(), ["open 5"]);
    part.open(opened(9, 6, 7, [6, 7]), 20);
    assert_eq!(part.outputs(), ["3: log 9, cut 6, next 6", "3: 6", "3: 7"]);
}

#[test]
fn each_confirmation_of_a_subscription_opens_the_room_again() {
    let mut part = Part::live(100);
    part.rooms.on_subscribed(&part.room.clone());
    assert_eq!(part.outputs(), ["open 5"]);
    let stale = part.rooms.next_number;
    part.rooms.on_subscribed(&part.room.clone());
    assert_eq!(part.outputs(), ["open 5"], "the answer may be from before the subscription");
    part.rooms.on_opened(&part.room.clone(), stale, opened(7, 0, 5, []), 20);
    part.event(durable(7, 6));
    assert!(part.outputs().is_empty());
    part.open(opened(7, 0, 6, [6]), 20);
    assert_eq!(part.outputs(), ["3: 6"]);
}

#[test]
fn a_request_that_fails_is_made_again_later() {
    let mut part = Part::live(100);
    part.event(durable(7, 7));
    part.outputs();
    part.rooms.on_open_failed(&part.room.clone(), part.rooms.next_number, 100);
    part.rooms.tick(100 + RETRY_MS - 1);
    assert!(part.outputs().is_empty());
    part.rooms.tick(100 + RETRY_MS);
    assert_eq!(part.outputs(), ["open 5"]);
    // The slot moves.
    part.rooms.on_unsubscribed(&part.room.clone(), 1_000);
    part.rooms.tick(1_000 + RETRY_MS);
    assert_eq!(part.outputs(), ["subscribe"]);
}

#[test]
fn a_subscription_without_an_outcome_is_made_again() {
    let mut part = Part::live(100);
    part.rooms.on_unsubscribed(&part.room.clone(), 1_000);
    part.rooms.tick(1_000 + RETRY_MS);
    assert_eq!(part.outputs(), ["subscribe"]);
    let lost_ms = 1_000 + RETRY_MS + CONFIRM_MS;
    part.rooms.tick(lost_ms - 1);
    assert!(part.outputs().is_empty() && part.rooms.failed.is_empty(), "it may still be confirmed");
    part.rooms.tick(lost_ms);
    part.rooms.tick(lost_ms + RETRY_MS);
    assert_eq!(part.outputs(), ["subscribe"]);
    part.rooms.on_subscribed(&part.room.clone());
    assert_eq!(part.outputs(), ["open 5"]);
    part.open(opened(7, 0, 6, [6]), lost_ms + 2 * RETRY_MS);
    assert_eq!((part.outputs(), part.rooms.behind()), (vec!["3: 6".to_owned()], 0));
}

#[test]
fn pushes_beyond_the_bound_are_fetched_when_there_is_room() {
    let mut part = Part::live(2);
    [6, 7, 8, 9].into_iter().for_each(|offset| part.event(durable(7, offset)));
    // The permits are dropped with the outputs.
    assert_eq!(part.outputs(), ["3: 6", "3: 7"]);
    part.rooms.tick(20 + RETRY_MS);
    assert_eq!(part.outputs(), ["open 7"]);
    part.open(opened(7, 0, 9, [8, 9]), 20);
    assert_eq!(part.outputs(), ["3: 8", "3: 9"]);
}

#[test]
fn a_shard_that_waits_too_long_opens_the_room_alone_and_gets_the_shared_log_later() {
    let mut part = Part::new(ROOM, 100);
    assert!(part.rooms.must_wait(&part.room));
    part.rooms.tick(PATIENCE_MS - 1);
    assert!(part.outputs().is_empty());
    part.rooms.tick(PATIENCE_MS);
    assert_eq!(part.outputs(), ["3: fetched own from 1:"]);
    assert!(!part.rooms.must_wait(&part.room));
    part.rooms.on_up();
    part.rooms.on_subscribed(&part.room.clone());
    part.outputs();
    part.open(opened(7, 0, 5, [5]), 9_000);
    assert_eq!(part.outputs(), ["3: fetched 7 from 5: 5"]);
}

#[test]
fn no_join_waits_for_everybodys_room() {
    let mut part = Part::new("*", 100);
    assert!(!part.rooms.must_wait(&part.room));
    part.rooms.tick(10 * PATIENCE_MS);
    assert!(part.outputs().is_empty());
    part.rooms.on_up();
    part.rooms.on_subscribed(&part.room.clone());
    assert_eq!(part.outputs(), ["subscribe", "open -"]);
    part.open(opened(7, 0, 0, []), 20);
    assert_eq!(part.outputs(), ["3: fetched 7 from 1:"]);
}

#[test]
fn users_barred_in_between_are_known_when_the_room_is_opened_again() {
    let mut part = Part::live(100);
    let bar = |user_id, until_s| Bar { user_id: Some(user_id), until_s };
    let event = |bar, by: &str| RoomEvent::Barred { bar, by: by.into() };
    part.event(event(bar(7, 1_000), "elsewhere"));
    part.event(event(bar(8, 1_001), "here"));
    assert_eq!(part.outputs(), ["3: Some(7) barred until 1000"]);
    part.rooms.on_subscribed(&part.room.clone());
    part.outputs();
    let barred = vec![bar(7, 1_000), bar(9, 1_002)];
    part.open(Opened { barred, ..opened(7, 0, 5, []) }, 20);
    assert_eq!(part.outputs(), ["3: Some(9) barred until 1002"]);
}

#[test]
fn entries_that_an_operator_has_deleted_are_a_gap() {
    let mut part = Part::live(100);
    part.event(durable(7, 9));
    part.outputs();
    part.open(opened(7, 0, 9, [6, 9]), 20);
    assert_eq!(part.outputs(), ["3: 6", "3: log 7, cut 7, next 9", "3: 9"]);
    assert_eq!(part.rooms.counters().lost, 2);
}

#[test]
fn a_fleeting_push_has_no_place_in_a_durable_room() {
    let mut part = Part::live(100);
    part.event(RoomEvent::Fleeting(push(0)));
    part.event(durable(7, 6));
    assert_eq!(part.outputs(), ["3: 6"]);
}

#[test]
fn a_fleeting_room_has_a_local_log_and_drops_pushes_beyond_the_bound() {
    let mut part = Part::new("fleeting", 1);
    part.rooms.on_up();
    part.rooms.on_subscribed(&part.room.clone());
    part.outputs();
    part.open(opened(7, 0, 0, []), 20);
    assert_eq!(part.outputs(), ["3: fetched own from 1:"]);
    part.event(RoomEvent::Fleeting(push(0)));
    part.event(RoomEvent::Fleeting(push(0)));
    assert_eq!(part.outputs(), ["3: 0"]);
    assert_eq!(part.rooms.counters().dropped, 1);
}

#[test]
fn a_quiet_room_is_checked_now_and_then() {
    let mut part = Part::live(100);
    part.rooms.tick(CHECK_EVERY_MS);
    assert!(part.outputs().is_empty());
    part.rooms.tick(10 + CHECK_EVERY_MS);
    assert_eq!(part.outputs(), ["open 5"]);
}

#[test]
fn many_rooms_return_a_few_at_a_time() {
    let limiter = Arc::new(CommandLimiter::new(1, 1));
    let mut rooms = Rooms::new(limiter, "here".into());
    let ids: Vec<_> = (0..1000).map(|n| RoomId::new(format!("room {n}")).unwrap()).collect();
    rooms.on_up();
    for _ in 0..2 {
        ids.iter().for_each(|room| rooms.follow(room, 0, false, 0));
        let mut under_way: VecDeque<_> = VecDeque::new();
        let (mut done, mut most) = (0, 0);
        loop {
            while let Some(output) = rooms.next_output() {
                under_way.extend(Some(output).filter(|o| !matches!(o, Output::Post(..))));
            }
            under_way.retain(|output| !matches!(output, Output::Unsubscribe(_)));
            most = most.max(under_way.len());
            match under_way.pop_front() {
                Some(Output::Subscribe(room)) => rooms.on_subscribed(&room),
                Some(Output::Open(open)) => {
                    rooms.on_opened(&open.room, open.number, opened(7, 0, 0, []), 0);
                    done += 1;
                }
                _ => break,
            }
        }
        assert_eq!((done, rooms.behind(), rooms.under_way), (1000, 0, 0));
        assert!(most <= UNDER_WAY_MAX, "{most}");
    }
    ids.iter().for_each(|room| rooms.unfollow(room));
    assert!(rooms.is_empty() && rooms.under_way == 0);
}
