//! One session against rustls' own client.

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion};
use std::io::{Read as _, Write as _};
use tidegate_testing::wire::{RecordKind, Records, WireClient, WireKind, certificate};

use super::*;

struct Pair {
    client: ClientConnection,
    server: TlsSession,
    /// What the server has received.
    received: Vec<u8>,
    /// What the client has received.
    read: Vec<u8>,
    has_ended: bool,
}

fn client_config(versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let trusted = &certificate().client;
    let provider = Arc::clone(trusted.crypto_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let mut config =
        builder.unwrap().with_root_certificates(certificate().roots.clone()).with_no_client_auth();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    Arc::new(config)
}

impl Pair {
    fn new(config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
        client.set_buffer_limit(None);
        let server = TlsSession::new(Arc::clone(&certificate().server)).unwrap();
        Self { client, server, received: Vec::new(), read: Vec::new(), has_ended: false }
    }

    fn client_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// The client takes what the server has sent.
    fn give(&mut self, mut out: &[u8]) {
        while !out.is_empty() {
            self.client.read_tls(&mut out).unwrap();
            self.client.process_new_packets().unwrap();
            // It would block, or has ended.
            let _ = self.client.reader().read_to_end(&mut self.read);
        }
    }

    /// Moves what the client has to send, in pieces of this length, and what the server answers.
    fn pass(&mut self, piece: usize) {
        loop {
            let mut bytes = self.client_bytes();
            if bytes.is_empty() {
                return;
            }
            let mut out = Vec::new();
            for bytes in bytes.chunks_mut(piece) {
                let received = self.server.receive(bytes, &mut out, &mut self.received).unwrap();
                if received == Received::Ended {
                    assert!(!std::mem::replace(&mut self.has_ended, true), "a second end");
                }
            }
            self.give(&out);
        }
    }

    fn client_reads(&mut self, count: usize) -> Vec<u8> {
        self.read.drain(..count).collect()
    }
}

const V12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const V13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[test]
fn bytes_pass_in_both_directions_in_each_version_however_they_are_cut() {
    for (versions, version) in [(V12, ProtocolVersion::TLSv1_2), (V13, ProtocolVersion::TLSv1_3)] {
        for piece in [1, 2, 7, 100, usize::MAX] {
            let mut pair = Pair::new(&client_config(versions));
            assert_eq!(
                pair.server.encrypt(b"early", &mut Vec::new()),
                Err(Error::HandshakeNotComplete)
            );
            pair.pass(piece);
            assert!(!pair.server.is_handshaking() && !pair.client.is_handshaking());
            assert_eq!(pair.client.protocol_version(), Some(version));
            let sent: Vec<u8> = (0..50_000_u32).map(|index| (index % 251) as u8).collect();
            pair.client.writer().write_all(&sent).unwrap();
            pair.pass(piece);
            assert!(pair.received == sent);
            assert_eq!(pair.server.rest.capacity(), 0, "an idle session has no buffer");
            let mut out = Vec::new();
            for count in [1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 50_000] {
                pair.server.encrypt(&sent[..count], &mut out).unwrap();
                pair.give(&out);
                out.clear();
                assert!(pair.client_reads(count) == sent[..count]);
            }
        }
    }
}

#[test]
fn a_session_is_resumed_in_each_version() {
    for versions in [V12, V13] {
        let config = client_config(versions);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut pair = Pair::new(&config);
            pair.pass(usize::MAX);
            assert_eq!(pair.client.handshake_kind(), Some(kind));
            pair.client.writer().write_all(b"hello").unwrap();
            pair.pass(1);
            assert_eq!(pair.received, b"hello");
        }
    }
}

#[test]
fn both_sides_say_that_they_send_no_more() {
    for versions in [V12, V13] {
        for piece in [1, usize::MAX] {
            let mut pair = Pair::new(&client_config(versions));
            pair.pass(piece);
            pair.client.writer().write_all(b"hello").unwrap();
            pair.client.send_close_notify();
            pair.pass(piece);
            assert_eq!((&pair.received[..], pair.has_ended), (&b"hello"[..], true));
            // What follows is not read, and takes no memory.
            let noise = &mut [7; 1000];
            let received = pair.server.receive(noise, &mut Vec::new(), &mut pair.received);
            assert_eq!(received, Ok(Received::Open));
            assert_eq!((pair.received.len(), pair.server.rest.capacity()), (5, 0));
            let mut out = Vec::new();
            if versions == V13 {
                // In TLS 1.2 an end is one of both directions.
                pair.server.encrypt(b"bye", &mut out).unwrap();
            }
            pair.server.close(&mut out).unwrap();
            pair.give(&out);
            if versions == V13 {
                assert_eq!(pair.client_reads(3), b"bye");
            }
            assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
            assert!(pair.server.encrypt(b"late", &mut Vec::new()).is_err());
        }
    }
}

#[test]
fn keys_are_updated_when_the_client_asks() {
    let mut pair = Pair::new(&client_config(V13));
    pair.pass(usize::MAX);
    for round in 0..50_u8 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(&[round]).unwrap();
        pair.pass(3);
        let mut out = Vec::new();
        pair.server.encrypt(&[round], &mut out).unwrap();
        pair.give(&out);
        assert_eq!(pair.client_reads(1), [round]);
    }
    assert_eq!(pair.received, (0..50).collect::<Vec<u8>>());
}

