//! Each wire against rustls' own server and tungstenite's own server, with bytes that arrive one at a time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tidegate_tls::fixture::{RecordKind, Records, certificate, server_name};
use tungstenite::Message;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::http::HeaderValue;

use super::*;

/// A server of one connection, which sends back what it gets.
struct Server {
    place: Place,
    address: SocketAddr,
    ca: tempfile::NamedTempFile,
    _thread: JoinHandle<()>,
}

impl Server {
    fn start(kind: WireKind) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        ca.write_all(cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols =
            vec![if kind.has_websocket() { "http/1.1" } else { "tidegate/1" }.into()];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let place = format!("{}localhost:{}", kind.scheme(), address.port()).parse().unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let tls = || ServerConnection::new(Arc::new(config)).unwrap();
            // The client may go at any moment.
            match kind {
                WireKind::Plain => drop(echo(stream)),
                WireKind::Tls => drop(echo(StreamOwned::new(tls(), stream))),
                WireKind::WebSocket => _ = echo_messages(stream),
                WireKind::SecureWebSocket => {
                    _ = echo_messages(StreamOwned::new(tls(), stream));
                }
            }
        });
        Self { place, address, ca, _thread: thread }
    }

    fn trust(&self) -> Trust {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            trust: Trust,
        }
        Line::parse_from(["tide", "--ca", self.ca.path().to_str().unwrap()]).trust
    }
}

fn echo(mut stream: impl std::io::Read + std::io::Write) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
        stream.flush()?;
    }
}

