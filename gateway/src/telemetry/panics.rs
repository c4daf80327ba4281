//! Logs panics. Rust's own hook writes to the standard error directly, and would block the panicking thread, perhaps a
//! shard's, on a pipe that nobody reads.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::panic::{self, PanicHookInfo};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use tidegate_backend::log_limit::LogLimit;

/// One rate limit for each place in the code: a handler with a bug panics as often as clients call it, and must
/// not keep other panics out of the log. The program bounds the number of places.
static LIMITS: LazyLock<Mutex<HashMap<String, LogLimit>>> = LazyLock::new(Mutex::default);

/// Installs a hook that logs panics, in place of the one before.
pub(super) fn install() {
    panic::set_hook(Box::new(report));
}

fn report(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let Some(suppressed) = allow(&location) else { return };
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let reason = text_of(panic.payload());
    // Without RUST_BACKTRACE and RUST_LIB_BACKTRACE nothing is captured. With them this thread reads the executable's
    // symbols.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    let backtrace = backtrace.as_ref().map(tracing::field::display);
    tracing::error!(thread, location, suppressed, backtrace, "panicked: {reason}");
}

fn allow(location: &str) -> Option<u64> {
    let mut limits = LIMITS.lock().unwrap_or_else(PoisonError::into_inner);
    if !limits.contains_key(location) {
        limits.insert(location.to_owned(), LogLimit::new());
    }
    limits.get(location)?.allow()
}

/// The text of a panic.
pub(crate) fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_keeps_no_other_out_of_the_log() {
        assert_eq!(allow("handler.rs:1:1"), Some(0));
        assert_eq!(allow("handler.rs:1:1"), None);
        assert_eq!(allow("shard.rs:1:1"), Some(0));
    }
}
