//! Reload: what changes while the gateway runs, what is refused, and who notices.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustix::process::Signal;
use serde_json::{Value, json};
use tidegate_protocol::proto::v1::Position;
use tidegate_tests::phone::demo;
use tidegate_tests::web::Web;
use tidegate_tests::{Code, Gateway, Setup, http, until};

/// The file that the gateways of these tests are started with.
const FILE: &str = "tidegate.toml";

const RELOADS: &str = "tidegate_reloads_total";

/// The secrets of tokens, and the file with the one in use.
const SECRETS: [&str; 2] =
    ["the first secret of these tests, 32+", "the second secret of these tests, 32"];
const SECRET_FILE: &str = "secret";

fn rewrite(gateway: &Gateway, text: &str) {
    replace(&gateway.folder().join(FILE), text);
}

/// Replaces a file as careful writers do: by a rename.
fn replace(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(draft, path).unwrap();
}

/// Runs `tide reload`. What it says, or the error.
fn tide_reload(gateway: &Gateway) -> Result<String, String> {
    let operators = gateway.operators().to_string();
    let (status, said, log) = gateway.tide(&["reload", "--admin", &operators], "");
    if status.success() { Ok(said) } else { Err(log) }
}

/// Reloads, and returns the answer: it must have been applied by all shards.
fn reload(gateway: &Gateway) -> Value {
    let answer = gateway.operator().post_json("/reload", b"", 200);
    assert_eq!(
        (&answer["result"], &answer["unconfirmed"]),
        (&json!("applied"), &json!([])),
        "{answer}"
    );
    answer
}

fn info(gateway: &Gateway) -> Value {
    gateway.operator().json("/stats")["gateway"]["reload"].clone()
}

fn token(secret: &str, user_id: u64) -> String {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
    let claims = json!({ "sub": user_id.to_string(), "exp": exp });
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

fn login_code(gateway: &Gateway, token: &str, user_id: u64) -> Option<Code> {
    gateway.connect().try_login(user_id, token).err().and_then(|failure| failure.code)
}

const ROUTES: &str = "[[routes]]\ntypes = [1, 99]\nbackend = \"demo\"\n";

#[test]
fn a_hundred_reloads_under_load_cost_no_connection_and_no_request() {
    let base = format!("shards = 2\n[auth]\nkey_file = \"{SECRET_FILE}\"\n");
    let texts = [
        format!(
            "{base}{ROUTES}timeout_ms = 4000\n[[room_policies]]\nprefix = \"a\"\nmerge_window_ms = 20\n"
        ),
        format!(
            "{base}[limits]\nframes_per_second_max = 100000\nframes_burst_max = 100000\ncalls_per_connection_max = 8\n\
             accepts_per_second_max = 10000\n[addresses]\nconnections_max = 1000\n[session]\nage_max_ms = 3600000\n\
             {ROUTES}in_flight_max = 50000\n"
        ),
    ];
    let setup = Setup::jwt().toml(&texts[0]);
    replace(&setup.folder().join(SECRET_FILE), SECRETS[0]);
    let gateway = setup.start();
    let phones: Vec<_> = (1..=8)
        .map(|user_id| {
            let mut phone = gateway.connect();
            phone.login_with(user_id, &token(SECRETS[0], user_id));
            phone.join(if user_id % 2 == 0 { "a/room" } else { "b/room" }, 0);
            phone
        })
        .collect();
    let is_over = AtomicBool::new(false);
    let asked = thread::scope(|scope| {
        let load: Vec<_> = phones
            .into_iter()
            .map(|mut phone| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut asked = 0_u64;
                    while !is_over.load(Ordering::Relaxed) {
                        let text = asked.to_be_bytes();
                        assert_eq!(phone.ask(demo::ECHO, &text).unwrap(), &text[..]);
                        if asked.is_multiple_of(16) {
                            phone.say("a/room", "hello");
                        }
                        asked += 1;
                    }
                    phone.assert_is_served();
                    asked
                })
            })
            .collect();
        for round in 1..=100 {
            let which = round % 2;
            replace(&gateway.folder().join(SECRET_FILE), SECRETS[which]);
            rewrite(&gateway, &texts[which]);
            let answer = reload(&gateway);
            assert_eq!(answer["generation"], round);
            let (new, old) = (SECRETS[which], SECRETS[1 - which]);
            assert_eq!(login_code(&gateway, &token(old, 99), 99), Some(Code::Unauthenticated));
            assert_eq!(login_code(&gateway, &token(new, 99), 99), None);
        }
        is_over.store(true, Ordering::Relaxed);
        load.into_iter().map(|load| load.join().unwrap()).sum::<u64>()
    });
    assert!(asked >= 8, "{asked}");
    let operator = gateway.operator();
    assert_eq!(operator.metric(RELOADS, "\"applied\""), Some(100.0));
    assert_eq!(operator.metric("tidegate_config_generation", ""), Some(100.0));
    assert_eq!(info(&gateway)["generation"], 100);
}

