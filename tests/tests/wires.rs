//! Listeners with TLS, WebSocket and PROXY headers: the same protocol on each wire, clients of other makes, certificates that
//! change, and clients at the wrong port.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use prost::Message as _;
use rustix::process::Signal;
use tidegate_protocol::proto::demo::JoinRoom;
use tidegate_protocol::proto::v1::Position;
use tidegate_tests::gateway::address_of;
use tidegate_tests::phone::{End, demo, login_frame, request_frame, said};
use tidegate_tests::process::Process;
use tidegate_tests::wire::{CHAIN_FILE, KEY_FILE, client_config, write_certificate};
use tidegate_tests::{Code, Gateway, Phone, Setup, TIMEOUT, Wire, until};

/// Certificates that replace one another in the test of that.
const CERTIFICATES: usize = 100;

fn connected(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// What comes until the connection ends. A reset is an end, too.
fn read_to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("{error}, after {all:?}"),
        }
    }
}

#[test]
fn each_wire_serves_requests_rooms_resumes_kicks_and_a_drain() {
    let gateway = Setup::demo().wires().start();
    let operator = gateway.operator();
    let mut at_the_end = Vec::new();
    for (user_id, wire) in (7_u64..).zip(Wire::ALL) {
        let mut phone = gateway.login_over(wire, user_id);
        phone.assert_is_served();
        let large = vec![7; 50_000];
        assert_eq!(phone.ask(demo::ECHO, &large), Ok(large.into()), "{wire:?}");
        let room = format!("room-{user_id}");
        phone.join(&room, 0);
        let joined = phone.joined();
        assert_eq!(operator.push_room(&room, 50, b"one"), 1);
        let push = phone.push();
        assert_eq!((&push.biz_data[..], push.room), (&b"one"[..], joined.number), "{wire:?}");
        phone.stop_sending();
        phone.end();
        operator.wait_for_total("sessions", at_the_end.len() as u64);

        assert_eq!(operator.push_room(&room, 50, b"two"), 0);
        let mut phone = gateway.connect_over(wire);
        let (log, offset, ticket) = (joined.log, push.offset, joined.ticket);
        let session =
            phone.login_again(user_id, &[Position { room: room.clone(), log, offset, ticket }]);
        assert!(session.rooms.iter().any(|joined| joined.name == room), "{wire:?}");
        assert_eq!(&phone.push().biz_data[..], b"two", "{wire:?}");
        assert_eq!(operator.kick(user_id), 1);
        phone.goodbye(Code::Kicked);
        at_the_end.push((wire, gateway.login_over(wire, user_id)));
    }
    // Everybody gets a push at once: those of one frame, and those who encrypt it.
    assert_eq!(operator.push_all(60, b"to all"), Wire::ALL.len() as u64);
    for (wire, phone) in &mut at_the_end {
        assert_eq!(&phone.push().biz_data[..], b"to all", "{wire:?}");
    }
    gateway.terminate();
    for (wire, phone) in &mut at_the_end {
        phone.goodbye(Code::Draining);
        let code = matches!(wire, Wire::Ws | Wire::Wss).then_some(1000);
        assert_eq!(phone.close_code(), code, "{wire:?}");
    }
}

#[test]
fn tide_speaks_each_wire_with_a_certificate_of_its_own_making() {
    let setup = Setup::demo()
        .listener("tls", Wire::Tls)
        .listener("ws", Wire::Ws)
        .listener("wss", Wire::Wss)
        .set("tls.certificates.dev.chain_file", ".tidegate/dev-cert.pem")
        .set("tls.certificates.dev.key_file", ".tidegate/dev-key.pem");
    let mut tide = Command::new(&tidegate_tests::programs::programs().tide);
    let (status, said, log) =
        Process::run(tide.args(["cert", "--dev"]).current_dir(setup.folder()), "");
    assert!(status.success(), "{log}");
    for line in ["[tls.certificates.dev]", "tide client --connect wss://localhost:7481/ --ca"] {
        assert!(said.contains(line), "{said}");
    }
    let gateway = setup.start();
    let (_, said, log) = gateway.tide(&["cert", "--dev"], "");
    assert!(said.is_empty() && log.contains("never overwritten"), "{said}{log}");
    for wire in Wire::ALL {
        let place = gateway.place(wire);
        // By name: the certificate is for localhost.
        let named = place.replace("127.0.0.1", "localhost");
        let arguments = ["client", "--user", "7", "--demo-token", "--ca", ".tidegate/dev-cert.pem"];
        let arguments = [&arguments[..], &["--connect", &named]].concat();
        let (status, said, log) = gateway.tide(&arguments, "echo hello\nreconnect\nping\n");
        assert!(status.success() && said.contains("ok echo: hello"), "{place}: {said}{log}");
        for scenario in ["connect", "request", "broadcast", "storm", "show"] {
            let show = ["--arrive", "300ms", "--leave", "300ms", "--question-every", "200ms"];
            let show = if scenario == "show" { &show[..] } else { &[] };
            let arguments = [scenario, "--connections", "9", "--warmup", "0"];
            bench(&gateway, &place, &[&arguments[..], show].concat());
        }
        bench(&gateway, &place, &["connect", "--cycle", "--connections", "3"]);
    }
}

