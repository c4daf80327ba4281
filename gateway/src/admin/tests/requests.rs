//! What operators ask for, and what is refused.

use std::convert::Infallible;
use std::time::Instant;

use tidegate_backend::demo::Demo;

use super::*;
use crate::auth::Verifier;
use crate::clock::WallClock;
use crate::parts::{Keys, Origin, Parts};
use crate::reload::Reloader;
use crate::router::Backend;
use crate::shard::command::CommandLimiter;
use crate::tickets::Tickets;
use crate::wire::certificates::tests::Files;

#[test]
fn all_other_paths_need_the_token() {
    let test = TestServer::new();
    let wrong = "0".repeat(64);
    let guarded = [
        ("GET", "/metrics"),
        ("GET", "/stats"),
        ("POST", "/drain"),
        ("GET", "/cluster"),
        ("GET", "/cluster/rebalance"),
        ("POST", "/cluster/rebalance?count=1"),
        ("DELETE", "/cluster/rebalance"),
        ("GET", "/users/7"),
        ("GET", "/rooms/x"),
        ("POST", "/users/7/kick"),
        ("POST", "/push/users/7?type=1"),
        ("POST", "/push/rooms/x?type=1"),
        ("POST", "/push/all?type=1"),
        ("POST", "/reload"),
    ];
    for (method, path) in guarded {
        let tokens = [
            (None, "no_token"),
            (Some(""), "no_token"),
            (Some("x"), "wrong_token"),
            (Some(&*wrong), "wrong_token"),
            (Some(&test.token[1..]), "wrong_token"),
        ];
        for (token, code) in tokens {
            let answer = test.ask_as(token, method, path, b"");
            assert_eq!(answer.code(), code, "{method} {path}");
            assert!(answer.error(401).contains("admin.token_file"), "{method} {path}");
            assert!(answer.head.contains("www-authenticate: bearer realm=\"tidegate\""));
        }
    }
    assert_eq!(test.fake.received(), []);
    // That a path does not exist is no secret.
    assert!(test.ask_as(None, "GET", "/nothing", b"").error(404).contains("/nothing"));
    let lower = format!(
        "GET /stats HTTP/1.1\r\nConnection: close\r\nHost: x\r\nauthorization: bearer {}\r\n\r\n",
        test.token
    );
    assert_eq!(test.raw(lower.as_bytes()).status, 200);
}

#[test]
fn pushes_and_kicks_reach_the_gateway() {
    let test = TestServer::new();
    let reached = json!({ "connections": 2 });
    let binary = [0, 255, 10, 13];
    assert_eq!(test.post("/push/users/18446744073709551615?type=9", &binary).json(), reached);
    assert_eq!(test.post("/push/rooms/lobby%2Feu%20%C3%A9?type=2147483647", b"x").json(), reached);
    assert_eq!(test.post("/push/all?type=1", b"").json(), reached);
    assert_eq!(test.post("/users/7/kick", b"").json(), reached);
    assert_eq!(test.post("/rooms/a%2Fb/expel/7", b"").json(), reached);
    let room = |id| Target::Room(RoomId::new(id).unwrap());
    let push = |target, kind, biz_data: Bytes| Command::Push(Push::new(target, kind, biz_data));
    let expected = [
        push(Target::User(u64::MAX), 9, Bytes::copy_from_slice(&binary)),
        push(room("lobby/eu \u{e9}"), i32::MAX, "x".into()),
        push(Target::Room(RoomId::everybody()), 1, Bytes::new()),
        Command::Kick { user_id: 7 },
        Command::Expel { user_id: 7, room: RoomId::new("a/b").unwrap() },
    ];
    assert_eq!(test.fake.received(), expected);
}

#[test]
fn a_key_and_a_time_to_live_reach_the_gateway() {
    let test = TestServer::new();
    let path = "/push/users/7?ttl_ms=1500&type=9&key=a%2Fb";
    assert_eq!(test.post(path, b"x").status, 200);
    let head = format!(
        "POST /push/all?type=9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Idempotency-Key: k 1\r\nContent-Length: 1\r\n\r\nx",
        test.token
    );
    assert_eq!(test.raw(head.as_bytes()).status, 200);
    let ttl = Duration::from_millis(1500);
    let expected = [Push::to_user(7, 9, "x").key("a/b").ttl(ttl), Push::to_all(9, "x").key("k 1")];
    assert_eq!(test.fake.received(), expected.map(Command::Push));
}

