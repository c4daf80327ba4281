//! Whether this process may use io_uring as the driver does: the kernel may be too old, or something may
//! forbid it.
//!
//! The gateway asks at its start, and `tide doctor`. It tries each thing that the driver needs and leaves
//! nothing behind.

use std::fs;
use std::io;

use io_uring::register::Probe;
use io_uring::{IoUring, opcode};

use super::helper_thread::on_helper_thread;
use super::ring::Ring;

/// Why io_uring can't be used. The messages are for operators.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel has no such system call.
    #[error("this kernel has no io_uring")]
    NoSystemCall,
    /// The kernel's own setting forbids it.
    #[error("kernel.io_uring_disabled is {0}: set it to 0 to allow it")]
    Disabled(u8),
    /// Something else forbids the call.
    #[error(
        "a seccomp filter or security module forbids it: containers need a seccomp profile with io_uring_setup, \
         io_uring_enter and io_uring_register"
    )]
    Forbidden,
    /// The kernel is older than the driver needs.
    #[error("this kernel's io_uring lacks {0}: it takes Linux 6.1 or newer")]
    TooOld(&'static str),
    /// No thread can be started to try it.
    #[error("no thread can be started to try it: {0}")]
    NoThread(io::Error),
    /// The kernel gave another error.
    #[error(transparent)]
    Other(io::Error),
}

/// Tries what the driver needs.
///
/// # Errors
/// [`Unavailable`]: what is missing.
pub fn probe() -> Result<(), Unavailable> {
    on_helper_thread(try_all).map_err(Unavailable::NoThread)?
}

fn try_all() -> Result<(), Unavailable> {
    let uring = IoUring::new(2).map_err(refusal)?;
    let mut supported = Probe::new();
    uring.submitter().register_probe(&mut supported).map_err(refusal)?;
    // The kernel can't be asked for multishot receives. They came with the same version as zero-copy sends.
    let needed = [
        (opcode::Accept::CODE, "accept"),
        (opcode::Shutdown::CODE, "shutdown"),
        (opcode::AsyncCancel::CODE, "cancellation"),
        (opcode::SendZc::CODE, "multishot receives"),
    ];
    if let Some((_, name)) = needed.iter().find(|(code, _)| !supported.is_supported(*code)) {
        return Err(Unavailable::TooOld(name));
    }
    match Ring::new(1, 1) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err(Unavailable::TooOld("deferred task work"))
        }
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: io::Error) -> Unavailable {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Unavailable::NoSystemCall,
        Some(libc::EPERM | libc::EACCES) => match disabled() {
            Some(how @ 1..) => Unavailable::Disabled(how),
            _ => Unavailable::Forbidden,
        },
        _ => Unavailable::Other(error),
    }
}

fn disabled() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}