#[test]
fn what_is_wrong_changes_nothing_and_is_said() {
    let secret = Path::new(SECRET_FILE);
    let good = format!("[auth]\nkey_file = \"{SECRET_FILE}\"\n{ROUTES}");
    let setup = Setup::jwt().toml(&good);
    replace(&setup.folder().join(secret), SECRETS[0]);
    let gateway = setup.start();
    let operator = gateway.operator();
    let before = operator.json("/stats")["gateway"]["config"].clone();
    let cases = [
        ("limits = [", "not valid TOML"),
        ("[limits]\ncommands_max = 0\n", "limits.commands_max = 0"),
        ("[limits]\ncomands_max = 9\n", "did you mean \"limits.commands_max\""),
        ("[[routes]]\ntypes = [1, 9]\nbackend = \"nobody\"\n", "nobody"),
        ("[auth]\nkey_file = \"gone\"\n", "gone"),
        ("[rooms]\nticket_key_file = \"gone\"\n", "rooms.ticket_key_file"),
        ("[log]\nfilter = \"loud\"\n", "log.filter"),
        ("shards = 7\n[limits]\ncommands_max = 9\n", "shards: 0 -> 7"),
        ("[backends.demo]\nworkers = 7\n", "backends.demo.workers: 0 -> 7"),
        ("[listeners.more]\nlisten = \"127.0.0.1:0\"\nwire = \"tcp\"\n", "listeners.more.wire"),
        ("[redis]\nurl = \"redis://user:hush@127.0.0.1/\"\n", "redis.url"),
    ];
    for (refusals, (text, why)) in (1_u32..).zip(cases) {
        let text = if text.contains("[auth]") || text.contains("[[routes]]") {
            text.to_owned()
        } else {
            format!("{text}\n{good}")
        };
        rewrite(&gateway, &text);
        let error = tide_reload(&gateway).unwrap_err();
        assert!(error.contains(why) && !error.contains("hush"), "{why}: {error}");
        let info = info(&gateway);
        assert_eq!((&info["generation"], &info["last"]["result"]), (&json!(0), &json!("refused")));
        assert!(info["last"]["error"].as_str().unwrap().contains(why), "{info}");
        assert_eq!(operator.metric(RELOADS, "\"refused\""), Some(f64::from(refusals)));
        assert_eq!(operator.json("/stats")["gateway"]["config"], before);
        assert_eq!(login_code(&gateway, &token(SECRETS[0], 7), 7), None);
    }
    assert!(!gateway.folder().join("gone").exists(), "a reload makes no key");
    gateway.process.stderr.wait_for("refused");
    rewrite(&gateway, &good);
    assert!(tide_reload(&gateway).unwrap().contains("nothing has changed"));
    assert_eq!(info(&gateway)["last"]["result"], "unchanged");
    assert_eq!(info(&gateway)["last"]["error"], Value::Null);
}

#[test]
fn the_key_of_tokens_may_become_one_of_another_kind_and_sessions_stay() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/testdata");
    let hs256 = format!("[auth]\nkey_file = \"{SECRET_FILE}\"\n");
    let public = testdata.join("eddsa.public.pem");
    let eddsa =
        format!("[auth]\nalgorithm = \"EdDSA\"\nkey_file = {:?}\n", public.display().to_string());
    let setup = Setup::jwt().shards(2).toml(&hs256);
    replace(&setup.folder().join(SECRET_FILE), SECRETS[0]);
    let gateway = setup.start();
    let old = token(SECRETS[0], 7);
    let new = {
        let pem = fs::read(testdata.join("eddsa.private.pem")).unwrap();
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
        let key = EncodingKey::from_ed_pem(&pem).unwrap();
        jsonwebtoken::encode(
            &Header::new(Algorithm::EdDSA),
            &json!({ "sub": "7", "exp": exp }),
            &key,
        )
        .unwrap()
    };
    let mut phone = gateway.connect();
    phone.login_with(8, &token(SECRETS[0], 8));
    for _ in 0..3 {
        rewrite(&gateway, &eddsa);
        reload(&gateway);
        assert_eq!(login_code(&gateway, &old, 7), Some(Code::Unauthenticated));
        // The second one is remembered, as long as its key is in use.
        assert_eq!(login_code(&gateway, &new, 7), None);
        assert_eq!(login_code(&gateway, &new, 7), None);
        rewrite(&gateway, &hs256);
        reload(&gateway);
        assert_eq!(login_code(&gateway, &new, 7), Some(Code::Unauthenticated));
        assert_eq!(login_code(&gateway, &old, 7), None);
    }
    phone.assert_is_served();
    // A set of keys, and back.
    let jwks = "[auth]\njwks_file = \"keys.json\"\n";
    fs::write(gateway.folder().join("keys.json"), "{\"keys\": []}").unwrap();
    rewrite(&gateway, jwks);
    assert!(tide_reload(&gateway).unwrap_err().contains("auth.jwks_file"));
    assert_eq!(login_code(&gateway, &old, 7), None);
}

