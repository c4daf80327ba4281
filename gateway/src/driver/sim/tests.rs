//! The simulation is repeatable, and knows when time passes.

use super::*;
use crate::driver::conformance::{Fact, Recorder};

#[test]
fn the_same_seed_does_the_same() {
    let run = |seed| {
        let faults = Faults {
            cut: 0.5,
            short_send: 0.5,
            stall: 0.2,
            reset: 0.01,
            accept_delay: 0.5,
            clock_jump: 0.1,
            clock_jump_max: Duration::from_secs(5),
            shuffle: true,
            ..Faults::default()
        };
        let start = Instant::now();
        let mut sim = Sim::new(seed, start, faults);
        let mut recorder = Recorder::default();
        let peers: Vec<_> = (0..3).map(|_| sim.connect().unwrap()).collect();
        for round in 0..60 {
            sim.write(peers[round % 3], &[7; 50]);
            sim.poll(&mut recorder).unwrap();
        }
        (recorder.facts, sim.now() - start)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn time_passes_only_while_there_is_nothing_to_do() {
    let start = Instant::now();
    let mut sim = Sim::new(0, start, Faults::default());
    let mut recorder = Recorder::default();
    recorder.idle_for = Some(Duration::from_secs(3));
    let peer = sim.connect().unwrap();
    sim.poll(&mut recorder).unwrap();
    let Some(&Fact::Accepted(conn)) = recorder.facts.first() else { panic!("not accepted") };
    sim.set_faults(Faults { late_send: 1.0, ..Faults::default() });
    assert_eq!(sim.send(conn, Bytes::from_static(b"hello")), SendState::UnderWay);
    sim.write(peer, b"hello");
    sim.poll(&mut recorder).unwrap();
    assert_eq!(recorder.facts.len(), 3, "{:?}", recorder.facts);
    sim.poll(&mut recorder).unwrap();
    assert_eq!(sim.now(), start);
    sim.poll(&mut recorder).unwrap();
    assert_eq!(sim.now(), start + Duration::from_secs(3));
    sim.set_wait_max(Duration::from_secs(1));
    sim.poll(&mut recorder).unwrap();
    assert_eq!(sim.now(), start + Duration::from_secs(4));
}

#[test]
fn a_pause_is_reported_once_and_ends_once_however_many_tries_it_takes() {
    let start = Instant::now();
    let faults = Faults { accept_pause: 1.0, ..Faults::default() };
    let mut sim = Sim::new(0, start, faults);
    let mut recorder = Recorder::default();
    recorder.idle_for = None;
    sim.connect().unwrap();
    for _ in 0..10 {
        sim.poll(&mut recorder).unwrap();
    }
    assert!(sim.now() > start + Duration::from_millis(500), "there were several tries");
    assert_eq!(recorder.facts, [Fact::AcceptPaused]);
    sim.set_faults(Faults::default());
    for _ in 0..3 {
        sim.poll(&mut recorder).unwrap();
    }
    let conn = ConnId { slot: 0, generation: 0 };
    let facts = [Fact::AcceptPaused, Fact::AcceptResumed, Fact::Accepted(conn)];
    assert_eq!(recorder.facts, facts);
}

#[test]
fn a_pause_that_lasts_when_listening_stops_has_no_end() {
    let start = Instant::now();
    let faults = Faults { accept_pause: 1.0, ..Faults::default() };
    let mut sim = Sim::new(0, start, faults);
    let mut recorder = Recorder::default();
    sim.connect().unwrap();
    sim.poll(&mut recorder).unwrap();
    sim.stop_listening(start + Duration::from_millis(250));
    for _ in 0..500 {
        sim.poll(&mut recorder).unwrap();
    }
    assert_eq!(recorder.facts, [Fact::AcceptPaused, Fact::ListeningStopped(1)]);
}
