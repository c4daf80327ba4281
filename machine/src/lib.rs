//! What Tidegate has to know of a Linux machine. The gateway sizes itself with it, and `tide doctor` judges it.
//!
//! Each fact is read in one place, and nothing here judges: [`Machine`] is a snapshot for callers that want all of
//! it, and the modules give single facts. A reading that failed says which file could not be read and why.
//!
//! | module | what it reads |
//! |---|---|
//! | [`capacity`] | nothing: it computes what a gateway takes of a machine, and what it leaves for connections |
//! | [`cgroup`] | memory, CPU time and threads that control groups leave |
//! | [`descriptors`] | the calling process's limit of descriptors |
//! | [`files`] | files of `/proc` and `/sys`, below a root that tests replace |
//! | [`io_uring`] | whether a process may use io_uring and, if not, what forbids it |
//! | [`listeners`] | which process listens on an address, and where a process listens |
//! | [`memory`] | how much memory a process may use |
//! | [`network`] | the settings and the interfaces of a network namespace |
//! | [`process`] | the limits and the status of a process |

pub mod capacity;
pub mod cgroup;
pub mod descriptors;
pub mod files;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod io_uring;
pub mod listeners;
pub mod memory;
pub mod network;
pub mod process;

use std::path::Path;

use cgroup::ControlGroup;
use files::{Files, Reading, Unread};
use io_uring::{Guards, Probe, Unavailable};
use network::Network;
use process::Process;

/// Which process a snapshot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The calling process, and processes that it starts.
    Caller,
    /// A running process.
    Pid(u32),
}

impl Subject {
    /// The name of its folder in `/proc`.
    fn folder(self) -> String {
        match self {
            Self::Caller => "self".to_owned(),
            Self::Pid(pid) => pid.to_string(),
        }
    }
}

/// A snapshot of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The process that the snapshot is about.
    pub subject: Subject,
    /// Its limits and its status.
    pub process: Process,
    /// Its network namespace.
    pub network: Network,
    /// Its control group.
    pub control_group: ControlGroup,
    /// `fs.nr_open`: `RLIMIT_NOFILE` can't be raised beyond it.
    pub nr_open: Reading<u64>,
    /// `fs.file-max`: open files of the whole machine at most.
    pub file_max: Reading<u64>,
    /// Open files of the whole machine.
    pub files_in_use: Reading<u64>,
    /// Memory that is available without swapping, in bytes.
    pub memory_bytes: Reading<u64>,
    /// All memory, in bytes.
    pub memory_total_bytes: Reading<u64>,
    /// Low, pressure, high: pages that all TCP sockets may hold. The machine's, in every namespace.
    pub tcp_mem: Reading<[u64; 3]>,
    /// `net.ipv4.tcp_max_orphans`.
    pub orphans_max: Reading<u64>,
    /// `net.core.default_qdisc`.
    pub default_qdisc: Reading<String>,
    /// `vm.max_map_count`.
    pub map_count_max: Reading<u64>,
    /// `kernel.threads-max`.
    pub threads_max: Reading<u64>,
    /// `kernel.pid_max`.
    pub pid_max: Reading<u64>,
    /// What may forbid the process io_uring.
    pub io_uring_guards: Guards,
    /// What came of asking for a ring from the calling process.
    pub io_uring_probe: Probe,
}

impl Machine {
    /// Reads the tree below `root`, which is `/` on a real machine.
    #[must_use]
    pub fn read(root: &Path, subject: Subject, io_uring_probe: Probe) -> Self {
        let files = Files::new(root);
        let process = subject.folder();
        let in_use: Reading<[u64; 3]> = files.numbers("/proc/sys/fs/file-nr");
        Self {
            subject,
            network: Network::read(&files, &process),
            control_group: ControlGroup::read(&files, &process),
            nr_open: files.number("/proc/sys/fs/nr_open"),
            file_max: files.number("/proc/sys/fs/file-max"),
            files_in_use: in_use.map(|[allocated, unused, _]| allocated.saturating_sub(unused)),
            memory_bytes: memory::available(&files),
            memory_total_bytes: memory::total(&files),
            tcp_mem: files.numbers("/proc/sys/net/ipv4/tcp_mem"),
            orphans_max: files.number("/proc/sys/net/ipv4/tcp_max_orphans"),
            default_qdisc: files.text("/proc/sys/net/core/default_qdisc"),
            map_count_max: files.number("/proc/sys/vm/max_map_count"),
            threads_max: files.number("/proc/sys/kernel/threads-max"),
            pid_max: files.number("/proc/sys/kernel/pid_max"),
            io_uring_guards: Guards::read(&files, &process),
            io_uring_probe,
            process: Process::read(&files, &process),
        }
    }

    /// CPUs' worth of time that the process may have: its affinity or its quota, whichever is less.
    ///
    /// # Errors
    /// When either could not be read.
    #[expect(clippy::cast_precision_loss, reason = "there are fewer CPUs than that")]
    pub fn cpus(&self) -> Reading<f64> {
        let allowed = self.process.status.as_ref().map_err(Unread::clone)?.cpus as f64;
        let quota = self.control_group.cpus.clone()?;
        Ok(quota.map_or(allowed, |quota| allowed.min(quota)))
    }

    /// The same in whole CPUs, at least 1.
    ///
    /// # Errors
    /// As [`Self::cpus`].
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, above 0")]
    pub fn whole_cpus(&self) -> Reading<u64> {
        Ok((self.cpus()? as u64).max(1))
    }

    /// The memory that bounds a process of this control group.
    ///
    /// # Errors
    /// When the machine's memory could not be read.
    pub fn memory_limit(&self) -> Reading<memory::Limit> {
        let total = self.memory_total_bytes.clone()?;
        Ok(memory::Limit::new(total, &self.control_group.memory_max_bytes))
    }

    /// Whether the calling process may use io_uring.
    ///
    /// # Errors
    /// [`Unavailable`]: what forbids it, or why it is not known.
    pub fn io_uring(&self) -> Result<(), Unavailable> {
        io_uring::judge(&self.io_uring_probe, &self.io_uring_guards)
    }
}
