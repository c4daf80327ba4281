//! The tool against the real gateway.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::port::Port;
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;
use tidegate_tests::{Code, Gateway, Setup, until};

/// Runs `tide`, which has to succeed. Returns its standard output.
fn tide(gateway: &Gateway, arguments: &[&str], input: &str) -> String {
    let (status, said, log) = gateway.tide(arguments, input);
    assert!(status.success(), "{arguments:?}\n{said}\n{log}");
    said
}

#[test]
fn a_client_logs_in_with_the_gateways_own_secret_and_runs_a_script() {
    let gateway = Setup::jwt().shards(1).start();
    let address = gateway.clients().to_string();
    let script =
        "echo hello\njoin quiz\nsay quiz hi there\nmsg 7 psst\nall everybody\nping\nleave quiz\n";
    // On one shard a push comes with the answer to the request that published it, or before.
    let said = tide(&gateway, &["client", "--user", "7", "--connect", &address], script);
    for line in ["ok echo: hello", "ok join quiz", "ok say quiz", "ok leave quiz"] {
        assert!(said.lines().any(|said| said == line), "{line} is not in:\n{said}");
    }
    assert!(said.contains("user 7: hi there"), "{said}");
    assert!(said.contains("psst") && said.contains("push * #"), "{said}");
    assert!(!said.contains("failed"), "{said}");
}

/// The example `quiz` is an embedder's program: it runs in a separate folder, where cargo finds no `tide`.
#[test]
fn the_announced_command_and_token_work_in_the_programs_own_folder() {
    let moved_key = Setup::jwt().set("auth.key_file", "my keys/jwt.key");
    for setup in [Setup::quiz(), Setup::jwt(), moved_key] {
        fs::create_dir_all(setup.folder().join("my keys")).unwrap();
        let gateway = setup.start();
        gateway.process.stdout.wait_for("Ctrl-C ends the gateway");
        let said = gateway.process.stdout.so_far();
        let line = |start: &str| said.lines().find_map(|line| line.strip_prefix(start)).unwrap();
        let folder = gateway.folder().display().to_string();
        assert_eq!(line("next, in another terminal in ").trim_end_matches(':'), folder);

        let command = line("  ");
        let (cargo, client) = command.split_once(" -- ").unwrap();
        let manifest = cargo.strip_prefix("cargo run --release --manifest-path ").unwrap();
        let manifest = manifest.strip_suffix(" -p tidegate-tools").unwrap();
        assert!(fs::read_to_string(manifest).unwrap().contains("\"tools\""), "{command}");
        // As a shell splits it.
        let words: Vec<_> = match client.split_once(" '") {
            Some((words, quoted)) => {
                words.split(' ').chain([quoted.trim_end_matches('\'')]).collect()
            }
            None => client.split(' ').collect(),
        };
        assert_eq!(tide(&gateway, &words, "ping\n").split(':').next(), Some("ok ping"));

        let token_file = line("the operators' token is in ");
        let admin = gateway.operators().to_string();
        let stats = ["stats", "--admin", &admin, "--token-file", token_file];
        assert_eq!(json(&tide(&gateway, &stats, ""))["gateway"]["state"], "ready");
    }
}

#[test]
fn a_script_whose_command_fails_fails() {
    let gateway = Setup::demo().start();
    let address = gateway.clients().to_string();
    let arguments = ["client", "--user", "7", "--demo-token", "--connect", &address];
    let (status, said, _) = gateway.tide(&arguments, "send 5000 x\necho still here\n");
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("105 NO_ROUTE") && said.contains("ok echo: still here"), "{said}");
    let (status, _, log) =
        gateway.tide(&["client", "--user", "7", "--token", "no", "--connect", &address], "");
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("100 UNAUTHENTICATED"), "{log}");
}

