//! The socket and its wire: connects, opens the wire, writes, and starts the thread that reads.
//!
//! The thread passes bytes as they came. The loop passes them to [`Link::receive`], which owns the wire.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, anyhow, bail};

use super::event::{LinkId, LoopEvent};
use crate::not_running;
use crate::wire::{Dialer, Place, Wire, WireKind};

/// The most bytes of one read.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Reads that may wait for the loop. When there are as many, the thread stops reading, and TCP slows the gateway down.
const READS_WAITING_MAX: usize = 16;

/// A connection to the gateway. It closes when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    id: LinkId,
    place: Place,
    stream: TcpStream,
    peer: SocketAddr,
    /// `None`: plain.
    wire: Option<Wire>,
    /// What came behind the bytes that opened the wire.
    early: Vec<u8>,
    /// The reading thread adds an entry for each read; the loop removes it.
    waiting: Receiver<()>,
}

impl Link {
    /// Connects, opens the wire, and starts the thread that reads.
    ///
    /// # Errors
    /// The address can't be resolved, no server accepts there in time, or the wire does not open.
    pub(super) fn open(
        id: LinkId,
        place: &Place,
        dialer: &Dialer,
        timeout: Duration,
        events: &Sender<LoopEvent>,
    ) -> Result<Self> {
        let (mut stream, peer) =
            connect(place.authority(), timeout).map_err(|error| unreachable(place, error))?;
        stream.set_nodelay(true).context("can't set TCP_NODELAY")?;
        stream.set_write_timeout(Some(timeout)).context("can't bound the time of a write")?;
        let mut early = Vec::new();
        let wire = open_wire(place, dialer, peer, &mut stream, timeout, &mut early)?;
        let reading = stream.try_clone().context("can't share the socket with a thread")?;
        let (permits, waiting) = mpsc::sync_channel(READS_WAITING_MAX);
        let events = events.clone();
        if !early.is_empty() {
            // The loop takes it from the link. Nobody has ended yet.
            let _receiver_gone = permits.send(());
            drop(events.send(LoopEvent::Received(id, Vec::new())));
        }
        thread::Builder::new()
            .name("tide-reader".into())
            .spawn(move || read(id, reading, &permits, &events))
            .context("can't start the thread that reads")?;
        Ok(Self { id, place: place.clone(), stream, peer, wire, early, waiting })
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

    /// Takes bytes that the thread read. Returns what they carry, and answers what the wire itself has to answer.
    ///
    /// # Errors
    /// The gateway broke the wire's protocol.
    pub(super) fn receive(&mut self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Some(wire) = &mut self.wire else { return Ok(bytes) };
        let (mut payload, mut out) = (mem::take(&mut self.early), Vec::new());
        let received = wire.receive(&mut bytes, &mut payload, &mut out);
        self.write_all(&out);
        match received {
            Ok(_) => Ok(payload),
            Err(error) => Err(anyhow!(error.explain(&self.place))),
        }
    }

    /// Writes all bytes. A failed write shuts the connection down: the thread still reads what the gateway sent before, and then
    /// reports the end.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let Some(wire) = &mut self.wire else { return self.write_all(bytes) };
        let mut out = Vec::new();
        match wire.send(bytes, &mut out) {
            Ok(()) => self.write_all(&out),
            Err(_) => drop(self.stream.shutdown(Shutdown::Both)),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            let _already_closed = self.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(wire) = &mut self.wire {
            let mut out = Vec::new();
            wire.goodbye(&mut out);
            self.write_all(&out);
        }
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

fn unreachable(place: &Place, error: io::Error) -> Error {
    let said = match error.kind() {
        ErrorKind::ConnectionRefused if place.kind() == WireKind::Plain => {
            not_running::no_gateway(place.authority(), "")
        }
        ErrorKind::ConnectionRefused => not_running::no_listener(place),
        _ => format!("can't reach a gateway at {place}: is one running? --connect names another"),
    };
    Error::new(error).context(said)
}

/// Opens the wire of a place. Appends the payload that follows to `early`.
fn open_wire(
    place: &Place,
    dialer: &Dialer,
    peer: SocketAddr,
    stream: &mut TcpStream,
    timeout: Duration,
    early: &mut Vec<u8>,
) -> Result<Option<Wire>> {
    let explained = |error: crate::wire::WireError| anyhow!(error.explain(place));
    let mut out = Vec::new();
    let Some(mut wire) = dialer.start(place, peer, &mut out).map_err(explained)? else {
        return Ok(None);
    };
    let deadline = Instant::now() + timeout;
    let mut buffer = vec![0; READ_BYTES_MAX];
    loop {
        stream.write_all(&out).with_context(|| wire.ended_early().explain(place))?;
        out.clear();
        if wire.is_open() {
            break;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "{place}: it did not open the connection within {timeout:?}; what listens there?"
            );
        }
        stream.set_read_timeout(Some(left)).context("can't bound the time of a read")?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(explained(wire.ended_early())),
            Ok(count) => {
                let received = wire.receive(&mut buffer[..count], early, &mut out);
                if let Err(error) = received {
                    // An alert: the gateway's log then says why.
                    drop(stream.write_all(&out));
                    return Err(explained(error));
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut
                ) => {}
            Err(error) => {
                return Err(Error::new(error).context(wire.ended_early().explain(place)));
            }
        }
    }
    stream.set_read_timeout(None).context("can't read without a limit of time")?;
    Ok(Some(wire))
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
