//! Whole shards on the simulated driver, in one thread, from a seed.
//!
//! A run has three phases: random steps with faults; a healing phase without faults, in which every client must be
//! served; and an end that must leave nothing behind. Each response is checked against a model of its client, and
//! after each step the gateway's bounds are checked. `SEEDS=1000` runs more seeds, and `SEED=7` repeats the run
//! that a failure names.
//!
//! | module | what it owns |
//! |---|---|
//! | `backend` | a handler that behaves at random, and a record of what it did |
//! | `client` | the model of a client |
//! | `run` | one run: configuration and faults, random steps, what holds after each |
//! | `run/acts`, `run/healing` | what clients do; the healing phase and the end |
//! | `resume` | clients that reconnect again and again |
//! | `cases`, `drain` | tests that start from a random run |

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers on 64 bits")]

mod backend;
mod cases;
mod client;
mod drain;
mod resume;
mod run;

use run::Run;
use tidegate_testing::wire::WireKind;

/// Random steps of a run before the healing phase.
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

#[test]
fn the_same_holds_over_every_wire() {
    tidegate_testing::for_each_seed("simulation -- over_every_wire", 25, |seed| {
        let kind = WireKind::WIRES[seed as usize % WireKind::WIRES.len()];
        let mut run = Run::on(kind, seed);
        (0..STEPS).for_each(|_| run.step());
        run.heal();
        run.end();
    });
}