#[test]
fn rooms_that_are_open_get_their_new_policy() {
    let policy =
        |count| format!("[[room_policies]]\nprefix = \"lobby\"\nreplay_on_join = {count}\n");
    let gateway = Setup::demo().toml(&policy(0)).start();
    let mut first = gateway.login(1);
    first.join("lobby", 0);
    for text in ["one", "two", "three"] {
        first.say("lobby", text);
        first.push();
    }
    let mut second = gateway.login(2);
    second.join("lobby", 0);
    assert!(second.leftovers().is_empty());
    rewrite(&gateway, &policy(2));
    reload(&gateway);
    let mut third = gateway.login(3);
    third.join("lobby", 0);
    assert_eq!(third.pushes(2).len(), 2);
    assert!(third.leftovers().is_empty());
    let config = gateway.operator().json("/stats")["gateway"]["config"].clone();
    assert_eq!(config["room_policies"][0]["replay_on_join"], 2);
}

#[test]
fn routes_and_limits_hold_from_the_next_request_on() {
    let gateway = Setup::demo().shards(2).toml("").start();
    let mut phone = gateway.login(7);
    phone.assert_is_served();
    rewrite(&gateway, "[[routes]]\ntypes = [2, 99]\nbackend = \"demo\"\n");
    reload(&gateway);
    assert_eq!(phone.ask(demo::ECHO, b"x").unwrap_err().code, Some(Code::NoRoute));
    rewrite(&gateway, "[limits]\nframes_per_second_max = 1\nframes_burst_max = 2\n");
    reload(&gateway);
    let refused = (0..1_000).find_map(|_| phone.ask(demo::ECHO, b"x").err());
    assert_eq!(refused.unwrap().code, Some(Code::RateLimited));
    rewrite(&gateway, "[limits]\nframe_bytes_max = 4096\n");
    reload(&gateway);
    phone.assert_is_served();
    phone.send(demo::ECHO, &[0; 5_000]);
    phone.goodbye(Code::Malformed);
    rewrite(&gateway, "[addresses]\nconnections_max = 1\nexempt = []\n");
    reload(&gateway);
    let mut first = gateway.login(7);
    gateway.connect().goodbye(Code::Draining);
    rewrite(&gateway, "");
    reload(&gateway);
    gateway.login(8).assert_is_served();
    first.assert_is_served();
}

#[test]
fn tickets_of_the_old_key_let_nobody_in() {
    let gateway = Setup::demo().toml("").start();
    let mut phone = gateway.login(7);
    phone.join("lobby", 0);
    let room = phone.joined();
    let position =
        || Position { room: room.name.clone(), ticket: room.ticket.clone(), ..Position::default() };
    let comes_back = |gateway: &Gateway| {
        let mut phone = gateway.connect();
        let session = phone.login_again(7, &[position()]);
        session.rooms.iter().any(|joined| joined.name == room.name && joined.number > 0)
    };
    assert!(comes_back(&gateway));
    replace(&gateway.folder().join(".tidegate/ticket.key"), &"0123456789abcdef".repeat(4));
    let answer = reload(&gateway);
    assert!(answer["changes"].to_string().contains("rooms.ticket_key_file"), "{answer}");
    assert!(!comes_back(&gateway));
}

#[test]
fn sighup_does_the_same_and_the_log_gets_its_new_filter() {
    let gateway = Setup::demo().toml("[log]\nfilter = \"info\"\n").start();
    gateway.login(7).assert_is_served();
    assert!(!gateway.process.stderr.so_far().contains("DEBUG"));
    rewrite(&gateway, "[log]\nfilter = \"debug\"\n");
    gateway.process.signal(Signal::HUP);
    gateway.process.stderr.wait_for("log.filter: \\\"info\\\" -> \\\"debug\\\"");
    gateway.login(7).assert_is_served();
    gateway.process.stderr.wait_for("DEBUG");
    until("/stats says it", || {
        let info = info(&gateway);
        (info["last"]["by"] == "SIGHUP" && info["last"]["result"] == "applied").then_some(())
    });
    rewrite(&gateway, "coalesce_us = 9\n");
    gateway.process.signal(Signal::HUP);
    gateway.process.stderr.wait_for("change only with a restart");
}