#[expect(clippy::result_large_err, reason = "tungstenite has it so")]
fn echo_messages(stream: impl std::io::Read + std::io::Write) -> Option<()> {
    let accept = |request: &Request, mut response: Response| {
        assert_eq!(request.headers()["sec-websocket-protocol"], "tidegate.v1");
        let protocol = HeaderValue::from_static("tidegate.v1");
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let mut websocket = tungstenite::accept_hdr(stream, accept).ok()?;
    websocket.send(Message::Ping("are you there?".into())).ok()?;
    // Messages are echoed once the pong has come.
    let (mut has_pong, mut messages) = (false, Vec::new());
    loop {
        match websocket.read().ok()? {
            Message::Pong(payload) => {
                assert_eq!(payload, "are you there?");
                has_pong = true;
            }
            message if message.is_binary() => messages.push(message),
            _ => {}
        }
        if has_pong {
            for message in messages.drain(..) {
                websocket.send(message).ok()?;
            }
        }
    }
}

/// Opens a wire, has bytes echoed, and closes it.
fn round_trip(server: &Server, trust: &Trust, read_bytes: usize) -> Result<(), String> {
    let dialer = Dialer::new(trust, [&server.place]).unwrap();
    let mut stream = TcpStream::connect(server.address).unwrap();
    let mut out = Vec::new();
    let wire = dialer.start(&server.place, server.address, &mut out);
    let mut wire = wire.map_err(|error| error.explain(&server.place))?.expect("a wire");
    let sent: Vec<u8> = (0..5000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let (mut payload, mut has_sent) = (Vec::new(), false);
    let mut buffer = vec![0; read_bytes];
    while payload.len() < sent.len() {
        if wire.is_open() && !has_sent {
            has_sent = true;
            wire.send(&sent, &mut out).unwrap();
        }
        stream.write_all(&out).unwrap();
        out.clear();
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return Err(wire.ended_early().explain(&server.place));
        }
        let received = wire.receive(&mut buffer[..count], &mut payload, &mut out);
        let progress = received.map_err(|error| error.explain(&server.place))?;
        assert!(!progress.has_opened || wire.is_open());
    }
    assert_eq!(payload, sent);
    wire.goodbye(&mut out);
    stream.write_all(&out).unwrap();
    Ok(())
}

#[test]
fn each_wire_carries_bytes_however_they_are_cut() {
    for kind in [WireKind::Tls, WireKind::WebSocket, WireKind::SecureWebSocket] {
        for read_bytes in [1, 7, 16 * 1024] {
            let server = Server::start(kind);
            round_trip(&server, &server.trust(), read_bytes).unwrap();
        }
    }
}

/// A wire with TLS after its handshake, and what its gateway sends from then on.
fn open_wire() -> (Wire, Records) {
    let tls = Tls::new(Arc::clone(&certificate().client), server_name()).unwrap();
    let mut gateway = ServerConnection::new(Arc::clone(&certificate().server)).unwrap();
    let mut out = Vec::new();
    let mut wire = Wire::start(Some(tls), None, &mut out).unwrap();
    loop {
        let mut sent = &out[..];
        while !sent.is_empty() {
            gateway.read_tls(&mut sent).unwrap();
            gateway.process_new_packets().unwrap();
        }
        out.clear();
        let mut bytes = Vec::new();
        while gateway.wants_write() {
            gateway.write_tls(&mut bytes).unwrap();
        }
        if bytes.is_empty() {
            assert!(wire.is_open());
            return (wire, Records::after(gateway));
        }
        wire.receive(&mut bytes, &mut Vec::new(), &mut out).unwrap();
    }
}

#[test]
fn a_gateway_that_breaks_tls_can_not_make_a_wire_panic() {
    let (mut wire, mut records) = open_wire();
    let (mut payload, mut out) = (Vec::new(), Vec::new());
    // The beginning of a handshake message, and then something else: rustls still knows of that message, and has no alert.
    let beginning = records.record(RecordKind::Handshake, &[20, 0, 1]);
    let mut bytes = [beginning, records.record(RecordKind::Data, b"more")].concat();
    let received = wire.receive(&mut bytes, &mut payload, &mut out);
    assert!(matches!(received, Err(WireError::Tls(_))), "{received:?}");
    let mut later = records.record(RecordKind::Data, b"later");
    assert!(wire.receive(&mut later, &mut payload, &mut out).is_err());
    assert!(wire.receive(&mut [], &mut payload, &mut out).is_err());
    assert!(wire.send(b"hello", &mut out).is_err());
    wire.goodbye(&mut out);
    assert_eq!((payload.len(), out.len()), (0, 0));
}

#[test]
fn a_certificate_that_is_not_trusted_is_refused_with_advice() {
    let (server, other) = (Server::start(WireKind::Tls), Server::start(WireKind::Tls));
    let said = round_trip(&server, &other.trust(), 4096).unwrap_err();
    assert!(said.contains("--ca FILE"), "{said}");
    let mut named = Server::start(WireKind::Tls);
    named.place = named.place.to_string().replace("localhost", "127.0.0.1").parse().unwrap();
    let said = round_trip(&named, &named.trust(), 4096).unwrap_err();
    assert!(said.contains("a name that its certificate has"), "{said}");
}

#[test]
fn what_speaks_something_else_is_named_with_what_to_write() {
    let at = |server: WireKind, client: WireKind| {
        let mut server = Server::start(server);
        server.place = server.place.with_kind(client);
        let said = round_trip(&server, &server.trust(), 4096).unwrap_err();
        (said, server.place)
    };
    let (said, place) = at(WireKind::Tls, WireKind::SecureWebSocket);
    assert!(said.contains(&place.with_kind(WireKind::Tls).to_string()), "{said}");
    let (said, place) = at(WireKind::SecureWebSocket, WireKind::Tls);
    assert!(said.contains(&place.with_kind(WireKind::SecureWebSocket).to_string()), "{said}");
    let (said, place) = at(WireKind::Tls, WireKind::WebSocket);
    assert!(said.contains(&place.with_kind(WireKind::SecureWebSocket).to_string()), "{said}");
}

#[test]
fn the_first_bytes_show_what_is_spoken() {
    let spoken = Spoken::instead_of_the_protocol;
    assert_eq!(spoken(&[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x32]), Some(Spoken::Tls));
    assert_eq!(spoken(b"HTTP/1.1 400 Bad Request\r\n"), Some(Spoken::Http));
    for protocol in [&b""[..], &[0x15], &[0x15, 0x08, 0x01], &[0x48, 0x08], b"HT"] {
        assert_eq!(spoken(protocol), None, "{protocol:?}");
    }
    assert_eq!(Spoken::instead_of_tls(&[0x16, 0x03, 0x03]), None);
    assert_eq!(Spoken::instead_of_tls(b"HTTP/1.1 400"), Some(Spoken::Http));
    assert_eq!(Spoken::instead_of_tls(&[0x09, 0x10]), Some(Spoken::Other));
}

#[test]
fn any_certificate_is_accepted_on_loopback_alone() {
    use clap::Parser;
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        trust: Trust,
    }
    let trust = Line::parse_from(["tide", "--insecure"]).trust;
    let server = Server::start(WireKind::Tls);
    round_trip(&server, &trust, 4096).unwrap();
    let dialer = Dialer::new(&trust, [&server.place]).unwrap();
    let elsewhere = "192.0.2.1:7443".parse().unwrap();
    let said = dialer.start(&server.place, elsewhere, &mut Vec::new()).unwrap_err();
    assert!(said.explain(&server.place).contains("--insecure is for loopback"), "{said}");
}
