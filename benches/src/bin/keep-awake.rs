//! Keeps a core from halting, for as long as it is let run: to be started with the idle policy (sched(7)), so
//! that whoever has something to do has the core at once.
//!
//! On a virtual machine a halted core is woken by the host, and whoever sends to a sleeping client pays for
//! that, many times what the send costs.

fn main() {
    loop {
        std::hint::spin_loop();
    }
}
