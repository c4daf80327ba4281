//! Rooms of several gateways that share their logs by way of a real Redis.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;

use tidegate_protocol::client::Event;
use tidegate_protocol::proto::v1::{Position, Recovery, Room, notice::What};
use tidegate_tests::phone::{Notice, demo};
use tidegate_tests::port::Port;
use tidegate_tests::{
    Cluster, Deployment, Gateway, Phone, Push, Redis, RedisSetup, SentinelSet, Setup,
    on_each_deployment, until,
};

/// Gateways of one system: the same Redis, and the same key of tickets.
struct System {
    url: String,
    /// Keeps the key's file.
    folder: tempfile::TempDir,
}

impl System {
    fn new(url: String) -> Self {
        Self { url, folder: tempfile::tempdir().unwrap() }
    }

    fn setup(&self) -> Setup {
        let key: PathBuf = self.folder.path().join("ticket.key");
        Setup::demo()
            .shards(2)
            .set("redis.url", format!("\"{}\"", self.url))
            .set("rooms.ticket_key_file", format!("\"{}\"", key.display()))
    }

    fn start(&self) -> Gateway {
        let gateway = self.setup().start();
        wait_for_redis(&gateway, true);
        gateway
    }
}

/// Waits until a gateway has a connection to Redis, or none, and everybody's room is the shared one.
fn wait_for_redis(gateway: &Gateway, is_up: bool) {
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_redis_up", "", |up| (up == 1.0) == is_up);
    if is_up {
        operator.wait_for_metric("tidegate_shared_rooms_behind", "", |behind| behind == 0.0);
    }
}

fn join(phone: &mut Phone, room: &str) -> Room {
    phone.join(room, 0);
    phone.joined()
}

fn position(room: &Room, offset: u64) -> Position {
    let Room { name, log, ticket, .. } = room.clone();
    Position { room: name, log, offset, ticket }
}

/// Publishes as any program does that speaks Redis. Returns the offset.
fn publish(redis: &dyn Deployment, room: &str, text: &str) -> u64 {
    let key = format!("tg1:room:{{r{room}}}");
    let answer = redis.cli(&["FCALL", "tidegate_publish", "1", &key, "10", text]);
    let offset = answer.lines().nth(1).and_then(|offset| offset.parse().ok());
    offset.unwrap_or_else(|| panic!("{answer}"))
}

/// Channels of rooms with a subscriber.
fn shard_channels(redis: &dyn Deployment) -> usize {
    let channels = ["PUBSUB", "SHARDCHANNELS", "tg1:room:*"];
    redis.servers().iter().map(|server| server.cli(&channels).lines().count()).sum()
}

fn text(push: &Push) -> String {
    String::from_utf8(push.biz_data.to_vec()).unwrap()
}

fn texts(phone: &mut Phone, count: usize) -> Vec<String> {
    phone.pushes(count).iter().map(text).collect()
}

