//! The same bytes over every driver: each client receives the same, wherever the bytes are cut.
//!
//! A script is made from a seed, and played to a whole shard on the simulated driver, on epoll, and on
//! io_uring with one ring and with many. `SEEDS=100` plays more scripts, and `SEED=7` repeats the one that a
//! failure names.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers on 64 bits")]

mod networks;
mod play;
mod script;

use tidegate::driver::epoll::Epoll;
use tidegate::driver::uring::{self, Capacity, Uring};
use tidegate_testing::for_each_seed;
use tidegate_testing::wire::WireKind;

use networks::{OverWire, Simulated, Sockets};
use play::{Outcome, play};
use script::Script;

fn compare(seed: u64) {
    let script = Script::new(seed);
    // Each run cuts the bytes at other places.
    let expected = play(&script, &mut Simulated::new(seed), seed);
    let differs = |driver: &str, outcome: Outcome| {
        for (client, (ours, expected)) in outcome.iter().zip(&expected).enumerate() {
            for (source, expected) in expected {
                let ours = ours.get(source).map_or(&[][..], Vec::as_slice);
                let same = ours.iter().zip(expected).take_while(|(a, b)| a == b).count();
                assert!(
                    ours == expected,
                    "{driver}: client {client}, {source:?}, number {same}: {:?}, not {:?}",
                    ours.get(same),
                    expected.get(same)
                );
            }
            assert_eq!(ours.len(), expected.len(), "{driver}: client {client} has other sources");
        }
    };
    let other_cuts = play(&script, &mut Simulated::new(seed + 1), seed + 1);
    differs("simulated, other cuts", other_cuts);
    let plain = WireKind::PLAIN;
    let mut epoll = Sockets::new(plain, |listener| Epoll::new(vec![listener]), Epoll::waker);
    differs("epoll", play(&script, &mut epoll, seed + 2));
    // Each seed has one of the wires.
    let kind = WireKind::WIRES[seed as usize % WireKind::WIRES.len()];
    let mut simulated = OverWire::new(kind, Simulated::on(kind, seed + 4));
    differs(&format!("simulated, {kind:?}"), play(&script, &mut simulated, seed + 4));
    let epoll = Sockets::new(kind, |listener| Epoll::new(vec![listener]), Epoll::waker);
    let mut epoll = OverWire::new(kind, epoll);
    differs(&format!("epoll, {kind:?}"), play(&script, &mut epoll, seed + 5));
    if uring::probe().is_err() {
        return eprintln!("io_uring is not allowed here, and not compared");
    }
    for files_each in [1000, 2] {
        let capacity = Capacity { connections: 1000, files_each };
        let new = |listener| Uring::new(vec![listener], capacity);
        let mut uring = Sockets::new(plain, new, Uring::waker);
        let name = format!("io_uring with {files_each} files per ring");
        differs(&name, play(&script, &mut uring, seed + 3));
        let mut uring = OverWire::new(kind, Sockets::new(kind, new, Uring::waker));
        differs(&format!("{name}, {kind:?}"), play(&script, &mut uring, seed + 6));
    }
}

#[test]
fn every_driver_delivers_the_same_to_each_client() {
    for_each_seed("differential", 8, compare);
}
