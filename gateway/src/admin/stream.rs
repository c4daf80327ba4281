//! A connection's socket: a write has a deadline, and a close waits for the peer to close, so that the answer arrives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::connection_table::ConnectionHandle;

/// How long the peer may take to read an answer once the kernel's buffer is full. It counts from the first wait until
/// the whole answer is written, so it also bounds a peer that reads a byte now and then.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long received bytes are discarded after the last answer. A close with unread bytes would reset the connection,
/// and the peer would lose the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Most bytes that are discarded after the last answer, so that a peer that continues to send costs a bounded amount of
/// work: a fraction of a millisecond.
const LINGER_BYTES_MAX: usize = 512 * 1024;

/// A socket with these deadlines. Tells the connection table when the last answer is out.
pub(super) struct Stream {
    tcp: TcpStream,
    connection: ConnectionHandle,
    /// Deadline of the answer that waits.
    write_by: Option<Pin<Box<Sleep>>>,
    /// Deadline of the peer's close.
    end_by: Option<Pin<Box<Sleep>>>,
    /// Bytes that were discarded after the last answer.
    thrown_away: usize,
}

impl Stream {
    pub(super) fn new(tcp: TcpStream, connection: ConnectionHandle) -> Self {
        Self { tcp, connection, write_by: None, end_by: None, thrown_away: 0 }
    }

    /// Returns the result of a write, or an error if it has been pending for too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let write_by = self.write_by.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(write_by.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(context, bytes);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    /// Called when everything is written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_by = None;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end_by.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(context))?;
            this.connection.mark_closing();
        }
        let end_by = this.end_by.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut bytes = [0; 16 * 1024];
        while this.thrown_away < LINGER_BYTES_MAX && end_by.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut this.tcp).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            this.thrown_away += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}