#[test]
fn the_error_for_a_wrong_kind_of_token_names_the_right_one() {
    let refused = |gateway: &Gateway, arguments: &[&str]| {
        let address = gateway.clients().to_string();
        let (status, said, log) = gateway.tide(&[arguments, &["--connect", &address]].concat(), "");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(log.contains("100 UNAUTHENTICATED"), "{log}");
        log
    };
    let jwt = Setup::jwt().start();
    let scenarios: [&[&str]; 4] = [
        &["bench", "request"],
        &["bench", "broadcast"],
        &["bench", "connect"],
        &["bench", "connect", "--cycle"],
    ];
    for scenario in scenarios {
        let log = refused(&jwt, scenario);
        assert!(log.contains("--auth demo") && log.contains("--token-template"), "{log}");
    }
    let log = refused(&jwt, &["client", "--user", "7", "--demo-token"]);
    assert!(log.contains("--auth demo") && log.contains("--key-file"), "{log}");
    let demo = Setup::demo().start();
    let log = refused(&demo, &["client", "--user", "7", "--key-file", ".tidegate/admin.token"]);
    assert!(log.contains("--demo-token"), "{log}");
}

#[test]
fn a_client_that_reconnects_resumes_its_rooms_and_misses_nothing() {
    let gateway = Setup::demo().start();
    let address = gateway.clients().to_string();
    let arguments = ["client", "--user", "7", "--demo-token", "--connect", &address];
    let script = "join quiz\nsay quiz one\nreconnect\nsay quiz two\nleave quiz\n";
    let said = tide(&gateway, &arguments, script);
    let lines: Vec<&str> = said.lines().collect();
    for line in ["joined quiz", "joined quiz, no push is missing", "left quiz"] {
        assert!(lines.contains(&line), "{line} is not in:\n{said}");
    }
    assert!(said.contains(" user 7: one") && said.contains(" user 7: two"), "{said}");
    assert!(!said.contains("gap"), "{said}");
    // The backend was asked for what was typed, and nothing else.
    gateway.operator().wait_for_metric("tidegate_calls_total", "", |n| n == 4.0);
}

#[test]
fn a_client_whose_gateway_crashes_reconnects_and_reports_the_gap() {
    let mut gateway = Setup::demo().on_a_reserved_port().start();
    let address = gateway.clients().to_string();
    let how = ["--demo-token", "--watch", "forever", "--connect", &address];
    let mut command = Command::new(&programs().tide);
    command.args(["client", "--user", "7"]).args(how).args(["--retries", "1000"]);
    let client = Process::start(&mut command, "join quiz\nsay quiz one\n");
    client.stdout.wait_for("ok say quiz");
    gateway.crash_and_restart();
    client.stderr.wait_for("connecting again in ");
    client.stdout.wait_for("gap in quiz: pushes are missing");
    assert_eq!(gateway.operator().push_room("quiz", 50, b"two"), 1);
    client.stdout.find("the push after the crash", |said| {
        let push = said.lines().find(|line| line.ends_with(" type 50: two"))?;
        assert!(push.starts_with("push quiz #"), "{push}");
        Some(())
    });
}

#[test]
fn a_client_resumes_at_the_next_gateway_of_its_list() {
    let (first, second) = (Setup::demo().start(), Setup::demo());
    let key = first.folder().join(".tidegate/ticket.key");
    let second = second.set("rooms.ticket_key_file", key.display()).start();
    let places = format!("{},{}", first.clients(), second.clients());
    let arguments = ["client", "--user", "7", "--demo-token", "--connect", &places];
    let said = tide(&first, &arguments, "join quiz\nreconnect\nsay quiz there\n");
    // It is a member there without a backend. The gateways do not share their logs.
    assert!(said.contains("gap in quiz: pushes are missing"), "{said}");
    assert!(said.contains(" user 7: there"), "{said}");
    second.operator().wait_for_metric("tidegate_calls_total", "", |n| n == 1.0);
}

