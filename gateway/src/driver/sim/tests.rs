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
