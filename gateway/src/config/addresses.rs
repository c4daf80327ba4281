//! Whether two sockets can listen on two addresses at the same time.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Whether a listener on one address excludes listeners on the other.
///
/// `[::]` accepts connections to IPv4 addresses too, unless `net.ipv6.bindv6only` is set. A configuration should work
/// with either setting.
pub(super) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // Port 0 gets an unused port.
    one.port() != 0 && one.port() == other.port() && ips_overlap(one, other)
}

fn ips_overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let wildcard = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if one.ip() == wildcard || other.ip() == wildcard {
        return true;
    }
    let (one_ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    let same_family = one_ip.is_ipv4() == other_ip.is_ipv4();
    let any = one_ip.is_unspecified() || other_ip.is_unspecified();
    same_family && (any || one_ip == other_ip && scope(one) == scope(other))
}

/// Which interface a link-local address belongs to.
fn scope(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}
