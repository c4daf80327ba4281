//! The connections of the HTTP gateway: their bounds, hostile clients, TLS, balancers and the drain.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tidegate_tests::http::{GET, closed, demo, https, post, with_http};
use tidegate_tests::web::{Raw, Web, address};
use tidegate_tests::wire::CHAIN_FILE;
use tidegate_tests::{Gateway, Phone, Setup, until};

#[test]
fn more_requests_than_may_wait_are_refused() {
    let routes = r#"[{path="/hang",type=201,body="bytes"}, {path="/echo",type=1}, {path="/release",type=210,body="bytes"}]"#;
    let gateway = with_http(Setup::blocking(60_000), routes).set("http.requests_max", 2).start();
    let web = Web::new(&gateway);
    let mut hanging: Vec<_> =
        (0..2).map(|_| Raw::with(&gateway, &post("/hang", "", "x"))).collect();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_http_requests_in_flight", "", |n| n == 2.0);
    let refused = web.post("/echo", "1");
    assert_eq!(refused.code(503), 104);
    assert!(refused.header("retry-after").is_some());
    operator.wait_for_metric("tidegate_http_requests_refused_total", "", |n| n == 1.0);
    // Sessions are not concerned. This one's shard runs the handler that releases the calls.
    let mut phone: Phone = gateway.login(7);
    let mut released = 0;
    until("both calls are released", || {
        let answer = phone.ask(210, b"").unwrap();
        released += str::from_utf8(&answer).unwrap().parse::<u32>().unwrap();
        (released == 2).then_some(())
    });
    for raw in &mut hanging {
        assert_eq!(raw.answer().unwrap().ok(), "x");
    }
    assert_eq!(web.post("/echo", "1").ok(), "1");
}

#[test]
fn more_connections_than_may_be_open_wait() {
    let gateway = demo().set("http.connections_max", 2).start();
    let mut open: Vec<_> = (0..2).map(|_| Raw::with(&gateway, GET)).collect();
    open.iter_mut().for_each(|raw| assert_eq!(raw.answer().unwrap().status, 200));
    let mut third = Raw::with(&gateway, GET);
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_http_accept_pauses_total", "", |n| n == 1.0);
    operator.wait_for_metric("tidegate_http_connections", "", |n| n == 2.0);
    gateway.login(7).assert_is_served();
    drop(open.pop());
    assert_eq!(third.answer().unwrap().status, 200);
}