/// Measures for a short time, and for longer where the machine was too busy to measure anything in that time.
fn bench(gateway: &Gateway, place: &str, arguments: &[&str]) {
    const DURATIONS: [&str; 4] = ["300ms", "1s", "4s", "16s"];
    let common = ["--insecure", "--json", "--connect", place];
    for duration in DURATIONS {
        let arguments = [&["bench"], arguments, &common, &["--duration", duration]].concat();
        let (status, said, log) = gateway.tide(&arguments, "");
        if status.success() {
            return;
        }
        let is_short = log.contains("nothing was measured") && duration != DURATIONS[3];
        assert!(is_short, "{arguments:?}: {said}{log}");
    }
}

#[test]
fn tide_says_what_to_write_instead_of_a_wrong_place() {
    let gateway = Setup::demo().wires().start();
    let of = |wire: Wire| address_of(&gateway.place(wire));
    let try_instead = |wire: Wire| format!("try --connect {}", gateway.place(wire));
    let (untrusted, unknown) = ("--ca FILE".to_owned(), "404 Not Found".to_owned());
    let cases = [
        (format!("{}", of(Wire::Tls)), try_instead(Wire::Tls)),
        (format!("{}", of(Wire::Ws)), try_instead(Wire::Ws)),
        (format!("tls://{}", of(Wire::Tcp)), try_instead(Wire::Tcp)),
        (format!("tls://{}", of(Wire::Ws)), try_instead(Wire::Ws)),
        (format!("tls://{}", of(Wire::Wss)), try_instead(Wire::Wss)),
        (format!("wss://{}", of(Wire::Tls)), try_instead(Wire::Tls)),
        (format!("ws://{}", of(Wire::Wss)), try_instead(Wire::Wss)),
        (format!("ws://{}", of(Wire::Tcp)), "is it a plain listener?".to_owned()),
        (format!("ws://{}/elsewhere", of(Wire::Ws)), unknown),
        (format!("tls://{}", of(Wire::Tls)), untrusted),
    ];
    for (place, hint) in &cases {
        // The last one's certificate is not trusted: the others accept any.
        let trust = if hint.contains("--ca") { &[][..] } else { &["--insecure"] };
        for scenario in [
            &["client", "--user", "7", "--demo-token"][..],
            &["bench", "connect", "--connections", "1"],
        ] {
            let arguments = [scenario, &["--connect", place], trust].concat();
            let (status, said, log) = gateway.tide(&arguments, "ping\n");
            assert!(!status.success(), "{arguments:?}: {said}{log}");
            assert!(log.contains(hint.as_str()), "{arguments:?} should say {hint}: {said}{log}");
        }
    }
    gateway.login(7).assert_is_served();
}

#[test]
fn a_client_at_another_wires_port_gets_a_clear_end() {
    let gateway = Setup::demo().wires().start();
    let sent_to = |wire: Wire, bytes: &[u8]| {
        let mut stream = connected(gateway.address(wire));
        stream.write_all(bytes).unwrap();
        read_to_the_end(&mut stream)
    };
    let login = login_frame(7, 1);
    for wire in [Wire::Tls, Wire::Wss] {
        let alert = sent_to(wire, &login);
        assert_eq!(alert[..2], [0x15, 0x03], "{wire:?}: an alert: {alert:?}");
    }
    let answer = sent_to(Wire::Ws, &login);
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = sent_to(Wire::Ws, request);
    assert!(answer.starts_with(b"HTTP/1.1 426 "), "{}", String::from_utf8_lossy(&answer));

    // What TLS and HTTP begin with is no frame.
    for first in [
        &[0x16, 0x03, 0x01, 0x00, 0x05, 1, 0, 0, 1, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9][..],
        &[b'G'; 80],
    ] {
        let mut phone = gateway.connect();
        phone.send_bytes(first);
        phone.goodbye_of_malformed();
    }
    gateway.login(7).assert_is_served();
}

