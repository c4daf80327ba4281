//! One process: its limits, and what its status says of it.

use crate::files::{Files, Reading, Unread};

/// The limits and the status of a process.
#[derive(Clone, Debug)]
pub struct Process {
    /// `RLIMIT_NOFILE`, soft and hard.
    pub files: Reading<Limit>,
    /// `RLIMIT_NPROC`, soft and hard.
    pub processes: Reading<Limit>,
    /// Its status.
    pub status: Reading<Status>,
}

/// A resource limit. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// To what the kernel holds the process.
    pub soft: Option<u64>,
    /// To what the process may raise the soft limit.
    pub hard: Option<u64>,
}

/// What `/proc/PID/status` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The effective user id.
    pub uid: u32,
    /// The effective and the supplementary group ids.
    pub groups: Vec<u32>,
    /// Effective capabilities, a bit each.
    pub capabilities: u64,
    /// Whether a seccomp filter is on.
    pub seccomp: Seccomp,
    /// How many CPUs it may run on.
    pub cpus: u64,
}

/// The seccomp mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// No filter, or a kernel without seccomp.
    Off,
    /// Strict mode or a filter.
    Filtered,
}

/// The bit of `CAP_SYS_ADMIN`.
const SYS_ADMIN: u32 = 21;

impl Process {
    /// Reads a process: `process` is its folder in `/proc`.
    #[must_use]
    pub fn read(files: &Files, process: &str) -> Self {
        let limits_path = format!("/proc/{process}/limits");
        let limits = files.text(&limits_path);
        let limit = |name: &str| {
            let text = limits.as_ref().map_err(Unread::clone)?;
            parse_limit(text, name).ok_or_else(|| Unread::malformed(&limits_path))
        };
        Self {
            files: limit("Max open files"),
            processes: limit("Max processes"),
            status: read_status(files, process),
        }
    }
}

impl Status {
    /// Whether it has `CAP_SYS_ADMIN`, perhaps only in its own user namespace.
    #[must_use]
    pub const fn is_admin(&self) -> bool {
        self.capabilities >> SYS_ADMIN & 1 == 1
    }
}

/// The number of a process in its own PID namespace, which is the innermost.
///
/// # Errors
/// When its status can't be read.
pub fn innermost_pid(files: &Files, pid: u32) -> Reading<u32> {
    let path = format!("/proc/{pid}/status");
    let text = files.text(&path)?;
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let innermost =
        numbers.and_then(|numbers| numbers.split_whitespace().next_back()?.parse().ok());
    innermost.ok_or_else(|| Unread::malformed(&path))
}

/// The name of a process: at most 15 bytes, which the process may choose.
///
/// # Errors
/// When it can't be read.
pub fn name(files: &Files, pid: u32) -> Reading<String> {
    files.text(&format!("/proc/{pid}/comm"))
}

fn parse_limit(text: &str, name: &str) -> Option<Limit> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = rest.split_whitespace();
    let mut bound = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Limit { soft: bound()?, hard: bound()? })
}

pub(crate) fn read_status(files: &Files, process: &str) -> Reading<Status> {
    let path = format!("/proc/{process}/status");
    let text = files.text(&path)?;
    parse_status(&text).ok_or_else(|| Unread::malformed(&path))
}

fn parse_status(text: &str) -> Option<Status> {
    let field = |name: &str| {
        let after =
            |line: &'_ str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
        text.lines().find_map(after)
    };
    let ids = |text: String| -> Option<Vec<u32>> {
        text.split_whitespace().map(|id| id.parse().ok()).collect()
    };
    let mut groups = ids(field("Groups").unwrap_or_default())?;
    groups.push(*ids(field("Gid")?)?.get(1)?);
    Some(Status {
        uid: *ids(field("Uid")?)?.get(1)?,
        groups,
        capabilities: u64::from_str_radix(&field("CapEff")?, 16).ok()?,
        // A kernel without seccomp has no such line.
        seccomp: match field("Seccomp").as_deref() {
            None | Some("0") => Seccomp::Off,
            Some(_) => Seccomp::Filtered,
        },
        cpus: count_list(&field("Cpus_allowed_list")?)?,
    })
}

/// How many numbers a list such as `0-3,8` has.
fn count_list(text: &str) -> Option<u64> {
    text.split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(sum + last.checked_sub(first)? + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Tree;

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(count_list("0-3,8"), Some(5));
        assert_eq!(count_list("7"), Some(1));
        assert_eq!(count_list("3-1"), None);
        assert_eq!(count_list(""), None);
    }

    #[test]
    fn a_process_has_a_number_in_each_namespace_that_sees_it() {
        let mut tree = Tree::good();
        tree.set("proc/4711/status", "Name:\ttidegate\nNSpid:\t4711\t1\n");
        assert_eq!(innermost_pid(&Files::new(tree.root()), 4711), Ok(1));
        let own = std::process::id();
        assert_eq!(innermost_pid(&Files::system(), own), Ok(own));
    }

    #[test]
    fn limits_are_read_by_name() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  unlimited  files";
        let limit = Limit { soft: Some(1024), hard: None };
        assert_eq!(parse_limit(text, "Max open files"), Some(limit));
        assert_eq!(parse_limit(text, "Max processes"), None);
    }
}
