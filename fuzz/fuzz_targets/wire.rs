//! A driver with wires takes any bytes on any wire, before and after it is open: it keeps the driver's contract, and serves
//! a neighbour.

#![no_main]

use std::time::{Duration, Instant};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::driver::sim::{Arrived, Faults, PeerId, Sim};
use tidegate::driver::{ConnId, Driver, Event, Sink};
use tidegate::wire::Wired;
use tidegate_fuzz::oracle::split_plan;
use tidegate_testing::wire::{WireClient, WireKind};
use tidegate_testing::wired;

/// All must be done after this number of polls.
const POLLS_MAX: usize = 200;

/// What is known of a connection.
#[derive(Debug)]
struct Connection {
    id: ConnId,
    received: Vec<u8>,
    has_failed: bool,
    has_ended: bool,
    is_closed: bool,
}

#[derive(Default)]
struct Core(Vec<Connection>);

impl Core {
    fn at(&mut self, conn: ConnId) -> &mut Connection {
        let found = self.0.iter_mut().find(|connection| connection.id == conn);
        let found = found.expect("it was accepted");
        assert!(!found.is_closed, "an event after the last one");
        found
    }
}

impl Sink for Core {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Accepted { conn, .. } => self.0.push(Connection {
                id: conn,
                received: Vec::new(),
                has_failed: false,
                has_ended: false,
                is_closed: false,
            }),
            Event::Received { conn, bytes } => {
                let connection = self.at(conn);
                assert!(!bytes.is_empty() && !connection.has_failed && !connection.has_ended);
                connection.received.extend_from_slice(bytes);
            }
            Event::Failed { conn, .. } => {
                assert!(!std::mem::replace(&mut self.at(conn).has_failed, true), "twice");
            }
            Event::Ended { conn } => {
                assert!(!std::mem::replace(&mut self.at(conn).has_ended, true), "twice");
            }
            Event::Closed { conn, .. } => self.at(conn).is_closed = true,
            _ => {}
        }
    }

    fn idle_for(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(1))
    }

    fn woken(&mut self, _: Instant) {}
}

struct Run {
    wired: Wired<Sim>,
    core: Core,
}

impl Run {
    fn poll(&mut self) {
        self.wired.poll(&mut self.core).expect("the simulation works");
    }

    /// Moves bytes between a peer and its client. Says whether there were any.
    fn pass(&mut self, peer: PeerId, client: &mut WireClient) {
        let written = self.wired.driver().write(peer, &client.out);
        client.out.drain(..written);
        self.poll();
        if let Arrived::Bytes(bytes) = self.wired.driver().read(peer) {
            client.receive(&bytes);
        }
    }

    fn connect(&mut self) -> PeerId {
        let peer = self.wired.driver().connect().expect("it listens");
        self.poll();
        peer
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, data)) = data.split_first() else { return };
    let kind = WireKind::WIRES[usize::from(first) % WireKind::WIRES.len()];
    let opens = first & 0x80 != 0;
    let (arrivals, mut stream) = split_plan(data);
    let sim = Sim::new(1, Instant::now(), Faults::default());
    let mut run = Run { wired: wired(kind, sim), core: Core::default() };
    let neighbour = run.connect();
    let mut client = WireClient::new(kind, 1);
    client.send(b"hello");
    let peer = run.connect();
    if opens {
        let mut opening = WireClient::new(kind, 2);
        for _ in 0..6 {
            run.pass(peer, &mut opening);
        }
    }
    let conn = run.core.0[1].id;
    for (number, arrival) in arrivals.iter().enumerate() {
        let (arrived, later) = stream.split_at(arrival.bytes.min(stream.len()));
        stream = later;
        run.wired.driver().write(peer, arrived);
        run.poll();
        if number == 3 {
            let _ = run.wired.send(conn, Bytes::from_static(b"answer"));
        }
    }
    run.wired.driver().write(peer, stream);
    run.wired.driver().half_close(peer);
    for _ in 0..POLLS_MAX {
        run.pass(neighbour, &mut client);
    }
    assert_eq!(run.core.0[0].received, b"hello", "the neighbour is served");
    let connection = &run.core.0[1];
    assert!(connection.has_ended || connection.has_failed, "{connection:?}");
    run.wired.shutdown(conn);
    run.poll();
    run.wired.close(conn);
    for _ in 0..5 {
        run.poll();
    }
    assert!(run.core.0[1].is_closed);
});