#[test]
fn a_changed_file_is_loaded_where_that_is_chosen() {
    let gateway = Setup::demo().toml("reload_on_change = true\n").start();
    rewrite(&gateway, "reload_on_change = true\n[limits]\ncommands_max = 77\n");
    until("the file is loaded", || {
        let stats = gateway.operator().json("/stats");
        (stats["gateway"]["config"]["limits"]["commands_max"] == 77).then_some(())
    });
    assert_eq!(info(&gateway)["last"]["by"], "file");
}

#[test]
fn half_a_file_is_not_loaded_and_does_not_end_the_watch() {
    let gateway = Setup::demo().toml("reload_on_change = true\n").start();
    // A writer that truncates has come so far, and takes its time.
    let path = gateway.folder().join(FILE);
    fs::write(&path, "").unwrap();
    fs::write(&path, "[limits]\ncommands_max = 7\n").unwrap();
    gateway.process.stderr.wait_for("no longer has reload_on_change = true");
    fs::write(&path, "reload_on_change = true\n[limits]\ncommands_max = 77\n").unwrap();
    until("the whole file is loaded", || {
        let stats = gateway.operator().json("/stats");
        (stats["gateway"]["config"]["limits"]["commands_max"] == 77).then_some(())
    });
    assert_eq!(info(&gateway)["generation"], 1);
    // An operator's reload ends it.
    fs::write(&path, "[limits]\ncommands_max = 7\n").unwrap();
    assert_eq!(reload(&gateway)["generation"], 2);
    assert_eq!(gateway.operator().json("/stats")["gateway"]["config"]["reload_on_change"], false);
}

#[test]
fn a_refused_file_is_loaded_once_its_key_is_there() {
    let text = format!("reload_on_change = true\n[auth]\nkey_file = \"{SECRET_FILE}\"\n");
    let setup = Setup::jwt().toml(&text);
    replace(&setup.folder().join(SECRET_FILE), SECRETS[0]);
    let gateway = setup.start();
    rewrite(&gateway, &text.replace(SECRET_FILE, "later"));
    gateway.process.stderr.wait_for("refused");
    replace(&gateway.folder().join("later"), SECRETS[1]);
    until("the key is used", || {
        login_code(&gateway, &token(SECRETS[1], 7), 7).is_none().then_some(())
    });
    assert_eq!(info(&gateway)["last"]["by"], "file");
}

#[test]
fn the_http_gateway_uses_what_a_reload_brings() {
    let gateway = http::demo().shards(2).toml("").start();
    let web = Web::new(&gateway);
    assert_eq!(web.post("/echo", "{}").ok(), "{}");
    let long = format!("\"{}\"", "x".repeat(2_000));
    assert_eq!(web.post("/echo", &long).ok(), long);
    rewrite(&gateway, "[http]\nbody_bytes_max = 1000\n");
    reload(&gateway);
    assert_eq!(web.post("/echo", &long).status, 413);
    rewrite(&gateway, &format!("{ROUTES}calls_per_second_max = 1\n"));
    reload(&gateway);
    assert_eq!(web.post("/echo", &long).ok(), long);
    let refused = (0..1_000).map(|_| web.post("/echo", "{}")).find(|answer| answer.status != 200);
    assert_eq!(refused.unwrap().code(429), Code::RateLimited as u64);
    rewrite(&gateway, "[[routes]]\ntypes = [10, 99]\nbackend = \"demo\"\n");
    let error = tide_reload(&gateway).unwrap_err();
    assert!(error.contains("no [[routes]] has this type"), "{error}");
}

#[test]
fn a_route_to_workers_changes_under_its_calls() {
    let text = |timeout_ms| {
        format!("[backends.demo]\nplacement = \"worker\"\n{ROUTES}timeout_ms = {timeout_ms}\n")
    };
    let gateway = Setup::demo().shards(2).toml(&text(30_000)).start();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load: Vec<_> = (1..=4)
            .map(|user_id| {
                let (mut phone, is_over) = (gateway.login(user_id), &is_over);
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        assert_eq!(phone.ask(demo::ECHO, b"x").unwrap(), &b"x"[..]);
                    }
                })
            })
            .collect();
        for round in 1..=20 {
            rewrite(&gateway, &text(30_000 + round));
            assert_eq!(reload(&gateway)["generation"], round);
        }
        is_over.store(true, Ordering::Relaxed);
        load.into_iter().for_each(|load| load.join().unwrap());
    });
}

#[test]
fn a_gateway_that_drains_refuses_a_reload() {
    let gateway = Setup::quiz().set("shutdown.ready_grace_ms", 60_000).toml("").start();
    gateway.operator().post_json("/drain", b"", 200);
    let error = gateway.operator().post_json("/reload", b"", 409);
    assert!(error["error"].as_str().unwrap().contains("drains"), "{error}");
}
