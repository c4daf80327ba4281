//! The HTTP gateway: requests, their refusals, tokens, bodies and routes.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tidegate::http::metrics::METRICS;
use tidegate_tests::Setup;
use tidegate_tests::http::{GET, ROUTES, closed, demo, post, with_http};
use tidegate_tests::web::{Raw, Web, address};

#[test]
fn bodies_and_queries_reach_the_backend_and_come_back() {
    let gateway = demo().start();
    let web = Web::new(&gateway);
    let answer = web.post("/echo", r#"{"a": [1, "é"]}"#);
    assert_eq!(answer.ok(), r#"{"a": [1, "é"]}"#);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let query: Value = serde_json::from_str(web.get("/echo?a=b+c&d=%C3%A9&e=&f").ok()).unwrap();
    assert_eq!(query, json!({"a": "b c", "d": "é", "e": "", "f": ""}));
    assert_eq!(web.get("/echo").ok(), "{}");
    let bytes = web.ask("POST", "/bytes", &[("Authorization", "bearer token-7")], b"\x00x");
    assert_eq!(bytes.ok(), "\0x");
    assert_eq!(bytes.header("content-type"), Some("application/octet-stream"));
    assert_eq!(web.ask("POST", "/open", &[], b"{}").ok(), "{}");
    // The backend's answer is empty, and a client with a session has the push.
    let mut phone = gateway.login(8);
    let pushed = web.post("/all", "[7]");
    assert_eq!((pushed.status, pushed.body.as_str()), (204, ""));
    assert_eq!(phone.push().biz_data, b"[7]"[..]);
    let head = web.ask("HEAD", "/echo?a=1", &[("Authorization", "Bearer token-7")], b"");
    assert_eq!((head.ok(), head.header("content-length")), ("", Some("9")));
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_calls_total", "", |n| n == 7.0);
    operator.wait_for_metric("tidegate_call_duration_seconds_count", "demo", |n| n == 7.0);
}

#[test]
fn a_request_of_http_has_no_session_that_could_join_a_room() {
    let gateway = demo().start();
    let web = Web::new(&gateway);
    // JoinRoom { room: "a" }
    let join = web.ask("POST", "/join", &[("Authorization", "Bearer token-7")], b"\n\x01a");
    assert_eq!(join.code(502), 101);
    gateway.login(7).assert_is_served();
}

/// The descriptor set of the demo's messages, in a folder.
fn descriptor_set(folder: &Path) -> PathBuf {
    let file = folder.join("demo.bin");
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/proto");
    let protoc = Command::new("protoc")
        .args(["-I", protos, "--include_imports", "tidegate_demo.proto"])
        .arg(format!("--descriptor_set_out={}", file.display()))
        .status();
    assert!(protoc.unwrap().success());
    file
}

#[test]
fn json_is_transcoded_to_messages_and_back() {
    let message = |path, kind, request, response| {
        format!(
            r#"{{path="{path}",type={kind},request="tidegate.demo.v1.{request}",response="tidegate.demo.v1.{response}"}}"#
        )
    };
    let get = message("/same", 1, "JoinRoom", "JoinRoom").replace("type", r#"method="GET",type"#);
    let routes = [
        message("/same", 1, "RoomMessage", "RoomMessage"),
        get,
        message("/message", 20, "MessageUser", "LeaveRoom"),
        message("/other", 1, "RoomMessage", "JoinRoom"),
    ];
    let setup = with_http(Setup::demo(), &format!("[{}]", routes.join(",")));
    let file = descriptor_set(setup.folder());
    let gateway = setup.set("http.descriptor_set_file", file.display()).start();
    let web = Web::new(&gateway);
    let mut phone = gateway.login(8);
    let same = |body| serde_json::from_str::<Value>(web.post("/same", body).ok()).unwrap();
    let big = r#"{"room": "a", "fromUserId": 18446744073709551615, "text": "aGk="}"#;
    let back = json!({"room": "a", "fromUserId": "18446744073709551615", "text": "aGk="});
    assert_eq!(same(big), back);
    assert_eq!(same(r#"{"from_user_id": "7", "room": null}"#), json!({"fromUserId": "7"}));
    assert_eq!(same("{}"), json!({}));
    assert_eq!(web.get("/same?room=b&lastOffset=5").ok(), r#"{"room":"b","lastOffset":"5"}"#);
    for bad in [
        "",
        "{",
        "[]",
        r#"{"rooms": "a"}"#,
        r#"{"room": 1}"#,
        r#"{"fromUserId": -1}"#,
        r#"{"fromUserId": 18446744073709551616}"#,
        "{} {}",
    ] {
        assert_eq!(web.post("/same", bad).code(400), 106, "{bad}");
    }
    for bad in ["/same?nothing=1", "/same?room=a&room=b", "/same?lastOffset=x", "/same?room=%ff"] {
        assert_eq!(web.get(bad).code(400), 106, "{bad}");
    }
    assert_eq!(web.post("/message", r#"{"userId": "8", "text": "aGk="}"#).ok(), "{}");
    assert!(phone.push().biz_data.ends_with(b"hi"));
    // What the backend answers is not the message that the route names: its second field is a number.
    assert_eq!(web.post("/other", r#"{"room": "a", "text": "aGk="}"#).status, 200);
    assert_eq!(web.post("/other", r#"{"fromUserId": "1"}"#).ok(), r#"{"lastOffset":"1"}"#);
}

#[test]
fn a_user_is_who_the_token_says() {
    let gateway = with_http(Setup::jwt().shards(1), ROUTES).start();
    let web = Web::new(&gateway);
    let (status, token, log) = gateway.tide(&["token", "--user", "7"], "");
    assert!(status.success(), "{log}");
    let bearer = format!("Bearer {}", token.trim());
    let ask = |headers: &[(&str, &str)]| web.ask("POST", "/echo", headers, b"1");
    assert_eq!(ask(&[("Authorization", &bearer)]).ok(), "1");
    assert_eq!(ask(&[("Authorization", &bearer), ("Tidegate-User", "7")]).ok(), "1");
    let none = ask(&[]);
    assert_eq!(none.code(401), 100);
    assert_eq!(none.header("www-authenticate"), Some("Bearer realm=\"tidegate\""));
    let other = bearer.replace("Bearer ", "Basic ");
    let changed = format!("{bearer}x");
    for headers in [
        &[("Authorization", other.as_str())][..],
        &[("Authorization", "Bearer")],
        &[("Authorization", "Bearer x")],
        &[("Authorization", &changed)],
        &[("Authorization", &bearer), ("Tidegate-User", "8")],
        &[("Authorization", &bearer), ("Tidegate-User", "x")],
    ] {
        assert_eq!(ask(headers).code(401), 100, "{headers:?}");
    }
    let wrong = ask(&[("Authorization", &changed)]);
    assert!(wrong.header("www-authenticate").unwrap().contains("invalid_token"));
    // Its body was not read, so the connection is of no further use.
    assert_eq!(wrong.header("connection"), Some("close"));
    assert_eq!(web.ask("POST", "/open", &[], b"1").ok(), "1");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_auth_failures_total", "wrong_user", |n| n == 1.0);
}

#[test]
fn each_refusal_has_its_status_and_code() {
    let setup = demo().set("http.body_bytes_max", 100).set("limits.frames_per_second_max", 100_000);
    let gateway = setup.start();
    let web = Web::new(&gateway);
    let auth = ("Authorization", "Bearer token-7");
    let json = ("Content-Type", "application/json");
    let ask = |method, path, header| web.ask(method, path, &[auth, header], b"1");
    assert_eq!(ask("POST", "/nothing", json).code(404), 105);
    assert_eq!(ask("POST", "/echo/", json).code(404), 105);
    let method = web.ask("DELETE", "/echo", &[auth], b"");
    assert_eq!(method.code(405), 106);
    assert_eq!(method.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
    assert_eq!(web.ask("GET", "/bytes", &[auth], b"").header("allow"), Some("POST, OPTIONS"));
    assert_eq!(ask("POST", "/echo", ("Accept", "text/html")).code(406), 106);
    assert_eq!(ask("POST", "/echo", ("Content-Type", "text/plain")).code(415), 106);
    assert_eq!(ask("POST", "/echo", ("Content-Encoding", "gzip")).code(415), 106);
    assert_eq!(web.post("/echo", "{").code(400), 106);
    assert_eq!(web.get("/echo?a=1&a=2").code(400), 106);
    let long = format!("\"{}\"", "x".repeat(98));
    assert_eq!(web.post("/echo", &long).ok(), long);
    assert_eq!(web.post("/echo", &format!("{long} ")).code(413), 106);
    let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-7\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut raw = Raw::with(&gateway, &format!("{chunked}65\r\n{}\r\n0\r\n\r\n", "1".repeat(0x65)));
    assert_eq!(raw.answer().unwrap().code(413), 106);
    let options = web.ask("OPTIONS", "/bytes", &[], b"");
    assert_eq!((options.status, options.header("allow")), (204, Some("POST, OPTIONS")));
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_http_requests_total", "\"404\"", |n| n == 2.0);
    operator.wait_for_metric("tidegate_failures_total", "\"105\"", |n| n == 2.0);
    assert_eq!(web.get("/openapi.json").code(404), 105);
}

#[test]
fn a_page_is_served_where_its_origin_is_allowed() {
    let gateway = demo().set("listeners.web.origins", "[\"https://app.example\"]").start();
    let web = Web::new(&gateway);
    let auth = ("Authorization", "Bearer token-7");
    let ask = |method, headers: &[(&str, &str)]| {
        web.ask(method, "/echo", headers, if method == "POST" { b"1" } else { b"" })
    };
    let answer = ask("POST", &[auth, ("Origin", "https://app.example")]);
    let allowed = "access-control-allow-origin";
    assert_eq!((answer.ok(), answer.header(allowed)), ("1", Some("https://app.example")));
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert_eq!(ask("POST", &[auth, ("Origin", "https://other.example")]).code(403), 106);
    // Who is no browser sends none.
    assert_eq!(ask("POST", &[auth]).ok(), "1");
    let preflight =
        |origin| ask("OPTIONS", &[("Origin", origin), ("Access-Control-Request-Method", "POST")]);
    let answer = preflight("https://app.example");
    assert_eq!((answer.status, answer.header(allowed)), (204, Some("https://app.example")));
    let methods = "access-control-allow-methods";
    assert!(answer.header(methods).unwrap().contains("POST"));
    assert!(answer.header("access-control-allow-headers").unwrap().contains("Authorization"));
    let other = preflight("https://other.example");
    assert_eq!((other.header(allowed), other.header(methods)), (None, None));
    // An error can be read too.
    let nothing = web.ask("POST", "/nothing", &[("Origin", "https://app.example")], b"1");
    assert_eq!(nothing.header(allowed), Some("https://app.example"));
}

#[test]
fn a_request_keeps_its_id_and_the_log_has_it() {
    let gateway = demo().set("log.filter", "debug").start();
    let web = Web::new(&gateway);
    let ask = |id: &str| {
        let answer = web.ask("POST", "/open", &[("X-Request-Id", id)], b"1");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask("abc-1_2.3:4"), "abc-1_2.3:4");
    gateway.process.stderr.wait_for("abc-1_2.3:4");
    let long = "x".repeat(65);
    for bad in ["a b", "a;b", &long] {
        let made = ask(bad);
        assert!(made.len() == 16 && made != ask(bad), "{made}");
    }
}

#[test]
fn a_request_whose_length_is_ambiguous_is_refused_and_ends_its_connection() {
    let gateway = demo().start();
    let smuggled = format!("0\r\n\r\n{GET}");
    let (length, chunked) = ("Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n");
    let head = "POST /open HTTP/1.1\r\nHost: x\r\n";
    for text in [
        format!("{head}{length}{chunked}\r\n{smuggled}"),
        format!("{head}{chunked}{length}\r\n{smuggled}"),
        format!("{GET}{head}{chunked}{length}\r\n{smuggled}"),
        format!("{head}{chunked}X: y\r\ncontent-length : 4\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: 4\r\nContent-Length: 5\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: 4, 4\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: +4\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding : chunked\r\n\r\n{smuggled}"),
        format!("POST /open HTTP/1.0\r\nHost: x\r\n{chunked}\r\n{smuggled}"),
        format!("POST /open HTTP/1.1\r\n{length}\r\n1234{GET}"),
        format!("{head}Host: y\r\n{length}\r\n1234{GET}"),
    ] {
        let mut raw = Raw::with(&gateway, &text);
        if text.starts_with("GET") {
            assert_eq!(raw.answer().unwrap().status, 200);
        }
        assert_eq!(raw.answer().expect(&text).status, 400, "{text}");
        if !text.ends_with(&format!("1234{GET}")) {
            assert!(raw.answer().is_none(), "{text}");
        }
    }
    // A chunked request is served, and nothing behind it is.
    let mut raw = Raw::with(&gateway, &format!("{head}{chunked}\r\n1\r\n7\r\n0\r\n\r\n{GET}"));
    let answer = raw.answer().unwrap();
    assert_eq!((answer.ok(), answer.header("connection")), ("7", Some("close")));
    assert!(raw.answer().is_none());
}

#[test]
fn requests_in_one_go_are_answered_in_order() {
    let gateway = demo().start();
    let requests: String = (0..50).map(|n| post("/echo", "", &n.to_string())).collect();
    let mut raw = Raw::with(&gateway, &format!("\r\n{requests}"));
    for n in 0..50 {
        assert_eq!(raw.answer().unwrap().ok(), n.to_string());
    }
    // A client that has ended its side still gets its answer.
    raw.write(GET);
    raw.end();
    assert_eq!(raw.answer().unwrap().ok(), "{\"a\":\"1\"}");
    assert!(raw.answer().is_none());
    let mut old =
        Raw::with(&gateway, "GET /echo HTTP/1.0\r\nAuthorization: Bearer token-7\r\n\r\n");
    assert_eq!(old.answer().unwrap().ok(), "{}");
    assert!(old.answer().is_none());
}

#[test]
fn slow_long_and_senseless_requests_cost_their_connection() {
    let setup = demo().set("http.head_timeout_ms", 300).set("http.body_timeout_ms", 300);
    let gateway = setup.set("http.head_bytes_max", 2_000).start();
    let mut slow = Raw::with(&gateway, "GET /echo HTTP/1.1\r\nHost");
    let mut idle = Raw::with(&gateway, GET);
    assert_eq!(idle.answer().unwrap().status, 200);
    assert!(slow.answer().is_none());
    assert!(idle.answer().is_none());
    closed(&gateway, "head_timeout", 1.0);
    closed(&gateway, "idle", 1.0);
    let mut slow = Raw::with(&gateway, post("/echo", "", "12345").trim_end_matches('5'));
    assert_eq!(slow.answer().unwrap().code(408), 106);
    assert!(slow.answer().is_none());
    // A head that is a little longer than it may be, one that never ends, and one with too many fields.
    let just = |bytes: usize| {
        format!("GET /echo HTTP/1.1\r\nHost: x\r\nLong: {}\r\n\r\n", "x".repeat(bytes))
    };
    assert_eq!(Raw::with(&gateway, &just(1_900)).answer().unwrap().code(401), 100);
    let long = "x".repeat(200_000);
    let refused = [
        (just(2_460), 431),
        (just(200_000), 431),
        (format!("GET /echo HTTP/1.1\r\nHost: x\r\nLong: {long}"), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(150)), 431),
        ("hello\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\r\n\r\n".to_owned(), 400),
    ];
    for (text, status) in &refused {
        let mut raw = Raw::with(&gateway, text);
        assert_eq!(raw.answer().unwrap().status, *status, "{}", &text[..text.len().min(50)]);
        assert!(raw.answer().is_none());
    }
    // hyper has answered by itself. It is counted too.
    let operator = gateway.operator();
    for (status, count) in [("\"431\"", 5.0), ("\"400\"", 2.0)] {
        operator.wait_for_metric("tidegate_http_requests_total", status, |n| n == count);
    }
    closed(&gateway, "malformed", refused.len() as f64);
    gateway.login(7).assert_is_served();
    assert_eq!(Web::new(&gateway).post("/echo", "1").ok(), "1");
}

#[test]
fn a_path_that_is_too_long_for_http_is_refused_and_counted() {
    let gateway = demo().set("http.head_bytes_max", 1 << 20).start();
    let mut raw =
        Raw::with(&gateway, &format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(70_000)));
    assert_eq!(raw.answer().unwrap().status, 414);
    gateway.operator().wait_for_metric("tidegate_http_requests_total", "\"414\"", |n| n == 1.0);
}

#[test]
fn a_backend_that_hangs_panics_or_answers_at_length_harms_no_other_request() {
    let routes = r#"[
        {path="/hang",type=201,body="bytes"}, {path="/quick",type=202,body="bytes"}, {path="/echo",type=1,body="bytes"}, {path="/release",type=210,body="bytes"},
    ]"#;
    // The call that hangs alone times out before the test does.
    let types = r#"[{types=[1,99],backend="demo"}, {types=[201,201],backend="blocking",timeout_ms=300}, {types=[202,209],backend="blocking"}, {types=[210,219],backend="control"}]"#;
    let setup = Setup::blocking(60_000).set("routes", types);
    let gateway = with_http(setup, routes).set("http.body_bytes_max", 2 << 20).start();
    let web = Web::new(&gateway);
    assert_eq!(web.post("/hang", "x").code(504), 102);
    assert_eq!(web.post("/quick", "x").ok(), "x");
    assert_eq!(web.post("/release", "").ok(), "1");
    let long = "x".repeat(1 << 20);
    let some = &long[..1_000_000];
    assert_eq!(web.post("/echo", some).ok(), some);
    // As long as a frame may be, in a body of its own.
    assert_eq!(web.post("/echo", &long).ok(), long);
    assert_eq!(web.post("/echo", &format!("{long}x")).code(502), 101);
    gateway.operator().wait_for_metric("tidegate_oversize_answers_total", "", |n| n == 1.0);

    let routes = r#"[{path="/panic",type=104,body="bytes"}, {path="/echo",type=1}]"#;
    let gateway = with_http(Setup::quiz(), routes).start();
    let web = Web::new(&gateway);
    assert_eq!(web.post("/panic", "x").code(502), 101);
    assert_eq!(web.post("/echo", "1").ok(), "1");
}

#[test]
fn an_answer_that_is_too_long_as_json_is_a_failure() {
    let routes = r#"[{path="/same",type=1,request="tidegate.demo.v1.RoomMessage",response="tidegate.demo.v1.RoomMessage"}]"#;
    let setup = with_http(Setup::demo(), routes).set("limits.frame_to_client_bytes_max", 2_000);
    let file = descriptor_set(setup.folder());
    let gateway = setup.set("http.descriptor_set_file", file.display()).start();
    let web = Web::new(&gateway);
    let same = |bytes: usize| {
        let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, vec![b'x'; bytes]);
        web.post("/same", &json!({ "text": text }).to_string())
    };
    assert!(same(1_400).ok().len() > 1_800);
    // Its message is shorter than 2,000 bytes.
    assert_eq!(same(1_600).code(502), 101);
    gateway.operator().wait_for_metric("tidegate_oversize_answers_total", "", |n| n == 1.0);
}

/// Routes of each kind, so that the document describes all of them.
const DESCRIBED: &str = r#"[
    {path="/json",type=1}, {path="/json",method="GET",type=1}, {path="/open",type=1,public=true},
    {path="/bytes",type=1,body="bytes"}, {path="/all",type=2},
    {path="/message",type=1,request="tidegate.demo.v1.RoomMessage",response="tidegate.demo.v1.RoomMessage"},
    {path="/message",method="GET",type=1,request="tidegate.demo.v1.JoinRoom",response="tidegate.demo.v1.JoinRoom"},
    {path="/user",type=20,request="tidegate.demo.v1.MessageUser",response="tidegate.demo.v1.LeaveRoom"},
]"#;

#[test]
fn generated_requests_get_what_the_document_says() {
    let setup = with_http(Setup::demo(), DESCRIBED).set("http.openapi", true);
    let file = descriptor_set(setup.folder());
    let gateway = setup.set("http.descriptor_set_file", file.display()).start();
    // scripts/install-test-deps has brought it.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/schemathesis");
    let said = Command::new("python3")
        .arg(format!("{folder}/bin/schemathesis"))
        .args(["run", &format!("http://{}/openapi.json", address(&gateway))])
        .args(["--header", "Authorization: Bearer token-7", "--checks", "all", "--seed", "11"])
        .args(["--max-examples", "30", "--generation-database", "none"])
        .env("PYTHONPATH", folder)
        .current_dir(gateway.folder())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text} {}", String::from_utf8_lossy(&said.stderr));
    let requests = "tidegate_http_requests_total";
    gateway.operator().wait_for_metric(requests, "\"200\"", |n| n > 100.0);
}

#[test]
fn wrong_routes_are_refused_with_a_reason() {
    for (key, value, reason) in [
        ("http_routes", r#"[{path="/a",type=5000}]"#, "no [[routes]] has this type"),
        ("http_routes", r#"[{path="a",type=1}]"#, "a path is made of segments"),
        ("http_routes", r#"[{path="/a/../b",type=1}]"#, "a path is made of segments"),
        (
            "http_routes",
            r#"[{path="/a",type=1},{path="/a",type=2}]"#,
            "http_routes[0] has this path",
        ),
        ("http_routes", r#"[{path="/openapi.json",type=1}]"#, "the document"),
        ("http_routes", r#"[{path="/a",type=1,request="x.Y"}]"#, "both messages"),
        (
            "http_routes",
            r#"[{path="/a",type=1,request="x.Y",response="x.Y"}]"#,
            "set http.descriptor_set_file",
        ),
        ("http_routes", r#"[{path="/a",type=1,public=1}]"#, "it takes true or false"),
        ("http.descriptor_set_file", "nothing.bin", "can't read nothing.bin"),
        ("listen", "", "HTTP alone is not enough"),
    ] {
        let (status, _, log) = demo().set(key, value).flag("--check-config").run();
        assert!(!status.success() && log.contains(reason), "{key} = {value}: {log}");
    }
    for connections in [1_000_u32, 2_000] {
        let setup = demo().descriptors(1_024).set("http.connections_max", connections);
        let (status, _, log) = setup.flag("--check-config").run();
        let says =
            ["http.connections_max = ", "the limit of open descriptors (1024) has room for "];
        assert!(!status.success() && says.iter().all(|part| log.contains(part)), "{log}");
    }
    let setup = demo().descriptors(1_024).set("http.connections_max", 500);
    let setup = setup.flag("--driver").flag("epoll").set("limits.connections_max", 600);
    let (_, _, log) = setup.flag("--check-config").run();
    let says =
        ["limits.connections_max = 600", "(1024)", "beside 500 of HTTP (http.connections_max)"];
    assert!(says.iter().all(|part| log.contains(part)), "{log}");
}

#[test]
fn every_metric_of_http_is_exported_and_listed_in_the_readme() {
    let gateway = demo().start();
    let (_, text) = gateway.operator().get("/metrics");
    let readme = include_str!("../../README.md");
    for (name, labels, help) in METRICS {
        assert!(text.contains(&format!("# HELP {name} {help}")), "{name} has no help text");
        let series = [format!("\n{name} "), format!("\n{name}{{")];
        assert!(series.iter().any(|series| text.contains(series)), "{name} has no value");
        let row = format!("| `{name}` | {labels} | {help} |");
        assert!(readme.contains(&row), "README.md lacks {row}");
    }
}