fn numbered(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

on_each_deployment!(
    a_push_to_a_room_reaches_the_members_of_all_gateways_in_one_order,
    the_answer_to_a_push_counts_the_members_of_all_gateways,
    a_first_member_counts_for_the_push_that_follows_its_join,
    any_program_that_speaks_redis_can_publish,
    a_client_that_resumes_at_another_gateway_gets_what_it_missed,
    a_room_that_everybody_has_left_is_followed_no_longer,
    keys_and_times_to_live_hold_over_gateways,
    a_user_expelled_at_one_gateway_is_kept_out_of_all,
);

fn a_push_to_a_room_reaches_the_members_of_all_gateways_in_one_order(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let gateways = [system.start(), system.start(), system.start()];
    let mut phones: Vec<_> = (1..).zip(&gateways).map(|(user, g)| g.login(user)).collect();
    let rooms: Vec<_> = phones.iter_mut().map(|phone| join(phone, "quiz")).collect();
    assert!(rooms.iter().all(|room| room.log == rooms[0].log && room.head == 0), "{rooms:?}");
    for (number, gateway) in (0..).zip(gateways.iter().cycle().take(30)) {
        let text: u32 = number;
        gateway.operator().push_room("quiz", 10, text.to_string().as_bytes());
    }
    let seen: Vec<_> = phones.iter_mut().map(|phone| phone.pushes(30)).collect();
    for (pushes, room) in seen.iter().zip(&rooms) {
        let offsets: Vec<_> = pushes.iter().map(|push| push.offset).collect();
        assert_eq!(offsets, (1..=30).collect::<Vec<u64>>());
        assert!(pushes.iter().all(|push| push.room == room.number));
        assert_eq!(pushes.iter().map(text).collect::<Vec<_>>(), numbered(0..30));
    }
    // Everybody's room is one too.
    gateways[1].operator().push_all(11, b"to all");
    assert!(phones.iter_mut().all(|phone| text(&phone.push()) == "to all"));
}

fn the_answer_to_a_push_counts_the_members_of_all_gateways(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let gateways = [system.start(), system.start()];
    assert_eq!(gateways[0].operator().push_room("quiz", 10, b"nobody"), 0);
    let mut phones = Vec::new();
    for (user, gateway) in (1..).zip(gateways.iter().cycle().take(5)) {
        let mut phone = gateway.login(user);
        join(&mut phone, "quiz");
        phones.push(phone);
    }
    until("all are counted", || {
        (gateways[0].operator().push_room("quiz", 10, b"hello") == 5).then_some(())
    });
    drop(phones);
    until("nobody is left", || {
        (gateways[1].operator().push_room("quiz", 10, b"hello") == 0).then_some(())
    });
}

fn a_first_member_counts_for_the_push_that_follows_its_join(redis: &mut dyn Deployment) {
    let gateway = System::new(redis.url()).start();
    for user in 1..=20 {
        let (mut phone, room) = (gateway.login(user), format!("room-{user}"));
        join(&mut phone, &room);
        assert_eq!(gateway.operator().push_room(&room, 10, b"hello"), 1);
        assert_eq!(text(&phone.push()), "hello");
    }
}

fn any_program_that_speaks_redis_can_publish(redis: &mut dyn Deployment) {
    let gateway = System::new(redis.url()).start();
    let mut phone = gateway.login(7);
    let room = join(&mut phone, "quiz");
    assert_eq!(publish(redis, "quiz", "from Redis"), 1);
    let push = phone.push();
    assert_eq!((push.room, push.offset, push.kind), (room.number, 1, 10));
    assert_eq!(text(&push), "from Redis");
    // A name that looks like a hash tag, and bytes that are no text.
    let odd = "}{a}: \u{fc}";
    let room = join(&mut phone, odd);
    publish(redis, odd, "odd");
    let push = phone.push();
    assert_eq!((push.room, text(&push)), (room.number, "odd".into()));
}

fn a_client_that_resumes_at_another_gateway_gets_what_it_missed(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let (mut first, second) = (system.start(), system.start());
    let mut phone = first.login(7);
    let everybody = phone.session().rooms[0].clone();
    let room = join(&mut phone, "quiz");
    publish(redis, "quiz", "seen");
    publish(redis, "*", "seen by all");
    phone.pushes(2);
    drop(phone);
    first.crash_and_restart();
    for number in 0..500 {
        publish(redis, "quiz", &number.to_string());
    }
    publish(redis, "*", "missed by all");
    let mut phone = second.connect();
    let session = phone.login_again(7, &[position(&everybody, 1), position(&room, 1)]);
    for room in &session.rooms {
        assert_eq!(room.recovery(), Recovery::Complete, "{room:?}");
    }
    assert_eq!(session.rooms[1].log, room.log);
    let pushes = phone.pushes(501);
    let quiz = session.rooms[1].number;
    let missed: Vec<_> = pushes.iter().filter(|push| push.room == quiz).map(text).collect();
    assert_eq!(missed, numbered(0..500));
    // A position that the log has never had is a gap, and so is one of another log.
    for (log, offset) in [(room.log, 9_999), (room.log + 1, 2)] {
        let mut phone = second.connect();
        let wrong = Position { log, ..position(&room, offset) };
        let session = phone.login_again(8, &[Position { ticket: wrong.ticket.clone(), ..wrong }]);
        assert_eq!(session.rooms[1].recovery(), Recovery::Refused, "the ticket is another user's");
        let session = phone_of(&second, 7, &[Position { log, ..position(&room, offset) }]).1;
        assert_eq!(session.rooms[1].recovery(), Recovery::Gap);
    }
}

fn phone_of(
    gateway: &Gateway,
    user: u64,
    positions: &[Position],
) -> (Phone, tidegate_protocol::proto::v1::Session) {
    let mut phone = gateway.connect();
    let session = phone.login_again(user, positions);
    (phone, session)
}

fn a_room_that_everybody_has_left_is_followed_no_longer(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let gateway = system.setup().set("rooms.idle_ttl_ms", 0).start();
    wait_for_redis(&gateway, true);
    let mut phone = gateway.login(7);
    join(&mut phone, "quiz");
    let channels = || shard_channels(redis);
    assert_eq!(channels(), 2);
    phone.leave("quiz");
    until("the room is closed", || (channels() == 1).then_some(()));
    // It comes back as it was.
    publish(redis, "quiz", "meanwhile");
    assert_eq!(phone.notice().what, What::Left("quiz".into()));
    let room = join(&mut phone, "quiz");
    assert_eq!(room.head, 1);
    publish(redis, "quiz", "again");
    assert_eq!(text(&phone.push()), "again");
}

/// Both at once, since most of the time they wait until the gateways notice it.
#[test]
fn redis_stopped_and_killed_loses_no_push_that_it_kept_on_each_deployment() {
    let setup = RedisSetup::default().append_only();
    std::thread::scope(|scope| {
        scope.spawn(|| no_push_is_lost(&mut Cluster::start_each(&setup)));
        no_push_is_lost(&mut setup.clone().start());
    });
}

fn no_push_is_lost(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let gateways = [system.start(), system.start()];
    let mut phones: Vec<_> = (1..).zip(&gateways).map(|(user, g)| g.login(user)).collect();
    phones.iter_mut().for_each(|phone| drop(join(phone, "quiz")));
    for number in 0..10 {
        publish(redis, "quiz", &number.to_string());
    }
    redis.pause();
    gateways.iter().for_each(|gateway| wait_for_redis(gateway, false));
    // Clients stay, and embedded routes go on.
    phones.iter_mut().for_each(|phone| drop(phone.ask(demo::ECHO, b"still here").unwrap()));
    // New clients come in, and into new rooms.
    let mut late = gateways[0].login(9);
    let alone = join(&mut late, "opened without Redis");
    let mut late_in_quiz = gateways[0].login(10);
    join(&mut late_in_quiz, "quiz");
    // A push waits.
    let waiting = {
        let operator = gateways[1].operator();
        std::thread::spawn(move || operator.post("/push/rooms/quiz?type=10", b"waited"))
    };
    gateways[1].operator().wait_for_metric("tidegate_shared_pushes_waiting", "", |n| n == 1.0);
    redis.resume();
    gateways.iter().for_each(|gateway| wait_for_redis(gateway, true));
    redis.kill();
    gateways.iter().for_each(|gateway| wait_for_redis(gateway, false));
    redis.restart();
    gateways.iter().for_each(|gateway| wait_for_redis(gateway, true));
    drop(waiting.join().unwrap());
    publish(redis, "quiz", "last");
    for phone in &mut phones {
        assert_eq!(
            texts(phone, 12),
            [numbered(0..10), vec!["waited".into(), "last".into()]].concat()
        );
    }
    // The room that was opened alone has become the shared one: its member was told.
    let mut told = Vec::new();
    while !told.contains(&"*".to_owned()) || !told.contains(&alone.name) {
        let room = late.joined();
        assert_eq!(room.recovery(), Recovery::Gap);
        assert_ne!(room.log, alone.log);
        told.push(room.name);
    }
}

/// What a client that keeps its place knows of a room: it comes back wherever a gateway is.
struct Follower {
    user: u64,
    phone: Phone,
    room: Room,
    offset: u64,
    /// The numbers that it has seen, and at which of them it was told of a gap.
    seen: Vec<u64>,
    gaps: Vec<usize>,
    reconnects: usize,
    /// Pushes that were read on this connection, and notices that were not.
    pushes: usize,
    notices: VecDeque<Notice>,
}

impl Follower {
    fn start(gateway: &Gateway, user: u64) -> Self {
        let mut phone = gateway.login(user);
        let room = join(&mut phone, "show");
        let offset = room.head;
        let (seen, gaps, notices) = Default::default();
        Self { user, phone, room, offset, seen, gaps, reconnects: 0, pushes: 0, notices }
    }

    fn update_room(&mut self, room: &Room) {
        if room.recovery() == Recovery::Gap {
            self.gaps.push(self.seen.len());
        }
        if room.log != self.room.log {
            self.offset = 0;
        }
        let ticket =
            if room.ticket.is_empty() { self.room.ticket.clone() } else { room.ticket.clone() };
        self.room = Room { ticket, ..room.clone() };
    }

    /// Reads until a push carries `last`, and comes back at a gateway of `gateways` whenever its own is gone.
    fn follow(&mut self, last: u64, gateways: &[std::net::SocketAddr]) {
        while self.seen.last() != Some(&last) {
            let Some(event) = self.phone.next() else {
                self.reconnect(gateways);
                continue;
            };
            self.pushes += usize::from(matches!(event, Event::Push { .. }));
            self.notices.extend(self.phone.take_notices());
            // Those that came before this event.
            while self.notices.front().is_some_and(|notice| notice.after_pushes < self.pushes) {
                let notice = self.notices.pop_front().unwrap();
                if let What::Joined(room) = notice.what
                    && room.name == "show"
                {
                    self.update_room(&room);
                }
            }
            if let Event::Push { room, offset, biz_data, .. } = event
                && room == self.room.number
            {
                self.offset = offset;
                let text = std::str::from_utf8(&biz_data).unwrap();
                self.seen.push(text.parse().unwrap());
            }
        }
    }

    fn reconnect(&mut self, gateways: &[std::net::SocketAddr]) {
        self.reconnects += 1;
        (self.pushes, self.notices) = Default::default();
        let mut next = usize::try_from(self.user).unwrap() + self.reconnects;
        let positions = [position(&self.room, self.offset)];
        let session = until("a gateway takes the client", || {
            next += 1;
            let address = gateways[next % gateways.len()];
            self.phone = Phone::try_connect(address)?;
            self.phone.try_login_again(self.user, &positions)
        });
        let room = session.rooms.iter().find(|room| room.name == "show").unwrap().clone();
        assert_ne!(room.recovery(), Recovery::Refused);
        self.update_room(&room);
    }

    /// Nothing came twice or out of order. What is missing was told: there is a gap verdict where it is missing.
    fn check(&self, survived: &HashMap<u64, bool>) {
        for (index, pair) in self.seen.windows(2).enumerate() {
            assert!(pair[0] < pair[1], "user {}: {pair:?} at {index}", self.user);
            let lost: Vec<_> = (pair[0] + 1..pair[1]).filter(|n| survived[n]).collect();
            let told = self.gaps.contains(&(index + 1));
            assert!(lost.is_empty(), "user {}: lost {lost:?}, told: {told}", self.user);
        }
    }
}

/// The pushes of a show. Redis keeps a room's last 1,000, and a gateway may come back to it when all of a show are published:
/// fewer than that follow the failover.
const SHOW: u64 = 2_700;

/// A gateway is killed and restarted, and the master of Redis is killed: see [`Follower::check`].
#[test]
fn a_show_continues_when_a_gateway_and_the_master_of_redis_are_killed() {
    let mut set = SentinelSet::start();
    let system = System::new(set.url());
    let mut gateways: Vec<_> = (0..3)
        .map(|_| {
            let gateway = system.setup().on_a_reserved_port().start();
            wait_for_redis(&gateway, true);
            gateway
        })
        .collect();
    let addresses: Vec<_> = gateways.iter().map(Gateway::clients).collect();
    let followers: Vec<_> = (0..30)
        .map(|user| {
            let mut follower =
                Follower::start(&gateways[usize::try_from(user % 3).unwrap()], user + 1);
            let addresses = addresses.clone();
            std::thread::spawn(move || {
                follower.follow(SHOW - 1, &addresses);
                follower
            })
        })
        .collect();
    // What Redis has acknowledged: each number is published until it is, so some may be lost, none twice.
    let mut master = until("there is a master", || set.master());
    for number in 0..SHOW {
        if number == 1_000 {
            gateways[1].crash_and_restart();
        }
        if number == 2_000 {
            set.servers[master].kill();
            master = set.wait_for_another_master(master);
        }
        let key = ["tg1:room:{rshow}"];
        let publish = [
            "FCALL",
            "tidegate_publish",
            "1",
            key[0],
            "10",
            &number.to_string(),
            &format!("n{number}"),
        ];
        until("the push is taken", || {
            let answer = set.servers[master].cli(&publish);
            answer.starts_with("ok").then_some(())
        });
    }
    let kept: HashMap<u64, bool> = (0..SHOW)
        .map(|number| {
            let once = format!("tg1:room:{{rshow}}:once:n{number}");
            (number, set.servers[master].cli(&["EXISTS", &once]) == "1")
        })
        .collect();
    let lost = kept.values().filter(|kept| !**kept).count();
    assert!(lost < 2_000, "the replicas had nothing");
    let mut reconnects = 0;
    for follower in followers {
        let follower = follower.join().unwrap();
        follower.check(&kept);
        reconnects += follower.reconnects;
        assert!(
            !follower.gaps.is_empty(),
            "a failover may have lost pushes, and nobody can say which"
        );
    }
    assert!(reconnects >= 10, "the clients of the killed gateway: {reconnects}");
}

#[test]
fn a_cluster_serves_rooms_of_all_its_nodes_and_a_slot_that_moves() {
    let cluster = Cluster::start();
    let system = System::new(cluster.url());
    let gateways = [system.start(), system.start()];
    let mut phones: Vec<_> = (1..).zip(&gateways).map(|(user, g)| g.login(user)).collect();
    let names: Vec<_> = (0..12).map(|n| format!("room-{n}")).collect();
    let mut numbers = Vec::new();
    for phone in &mut phones {
        let rooms: Vec<_> = names.iter().map(|name| join(phone, name)).collect();
        numbers.push(
            rooms.into_iter().map(|room| (room.number, room.name)).collect::<HashMap<_, _>>(),
        );
    }
    let owners: std::collections::HashSet<_> = names
        .iter()
        .map(|name| cluster.owner_of(cluster.slot_of(&format!("tg1:room:{{r{name}}}"))))
        .collect();
    assert_eq!(owners.len(), 3, "rooms on all nodes");
    for round in 0..40 {
        for name in &names {
            // Redirections are the gateway's and the client's business.
            let text = format!("{name} {round}");
            if round % 2 == 0 {
                publish(&cluster, name, &text);
            } else {
                assert_eq!(
                    gateways[0]
                        .operator()
                        .post(&format!("/push/rooms/{name}?type=10"), text.as_bytes())
                        .0,
                    200
                );
            }
        }
        if round == 20 {
            let slot = cluster.slot_of("tg1:room:{rroom-0}");
            let to = (cluster.owner_of(slot) + 1) % 3;
            cluster.move_slot(slot, to);
        }
    }
    for (phone, numbers) in phones.iter_mut().zip(&numbers) {
        let mut seen: HashMap<&str, Vec<String>> = HashMap::new();
        for push in phone.pushes(40 * names.len()) {
            seen.entry(&numbers[&push.room]).or_default().push(text(&push));
        }
        for name in &names {
            let wanted: Vec<_> = (0..40).map(|round| format!("{name} {round}")).collect();
            assert_eq!(seen[&**name], wanted);
        }
    }
}

fn keys_and_times_to_live_hold_over_gateways(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let gateways = [system.start(), system.start()];
    let mut phone = gateways[0].login(7);
    let room = join(&mut phone, "quiz");
    // The same key at another gateway, and by a program that speaks Redis: one push.
    for gateway in &gateways {
        let (status, _) = gateway.operator().post("/push/rooms/quiz?type=10&key=once", b"first");
        assert_eq!(status, 200);
    }
    let again = ["FCALL", "tidegate_publish", "1", "tg1:room:{rquiz}", "10", "first", "once"];
    assert_eq!(redis.cli(&again).lines().nth(1), Some("1"));
    // A push whose time is over is offered to nobody who comes later, and its place is a gap.
    until("the push is taken before its time is over", || {
        let dying = "/push/rooms/quiz?type=10&ttl_ms=100";
        let (status, answer) = gateways[1].operator().post(dying, b"dying");
        assert_eq!(status, 200, "{answer}");
        (!answer.contains("expired")).then_some(())
    });
    publish(redis, "quiz", "last");
    let seen: Vec<_> = phone.pushes(2).iter().map(text).collect();
    assert_eq!(seen[0], "first");
    until("its time is over", || {
        let (mut late, session) = phone_of(&gateways[1], 7, &[position(&room, 1)]);
        let again = &session.rooms[1];
        (again.recovery() == Recovery::Gap).then(|| assert_eq!(text(&late.push()), "last"))
    });
    let answer = gateways[0].operator().post("/push/rooms/nobody?type=10", b"hello");
    assert_eq!(answer, (200, r#"{"connections":0,"nobody":"no_members"}"#.into()));
}

fn a_user_expelled_at_one_gateway_is_kept_out_of_all(redis: &mut dyn Deployment) {
    let system = System::new(redis.url());
    let (first, mut second) = (system.start(), system.start());
    let mut phone = first.login(7);
    let room = join(&mut phone, "quiz");
    let mut other = second.login(8);
    join(&mut other, "quiz");
    assert_eq!(second.operator().post("/rooms/quiz/expel/7", b"").0, 200);
    assert_eq!(phone.notice().what, What::Left("quiz".into()));
    let refused = |gateway: &Gateway| {
        let session = phone_of(gateway, 7, &[position(&room, 0)]).1;
        session.rooms[1].recovery() == Recovery::Refused
    };
    assert!(refused(&first) && refused(&second));
    // A gateway that starts later knows it too.
    second.crash_and_restart();
    wait_for_redis(&second, true);
    assert!(refused(&second));
    // A backend lets it in again, with a ticket that holds.
    let room = until("a ticket of a later second", || {
        let mut phone = second.login(7);
        let room = join(&mut phone, "quiz");
        let session = phone_of(&first, 7, &[position(&room, 0)]).1;
        (session.rooms[1].recovery() != Recovery::Refused).then_some(room)
    });
    assert_eq!(room.name, "quiz");
}

/// With the access rules of the page.
fn with_access_rules() -> RedisSetup {
    let page = include_str!("../../backend/REDIS.md");
    let rules = page.lines().filter(|line| line.starts_with("user ") && line.contains(" on >"));
    rules.fold(RedisSetup::default(), RedisSetup::line)
}

#[test]
fn a_gateway_needs_no_more_than_the_access_rules_of_the_page() {
    the_access_rules_suffice(&with_access_rules().start());
}

#[test]
fn in_a_cluster_a_gateway_needs_no_more_than_the_access_rules_of_the_page() {
    the_access_rules_suffice(&Cluster::start_each(&with_access_rules()));
}

fn the_access_rules_suffice(redis: &dyn Deployment) {
    let system = System::new(redis.url().replace("://", "://gateway:secret@"));
    let gateways = [system.start(), system.start()];
    let mut phone = gateways[0].login(7);
    join(&mut phone, "quiz");
    assert_eq!(gateways[1].operator().push_room("quiz", 10, b"to the room"), 1);
    assert_eq!(text(&phone.push()), "to the room");
    until("the push finds the user", || {
        (gateways[1].operator().push_user(7, 10, b"to the user") == 1).then_some(())
    });
    assert_eq!(gateways[1].operator().post("/rooms/quiz/expel/7", b"").0, 200);
    while phone.notice().what != What::Left("quiz".into()) {}
    gateways[0].operator().wait_for_metric("tidegate_gateways_alive", "", |alive| alive == 2.0);
    for gateway in &gateways {
        let errors = gateway.operator().metric("tidegate_redis_errors_total", "");
        // The first gateway asks for the library's version before it loads the library, which is no call of this count.
        assert_eq!(errors, Some(0.0), "a command that the rules do not allow");
    }
}

#[test]
fn a_cluster_whose_connections_were_cut_is_subscribed_to_again() {
    let cluster = Cluster::start();
    let gateway = System::new(cluster.url()).start();
    let mut phone = gateway.login(7);
    let names: Vec<_> = (0..12).map(|n| format!("room-{n}")).collect();
    names.iter().for_each(|name| drop(join(&mut phone, name)));
    let operator = gateway.operator();
    let connects = || operator.metric("tidegate_redis_connects_total", "").unwrap();
    let before = connects();
    for node in &cluster.nodes {
        let _killed = node.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }
    until("the link is made again", || (connects() > before).then_some(()));
    wait_for_redis(&gateway, true);
    names.iter().for_each(|name| drop(publish(&cluster, name, name).to_string()));
    let mut seen = texts(&mut phone, names.len());
    seen.sort();
    let mut names = names;
    names.sort();
    assert_eq!(seen, names);
    assert_eq!(shard_channels(&cluster), 13, "each room's, and everybody's");
}

#[test]
fn the_first_client_of_a_gateway_learns_its_position_in_everybodys_shared_room() {
    let redis = Redis::single();
    let system = System::new(redis.url());
    let first = system.start();
    let expected = first.login(1).session().rooms[0].log;
    drop(first);
    // The gateway's address takes connections, and Redis answers only when the client has sent its login.
    redis.pause();
    let port = Port::reserve();
    let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
    let setup = system.setup().set("listen", address);
    let _gateway = setup.begin();
    let mut phone = until("the gateway listens", || Phone::try_connect(address));
    let sent = phone.send_login(2, "token-2");
    redis.resume();
    let session = phone.wait_for(|event| match event {
        Event::Authenticated { sequence, session } if *sequence == sent => Some(session.clone()),
        _ => None,
    });
    assert_eq!(session.rooms[0].log, expected);
}
