//! Whether a process may use io_uring as the gateway's driver does and, if not, what forbids it.
//!
//! Only asking for a ring tells. The kernel answers EPERM for its sysctl and for a seccomp filter alike, so
//! [`judge`] reads the answer together with the sysctl and the seccomp mode.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::thread;

use io_uring::{Builder, IoUring, cqueue, opcode, register, squeue};

use crate::files::{Files, Reading};
use crate::process::{Seccomp, Status, read_status};

/// What came of asking for a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The kernel gave one that can do what the driver needs.
    Works,
    /// A system call failed with this errno.
    Refused {
        /// The errno.
        errno: i32,
    },
    /// The kernel gave one that lacks something.
    TooOld {
        /// What it lacks.
        lacks: String,
    },
    /// The process that asked was killed.
    Killed {
        /// The signal.
        signal: i32,
    },
    /// Nobody could ask.
    Untried(String),
}

/// What may forbid a process io_uring.
#[derive(Clone, Debug)]
pub struct Guards {
    /// `kernel.io_uring_disabled`: 0, 1 or 2. It exists since Linux 6.6.
    disabled: Reading<u64>,
    /// The group that 1 exempts; -1 is none.
    group: Reading<i64>,
    /// The process's status, with its seccomp mode.
    status: Reading<Status>,
}

/// Why io_uring can't be used, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The kernel was built without it.
    #[error("this kernel has no io_uring")]
    NotBuilt,
    /// The kernel's own setting forbids it.
    #[error("kernel.io_uring_disabled is {0}: set it to 0 to allow it")]
    Disabled(u64),
    /// A seccomp filter forbids it.
    #[error(
        "a seccomp filter forbids it: containers need a seccomp profile with io_uring_setup, io_uring_enter and \
         io_uring_register"
    )]
    Seccomp,
    /// The kernel is older than the driver needs.
    #[error("this kernel's io_uring lacks {0}: it takes Linux 6.1 or newer")]
    TooOld(String),
    /// The system call failed with another errno.
    #[error("asking for a ring fails: {}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// It is not known whether it can be used, or what forbids it.
    #[error("{0}")]
    Unknown(String),
}

/// Linux's numbers, on every architecture that the gateway runs on.
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const SIGSYS: i32 = 31;

/// Exit statuses of a process that probes, beside 0 and the errnos.
const TOO_OLD: u8 = 254;
const UNTRIED: u8 = 255;

/// Whether the calling process may use io_uring, found out by asking for a ring. Not for a process whose seccomp
/// filter may kill it for asking: see [`Probe::by_child`].
///
/// # Errors
/// [`Unavailable`]: what forbids it.
pub fn probe() -> Result<(), Unavailable> {
    judge(&Probe::by_caller(), &Guards::read(&Files::system(), "self"))
}

/// A ring as the driver sets it up. The caller chooses the sizes.
#[must_use]
pub fn builder() -> Builder<squeue::Entry, cqueue::Entry> {
    let mut builder = IoUring::builder();
    builder
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all();
    builder
}

/// Runs something on a separate thread, and waits for it.
///
/// The kernel interrupts a system call of the thread that made a ring when the ring ends, even long afterwards
/// and when another thread uses the ring (`io_ring_exit_work` in the kernel's io_uring.c). A read with a time
/// limit then fails with EINTR, whatever SA_RESTART says (signal(7)), and a program that links the gateway does
/// not expect that. So a thread with nothing else to do makes the rings that a thread of that program would make.
///
/// # Errors
/// When the system gives no thread.
pub fn on_helper_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("ring-maker".into()).spawn_scoped(scope, work)?;
        thread.join().or_else(|panic| resume_unwind(panic))
    })
}

impl Probe {
    /// Asks for a ring in this process.
    #[must_use]
    pub fn by_caller() -> Self {
        on_helper_thread(ask).unwrap_or_else(|error| {
            Self::Untried(format!("no thread can be started to try it: {error}"))
        })
    }

    /// Has a child process ask, which inherits the filters: systemd's filters kill a process that asks. The
    /// child ends with [`Self::report`].
    pub fn by_child(command: &mut Command) -> Self {
        let asked = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
        let output = match asked {
            Ok(output) => output,
            Err(error) => return Self::Untried(error.to_string()),
        };
        let text = || String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match (output.status.code(), output.status.signal()) {
            (Some(0), _) => Self::Works,
            (Some(status), _) if status == i32::from(TOO_OLD) => Self::TooOld { lacks: text() },
            (Some(errno), _) if errno != i32::from(UNTRIED) => Self::Refused { errno },
            (_, Some(signal)) => Self::Killed { signal },
            _ => Self::Untried(text()),
        }
    }

