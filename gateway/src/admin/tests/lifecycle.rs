//! Connections of operators: their timeouts, their slots, how they end.

use super::*;

#[test]
fn a_body_that_stalls_is_the_clients_fault() {
    let test = TestServer::with(Timeouts { body: SHORT, ..UNLIMITED });
    let access = format!("Authorization: Bearer {}\r\n", test.token);
    let ask = |fields: &str, begun: &str| {
        let line = "POST /push/all?type=1 HTTP/1.1\r\nHost: x\r\n";
        test.raw(format!("{line}{access}{fields}\r\n\r\n{begun}").as_bytes())
    };
    for (fields, begun) in [
        ("Content-Length: 10", ""),
        ("Content-Length: 10", "half"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nha"),
    ] {
        let answer = ask(fields, begun);
        assert!(answer.error(408).contains("nothing was done"), "{fields}");
        assert_eq!(answer.code(), "body_timeout");
        assert!(answer.head.contains("connection: close"));
    }
    let compressed = ask("Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: 1", "x");
    assert!(compressed.error(415).contains("gzip"));
    assert_eq!(test.fake.received(), []);
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let test = TestServer::new();
    let mut client = TcpStream::connect(test.server.local_addr()).unwrap();
    let head = format!(
        "POST /push/all?type=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Expect: 100-continue\r\nConnection: close\r\nContent-Length: 1\r\n\r\n",
        test.token
    );
    client.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    client.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"x").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_client_that_sends_more_or_ends_its_side_still_gets_its_answer() {
    let test = TestServer::new();
    // The body of a refused request is unread: a close would be a reset, and lose the answer.
    let head = "POST /push/all?type=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n";
    let answer = test.raw(&[head.as_bytes(), &[b'x'; 300_000]].concat());
    answer.error(401);
    // A client that has nothing more to send may still read.
    let mut half = TcpStream::connect(test.server.local_addr()).unwrap();
    half.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ready\n"), "{answer}");
}

#[test]
fn shutdown_ends_idle_connections_and_requests_under_way() {
    let test = TestServer::new();
    let address = test.server.local_addr();
    let mut idle = TcpStream::connect(address).unwrap();
    let access = format!("Authorization: Bearer {}", test.token);
    let request = format!("GET /users/8 HTTP/1.1\r\nHost: x\r\n{access}\r\n\r\n");
    idle.write_all(request.as_bytes()).unwrap();
    let mut half = TcpStream::connect(address).unwrap();
    half.write_all(b"GET /hea").unwrap();
    let mut start = [0; 12];
    idle.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    // No timeout of a request runs out here: the shutdown itself ends the connections.
    test.server.shutdown();
    let mut rest = String::new();
    idle.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\"connections\":[]}"), "{rest}");
    assert!(TcpStream::connect(address).is_err(), "the server no longer listens");
}