#[test]
fn pushes_and_kicks_work_from_a_shell() {
    let gateway = Setup::demo().shards(2).start();
    let admin = gateway.operators().to_string();
    let mut phone = gateway.login(7);
    phone.join("a/b c", 0);
    let pushes: [&[&str]; 3] = [
        &["push", "user", "7", "--type", "50", "one"],
        &["push", "room", "a/b c", "--type", "50", "two"],
        &["push", "all", "--type", "50", "three"],
    ];
    for push in pushes {
        let said = tide(&gateway, &[push, &["--admin", &admin]].concat(), "");
        assert_eq!(said, "went to 1 connection\n");
        assert_eq!(phone.push().biz_data, push[push.len() - 1]);
    }
    let said =
        tide(&gateway, &["push", "user", "7", "--type", "9", "--stdin", "--admin", &admin], "in");
    assert_eq!(said, "went to 1 connection\n");
    assert_eq!(phone.push().biz_data, "in");
    let nobody: [(&[&str], &str); 2] = [
        (&["push", "user", "8", "--type", "50", "x"], "the user has no connection"),
        (&["push", "room", "empty", "--type", "50", "x"], "the room has no members"),
    ];
    for (push, reason) in nobody {
        let said = tide(&gateway, &[push, &["--admin", &admin]].concat(), "");
        assert_eq!(said, format!("went to 0 connections: {reason}\n"));
    }
    let push = ["push", "all", "--type", "50", "--key", "a/b", "--ttl", "1h", "once"];
    for _ in 0..2 {
        let said = tide(&gateway, &[&push[..], &["--admin", &admin]].concat(), "");
        assert_eq!(said, "went to 1 connection\n");
    }
    assert_eq!(phone.push().biz_data, "once");
    let stats: Value = json(&tide(&gateway, &["stats", "--admin", &admin], ""));
    assert_eq!(stats["totals"]["sessions"], 1);
    let user: Value = json(&tide(&gateway, &["user", "7", "--admin", &admin], ""));
    assert_eq!(user["user_id"], 7);
    let room: Value = json(&tide(&gateway, &["room", "a/b c", "--admin", &admin], ""));
    assert_eq!(room["members"], 1);
    let expel = ["expel", "a/b c", "7", "--admin", &admin];
    assert_eq!(tide(&gateway, &expel, ""), "ended 1 membership\n");
    assert_eq!(tide(&gateway, &expel, ""), "ended 0 memberships\n");
    assert_eq!(tide(&gateway, &["kick", "7", "--admin", &admin], ""), "closed 1 connection\n");
    phone.goodbye(Code::Kicked);
    let (status, _, log) = gateway.tide(&["room", "nowhere", "--admin", &admin], "");
    assert!(status.code() == Some(1) && log.contains("404"), "{log}");
}

#[test]
fn where_the_other_port_was_named_the_error_names_the_right_one() {
    let gateway = Setup::demo().start();
    let clients = gateway.clients().to_string();
    let operators = gateway.operators().to_string();
    let refused = |arguments: &[&str]| {
        let (status, said, log) = gateway.tide(arguments, "");
        assert_eq!(status.code(), Some(if arguments[0] == "doctor" { 2 } else { 1 }), "{said}");
        log
    };
    let of_operators: [&[&str]; 3] = [
        &["push", "room", "quiz", "--type", "1", "x"],
        &["stats"],
        &["doctor", "--connections", "10"],
    ];
    for arguments in of_operators {
        let log = refused(&[arguments, &["--admin", &clients]].concat());
        assert!(log.contains(&format!("{clients} is where a gateway's clients connect")), "{log}");
        assert!(log.contains(&format!("try --admin {operators}")), "{log}");
    }
    let of_clients: [&[&str]; 2] =
        [&["client", "--user", "7", "--demo-token"], &["bench", "connect", "--connections", "1"]];
    for arguments in of_clients {
        let log = refused(&[arguments, &["--connect", &operators]].concat());
        assert!(log.contains(&format!("{operators} is a gateway's operators' HTTP")), "{log}");
        assert!(log.contains(&format!("try --connect {clients}")), "{log}");
    }
}

