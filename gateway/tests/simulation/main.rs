//! Whole shards on the simulated driver, in one thread, from a seed.
//!
//! A run is random steps, then a healing, then an end that must leave nothing behind; what clients may
//! rely on is checked with each frame that they get. `SEEDS=1000` runs more seeds, and `SEED=7` repeats
//! the one that a failure names.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers on 64 bits")]

mod backend;
mod cases;
mod client;
mod drain;
mod world;

use std::panic::{self, AssertUnwindSafe};

use world::World;

/// Steps of a run before the healing.
const STEPS: usize = 1_500;

/// Runs with each seed that the environment asks for; says which one failed.
fn for_each_seed(run: impl Fn(u64)) {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().expect("a number"));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(60),
    };
    for seed in seeds {
        if let Err(failure) = panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("again: SEED={seed} cargo test -p tidegate --test simulation");
            panic::resume_unwind(failure);
        }
    }
}

#[test]
fn clients_get_what_is_theirs_and_nothing_is_left_behind() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        world.heal();
        world.end();
    });
}
