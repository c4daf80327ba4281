//! Keeps a core from halting until its standard input is closed. Start it with the idle policy (sched(7)), so that
//! any other
//! thread gets the core at once.
//!
//! On a virtual machine the host has to wake a halted core. A server that sends to a sleeping client pays for that
//! wakeup,
//! many times what the send costs.

use std::io::Read as _;
use std::thread::Builder;

fn main() -> anyhow::Result<()> {
    Builder::new().name("stdin".into()).spawn(|| {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(0)
    })?;
    loop {
        std::hint::spin_loop();
    }
}
