//! A client survives any bytes from a gateway, and reads a stream that is cut anywhere like one that is not.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::oracle::{Arrival, split_plan};
use tidegate_protocol::client::{Client, ClientError, Event};

const PAYLOAD_BYTES_MAX: usize = 300;

/// The events that a client reads from a stream, up to its first error.
fn events(mut stream: &[u8], arrivals: &[Arrival]) -> (Vec<Event>, Result<(), ClientError>) {
    let mut now = Instant::now();
    let mut client = Client::new(now).with_frame_bytes_max(PAYLOAD_BYTES_MAX);
    let mut events = Vec::new();
    let rest = Arrival { bytes: usize::MAX, frames_max: usize::MAX };
    for arrival in arrivals.iter().chain([&rest]) {
        let (arrived, later) = stream.split_at(arrival.bytes.min(stream.len()));
        stream = later;
        if let Err(error) = client.receive(arrived, |event| events.push(event)) {
            return (events, Err(error));
        }
        now = now.max(client.poll_timeout());
        client.handle_timeout(now);
        assert!(!client.outgoing().split().is_empty(), "a heartbeat was due");
        assert!(client.poll_timeout() <= now + Duration::from_millis(u32::MAX.into()));
    }
    (events, Ok(()))
}

fuzz_target!(|data: &[u8]| {
    let (arrivals, stream) = split_plan(data);
    assert_eq!(events(stream, &arrivals), events(stream, &[]));
});
