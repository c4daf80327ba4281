//! What only this driver can get wrong. `conformance` has the tests of all drivers.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::socket::Flags;
use super::*;
use crate::driver::conformance::{Fact, Recorder};

/// More than a socket takes at once.
const LARGE: usize = 8 * 1024 * 1024;

/// Polls after which a test gives up.
const POLLS_MAX: usize = 20_000;

fn listening(connections: usize, files_each: u32) -> (Uring, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Uring::new(vec![listener], Capacity { connections, files_each }).unwrap(), address)
}

fn until(driver: &mut Uring, recorder: &mut Recorder, happened: impl Fn(&Recorder) -> bool) {
    for _ in 0..POLLS_MAX {
        if happened(recorder) {
            return;
        }
        driver.poll(recorder).unwrap();
    }
    panic!("it did not happen");
}

fn accepted(recorder: &Recorder) -> Vec<ConnId> {
    let accepted = |fact: &Fact| match fact {
        Fact::Accepted(conn) => Some(*conn),
        _ => None,
    };
    recorder.facts.iter().filter_map(accepted).collect()
}

/// Threads that the kernel runs for this thread's rings.
fn kernel_threads() -> usize {
    // "<pid>/task/<tid>"
    let this = fs::read_link("/proc/thread-self").unwrap();
    let name = format!("iou-wrk-{}", this.file_name().unwrap().to_str().unwrap());
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")));
    names.filter(|found| found.as_ref().is_ok_and(|found| found.trim() == name)).count()
}

#[test]
fn each_of_as_many_listeners_as_there_may_be_accepts() {
    let listeners: Vec<_> = (0..crate::driver::LISTENERS_MAX)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses: Vec<_> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
    let capacity = Capacity { connections: 100, files_each: 200 };
    let mut driver = Uring::new(listeners, capacity).unwrap();
    let mut recorder = Recorder::default();
    let peers: Vec<_> =
        addresses.iter().map(|address| TcpStream::connect(address).unwrap()).collect();
    until(&mut driver, &mut recorder, |recorder| accepted(recorder).len() == peers.len());
}

#[test]
fn a_half_closed_peer_that_does_not_read_costs_no_kernel_thread() {
    let (mut driver, address) = listening(100, 100);
    let mut recorder = Recorder::default();
    let mut peers: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
    until(&mut driver, &mut recorder, |recorder| accepted(recorder).len() == 10);
    let bytes = Bytes::from(vec![7; LARGE]);
    for conn in accepted(&recorder) {
        assert_eq!(driver.send(conn, bytes.clone()), SendState::UnderWay);
    }
    (0..20).for_each(|_| driver.poll(&mut recorder).unwrap());
    peers.iter().for_each(|peer| peer.shutdown(Shutdown::Write).unwrap());
    (0..500).for_each(|_| driver.poll(&mut recorder).unwrap());
    assert_eq!(kernel_threads(), 0);
    // One peer reads at last, and gets everything. The others are closed, which is reported.
    let reader = peers.remove(0);
    let reading = std::thread::spawn(move || {
        let mut got = vec![0; LARGE];
        (&reader).read_exact(&mut got).unwrap();
        got
    });
    let sent = |recorder: &Recorder| {
        recorder.facts.iter().any(|fact| matches!(fact, Fact::Sent(_, LARGE)))
    };
    until(&mut driver, &mut recorder, sent);
    assert!(reading.join().unwrap() == bytes);
    accepted(&recorder).into_iter().for_each(|conn| driver.close(conn));
    until(&mut driver, &mut recorder, |recorder| {
        recorder.facts.iter().filter(|fact| matches!(fact, Fact::Closed(..))).count() == 10
    });
    assert_eq!(kernel_threads(), 0);
}

/// The kernel looks the descriptor of a shutdown up late: a connection that has it by then would be shut
/// down.
#[test]
fn a_direct_descriptor_is_kept_until_its_shutdown_is_done() {
    let (mut driver, address) = listening(1000, 1000);
    let mut recorder = Recorder::default();
    let _peer = TcpStream::connect(address).unwrap();
    until(&mut driver, &mut recorder, |recorder| !accepted(recorder).is_empty());
    let conn = accepted(&recorder)[0];
    // Now as many accepts as possible are in flight again.
    driver.poll(&mut recorder).unwrap();
    let files = driver.connections.rings[0].files;
    driver.shutdown(conn);
    driver.close(conn);
    assert_eq!(driver.connections.rings[0].files, files, "the descriptor is free too early");
    until(&mut driver, &mut recorder, |recorder| {
        recorder.facts.iter().any(|fact| matches!(fact, Fact::Closed(..)))
    });
    assert_eq!(driver.connections.rings[0].files, files - 1);
}

/// The failure of an unconfirmed send is among the completions that do not fit into the ring.
#[test]
fn a_failed_send_is_seen_when_completions_overflow() {
    a_failed_send_is_seen_behind(5000);
}

