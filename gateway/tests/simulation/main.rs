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
mod run;

use run::Run;

/// Steps of a run before the healing.
const STEPS: usize = 1_500;

fn for_each_seed(run: impl Fn(u64)) {
    tidegate_testing::for_each_seed("simulation", 60, run);
}

#[test]
fn clients_get_their_answers_and_pushes_and_nothing_is_left_behind() {
    for_each_seed(|seed| {
        let mut run = Run::new(seed);
        (0..STEPS).for_each(|_| run.step());
        run.heal();
        run.end();
    });
}
