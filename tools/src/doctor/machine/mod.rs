//! A snapshot of the machine, as far as it can be read: what the checks judge.
//!
//! It is read from a root, `/` or a test's tree, and judges nothing. What could not be read says why.

mod cgroup;
mod files;
mod network;
mod process;
mod ring;
mod running;

use std::path::Path;

pub(super) use cgroup::ControlGroup;
pub(super) use files::{Files, Reading, Unread};
pub(super) use network::{Network, Owner};
pub(super) use process::{Process, Seccomp, Status};
pub(super) use ring::{Probe, answer_probe, probe};
pub(super) use running::{Running, Setting};

/// Whom the snapshot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// This process, and what would be started from here.
    Here,
    /// A process that runs.
    Running(u32),
}

/// What the machine is like.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) subject: Subject,
    pub(super) process: Process,
    pub(super) network: Network,
    pub(super) control_group: ControlGroup,
    /// The most that `RLIMIT_NOFILE` can be raised to.
    pub(super) nr_open: Reading<u64>,
    pub(super) file_max: Reading<u64>,
    pub(super) files_in_use: Reading<u64>,
    /// Memory that can be had without swapping, in bytes.
    pub(super) memory_bytes: Reading<u64>,
    /// All memory that there is, in bytes.
    pub(super) memory_total_bytes: Reading<u64>,
    /// Low, pressure, high: pages that all TCP sockets may hold. The machine's, whatever namespace.
    pub(super) tcp_mem: Reading<[u64; 3]>,
    pub(super) orphans_max: Reading<u64>,
    pub(super) default_qdisc: Reading<String>,
    pub(super) map_count_max: Reading<u64>,
    pub(super) threads_max: Reading<u64>,
    pub(super) pid_max: Reading<u64>,
    /// `kernel.io_uring_disabled`: 0, 1 or 2; absent before Linux 6.6.
    pub(super) io_uring_disabled: Reading<u64>,
    /// The group that 1 spares; -1 is none.
    pub(super) io_uring_group: Reading<i64>,
    /// What came of asking for a ring from here.
    pub(super) probe: Probe,
    /// Rings that a running process has.
    pub(super) rings: Reading<usize>,
    /// What a running gateway was told, and its shards; `None` where no process is asked about.
    pub(super) running: Option<Running>,
}

impl Machine {
    /// Looks at the tree below `root`.
    pub(super) fn read(root: &Path, subject: Subject, probe: Probe) -> Self {
        let files = Files::new(root);
        let process = match subject {
            Subject::Here => "self".to_owned(),
            Subject::Running(pid) => pid.to_string(),
        };
        let in_use: Reading<[u64; 3]> = files.numbers("/proc/sys/fs/file-nr");
        Self {
            subject,
            network: Network::read(&files, &process),
            control_group: ControlGroup::read(&files, &process),
            nr_open: files.number("/proc/sys/fs/nr_open"),
            file_max: files.number("/proc/sys/fs/file-max"),
            files_in_use: in_use.map(|[allocated, unused, _]| allocated.saturating_sub(unused)),
            memory_bytes: read_memory(&files, "MemAvailable:"),
            memory_total_bytes: read_memory(&files, "MemTotal:"),
            tcp_mem: files.numbers("/proc/sys/net/ipv4/tcp_mem"),
            orphans_max: files.number("/proc/sys/net/ipv4/tcp_max_orphans"),
            default_qdisc: files.text("/proc/sys/net/core/default_qdisc"),
            map_count_max: files.number("/proc/sys/vm/max_map_count"),
            threads_max: files.number("/proc/sys/kernel/threads-max"),
            pid_max: files.number("/proc/sys/kernel/pid_max"),
            io_uring_disabled: files.number("/proc/sys/kernel/io_uring_disabled"),
            io_uring_group: files.number("/proc/sys/kernel/io_uring_group"),
            probe,
            rings: count_rings(&files, &process),
            running: match subject {
                Subject::Here => None,
                Subject::Running(_) => Some(Running::read(&files, &process)),
            },
            process: Process::read(&files, &process),
        }
    }

    /// CPUs' worth of time that the process may have: by its affinity and its quota.
    #[expect(clippy::cast_precision_loss, reason = "there are fewer CPUs than that")]
    pub(super) fn cpus(&self) -> Reading<f64> {
        let allowed = self.process.status.as_ref().map_err(Unread::clone)?.cpus as f64;
        let quota = self.control_group.cpus.clone()?;
        Ok(quota.map_or(allowed, |quota| allowed.min(quota)))
    }
}

fn read_memory(files: &Files, name: &str) -> Reading<u64> {
    let path = "/proc/meminfo";
    let text = files.text(path)?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.map(|kib| kib * 1024).ok_or_else(|| Unread::malformed(path))
}

fn count_rings(files: &Files, process: &str) -> Reading<usize> {
    let folder = format!("/proc/{process}/fd");
    let names = files.names(&folder)?;
    let is_ring = |name: &&String| {
        let link = std::fs::read_link(files.locate(&format!("{folder}/{name}")));
        link.is_ok_and(|to| to == Path::new("anon_inode:[io_uring]"))
    };
    Ok(names.iter().filter(is_ring).count())
}