#[test]
fn garbage_gives_an_alert_and_an_error() {
    let mut damaged = Pair::new(&client_config(V13)).client_bytes();
    damaged[5] = 0xff;
    let record = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; 16 * 1024 - 4]].concat();
    for mut bytes in
        [b"GET / HTTP/1.1\r\n\r\n".to_vec(), damaged, record.repeat(5), vec![0x16; 300]]
    {
        for piece in [1, 50, bytes.len()] {
            let mut server = TlsSession::new(Arc::clone(&certificate().server)).unwrap();
            let (mut out, mut payload) = (Vec::new(), Vec::new());
            let failed = bytes
                .chunks_mut(piece)
                .any(|bytes| server.receive(bytes, &mut out, &mut payload).is_err());
            assert!(failed);
            assert!(out.is_empty() || out.starts_with(b"\x15\x03"), "{out:?}");
            assert!(payload.is_empty());
            assert!(server.rest.len() <= REST_BYTES_MAX, "{}", server.rest.len());
        }
    }
}

#[test]
fn a_client_that_does_not_trust_the_certificate_is_an_error() {
    let provider = Arc::clone(certificate().client.crypto_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(V13);
    let roots = rustls::RootCertStore::empty();
    let config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    let mut pair = Pair::new(&Arc::new(config));
    let mut out = Vec::new();
    let mut hello = pair.client_bytes();
    pair.server.receive(&mut hello, &mut out, &mut Vec::new()).unwrap();
    pair.client.read_tls(&mut &out[..]).unwrap();
    assert!(pair.client.process_new_packets().is_err());
    let mut alert = pair.client_bytes();
    let error = pair.server.receive(&mut alert, &mut out, &mut Vec::new());
    assert_eq!(error, Err(Error::AlertReceived(AlertDescription::UnknownCA)));
}

#[test]
fn a_step_needs_a_whole_record() {
    let server = TlsSession::new(Arc::clone(&certificate().server)).unwrap();
    let hello = Pair::new(&client_config(V13)).client_bytes();
    for cut in 0..hello.len() {
        assert!(!server.has_record(&hello[..cut]), "{cut}");
    }
    assert!(server.has_record(&hello));
    assert!(server.has_record(b"G"), "what is no record is for rustls to refuse");
    assert!(server.has_record(b"\x16\x03\x01\xff\xff"), "a record that is too long fails at once");
}

/// A session after its handshake, and what its client sends from then on.
fn opened() -> (TlsSession, Records) {
    let mut session = TlsSession::new(Arc::clone(&certificate().server)).unwrap();
    let mut client = WireClient::new(WireKind::TLS, 0);
    while session.is_handshaking() {
        let (mut out, mut payload) = (Vec::new(), Vec::new());
        let mut bytes = std::mem::take(&mut client.out);
        session.receive(&mut bytes, &mut out, &mut payload).unwrap();
        client.receive(&out);
    }
    (session, client.into_records())
}

/// A handshake message that no server expects after the handshake: an empty `Finished`.
const BAD_MESSAGE: &[u8] = &[20, 0, 0, 0];

/// What a client sends in one write, such that TLS fails while it still knows of messages in those bytes.
fn fatal(records: &mut Records, behind: &[(RecordKind, &[u8])]) -> Vec<u8> {
    let first = (RecordKind::Data, &b"hello"[..]);
    let content = std::iter::once(&first).chain(behind);
    content.flat_map(|(kind, content)| records.record(*kind, content)).collect()
}

const FATAL: [&[(RecordKind, &[u8])]; 4] = [
    // Two messages in one record: the second is known, and not read.
    &[(RecordKind::Handshake, &[20, 0, 0, 0, 20, 0, 0, 0])],
    // The beginning of a message, and then something else.
    &[(RecordKind::Handshake, &[20, 0, 1]), (RecordKind::Data, b"more")],
    &[(RecordKind::Handshake, &[20, 0, 0, 9, 1, 2]), (RecordKind::Alert, &[2, 0])],
    &[(RecordKind::Handshake, BAD_MESSAGE), (RecordKind::Data, b"more")],
];

#[test]
fn a_session_that_has_failed_says_nothing_more_and_does_not_panic() {
    for content in FATAL {
        for piece in [usize::MAX, 30, 1] {
            let (mut session, mut records) = opened();
            let (mut out, mut payload) = (Vec::new(), Vec::new());
            let mut bytes = fatal(&mut records, content);
            let piece = piece.min(bytes.len());
            let mut failed =
                bytes.chunks_mut(piece).map(|bytes| session.receive(bytes, &mut out, &mut payload));
            assert!(failed.any(|received| received.is_err()), "{content:?}");
            assert_eq!(payload, b"hello", "what came before is good");
            out.clear();
            assert!(session.encrypt(b"pong", &mut out).is_err());
            assert!(session.close(&mut out).is_err());
            let mut later = records.record(RecordKind::Data, b"later");
            assert!(session.receive(&mut later, &mut out, &mut payload).is_err());
            assert!(session.encrypt(b"pong", &mut out).is_err());
            assert_eq!((out.len(), &payload[..], session.rest.capacity()), (0, &b"hello"[..], 0));
        }
    }
}

#[test]
fn a_message_that_is_too_long_leaves_a_session_that_has_failed() {
    let (mut session, mut records) = opened();
    let (mut out, mut payload) = (Vec::new(), Vec::new());
    // A message of 60,000 bytes, in records of 15,000.
    let content = [&[20, 0, 0xea, 0x60][..], &[0; 15_000 - 4]].concat();
    let failed = (0..4).any(|number| {
        let part = if number == 0 { &content[..] } else { &[0; 15_000] };
        let mut record = records.record(RecordKind::Handshake, part);
        session.receive(&mut record, &mut out, &mut payload).is_err()
    });
    assert!(failed);
    out.clear();
    assert!(session.encrypt(b"pong", &mut out).is_err() && session.close(&mut out).is_err());
    assert!(out.is_empty());
}
