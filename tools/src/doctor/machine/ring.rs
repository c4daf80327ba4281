//! Whether the kernel gives an io_uring: the only way to know is to ask for one.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use io_uring::IoUring;

/// What came of asking for a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Probe {
    /// The kernel gave one.
    Works,
    /// The system call failed.
    Refused {
        /// The errno.
        errno: i32,
    },
    /// Who asked was killed.
    Killed {
        /// The signal.
        signal: i32,
    },
    /// It could not be tried.
    Untried(String),
}

/// The arguments with which `tide doctor` starts itself to ask.
const ARGUMENTS: [&str; 4] = ["doctor", "--connections", "1", "--probe-io-uring"];

/// The exit status of a probe that failed without an errno.
const NO_ERRNO: u8 = 255;

/// Asks for a ring in a process of its own, under the same filters: systemd's kill who asks.
pub(in crate::doctor) fn probe() -> Probe {
    let asked = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.args(ARGUMENTS).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null()).status()
    });
    match asked {
        Err(error) => Probe::Untried(error.to_string()),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(0), _) => Probe::Works,
            (Some(errno), _) if errno != i32::from(NO_ERRNO) => Probe::Refused { errno },
            (_, Some(signal)) => Probe::Killed { signal },
            _ => Probe::Untried("the ring could be made but not mapped".to_owned()),
        },
    }
}

/// What the process that [`probe`] starts does: an exit status that is 0 or the errno.
pub(in crate::doctor) fn answer_probe() -> u8 {
    match IoUring::new(2) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().and_then(|e| u8::try_from(e).ok()).unwrap_or(NO_ERRNO),
    }
}
