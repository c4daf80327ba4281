//! A TLS session takes any bytes of a client, cut anywhere, in its handshake and after it, and any properly encrypted
//! records: it fails or goes on, and keeps within its bounds. What has failed says nothing more.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use tidegate::wire::tls::{Received, TlsSession};
use tidegate_fuzz::oracle::split_plan;
use tidegate_testing::wire::{RecordKind, Records, WireClient, WireKind, certificate};

/// A session after its handshake, and what its client sends from then on.
fn open() -> (TlsSession, Records) {
    let mut session = TlsSession::new(Arc::clone(&certificate().server)).expect("it begins");
    let mut client = WireClient::new(WireKind::TLS, 0);
    while session.is_handshaking() {
        let (mut out, mut payload) = (Vec::new(), Vec::new());
        let mut bytes = std::mem::take(&mut client.out);
        session.receive(&mut bytes, &mut out, &mut payload).expect("the client is good");
        client.receive(&out);
    }
    (session, client.into_records())
}

/// Records with the content of `stream`: a byte says the kind and the length of each.
fn encrypted(records: &mut Records, mut stream: &[u8]) -> (Vec<u8>, usize) {
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

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let (arrivals, stream) = split_plan(data);
    let (mut session, mut stream, payload_bytes) = match first % 3 {
        0 => {
            let session = TlsSession::new(Arc::clone(&certificate().server)).expect("it begins");
            (session, stream.to_vec(), 0)
        }
        1 => (open().0, stream.to_vec(), 0),
        _ => {
            let (session, mut records) = open();
            let (bytes, payload_bytes) = encrypted(&mut records, stream);
            (session, bytes, payload_bytes)
        }
    };
    // What a gateway may say between two reads: pongs, messages, its goodbye.
    let says = first / 3 % 4;
    let (mut out, mut payload) = (Vec::new(), Vec::new());
    let mut rest = &mut stream[..];
    let (mut has_ended, mut has_failed) = (false, false);
    let cuts = arrivals.iter().map(|arrival| arrival.bytes).chain([usize::MAX]);
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
        if says & 1 != 0 || has_failed {
            assert!(session.encrypt(b"pong", &mut out).is_err() || !has_failed);
        }
        if says & 2 != 0 || has_failed {
            assert!(session.close(&mut out).is_err() || !has_failed);
        }
        assert!(!has_failed || out.len() == before, "something behind the alert");
    }
    assert!(payload.len() <= payload_bytes, "nobody guesses a key");
    assert!(out.len() < 64 * 1024, "{} bytes of answers", out.len());
});
