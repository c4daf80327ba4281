//! The drivers under test, each with its peers.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, SockRef, Socket, Type};

use super::{Read, World};
use crate::driver::epoll::Epoll;
use crate::driver::sim::{Arrived, Faults, PeerId, Sim};
use crate::driver::uring::{Capacity, Uring};
use crate::driver::{CloseCause, ConnId, Driver, Mechanism, SendState, Sink};

/// How long real drivers let events gather: as in the gateway's default configuration.
const COALESCE: Duration = Duration::from_micros(300);

/// A driver of real sockets.
pub(super) trait Real: Driver {
    fn new(listener: TcpListener) -> Self;
}

impl Real for Epoll {
    fn new(listener: TcpListener) -> Self {
        Self::new(vec![listener]).unwrap().coalescing(COALESCE)
    }
}

impl Real for Uring {
    fn new(listener: TcpListener) -> Self {
        let capacity = Capacity { connections: 1000, files_each: 1000 };
        Self::new(vec![listener], capacity).unwrap().coalescing(COALESCE)
    }
}

/// io_uring with few direct descriptors for each ring, so that most tests need several rings.
pub(super) struct ManyRings(Uring);

impl Real for ManyRings {
    fn new(listener: TcpListener) -> Self {
        let capacity = Capacity { connections: 1000, files_each: 3 };
        Self(Uring::new(vec![listener], capacity).unwrap().coalescing(COALESCE))
    }
}

impl Driver for ManyRings {
    fn mechanism(&self) -> Mechanism {
        self.0.mechanism()
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        self.0.poll(sink)
    }

    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        self.0.send(conn, bytes)
    }

    fn pause_receive(&mut self, conn: ConnId) {
        self.0.pause_receive(conn);
    }

    fn resume_receive(&mut self, conn: ConnId) {
        self.0.resume_receive(conn);
    }

    fn shutdown(&mut self, conn: ConnId) {
        self.0.shutdown(conn);
    }

    fn close(&mut self, conn: ConnId) {
        self.0.close(conn);
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.0.set_accepting(accepting);
    }

    fn stop_listening(&mut self, until: Instant) {
        self.0.stop_listening(until);
    }
}

/// Real sockets over loopback.
pub(super) struct RealWorld<D> {
    driver: D,
    /// As another thread's table of descriptors may have one. The driver has to end listening for it, too.
    _copy_of_listener: TcpListener,
    address: SocketAddr,
    peers: Vec<Option<TcpStream>>,
}

impl<D: Real> World for RealWorld<D> {
    type Driver = D;

    fn with_backlog(backlog: u16) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(backlog.into()).unwrap();
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        let _copy_of_listener = listener.try_clone().unwrap();
        Self { driver: D::new(listener), _copy_of_listener, address, peers: Vec::new() }
    }

    fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    fn connect(&mut self) -> Option<usize> {
        let stream = TcpStream::connect(self.address).ok()?;
        stream.set_nonblocking(true).unwrap();
        self.peers.push(Some(stream));
        Some(self.peers.len() - 1)
    }

    fn write(&mut self, peer: usize, bytes: &[u8]) -> usize {
        let mut stream = self.peers[peer].as_ref().unwrap();
        let mut written = 0;
        while written < bytes.len() {
            match stream.write(&bytes[written..]) {
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Its next read says so.
                Err(error) if CloseCause::of(&error) == CloseCause::Reset => break,
                Err(error) => panic!("{error}"),
            }
        }
        written
    }

    fn read(&mut self, peer: usize) -> Read {
        let mut buffer = vec![0; 16 * 1024];
        match self.peers[peer].as_ref().unwrap().read(&mut buffer) {
            Ok(0) => Read::End,
            Ok(count) => Read::Bytes(buffer[..count].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Read::Nothing,
            Err(_) => Read::Reset,
        }
    }

    fn half_close(&mut self, peer: usize) {
        match self.peers[peer].as_ref().unwrap().shutdown(Shutdown::Write) {
            // It was reset. Its next read says so.
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            result => result.unwrap(),
        }
    }

    fn reset(&mut self, peer: usize) {
        let stream = self.peers[peer].take().unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A driver over the simulation, or the simulation itself.
pub(super) trait Simulated: Driver {
    fn over(sim: Sim) -> Self;
    fn sim(&mut self) -> &mut Sim;
}

impl Simulated for Sim {
    fn over(sim: Sim) -> Self {
        sim
    }

    fn sim(&mut self) -> &mut Sim {
        self
    }
}

/// The simulation, with the faults that every network has: cuts and short sends.
pub(super) struct SimWorld<D> {
    driver: D,
    peers: Vec<PeerId>,
}

impl<D: Simulated> World for SimWorld<D> {
    type Driver = D;

    fn with_backlog(backlog: u16) -> Self {
        let faults = Faults {
            cut: 0.3,
            short_send: 0.3,
            late_send: 0.3,
            late_reply: 0.3,
            ..Faults::default()
        };
        let mut driver = Sim::new(7, Instant::now(), faults);
        driver.set_accept_queue_max(u32::from(backlog) + 1);
        Self { driver: D::over(driver), peers: Vec::new() }
    }

    fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    fn connect(&mut self) -> Option<usize> {
        self.peers.push(self.driver.sim().connect()?);
        Some(self.peers.len() - 1)
    }

    fn write(&mut self, peer: usize, bytes: &[u8]) -> usize {
        self.driver.sim().write(self.peers[peer], bytes)
    }

    fn read(&mut self, peer: usize) -> Read {
        match self.driver.sim().read_at_most(self.peers[peer], 16 * 1024) {
            Arrived::Bytes(bytes) => Read::Bytes(bytes.to_vec()),
            Arrived::Nothing => Read::Nothing,
            Arrived::End => Read::End,
            Arrived::Reset => Read::Reset,
        }
    }

    fn half_close(&mut self, peer: usize) {
        self.driver.sim().half_close(self.peers[peer]);
    }

    fn reset(&mut self, peer: usize) {
        self.driver.sim().reset(self.peers[peer]);
    }
}
