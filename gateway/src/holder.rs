//! How long a start waits for an address that another process holds.
//!
//! It waits as long as the holder is a gateway that drains, and [`PATIENCE`] more. The holder's operators' port says
//! whether it drains, without a token.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tidegate_machine::files::Files;
use tidegate_machine::{listeners, process};

use crate::control::DRAINING;

/// How long an address may stay in use. A gateway whose drain has ended keeps it for the two seconds in which closing
/// connections linger. A killed gateway on io_uring keeps it until the kernel has ended its operations. A gateway that
/// starts at the same time keeps it until one of the two has lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Time between two tries to bind the address, in milliseconds. It is random, since two gateways that start together
/// could otherwise collide at each try.
const TRY_AGAIN_MS: std::ops::Range<u64> = 10..30;

/// Time between two questions whether the holder drains.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Deadline for the holder's whole answer.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a wait for an answer checks whether the start was interrupted.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// The name of a holder that is the calling process, as when an embedder's program listens there.
const ITSELF: &str = "this process itself";

/// How a start waits for its addresses.
#[derive(Clone, Copy)]
pub(crate) struct Wait<'a> {
    /// How long it waits for a holder that does not drain.
    pub(crate) patience: Duration,
    /// Whether the start was interrupted. Once true, it stays true.
    pub(crate) interrupted: &'a dyn Fn() -> bool,
}

/// Why an address could not be bound.
#[derive(Debug)]
pub(crate) enum AddressError {
    /// The start was interrupted.
    Interrupted,
    /// The system refused it.
    Refused(io::Error),
}

/// What kind of process holds the address. It is also what the log has said last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Other,
    Drains,
}

/// Tries to bind until the address is free or the patience is over. The patience counts from when the holder last
/// drained.
pub(crate) fn once_released<T>(
    address: SocketAddr,
    wait: &Wait<'_>,
    mut drains: impl FnMut() -> bool,
    mut open: impl FnMut() -> io::Result<T>,
) -> Result<T, AddressError> {
    let mut until = Instant::now() + wait.patience;
    let mut ask_at = Instant::now();
    let mut logged = None;
    loop {
        let in_use = match open() {
            Ok(opened) => return Ok(opened),
            Err(error) if error.kind() == ErrorKind::AddrInUse => error,
            Err(error) => return Err(AddressError::Refused(error)),
        };
        if Instant::now() >= ask_at {
            let holder = if drains() { Holder::Drains } else { Holder::Other };
            ask_at = Instant::now() + ASK_AGAIN;
            if holder == Holder::Drains {
                until = Instant::now() + wait.patience;
            }
            if logged < Some(holder) {
                log_wait(address, holder, wait.patience);
                logged = Some(holder);
            }
        }
        if (wait.interrupted)() {
            return Err(AddressError::Interrupted);
        }
        if Instant::now() >= until {
            return Err(AddressError::Refused(with_holder(in_use, address)));
        }
        thread::sleep(Duration::from_millis(fastrand::u64(TRY_AGAIN_MS)));
    }
}

fn log_wait(address: SocketAddr, holder: Holder, patience: Duration) {
    let seconds = patience.as_secs();
    match holder {
        Holder::Drains => tracing::info!(
            %address,
            "a gateway that drains holds this address: waiting until it has answered all connections in its queue"
        ),
        Holder::Other => {
            let holder = name_of_holder(address);
            let holder = holder.as_deref();
            // It may be the listener of an own shard, while another gateway that starts is in the way for a moment.
            if holder == Some(ITSELF) {
                tracing::warn!(%address, "this address is in use, and this process listens there: waiting {seconds} s for it");
            } else {
                tracing::warn!(%address, holder, "another process holds this address: waiting {seconds} s for it");
            }
        }
    }
}

/// The error for an address in use, with who holds it, where that can be seen.
fn with_holder(in_use: io::Error, address: SocketAddr) -> io::Error {
    match name_of_holder(address) {
        Some(holder) => io::Error::new(in_use.kind(), format!("{in_use}: {holder} holds it")),
        None => in_use,
    }
}

/// The process that holds an address, for people. Other users' processes can't be seen without privileges, but
/// the owners of their listeners can.
fn name_of_holder(address: SocketAddr) -> Option<String> {
    let files = Files::system();
    if let Ok(Some(pid)) = listeners::process_in_the_way(&files, address) {
        let name = process::name(&files, pid).unwrap_or_default();
        return Some(format!("process {pid} ({})", name.escape_debug()));
    }
    // The owner of this process's own listener says nothing of another process.
    if listeners::is_itself_in_the_way(&files, address) == Ok(true) {
        return Some(ITSELF.to_owned());
    }
    let owner = listeners::owners_at(&files, address).ok()?.into_iter().next()?;
    Some(format!("a process of user {owner}"))
}

/// Whether the gateway whose operators' port this is drains, as its `GET /readyz` says.
pub(crate) fn drains(operators: SocketAddr, interrupted: &dyn Fn() -> bool) -> bool {
    // No process holds port 0, which means any port.
    operators.port() != 0
        && ask(operators, ASK_TIMEOUT, interrupted).is_ok_and(|code| code == DRAINING)
}