#[test]
fn several_pushes_of_one_request_end_each_for_itself() {
    let test = TestServer::new();
    let body = json!([
        { "room": "a", "type": 5, "text": "x" },
        { "user": 7, "type": 6, "base64": "AP8=", "key": "k", "ttl_ms": 9 },
    ]);
    let answer = test.post("/push", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answers = answer.json();
    assert_eq!(answers[0]["code"], "overloaded");
    assert!(answers[0]["error"].as_str().unwrap().contains("commands_max"));
    assert_eq!(answers[1], json!({ "connections": 0, "nobody": "no_connection" }));
    let second = Push::to_user(7, 6, vec![0, 255]).key("k").ttl(Duration::from_millis(9));
    let first = Push::to_room(&RoomId::new("a").unwrap(), 5, "x");
    assert_eq!(test.fake.received(), [first, second].map(Command::Push));
    assert_eq!(test.post("/push", b"[]").json(), json!([]));

    assert!(test.post("/push", b"[{}]").error(400).contains("push 0"));
    assert!(test.post("/push?type=5", b"[]").error(400).contains("\"type\""));
    assert!(test.get("/push").error(405).contains("GET"));
    let longest = [vec![b' '; 2 * BODY_BYTES_MAX - 2], b"[]".to_vec()].concat();
    assert_eq!(test.post("/push", &longest).json(), json!([]));
    let error = test.post("/push", &[&longest[..], b" "].concat()).error(413);
    assert!(error.contains("twice limits.frame_to_client_bytes_max (2000)"), "{error}");
    assert_eq!(test.fake.received().len(), 2);
}

#[test]
fn lookups_and_figures_are_answered() {
    let test = TestServer::new();
    let user = test.get("/users/7").json();
    assert_eq!(user["connections"][0], json!({ "session_id": "2a", "shard": 1 }));
    assert_eq!(test.get("/users/8").json(), json!({ "user_id": 8, "connections": [] }));
    assert_eq!(test.get("/rooms/lobby%2Feu").json()["members"], 3);
    assert_eq!(test.get("/rooms/*").json()["room"], "*");
    let stats = test.get("/stats").json();
    assert_eq!((&stats["ready"], &stats["totals"]["connections"]), (&json!(true), &json!(10)));
    assert_eq!(stats["shards"][1]["shard"], 1);
    let metrics = test.get("/metrics");
    assert!(metrics.head.contains("text/plain; version=0.0.4"));
    assert!(metrics.body.contains("tidegate_tests 4"));
}

#[test]
fn an_invalid_request_is_refused_with_how_to_fix_it() {
    let test = TestServer::new();
    assert!(test.get("/users/bob").error(400).contains("\"bob\" is no user id"));
    assert!(test.get("/rooms/nowhere").error(404).contains("there is no room \"nowhere\""));
    assert!(test.get("/nothing").error(404).contains("/nothing"));
    assert!(test.post("/stats", b"").error(405).contains("POST"));
    assert!(test.get(&format!("/rooms/{}", "r".repeat(129))).error(400).contains("at most 128"));
    assert!(test.get("/rooms/%FF").error(400).contains("UTF-8"));
    assert!(test.post("/push/rooms/*?type=1", b"").error(400).contains("/push/all"));
    assert!(test.post("/push/all", b"").error(400).contains("?type=N"));
    for kind in ["0", "-1", "x", "2147483648", ""] {
        let error = test.post(&format!("/push/all?type={kind}"), b"").error(400);
        assert!(error.contains(&format!("{kind:?}")), "{error}");
    }
    let error = test.post("/push/all?type=1", &[0; BODY_BYTES_MAX + 1]).error(413);
    assert!(error.contains("frame_to_client_bytes_max (1000)"), "{error}");
    assert_eq!(test.post("/push/all?type=1", &[0; BODY_BYTES_MAX]).status, 200);
    for path in [
        "/push/all?type=1&type=1",
        "/push/all?type=1&x",
        "/push/all?type=01",
        "/push/users/+7?type=1",
    ] {
        test.post(path, b"x").error(400);
    }
    for path in ["/stats?x", "/users/7?type=5", "/rooms/*?a=b", "/metrics?x=1", "/users/%37"] {
        test.get(path).error(400);
    }
    assert!(test.post("/users/7/kick", b"x").error(400).contains("no body"));
    assert_eq!(test.fake.received().len(), 1, "nothing else was done");
}

#[test]
fn methods_and_slashes_are_matched_exactly() {
    let test = TestServer::new();
    let token = test.token.clone();
    let ask = |method, path| test.ask_as(Some(&token), method, path, b"");
    for path in ["/healthz", "/readyz", "/", "/metrics", "/stats", "/users/7", "/rooms/*"] {
        let head = ask("HEAD", path);
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
    }
    for (method, path, allowed) in [
        ("HEAD", "/push/all?type=1", "post"),
        ("OPTIONS", "/push/all?type=1", "post"),
        ("OPTIONS", "/healthz", "get,head"),
        ("DELETE", "/users/7", "get,head"),
        ("PUT", "/users/7/kick", "post"),
    ] {
        let answer = ask(method, path);
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.head.contains(&format!("allow: {allowed}")), "{}", answer.head);
    }
    for path in
        ["/stats/", "/healthz/", "/users/", "/rooms/", "//stats", "/users/7/kick/", "/Stats"]
    {
        let error = ask("GET", path).error(404);
        assert!(error.contains(path), "{error}");
    }
    // Health takes what load balancers add.
    assert_eq!(ask("GET", "/healthz?probe=1").status, 200);
}

