//! A thread that makes a ring for another thread.
//!
//! The kernel interrupts a system call of the thread that made a ring when the ring ends, even long
//! afterwards, and even if another thread uses the ring (`io_ring_exit_work` in the kernel's io_uring.c). A
//! read with a time limit then fails with EINTR, whatever SA_RESTART says (signal(7)), and a program that
//! links the gateway has not asked for signals. So the rings that a thread of that program would make are
//! made by a thread that does nothing else: the first ring of a driver, and those that probe.

use std::io;
use std::panic::resume_unwind;
use std::thread::{Builder, scope};

/// Does something on a thread of its own, and waits for it.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn on_helper_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    scope(|scope| {
        let thread = Builder::new().name("ring-maker".into()).spawn_scoped(scope, work)?;
        thread.join().or_else(|panic| resume_unwind(panic))
    })
}