    /// What a child of [`Self::by_child`] does with its result: the text for its standard output, and its exit
    /// status.
    #[must_use]
    pub fn report(&self) -> (&str, u8) {
        match self {
            Self::Works => ("", 0),
            Self::Refused { errno } => ("", u8::try_from(*errno).unwrap_or(UNTRIED)),
            Self::TooOld { lacks } => (lacks, TOO_OLD),
            Self::Killed { .. } => ("", UNTRIED),
            Self::Untried(why) => (why, UNTRIED),
        }
    }
}

/// Asks for what the driver needs.
fn ask() -> Probe {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(errno) => Probe::Refused { errno },
        None => Probe::Untried(error.to_string()),
    };
    let uring = match IoUring::new(2) {
        Ok(uring) => uring,
        Err(error) => return failed(error),
    };
    let mut supported = register::Probe::new();
    if let Err(error) = uring.submitter().register_probe(&mut supported) {
        return failed(error);
    }
    // Multishot receives came with the same version as zero-copy sends, and can't be asked for.
    let needed = [
        (opcode::Accept::CODE, "accept"),
        (opcode::Shutdown::CODE, "shutdown"),
        (opcode::AsyncCancel::CODE, "cancellation"),
        (opcode::SendZc::CODE, "multishot receives"),
    ];
    if let Some((_, name)) = needed.iter().find(|(code, _)| !supported.is_supported(*code)) {
        return Probe::TooOld { lacks: (*name).to_owned() };
    }
    // Rings of buffers came earlier than what the ring itself needs, so they are not asked for.
    let ring = builder().build(2).and_then(|ring| ring.submitter().register_files_sparse(1));
    match ring {
        Ok(()) => Probe::Works,
        Err(error) if error.raw_os_error() == Some(EINVAL) => {
            Probe::TooOld { lacks: "deferred task work".to_owned() }
        }
        Err(error) => failed(error),
    }
}

impl Guards {
    /// Reads what may forbid it to a process: `process` is its folder in `/proc`.
    #[must_use]
    pub fn read(files: &Files, process: &str) -> Self {
        Self {
            disabled: files.number("/proc/sys/kernel/io_uring_disabled"),
            group: files.number("/proc/sys/kernel/io_uring_group"),
            status: read_status(files, process),
        }
    }

    fn has_filter(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.seccomp == Seccomp::Filtered)
    }

    /// The sysctl's value if it forbids the process a ring.
    fn forbidding_sysctl(&self) -> Option<u64> {
        let value = *self.disabled.as_ref().ok()?;
        let is_exempt = |status: &Status| {
            let group = self.group.as_ref().ok().and_then(|id| u32::try_from(*id).ok());
            status.is_admin() || group.is_some_and(|group| status.groups.contains(&group))
        };
        match value {
            0 => None,
            1 if self.status.as_ref().is_ok_and(is_exempt) => None,
            _ => Some(value),
        }
    }
}

