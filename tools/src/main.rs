//! `tide`: tokens, an interactive client, pushes and load for Tidegate.

mod bench;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "tide", version, about)]
enum Tide {
    /// Loads a gateway and measures it.
    Bench(bench::BenchArgs),
}

fn main() -> anyhow::Result<()> {
    match Tide::parse() {
        Tide::Bench(args) => bench::run(args),
    }
}