/// Requests that need no token, or have one that is not valid, and their statuses.
const WITHOUT_TOKEN: [(&str, u16); 6] = [
    ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ("DELETE /echo HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    ("OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\n", 204),
    ("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ("GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    ("GET /echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n", 401),
];

#[test]
fn clients_without_a_token_do_not_keep_others_out() {
    // An idle connection stays for longer than the test.
    let setup = demo().set("http.head_timeout_ms", 86_400_000).set("http.openapi", true);
    let setup = setup.set("http.connections_max", WITHOUT_TOKEN.len() + 1);
    let gateway = setup.set("http.body_timeout_ms", 86_400_000).start();
    let mut user = Raw::with(&gateway, GET);
    assert_eq!(user.answer().unwrap().status, 200);
    let mut others = Vec::new();
    for (text, status) in WITHOUT_TOKEN {
        let mut raw = Raw::with(&gateway, text);
        assert_eq!(raw.answer().unwrap().status, status, "{text}");
        others.push(raw);
    }
    // Each newcomer gets the slot of the one that has waited longest, and the last newcomers that of one that sends nothing,
    // a part of a head, or a part of a body.
    let begun = ["", "GET", "POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234"];
    let mut stalled: Vec<_> = begun.iter().map(|text| Raw::with(&gateway, text)).collect();
    let mut newcomers: Vec<_> = (0..6)
        .map(|_| {
            let mut raw = Raw::with(&gateway, GET);
            assert_eq!(raw.answer().unwrap().status, 200);
            raw
        })
        .collect();
    for raw in others.iter_mut().chain(&mut stalled) {
        assert!(raw.answer().is_none());
    }
    // No client that has shown a token was closed.
    for raw in newcomers.iter_mut().chain([&mut user]) {
        raw.write(GET);
        assert_eq!(raw.answer().unwrap().status, 200);
    }
    closed(&gateway, "evicted", 9.0);
}

#[test]
fn a_connection_ends_after_several_requests_without_a_valid_token() {
    let gateway = demo().set("auth.failures_max", 2).start();
    let (none, wrong) = (WITHOUT_TOKEN[4].0, WITHOUT_TOKEN[5].0);
    let mut raw = Raw::with(&gateway, &[none, GET, wrong, none, GET].concat());
    let answers: Vec<_> = (0..4).map(|_| raw.answer().unwrap()).collect();
    assert_eq!([0, 1, 2, 3].map(|at: usize| answers[at].status), [401, 200, 401, 401]);
    assert_eq!(answers[2].header("connection"), None);
    assert_eq!(answers[3].header("connection"), Some("close"));
    assert!(raw.answer().is_none());
    closed(&gateway, "auth_failed", 1.0);
}

#[test]
fn a_connection_that_sends_too_fast_is_told_to_wait() {
    let setup = demo().set("limits.frames_per_second_max", 1).set("limits.frames_burst_max", 2);
    let gateway = setup.set("http.openapi", true).start();
    for (text, status) in WITHOUT_TOKEN.into_iter().chain([(GET, 200)]) {
        let mut raw = Raw::with(&gateway, &text.repeat(3));
        let answers: Vec<_> = (0..3).map(|_| raw.answer().unwrap()).collect();
        assert_eq!([answers[0].status, answers[1].status], [status, status], "{text}");
        assert_eq!(answers[2].code(429), 103, "{text}");
        assert!(answers[2].header("retry-after").is_some());
    }
}

#[test]
fn a_balancer_says_the_clients_address() {
    let setup = demo().set("listeners.web.proxy_from", "[\"127.0.0.1\"]");
    let gateway = setup.set("log.filter", "debug").start();
    let header = "PROXY TCP4 192.0.2.1 198.51.100.1 5000 80\r\n";
    let mut raw = Raw::with(&gateway, &header[..20]);
    raw.write(&header[20..]);
    raw.write(&GET.repeat(2));
    assert_eq!(raw.answer().unwrap().status, 200);
    assert_eq!(raw.answer().unwrap().status, 200);
    gateway.process.stderr.wait_for("192.0.2.1:5000");
    assert!(Raw::with(&gateway, GET).answer().is_none());
    closed(&gateway, "proxy", 1.0);
    let gateway = demo().set("listeners.web.proxy_from", "[\"192.0.2.7\"]").start();
    assert!(Raw::with(&gateway, &format!("{header}{GET}")).answer().is_none());
    closed(&gateway, "proxy", 1.0);
}

/// A gateway with HTTPS.
#[test]
fn https_has_the_certificates_of_the_listeners() {
    let gateway = https().start();
    let chain = gateway.folder().join(CHAIN_FILE);
    let script = "import http.client, ssl, sys\n\
        context = ssl.create_default_context(cafile=sys.argv[2])\n\
        connection = http.client.HTTPSConnection('localhost', int(sys.argv[1]), context=context)\n\
        for n in range(2):\n\
        \x20   connection.request('GET', '/echo?n=%d' % n, headers={'Authorization': 'Bearer token-7'})\n\
        \x20   answer = connection.getresponse()\n\
        \x20   print(answer.status, answer.read().decode(), connection.sock.version())\n";
    let port = address(&gateway).port().to_string();
    let said = Command::new("python3").args(["-c", script, &port]).arg(&chain).output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert_eq!(text, "200 {\"n\":\"0\"} TLSv1.3\n200 {\"n\":\"1\"} TLSv1.3\n", "{:?}", said.stderr);
    // Plain HTTP is no handshake.
    Raw::with(&gateway, GET).read_to_end();
    closed(&gateway, "tls", 1.0);
}

/// A gateway with a call that lasts until the test writes to a FIFO. Its drain waits for it.
struct Lasting {
    gateway: Gateway,
    /// The connection of its request.
    raw: Raw,
    fifo: PathBuf,
}

impl Lasting {
    fn start(setup: impl FnOnce(Setup) -> Setup) -> Self {
        let routes =
            r#"[{path="/read",type=203,body="bytes"}, {path="/echo",method="GET",type=1}]"#;
        let setup = setup(with_http(Setup::blocking(60_000), routes));
        let fifo = setup.folder().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let gateway = setup.start();
        let raw = Raw::with(&gateway, &post("/read", "", fifo.to_str().unwrap()));
        let operator = gateway.operator();
        operator.wait_for_metric("tidegate_http_requests_in_flight", "", |n| n == 1.0);
        Self { gateway, raw, fifo }
    }

    /// Ends the call. Its client gets the answer.
    fn release(&mut self) {
        std::fs::write(&self.fifo, "at last").unwrap();
        let answer = self.raw.answer().unwrap();
        assert_eq!((answer.ok(), answer.header("connection")), ("at last", Some("close")));
        assert!(self.raw.answer().is_none());
    }

    fn drain(&self) {
        self.gateway.terminate();
        self.gateway.process.stdout.wait_for("draining");
    }
}

fn assert_is_refused_by_a_drain(raw: &mut Raw) {
    let answer = raw.answer().unwrap();
    assert_eq!((answer.code(503), answer.header("connection")), (108, Some("close")));
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn a_gateway_that_drains_answers_what_it_has_and_tells_the_others() {
    let mut lasting = Lasting::start(|setup| setup.set("shutdown.drain_timeout_ms", 60_000));
    let mut idle = Raw::with(&lasting.gateway, GET);
    assert_eq!(idle.answer().unwrap().status, 200);
    // Its request is on its way, and of the other one nothing has come.
    let mut begun = Raw::with(&lasting.gateway, &GET[..10]);
    let mut silent = Raw::connect(&lasting.gateway);
    let operator = lasting.gateway.operator();
    operator.wait_for_metric("tidegate_http_connections", "", |n| n == 4.0);
    lasting.drain();
    assert!(idle.answer().is_none());
    begun.write(&GET[10..]);
    assert_is_refused_by_a_drain(&mut begun);
    assert!(silent.answer().is_none());
    closed(&lasting.gateway, "draining", 1.0);
    lasting.release();
    assert!(lasting.gateway.process.wait().success());
}

#[test]
fn connections_that_wait_at_a_full_gateway_are_answered_when_it_drains() {
    let mut lasting = Lasting::start(|setup| {
        setup.set("shutdown.drain_timeout_ms", 60_000).set("http.connections_max", 1)
    });
    let mut waiting: Vec<_> = (0..5).map(|_| Raw::with(&lasting.gateway, GET)).collect();
    lasting.drain();
    lasting.release();
    waiting.iter_mut().for_each(assert_is_refused_by_a_drain);
    assert!(lasting.gateway.process.wait().success());
    let log = lasting.gateway.process.stderr.all();
    assert!(!log.contains("reset in the accept queue"), "{log}");
}

#[test]
fn connections_that_still_wait_at_the_end_of_a_drain_are_reset_and_logged() {
    let mut lasting = Lasting::start(|setup| {
        setup.set("shutdown.drain_timeout_ms", 300).set("http.connections_max", 1)
    });
    let mut waiting: Vec<_> = (0..5).map(|_| Raw::with(&lasting.gateway, GET)).collect();
    lasting.drain();
    assert!(waiting.iter_mut().all(|raw| raw.answer().is_none()));
    // The call that does not end ends with the process.
    assert!(lasting.gateway.process.wait().success());
    let log = lasting.gateway.process.stderr.all();
    assert!(log.contains("reset in the accept queue") && log.contains("connections=5"), "{log}");
}

#[test]
fn a_drain_ends_though_clients_connect_again_and_again() {
    let mut gateway = demo().set("shutdown.drain_timeout_ms", 600_000).start();
    let address = address(&gateway);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // Each ends when nobody listens any more.
            scope.spawn(|| while std::net::TcpStream::connect(address).is_ok() {});
        }
        let mut served = Raw::with(&gateway, GET);
        assert_eq!(served.answer().unwrap().status, 200);
        gateway.terminate();
        assert!(gateway.process.wait().success());
    });
}

