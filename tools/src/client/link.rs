//! The socket: connects, writes, and starts the thread that reads.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};

use super::event::{LinkId, LoopEvent};
use crate::not_running;

/// The most bytes of one read.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Reads that may wait for the loop. When there are as many, the thread stops reading, and TCP slows the gateway down.
const READS_WAITING_MAX: usize = 16;

/// A connection to the gateway. It closes when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    id: LinkId,
    stream: TcpStream,
    peer: SocketAddr,
    /// The reading thread adds an entry for each read; the loop removes it.
    waiting: Receiver<()>,
}

impl Link {
    /// Connects, and starts the thread that reads.
    ///
    /// # Errors
    /// The address can't be resolved, or no server accepts there in time.
    pub(super) fn open(
        id: LinkId,
        address: &str,
        timeout: Duration,
        events: &Sender<LoopEvent>,
    ) -> Result<Self> {
        let (stream, peer) =
            connect(address, timeout).map_err(|error| unreachable(address, error))?;
        stream.set_nodelay(true).context("can't set TCP_NODELAY")?;
        stream.set_write_timeout(Some(timeout)).context("can't bound the time of a write")?;
        let reading = stream.try_clone().context("can't share the socket with a thread")?;
        let (permits, waiting) = mpsc::sync_channel(READS_WAITING_MAX);
        let events = events.clone();
        thread::Builder::new()
            .name("tide-reader".into())
            .spawn(move || read(id, reading, &permits, &events))
            .context("can't start the thread that reads")?;
        Ok(Self { id, stream, peer, waiting })
    }

    /// The connection's id.
    pub(super) fn id(&self) -> LinkId {
        self.id
    }

    /// The address that it was connected to.
    pub(super) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Lets the thread read once more. Call it once for each [`LoopEvent::Received`].
    pub(super) fn release_read(&self) {
        // Never empty: the thread adds the entry before it sends the bytes.
        let _permit = self.waiting.try_recv();
    }

    /// Writes all bytes. A failed write shuts the connection down: the thread still reads what the gateway sent
    /// before, and
    /// then reports the end.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            let _already_closed = self.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _already_closed = self.stream.shutdown(Shutdown::Both);
    }
}

fn connect(address: &str, timeout: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    let mut failed = None;
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::other("the name resolves to no address")))
}

fn unreachable(address: &str, error: io::Error) -> Error {
    let said = match error.kind() {
        ErrorKind::ConnectionRefused => not_running::no_gateway(address, ""),
        ErrorKind::InvalidInput => {
            format!("--connect {address} is no place: it has to be HOST:PORT")
        }
        _ => format!("can't reach a gateway at {address}: is one running? --connect names another"),
    };
    Error::new(error).context(said)
}

/// Reads until the connection ends. The end is the last event.
fn read(id: LinkId, mut stream: TcpStream, permits: &SyncSender<()>, events: &Sender<LoopEvent>) {
    let mut buffer = vec![0; READ_BYTES_MAX];
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => {
                let bytes = buffer[..count].to_vec();
                let receiver_gone = permits.send(()).is_err()
                    || events.send(LoopEvent::Received(id, bytes)).is_err();
                if receiver_gone {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    let _receiver_gone = events.send(LoopEvent::Closed(id, end));
}
