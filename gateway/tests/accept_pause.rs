//! How the drivers of real sockets pause accepting when descriptors run out, and resume.
//!
//! The limit on open files is the process's, so these tests have a process of their own and run one at a
//! time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tidegate::driver::epoll::Epoll;
use tidegate::driver::uring::{Capacity, Uring};
use tidegate::driver::{Driver, Event, Sink};

/// Long enough for several tries.
const SEVERAL_TRIES: Duration = Duration::from_millis(450);

/// Events about accepting, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    Accepted,
    Paused,
    Resumed,
}

/// A core that would wait for ever.
#[derive(Default)]
struct Recorder {
    facts: Vec<Fact>,
    now: Option<Instant>,
}

impl Sink for Recorder {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Accepted { .. } => self.facts.push(Fact::Accepted),
            Event::AcceptPaused { error } => {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
                self.facts.push(Fact::Paused);
            }
            Event::AcceptResumed => self.facts.push(Fact::Resumed),
            event => panic!("{event:?}"),
        }
    }

    fn idle_for(&mut self) -> Option<Duration> {
        None
    }

    fn woken(&mut self, now: Instant) {
        self.now = Some(now);
    }
}

/// The limit on open files, which is as it was when this is dropped.
struct Limit {
    before: Rlimit,
    _alone: MutexGuard<'static, ()>,
}

impl Limit {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { before: getrlimit(Resource::Nofile), _alone: alone }
    }

    /// Lets the process open `count` more descriptors.
    fn leave(&self, count: u64) {
        // The kernel gives the lowest free numbers.
        let free: Vec<_> =
            (0..=count).map(|_| io::stdin().as_fd().try_clone_to_owned().unwrap()).collect();
        let lowest_beyond = free.iter().map(|one| one.as_raw_fd()).max().unwrap();
        let current = Some(u64::try_from(lowest_beyond).unwrap());
        setrlimit(Resource::Nofile, Rlimit { current, ..self.before }).unwrap();
    }

    fn restore(&self) {
        setrlimit(Resource::Nofile, self.before).unwrap();
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.restore();
    }
}

fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn until(driver: &mut impl Driver, recorder: &mut Recorder, count: usize) {
    while recorder.facts.len() < count {
        driver.poll(recorder).unwrap();
    }
}

/// A driver that can take in one connection and lacks a descriptor for more. No further connection waits, so
/// the next connection that is accepted shows nothing: the driver has to find out that it can accept again.
fn pauses_and_goes_on(driver: &mut impl Driver, address: SocketAddr, limit: &Limit, left: u64) {
    let mut recorder = Recorder::default();
    let _first = TcpStream::connect(address).unwrap();
    limit.leave(left);
    until(driver, &mut recorder, 2);
    let paused_at = recorder.now.unwrap();
    while recorder.now.unwrap() < paused_at + SEVERAL_TRIES {
        driver.poll(&mut recorder).unwrap();
    }
    assert_eq!(recorder.facts, [Fact::Accepted, Fact::Paused], "one pause, however many tries");
    limit.restore();
    until(driver, &mut recorder, 3);
    assert_eq!(recorder.facts[2..], [Fact::Resumed]);
    let _second = TcpStream::connect(address).unwrap();
    until(driver, &mut recorder, 4);
    assert_eq!(recorder.facts[3..], [Fact::Accepted]);
}

#[test]
fn epoll_resumes_once_there_are_descriptors_though_no_connection_waits() {
    let limit = Limit::new();
    let (listener, address) = listening();
    let mut driver = Epoll::new(vec![listener]).unwrap();
    pauses_and_goes_on(&mut driver, address, &limit, 1);
}

#[test]
fn uring_resumes_once_a_ring_can_be_added_though_no_connection_waits() {
    let limit = Limit::new();
    let (listener, address) = listening();
    // The first ring is full with one connection. A further ring takes a descriptor of the process.
    let capacity = Capacity { connections: 10, files_each: 1 };
    let mut driver = Uring::new(vec![listener], capacity).unwrap();
    pauses_and_goes_on(&mut driver, address, &limit, 0);
}