#[test]
fn a_bench_of_requests_counts_correct_answers() {
    let report = bench(&["request", "--connections", "10", "--bytes", "100", "--depth", "4"]);
    assert!(report["messages"].as_u64() > Some(0), "{report}");
    assert_eq!(report["connections"], 10);
    assert!(report["latency_p50_ns"].as_u64() <= report["latency_max_ns"].as_u64(), "{report}");
    assert!(report["per_connection_min"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_bench_of_broadcasts_counts_deliveries() {
    let report = bench(&["broadcast", "--connections", "20", "--rate", "50"]);
    assert_eq!(report["connections"], 20);
    assert!(report["deliveries"].as_u64() >= Some(20), "{report}");
}

#[test]
fn a_bench_of_connections_holds_and_cycles_them() {
    let report = bench(&["connect", "--connections", "50"]);
    assert_eq!(report["connections"], 50, "{report}");
    let report = bench(&["connect", "--connections", "5", "--cycle"]);
    assert_eq!(report["connections"], 5, "{report}");
    assert!(report["cycles"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_bench_writes_a_page_and_a_report_that_can_be_compared() {
    let gateway = Setup::demo().start();
    let address = gateway.clients().to_string();
    let scenario = ["bench", "connect", "--connections", "20", "--duration", "1s"];
    let files = ["--html", "run.html", "--output", "run.json", "--connect", &address];
    let files = [&files[..], &["--label", "try 1"]].concat();
    let said = tide(&gateway, &[&scenario[..], &files].concat(), "");
    assert!(said.starts_with("20 connections, held\n"), "{said}");
    let page = fs::read_to_string(gateway.folder().join("run.html")).unwrap();
    for part in
        ["20 connections, held", &address, "connections opened per second", "Latency distribution"]
    {
        assert!(page.contains(part), "{part} is not in:\n{page}");
    }
    let report = json(&fs::read_to_string(gateway.folder().join("run.json")).unwrap());
    assert_eq!(report["connections"], 20, "{report}");
    // The gateway was found and asked.
    let run = &report["run"];
    assert_eq!((&run["label"], &run["gateway"]["shards"]), (&"try 1".into(), &"1".into()), "{run}");
    assert!(said.contains("\nlabel: try 1\ngateway: version "), "{said}");
    assert!(page.contains("Gateway: coalesce_us"), "{page}");
    assert_eq!(report["run"]["options"]["connect"], address);

    let said =
        tide(&gateway, &["bench", "compare", "run.json", "run.json", "--fail-above", "1"], "");
    assert!(!said.contains("differs") && !said.contains("worse"), "{said}");
    let second = [&scenario[..], &["--connect", &address, "--warmup", "0", "--json"]].concat();
    let printed = tide(&gateway, &second, "");
    fs::write(gateway.folder().join("second.json"), printed).unwrap();
    let said = tide(&gateway, &["bench", "compare", "run.json", "second.json"], "");
    assert!(said.contains("--warmup differs: 1s in A, 0 in B"), "{said}");
}

#[test]
fn a_bench_whose_gateway_can_not_be_asked_says_why_and_is_no_failure() {
    let (gateway, other) = (Setup::demo().start(), Setup::demo().start());
    let address = gateway.clients().to_string();
    let run = |more: &[&str]| {
        let how = ["--duration", "100ms", "--warmup", "0", "--json", "--connect", &address];
        let arguments = [&["bench", "request", "--connections", "1"], &how[..], more].concat();
        let report = json(&tide(&gateway, &arguments, ""));
        assert!(report["run"]["gateway"].is_null(), "{report}");
        report["run"]["gateway_unknown"].as_str().unwrap().to_owned()
    };
    assert!(run(&["--token-file", "none"]).contains("can't read the operators' token none"));
    let (admin, token) =
        (other.operators().to_string(), other.folder().join(".tidegate/admin.token"));
    let said = run(&["--admin", &admin, "--token-file", token.to_str().unwrap()]);
    assert!(said.contains(&format!("{}, and not on {address}", other.clients())), "{said}");
}

#[test]
fn a_page_that_can_not_be_written_is_refused_before_the_run() {
    let gateway = Setup::demo().start();
    let address = gateway.clients().to_string();
    let arguments = ["bench", "connect", "--connect", &address, "--html", "no/such/run.html"];
    let (status, said, log) = gateway.tide(&arguments, "");
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.is_empty() && log.contains("no/such/run.html"), "{log}");
}

#[test]
fn several_workers_run_each_scenario_against_a_gateway() {
    let several = |scenario: &[&str]| bench(&[scenario, &["--workers", "3"]].concat());
    let report = several(&["connect", "--connections", "50", "--large-answers", "1000"]);
    assert_eq!(report["connections"], 50, "{report}");
    let report = several(&["connect", "--connections", "50", "--heartbeat-sweep"]);
    assert_eq!(report["heartbeats"], 50, "{report}");
    let report = several(&["connect", "--connections", "6", "--cycle"]);
    assert!(report["cycles"].as_u64() > Some(0), "{report}");
    let report = several(&["request", "--connections", "10", "--depth", "4"]);
    assert!(report["per_connection_min"].as_u64() > Some(0), "{report}");
    let report = several(&["request", "--connections", "10", "--in-flight", "4"]);
    assert!(report["per_connection_min"].as_u64() > Some(0), "{report}");
    let report = several(&["broadcast", "--connections", "20", "--in-flight", "4"]);
    assert!(report["deliveries"].as_u64() >= Some(20), "{report}");
    let report = several(&["broadcast", "--connections", "20", "--echo-rate", "100"]);
    assert!(report["echoes"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_bench_of_a_storm_counts_sessions_and_closed_silent_clients() {
    for workers in ["1", "3"] {
        let report = bench(&["storm", "--connections", "9", "--workers", workers]);
        assert!(report["authenticated"].as_u64() > Some(0), "{report}");
    }
    let gateway = Setup::demo().start();
    let address = gateway.clients().to_string();
    let slow = ["bench", "storm", "--connections", "9", "--slow-share", "0.4", "--workers", "3"];
    let how = ["--duration", "1s", "--warmup", "100ms", "--json", "--connect", &address];
    let (status, said, log) = gateway.tide(&[&slow[..], &how].concat(), "");
    assert!(status.success(), "{said}\n{log}");
    let report = json(&said);
    assert!(
        log.contains("waiting until the gateway has closed 4 silent clients with 109"),
        "{log}"
    );
    // Four of nine clients are silent. The run waits for them for --slow-deadline at most.
    assert_eq!((&report["silent"], &report["sent_away"]), (&4.into(), &4.into()), "{report}");
}

#[test]
fn a_bench_ends_with_an_error_where_a_full_gateway_admits_nobody() {
    let gateway = Setup::demo().set("limits.connections_max", 8).start();
    let address = gateway.clients().to_string();
    let held = ["bench", "connect", "--connections", "20", "--admission-timeout", "2s"];
    let (status, said, log) = gateway.tide(&[&held[..], &["--connect", &address]].concat(), "");
    assert_eq!((status.code(), &said[..]), (Some(1), ""));
    // Printed after half of the timeout; how much later depends on the machine.
    assert!(log.contains("s: 8 of 20 connections are up; it may be full; giving up in"), "{log}");
    assert!(log.contains("s (--admission-timeout): 8 of 20 connections are up. "), "{log}");
    assert!(log.contains("limits.connections_max") && log.contains("ulimit -n"), "{log}");
}

#[test]
fn where_no_gateway_listens_the_error_names_the_address_and_a_start_command() {
    // Reserved ports: no gateway of another test can take them when this one has ended.
    let admin = Port::reserve();
    let setup = Setup::demo().on_a_reserved_port();
    let mut gateway = setup.set("admin.listen", format!("127.0.0.1:{}", admin.number())).start();
    let clients = gateway.clients().to_string();
    let operators = gateway.operators().to_string();
    gateway.process.kill();
    // The kernel may keep a ring's listener for a moment after its process.
    for address in [&clients, &operators] {
        until("nobody listens", || {
            let error = TcpStream::connect(address).err()?;
            (error.kind() == ErrorKind::ConnectionRefused).then_some(())
        });
    }
    let tries: [(&[&str], &str); 4] = [
        (&["bench", "connect", "--connect", &clients], &clients),
        (&["bench", "storm", "--connect", &clients], &clients),
        (&["client", "--user", "7", "--demo-token", "--connect", &clients], &clients),
        (&["stats", "--admin", &operators], &operators),
    ];
    for (arguments, address) in tries {
        let (status, _, log) = gateway.tide(arguments, "");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(&format!("no gateway listens on {address}")), "{log}");
        assert!(log.contains("start one with `tidegate"), "{log}");
    }
}

#[test]
fn a_bench_of_a_show_has_questions_answered() {
    for workers in ["1", "3"] {
        let timeline = ["--arrive", "200ms", "--leave", "100ms", "--question-every", "300ms"];
        let audience = ["show", "--connections", "30", "--answer-share", "0.5"];
        let report = bench(&[&audience[..], &timeline, &["--workers", workers]].concat());
        assert!(report["questions"].as_u64() >= Some(3), "{report}");
        assert!(report["answers"].as_u64() > Some(0), "{report}");
        assert!(report["series"][0]["server_rss_bytes"].as_f64() > Some(0.0), "{report}");
    }
}

#[test]
fn an_error_in_one_worker_ends_the_bench() {
    let gateway = Setup::demo().start();
    let address = gateway.clients().to_string();
    let operator = gateway.operator();
    let held = ["bench", "connect", "--connections", "9", "--workers", "3", "--duration", "10m"];
    std::thread::scope(|scope| {
        let bench =
            scope.spawn(|| gateway.tide(&[&held[..], &["--connect", &address]].concat(), ""));
        operator.wait_for_total("users", 9);
        // User 9 has the last connection, which belongs to the last worker.
        assert_eq!(operator.kick(9), 1);
        let (status, said, log) = bench.join().unwrap();
        assert_eq!((status.code(), &said[..]), (Some(1), ""));
        assert!(log.contains("connection 8: the gateway ended the session with 110"), "{log}");
    });
}

#[test]
fn a_bench_does_not_measure_one_gateway_while_it_loads_another() {
    let (one, other) = (Setup::demo().start(), Setup::demo().start());
    let (loaded, measured) = (one.process.pid(), other.process.pid().to_string());
    let address = one.clients().to_string();
    let arguments = ["bench", "connect", "--connect", &address, "--pid", &measured];
    let (status, said, log) = one.tide(&arguments, "");
    assert_eq!((status.code(), &said[..]), (Some(1), ""), "{log}");
    let expected = format!("process {measured} does not listen on {address}, but on ");
    assert!(log.contains(&expected), "{log}");
    assert!(log.contains(&format!("Process {loaded} listens on {address}.")), "{log}");
}

/// Runs a scenario for a short time. Returns its report.
fn bench(scenario: &[&str]) -> Value {
    let gateway = Setup::demo().shards(2).start();
    let address = gateway.clients().to_string();
    let pid = gateway.process.pid().to_string();
    let how = ["--duration", "1s", "--warmup", "100ms", "--json"];
    let where_to = ["--connect", &address, "--pid", &pid];
    let report = json(&tide(&gateway, &[&["bench"], scenario, &how, &where_to].concat(), ""));
    // On a slow machine `tide` uses a whole core and warns of that. No other warning is expected.
    let warnings = report["warnings"].as_array().expect("a report has warnings, or none");
    let is_of_a_core = |it: &Value| it.as_str().is_some_and(|said| said.contains("% of a core"));
    assert!(warnings.iter().all(is_of_a_core), "{report}");
    report
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