/// What a probe means for a process with these guards.
///
/// # Errors
/// [`Unavailable`]: what forbids it, or why that is not known.
pub fn judge(probe: &Probe, guards: &Guards) -> Result<(), Unavailable> {
    Err(match probe {
        Probe::Works => return Ok(()),
        Probe::Untried(reason) => Unavailable::Unknown(reason.clone()),
        Probe::TooOld { lacks } => Unavailable::TooOld(lacks.clone()),
        Probe::Killed { signal: SIGSYS } => Unavailable::Seccomp,
        Probe::Killed { signal } => {
            Unavailable::Unknown(format!("the process that tried it was killed by signal {signal}"))
        }
        Probe::Refused { errno: EPERM | EACCES } => match guards.forbidding_sysctl() {
            Some(value) => Unavailable::Disabled(value),
            None if guards.has_filter() => Unavailable::Seccomp,
            None => Unavailable::Unknown(
                "refused though neither the sysctl nor a filter forbids it: perhaps a security module \
                 does"
                    .to_owned(),
            ),
        },
        // The sysctl exists only where io_uring does.
        Probe::Refused { errno: ENOSYS } if guards.has_filter() => match guards.disabled {
            Ok(_) => Unavailable::Seccomp,
            Err(_) => Unavailable::Unknown(
                "ENOSYS: the kernel was built without io_uring, or a seccomp filter returns this".to_owned(),
            ),
        },
        Probe::Refused { errno: ENOSYS } => Unavailable::NotBuilt,
        Probe::Refused { errno } => Unavailable::Errno(*errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Machine;
    use crate::fixture::Tree;

    fn judge(probe: Probe, change: impl FnOnce(&mut Tree)) -> Result<(), Unavailable> {
        let mut tree = Tree::good();
        change(&mut tree);
        Machine { io_uring_probe: probe, ..tree.machine() }.io_uring()
    }

    const REFUSED: Probe = Probe::Refused { errno: EPERM };

    fn filter(tree: &mut Tree) {
        tree.status("Seccomp:\t0", "Seccomp:\t2");
    }

    #[test]
    fn what_was_tried_decides() {
        assert_eq!(judge(Probe::Works, |_| {}), Ok(()));
        // A filter that lets it through does not matter.
        assert_eq!(judge(Probe::Works, filter), Ok(()));
        let untried = judge(Probe::Untried("no such file".into()), |_| {});
        assert_eq!(untried, Err(Unavailable::Unknown("no such file".into())));
        assert_eq!(judge(Probe::Refused { errno: 12 }, |_| {}), Err(Unavailable::Errno(12)));
        let old = judge(Probe::TooOld { lacks: "accept".into() }, |_| {});
        assert_eq!(old, Err(Unavailable::TooOld("accept".into())));
    }

    #[test]
    fn a_sysctl_and_a_filter_are_distinguished() {
        let sysctl = |tree: &mut Tree, value| tree.set("proc/sys/kernel/io_uring_disabled", value);
        assert_eq!(judge(REFUSED, filter), Err(Unavailable::Seccomp));
        assert_eq!(judge(REFUSED, |t| sysctl(t, "2")), Err(Unavailable::Disabled(2)));
        let both = |t: &mut Tree| {
            sysctl(t, "2");
            filter(t);
        };
        assert_eq!(judge(REFUSED, both), Err(Unavailable::Disabled(2)));
        // 1 exempts the administrator, so the filter must have refused.
        let exempt = |t: &mut Tree| {
            sysctl(t, "1");
            filter(t);
        };
        assert_eq!(judge(REFUSED, exempt), Err(Unavailable::Seccomp));
        let user = |t: &mut Tree| {
            sysctl(t, "1");
            t.status("CapEff:\t000001ffffffffff", "CapEff:\t0000000000000000");
        };
        assert_eq!(judge(REFUSED, user), Err(Unavailable::Disabled(1)));
        assert!(matches!(judge(REFUSED, |_| {}), Err(Unavailable::Unknown(_))));
        let killed = |signal| judge(Probe::Killed { signal }, |_| {});
        assert_eq!(killed(SIGSYS), Err(Unavailable::Seccomp));
        assert!(matches!(killed(9), Err(Unavailable::Unknown(_))));
    }

    #[test]
    fn a_kernel_without_io_uring_and_a_filter_that_answers_the_same_are_distinguished() {
        let absent = Probe::Refused { errno: ENOSYS };
        assert_eq!(judge(absent.clone(), |_| {}), Err(Unavailable::NotBuilt));
        assert_eq!(judge(absent.clone(), filter), Err(Unavailable::Seccomp));
        let old_kernel = |t: &mut Tree| {
            filter(t);
            t.remove("proc/sys/kernel/io_uring_disabled");
        };
        assert!(matches!(judge(absent, old_kernel), Err(Unavailable::Unknown(_))));
    }

    #[test]
    fn a_childs_exit_status_and_output_carry_its_result() {
        let results = [
            Probe::Works,
            Probe::Refused { errno: EPERM },
            Probe::TooOld { lacks: "accept".into() },
            Probe::Untried("no thread".into()),
        ];
        for result in results {
            let (text, status) = result.report();
            let script = format!("echo '{text}'; exit {status}");
            assert_eq!(Probe::by_child(Command::new("sh").args(["-c", &script])), result);
        }
        let killed = Probe::by_child(Command::new("sh").args(["-c", "ulimit -c 0; kill -SYS $$"]));
        assert_eq!(killed, Probe::Killed { signal: SIGSYS });
        let absent = Probe::by_child(&mut Command::new("/nonexistent"));
        assert!(matches!(absent, Probe::Untried(_)), "{absent:?}");
    }
}
