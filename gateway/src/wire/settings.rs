//! What the wires of a gateway are configured to.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::proxy::ProxyRules;
use super::websocket::upgrade::UpgradeRules;

/// The wire of a listening socket. Without any of these it is plain.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Each connection begins with a PROXY header, and follows these rules or is closed.
    pub proxy: Option<Arc<ProxyRules>>,
    /// Each connection is TLS. New connections use what is in there when they begin.
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// Each connection is a WebSocket.
    pub websocket: Option<Arc<UpgradeRules>>,
}

impl Wire {
    /// Whether nothing stands between the driver and a connection.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.proxy.is_none() && self.tls.is_none() && self.websocket.is_none()
    }
}

/// The wires of a shard.
#[derive(Clone, Debug)]
pub struct Settings {
    /// By the number of the listening socket. Further ones are plain.
    pub wires: Vec<Wire>,
    /// The most bytes of a WebSocket message.
    pub message_bytes_max: u32,
    /// How long a wire may take to open: from accept to the end of the PROXY header, the TLS handshake and the upgrade.
    pub open_timeout: Duration,
    /// How many TLS handshakes begin in a second, at most: at least 1. Others wait, until [`Self::open_timeout`].
    pub handshakes_per_second: u32,
    /// For tests of WebSockets alone. Text is taken, too. Each part of a message is reported behind a [mark](super::marks), and
    /// each send begins with one.
    pub marks_messages: bool,
}

impl Default for Settings {
    /// Plain alone.
    fn default() -> Self {
        Self {
            wires: Vec::new(),
            message_bytes_max: 64 * 1024,
            open_timeout: Duration::from_secs(10),
            handshakes_per_second: 2000,
            marks_messages: false,
        }
    }
}
