//! Where a gateway is, as written on the command line: an address, and what is spoken there.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use crate::argument;

/// What is spoken on a connection below the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireKind {
    /// Nothing: plain TCP.
    Plain,
    /// TLS.
    Tls,
    /// A WebSocket.
    WebSocket,
    /// A WebSocket in TLS.
    SecureWebSocket,
}

impl WireKind {
    /// Whether there is TLS.
    pub(crate) const fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::SecureWebSocket)
    }

    /// Whether there is a WebSocket.
    pub(crate) const fn has_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::SecureWebSocket)
    }

    /// Its name in a gateway's configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "tcp",
            Self::Tls => "tls",
            Self::WebSocket => "ws",
            Self::SecureWebSocket => "wss",
        }
    }

    /// What stands in front of an address.
    pub(crate) const fn scheme(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Tls => "tls://",
            Self::WebSocket => "ws://",
            Self::SecureWebSocket => "wss://",
        }
    }
}

/// Where a gateway is: `HOST:PORT`, `tls://HOST:PORT`, `ws://HOST:PORT/PATH` or `wss://HOST:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    kind: WireKind,
    /// `HOST:PORT`.
    authority: String,
    /// With its slash, and with its query. Empty without a WebSocket.
    path: String,
}

impl Place {
    /// What is spoken there.
    pub(crate) const fn kind(&self) -> WireKind {
        self.kind
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// The host, without the brackets of an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The path and the query of a WebSocket.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The same address, where another wire is spoken.
    pub(crate) fn with_kind(&self, kind: WireKind) -> Self {
        let path = if !kind.has_websocket() {
            String::new()
        } else if self.path.is_empty() {
            "/".to_owned()
        } else {
            self.path.clone()
        };
        Self { kind, authority: self.authority.clone(), path }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query may hold a token.
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}{}{path}", self.kind.scheme(), self.authority)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "it takes HOST:PORT, tls://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH: \
             127.0.0.1:7400, wss://gateway.example:7443/"
                .to_owned()
        };
        let schemes = [WireKind::Tls, WireKind::WebSocket, WireKind::SecureWebSocket];
        let scheme = schemes
            .into_iter()
            .find_map(|kind| text.strip_prefix(kind.scheme()).map(|rest| (kind, rest)));
        let (kind, rest) = scheme.unwrap_or((WireKind::Plain, text));
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let path = match (kind.has_websocket(), path) {
            (true, "") => "/".to_owned(),
            (true, path) if path.starts_with('?') => format!("/{path}"),
            (true, path) => path.to_owned(),
            (false, "") => String::new(),
            (false, "/") if kind == WireKind::Tls => String::new(),
            (false, _) => return Err(wrong()),
        };
        let is_printable = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let authority = argument::place(authority).map_err(|_| wrong())?;
        if is_printable { Ok(Self { kind, authority, path }) } else { Err(wrong()) }
    }
}

/// A place whose address is known.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The place.
    pub(crate) place: Place,
    /// The first of its host's addresses.
    pub(crate) address: SocketAddr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.parse::<Place>()?;
        let mut addresses = place
            .authority
            .to_socket_addrs()
            .map_err(|error| format!("the host {} has no address: {error}", place.host()))?;
        let address = addresses.next();
        let address = address.ok_or_else(|| format!("the host {} has no address", place.host()))?;
        Ok(Self { place, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_names_what_is_spoken_there() {
        let places = [
            ("127.0.0.1:7400", WireKind::Plain, "127.0.0.1", ""),
            ("tls://[::1]:7443", WireKind::Tls, "::1", ""),
            ("ws://gateway.example:7480", WireKind::WebSocket, "gateway.example", "/"),
            (
                "wss://localhost:1/chat?token=x",
                WireKind::SecureWebSocket,
                "localhost",
                "/chat?token=x",
            ),
        ];
        for (text, kind, host, path) in places {
            let place: Place = text.parse().unwrap();
            assert_eq!((place.kind(), place.host(), place.path()), (kind, host, path), "{text}");
        }
        let shown = |text: &str| text.parse::<Place>().unwrap().to_string();
        assert_eq!(shown("wss://localhost:1/chat?token=secret"), "wss://localhost:1/chat");
        assert_eq!(shown("tls://localhost:1/"), "tls://localhost:1");
        for wrong in [
            "",
            "tls://",
            "ws://x",
            "http://x:1",
            "x:1/path",
            "tls://x:1/path",
            "ws://x:0/",
            "ws://x:1/a b",
        ] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_target_has_an_address() {
        let target: Target = "tls://127.0.0.1:7443".parse().unwrap();
        assert_eq!(target.address, "127.0.0.1:7443".parse().unwrap());
        assert!("tls://no-such-host.invalid:1".parse::<Target>().is_err());
    }
}
