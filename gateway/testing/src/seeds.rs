//! Runs from seeds.

use std::env;
use std::panic::{self, AssertUnwindSafe};

/// Runs once per seed: those below `default`, or below the environment's `SEEDS`, or the one that its `SEED`
/// names. Says how to repeat a run of `test` that fails.
pub fn for_each_seed(test: &str, default: u64, run: impl Fn(u64)) {
    let number = |name: &str| Some(env::var(name).ok()?.parse::<u64>().expect("a number"));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(default),
    };
    for seed in seeds {
        if let Err(failure) = panic::catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("again: SEED={seed} cargo test -p tidegate --test {test}");
            panic::resume_unwind(failure);
        }
    }
}