#[test]
fn a_temporary_refusal_names_when_to_retry() {
    let test = TestServer::with(Timeouts { answer: SHORT, ..UNLIMITED });
    let refuse = |refusal| *test.fake.refusal.lock().unwrap() = Some(refusal);
    refuse(PushError::Overloaded);
    let overloaded = test.post("/push/all?type=1", b"x");
    assert!(overloaded.error(503).contains("limits.commands_max"));
    assert!(overloaded.head.contains("retry-after: 1"));
    assert_eq!(test.post("/users/7/kick", b"").status, 503);
    refuse(PushError::TooLong { bytes: 9, bytes_max: 8 });
    assert!(test.post("/push/all?type=1", b"x").error(413).contains("9 bytes"));
    refuse(PushError::RoomsFull { rooms_max: 3 });
    let full = test.post("/push/rooms/x?type=1", b"x");
    assert!(full.error(503).contains("rooms.rooms_per_shard_max") && full.code() == "rooms_full");
    refuse(PushError::Stopping);
    assert!(test.post("/push/all?type=1", b"x").error(503).contains("stopping"));
    assert!(test.get("/rooms/gone").error(503).contains("stopping"));
    *test.fake.refusal.lock().unwrap() = None;
    *test.fake.stalled.lock().unwrap() = Some(Vec::new());
    assert!(test.post("/push/all?type=1", b"x").error(504).contains("unknown"));
}

/// What reloads a gateway whose shards do not run, with demo tokens and a key of tickets in a folder.
fn reloader(folder: &TempDir, files: &Files) -> Arc<Reloader> {
    let mut config = Config::from_toml("[auth]\nmode = \"demo\"\n").unwrap();
    config.tls = files.tls();
    config.rooms.ticket_key_file = folder.path().join("key");
    let key = load_or_create_secret(&config.rooms.ticket_key_file).unwrap();
    let keys = Keys {
        verifier: Verifier::new(&config.auth).unwrap(),
        tickets: Tickets::new(key.as_bytes(), config.rooms.ticket_ttl),
    };
    let origin = Origin {
        started: Instant::now(),
        wall_clock: WallClock::system(),
        first_offset: 1,
        session_key: 1,
        log_key: 1,
    };
    let backend = Backend::new("demo", Arc::new(Demo::default()), None);
    let parts = Parts::new(config, keys, origin, None, |_, _| Ok::<_, Infallible>(vec![backend]));
    let Ok(parts) = parts;
    parts.hub.set_readiness(Readiness::Ready);
    let limiter = Arc::new(CommandLimiter::new(1, 1));
    Arc::new(Reloader::new(parts, None, Some(Arc::new(files.load())), limiter))
}

#[test]
fn a_reload_whose_files_hang_holds_up_no_other_request() {
    let files = Files::new(false);
    let folder = tempfile::tempdir().unwrap();
    let about = about().with_reloader(reloader(&folder, &files));
    let test = TestServer::with_about(about.clone());
    let unchanged = test.post("/reload", b"").json();
    let timeouts = Timeouts { answer: SHORT, ..UNLIMITED };
    let test = TestServer::start(timeouts, about);
    assert_eq!(
        (&unchanged["result"], &unchanged["certificates"]),
        (&json!("unchanged"), &json!("unchanged"))
    );
    files.hang();
    let answer = test.post("/reload", b"");
    assert_eq!((answer.code(), answer.error(504).is_empty()), ("slow_files".to_owned(), false));
    for _ in 0..4 {
        let answer = test.post("/reload", b"");
        assert_eq!(
            (answer.code(), answer.error(409).is_empty()),
            ("reload_runs".to_owned(), false)
        );
        assert_eq!(test.get("/stats").status, 200);
    }
    files.go_on();
}

#[test]
fn an_operator_drains_the_gateway_and_hurries_the_drain() {
    let test = TestServer::new();
    for (query, said) in
        [("hurry=1", "true or false"), ("hurry=true&hurry=true", "repeated"), ("wait=1", "`hurry`")]
    {
        let answer = test.ask("POST", &format!("/drain?{query}"), b"");
        assert!(answer.error(400).contains(said), "{query}: {}", answer.body);
    }
    test.ask("POST", "/drain", b"x").error(400);
    test.ask_as(None, "POST", "/drain", b"").error(401);
    let seen = || [&test.fake.draining, &test.fake.hurried].map(|it| it.load(Ordering::Relaxed));
    assert_eq!(seen(), [false, false]);
    let answer = test.ask("POST", "/drain", b"").json();
    assert_eq!(answer, json!({"drained_already": false, "hurry": false}));
    assert_eq!(seen(), [true, false]);
    let answer = test.ask("POST", "/drain?hurry=true", b"").json();
    assert_eq!(answer, json!({"drained_already": true, "hurry": true}));
    assert_eq!(seen(), [true, true]);
}
