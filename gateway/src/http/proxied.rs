//! The beginning of a connection that comes through a balancer: its PROXY header.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::wire::proxy::{self, HEADER_BYTES_MAX, Mistake, Parsed, ProxyRules};

/// A socket of which some bytes were read before.
pub(super) struct Proxied {
    tcp: TcpStream,
    /// What was read behind the header, and how much of it was given.
    read_before: Vec<u8>,
    given: usize,
}

/// Reads the PROXY header, if there are rules for one. Returns the stream behind it, and the client's address.
///
/// # Errors
/// When there is no header, or the peer may not send one. The log says so.
pub(super) async fn open(
    tcp: TcpStream,
    peer: SocketAddr,
    rules: Option<&ProxyRules>,
) -> io::Result<(Proxied, SocketAddr)> {
    let mut read_before = Vec::new();
    let Some(rules) = rules else {
        return Ok((Proxied { tcp, read_before, given: 0 }, peer));
    };
    let refuse = |mistake| {
        rules.warn(peer, mistake);
        Err(io::ErrorKind::InvalidData.into())
    };
    if !rules.trusts(peer) {
        return refuse(Mistake::Untrusted);
    }
    let mut piece = [0; HEADER_BYTES_MAX];
    loop {
        tcp.readable().await?;
        match tcp.try_read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => read_before.extend_from_slice(&piece[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        match proxy::parse(&read_before) {
            Parsed::Incomplete if read_before.len() < HEADER_BYTES_MAX => {}
            Parsed::Incomplete => return refuse(Mistake::Malformed),
            Parsed::Invalid => return refuse(Mistake::of(&read_before)),
            Parsed::Header { bytes, client } => {
                let proxied = Proxied { tcp, read_before, given: bytes };
                return Ok((proxied, client.unwrap_or(peer)));
            }
        }
    }
}

impl AsyncRead for Proxied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = this.read_before.get(this.given..).unwrap_or_default();
        if left.is_empty() {
            this.read_before = Vec::new();
            return Pin::new(&mut this.tcp).poll_read(context, buffer);
        }
        let bytes = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..bytes]);
        this.given += bytes;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Proxied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
