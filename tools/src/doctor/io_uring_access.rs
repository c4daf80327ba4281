//! Whether the process may have an io_uring and, if not, who forbids it.
//!
//! The kernel says EPERM for its sysctl and for a filter alike, so the errno is read beside the sysctl
//! and the seccomp mode.

use super::machine::{Machine, Probe, Seccomp, Status, Subject};

/// What is known of a process's way to io_uring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// It can have a ring.
    Works,
    /// It can't.
    Refused(Refusal),
    /// It can't be told, and why.
    Unknown(String),
}

/// Who forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The kernel was built without.
    NotBuilt,
    /// `kernel.io_uring_disabled`, with this value.
    Sysctl(u64),
    /// A seccomp filter.
    Seccomp,
    /// Anything else.
    Errno(i32),
}

/// Linux's numbers, on every architecture that the gateway runs on.
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENOSYS: i32 = 38;
const SIGSYS: i32 = 31;

/// Says whether the process may have a ring.
pub(super) fn access(machine: &Machine) -> Access {
    match machine.subject {
        Subject::Here => own_access(machine),
        Subject::Running(_) => others_access(machine),
    }
}

/// It was tried.
fn own_access(machine: &Machine) -> Access {
    let filtered = seccomp(machine) == Some(Seccomp::Filtered);
    match machine.probe {
        Probe::Works => Access::Works,
        Probe::Untried(ref reason) => Access::Unknown(reason.clone()),
        Probe::Killed { signal: SIGSYS } => Access::Refused(Refusal::Seccomp),
        Probe::Killed { signal } => Access::Unknown(format!("who tried was killed by {signal}")),
        Probe::Refused { errno: EPERM | EACCES } => match forbidding_sysctl(machine) {
            Some(value) => Access::Refused(Refusal::Sysctl(value)),
            None if filtered => Access::Refused(Refusal::Seccomp),
            None => Access::Unknown(
                "refused though neither sysctl nor filter forbids it: perhaps a security module"
                    .to_owned(),
            ),
        },
        // The sysctl is there only where io_uring is.
        Probe::Refused { errno: ENOSYS } if filtered => match machine.io_uring_disabled {
            Ok(_) => Access::Refused(Refusal::Seccomp),
            Err(_) => Access::Unknown(
                "ENOSYS: the kernel was built without io_uring, or a seccomp filter says so"
                    .to_owned(),
            ),
        },
        Probe::Refused { errno: ENOSYS } => Access::Refused(Refusal::NotBuilt),
        Probe::Refused { errno } => Access::Refused(Refusal::Errno(errno)),
    }
}

/// Nobody can try for another process: what it has, or what forbids or allows it, must say.
fn others_access(machine: &Machine) -> Access {
    if machine.rings.as_ref().is_ok_and(|rings| *rings > 0) {
        return Access::Works;
    }
    if let Some(value) = forbidding_sysctl(machine) {
        return Access::Refused(Refusal::Sysctl(value));
    }
    match (seccomp(machine), &machine.probe) {
        (Some(Seccomp::Filtered), _) => Access::Unknown(
            "a seccomp filter is on it, and what a filter forbids can't be seen from outside"
                .to_owned(),
        ),
        (None, _) => Access::Unknown("its status could not be read".to_owned()),
        (Some(Seccomp::Off), Probe::Works) => Access::Works,
        (Some(Seccomp::Off), _) => Access::Unknown(
            "it has no ring, and this process can't have one to try with".to_owned(),
        ),
    }
}

fn seccomp(machine: &Machine) -> Option<Seccomp> {
    machine.process.status.as_ref().ok().map(|status| status.seccomp)
}

