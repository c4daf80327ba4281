//! Keeps a core from halting until its standard input ends: to be started with the idle policy (sched(7)), so
//! that whoever has something to do has the core at once.
//!
//! On a virtual machine a halted core is woken by the host, and whoever sends to a sleeping client pays for
//! that, many times what the send costs.

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
