//! A client's session against a server's session, cut anywhere.

use std::sync::Arc;

use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, Error};

use super::{PIECES, V12, V13, Versions};
use crate::fixture::{certificate, server_name};
use crate::{ClientSession, Received, ServerSession, Session, Side};

/// One side, with what it has to send and what it has received.
struct End<S> {
    session: Session<S>,
    out: Vec<u8>,
    received: Vec<u8>,
    ends: usize,
}

impl<S: Side> End<S> {
    fn new(session: Result<Session<S>, Error>) -> Self {
        Self { session: session.unwrap(), out: Vec::new(), received: Vec::new(), ends: 0 }
    }

    /// Takes what the other side has to send. Returns whether that was anything.
    fn take<T>(&mut self, from: &mut End<T>, piece: usize) -> bool {
        let mut bytes = std::mem::take(&mut from.out);
        for bytes in bytes.chunks_mut(piece) {
            let received = self.session.receive(bytes, &mut self.out, &mut self.received);
            self.ends += usize::from(received.unwrap() == Received::Ended);
        }
        !bytes.is_empty()
    }

    /// Has rustls update the keys, as it does itself when they are used up.
    fn update_keys(&mut self) {
        let UnbufferedStatus { state, .. } =
            self.session.connection.process_tls_records(&mut self.session.rest);
        let Ok(ConnectionState::WriteTraffic(traffic)) = state else { panic!("it can send") };
        traffic.refresh_traffic_keys().unwrap();
    }

    fn send(&mut self, bytes: &[u8]) {
        self.session.encrypt(bytes, &mut self.out).unwrap();
    }
}

fn opened(versions: Versions, piece: usize) -> (End<impl Side + use<>>, End<impl Side + use<>>) {
    let provider = Arc::clone(certificate().client.crypto_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let roots = certificate().roots.clone();
    let config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    let mut client = End::new(ClientSession::new(Arc::new(config), server_name()));
    let mut server = End::new(ServerSession::new(Arc::clone(&certificate().server)));
    client.session.receive(&mut [], &mut client.out, &mut client.received).unwrap();
    pass(&mut client, &mut server, piece);
    assert!(!client.session.is_handshaking() && !server.session.is_handshaking());
    (client, server)
}

/// Moves bytes until neither side has any.
fn pass<A: Side, B: Side>(one: &mut End<A>, other: &mut End<B>, piece: usize) {
    while other.take(one, piece) | one.take(other, piece) {}
    let kept = (one.session.rest.capacity(), other.session.rest.capacity());
    assert_eq!(kept, (0, 0), "an idle session has no buffer");
}

#[test]
fn bytes_and_ends_pass_in_both_directions_however_they_are_cut() {
    for versions in [V12, V13] {
        for piece in PIECES {
            let (mut client, mut server) = opened(versions, piece);
            let sent: Vec<u8> = (0..40_000_u32).map(|index| (index % 251) as u8).collect();
            client.send(&sent);
            server.send(&sent);
            pass(&mut client, &mut server, piece);
            assert!(client.received == sent && server.received == sent);
            client.session.close(&mut client.out).unwrap();
            pass(&mut client, &mut server, piece);
            assert_eq!((client.ends, server.ends), (0, 1));
            if versions == V13 {
                // In TLS 1.2 an end is one of both directions.
                server.send(b"bye");
            }
            server.session.close(&mut server.out).unwrap();
            pass(&mut client, &mut server, piece);
            assert_eq!((client.ends, server.ends), (1, 1));
            assert!(client.received.ends_with(b"bye") == (versions == V13));
            let late = &mut Vec::new();
            assert!(client.session.encrypt(b"late", late).is_err());
            assert!(server.session.encrypt(b"late", late).is_err());
            assert!(late.is_empty());
        }
    }
}

#[test]
fn keys_are_updated_by_either_side_and_by_both_at_once() {
    for piece in PIECES {
        let (mut client, mut server) = opened(V13, piece);
        for round in 0..30_u8 {
            if round % 3 != 1 {
                client.update_keys();
            }
            if round % 3 != 0 {
                server.update_keys();
            }
            client.send(&[round]);
            server.send(&[round]);
            pass(&mut client, &mut server, piece);
        }
        client.session.close(&mut client.out).unwrap();
        server.session.close(&mut server.out).unwrap();
        pass(&mut client, &mut server, piece);
        let rounds: Vec<u8> = (0..30).collect();
        assert_eq!((&client.received, client.ends), (&rounds, 1));
        assert_eq!((&server.received, server.ends), (&rounds, 1));
    }
}
