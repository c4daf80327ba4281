//! How much memory the process may use.

use std::fs;
use std::path::Path;

/// The machine's memory, or what the process's control group leaves of it, in bytes.
pub(super) fn limit() -> u64 {
    let system = rustix::system::sysinfo();
    let machine = system.totalram.saturating_mul(u64::from(system.mem_unit));
    control_group_limit(Path::new("/")).map_or(machine, |limit| limit.min(machine))
}

/// `memory.max` of the process's group or of one above it, whichever is least: control groups of version 2
/// (the kernel's cgroup-v2.rst). `root` is where the file system begins, another place in tests. `None`: they
/// set no bound.
fn control_group_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let group = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let mount = root.join("sys/fs/cgroup");
    let memory_max = |group: &Path| {
        let text = fs::read_to_string(mount.join(group).join("memory.max")).ok()?;
        text.trim().parse().ok()
    };
    group.ancestors().filter_map(memory_max).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_above_bounds_it_too() {
        let root = tempfile::tempdir().unwrap();
        let set = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(control_group_limit(root.path()), None);
        set("proc/self/cgroup", "1:name=systemd:/x\n0::/system.slice/tidegate.service\n");
        assert_eq!(control_group_limit(root.path()), None);
        set("sys/fs/cgroup/system.slice/tidegate.service/memory.max", "max\n");
        assert_eq!(control_group_limit(root.path()), None);
        set("sys/fs/cgroup/system.slice/memory.max", "2000\n");
        assert_eq!(control_group_limit(root.path()), Some(2000));
        set("sys/fs/cgroup/system.slice/tidegate.service/memory.max", "1000\n");
        assert_eq!(control_group_limit(root.path()), Some(1000));
        // A namespace of its own shows the group as the root.
        set("proc/self/cgroup", "0::/\n");
        assert_eq!(control_group_limit(root.path()), None);
        set("sys/fs/cgroup/memory.max", "3000\n");
        assert_eq!(control_group_limit(root.path()), Some(3000));
    }
}
