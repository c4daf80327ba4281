//! How much memory a process may use: the machine's, or what its control group allows.

use crate::cgroup::ControlGroup;
use crate::files::{Files, Reading, Unread};

const MEMINFO: &str = "/proc/meminfo";

/// The memory that bounds a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// What sets the bound.
    pub source: Source,
}

/// What bounds a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// All memory of the machine.
    Machine,
    /// The limit of its control group, or of one above it.
    ControlGroup,
}

impl Limit {
    /// The smaller of the machine's memory and the control group's limit. A control group that can't be read
    /// counts as one without a limit.
    pub(crate) fn new(machine_bytes: u64, group: &Reading<Option<u64>>) -> Self {
        match group {
            Ok(Some(bytes)) if *bytes < machine_bytes => {
                Self { bytes: *bytes, source: Source::ControlGroup }
            }
            _ => Self { bytes: machine_bytes, source: Source::Machine },
        }
    }

    /// The limit of the calling process.
    #[must_use]
    pub fn of_caller(files: &Files) -> Self {
        // A service may see a /proc without the machine's files (systemd's ProcSubset=pid).
        let machine_bytes = total(files).unwrap_or_else(|_| total_by_system_call());
        Self::new(machine_bytes, &ControlGroup::read(files, "self").memory_max_bytes)
    }
}

/// All memory of the machine, in bytes.
pub(crate) fn total(files: &Files) -> Reading<u64> {
    read(files, "MemTotal:")
}

fn total_by_system_call() -> u64 {
    let system = rustix::system::sysinfo();
    system.totalram.saturating_mul(u64::from(system.mem_unit))
}

/// Memory that is available without swapping, in bytes.
pub(crate) fn available(files: &Files) -> Reading<u64> {
    read(files, "MemAvailable:")
}

fn read(files: &Files, name: &str) -> Reading<u64> {
    let text = files.text(MEMINFO)?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.map(|kib| kib * 1024).ok_or_else(|| Unread::malformed(MEMINFO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Tree;

    const GROUP: &str = "sys/fs/cgroup/system.slice/tidegate.service/memory.max";

    fn limit(tree: &Tree) -> Limit {
        Limit::of_caller(&Files::new(tree.root()))
    }

    #[test]
    fn the_smallest_group_on_the_way_to_the_root_bounds_it() {
        let mut tree = Tree::good();
        let machine = Limit { bytes: 64 << 30, source: Source::Machine };
        assert_eq!(limit(&tree), machine);
        tree.set(GROUP, "max");
        assert_eq!(limit(&tree), machine);
        let group = |bytes| Limit { bytes, source: Source::ControlGroup };
        tree.set("sys/fs/cgroup/system.slice/memory.max", "2000");
        assert_eq!(limit(&tree), group(2000));
        tree.set(GROUP, "1000");
        assert_eq!(limit(&tree), group(1000));
        // More than the machine has is no bound.
        tree.set(GROUP, &(65_u64 << 30).to_string());
        tree.set("sys/fs/cgroup/system.slice/memory.max", "max");
        assert_eq!(limit(&tree), machine);
        // A cgroup namespace shows the process's group as the root.
        tree.set("proc/self/cgroup", "0::/");
        tree.set("sys/fs/cgroup/memory.max", "3000");
        assert_eq!(limit(&tree), group(3000));
    }

    #[test]
    fn control_groups_of_version_1_bound_it_too() {
        let mut tree = Tree::good();
        tree.set("proc/self/cgroup", "5:memory:/docker/a\n0::/");
        tree.set(
            "proc/self/mountinfo",
            "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        );
        let path = "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes";
        tree.set(path, "9223372036854771712");
        assert_eq!(limit(&tree).source, Source::Machine);
        tree.set(path, "4000");
        assert_eq!(limit(&tree), Limit { bytes: 4000, source: Source::ControlGroup });
    }

    #[test]
    fn both_sources_of_the_machines_memory_agree() {
        assert_eq!(total(&Files::system()), Ok(total_by_system_call()));
    }

    #[test]
    fn a_group_that_cant_be_read_sets_no_bound() {
        let mut tree = Tree::good();
        tree.remove("proc/self/cgroup");
        assert_eq!(limit(&tree).source, Source::Machine);
    }
}
