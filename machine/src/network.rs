//! One network namespace's settings and interfaces.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::resume_unwind;
use std::thread;

use rustix::fs::OFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::files::{Files, Reading, Unread};

/// The settings and the interfaces of one network namespace.
#[derive(Clone, Debug)]
pub struct Network {
    /// `net.core.somaxconn`.
    pub somaxconn: Reading<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog_max: Reading<u64>,
    /// `net.ipv4.tcp_syncookies`.
    pub syncookies: Reading<u64>,
    /// The first and the last port that outgoing connections draw from.
    pub ports: Reading<[u64; 2]>,
    /// Ranges within these that are reserved.
    pub reserved_ports: Reading<Vec<[u64; 2]>>,
    /// The largest `SO_SNDBUF` in bytes, before the kernel doubles it.
    pub wmem_max: Reading<u64>,
    /// Tracked connections at most; 0 is no limit. Absent: connections are not tracked.
    pub conntrack_max: Reading<u64>,
    /// Connections that are tracked.
    pub conntrack_count: Reading<u64>,
    /// The hash table of established connections.
    pub established: Reading<EstablishedHash>,
    /// `net.ipv4.tcp_congestion_control`.
    pub congestion_control: Reading<String>,
    /// The interfaces that are up, without loopback. Where there are devices, only those.
    pub interfaces: Reading<Vec<Interface>>,
}

/// The table in which the kernel finds a packet's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstablishedHash {
    /// Its size.
    pub buckets: u64,
    /// Its owner.
    pub owner: Owner,
}

/// The owner of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The namespace itself, or the machine where this is its first namespace.
    Own,
    /// The machine, seen from another namespace.
    Shared,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its receive queues.
    pub receive_queues: u64,
    /// Receive queues whose packets are spread over CPUs by software (RPS).
    pub spread_queues: u64,
    backing: Backing,
}

/// What backs an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    Device,
    /// Software: veth, bridge, tunnel, ifb.
    Virtual,
}

/// `ARPHRD_LOOPBACK` in if_arp.h.
const LOOPBACK: u64 = 772;

/// The bit that says an interface is up.
const UP: u64 = 1;

impl Network {
    /// Reads the network namespace of a process: `process` is its folder in `/proc`.
    ///
    /// `/proc/sys/net` shows each reader the settings of the reader's own namespace. So a thread joins the
    /// namespace where it is another one, which needs `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn read(files: &Files, process: &str) -> Self {
        let here = || Self::read_here(files, process, "/sys/class/net");
        if !files.is_machine() {
            return here();
        }
        match is_own_namespace(files, process) {
            Ok(true) => here(),
            Ok(false) => {
                // /sys shows the namespace in which it was mounted, so the process's own is read.
                let interfaces = format!("/proc/{process}/root/sys/class/net");
                let read = || Self::read_here(files, process, &interfaces);
                in_namespace(files, process, read).unwrap_or_else(|unread| Self::unread(&unread))
            }
            Err(unread) => Self::unread(&unread),
        }
    }

    fn read_here(files: &Files, process: &str, interfaces: &str) -> Self {
        Self {
            somaxconn: files.number("/proc/sys/net/core/somaxconn"),
            syn_backlog_max: files.number("/proc/sys/net/ipv4/tcp_max_syn_backlog"),
            syncookies: files.number("/proc/sys/net/ipv4/tcp_syncookies"),
            ports: files.numbers("/proc/sys/net/ipv4/ip_local_port_range"),
            reserved_ports: read_ranges(files, "/proc/sys/net/ipv4/ip_local_reserved_ports"),
            wmem_max: files.number("/proc/sys/net/core/wmem_max"),
            conntrack_max: files.number("/proc/sys/net/netfilter/nf_conntrack_max"),
            conntrack_count: files.number("/proc/sys/net/netfilter/nf_conntrack_count"),
            established: read_established(files),
            congestion_control: files.text("/proc/sys/net/ipv4/tcp_congestion_control"),
            interfaces: read_interfaces(files, process, interfaces),
        }
    }

    /// A namespace that can't be read.
    fn unread(unread: &Unread) -> Self {
        fn no<T>(unread: &Unread) -> Reading<T> {
            Err(unread.clone())
        }
        Self {
            somaxconn: no(unread),
            syn_backlog_max: no(unread),
            syncookies: no(unread),
            ports: no(unread),
            reserved_ports: no(unread),
            wmem_max: no(unread),
            conntrack_max: no(unread),
            conntrack_count: no(unread),
            established: no(unread),
            congestion_control: no(unread),
            interfaces: no(unread),
        }
    }
}

/// Does something in the network namespace of a process: on the calling thread where that is its own namespace,
/// otherwise on a thread that joins it. `process` is the process's folder in `/proc`.
///
/// # Errors
/// When the namespace can't be read or joined; joining needs `CAP_SYS_ADMIN`.
pub fn within<T: Send>(
    files: &Files,
    process: &str,
    work: impl FnOnce() -> T + Send,
) -> Reading<T> {
    if is_own_namespace(files, process)? { Ok(work()) } else { in_namespace(files, process, work) }
}