#[test]
fn idle_connections_lose_their_slots_to_new_connections() {
    let test = TestServer::new();
    let connect = || TcpStream::connect(test.server.local_addr()).unwrap();
    let mut operator = connect();
    let mut ask = |path: &str| {
        let (line, token) = (format!("GET {path} HTTP/1.1"), &test.token);
        let request = format!("{line}\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        operator.write_all(request.as_bytes()).unwrap();
        let mut start = [0; 12];
        operator.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 404");
        // The rest of the answer, so that the next one can be read.
        let mut rest = Vec::new();
        while !rest.ends_with(b"\"no_room\"}") {
            let mut byte = [0];
            operator.read_exact(&mut byte).unwrap();
            rest.push(byte[0]);
        }
    };
    ask("/rooms/nowhere");
    let mut held: Vec<_> = (0..100).map(|_| connect()).collect();
    assert_eq!(test.get("/healthz").status, 200);
    // The oldest have lost their slots. The operator is older and has not, since it has shown the token.
    for early in &mut held[..55] {
        let ended = early.read(&mut [0; 1]);
        assert!(!ended.is_ok_and(|count| count > 0), "no request was sent");
    }
    ask("/rooms/nowhere");
    // The newest still has its slot.
    let last = held.last_mut().unwrap();
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn refused_requests_whose_answers_are_delayed_keep_nobody_out() {
    // No delay ends in this test.
    let test = TestServer::with(Timeouts { refusal: UNLIMITED.head, ..UNLIMITED });
    let guess = |token: &str| {
        let mut stream = TcpStream::connect(test.server.local_addr()).unwrap();
        let access = format!("Authorization: Bearer {token}");
        let request = format!("GET /stats HTTP/1.1\r\nHost: x\r\n{access}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let mut guessers: Vec<_> = (0..100).map(|_| guess("x")).collect();
    for _ in 0..50 {
        assert_eq!(test.ask_as(None, "GET", "/healthz", b"").status, 200);
        assert_eq!(test.get("/stats").status, 200, "the right token is not delayed");
        guessers.push(guess("x"));
    }
}

#[test]
fn a_request_with_a_wrong_token_gets_its_answer_after_the_delay() {
    let test = TestServer::with(Timeouts { refusal: SHORT, ..UNLIMITED });
    let asked = std::time::Instant::now();
    test.ask_as(Some("x"), "GET", "/stats", b"").error(401);
    assert!(asked.elapsed() >= SHORT);
}

#[test]
fn a_request_without_a_token_is_refused_without_a_delay() {
    let test = TestServer::with(Timeouts { refusal: UNLIMITED.head, ..UNLIMITED });
    test.ask_as(None, "GET", "/stats", b"").error(401);
}

#[test]
fn idle_authenticated_connections_leave_slots_for_new_connections() {
    let test = TestServer::new();
    let request =
        format!("GET /stats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", test.token);
    let held: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(test.server.local_addr()).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
            assert_eq!(test.ask_as(None, "GET", "/healthz", b"").status, 200);
            stream
        })
        .collect();
    drop(held);
}

#[test]
fn without_the_token_a_connection_gets_one_answer() {
    let test = TestServer::new();
    for (request, status) in [
        ("GET /healthz", 200),
        ("GET /readyz", 200),
        ("HEAD /healthz", 200),
        ("GET /", 200),
        ("GET /stats", 401),
        ("GET /nothing", 404),
        ("POST /healthz", 405),
    ] {
        let request = format!("{request} HTTP/1.1\r\nConnection: keep-alive\r\nHost: x\r\n\r\n");
        // All of it fits into what is read at once.
        let answer = test.raw(request.repeat(20).as_bytes());
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.head.contains("\r\nconnection: close"), "{}", answer.head);
        assert!(!answer.body.contains("HTTP/1.1 "), "a second answer: {}", answer.body);
    }
    let old = test.raw(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((old.status, &*old.body), (200, "ok\n"));
}

#[test]
fn with_the_token_a_connection_gets_all_its_answers() {
    let test = TestServer::new();
    let request = |path: &str, close: &str| {
        let access = format!("Authorization: Bearer {}", test.token);
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n{access}\r\n{close}\r\n")
    };
    // Also for health, once the token was shown where it is needed.
    let requests = [
        request("/users/7", "").repeat(3),
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".into(),
        request("/users/8", "Connection: close\r\n"),
    ];
    let answers = test.raw(requests.concat().as_bytes());
    assert_eq!(1 + answers.body.matches("HTTP/1.1 200 OK").count(), 5, "{}", answers.body);
}

#[test]
fn a_client_that_continues_to_send_after_its_answer_is_disconnected() {
    let test = TestServer::new();
    let mut client = TcpStream::connect(test.server.local_addr()).unwrap();
    client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (chunk, mut sent) = (vec![b'x'; 64 * 1024], 0);
    while let Ok(count) = client.write(&chunk) {
        sent += count;
        // What the gateway reads, and what the kernel's buffers hold.
        assert!(sent < 64 << 20, "the gateway reads on");
    }
}

#[test]
fn an_address_in_use_is_named() {
    let test = TestServer::new();
    let folder = tempfile::tempdir().unwrap();
    let config = AdminConfig {
        listen: test.server.local_addr(),
        token_file: folder.path().join("token"),
        body_bytes_max: BODY_BYTES_MAX,
    };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let error = serve(&config, Arc::<Fake>::default(), metrics, about()).unwrap_err().to_string();
    assert!(error.contains("on 127.0.0.1:") && error.contains("--admin"), "{error}");
}