/// The sysctl's value if it forbids the process a ring.
fn forbidding_sysctl(machine: &Machine) -> Option<u64> {
    let value = *machine.io_uring_disabled.as_ref().ok()?;
    let spared = |status: &Status| {
        let group = machine.io_uring_group.as_ref().ok().and_then(|id| u32::try_from(*id).ok());
        status.is_admin() || group.is_some_and(|group| status.groups.contains(&group))
    };
    match value {
        0 => None,
        1 if machine.process.status.as_ref().is_ok_and(spared) => None,
        _ => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Tree;
    use super::*;

    fn judge(probe: Probe, change: impl FnOnce(&mut Tree)) -> Access {
        let mut tree = Tree::good();
        change(&mut tree);
        access(&Machine { probe, ..tree.machine() })
    }

    const REFUSED: Probe = Probe::Refused { errno: EPERM };

    #[test]
    fn what_was_tried_counts() {
        assert_eq!(judge(Probe::Works, |_| {}), Access::Works);
        // A filter that lets it through is no matter.
        assert_eq!(judge(Probe::Works, |t| t.status("Seccomp:\t0", "Seccomp:\t2")), Access::Works);
        let untried = judge(Probe::Untried("no such file".into()), |_| {});
        assert_eq!(untried, Access::Unknown("no such file".into()));
        assert_eq!(
            judge(Probe::Refused { errno: 12 }, |_| {}),
            Access::Refused(Refusal::Errno(12))
        );
    }

    #[test]
    fn a_sysctl_and_a_filter_are_told_apart() {
        let filter = |t: &mut Tree| t.status("Seccomp:\t0", "Seccomp:\t2");
        assert_eq!(judge(REFUSED, filter), Access::Refused(Refusal::Seccomp));
        let sysctl = |t: &mut Tree| t.set("proc/sys/kernel/io_uring_disabled", "2");
        assert_eq!(judge(REFUSED, sysctl), Access::Refused(Refusal::Sysctl(2)));
        let both = |t: &mut Tree| {
            t.set("proc/sys/kernel/io_uring_disabled", "2");
            t.status("Seccomp:\t0", "Seccomp:\t2");
        };
        assert_eq!(judge(REFUSED, both), Access::Refused(Refusal::Sysctl(2)));
        // 1 spares the administrator, whom then the filter stops.
        let spared = |t: &mut Tree| {
            t.set("proc/sys/kernel/io_uring_disabled", "1");
            t.status("Seccomp:\t0", "Seccomp:\t2");
        };
        assert_eq!(judge(REFUSED, spared), Access::Refused(Refusal::Seccomp));
        let user = |t: &mut Tree| {
            t.set("proc/sys/kernel/io_uring_disabled", "1");
            t.status("CapEff:\t000001ffffffffff", "CapEff:\t0000000000000000");
        };
        assert_eq!(judge(REFUSED, user), Access::Refused(Refusal::Sysctl(1)));
        assert!(matches!(judge(REFUSED, |_| {}), Access::Unknown(_)));
        assert_eq!(
            judge(Probe::Killed { signal: SIGSYS }, |_| {}),
            Access::Refused(Refusal::Seccomp)
        );
        assert!(matches!(judge(Probe::Killed { signal: 9 }, |_| {}), Access::Unknown(_)));
    }

    #[test]
    fn a_kernel_without_and_a_filter_that_plays_one_are_told_apart() {
        let absent = Probe::Refused { errno: ENOSYS };
        assert_eq!(judge(absent.clone(), |_| {}), Access::Refused(Refusal::NotBuilt));
        let filter = |t: &mut Tree| t.status("Seccomp:\t0", "Seccomp:\t2");
        assert_eq!(judge(absent.clone(), filter), Access::Refused(Refusal::Seccomp));
        let old_kernel = |t: &mut Tree| {
            t.status("Seccomp:\t0", "Seccomp:\t2");
            t.remove("proc/sys/kernel/io_uring_disabled");
        };
        assert!(matches!(judge(absent, old_kernel), Access::Unknown(_)));
    }

    #[test]
    fn of_another_process_its_rings_its_filter_and_the_sysctl_tell() {
        let judge = |probe: Probe, rings: usize, change: &dyn Fn(&mut Tree)| {
            let mut tree = Tree::good();
            change(&mut tree);
            let subject = Subject::Running(1);
            access(&Machine { probe, subject, rings: Ok(rings), ..tree.machine() })
        };
        let filter = |t: &mut Tree| t.status("Seccomp:\t0", "Seccomp:\t2");
        assert_eq!(judge(REFUSED, 2, &filter), Access::Works);
        assert!(matches!(judge(Probe::Works, 0, &filter), Access::Unknown(_)));
        assert_eq!(judge(Probe::Works, 0, &|_| {}), Access::Works);
        let sysctl = |t: &mut Tree| t.set("proc/sys/kernel/io_uring_disabled", "2");
        assert_eq!(judge(Probe::Works, 0, &sysctl), Access::Refused(Refusal::Sysctl(2)));
        assert!(matches!(judge(REFUSED, 0, &|_| {}), Access::Unknown(_)));
    }
}
