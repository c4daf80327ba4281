//! A server's session against rustls' own client.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, ProtocolVersion,
};

use super::{PIECES, V12, V13, Versions, garbage};
use crate::fixture::{certificate, server_name};
use crate::{RECORD_BYTES_MAX, Received, ServerSession};

struct Pair {
    client: ClientConnection,
    server: ServerSession,
    /// What the server has received.
    received: Vec<u8>,
    /// What the client has received.
    read: Vec<u8>,
    has_ended: bool,
}

fn client_config(versions: Versions) -> Arc<ClientConfig> {
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
        let mut client = ClientConnection::new(Arc::clone(config), server_name()).unwrap();
        client.set_buffer_limit(None);
        let server = ServerSession::new(Arc::clone(&certificate().server)).unwrap();
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

#[test]
fn bytes_pass_in_both_directions_in_each_version_however_they_are_cut() {
    for (versions, version) in [(V12, ProtocolVersion::TLSv1_2), (V13, ProtocolVersion::TLSv1_3)] {
        for piece in PIECES {
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
fn nothing_follows_the_own_end_and_the_peer_may_still_send() {
    let mut pair = Pair::new(&client_config(V13));
    pair.pass(usize::MAX);
    let mut out = Vec::new();
    pair.server.close(&mut out).unwrap();
    pair.give(&out);
    out.clear();
    assert!(pair.server.encrypt(b"late", &mut out).is_err());
    assert!(pair.server.close(&mut out).is_err());
    assert!(out.is_empty());
    pair.client.writer().write_all(b"hello").unwrap();
    pair.pass(usize::MAX);
    assert_eq!(pair.received, b"hello");
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
    for mut bytes in garbage(damaged) {
        for piece in [1, 50, bytes.len()] {
            let mut server = ServerSession::new(Arc::clone(&certificate().server)).unwrap();
            let (mut out, mut payload) = (Vec::new(), Vec::new());
            let failed = bytes
                .chunks_mut(piece)
                .any(|bytes| server.receive(bytes, &mut out, &mut payload).is_err());
            assert!(failed);
            assert!(out.is_empty() || out.starts_with(b"\x15\x03"), "{out:?}");
            assert!(payload.is_empty());
            assert!(server.rest.len() <= super::rest_bytes_max(&server), "{}", server.rest.len());
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
    let server = ServerSession::new(Arc::clone(&certificate().server)).unwrap();
    let hello = Pair::new(&client_config(V13)).client_bytes();
    for cut in 0..hello.len() {
        assert!(!server.has_record(&hello[..cut]), "{cut}");
    }
    assert!(server.has_record(&hello));
    assert!(server.has_record(b"G"), "what is no record is for rustls to refuse");
    assert!(server.has_record(b"\x16\x03\x01\xff\xff"), "a record that is too long fails at once");
}

/// The records of a client's hello, in which the message is cut into parts of these lengths; the last one has what is left.
fn fragmented_hello(parts: &[usize]) -> Vec<Vec<u8>> {
    let hello = Pair::new(&client_config(V13)).client_bytes();
    let (header, mut message) = hello.split_at(5);
    let mut records = Vec::new();
    for bytes in parts.iter().copied().chain([usize::MAX]) {
        let (part, rest) = message.split_at(bytes.min(message.len()));
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        records.push([&header[..3], &length, part].concat());
        message = rest;
    }
    records
}

/// Otherwise each byte behind the first record would be a step, and take the turn of another client.
#[test]
fn a_step_needs_a_further_record_where_a_message_is_in_several() {
    for parts in [&[1][..], &[40], &[40, 90], &[2, 1, 30, 5, 60]] {
        let records = fragmented_hello(parts);
        let mut server = ServerSession::new(Arc::clone(&certificate().server)).unwrap();
        let (mut out, mut payload) = (Vec::new(), Vec::new());
        for record in &records {
            assert!(out.is_empty(), "there is no answer before the last record");
            for cut in 0..record.len() {
                assert!(!server.has_record(&record[..cut]), "{parts:?}, {cut}");
            }
            assert!(server.has_record(record), "{parts:?}");
            server.receive(&mut record.clone(), &mut out, &mut payload).unwrap();
        }
        assert!(!out.is_empty(), "{parts:?}: an answer");
    }
}

/// The same where a record is received byte by byte, and where records come together.
#[test]
fn a_step_needs_a_further_record_wherever_the_bytes_are_cut() {
    let all = fragmented_hello(&[40, 90]).concat();
    let ends = [45, 45 + 95, all.len()];
    for first in 1..all.len() {
        let mut server = ServerSession::new(Arc::clone(&certificate().server)).unwrap();
        let (mut out, mut payload) = (Vec::new(), Vec::new());
        server.receive(&mut all[..first].to_owned(), &mut out, &mut payload).unwrap();
        let next = ends.into_iter().find(|end| *end > first).unwrap();
        for end in first..=all.len() {
            assert_eq!(server.has_record(&all[first..end]), end >= next, "{first}, {end}");
        }
        for byte in &all[first..] {
            server.receive(&mut [*byte], &mut out, &mut payload).unwrap();
        }
        assert!(!out.is_empty(), "{first}: an answer");
    }
}
