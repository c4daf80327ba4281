//! Each side against rustls' own other side, both sides against each other, and each side against a peer that breaks the protocol.

mod both;
mod client;
mod hostile;
mod server;

use std::mem::size_of;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;

use crate::{ClientSession, ServerSession, Session, Side};

type Versions = &'static [&'static rustls::SupportedProtocolVersion];
const V12: Versions = &[&rustls::version::TLS12];
const V13: Versions = &[&rustls::version::TLS13];

/// How received bytes are cut.
const PIECES: [usize; 5] = [1, 2, 7, 100, usize::MAX];

/// What is no handshake. `damaged`: a first message in which one byte is wrong.
fn garbage(damaged: Vec<u8>) -> [Vec<u8>; 4] {
    let record = [&b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..], &[0; 16 * 1024 - 4]].concat();
    [b"GET / HTTP/1.1\r\n\r\n".to_vec(), damaged, record.repeat(5), vec![0x16; 300]]
}

const fn rest_bytes_max<S: Side>(_: &Session<S>) -> usize {
    S::REST_BYTES_MAX
}

#[test]
fn a_session_is_a_connection_of_rustls_and_32_bytes() {
    let (server, client) = (size_of::<ServerSession>(), size_of::<ClientSession>());
    assert_eq!(server, size_of::<UnbufferedServerConnection>() + 32);
    assert_eq!(client, size_of::<UnbufferedClientConnection>() + 32);
}
