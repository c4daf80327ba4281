//! The floor of a complete connection: accept, read, write, close.
//!
//! It closes after the client has closed, as a gateway does. With `--close-first` it closes after the first answer.

use clap::Parser;
use tidegate_benches::{BUFFER_BYTES, Connections, Floor, Gone};

/// Accepts, reads, writes back, closes.
#[derive(Debug, Parser)]
struct Args {
    /// Closes after the first answer, and not after the client has closed.
    #[arg(long)]
    close_first: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut floor = Floor::listen()?;
    let mut connections = Connections::new(&floor)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        floor.wait(None)?;
        for ready in floor.ready() {
            match ready {
                Some(ready) => connections.with(ready.fd, |connection| {
                    connection.echo(ready, &mut buffer)?;
                    let over = args.close_first && !connection.has_tail();
                    if over { Err(Gone) } else { Ok(()) }
                }),
                None => floor.accept(|fd, socket| connections.insert(fd, socket))?,
            }
        }
    }
}
