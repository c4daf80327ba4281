//! What goes wrong on a wire, and what to do about it.

use std::net::SocketAddr;

use rustls::{AlertDescription, CertificateError};

use super::{Place, WireKind};

/// Why a wire does not open, or is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// TLS failed.
    #[error("{0}")]
    Tls(rustls::Error),
    /// What listens speaks something else.
    #[error("it speaks {}", .0.name())]
    Foreign(Spoken),
    /// The upgrade was refused.
    #[error("it refused the WebSocket with {status}{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused {
        /// The HTTP status, with its words.
        status: String,
        /// The answer's text.
        text: String,
    },
    /// The gateway broke the WebSocket's protocol.
    #[error("{0}")]
    WebSocket(&'static str),
    /// The gateway closed the connection before the wire was open.
    #[error("it closed the connection {0}")]
    Closed(&'static str),
    /// `--insecure` for another machine.
    #[error(
        "--insecure is for loopback addresses alone, and {0} is none: name the gateway's certificate authority with --ca FILE"
    )]
    NotLoopback(SocketAddr),
    /// A certificate can't be for this host.
    #[error("\"{0}\" is neither a host's name nor an IP address, so no certificate can be for it")]
    NotAName(String),
}

/// What the first bytes of a connection show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// TLS.
    Tls,
    /// HTTP.
    Http,
    /// Anything else: perhaps this protocol without a wire.
    Other,
}

impl Spoken {
    const fn name(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::Http => "HTTP without TLS",
            Self::Other => "no TLS",
        }
    }

    /// What is spoken instead of the protocol; `None`: it may be the protocol. No frame begins like this: its first field
    /// would have a type that protobuf does not have.
    pub(crate) fn instead_of_the_protocol(bytes: &[u8]) -> Option<Self> {
        // An alert, which answers what is no TLS.
        let is_alert = matches!(bytes, [0x15, 0x03, 0x00..=0x04, 0, 2, ..])
            || bytes.starts_with(&[0x16, 0x03]);
        if is_alert {
            return Some(Self::Tls);
        }
        bytes.starts_with(b"HTTP/1.").then_some(Self::Http)
    }

    /// What is spoken instead of TLS; `None`: it may be TLS.
    pub(super) fn instead_of_tls(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] | [0x14..=0x17] | [0x14..=0x17, 0x03, ..] => None,
            _ if bytes.starts_with(b"HTTP/1.") => Some(Self::Http),
            _ => Some(Self::Other),
        }
    }
}

/// The message where a plain place speaks something else: what it is, and what to write.
pub(crate) fn mismatch(place: &Place, spoken: Spoken) -> String {
    WireError::Foreign(spoken).explain(place)
}

impl WireError {
    /// The error at a place, with what to do.
    pub(crate) fn explain(&self, place: &Place) -> String {
        let advice = self.advice(place);
        let separator = if advice.is_empty() { "" } else { "; " };
        format!("{place}: {self}{separator}{advice}")
    }

    fn advice(&self, place: &Place) -> String {
        let instead = |kind| format!("try --connect {}", place.with_kind(kind));
        let kind = place.kind();
        match self {
            Self::Foreign(Spoken::Tls) if kind == WireKind::WebSocket => {
                instead(WireKind::SecureWebSocket)
            }
            Self::Foreign(Spoken::Tls) => {
                format!("{}, or wss://", instead(WireKind::Tls))
            }
            Self::Foreign(Spoken::Http) => instead(WireKind::WebSocket),
            Self::Foreign(Spoken::Other) => {
                format!("is it a plain listener? Then {}", instead(WireKind::Plain))
            }
            Self::Tls(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                let other = match kind {
                    WireKind::SecureWebSocket => WireKind::Tls,
                    _ => WireKind::SecureWebSocket,
                };
                format!("it has TLS for something else: {}", instead(other))
            }
            Self::Tls(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
                "it wants a certificate of the client, and tide has none".to_owned()
            }
            Self::Tls(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
                "it takes no TLS version of tide's, which are 1.2 and 1.3".to_owned()
            }
            Self::Tls(rustls::Error::InvalidCertificate(error)) => certificate_advice(error),
            Self::Refused { status, .. } if status.starts_with("404") => {
                "its listeners.NAME.path is another one, or its wire is \"http\" or \"https\", which has no sessions"
                    .to_owned()
            }
            Self::Closed(_) => {
                "the listener may want a PROXY header (listeners.NAME.proxy_from), which tide does not send; the \
                 gateway's log says so"
                    .to_owned()
            }
            _ => String::new(),
        }
    }
}

fn certificate_advice(error: &CertificateError) -> String {
    let advice = match error {
        // The signature is bad where another authority has the same name, as those for development do.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not trusted: name the certificate authority that signed it with --ca FILE; a certificate \
             of `tide cert --dev` is its own authority"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "connect with a name that its certificate has"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has to be renewed, or this machine's clock is wrong"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "this machine's clock is wrong, or the gateway's was"
        }
        // rustls has no variant of its own for it.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is that of an authority (CA:TRUE), as `openssl req -x509` makes them: give the gateway one \
             made with `-addext basicConstraints=critical,CA:FALSE`, or by `tide cert --dev`"
        }
        _ => "",
    };
    advice.to_owned()
}