/// The failure of an unconfirmed send is behind more completions than one poll takes.
#[test]
fn a_failed_send_is_seen_when_a_poll_leaves_completions() {
    a_failed_send_is_seen_behind(3 * EVENTS_MAX);
}

fn a_failed_send_is_seen_behind(completions: usize) {
    let (mut driver, address) = listening(10, 10);
    let mut recorder = Recorder::default();
    let peer = TcpStream::connect(address).unwrap();
    until(&mut driver, &mut recorder, |recorder| !accepted(recorder).is_empty());
    let conn = accepted(&recorder)[0];
    let ring = driver.connections.sockets.get_mut(conn).unwrap().ring;
    // Until the socket is full.
    let mut count = 0;
    let bytes = Bytes::from(vec![1; 16 * 1024]);
    while !driver.connections.cold.contains_key(&conn.slot) {
        assert_eq!(driver.send(conn, bytes.clone()), SendState::Done);
        count += bytes.len();
        (0..3).for_each(|_| driver.poll(&mut recorder).unwrap());
    }
    let mut read = vec![0; 8 * 1024 * 1024];
    // The socket takes some bytes again, so that the next sends come short or fail.
    let reader = peer.try_clone().unwrap();
    let got = drain(&reader, &mut driver, &mut recorder, &mut read, count);
    assert_eq!(got, count);
    let mut count = 0;
    loop {
        let before = driver.connections.cold.contains_key(&conn.slot);
        assert!(!before, "the send is confirmed");
        // Each of these completes with a failure that belongs to no operation.
        for _ in 0..completions {
            driver.connections.rings.ask(ring, |ring| ring.cancel(Token::Accept(u16::MAX)));
        }
        assert_eq!(driver.send(conn, bytes.clone()), SendState::Done);
        count += bytes.len();
        (0..3).for_each(|_| driver.poll(&mut recorder).unwrap());
        while driver.connections.rings[usize::from(ring)].has_completions() {
            driver.poll(&mut recorder).unwrap();
        }
        if driver.connections.cold.contains_key(&conn.slot) {
            break;
        }
    }
    let got = drain(&reader, &mut driver, &mut recorder, &mut read, count);
    assert_eq!(got, count);
}

/// Whether the driver's next poll would wait though nothing new happens.
fn would_wait(driver: &mut Uring) -> bool {
    let rings = driver.connections.rings.count();
    let rings_are_idle = (0..rings).all(|ring| {
        let ring = &mut driver.connections.rings[ring];
        !(ring.has_completions() || ring.has_submissions() || ring.may_complete())
    });
    rings_are_idle && !driver.connections.has_work()
}

/// A shutdown waits until the send before it is confirmed, and no poll waits meanwhile, however many
/// completions each poll has found.
#[test]
fn no_poll_waits_while_a_send_has_to_be_confirmed() {
    let near = |count: usize| count - 4..count + 4;
    for (files_each, at_connection) in [(1000, true), (1, true), (1, false)] {
        for completions in near(EVENTS_MAX).chain(near(2 * EVENTS_MAX)) {
            let (mut driver, address) = listening(1000, files_each);
            let mut recorder = Recorder::default();
            let mut peers = Vec::new();
            while peers.len() < 2 {
                peers.push(TcpStream::connect(address).unwrap());
                until(&mut driver, &mut recorder, |recorder| {
                    accepted(recorder).len() == peers.len()
                });
            }
            let conn = accepted(&recorder)[1];
            let ring = driver.connections.sockets.get_mut(conn).unwrap().ring;
            while !would_wait(&mut driver) {
                driver.poll(&mut recorder).unwrap();
            }
            for _ in 0..completions {
                let ring = if at_connection { ring } else { 0 };
                driver.connections.rings.ask(ring, |ring| ring.cancel(Token::Accept(u16::MAX)));
            }
            driver.poll(&mut recorder).unwrap();
            assert_eq!(driver.send(conn, Bytes::from_static(b"hello")), SendState::Done);
            driver.shutdown(conn);
            let is_shut_down = |driver: &mut Uring| {
                driver.connections.sockets.get_mut(conn).unwrap().has(Flags::SHUTTING_DOWN)
            };
            while !is_shut_down(&mut driver) {
                assert!(!would_wait(&mut driver), "{completions}, {files_each} files each");
                driver.poll(&mut recorder).unwrap();
            }
        }
    }
}

/// Reads all that was sent, while the driver sends what is left.
fn drain(
    reader: &TcpStream,
    driver: &mut Uring,
    recorder: &mut Recorder,
    buffer: &mut [u8],
    count: usize,
) -> usize {
    reader.set_nonblocking(true).unwrap();
    let mut got = 0;
    for _ in 0..POLLS_MAX {
        if let Ok(more) = (&mut &*reader).read(buffer) {
            got += more;
        }
        driver.poll(recorder).unwrap();
        if got >= count && driver.connections.cold.is_empty() {
            break;
        }
    }
    got
}

