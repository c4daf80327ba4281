//! Which addresses count as one.
//!
//! IPv4: the address, and its /24, which is the smallest network that is routed on its own. IPv6: the /64, since a host may use any of its
//! addresses (RFC 4291, section 2.5.4), and its /48, which a site gets (RFC 6177).

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// How many addresses count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Width {
    /// A host: an IPv4 address, or an IPv6 /64.
    Host,
    /// A network: an IPv4 /24, or an IPv6 /48.
    Network,
}

/// The prefix that an address counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The prefix of an address. An IPv4 address that is written as an IPv6 one (`::ffff:192.0.2.1`) counts as itself.
    #[must_use]
    pub fn new(address: IpAddr, width: Width) -> Self {
        let (address, bits) = match (address.to_canonical(), width) {
            (IpAddr::V4(address), Width::Host) => (address.into(), 32),
            (IpAddr::V4(address), Width::Network) => {
                (Ipv4Addr::from_bits(address.to_bits() & !0xff).into(), 24)
            }
            (IpAddr::V6(address), width) => {
                let bits = if width == Width::Host { 64 } else { 48 };
                let mask = u128::MAX << (128 - bits);
                (Ipv6Addr::from_bits(address.to_bits() & mask).into(), bits)
            }
        };
        Self { address, bits }
    }

    /// Its first address.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }
}

impl FromStr for Prefix {
    type Err = ();

    /// An address, or a network of one of the widths.
    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::new(address, Width::Host));
        }
        let net: IpNet = text.parse().map_err(|_| ())?;
        let found = [Width::Host, Width::Network].map(|width| Self::new(net.addr(), width));
        found.into_iter().find(|prefix| prefix.bits == net.prefix_len()).ok_or(())
    }
}

impl fmt::Display for Prefix {
    /// The address alone where it is an IPv4 host.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.bits) {
            (IpAddr::V4(address), 32) => address.fmt(f),
            (address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

/// What a prefix is counted under: a hash with a secret key, so that nobody can choose addresses that share their cells with
/// somebody else's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key(pub(super) u64);

/// Makes keys. Its own key is random.
#[derive(Clone, Debug, Default)]
pub struct Keys(RandomState);

impl Keys {
    /// The key of a prefix.
    #[must_use]
    pub fn of(&self, prefix: Prefix) -> Key {
        Key(self.0.hash_one(prefix))
    }

    /// The key of a user of a route, which is known by its first type.
    #[must_use]
    pub fn of_user(&self, first_type: i32, user_id: u64) -> Key {
        Key(self.0.hash_one((first_type, user_id)))
    }
}

impl Key {
    /// The cell of a row. The rows' cells are as good as independent: Kirsch and Mitzenmacher, "Less Hashing, Same
    /// Performance" (2006).
    #[expect(clippy::cast_possible_truncation, reason = "the mask keeps less than 32 bits")]
    pub(super) const fn cell(self, row: u32, mask: u32) -> usize {
        let (first, step) = (self.0 as u32, (self.0 >> 32) as u32 | 1);
        (first.wrapping_add(step.wrapping_mul(row)) & mask) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str, width: Width) -> String {
        Prefix::new(address.parse().unwrap(), width).to_string()
    }

    #[test]
    fn addresses_count_as_what_one_host_or_one_network_has() {
        for (address, host, network) in [
            ("192.0.2.77", "192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ] {
            assert_eq!(prefix(address, Width::Host), host);
            assert_eq!(prefix(address, Width::Network), network);
        }
    }

    #[test]
    fn a_prefix_is_read_as_it_is_written() {
        for text in ["192.0.2.7", "192.0.2.0/24", "2001:db8:1:2::/64", "2001:db8:1::/48"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        let read = |text: &str| text.parse::<Prefix>().map(|prefix| prefix.to_string());
        assert_eq!(read("2001:db8:1:2::7").unwrap(), "2001:db8:1:2::/64");
        assert_eq!(read("192.0.2.7/32").unwrap(), "192.0.2.7");
        for wrong in ["", "192.0.2", "192.0.0.0/16", "2001:db8::/32", "all"] {
            assert_eq!(read(wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn rows_have_different_cells() {
        let keys = Keys::default();
        let differ = (0..1000u32).filter(|number| {
            let key = keys.of(Prefix::new(Ipv4Addr::from_bits(*number).into(), Width::Host));
            let mut cells = [0, 1, 2, 3].map(|row| key.cell(row, 0xffff));
            cells.sort_unstable();
            cells.windows(2).all(|pair| pair[0] != pair[1])
        });
        assert!(differ.count() > 990);
    }
}
