//! The wires of a gateway's listeners, and certificates. The clients here are rustls' and tungstenite's own, so that two
//! implementations meet.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

/// The certificate's file in a gateway's folder.
pub const CHAIN_FILE: &str = "cert.pem";
/// Its key's file.
pub const KEY_FILE: &str = "key.pem";

/// What stands between a socket and the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Tcp,
    /// TLS.
    Tls,
    /// A WebSocket.
    Ws,
    /// A WebSocket in TLS.
    Wss,
}

impl Wire {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Ws, Self::Wss];

    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Whether there is TLS.
    #[must_use]
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

/// Writes a new self-signed certificate for localhost and its key into a gateway's folder.
pub fn write_certificate(folder: &Path) {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names).unwrap();
    // A client that trusts many finds the right one by its name.
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let name = format!("certificate {number} of process {}", std::process::id());
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key).unwrap();
    // A gateway that reads in between finds a pair that does not fit together: it keeps the one from before.
    fs::write(folder.join(KEY_FILE), key.serialize_pem()).unwrap();
    fs::write(folder.join(CHAIN_FILE), certificate.pem()).unwrap();
}

/// A client's TLS that trusts these certificates alone. Each handshake is a full one.
#[must_use]
pub fn client_config(chains: &[&str], alpn: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for chain in chains {
        roots.add(CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.into()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A socket with its wire.
#[derive(Debug)]
pub struct Transport {
    /// Another handle of the socket where there is a wire.
    pub socket: TcpStream,
    layer: Layer,
    /// Received, and not read yet.
    unread: Vec<u8>,
    /// The gateway's close frame.
    pub close: Option<CloseFrame>,
}

#[derive(Debug)]
enum Layer {
    Plain,
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    WebSocket(Box<WebSocket<TcpStream>>),
    Secure(Box<WebSocket<StreamOwned<ClientConnection, TcpStream>>>),
}

impl Transport {
    /// A plain connection.
    #[must_use]
    pub const fn plain(socket: TcpStream) -> Self {
        Self { socket, layer: Layer::Plain, unread: Vec::new(), close: None }
    }

    /// Opens a wire on a connection.
    ///
    /// # Errors
    /// The handshake or the upgrade failed.
    pub fn open(
        socket: TcpStream,
        wire: Wire,
        config: impl FnOnce(&str) -> Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let address = socket.peer_addr()?;
        let handle = socket.try_clone()?;
        let tls = |socket: TcpStream, alpn: &str| {
            let name = ServerName::try_from("localhost").unwrap();
            let connection = ClientConnection::new(config(alpn), name).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, socket);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            Ok::<_, io::Error>(stream)
        };
        let layer = match wire {
            Wire::Tcp => Layer::Plain,
            Wire::Tls => Layer::Tls(Box::new(tls(socket, "tidegate/1")?)),
            Wire::Ws => Layer::WebSocket(Box::new(upgrade(socket, address)?)),
            Wire::Wss => Layer::Secure(Box::new(upgrade(tls(socket, "http/1.1")?, address)?)),
        };
        Ok(Self { socket: handle, layer, unread: Vec::new(), close: None })
    }

    /// Sends all bytes.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let message = || Message::Binary(bytes.to_vec().into());
        match &mut self.layer {
            Layer::Plain => self.socket.write_all(bytes),
            Layer::Tls(stream) => {
                stream.write_all(bytes)?;
                stream.flush()
            }
            Layer::WebSocket(websocket) => websocket.send(message()).map_err(into_io),
            Layer::Secure(websocket) => websocket.send(message()).map_err(into_io),
        }
    }

    /// Reads at least one byte; 0: the gateway sends no more.
    ///
    /// # Errors
    /// The connection is broken, or was cut off without the wire's own end.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            let message = match &mut self.layer {
                Layer::Plain => return self.socket.read(buffer),
                Layer::Tls(stream) => return stream.read(buffer),
                Layer::WebSocket(websocket) => websocket.read(),
                Layer::Secure(websocket) => websocket.read(),
            };
            match message {
                Ok(Message::Binary(bytes)) => self.unread = bytes.into(),
                Ok(Message::Close(frame)) => {
                    self.close = frame;
                    return self.read(buffer);
                }
                Ok(_) => return self.read(buffer),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(0),
                // The answer to the gateway's close frame, where this side has shut down its own sending side.
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                Err(error) => return Err(into_io(error)),
            }
        }
        let count = self.unread.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

fn upgrade<S: io::Read + io::Write>(stream: S, address: SocketAddr) -> io::Result<WebSocket<S>> {
    let mut request = format!("ws://{address}/").into_client_request().map_err(into_io)?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", "tidegate.v1".parse().unwrap());
    let (websocket, _) = tungstenite::client(request, stream)
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(websocket)
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::ConnectionReset.into()
        }
        error => io::Error::other(error),
    }
}