fn namespace_of(process: &str) -> String {
    format!("/proc/{process}/ns/net")
}

/// Whether a process lives in the network namespace of the calling process. `process` is its folder in `/proc`.
///
/// # Errors
/// When the namespace can't be read.
pub fn is_own_namespace(files: &Files, process: &str) -> Reading<bool> {
    let read = |process| {
        let path = namespace_of(process);
        fs::read_link(files.locate(&path)).map_err(|error| Unread::io(&path, &error))
    };
    Ok(read("self")? == read(process)?)
}

fn in_namespace<T: Send>(
    files: &Files,
    process: &str,
    work: impl FnOnce() -> T + Send,
) -> Reading<T> {
    let path = namespace_of(process);
    let join = || -> std::io::Result<T> {
        let namespace = fs::File::open(files.locate(&path))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    let joined = thread::scope(|scope| scope.spawn(join).join());
    let joined = joined.unwrap_or_else(|panic| resume_unwind(panic));
    joined.map_err(|error| Unread::io(&format!("{path} (another namespace)"), &error))
}

fn read_ranges(files: &Files, path: &str) -> Reading<Vec<[u64; 2]>> {
    let text = files.text(path)?;
    let ranges = text.split(',').filter(|range| !range.is_empty()).map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some([first.trim().parse().ok()?, last.trim().parse().ok()?])
    });
    ranges.collect::<Option<_>>().ok_or_else(|| Unread::malformed(path))
}

/// A setting since Linux 6.1, with a minus where the machine owns the table; before, only a line in the kernel's
/// log.
fn read_established(files: &Files) -> Reading<EstablishedHash> {
    let path = "/proc/sys/net/ipv4/tcp_ehash_entries";
    match files.number::<i64>(path) {
        Ok(buckets) => {
            let owner = if buckets < 0 { Owner::Shared } else { Owner::Own };
            Ok(EstablishedHash { buckets: buckets.unsigned_abs(), owner })
        }
        Err(unread) if unread.is_absent() => read_kernel_log(files),
        Err(unread) => Err(unread),
    }
}

fn read_kernel_log(files: &Files) -> Reading<EstablishedHash> {
    const LINE: &str = "TCP established hash table entries: ";
    let path = "/dev/kmsg";
    let failed = |error| Unread::io(path, &error);
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags are small");
    let opened = OpenOptions::new().read(true).custom_flags(nonblocking).open(files.locate(path));
    let mut log = opened.map_err(failed)?;
    // Each read gives one record. EPIPE means that a record was overwritten before it was read
    // (Documentation/ABI/testing/dev-kmsg).
    let mut record = vec![0; 8192];
    loop {
        let count = match log.read(&mut record) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
            Err(error) => return Err(failed(error)),
        };
        let text = String::from_utf8_lossy(&record[..count]);
        if let Some((_, rest)) = text.split_once(LINE) {
            let number = rest.split_whitespace().next().and_then(|word| word.parse().ok());
            let buckets = number.ok_or_else(|| Unread::malformed(path))?;
            return Ok(EstablishedHash { buckets, owner: Owner::Own });
        }
    }
    // The log is a ring buffer: the line from the boot is overwritten at some time.
    Err(Unread::malformed(path))
}

fn read_interfaces(files: &Files, process: &str, folder: &str) -> Reading<Vec<Interface>> {
    // This file is always the namespace's own; the folder may show another namespace.
    let path = format!("/proc/{process}/net/dev");
    let text = files.text(&path)?;
    let names = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    let mut interfaces = Vec::new();
    for name in names {
        interfaces.extend(read_interface(files, folder, name)?);
    }
    if interfaces.iter().any(|interface| interface.backing == Backing::Device) {
        interfaces.retain(|interface| interface.backing == Backing::Device);
    }
    Ok(interfaces)
}

/// `None` for loopback, and for an interface that is down.
fn read_interface(files: &Files, folder: &str, name: String) -> Reading<Option<Interface>> {
    if files.number::<u64>(&format!("{folder}/{name}/type"))? == LOOPBACK {
        return Ok(None);
    }
    let path = format!("{folder}/{name}/flags");
    let flags = files.text(&path)?;
    let flags = u64::from_str_radix(flags.trim_start_matches("0x"), 16);
    if flags.map_err(|_| Unread::malformed(&path))? & UP == 0 {
        return Ok(None);
    }
    let queues = files.names(&format!("{folder}/{name}/queues"))?;
    let (mut receive_queues, mut spread_queues) = (0, 0);
    for queue in queues.iter().filter(|queue| queue.starts_with("rx-")) {
        receive_queues += 1;
        let cpus = files.text(&format!("{folder}/{name}/queues/{queue}/rps_cpus"));
        let spread = cpus.is_ok_and(|mask| mask.chars().any(|c| c.is_ascii_hexdigit() && c != '0'));
        spread_queues += u64::from(spread);
    }
    let behind = files.has(&format!("{folder}/{name}/device"));
    let backing = if behind { Backing::Device } else { Backing::Virtual };
    Ok(Some(Interface { name, receive_queues, spread_queues, backing }))
}
