//! Which process listens on a TCP address, whose it is, and on which addresses a process listens.
//!
//! `/proc/PID/net/tcp` lists the sockets of a namespace by inode, and `/proc/PID/fd` names the inodes that a
//! process has open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::files::{Files, Reading, Unread};

/// Listening sockets by their inode.
type Listeners = BTreeMap<u64, Listener>;

/// A listening socket.
#[derive(Clone, Copy, Debug)]
struct Listener {
    address: SocketAddr,
    /// The user id of the thread that made it.
    owner: u32,
}

/// The state `TCP_LISTEN` in the kernel's net/tcp_states.h, as it is printed.
const LISTEN: &str = "0A";

/// The addresses on which a process listens, sorted, each once.
///
/// # Errors
/// When its files can't be read: another user's need root.
pub fn of_process(files: &Files, pid: u32) -> Reading<Vec<SocketAddr>> {
    let listeners = listeners(files, &pid.to_string())?;
    let mut addresses: Vec<_> = open_listeners(files, pid, &listeners)?.collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The process that gets connections to this address, in the calling thread's network namespace. `None`: nobody
/// listens there, or the process is not visible from this PID namespace.
///
/// # Errors
/// When the sockets can't be read, or no visible process has the listener and one can't be looked into.
pub fn process_at(files: &Files, address: SocketAddr) -> Reading<Option<u32>> {
    process_of(files, &listeners_at(files, address)?, None)
}

/// The process whose listener keeps the calling one from listening on this address, in the calling thread's network
/// namespace: on the same address, or on one that includes it or is included. `None` as for [`process_at`].
///
/// # Errors
/// As for [`process_at`].
pub fn process_in_the_way(files: &Files, address: SocketAddr) -> Reading<Option<u32>> {
    process_of(files, &listeners_in_the_way(files, address)?, Some(std::process::id()))
}

/// Whether the calling process itself has such a listener as [`process_in_the_way`] finds at others.
///
/// # Errors
/// When the sockets can't be read.
pub fn is_itself_in_the_way(files: &Files, address: SocketAddr) -> Reading<bool> {
    let listeners = listeners_in_the_way(files, address)?;
    Ok(open_listeners(files, std::process::id(), &listeners)?.next().is_some())
}

/// The first process, other than `except`, that has one of these listeners open.
fn process_of(files: &Files, listeners: &Listeners, except: Option<u32>) -> Reading<Option<u32>> {
    if listeners.is_empty() {
        return Ok(None);
    }
    let mut denied = None;
    for name in files.names("/proc")? {
        let Some(pid) = name.parse().ok().filter(|pid| Some(*pid) != except) else { continue };
        match open_listeners(files, pid, listeners).map(|mut open| open.next()) {
            Ok(Some(_)) => return Ok(Some(pid)),
            Ok(None) => {}
            // The process has ended meanwhile.
            Err(unread) if unread.is_absent() => {}
            Err(unread) => denied = Some(unread),
        }
    }
    denied.map_or(Ok(None), Err)
}

/// The users whose listeners get connections to this address, in the calling thread's network namespace; none
/// where nobody listens there. This needs no permission, and also tells the owner of a process that may not be
/// looked into.
///
/// # Errors
/// When the sockets can't be read.
pub fn owners_at(files: &Files, address: SocketAddr) -> Reading<BTreeSet<u32>> {
    Ok(listeners_at(files, address)?.values().map(|listener| listener.owner).collect())
}

/// Whether a listener on this address gets connections to `address`.
#[must_use]
pub fn serves(listener: SocketAddr, address: SocketAddr) -> bool {
    rank(listener, address).is_some()
}

/// How closely a listener matches an address, the closest first: the kernel prefers an exact address.
fn rank(listener: SocketAddr, address: SocketAddr) -> Option<u8> {
    if listener.port() != address.port() {
        return None;
    }
    match (listener.ip(), address.ip()) {
        (at, to) if at == to => Some(0),
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(_))
        | (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(_)) => Some(1),
        // A socket of IPv6 takes IPv4 too, unless IPV6_V6ONLY is set.
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(_)) => Some(2),
        _ => None,
    }
}

/// The listeners that get connections to this address, in the calling thread's network namespace.
fn listeners_at(files: &Files, address: SocketAddr) -> Reading<Listeners> {
    let mut listeners = listeners(files, "thread-self")?;
    let best = listeners.values().filter_map(|listener| rank(listener.address, address)).min();
    listeners.retain(|_, listener| best.is_some() && rank(listener.address, address) == best);
    Ok(listeners)
}

/// The listeners on this address, or on one that includes it or is included, in the calling thread's network namespace.
fn listeners_in_the_way(files: &Files, address: SocketAddr) -> Reading<Listeners> {
    let mut listeners = listeners(files, "thread-self")?;
    let overlaps = |other| serves(other, address) || serves(address, other);
    listeners.retain(|_, listener| overlaps(listener.address));
    Ok(listeners)
}

