//! The socket: connecting, writing, and the thread that reads.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};

use super::Wake;
use crate::not_running;

/// Bytes that one read takes at most.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Reads that may wait for the loop; then the thread stops reading, and TCP holds the gateway back.
const READS_WAITING_MAX: usize = 16;

/// Names a connection, so that what a former one still says is not taken for this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkId(pub(super) u64);

/// A connection to the gateway. It closes when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    id: LinkId,
    stream: TcpStream,
    /// The reading thread puts one in for each read; the loop takes one out.
    waiting: Receiver<()>,
}

impl Link {
    /// Connects, and starts the thread that reads.
    ///
    /// # Errors
    /// When the address names no place, or nobody answers there in time.
    pub(super) fn open(
        id: LinkId,
        address: &str,
        patience: Duration,
        wakes: &Sender<Wake>,
    ) -> Result<Self> {
        let stream = connect(address, patience).map_err(|error| unreachable(address, error))?;
        stream.set_nodelay(true).context("can't set TCP_NODELAY")?;
        stream.set_write_timeout(Some(patience)).context("can't bound the time of a write")?;
        let reading = stream.try_clone().context("can't share the socket with a thread")?;
        let (permits, waiting) = mpsc::sync_channel(READS_WAITING_MAX);
        let wakes = wakes.clone();
        thread::Builder::new()
            .name("tide-reader".into())
            .spawn(move || read(id, reading, &permits, &wakes))
            .context("can't start the thread that reads")?;
        Ok(Self { id, stream, waiting })
    }

    /// Which connection this is.
    pub(super) fn id(&self) -> LinkId {
        self.id
    }

    /// Lets the thread read once more. For each [`Wake::Received`] once.
    pub(super) fn took_read(&self) {
        // Never empty: the permit was put in before the bytes were sent.
        let _permit = self.waiting.try_recv();
    }

    /// Writes all of it. A write that fails ends the connection; what the gateway had said before
    /// is still read, and then the thread reports the end.
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

fn connect(address: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut failed = None;
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::other("the name stands for no address")))
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

/// Reads until the end, which is the last that it reports.
fn read(id: LinkId, mut stream: TcpStream, permits: &SyncSender<()>, wakes: &Sender<Wake>) {
    let mut buffer = vec![0; READ_BYTES_MAX];
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => {
                let bytes = buffer[..count].to_vec();
                let nobody_listens =
                    permits.send(()).is_err() || wakes.send(Wake::Received(id, bytes)).is_err();
                if nobody_listens {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    let _nobody_listens = wakes.send(Wake::Closed(id, end));
}
