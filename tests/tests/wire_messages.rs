//! What an operator reads where a listener, a certificate or a PROXY header is configured wrongly: the log, `--check-config` and
//! `tide` name the key and say what to do.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use tidegate_tests::gateway::address_of;
use tidegate_tests::http::demo;
use tidegate_tests::phone::login_frame;
use tidegate_tests::process::Process;
use tidegate_tests::wire::{CHAIN_FILE, KEY_FILE, write_certificate};
use tidegate_tests::{Gateway, Phone, Setup, TIMEOUT, Wire, web};

/// Sends bytes and waits until the gateway closes the connection. Returns the address that they came from.
fn refused(address: SocketAddr, bytes: &[u8]) -> SocketAddr {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let from = stream.local_addr().unwrap();
    // It may be closed already. Then the end is a reset.
    drop(stream.write_all(bytes));
    if let Ok(count) = stream.read(&mut [0; 64]) {
        assert_eq!(count, 0, "it was answered");
    }
    from
}

/// Waits for the warning about a connection.
fn wait_for_warning(gateway: &Gateway, listener: &str, peer: SocketAddr, parts: &[&str]) {
    let (listener, peer) = (format!("listener=\"{listener}\""), format!("peer={peer}"));
    let is_of = |line: &&str| {
        let fields = [&*listener, &*peer, "WARN", "suppressed="];
        fields.iter().chain(parts).all(|part| line.contains(part))
    };
    let what = format!("a warning with {listener}, {peer} and {parts:?}");
    gateway.process.stderr.find(&what, |log| log.lines().find(is_of).map(drop));
}

/// The place that is announced as one where clients come with a PROXY header.
fn place_with_header(gateway: &Gateway) -> String {
    gateway.process.stdout.find("a listener with PROXY headers", |said| {
        let whole = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let mut of_balancers =
            whole.filter(|line| line.contains("clients with a PROXY header on "));
        of_balancers.next()?.split_whitespace().last().map(str::to_owned)
    })
}

const FROM_HERE: &str = r#"["127.0.0.0/8"]"#;
const FROM_ELSEWHERE: &str = r#"["192.0.2.0/24"]"#;

#[test]
fn a_mistake_with_proxy_headers_is_a_warning_with_the_setting_that_ends_it() {
    let key = "listeners.balanced.proxy_from";
    let (here, elsewhere, impatient) = (0, 1, 2);
    let cases: [(usize, &[u8], [&str; 2]); 4] = [
        (here, b"GET / HTTP/1.1\r\n\r\n", ["does not begin with a PROXY header", key]),
        (here, b"PROXY NONSENSE\r\n", ["PROXY header is malformed", "version 1 or 2"]),
        (impatient, b"PROXY TCP4 ", ["not complete within limits.open_timeout_ms", key]),
        (elsewhere, b"PROXY UNKNOWN\r\n", ["its address is not in proxy_from", key]),
    ];
    for wire in ["tcp", "tls", "http"] {
        let setup = |trusted: &str| {
            let setup = demo();
            write_certificate(setup.folder());
            let setup = setup
                .set("listeners.balanced.listen", "127.0.0.1:0")
                .set("listeners.balanced.wire", wire)
                .set("listeners.web.wire", "https")
                .set("tls.certificates.main.chain_file", CHAIN_FILE)
                .set("tls.certificates.main.key_file", KEY_FILE);
            setup.set(key, trusted)
        };
        // On a busy machine another mistake would be one of time, too.
        let impatient = setup(FROM_HERE).set("limits.open_timeout_ms", 300);
        let gateways = [setup(FROM_HERE).start(), setup(FROM_ELSEWHERE).start(), impatient.start()];
        // A balancer's health check connects and closes.
        let place = place_with_header(&gateways[0]);
        let health_check = TcpStream::connect(address_of(&place)).unwrap().local_addr().unwrap();
        for (gateway, bytes, parts) in &cases {
            let gateway = &gateways[*gateway];
            let peer = refused(address_of(&place_with_header(gateway)), bytes);
            wait_for_warning(gateway, "balanced", peer, parts);
        }
        let log = gateways[0].process.stderr.so_far();
        assert!(!log.contains(&format!("peer={health_check}")), "it is no mistake: {log}");
    }
}