#[test]
fn a_connection_that_does_not_open_or_does_not_read_is_closed() {
    let setup = demo().set("limits.open_timeout_ms", 100);
    let gateway = setup.set("listeners.web.proxy_from", "[\"127.0.0.1\"]").start();
    assert!(Raw::connect(&gateway).answer().is_none());
    closed(&gateway, "open_timeout", 1.0);

    let gateway = demo().set("http.body_bytes_max", 1 << 20).start();
    // More than the kernel's buffers hold. Nobody reads it.
    let long = "x".repeat(1_000_000);
    let mut raw = Raw::connect(&gateway);
    for _ in 0..20 {
        raw.write(&post("/bytes", "", &long));
    }
    closed(&gateway, "write_timeout", 1.0);
}

#[test]
fn tls_handshakes_beyond_their_rate_wait() {
    let setup = https().set("limits.open_timeout_ms", 300);
    let gateway = setup.set("tls.handshakes_per_second_max", 1).start();
    // Some begin at once, and the others not within the time that they have.
    let script = "import socket, ssl, sys\n\
        context = ssl._create_unverified_context()\n\
        sockets = [socket.create_connection(('127.0.0.1', int(sys.argv[1]))) for _ in range(20)]\n\
        for one in sockets:\n\
        \x20   try: context.wrap_socket(one).close()\n\
        \x20   except OSError: pass\n";
    let port = address(&gateway).port().to_string();
    assert!(Command::new("python3").args(["-c", script, &port]).status().unwrap().success());
    let name = "tidegate_http_connections_closed_total";
    gateway.operator().wait_for_metric(name, "\"open_timeout\"", |n| n >= 1.0);
}

