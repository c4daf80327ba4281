//! The operators' HTTP against a gateway that serves clients.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tidegate::shard::stats::{COUNTERS, OTHERS};
use tidegate_tests::phone::quiz;
use tidegate_tests::{Code, Operator, Setup, until};

/// The names of all metrics.
fn metrics() -> impl Iterator<Item = &'static str> {
    let labelled = OTHERS.iter().map(|(name, _, _)| *name);
    COUNTERS.iter().map(|(name, _)| *name).chain(labelled)
}

#[test]
fn without_the_token_only_health_and_the_page_are_served() {
    let gateway = Setup::demo().start();
    for (token, code) in [("wrong", "wrong_token"), ("", "no_token")] {
        let anonymous = Operator::new(gateway.operators(), token);
        assert_eq!(anonymous.get("/healthz"), (200, "ok\n".into()));
        assert_eq!(anonymous.get("/readyz"), (200, "ready\n".into()));
        let (status, page) = anonymous.get("/");
        assert!(status == 200 && page.contains("<html"), "{page}");
        let anonymous = &anonymous;
        // At once, since each of the answers is delayed.
        std::thread::scope(|scope| {
            for path in ["/metrics", "/stats", "/users/7", "/rooms/quiz"] {
                scope.spawn(move || {
                    let (status, body) = anonymous.get(path);
                    assert!(status == 401 && body.contains("admin.token_file"), "{path}: {body}");
                    assert!(body.contains(&format!("\"code\":\"{code}\"")), "{path}: {body}");
                });
            }
            for path in [
                "/push/all?type=5",
                "/push/users/7?type=5",
                "/push",
                "/users/7/kick",
                "/rooms/quiz/expel/7",
            ] {
                scope.spawn(move || assert_eq!(anonymous.post(path, b"x").0, 401, "{path}"));
            }
        });
    }
}

#[test]
fn refused_tokens_are_counted_and_logged() {
    let gateway = Setup::demo().start();
    for token in ["wrong", "", ""] {
        let anonymous = Operator::new(gateway.operators(), token);
        assert_eq!(anonymous.get("/stats").0, 401);
    }
    let operator = gateway.operator();
    for (reason, count) in [("wrong_token", 1.0), ("no_token", 2.0)] {
        let metric = "tidegate_operator_tokens_refused_total";
        operator.wait_for_metric(metric, reason, |refused| refused == count);
    }
    let text = "refused an operator's request";
    gateway.process.stderr.wait_for("wrong_token");
    let log = gateway.process.stderr.so_far();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
    // `tide` sends a request without a token before each command, so that is worth no line.
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("wrong_token") && lines[0].contains("127.0.0.1:"), "{log}");
}

#[test]
fn a_push_answers_with_the_number_of_connections_it_went_to() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=5).map(|user_id| gateway.login(user_id)).collect();
    phones[0].join("quiz", 0);
    phones[1].join("quiz", 0);
    // A connection without a session is not counted.
    let mut anonymous = gateway.connect();
    anonymous.heartbeat();
    assert_eq!(operator.push_user(1, 5, b"to one"), 1);
    assert_eq!(operator.push_user(99, 5, b"to none"), 0);
    assert_eq!(operator.push_room("quiz", 6, b"to a room"), 2);
    assert_eq!(operator.push_all(7, b"to all"), 5);
    let mut kinds = |index: usize, count| -> Vec<_> {
        phones[index].pushes(count).iter().map(|push| push.kind).collect()
    };
    assert_eq!(kinds(0, 3), [5, 6, 7]);
    assert_eq!(kinds(1, 2), [6, 7]);
    assert_eq!(kinds(2, 1), [7]);
    assert_eq!(anonymous.leftovers(), []);
}

#[test]
fn an_invalid_push_is_refused_with_the_reason() {
    let gateway = Setup::demo().start();
    let operator = gateway.operator();
    for (path, reason) in [
        ("/push/all", "type"),
        ("/push/all?type=0", "1 to 2147483647"),
        ("/push/all?type=x", "1 to 2147483647"),
        ("/push/all?type=+5", "plain digits"),
        ("/push/all?type=05", "plain digits"),
        ("/push/all?type=%35", "plain digits"),
        ("/push/all?type=5&type=6", "repeated"),
        ("/push/all?type=5&kind=6", "kind"),
        ("/push/users/seven?type=5", "user id"),
        ("/push/users/007?type=5", "plain digits"),
        ("/push/users/+7?type=5", "plain digits"),
        ("/push/users/%37?type=5", "plain digits"),
        ("/users/007/kick", "plain digits"),
        ("/users/7/kick", "no body"),
        ("/push/rooms/%zz?type=5", "hexadecimal"),
        ("/push/rooms/*?type=5", "everybody"),
    ] {
        let (status, body) = operator.post(path, b"x");
        assert!(status == 400 && body.contains(reason), "{path}: {status} {body}");
    }
    assert_eq!(operator.get("/users/007").0, 400);
    assert_eq!(operator.get("/nowhere").0, 404);
    assert_eq!(operator.get("/rooms/quiz").0, 404);
    assert_eq!(operator.get("/push/all?type=5").0, 405);
}