#[test]
fn a_listener_that_wants_proxy_headers_is_announced_as_one() {
    let setup = Setup::demo().listener("balanced", Wire::Ws);
    let gateway = setup.set("listeners.balanced.proxy_from", FROM_HERE).start();
    gateway.process.stdout.wait_for("Ctrl-C ends the gateway.");
    let said = gateway.process.stdout.so_far();
    let place = gateway.places().pop().unwrap();
    assert!(place.starts_with("ws://127.0.0.1:"), "{said}");
    assert!(said.contains(&format!("clients with a PROXY header on {place}\n")), "{said}");
    let plain = format!("listening for clients on {}\n", gateway.clients());
    assert!(said.contains(&plain), "{said}");
    // The command to try names a listener that tide can use.
    assert!(said.contains(&format!("client --connect {} --user 7", gateway.clients())), "{said}");
    let mut phone = Phone::connect(gateway.clients());
    phone.login(7);
}

/// Makes a certificate as a beginner does, with these further arguments.
fn openssl_certificate(setup: &Setup, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.args(["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    command.args(["-keyout", KEY_FILE, "-out", CHAIN_FILE]).args(arguments);
    let (status, _, log) = Process::run(command.current_dir(setup.folder()), "");
    assert!(status.success(), "{log}");
}

/// A gateway that listens with TLS, and whose certificate the test writes.
fn with_tls() -> Setup {
    Setup::demo()
        .listener("tls", Wire::Tls)
        .set("tls.certificates.main.chain_file", CHAIN_FILE)
        .set("tls.certificates.main.key_file", KEY_FILE)
}

fn log_in_by_name(gateway: &Gateway) -> (bool, String) {
    let place = gateway.place(Wire::Tls).replace("127.0.0.1", "localhost");
    let arguments = ["client", "--user", "7", "--demo-token", "--ca", CHAIN_FILE];
    let arguments = [&arguments[..], &["--connect", &place]].concat();
    let (status, said, log) = gateway.tide(&arguments, "ping\n");
    (status.success(), format!("{said}{log}"))
}

#[test]
fn the_certificate_of_an_authority_is_explained_and_the_advice_makes_a_good_one() {
    const GOOD: &str = "basicConstraints=critical,CA:FALSE";
    let setup = with_tls();
    openssl_certificate(&setup, &[]);
    let gateway = setup.start();
    gateway.process.stderr.wait_for("(CA:TRUE)");
    let (succeeds, said) = log_in_by_name(&gateway);
    let advice = [&format!("-addext {GOOD}")[..], "tide cert --dev", "CA:TRUE"];
    assert!(!succeeds && advice.iter().all(|part| said.contains(part)), "{said}");

    let setup = with_tls();
    openssl_certificate(&setup, &["-addext", GOOD]);
    let gateway = setup.start();
    let (succeeds, said) = log_in_by_name(&gateway);
    assert!(succeeds, "{said}");
    let log = gateway.process.stderr.so_far();
    assert!(!log.contains("tls.certificates"), "a good certificate needs no warning: {log}");
}

/// `--check-config` with this setup: whether it finds the configuration valid, and all that it says.
fn checked(setup: Setup) -> (bool, String) {
    let (status, said, log) = setup.flag("--check-config").run();
    (status.success(), format!("{said}{log}"))
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_file_that_is_missing_is_named_with_its_key_and_what_to_do() {
    let (is_valid, said) = checked(with_tls());
    assert!(!is_valid);
    let chain = format!("tls.certificates.main.chain_file = \"{CHAIN_FILE}\": No such file");
    assert_says(&said, &[&chain, "`tide cert --dev` makes a certificate"]);

    let setup = with_tls();
    write_certificate(setup.folder());
    fs::remove_file(setup.folder().join(KEY_FILE)).unwrap();
    let (status, _, log) = setup.run();
    assert_eq!(status.code(), Some(1));
    assert_says(&log, &[&format!("tls.certificates.main.key_file = \"{KEY_FILE}\": No such file")]);

    let setup = with_tls().set("tls.client_certificates", "required");
    let setup = setup.set("tls.client_ca_file", "clients.pem");
    write_certificate(setup.folder());
    let (is_valid, said) = checked(setup);
    assert!(!is_valid);
    assert_says(&said, &["tls.client_ca_file = \"clients.pem\": No such file"]);
    assert!(!said.contains("tide cert"), "no certificate of a client is made by it: {said}");
}

#[test]
fn a_file_with_something_else_in_it_is_explained_without_raw_bytes() {
    let good = tempfile::tempdir().unwrap();
    write_certificate(good.path());
    let [chain, key] =
        [CHAIN_FILE, KEY_FILE].map(|file| fs::read_to_string(good.path().join(file)).unwrap());
    let cut = key[..key.len() / 2].to_owned();
    let base64 = key.replacen("MI", "M*", 1);
    let key_file = "tls.certificates.main.key_file";
    let chain_file = "tls.certificates.main.chain_file";
    let not_der = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned();
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (chain, key, at, reason) in [
        (&chain, &cut, key_file, "the line \"-----END PRIVATE KEY-----\" is missing"),
        (&chain, &base64, key_file, "is not base64"),
        (&chain, &chain, key_file, "are chain_file and key_file swapped?"),
        (&chain, &String::new(), key_file, "there is no private key in this file: it is empty"),
        (&chain, &"0\u{1}".to_owned(), key_file, "openssl pkey -inform DER"),
        (&chain, &encrypted, key_file, "the key is encrypted"),
        (&chain, &not_der, key_file, "no RSA, ECDSA or Ed25519 key"),
        (&key, &key, chain_file, "are chain_file and key_file swapped?"),
        (&chain[..chain.len() / 2].to_owned(), &key, chain_file, "-----END CERTIFICATE-----"),
    ] {
        let setup = with_tls();
        fs::write(setup.folder().join(CHAIN_FILE), chain).unwrap();
        fs::write(setup.folder().join(KEY_FILE), key).unwrap();
        let (is_valid, said) = checked(setup);
        assert!(!is_valid, "{said}");
        assert_says(&said, &[at, reason]);
        assert!(!said.contains("[80, 82") && !said.contains("[45, 45"), "raw bytes: {said}");
    }
}

#[test]
fn a_valid_configuration_that_clients_refuse_has_warnings() {
    let cases: [(i32, i32, ExtendedKeyUsagePurpose, &str); 3] = [
        (
            2000,
            2001,
            ExtendedKeyUsagePurpose::ServerAuth,
            "the certificate expired on 2001-01-01 00:00:00 UTC",
        ),
        (
            2999,
            3000,
            ExtendedKeyUsagePurpose::ServerAuth,
            "the certificate is not valid before 2999-01-01 00:00:00 UTC",
        ),
        (2000, 3000, ExtendedKeyUsagePurpose::ClientAuth, "usage serverAuth"),
    ];
    for (from, to, usage, text) in cases {
        let setup = || {
            let setup = with_tls();
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            (params.not_before, params.not_after) =
                (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
            params.extended_key_usages = vec![usage.clone()];
            let file = |name: &str| setup.folder().join(name);
            let chain = params.self_signed(&key).unwrap().pem();
            fs::write(file(CHAIN_FILE), chain).unwrap();
            fs::write(file(KEY_FILE), key.serialize_pem()).unwrap();
            fs::set_permissions(file(KEY_FILE), Permissions::from_mode(0o644)).unwrap();
            setup
        };
        let (is_valid, said) = checked(setup());
        assert!(is_valid, "{said}");
        let chain = format!("warning: tls.certificates.main.chain_file = \"{CHAIN_FILE}\"");
        let key = format!("warning: tls.certificates.main.key_file = \"{KEY_FILE}\" has mode 0644");
        assert_says(&said, &[&chain, text, &key, "chmod 600", "the configuration is valid"]);
        let gateway = setup().start();
        for part in [text, "has mode 0644"] {
            gateway.process.stderr.find(part, |log| {
                log.lines().find(|line| line.contains(part) && line.contains("WARN")).map(drop)
            });
        }
    }
    // What is right has none.
    let setup = with_tls();
    write_certificate(setup.folder());
    let private = Permissions::from_mode(0o640);
    fs::set_permissions(setup.folder().join(KEY_FILE), private).unwrap();
    let (is_valid, said) = checked(setup);
    assert!(is_valid && !said.contains("warning"), "{said}");
}

#[test]
fn an_http_listener_without_routes_has_a_warning() {
    let without = || demo().set("http_routes", "[]");
    let text = "listeners.web: there are no [[http_routes]]";
    let (is_valid, said) = checked(without());
    assert!(is_valid, "{said}");
    assert_says(&said, &["warning: ", text]);
    assert_says(&said, &["so each request there gets 404"]);
    without().start().process.stderr.wait_for(text);
    let (is_valid, said) = checked(without().set("http.openapi", true));
    assert!(is_valid, "{said}");
    assert_says(&said, &["so each request there but GET /openapi.json gets 404"]);
    let (is_valid, said) = checked(demo());
    assert!(is_valid && !said.contains("warning"), "{said}");
}

#[test]
fn tide_explains_a_listener_that_it_can_not_use() {
    let setup = demo().listener("balanced", Wire::Tls);
    write_certificate(setup.folder());
    let setup = setup
        .listener("proxied", Wire::Tcp)
        .set("tls.certificates.main.chain_file", CHAIN_FILE)
        .set("tls.certificates.main.key_file", KEY_FILE);
    let gateway = setup
        .set("listeners.balanced.proxy_from", FROM_HERE)
        .set("listeners.proxied.proxy_from", FROM_HERE)
        .start();
    let http = web::address(&gateway);
    let [tls, plain] = [gateway.place(Wire::Tls), gateway.places()[2].clone()];
    assert!(!plain.contains("://"), "{plain}");
    let cases = [
        (http.to_string(), "it serves [[http_routes]] to clients such as curl"),
        (format!("ws://{http}/"), "or its wire is \"http\""),
        (tls, "may want a PROXY header"),
        (plain, "may want a PROXY header"),
    ];
    for (place, text) in &cases {
        let arguments = ["client", "--user", "7", "--demo-token", "--insecure", "--connect", place];
        let (status, said, log) = gateway.tide(&arguments, "ping\n");
        assert!(!status.success(), "{place}: {said}{log}");
        assert!(log.contains(text), "{place} should say {text}: {said}{log}");
        assert!(!log.contains("may be full"), "{place}: {log}");
    }
    // A listener of the same wires without PROXY headers is not concerned.
    let mut phone = gateway.connect();
    phone.send_bytes(&login_frame(7, 1));
    phone.assert_is_served();
}

#[test]
fn peers_that_break_tls_can_not_fill_the_log() {
    let mut gateway = Setup::demo().wires().start();
    let mut stream = TcpStream::connect(gateway.address(Wire::Tls)).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    // A record of application data, where the handshake begins: rustls has a warning for it.
    stream.write_all(b"\x17\x03\x03\x00\x05hello").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..1], [21], "an alert");
    gateway.login_over(Wire::Tls, 1).assert_is_served();
    gateway.terminate();
    assert_eq!(gateway.process.wait().code(), Some(0));
    let log = gateway.process.stderr.all();
    assert!(!log.contains("rustls"), "{log}");
}