/// rustls keeps where it has found the second message.
#[test]
fn two_bad_handshake_messages_in_one_record_get_an_alert() {
    let gateway = Setup::demo().wires().start();
    let message = [1, 0, 0, 1, 9];
    let record = [&[0x16, 3, 1, 0, 10][..], &message, &message].concat();
    for wire in [Wire::Tls, Wire::Wss] {
        let mut stream = connected(gateway.address(wire));
        stream.write_all(&record).unwrap();
        let alert = read_to_the_end(&mut stream);
        assert_eq!(alert[..2], [0x15, 0x03], "{wire:?}: {alert:?}");
        gateway.login_over(wire, 7).assert_is_served();
    }
}

#[test]
fn proxy_headers_count_from_trusted_addresses_alone() {
    let setup = Setup::demo().flag("--log").flag("debug");
    let setup = setup.listener("a", Wire::Tcp).set("listeners.a.proxy_from", r#"["127.0.0.0/8"]"#);
    let setup = setup.listener("b", Wire::Tcp).set("listeners.b.proxy_from", r#"["192.0.2.0/24"]"#);
    let gateway = setup.start();
    let places = gateway.places();
    let [_, trusting, distrusting] = &places[..] else { panic!("{places:?}") };
    let header_1 = b"PROXY TCP4 203.0.113.9 198.51.100.1 5000 7400\r\n".to_vec();
    let mut header_2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header_2.extend([203, 0, 113, 77, 198, 51, 100, 1, 0x13, 0x88, 0x1c, 0xe8]);
    for (header, address) in [(&header_1, "203.0.113.9"), (&header_2, "203.0.113.77")] {
        let mut phone = Phone::connect(address_of(trusting));
        // In two parts, and the login right behind it.
        phone.send_bytes(&header[..9]);
        phone.send_bytes(&[&header[9..], &login_frame(7, 1)].concat());
        phone.assert_is_served();
        gateway.process.stderr.wait_for(address);
    }
    let closed = |cause: &str, count: f64| {
        let name = "tidegate_connections_closed_total";
        gateway.operator().wait_for_metric(name, &format!("\"{cause}\""), |value| value == count);
    };
    for garbage in [&b"PROXY NONSENSE\r\n"[..], b"PROXY TCP4 1.2.3 x y z\r\n", &login_frame(7, 1)] {
        let mut stream = connected(address_of(trusting));
        stream.write_all(garbage).unwrap();
        assert_eq!(read_to_the_end(&mut stream), b"", "{garbage:?}");
    }
    closed("no_proxy_header", 3.0);
    let mut stream = connected(address_of(distrusting));
    // It may be closed already.
    drop(stream.write_all(b"PROXY TCP4 198.18.0.1 198.51.100.1 5000 7400\r\n"));
    assert_eq!(read_to_the_end(&mut stream), b"");
    closed("untrusted", 1.0);
    assert!(!gateway.process.stderr.so_far().contains("198.18.0.1"), "a lie is in the log");
    // A header where none is expected is no frame.
    let mut phone = gateway.connect();
    phone.send_bytes(&header_1);
    phone.send_bytes(&[b'x'; 80]);
    phone.goodbye_of_malformed();
}

#[test]
fn certificates_change_under_load_and_nobody_notices() {
    let gateway = Setup::demo().wires().start();
    let mut staying: Vec<_> = (100..)
        .zip([Wire::Tls, Wire::Wss, Wire::Ws])
        .map(|(id, wire)| gateway.login_over(wire, id))
        .collect();
    // All are made and trusted before the first change: a handshake may take longer than several changes.
    let folders: Vec<_> = (0..CERTIFICATES).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut chains = vec![gateway.certificate()];
    for folder in &folders {
        write_certificate(folder.path());
        chains.push(fs::read_to_string(folder.path().join(CHAIN_FILE)).unwrap());
    }
    let trusted: Vec<&str> = chains.iter().map(String::as_str).collect();
    let (stop, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (tls, wss) = (gateway.address(Wire::Tls), gateway.address(Wire::Wss));
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0_u64.. {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (wire, address) =
                    if number % 2 == 0 { (Wire::Tls, tls) } else { (Wire::Wss, wss) };
                let config = |alpn: &str| client_config(&trusted, alpn);
                let mut phone = Phone::connect_over(address, wire, config).unwrap();
                phone.login(1000 + number);
                phone.assert_is_served();
                handshakes.fetch_add(1, Ordering::AcqRel);
            }
        });
        // The thread ends also where this one fails.
        let _stop = StopAtTheEnd(&stop);
        for (folder, chain) in folders.iter().zip(&chains[1..]) {
            for file in [KEY_FILE, CHAIN_FILE] {
                fs::copy(folder.path().join(file), gateway.folder().join(file)).unwrap();
            }
            gateway.process.signal(Signal::HUP);
            until("a new connection gets the new certificate", || {
                Phone::connect_over(tls, Wire::Tls, |alpn| client_config(&[chain], alpn)).ok()
            });
            staying.iter_mut().for_each(Phone::assert_is_served);
        }
        let enough = handshakes.load(Ordering::Acquire) + 2;
        until("handshakes after the last change", || {
            (handshakes.load(Ordering::Acquire) >= enough).then_some(())
        });
    });
    staying.iter_mut().for_each(Phone::assert_is_served);
}

struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_bad_certificate_changes_nothing_and_the_log_says_why() {
    let gateway = Setup::demo().wires().start();
    let good = gateway.certificate();
    let serves_the_good_one = |gateway: &Gateway| {
        let config = |alpn: &str| client_config(&[&good], alpn);
        Phone::connect_over(gateway.address(Wire::Tls), Wire::Tls, config).unwrap().login(7);
    };
    let reload = |gateway: &Gateway| {
        gateway.tide(&["reload", "--admin", &gateway.operators().to_string()], "")
    };
    let (status, said, log) = reload(&gateway);
    assert!(status.success() && said.contains("nothing has changed"), "{said}{log}");

    let chain_file = gateway.folder().join(CHAIN_FILE);
    let other = tempfile::tempdir().unwrap();
    write_certificate(other.path());
    let others = fs::read_to_string(other.path().join(CHAIN_FILE)).unwrap();
    for (bad, why) in [("garbage", "no certificate in"), (&*others, "don't fit together")] {
        fs::write(&chain_file, bad).unwrap();
        gateway.process.signal(Signal::HUP);
        gateway.process.stderr.wait_for(why);
        let (status, said, log) = reload(&gateway);
        assert!(!status.success() && log.contains(why) && log.contains(CHAIN_FILE), "{said}{log}");
        serves_the_good_one(&gateway);
    }
    fs::write(&chain_file, &good).unwrap();
    let (status, said, log) = reload(&gateway);
    assert!(status.success() && said.contains("nothing has changed"), "{said}{log}");

    write_certificate(gateway.folder());
    // The gateway looks at the files by itself, too, and may be first.
    let (status, said, log) = reload(&gateway);
    assert!(
        status.success()
            && (said.contains("new certificates") || said.contains("nothing has changed")),
        "{said}{log}"
    );
    gateway.login_over(Wire::Tls, 8).assert_is_served();
}

/// The version that `openssl s_client` negotiates.
///
/// # Errors
/// The handshake failed: what it says.
fn openssl(gateway: &Gateway, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("openssl");
    let address = gateway.address(Wire::Tls).to_string();
    command.args(["s_client", "-connect", &address, "-servername", "localhost"]).args(arguments);
    command.args(["-CAfile", CHAIN_FILE, "-verify_return_error", "-alpn", "tidegate/1"]);
    let (status, said, log) = Process::run(command.current_dir(gateway.folder()), "Q\n");
    let line = said.lines().find_map(|line| line.strip_prefix("New, "));
    let version = line.and_then(|line| line.split(',').next());
    let version = version.filter(|version| status.success() && version.starts_with("TLS"));
    let Some(version) = version else { return Err(log) };
    assert!(said.contains("ALPN protocol: tidegate/1"), "{said}");
    Ok(version.to_owned())
}

/// openssl offers an old version alone, and the gateway refuses it. (By itself openssl refuses the oldest ones unless it is
/// told to accept weak ciphers.)
fn assert_is_too_old(gateway: &Gateway, version: &str) {
    let refused = openssl(gateway, &[version, "-cipher", "ALL:@SECLEVEL=0"]).expect_err(version);
    assert!(refused.contains("SSL alert number"), "{version}: {refused}");
}

#[test]
fn openssl_gets_tls_1_3_and_an_older_version_by_choice_alone() {
    let gateway = Setup::demo().wires().start();
    assert_eq!(openssl(&gateway, &[]).unwrap(), "TLSv1.3");
    for old in ["-tls1", "-tls1_1", "-tls1_2"] {
        assert_is_too_old(&gateway, old);
    }
    let gateway = Setup::demo().wires().set("tls.version_min", "1.2").start();
    assert_eq!(openssl(&gateway, &[]).unwrap(), "TLSv1.3");
    assert_eq!(openssl(&gateway, &["-tls1_2"]).unwrap(), "TLSv1.2");
    for old in ["-tls1", "-tls1_1"] {
        assert_is_too_old(&gateway, old);
    }
}

