//! The PROXY protocol, versions 1 and 2: how a balancer says for which client it has connected.
//!
//! Source: the specification of HAProxy, `doc/proxy-protocol.txt`. The crate `ppp` parses. This module bounds what it is
//! given, and decides what the result means. [`ProxyRules`] are those of one listener. They also log a warning when a
//! connection breaks them: usually the balancer or the gateway is misconfigured then, and no client gets in.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ppp::PartialResult as _;
use ppp::v1::{Addresses as TextAddresses, Header};
use ppp::v2::{Addresses, Command, Header as BinaryHeader};
use tidegate_backend::log_limit::LogLimit;

/// The most bytes that a header may have. Version 1 needs 107 at most. Version 2 allows 65,551: the rest of 2 KiB is room for
/// the extra fields (TLVs) that balancers send, such as a TLS certificate's name.
pub const HEADER_BYTES_MAX: usize = 2048;

/// What the bytes at the beginning of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header. More bytes are needed.
    Incomplete,
    /// A header of this many bytes.
    Header {
        /// Its length.
        bytes: usize,
        /// The client's address; `None`: the balancer speaks for itself (`LOCAL`, a health check), or does not know
        /// the client's (`UNKNOWN`, a Unix socket).
        client: Option<SocketAddr>,
    },
    /// No header.
    Invalid,
}

/// How a header of version 1 begins.
const TEXT_PREFIX: &[u8] = b"PROXY ";

/// The most bytes of a header of version 1, its line's end included.
const TEXT_BYTES_MAX: usize = 107;

/// How a header of version 2 begins.
const BINARY_PREFIX: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Parses the bytes at the beginning of a connection.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let begins_with = |prefix: &[u8]| {
        let count = bytes.len().min(prefix.len());
        bytes[..count] == prefix[..count]
    };
    if begins_with(TEXT_PREFIX) {
        parse_text(bytes)
    } else if begins_with(BINARY_PREFIX) {
        parse_binary(bytes)
    } else {
        Parsed::Invalid
    }
}

/// Version 1: a line. The crate takes some lines that are cut for wrong ones and the reverse, so it gets whole lines alone.
fn parse_text(bytes: &[u8]) -> Parsed {
    let line = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        let is_full = line.len() == TEXT_BYTES_MAX;
        return if is_full { Parsed::Invalid } else { Parsed::Incomplete };
    };
    let bytes = end + 2;
    let Ok(header) = Header::try_from(&line[..bytes]) else { return Parsed::Invalid };
    let client = match header.addresses {
        TextAddresses::Tcp4(of) => Some((IpAddr::V4(of.source_address), of.source_port)),
        TextAddresses::Tcp6(of) => Some((IpAddr::V6(of.source_address), of.source_port)),
        TextAddresses::Unknown => None,
    };
    Parsed::Header { bytes, client: client.map(SocketAddr::from) }
}

/// Version 2.
fn parse_binary(bytes: &[u8]) -> Parsed {
    match BinaryHeader::try_from(bytes) {
        Ok(header) => {
            let client = match (header.command, header.addresses) {
                (Command::Proxy, Addresses::IPv4(of)) => {
                    Some((IpAddr::V4(of.source_address), of.source_port))
                }
                (Command::Proxy, Addresses::IPv6(of)) => {
                    Some((IpAddr::V6(of.source_address), of.source_port))
                }
                _ => None,
            };
            let bytes = header.as_bytes().len();
            if bytes > HEADER_BYTES_MAX {
                return Parsed::Invalid;
            }
            Parsed::Header { bytes, client: client.map(SocketAddr::from) }
        }
        Err(error) if error.is_incomplete() && !is_too_long(bytes) => Parsed::Incomplete,
        Err(_) => Parsed::Invalid,
    }
}

/// Whether a header of version 2 says that it is longer than one may be.
fn is_too_long(bytes: &[u8]) -> bool {
    let Some(&[high, low]) = bytes.get(14..16) else { return false };
    16 + usize::from(u16::from_be_bytes([high, low])) > HEADER_BYTES_MAX
}

/// The rules of one listener: which peers may send PROXY headers. All shards share them, and so the limit on log lines.
#[derive(Debug)]
pub struct ProxyRules {
    /// The listener's name in the configuration.
    listener: String,
    trusted: Vec<IpNet>,
    /// One for each [`Mistake`].
    warnings: [LogLimit; Mistake::COUNT],
}

/// Why a connection to a listener with `proxy_from` is closed before it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The peer's address is not in `proxy_from`.
    Untrusted,
    /// The connection begins with something else than a PROXY header.
    Missing,
    /// It begins like a PROXY header, and is none.
    Malformed,
    /// The header was not complete in time.
    Late,
}

impl Mistake {
    const COUNT: usize = 4;

    /// What is wrong with these bytes, which [`parse`] found to be [`Parsed::Invalid`].
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let begins = bytes.starts_with(TEXT_PREFIX) || bytes.starts_with(BINARY_PREFIX);
        if begins { Self::Malformed } else { Self::Missing }
    }

    /// What is wrong.
    const fn reason(self) -> &'static str {
        match self {
            Self::Untrusted => "its address is not in proxy_from",
            Self::Missing => "it does not begin with a PROXY header",
            Self::Malformed => "its PROXY header is malformed",
            Self::Late => "its PROXY header was not complete within limits.open_timeout_ms",
        }
    }

    /// What the operator can do.
    fn advice(self, listener: &str) -> String {
        let key = format!("listeners.{listener}.proxy_from");
        match self {
            Self::Untrusted => format!(
                "if this is a balancer, add its address to {key}; if clients connect here directly, they need a \
                 listener without proxy_from"
            ),
            Self::Missing | Self::Late => {
                format!("let the balancer send PROXY headers, or remove {key} if no balancer does")
            }
            Self::Malformed => format!(
                "the balancer has to send version 1 or 2 of the PROXY protocol, with at most {HEADER_BYTES_MAX} bytes"
            ),
        }
    }
}

