//! A client's session against rustls' own server.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, Error, HandshakeKind, ProtocolVersion, RootCertStore,
    ServerConnection,
};

use super::hostile::assert_stays_failed;
use super::{PIECES, V12, V13, Versions, garbage, rest_bytes_max};
use crate::fixture::{certificate, server_name};
use crate::{ClientSession, RECORD_BYTES_MAX, Received};

struct Pair {
    client: ClientSession,
    server: ServerConnection,
    /// What the client has to send.
    out: Vec<u8>,
    /// What the client has received.
    received: Vec<u8>,
    /// What the server has received.
    read: Vec<u8>,
    has_ended: bool,
}

fn client_config(versions: Versions, roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::clone(certificate().client.crypto_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    Arc::new(config)
}

fn trusting(versions: Versions) -> Arc<ClientConfig> {
    client_config(versions, certificate().roots.clone())
}

impl Pair {
    fn new(config: &Arc<ClientConfig>) -> Self {
        let mut server = ServerConnection::new(Arc::clone(&certificate().server)).unwrap();
        server.set_buffer_limit(None);
        let mut client = ClientSession::new(Arc::clone(config), server_name()).unwrap();
        let (mut out, mut received) = (Vec::new(), Vec::new());
        assert_eq!(client.receive(&mut [], &mut out, &mut received), Ok(Received::Open));
        Self { client, server, out, received, read: Vec::new(), has_ended: false }
    }

    /// What the server has to send, after it has taken what the client sent.
    fn server_bytes(&mut self) -> Vec<u8> {
        let mut out = &self.out[..];
        while !out.is_empty() {
            self.server.read_tls(&mut out).unwrap();
            self.server.process_new_packets().unwrap();
            // It would block, or has ended.
            let _ = self.server.reader().read_to_end(&mut self.read);
        }
        self.out.clear();
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// Moves what both have to send, until neither has anything. The client gets it in pieces of this length.
    fn pass(&mut self, piece: usize) {
        loop {
            let mut bytes = self.server_bytes();
            if bytes.is_empty() {
                return;
            }
            for bytes in bytes.chunks_mut(piece) {
                let received = self.client.receive(bytes, &mut self.out, &mut self.received);
                if received.unwrap() == Received::Ended {
                    assert!(!std::mem::replace(&mut self.has_ended, true), "a second end");
                }
            }
        }
    }
}

#[test]
fn bytes_pass_in_both_directions_in_each_version_however_they_are_cut() {
    for (versions, version) in [(V12, ProtocolVersion::TLSv1_2), (V13, ProtocolVersion::TLSv1_3)] {
        for piece in PIECES {
            let mut pair = Pair::new(&trusting(versions));
            pair.pass(piece);
            assert!(!pair.client.is_handshaking() && !pair.server.is_handshaking());
            assert_eq!(pair.server.protocol_version(), Some(version));
            let sent: Vec<u8> = (0..50_000_u32).map(|index| (index % 251) as u8).collect();
            pair.server.writer().write_all(&sent).unwrap();
            pair.pass(piece);
            assert!(pair.received == sent);
            assert_eq!(pair.client.rest.capacity(), 0, "an idle session has no buffer");
            for count in [1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 50_000] {
                pair.client.encrypt(&sent[..count], &mut pair.out).unwrap();
                pair.pass(piece);
                assert!(std::mem::take(&mut pair.read) == sent[..count]);
            }
        }
    }
}

#[test]
fn nothing_is_encrypted_before_the_handshake_is_over_and_nothing_is_lost_by_it() {
    let mut client = ClientSession::new(trusting(V13), server_name()).unwrap();
    let mut out = Vec::new();
    assert_eq!(client.encrypt(b"early", &mut out), Err(Error::HandshakeNotComplete));
    assert_eq!(client.close(&mut out), Err(Error::HandshakeNotComplete));
    assert!(out.is_empty(), "the handshake has not begun");
    client.receive(&mut [], &mut out, &mut Vec::new()).unwrap();
    assert!(out.starts_with(b"\x16\x03"), "a client hello");
}

#[test]
fn a_session_is_resumed_in_each_version() {
    for versions in [V12, V13] {
        let config = trusting(versions);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut pair = Pair::new(&config);
            pair.pass(1);
            assert_eq!(pair.server.handshake_kind(), Some(kind));
            pair.server.writer().write_all(b"hello").unwrap();
            pair.pass(1);
            assert_eq!(pair.received, b"hello");
        }
    }
}

#[test]
fn keys_are_updated_when_the_server_asks() {
    let mut pair = Pair::new(&trusting(V13));
    pair.pass(usize::MAX);
    for round in 0..50_u8 {
        pair.server.refresh_traffic_keys().unwrap();
        pair.server.writer().write_all(&[round]).unwrap();
        pair.pass(3);
        pair.client.encrypt(&[round], &mut pair.out).unwrap();
        pair.pass(3);
    }
    let rounds: Vec<u8> = (0..50).collect();
    assert_eq!((pair.received, pair.read), (rounds.clone(), rounds));
}

#[test]
fn an_end_of_the_server_is_reported_once_and_what_follows_is_ignored() {
    for versions in [V12, V13] {
        for piece in [1, usize::MAX] {
            let mut pair = Pair::new(&trusting(versions));
            pair.pass(piece);
            pair.server.writer().write_all(b"hello").unwrap();
            pair.server.send_close_notify();
            pair.pass(piece);
            assert_eq!((&pair.received[..], pair.has_ended), (&b"hello"[..], true));
            let noise = &mut [7; 1000];
            let received = pair.client.receive(noise, &mut pair.out, &mut pair.received);
            assert_eq!(received, Ok(Received::Open));
            assert_eq!((pair.received.len(), pair.client.rest.capacity()), (5, 0));
        }
    }
}

#[test]
fn garbage_instead_of_a_server_gives_an_alert_and_an_error_for_good() {
    let mut damaged = Pair::new(&trusting(V13)).server_bytes();
    damaged[5] = 0xff;
    for bytes in garbage(damaged) {
        for piece in [1, 50, bytes.len()] {
            let mut pair = Pair::new(&trusting(V13));
            pair.out.clear();
            let mut bytes = bytes.clone();
            let failed = bytes.chunks_mut(piece).any(|bytes| {
                let received = pair.client.receive(bytes, &mut pair.out, &mut pair.received);
                assert!(pair.client.rest.len() <= rest_bytes_max(&pair.client));
                received.is_err()
            });
            assert!(failed);
            assert!(pair.out.is_empty() || pair.out.starts_with(b"\x15\x03"), "{:?}", pair.out);
            assert!(pair.received.is_empty());
            assert_stays_failed(&mut pair.client, bytes);
        }
    }
}

#[test]
fn a_handshake_that_failed_over_the_certificate_stays_failed_whatever_else_is_received() {
    for versions in [V12, V13] {
        for piece in [1, 50, usize::MAX] {
            let mut pair = Pair::new(&client_config(versions, RootCertStore::empty()));
            let mut bytes = pair.server_bytes();
            let errors: Vec<Error> = bytes
                .chunks_mut(piece)
                .filter_map(|bytes| {
                    pair.client.receive(bytes, &mut pair.out, &mut pair.received).err()
                })
                .collect();
            let refused = Error::InvalidCertificate(CertificateError::UnknownIssuer);
            assert_eq!(errors[0], refused);
            assert!(!pair.out.is_empty(), "an alert");
            assert_stays_failed(&mut pair.client, bytes);
        }
    }
}