/// A page that logs in, joins a room, and answers the first push there.
fn page(place: &str, user_id: u64) -> String {
    let join = JoinRoom { room: "web".into(), last_offset: 0 }.encode_to_vec();
    let login = login_frame(user_id, 1);
    let join = request_frame(demo::JOIN, &join, 2);
    let answer = request_frame(demo::SAY, &said("web", "a browser was here"), 3);
    format!(
        "<!doctype html><script>
        const socket = new WebSocket('{place}', ['tidegate.v1']);
        socket.binaryType = 'arraybuffer';
        const next = [{join:?}, {answer:?}];
        socket.onopen = () => socket.send(new Uint8Array({login:?}));
        socket.onmessage = ({{data}}) => {{
            const bytes = new Uint8Array(data), start = bytes[0] < 128 ? 1 : 2;
            // Field 1 is the type, as zigzag. A session has type 0, and so no such field.
            const type = bytes[start] === 8 ? bytes[start + 1] : 0;
            if (type === 0 && next.length === 2) socket.send(new Uint8Array(next.shift()));
            if (type === 100 && next.length === 1) socket.send(new Uint8Array(next.shift()));
        }};
        </script>"
    )
}

/// A headless Chromium. It ends when its debugging pipe closes.
struct Browser(Child);

impl Browser {
    fn open(page: &std::path::Path, profile: &std::path::Path) -> Self {
        const START: &str = "exec timeout --kill-after=5 300 \"$(command -v chromium || command -v chromium-browser || \
            command -v google-chrome || echo chromium)\" --headless --no-sandbox --disable-gpu --no-first-run \
            --disable-dev-shm-usage --user-data-dir=\"$1\" --remote-debugging-pipe \"file://$2\" 3<&0 4>/dev/null \
            </dev/null >/dev/null";
        let child = Command::new("sh")
            .args(["-c", START, "sh"])
            .args([profile, page])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

#[test]
fn a_browser_logs_in_over_a_websocket() {
    let gateway = Setup::demo().wires().start();
    let mut phone = gateway.login(7);
    phone.join("web", 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    fs::write(&file, page(&gateway.place(Wire::Ws), 42)).unwrap();
    let _browser = Browser::open(&file, &folder.path().join("profile"));
    let operator = gateway.operator();
    until("the browser is in the room", || (operator.members("web") == 2).then_some(()));
    operator.push_room("web", 50, b"are you there?");
    assert_eq!(&phone.push().biz_data[..], b"are you there?");
    assert_eq!(phone.push().text(), "a browser was here");
}

#[test]
fn the_package_ws_of_node_logs_in_over_both_kinds_of_websockets() {
    // scripts/install-test-deps has brought it.
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ws/node_modules");
    let script = r"
        const WebSocket = require('ws');
        const [place, ca, ...frames] = process.argv.slice(1);
        const socket = new WebSocket(place, ['tidegate.v1'], { ca: require('fs').readFileSync(ca) });
        socket.on('open', () => socket.send(Buffer.from(frames.shift(), 'hex')));
        socket.on('error', (error) => { console.error(error); process.exit(1); });
        socket.on('message', (data) => {
            console.log(data.toString('hex'));
            if (frames.length > 0) socket.send(Buffer.from(frames.shift(), 'hex'));
            else socket.close(1000);
        });
        socket.on('close', (code) => { console.log('closed ' + code); });
    ";
    let gateway = Setup::demo().wires().start();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for wire in [Wire::Ws, Wire::Wss] {
        let mut node = Command::new("node");
        let echo = hex(&request_frame(demo::ECHO, b"from node", 2));
        let place = gateway.place(wire).replace("127.0.0.1", "localhost");
        node.args(["-e", script, &place, CHAIN_FILE, &hex(&login_frame(7, 1)), &echo]);
        node.env("NODE_PATH", modules).current_dir(gateway.folder());
        let (status, said, log) = Process::run(&mut node, "");
        assert!(status.success(), "{wire:?}: {said}{log}");
        assert!(said.contains(&hex(b"from node")), "{wire:?}: {said}");
        assert!(said.ends_with("closed 1000\n"), "{wire:?}: {said}");
    }
}

/// Ends of connections that broke the protocol.
trait Malformed {
    fn goodbye_of_malformed(&mut self);
}

impl Malformed for Phone {
    /// The answer is a failure of the request, and the connection ends. Unread bytes may make the end a reset.
    fn goodbye_of_malformed(&mut self) {
        let end = self.end();
        assert!(matches!(end, End::Closed | End::Reset));
        let event = self.next();
        assert!(format!("{event:?}").contains("Malformed"), "{event:?}");
    }
}
