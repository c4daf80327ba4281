//! A connection's socket: a write has a deadline, and a close waits for the peer to close, so that the answer arrives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What the owner of a connection wants to know of its stream.
pub(crate) trait Observer: Unpin {
    /// These bytes have arrived.
    fn on_received(&mut self, _bytes: &[u8]) {}

    /// All bytes that were written are with the kernel.
    fn on_flushed(&mut self) {}

    /// The last answer is with the kernel. What follows is the peer's end.
    fn on_closing(&mut self) {}
}

/// How long the peer may take to read an answer once the kernel's buffer is full. It counts from the first wait until
/// the whole answer is written, so it also bounds a peer that reads a byte now and then. The end of the stream has as long:
/// TLS writes an alert for it.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long received bytes are discarded after the last answer. A close with unread bytes would reset the connection,
/// and the peer would lose the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Most bytes that are discarded after the last answer, so that a peer that continues to send costs a bounded amount of
/// work: a fraction of a millisecond.
const LINGER_BYTES_MAX: usize = 512 * 1024;

/// A socket, or what carries its bytes, with these deadlines.
pub(crate) struct Stream<S, O> {
    inner: S,
    observer: O,
    /// [`WRITE_TIMEOUT`]; tests use another.
    write_timeout: Duration,
    /// Deadline of the answer that waits.
    write_by: Option<Pin<Box<Sleep>>>,
    /// Deadline of the peer's close.
    end_by: Option<Pin<Box<Sleep>>>,
    /// Bytes that were discarded after the last answer.
    discarded: usize,
}

impl<S, O> Stream<S, O> {
    pub(crate) fn new(inner: S, observer: O) -> Self {
        let write_timeout = WRITE_TIMEOUT;
        Self { inner, observer, write_timeout, write_by: None, end_by: None, discarded: 0 }
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
        let within = self.write_timeout;
        let write_by = self.write_by.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(write_by.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin, O: Observer> AsyncRead for Stream<S, O> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(context, buffer);
        if let Some(received) = buffer.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            this.observer.on_received(received);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, O: Observer> AsyncWrite for Stream<S, O> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Called when everything is written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        if flushed.is_ready() {
            self.write_by = None;
            self.observer.on_flushed();
        }
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.end_by.is_none() {
            let shut_down = Pin::new(&mut this.inner).poll_shutdown(context);
            ready!(this.watch(context, shut_down))?;
            this.observer.on_closing();
        }
        let end_by = this.end_by.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut bytes = [0; 16 * 1024];
        while this.discarded < LINGER_BYTES_MAX && end_by.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut this.inner).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            this.discarded += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// A peer that reads nothing: nothing can be written, and so no end either.
    struct Stalled;

    impl AsyncRead for Stalled {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Stalled {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    struct Nobody;

    impl Observer for Nobody {}

    #[test]
    fn writing_flushing_and_the_end_have_a_deadline() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap().block_on(async {
            for step in ["write", "flush", "shutdown"] {
                let mut stream = Stream::new(Stalled, Nobody);
                stream.write_timeout = Duration::from_millis(10);
                let ended = poll_fn(|context| match step {
                    "write" => Pin::new(&mut stream).poll_write(context, b"x").map_ok(drop),
                    "flush" => Pin::new(&mut stream).poll_flush(context),
                    _ => Pin::new(&mut stream).poll_shutdown(context),
                });
                assert_eq!(ended.await.unwrap_err().kind(), io::ErrorKind::TimedOut, "{step}");
            }
        });
    }
}