impl ProxyRules {
    /// The rules of the listener with this name.
    pub fn new(listener: impl Into<String>, trusted: impl Into<Vec<IpNet>>) -> Self {
        let warnings = [const { LogLimit::new() }; Mistake::COUNT];
        Self { listener: listener.into(), trusted: trusted.into(), warnings }
    }

    /// Whether a peer may send PROXY headers. An IPv4 address that came over an IPv6 socket counts as IPv4.
    #[must_use]
    pub fn trusts(&self, peer: SocketAddr) -> bool {
        let address = peer.ip().to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// Logs that a connection is closed for a mistake: one line in ten seconds for each kind of mistake.
    pub fn warn(&self, peer: SocketAddr, mistake: Mistake) {
        let Some(suppressed) = self.warnings[mistake as usize].allow() else { return };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let (listener, reason) = (&self.listener, mistake.reason());
        let advice = mistake.advice(listener);
        tracing::warn!(listener, %peer, suppressed, "a connection was closed: {reason}; {advice}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [BINARY_PREFIX, &[0x20 | command, family], &length, body].concat()
    }

    fn client(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    /// Each header, with what it says, and with bytes behind it.
    fn headers() -> Vec<(Vec<u8>, Option<SocketAddr>)> {
        let v4 = [
            &[192, 0, 2, 1, 198, 51, 100, 1][..],
            &5000_u16.to_be_bytes(),
            &7400_u16.to_be_bytes(),
        ];
        let with_tlv = [&v4.concat()[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        let mut v6 = [0_u8; 36];
        v6[15] = 1;
        v6[31] = 2;
        v6[32..34].copy_from_slice(&5000_u16.to_be_bytes());
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 7400\r\n".to_vec(), client("192.0.2.1:5000")),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 7400\r\n".to_vec(),
                client("[2001:db8::1]:5000"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (v2(1, 0x11, &v4.concat()), client("192.0.2.1:5000")),
            (v2(1, 0x11, &with_tlv), client("192.0.2.1:5000")),
            (v2(1, 0x21, &v6), client("[::1]:5000")),
            (v2(0, 0x00, &[]), None),
            (v2(0, 0x11, &v4.concat()), None),
        ]
    }

    #[test]
    fn a_header_is_found_whatever_follows_it_and_however_it_is_cut() {
        for (header, client) in headers() {
            let found = Parsed::Header { bytes: header.len(), client };
            for behind in [&b""[..], b"\x04\x08\x01", b"\r\n", b"PROXY"] {
                assert_eq!(parse(&[&header, behind].concat()), found, "{header:?}");
            }
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Parsed::Incomplete, "{:?}", &header[..cut]);
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        for bytes in [
            &b"\x1a\x08\x01"[..],
            b"GET / HTTP/1.1\r\n",
            b"PROXY TCP4 nonsense\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 99999 7400\r\n",
            b"\x16\x03\x01",
        ] {
            assert_eq!(parse(bytes), Parsed::Invalid, "{bytes:?}");
        }
        assert_eq!(parse(b""), Parsed::Incomplete);
        let endless = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        assert_eq!(parse(&endless), Parsed::Invalid);
    }

    #[test]
    fn a_header_has_a_bound() {
        let long = v2(1, 0x11, &[0; 4000]);
        assert_eq!(parse(&long), Parsed::Invalid);
        assert_eq!(parse(&long[..16]), Parsed::Invalid, "its length is enough to know");
        let longest = v2(1, 0x11, &[0; HEADER_BYTES_MAX - 16]);
        assert!(matches!(parse(&longest), Parsed::Header { bytes: HEADER_BYTES_MAX, .. }));
    }

    #[test]
    fn trust_is_by_network() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let rules = ProxyRules::new("apps", trusted);
        for (address, is_in) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("2001:db8::5", true),
            ("2001:db9::5", false),
        ] {
            let peer = SocketAddr::new(address.parse().unwrap(), 5000);
            assert_eq!(rules.trusts(peer), is_in, "{address}");
        }
    }

    #[test]
    fn each_mistake_has_a_limit_of_its_own() {
        let rules = ProxyRules::new("apps", []);
        let all = [Mistake::Untrusted, Mistake::Missing, Mistake::Malformed, Mistake::Late];
        for mistake in all {
            let limit = &rules.warnings[mistake as usize];
            assert_eq!(limit.allow(), Some(0), "{mistake:?}");
            assert_eq!(limit.allow(), None, "{mistake:?}");
        }
        assert_eq!(Mistake::of(b"PROXY TCP4 nonsense\r\n"), Mistake::Malformed);
        assert_eq!(Mistake::of(&v2(1, 0x11, &[0; 4000])), Mistake::Malformed);
        assert_eq!(Mistake::of(b"\x16\x03\x01"), Mistake::Missing);
    }
}