#[test]
fn health_names_the_http_gateway_while_a_handler_blocks_its_thread() {
    let routes = r#"[{path="/hang",type=201,body="bytes"}]"#;
    let setup = with_http(Setup::blocking(60_000), routes);
    let gateway = setup.set("backends.blocking.placement", "shard").start();
    let mut hanging = Raw::with(&gateway, &post("/hang", "", "x"));
    let operator = gateway.operator();
    let says = |path: &str, status: u16| {
        until(&format!("{path} is {status}"), || {
            let (said, body) = operator.get(path);
            (said == status).then_some(body)
        })
    };
    let said: Value = serde_json::from_str(&says("/healthz", 503)).unwrap();
    assert_eq!((&said["code"], &said["unresponsive_shards"]), (&json!("shards_hang"), &json!([])));
    assert!(said["http_silent_ms"].as_u64().unwrap() >= 5_000, "{said}");
    assert!(said["error"].as_str().unwrap().contains("the HTTP gateway has not answered for "));
    says("/readyz", 503);
    let stats = operator.json("/stats");
    assert_eq!(stats["ready"], false, "{stats}");
    assert!(stats["http_silent_ms"].is_u64(), "{stats}");
    gateway.process.stderr.wait_for("the HTTP gateway hangs");
    // Shards serve their clients. One of them runs the handler that releases the call.
    assert_eq!(gateway.login(7).ask(210, b"").unwrap(), b"1"[..]);
    assert_eq!(hanging.answer().unwrap().ok(), "x");
    says("/healthz", 200);
    says("/readyz", 200);
}

#[test]
fn requests_are_served_in_the_time_of_grace_and_a_hurry_ends_them() {
    let grace = |setup: Setup| {
        setup.set("shutdown.ready_grace_ms", 600_000).set("shutdown.drain_timeout_ms", 600_000)
    };
    let mut lasting = Lasting::start(grace);
    lasting.drain();
    let operator = lasting.gateway.operator();
    until("it is not ready", || (operator.get("/readyz").0 == 503).then_some(()));
    let mut late = Raw::with(&lasting.gateway, GET);
    assert_eq!(late.answer().unwrap().status, 200);
    // The call that does not end has a second.
    lasting.gateway.terminate();
    assert!(late.answer().is_none());
    assert!(lasting.gateway.process.wait().success());
}