/// Those of the listeners that a process has open.
fn open_listeners<'a>(
    files: &Files,
    pid: u32,
    listeners: &'a Listeners,
) -> Reading<impl Iterator<Item = SocketAddr> + use<'a>> {
    let folder = format!("/proc/{pid}/fd");
    let files = files.clone();
    let open = files.names(&folder)?.into_iter().filter_map(move |descriptor| {
        // A descriptor may be closed between the listing and this.
        let link = fs::read_link(files.locate(&format!("{folder}/{descriptor}"))).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some(listeners.get(&inode)?.address)
    });
    Ok(open)
}

/// The listening sockets of a process's network namespace.
fn listeners(files: &Files, process: &str) -> Reading<Listeners> {
    let mut listeners = Listeners::new();
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/{process}/net/{table}");
        let failed = |error| Unread::io(&path, &error);
        let file = match File::open(files.locate(&path)).map_err(failed) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(unread) if unread.is_absent() && table == "tcp6" => continue,
            Err(unread) => return Err(unread),
        };
        for line in BufReader::new(file).lines().skip(1) {
            let line = line.map_err(failed)?;
            let words: Vec<_> = line.split_whitespace().collect();
            let (Some(address), Some(&state), Some(owner), Some(inode)) =
                (words.get(1), words.get(3), words.get(7), words.get(9))
            else {
                return Err(Unread::malformed(&path));
            };
            // The kernel lists the listening sockets first; a million connections may follow.
            if state != LISTEN {
                break;
            }
            let (Some(address), Ok(owner), Ok(inode)) =
                (parse_address(address), owner.parse(), inode.parse())
            else {
                return Err(Unread::malformed(&path));
            };
            listeners.insert(inode, Listener { address, owner });
        }
    }
    Ok(listeners)
}

/// An address such as `0100007F:1CE9`: words of 32 bits in the machine's byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = ip.get(8 * at..8 * at + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process;

    use super::*;

    #[test]
    fn the_calling_process_is_found_at_its_own_address_and_the_address_at_the_process() {
        let files = Files::system();
        for any in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let bound = listener.local_addr().unwrap();
            let loopback = SocketAddr::from(([127, 0, 0, 1], bound.port()));
            assert_eq!(process_at(&files, loopback), Ok(Some(process::id())));
            assert!(of_process(&files, process::id()).unwrap().contains(&bound));
            let user = rustix::process::geteuid().as_raw();
            assert_eq!(owners_at(&files, loopback), Ok(BTreeSet::from([user])));
        }
    }

    #[test]
    fn the_process_in_the_way_is_another_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(process_in_the_way(&Files::system(), address), Ok(None), "it is the caller's");
        let listeners = listeners_at(&Files::system(), address).unwrap();
        assert_eq!(process_of(&Files::system(), &listeners, None), Ok(Some(process::id())));
        assert_eq!(is_itself_in_the_way(&Files::system(), address), Ok(true));
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert_eq!(is_itself_in_the_way(&Files::system(), any), Ok(true));
        let other = SocketAddr::from(([127, 0, 0, 2], address.port()));
        assert_eq!(is_itself_in_the_way(&Files::system(), other), Ok(false));
    }

    #[test]
    fn no_process_is_found_where_none_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // The port is taken, on another address.
        let other = SocketAddr::from(([127, 0, 0, 2], port));
        assert_eq!(process_at(&Files::system(), other), Ok(None));
        assert_eq!(owners_at(&Files::system(), other), Ok(BTreeSet::new()));
    }

    #[test]
    fn the_closest_listener_gets_a_connection() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let rank = |listener, to| rank(address(listener), address(to));
        assert_eq!(rank("127.0.0.1:1", "127.0.0.1:1"), Some(0));
        assert_eq!(rank("0.0.0.0:1", "127.0.0.1:1"), Some(1));
        assert_eq!(rank("[::]:1", "127.0.0.1:1"), Some(2));
        assert_eq!(rank("[::]:1", "[::1]:1"), Some(1));
        assert_eq!(rank("0.0.0.0:1", "[::1]:1"), None);
        assert_eq!(rank("127.0.0.1:1", "127.0.0.1:2"), None);
    }

    #[test]
    fn addresses_are_read_as_the_kernel_prints_them() {
        let loopback = if cfg!(target_endian = "little") { "0100007F" } else { "7F000001" };
        let parsed = parse_address(&format!("{loopback}:1CE9"));
        assert_eq!(parsed, Some(SocketAddr::from(([127, 0, 0, 1], 7401))));
        let zeros = format!("{:032}:1CE8", 0);
        assert_eq!(parse_address(&zeros), Some("[::]:7400".parse().unwrap()));
        assert_eq!(parse_address("7F:1"), None);
        assert_eq!(parse_address("0100007F"), None);
    }
}