#[test]
fn stats_say_what_the_gateway_is() {
    let toml = "[limits]\nconnections_max = 300\n[session]\nheartbeat_interval_ms = 12345";
    let gateway = Setup::demo().shards(2).descriptors(900).toml(toml).start();
    let stats = gateway.operator().json("/stats");
    let about = &stats["gateway"];
    let readme = include_str!("../../README.md");
    for field in [&stats, about].into_iter().flat_map(|it| it.as_object().unwrap().keys()) {
        assert!(readme.contains(&format!("`{field}`")), "README.md does not name {field}");
    }
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["pid"].to_string(), gateway.process.pid().to_string());
    assert_eq!(about["state"], "ready");
    assert_eq!(about["listen"], gateway.clients().to_string());
    assert_eq!(about["admin_listen"], gateway.operators().to_string());
    assert_eq!(about["driver"], stats["shards"][0]["driver"]);
    assert_eq!(about["driver_refusal"].is_null(), about["driver"] == "uring" || is_told_epoll());
    let rings = |shard: &Value| shard["rings"].as_u64().unwrap();
    let shards = stats["shards"].as_array().unwrap();
    assert_eq!(stats["totals"]["rings"], shards.iter().map(rings).sum::<u64>());
    assert_eq!(about["descriptors_max"], 900);
    assert!(about["memory_bytes_max"].as_u64() > Some(0), "{about}");
    assert_eq!(
        (&about["connections_max"], &about["connections_max_basis"]),
        (&300.into(), &"configured".into())
    );
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let start_ms = about["start_time_unix_ms"].as_u64().unwrap();
    assert!(
        u128::from(start_ms + about["uptime_ms"].as_u64().unwrap()) <= now_ms + 1_000,
        "{about}"
    );
    let config = &about["config"];
    assert_eq!(config["shards"], 2);
    assert_eq!(config["auth"]["mode"], "demo");
    assert_eq!(config["session"]["heartbeat_interval_ms"], 12_345);
    assert_eq!(
        config["session"]["idle_timeout_ms"], 30_862,
        "the value that 0 leaves to the gateway"
    );
    assert_eq!(config["admin"]["token_file"], ".tidegate/admin.token");
    let token = fs::read_to_string(gateway.folder().join(".tidegate/admin.token")).unwrap();
    assert!(!stats.to_string().contains(token.trim()), "a secret");
}

/// Whether all gateways of this run are to use epoll.
fn is_told_epoll() -> bool {
    std::env::var("TIDEGATE_DRIVER").is_ok_and(|driver| driver == "epoll")
}

#[test]
fn stats_say_what_bounds_the_connections_where_nothing_is_configured() {
    let epoll = Setup::demo().shards(2).descriptors(500).set("driver", "epoll").start();
    let about = epoll.operator().json("/stats")["gateway"].clone();
    // 64 and 4 for each of 2 shards are no connections.
    assert_eq!(
        (&about["connections_max"], &about["connections_max_basis"]),
        (&428.into(), &"descriptors".into())
    );
    epoll.operator().wait_for_metric("tidegate_connections_max", "", |max| max == 428.0);
}

#[test]
fn users_rooms_and_stats_show_what_clients_did() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    let room = "a/b c%\u{e9}";
    phones.iter_mut().take(3).for_each(|phone| phone.join(room, 0));
    phones[0].say(room, "hello");
    let offset = phones[1].push().offset;

    let user = operator.json("/users/1");
    assert_eq!(user["user_id"], 1);
    let session_id = format!("{:016x}", phones[0].session().session_id);
    assert_eq!(user["connections"][0]["session_id"], session_id);
    assert_eq!(operator.json("/users/99")["connections"].as_array().unwrap().len(), 0);

    let found = operator.json("/rooms/a%2Fb%20c%25%C3%A9");
    assert_eq!((&found["room"], &found["members"]), (&room.into(), &3.into()));
    assert_eq!((&found["first_offset"], &found["last_offset"]), (&offset.into(), &offset.into()));
    assert_eq!(operator.json("/rooms/*")["members"], 4);

    let stats = operator.json("/stats");
    assert_eq!(stats["ready"], true);
    let totals = &stats["totals"];
    assert_eq!((&totals["connections"], &totals["sessions"]), (&4.into(), &4.into()));
    assert_eq!((&totals["users"], &totals["memberships"]), (&4.into(), &7.into()));
    assert_eq!((&totals["calls_in_flight"], &totals["outbox_bytes"]), (&0.into(), &0.into()));
    assert_eq!(stats["shards"].as_array().unwrap().len(), 2);
}

