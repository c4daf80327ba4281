//! The source addresses of connections. A source address has some 28,000 ports per destination. The kernel
//! searches for a free one, and the fewer are free the slower: down to 2,000 connects a second. So many
//! connections are spread over many source addresses, which cost nothing on loopback.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use anyhow::{Context as _, anyhow};
use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect as start, socket_with};

use crate::not_running::no_gateway;

/// Connections from one source address to one destination on loopback: few enough that a free port is always
/// found fast.
pub(crate) const PER_SOURCE: usize = 2_500;
/// Source addresses on loopback, used in rotation: enough for 100 million connections.
pub(crate) const LOOPBACK_SOURCES: usize = 200 * 200;

/// A connection's source address. `None`: the kernel chooses it.
pub(super) type Source = Option<IpAddr>;

/// One address, or a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SourceRange {
    first: IpAddr,
    count: u32,
}

/// Chooses the addresses of each connection.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    to: Vec<SocketAddr>,
    from: Vec<SourceRange>,
    from_count: usize,
}

impl Addresses {
    pub(super) fn new(to: Vec<SocketAddr>, from: Vec<SourceRange>) -> Self {
        let from_count = from.iter().map(|range| range.count as usize).sum();
        Self { to, from, from_count }
    }

    /// The destination and the source of connection `number`.
    pub(super) fn of(&self, number: usize) -> (SocketAddr, Source) {
        let to = self.to[number % self.to.len()];
        // From here on the number among the connections to the same destination.
        let number = number / self.to.len();
        let from = match (self.from_count, to.ip()) {
            (0, IpAddr::V4(ip)) if ip.is_loopback() => loopback(number / PER_SOURCE),
            (0, _) => None,
            (count, _) => Some(self.configured(number % count)),
        };
        (to, from)
    }

    fn configured(&self, mut number: usize) -> IpAddr {
        for range in &self.from {
            if number < range.count as usize {
                return range.nth(u32::try_from(number).unwrap_or_default());
            }
            number -= range.count as usize;
        }
        self.from[0].first
    }
}

/// Group 0 leaves the choice to the kernel, which takes 127.0.0.1. Others have 127.1.x.y.
fn loopback(group: usize) -> Source {
    if group == 0 {
        return None;
    }
    let group = (group - 1) % LOOPBACK_SOURCES;
    let octet = |number: usize| u8::try_from(1 + number % 200).unwrap_or(1);
    Some(IpAddr::V4(Ipv4Addr::new(127, 1, octet(group / 200), octet(group))))
}

impl SourceRange {
    fn nth(&self, number: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + number).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(number)).into(),
        }
    }
}

impl FromStr for SourceRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ip = |text: &str| {
            let wrong =
                || format!("\"{text}\" is no IP address; use 10.0.0.7, or 10.0.0.7-10.0.0.99");
            text.trim().parse::<IpAddr>().map_err(|_| wrong())
        };
        let Some((first, last)) = text.split_once('-') else {
            return Ok(Self { first: ip(text)?, count: 1 });
        };
        let (first, last) = (ip(first)?, ip(last)?);
        let distance = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                last.to_bits().checked_sub(first.to_bits()).map(u128::from)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
            _ => None,
        };
        let count = distance.and_then(|distance| u32::try_from(distance).ok()?.checked_add(1));
        let count = count.ok_or_else(|| {
            format!("{first}-{last} is no range of addresses; 10.0.0.7-10.0.0.99 is one")
        })?;
        Ok(Self { first, count })
    }
}

/// Starts to connect. The kernel chooses the port when both addresses are known, so that each source port can
/// be used once per destination.
pub(super) fn connect(address: SocketAddr, source: Source) -> anyhow::Result<TcpStream> {
    let Some(ip) = source else {
        return TcpStream::connect(address).map_err(|error| failed(address, source, error));
    };
    let socket = bound_to(ip).with_context(|| format!("cannot connect from {ip}"))?;
    match start(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {
            Ok(TcpStream::from_std(std::net::TcpStream::from(socket)))
        }
        Err(error) => Err(failed(address, source, error.into())),
    }
}

fn bound_to(ip: IpAddr) -> anyhow::Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    bind(&socket, &SocketAddr::new(ip, 0))?;
    Ok(socket)
}

/// The error for a connect that failed, with a hint.
pub(super) fn failed(address: SocketAddr, source: Source, error: std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::ConnectionRefused {
        return anyhow!(error).context(no_gateway(&address.to_string(), " --auth demo"));
    }
    let from = source.map_or_else(String::new, |ip| format!(" from {ip}"));
    let hint = match error.kind() {
        ErrorKind::AddrNotAvailable => {
            ": no source port is free; use more --source addresses, fewer connections, or --reset"
        }
        _ => "",
    };
    anyhow!(error).context(format!("cannot connect to {address}{from}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(to: &[&str], from: &[&str]) -> Addresses {
        let to = to.iter().map(|text| text.parse().unwrap()).collect();
        Addresses::new(to, from.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn on_loopback_each_2500_connections_have_their_own_source() {
        let one = addresses(&["127.0.0.1:7400"], &[]);
        assert_eq!(one.of(2_499).1, None);
        let sources: std::collections::HashSet<_> =
            (0..2_000_000).step_by(2_500).map(|number| one.of(number).1).collect();
        assert_eq!(sources.len(), 800);
        assert!(sources.iter().flatten().all(IpAddr::is_loopback));
        let two = addresses(&["127.0.0.1:7400", "127.0.0.1:7401"], &[]);
        assert_eq!(two.of(4_999), ("127.0.0.1:7401".parse().unwrap(), None));
        assert_ne!(two.of(5_000).1, None);
        assert_eq!(addresses(&["[::1]:7400"], &[]).of(9_999).1, None);
    }

    #[test]
    fn configured_sources_are_used_in_rotation() {
        let some = addresses(&["192.0.2.1:7400"], &["10.0.0.254-10.0.1.1", "10.9.9.9"]);
        let used: Vec<String> =
            (0..6).map(|number| some.of(number).1.unwrap().to_string()).collect();
        let all = ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1", "10.9.9.9", "10.0.0.254"];
        assert_eq!(used, all);
    }

    #[test]
    fn a_text_that_is_no_source_is_refused() {
        for wrong in ["", "x", "10.0.0.2-10.0.0.1", "10.0.0.1-::1", "::-ffff::"] {
            assert!(wrong.parse::<SourceRange>().is_err(), "{wrong}");
        }
    }
}