/// A send that finds the submission queue full is not among the operations that are submitted before it is
/// pushed.
#[test]
fn no_send_counts_as_submitted_before_the_kernel_has_it() {
    let (mut driver, address) = listening(1000, 1000);
    let mut recorder = Recorder::default();
    let mut peers = Vec::new();
    while peers.len() < 300 {
        peers.push(TcpStream::connect(address).unwrap());
        until(&mut driver, &mut recorder, |recorder| accepted(recorder).len() == peers.len());
    }
    (0..3).for_each(|_| driver.poll(&mut recorder).unwrap());
    let bytes = Bytes::from_static(b"hello");
    for (sent, conn) in (1..).zip(accepted(&recorder)) {
        assert_eq!(driver.send(conn, bytes.clone()), SendState::Done);
        let ring = &mut driver.connections.rings[0];
        let waiting = ring.submissions() as u64;
        assert!(ring.submitted_sends() <= sent - waiting, "{sent} sent, {waiting} of them wait");
    }
    (0..3).for_each(|_| driver.poll(&mut recorder).unwrap());
    for mut peer in peers {
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
}

/// What was reported as sent waits for the peer for a while after a close, and then counts as unsent.
#[test]
fn bytes_that_a_closed_connection_never_sends_are_counted() {
    let (mut driver, address) = listening(1, 1);
    driver.connections.linger_max = Duration::from_millis(50);
    let mut recorder = Recorder::default();
    let mut peer = TcpStream::connect(address).unwrap();
    until(&mut driver, &mut recorder, |recorder| accepted(recorder).len() == 1);
    let conn = accepted(&recorder)[0];
    let chunk = Bytes::from(vec![7; 15_000]);
    let mut reported = 0;
    // The peer reads nothing, so the last of these does not fit.
    while driver.connections.cold.is_empty() {
        assert_eq!(driver.send(conn, chunk.clone()), SendState::Done);
        reported += chunk.len();
        (0..3).for_each(|_| driver.poll(&mut recorder).unwrap());
    }
    driver.close(conn);
    recorder.idle_for = None;
    until(&mut driver, &mut recorder, |recorder| {
        recorder.facts.contains(&Fact::Closed(conn, CloseCause::Local))
    });
    let mut got = Vec::new();
    peer.read_to_end(&mut got).unwrap();
    assert!((1..=chunk.len()).contains(&recorder.unsent_bytes), "{}", recorder.unsent_bytes);
    assert_eq!(got.len() + recorder.unsent_bytes, reported);
}

/// The kernel knows of the reset before the reply is sent, and the driver sees it only after.
#[test]
fn a_reply_after_a_reset_counts_as_unsent() {
    let (mut driver, address) = listening(1, 1);
    let mut recorder = Recorder::default();
    let mut peer = TcpStream::connect(address).unwrap();
    until(&mut driver, &mut recorder, |recorder| accepted(recorder).len() == 1);
    (0..5).for_each(|_| driver.poll(&mut recorder).unwrap());
    let conn = accepted(&recorder)[0];
    recorder.replies.push((conn, Bytes::from(vec![7; 1000])));
    // The driver sees the bytes and the reset in one poll.
    peer.write_all(b"ask").unwrap();
    driver.connections.rings[0].submit().unwrap();
    assert!(driver.connections.rings[0].has_completions());
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    driver.connections.rings[0].submit().unwrap();
    let closed = Fact::Closed(conn, CloseCause::Reset);
    until(&mut driver, &mut recorder, |recorder| recorder.facts.contains(&closed));
    assert!(recorder.replies.is_empty(), "the driver did not ask for the reply");
    assert_eq!(recorder.unsent_bytes, 1000);
}

/// Makes this thread read 50 times with a time limit. Says how many of the reads the kernel interrupted.
fn interrupted_reads(mut before_each: impl FnMut()) -> usize {
    let (mut here, _there) = UnixStream::pair().unwrap();
    here.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut interrupted = || {
        before_each();
        here.read(&mut [0]).unwrap_err().kind() == ErrorKind::Interrupted
    };
    (0..50).filter(|_| interrupted()).count()
}

#[test]
fn a_probe_interrupts_no_read_of_its_caller() {
    assert_eq!(interrupted_reads(|| probe().unwrap()), 0);
}

#[test]
fn the_end_of_a_driver_interrupts_no_read_of_its_maker() {
    let end_one = || {
        let (mut driver, _) = listening(1, 1);
        let user = move || driver.poll(&mut Recorder::default()).unwrap();
        thread::spawn(user).join().unwrap();
    };
    assert_eq!(interrupted_reads(end_one), 0);
}
