//! One network namespace's settings and interfaces.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;

use rustix::fs::OFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::files::{Files, Reading, Unread};

/// What one network namespace is set to.
#[derive(Clone, Debug)]
pub(in crate::doctor) struct Network {
    pub(in crate::doctor) somaxconn: Reading<u64>,
    pub(in crate::doctor) syn_backlog_max: Reading<u64>,
    pub(in crate::doctor) syncookies: Reading<u64>,
    /// First and last of the ports that outgoing connections get.
    pub(in crate::doctor) ports: Reading<[u64; 2]>,
    /// Ranges of these that they don't get.
    pub(in crate::doctor) reserved_ports: Reading<Vec<[u64; 2]>>,
    /// The most that `SO_SNDBUF` may ask for, in bytes, before the kernel doubles it.
    pub(in crate::doctor) wmem_max: Reading<u64>,
    /// Tracked connections at most; 0 is no limit. Absent: nothing tracks.
    pub(in crate::doctor) conntrack_max: Reading<u64>,
    pub(in crate::doctor) conntrack_count: Reading<u64>,
    pub(in crate::doctor) established: Reading<EstablishedHash>,
    pub(in crate::doctor) congestion_control: Reading<String>,
    /// Those that are up, loopback apart; devices alone where there are any.
    pub(in crate::doctor) interfaces: Reading<Vec<Interface>>,
}

/// The table in which the kernel finds a packet's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct EstablishedHash {
    /// Its size.
    pub(in crate::doctor) buckets: u64,
    /// Whose it is.
    pub(in crate::doctor) owner: Owner,
}

/// Whose a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Owner {
    /// The namespace's own, or the machine's seen from its first namespace.
    Own,
    /// The machine's, seen from another namespace.
    Shared,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct Interface {
    pub(in crate::doctor) name: String,
    pub(in crate::doctor) receive_queues: u64,
    /// Receive queues whose packets are spread over CPUs by software (RPS).
    pub(in crate::doctor) spread_queues: u64,
    backing: Backing,
}

/// What is behind an interface.
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
    /// Reads the namespace that `process` lives in, joining it for a moment if it is another one.
    ///
    /// The settings below `/proc/sys/net` are always those of who reads, so only a thread that has
    /// joined can read them. That needs `CAP_SYS_ADMIN`.
    pub(super) fn read(files: &Files, process: &str) -> Self {
        let own = fs::read_link(files.locate("/proc/self/ns/net"));
        let path = format!("/proc/{process}/ns/net");
        let asked = fs::read_link(files.locate(&path));
        match (own, asked) {
            _ if !files.is_machine() => Self::read_here(files, process, "/sys/class/net"),
            (Ok(own), Ok(asked)) if own == asked => {
                Self::read_here(files, process, "/sys/class/net")
            }
            (Ok(_), Ok(_)) => {
                let join = || -> std::io::Result<Self> {
                    let namespace = fs::File::open(files.locate(&path))?;
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                    // What /sys shows was decided when it was mounted.
                    let interfaces = format!("/proc/{process}/root/sys/class/net");
                    Ok(Self::read_here(files, process, &interfaces))
                };
                let joined = thread::scope(|scope| scope.spawn(join).join());
                joined.expect("reading doesn't panic").unwrap_or_else(|error| {
                    Self::unread(&Unread::io(&format!("{path} (another namespace)"), &error))
                })
            }
            (Err(error), _) | (_, Err(error)) => Self::unread(&Unread::io(&path, &error)),
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

    /// A namespace that can't be looked into.
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

fn read_ranges(files: &Files, path: &str) -> Reading<Vec<[u64; 2]>> {
    let text = files.text(path)?;
    let ranges = text.split(',').filter(|range| !range.is_empty()).map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some([first.trim().parse().ok()?, last.trim().parse().ok()?])
    });
    ranges.collect::<Option<_>>().ok_or_else(|| Unread::malformed(path))
}

/// Linux 6.1 and newer say it, with a minus where the table is the machine's and not the namespace's;
/// before, only the kernel's log did.
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
    // A read is a record; one that was overwritten meanwhile is a broken pipe (Documentation/ABI/
    // testing/dev-kmsg).
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
    // The log is a ring: the line of the boot goes in time.
    Err(Unread::malformed(path))
}

fn read_interfaces(files: &Files, process: &str, folder: &str) -> Reading<Vec<Interface>> {
    // This file is the namespace's; the folder may be another's.
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

/// `None` for loopback and for what is down.
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