#[test]
fn a_draining_gateway_is_healthy_and_not_ready() {
    // A call without an answer delays the drain until its user is kicked.
    let mut gateway = Setup::quiz().shards(2).set("shutdown.drain_timeout_ms", 60_000).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    phone.send(quiz::WAIT, b"");
    operator.wait_for_metric("tidegate_calls_in_flight", "", |n| n == 1.0);
    gateway.terminate();
    let drained = until("the gateway drains", || {
        let (status, body) = operator.get("/readyz");
        (status == 503).then_some(body)
    });
    assert!(drained.contains("draining"), "{drained}");
    assert_eq!(operator.get("/healthz").0, 200);
    let stats = operator.json("/stats");
    assert_eq!((&stats["ready"], &stats["gateway"]["state"]), (&false.into(), &"draining".into()));
    // A shard with nothing left to do does not count as hanging, whether it has ended or waits for the other shard.
    let known = |list: &str| stats[list].as_array().unwrap().len();
    assert_eq!((known("shards") + known("ended_shards"), known("unresponsive_shards")), (2, 0));
    assert_eq!(operator.get("/healthz"), (200, "ok\n".into()));
    assert_eq!(operator.kick(7), 1);
    phone.goodbye(Code::Kicked);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn every_metric_is_exported_and_listed_in_the_readme() {
    let gateway = Setup::demo().start();
    gateway.login(7).assert_is_served();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_call_duration_seconds_count", "demo", |n| n == 1.0);
    let (_, text) = operator.get("/metrics");
    for name in metrics() {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help text");
        let histogram = format!("\n{name}_bucket{{");
        let series = [format!("\n{name} "), format!("\n{name}{{"), histogram];
        assert!(series.iter().any(|series| text.contains(series)), "{name} has no value");
    }
    let ours = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in ours {
        assert!(metrics().any(|known| known == name), "{name} is not in a table of metrics");
    }
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let plain = COUNTERS.iter().map(|&(name, help)| (name, "", help));
    for (name, labels, help) in plain.chain(OTHERS.iter().copied()) {
        let row = format!("| `{name}` | {labels} | {help} |");
        assert!(readme.contains(&row), "README.md lacks {row}");
    }
}

#[test]
fn metrics_count_what_happened() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    phone.say("quiz", "hello");
    phone.push();
    phone.heartbeat();
    (0..10).for_each(|_| phone.assert_is_served());
    operator.push_user(7, 5, b"x");
    phone.push();
    for (name, value) in [
        ("tidegate_connections_accepted_total", 1.0),
        ("tidegate_connections", 1.0),
        ("tidegate_sessions_opened_total", 1.0),
        ("tidegate_sessions", 1.0),
        ("tidegate_users", 1.0),
        ("tidegate_memberships", 2.0),
        ("tidegate_heartbeats_total", 1.0),
        ("tidegate_calls_total", 12.0),
        ("tidegate_answers_total", 12.0),
        ("tidegate_received_frames_total", 14.0),
        ("tidegate_room_pushes_total", 1.0),
        ("tidegate_user_pushes_total", 1.0),
        ("tidegate_room_pushes_delivered_total", 1.0),
        ("tidegate_user_pushes_delivered_total", 1.0),
        ("tidegate_calls_in_flight", 0.0),
        ("tidegate_outbox_bytes", 0.0),
    ] {
        operator.wait_for_metric(name, "", |now| now == value);
    }
    drop(phone);
    operator.wait_for_metric("tidegate_connections_closed_total", "\"peer\"", |n| n == 1.0);
    operator.wait_for_metric("tidegate_connections", "", |n| n == 0.0);
}

#[test]
fn a_push_beyond_rooms_max_gets_503() {
    let gateway = Setup::demo().set("rooms.rooms_per_shard_max", 1).start();
    let operator = gateway.operator();
    assert_eq!(operator.push_room("first", 5, b"x"), 0, "an empty room has no members");
    let (status, body) = operator.post("/push/rooms/second?type=5", b"x");
    assert!(status == 503 && body.contains("rooms.rooms_per_shard_max"), "{status} {body}");
    assert!(body.contains("\"code\":\"rooms_full\""), "{body}");
    let arguments = ["push", "room", "second", "--type", "5", "x", "--admin"];
    let address = gateway.operators().to_string();
    let (ended, said, complaint) = gateway.tide(&[&arguments[..], &[&address]].concat(), "");
    assert!(!ended.success() && said.is_empty(), "{said}");
    assert!(complaint.contains("rooms.rooms_per_shard_max"), "{complaint}");
    assert_eq!(operator.push_room("first", 5, b"x"), 0);
    assert_eq!(operator.push_all(5, b"x"), 0, "everybody's room always exists");
}
