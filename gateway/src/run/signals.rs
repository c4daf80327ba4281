//! Signals, and what each asks for. Only SIGKILL and the signals of a crash end the process by their default action.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{self, Receiver};
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::server::Server;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Drain. A second one: hurry. A third one: end at once.
    Drain,
    /// Drain, since the terminal has closed. The shell and the kernel may both send it for one closing, so it never
    /// counts as a second request.
    Hangup,
    /// Load the configuration, and the files that it names, again.
    Reload,
    /// Nothing: the gateway gives this signal no meaning.
    Nothing(i32),
}

/// Starts a thread that receives signals from now on, and returns their requests.
pub(super) fn listen() -> io::Result<Receiver<Request>> {
    // As nohup(1) starts a program: it is to outlive its terminal. The handler replaces that, so the kind of request says it.
    let outlives_terminal = is_ignored(SIGHUP);
    if outlives_terminal {
        tracing::info!(
            "SIGHUP was ignored at the start, as nohup does it: the gateway goes on when its terminal closes, and SIGHUP \
             only reloads"
        );
    }
    let had_terminal = has_terminal();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2])?;
    let (sender, requests) = channel::unbounded();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            let request = match signal {
                SIGHUP if !outlives_terminal && had_terminal && !has_terminal() => Request::Hangup,
                SIGHUP => Request::Reload,
                SIGUSR1 | SIGUSR2 => Request::Nothing(signal),
                _ => Request::Drain,
            };
            if sender.send(request).is_err() {
                return;
            }
        }
    })?;
    Ok(requests)
}

/// Does what SIGHUP asks for, on a thread of its own: where a disk hangs, the next signal has to drain all the same. The
/// reload logs what it came to.
pub(super) fn reload(server: Option<&Server>) {
    let Some(server) = server else {
        return tracing::warn!("SIGHUP: the gateway starts or drains; nothing was read again");
    };
    let reloader = Arc::clone(server.reloader());
    let reload = move || reloader.reload_by_signal();
    if let Err(error) = thread::Builder::new().name("reload".into()).spawn(reload) {
        tracing::error!(%error, "SIGHUP: nothing was read again: no thread for it");
    }
}

/// Logs that a signal has no meaning.
pub(super) fn tell_that_nothing_happens(signal: i32) {
    let name = Signal::try_from(signal).map_or("the signal", Signal::as_str);
    tracing::info!("{name} has no meaning here; nothing has changed");
}

/// Whether the process has a controlling terminal (tty(4)) that is open.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Whether the process was started with this signal ignored, as nohup(1) does with SIGHUP.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status) & (1 << (signal - 1)) != 0
}

/// The ignored signals, a bit each, from `/proc/self/status` (proc(5)).
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "Name:\ttidegate\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 1 << 12 | 1);
        assert_eq!(ignored("Name:\ttidegate\n"), 0);
        // Rust has every process ignore SIGPIPE.
        assert!(is_ignored(nix::libc::SIGPIPE));
    }
}
