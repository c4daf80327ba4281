//! A TLS session of either side takes any bytes of its peer, cut anywhere, in its handshake and after it, and any properly
//! encrypted records: it fails or goes on, and keeps within its bounds. A failed session sends nothing more.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::oracle::split_plan;
use tidegate_tls::fixture::{
    RecordKind, Records, certificate, open_client, open_server, server_name,
};
use tidegate_tls::{ClientSession, Received, ServerSession, Session, Side};

/// Records with the content of `stream`: a byte says the kind and the length of each.
fn encrypted(mut records: Records, mut stream: &[u8]) -> (Vec<u8>, usize) {
    let (mut bytes, mut payload_bytes) = (Vec::new(), 0);
    while let Some((&first, rest)) = stream.split_first() {
        let (content, later) = rest.split_at(usize::from(first >> 2).min(rest.len()));
        stream = later;
        let kind = match first & 0b11 {
            0 => RecordKind::Alert,
            1 => RecordKind::Data,
            _ => RecordKind::Handshake,
        };
        if kind == RecordKind::Data {
            payload_bytes += content.len();
        }
        bytes.extend(records.record(kind, content));
    }
    (bytes, payload_bytes)
}

/// Gives a session a stream as `cuts` says. `says`: what this side sends between two reads. `payload_bytes`: how much the
/// peer has sent with the right keys.
fn feed<S: Side>(
    mut session: Session<S>,
    mut stream: Vec<u8>,
    payload_bytes: usize,
    cuts: impl Iterator<Item = usize>,
    says: u8,
) {
    let (mut out, mut payload) = (Vec::new(), Vec::new());
    let mut rest = &mut stream[..];
    let (mut has_ended, mut has_failed, mut has_closed) = (false, false, false);
    for cut in cuts {
        let (arrived, later) = rest.split_at_mut(cut.min(rest.len()));
        rest = later;
        let _ = session.has_record(arrived);
        match session.receive(arrived, &mut out, &mut payload) {
            Ok(_) if has_failed => panic!("it goes on after a failure"),
            Ok(Received::Open) => {}
            Ok(Received::Ended) => assert!(!std::mem::replace(&mut has_ended, true)),
            Err(_) => has_failed = true,
        }
        let before = out.len();
        let is_mute = has_failed || has_closed;
        if says & 1 != 0 || is_mute {
            assert!(session.encrypt(b"pong", &mut out).is_err() || !is_mute);
        }
        if says & 2 != 0 || is_mute {
            let is_closed = session.close(&mut out).is_ok();
            assert!(!is_closed || !is_mute);
            has_closed |= is_closed;
        }
        assert!(!is_mute || out.len() == before, "something behind the alert");
    }
    assert!(payload.len() <= payload_bytes, "nobody guesses a key");
    assert!(out.len() < 64 * 1024, "{} bytes of answers", out.len());
}

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let (arrivals, stream) = split_plan(data);
    let cuts = arrivals.iter().map(|arrival| arrival.bytes).chain([usize::MAX]);
    // Pongs, messages, the goodbye.
    let says = first / 6 % 4;
    let stream_of = |records: Records, is_encrypted: bool| {
        if is_encrypted { encrypted(records, stream) } else { (stream.to_vec(), 0) }
    };
    match first % 6 {
        0 => {
            let session = ServerSession::new(Arc::clone(&certificate().server));
            feed(session.expect("it begins"), stream.to_vec(), 0, cuts, says);
        }
        1 => {
            let session = ClientSession::new(Arc::clone(&certificate().client), server_name());
            let mut session = session.expect("it begins");
            let received = session.receive(&mut [], &mut Vec::new(), &mut Vec::new());
            received.expect("the handshake begins");
            feed(session, stream.to_vec(), 0, cuts, says);
        }
        mode @ (2 | 3) => {
            let (session, records) = open_server();
            let (stream, payload_bytes) = stream_of(records, mode == 3);
            feed(session, stream, payload_bytes, cuts, says);
        }
        mode => {
            let (session, records) = open_client();
            let (stream, payload_bytes) = stream_of(records, mode == 5);
            feed(session, stream, payload_bytes, cuts, says);
        }
    }
});
