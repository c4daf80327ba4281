//! Panics go to the log: Rust's own hook writes to the standard error by itself, and would block the
//! thread that panics, a shard's perhaps, on a pipe that nobody reads.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;

use tidegate_backend::log_limit::LogLimit;

/// All panics together: a handler with a bug panics as often as clients ask it to.
static LIMIT: LogLimit = LogLimit::new();

/// Has panics logged, instead of what was done with them before.
pub(super) fn install() {
    panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo<'_>) {
    let Some(suppressed) = LIMIT.allow() else { return };
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let reason = text.unwrap_or("a value that is no text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    // As RUST_BACKTRACE and RUST_LIB_BACKTRACE ask.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    let backtrace = backtrace.as_ref().map(tracing::field::display);
    tracing::error!(thread, location, suppressed, backtrace, "panicked: {reason}");
}