/// The error code in the operators' port's answer to `GET /readyz`.
fn ask(
    operators: SocketAddr,
    within: Duration,
    interrupted: &dyn Fn() -> bool,
) -> io::Result<String> {
    let until = Instant::now() + within;
    let mut stream = TcpStream::connect_timeout(&operators, within)?;
    stream.set_read_timeout(Some(LOOK_AGAIN))?;
    stream.set_write_timeout(Some(LOOK_AGAIN))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {operators}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while answer.len() < ANSWER_BYTES_MAX && Instant::now() < until && !interrupted() {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if let Some(code) = code(&answer) {
            return Ok(code);
        }
    }
    Err(ErrorKind::InvalidData.into())
}

/// The code of an error, once the whole answer has arrived.
fn code(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        code: String,
    }
    let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at(head_end + 4);
    let body =
        head.starts_with(b"HTTP/1.1 503 ").then(|| serde_json::from_slice::<ErrorBody>(body));
    Some(body?.ok()?.code)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::TcpListener;

    use super::*;

    const NOWHERE: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn in_use() -> io::Error {
        ErrorKind::AddrInUse.into()
    }

    #[test]
    fn a_holder_that_drains_is_waited_for_without_a_limit() {
        let wait = Wait { patience: Duration::from_millis(600), interrupted: &|| false };
        let began = Instant::now();
        // Longer than the patience lasts.
        let drains = || began.elapsed() < Duration::from_secs(2);
        let had =
            once_released(
                NOWHERE,
                &wait,
                drains,
                || {
                    if drains() { Err(in_use()) } else { Ok("had") }
                },
            );
        assert_eq!(had.unwrap(), "had");
        assert!(!drains());
    }

    #[test]
    fn a_holder_that_does_not_drain_is_not_waited_for() {
        let wait = Wait { patience: Duration::ZERO, interrupted: &|| false };
        let had = once_released(NOWHERE, &wait, || false, || Err::<(), _>(in_use()));
        assert!(
            matches!(had, Err(AddressError::Refused(error)) if error.kind() == ErrorKind::AddrInUse)
        );
    }

    #[test]
    fn a_process_that_holds_the_address_itself_is_not_called_another_one() {
        let wait = Wait { patience: Duration::ZERO, interrupted: &|| false };
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let had = once_released(address, &wait, || false, || TcpListener::bind(address));
        let Err(AddressError::Refused(error)) = had else { panic!("{had:?}") };
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().ends_with(": this process itself holds it"), "{error}");
    }

    #[test]
    fn a_start_that_is_cancelled_stops_waiting() {
        let tries = Cell::new(0);
        let wait = Wait { patience: Duration::from_secs(3600), interrupted: &|| tries.get() == 3 };
        let open = || {
            tries.set(tries.get() + 1);
            Err::<(), _>(in_use())
        };
        assert!(matches!(
            once_released(NOWHERE, &wait, || true, open),
            Err(AddressError::Interrupted)
        ));
        assert_eq!(tries.get(), 3);
    }

    /// Answers one connection with a text, and what follows as long as somebody reads it.
    fn asked(
        says: &'static str,
        drips: bool,
        within: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                // The other side may have closed already.
                drop(stream.write_all(says.as_bytes()));
                while drips && stream.write_all(b"h").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            ask(address, within, interrupted).ok()
        })
    }

    #[test]
    fn the_code_is_what_counts() {
        let never = || false;
        let asked = |says| asked(says, false, Duration::from_secs(3600), &never);
        let says = "HTTP/1.1 503 No\r\n\r\n{\"error\": \"it is starting\", \"code\": \"draining\"}";
        assert_eq!(asked(says).as_deref(), Some("draining"));
        let says = "HTTP/1.1 503 No\r\n\r\n{\"error\": \"draining\", \"code\": \"starting\"}";
        assert_eq!(asked(says).as_deref(), Some("starting"));
        for says in [
            "",
            "HTTP/1.1 503 No\r\n\r\ndraining",
            "HTTP/1.1 503 No\r\n\r\n{\"error\": \"draining\"}",
            "HTTP/1.1 200 OK\r\n\r\n{\"code\": \"draining\"}",
            "{\"code\": \"draining\"}",
        ] {
            assert_eq!(asked(says), None, "{says:?}");
        }
    }

    #[test]
    fn an_answer_that_drips_has_one_deadline() {
        // It would drip for more than a minute.
        assert_eq!(asked("", true, Duration::from_millis(200), &|| false), None);
    }

    #[test]
    fn an_answer_that_drips_can_be_given_up() {
        let looks = Cell::new(0);
        let interrupted = || looks.replace(looks.get() + 1) == 3;
        assert_eq!(asked("", true, Duration::from_secs(3600), &interrupted), None);
        assert_eq!(looks.get(), 4);
    }
}
