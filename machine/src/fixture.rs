//! A machine made of files, for tests: every check finds it good until a test changes it.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::missing_panics_doc, reason = "as above")]

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::io_uring::Probe;
use crate::{Machine, Subject};

/// A tree of `/proc` and `/sys` in a separate folder.
#[derive(Debug)]
pub struct Tree {
    folder: TempDir,
}

const FILES: &[(&str, &str)] = &[
    ("proc/sys/fs/nr_open", "1048576"),
    ("proc/sys/fs/file-max", "9223372036854775807"),
    ("proc/sys/fs/file-nr", "1000\t0\t9223372036854775807"),
    ("proc/sys/net/core/somaxconn", "4096"),
    ("proc/sys/net/core/wmem_max", "212992"),
    ("proc/sys/net/core/default_qdisc", "fq"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
    ("proc/sys/net/ipv4/ip_local_reserved_ports", ""),
    ("proc/sys/net/ipv4/tcp_mem", "1500000\t2000000\t3000000"),
    ("proc/sys/net/ipv4/tcp_max_orphans", "2000000"),
    ("proc/sys/net/ipv4/tcp_ehash_entries", "1048576"),
    ("proc/sys/net/ipv4/tcp_congestion_control", "cubic"),
    ("proc/sys/vm/max_map_count", "65530"),
    ("proc/sys/kernel/threads-max", "200000"),
    ("proc/sys/kernel/pid_max", "4194304"),
    ("proc/sys/kernel/io_uring_disabled", "0"),
    ("proc/sys/kernel/io_uring_group", "-1"),
    ("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable:   62914560 kB\n"),
    (
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units\n\
         Max processes             100000               100000               processes\n\
         Max open files            1024                 1048576              files\n",
    ),
    (
        "proc/self/status",
        "Name:\ttide\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 4\n\
         CapEff:\t000001ffffffffff\nSeccomp:\t0\nCpus_allowed_list:\t0-7\n",
    ),
    ("proc/self/cgroup", "0::/system.slice/tidegate.service\n"),
    ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"),
    ("proc/self/fd/0", ""),
    ("proc/self/net/dev", "Inter-|   Receive\n face |bytes\n    lo: 0 0\n  eth0: 0 0\n"),
    ("sys/class/net/lo/type", "772"),
    ("sys/class/net/lo/flags", "0x9"),
    ("sys/class/net/eth0/type", "1"),
    ("sys/class/net/eth0/flags", "0x1003"),
    ("sys/class/net/eth0/device/vendor", "0x1af4"),
];

/// Receive queues of the fixture's card.
const QUEUES: u32 = 8;

impl Tree {
    /// A machine with 8 CPUs, a card with 8 queues and 60 GiB to spare, fit for a million connections.
    #[must_use]
    pub fn good() -> Self {
        let mut tree = Self { folder: tempfile::tempdir().unwrap() };
        for (path, text) in FILES {
            tree.set(path, text);
        }
        for queue in 0..QUEUES {
            tree.set(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "00");
        }
        tree
    }

    /// Writes a file.
    pub fn set(&mut self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// Removes a file or a folder.
    pub fn remove(&mut self, path: &str) {
        let path = self.folder.path().join(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    /// Changes a line of the process's status.
    pub fn status(&mut self, from: &str, to: &str) {
        let path = "proc/self/status";
        let text = fs::read_to_string(self.folder.path().join(path)).unwrap();
        assert!(text.contains(from), "{from} is not in:\n{text}");
        self.set(path, text.replace(from, to).trim_end());
    }

    /// Sets the limits of open files.
    pub fn open_files(&mut self, soft: &str, hard: &str) {
        let text = format!(
            "Max processes  100000  100000  processes\nMax open files  {soft}  {hard}  files"
        );
        self.set("proc/self/limits", &text);
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// A snapshot of it, where io_uring works.
    #[must_use]
    pub fn machine(&self) -> Machine {
        Machine::read(self.root(), Subject::Caller, Probe::Works)
    }
}
