//! An address that another process has: how long it is waited for.
//!
//! [`PATIENCE`], and as long before as the holder drains. Its operators' port says so to everybody.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::control::DRAINING;

/// How long an address may still be in use: by a gateway whose drain has ended, for the two seconds that
/// goodbyes linger; by one on io_uring that was killed, until the kernel has ended what it had under way; by
/// a gateway that starts at the same time, until one of the two has lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Between two tries to have the address, in milliseconds: drawn anew each time, or two gateways that start
/// together might fail together again and again.
const TRY_AGAIN_MS: std::ops::Range<u64> = 10..30;

/// Between two questions whether the holder drains.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How long the holder may take to say that it drains, all in all.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks at whether the start is given up, while an answer is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// How a start waits for its addresses.
#[derive(Clone, Copy)]
pub(crate) struct Wait<'a> {
    /// How long for one whose holder does not drain.
    pub(crate) patience: Duration,
    /// Whether the start is given up. Once true, it stays true.
    pub(crate) given_up: &'a dyn Fn() -> bool,
}

/// Why an address was not had.
#[derive(Debug)]
pub(crate) enum NotHad {
    /// The start was given up.
    GivenUp,
    /// The system refuses it.
    Refused(io::Error),
}

/// Which kind of process has the address; also what the log has said of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Other,
    Drains,
}

/// Tries until the address is not in use, or the patience is over. It begins anew as long as the holder
/// `drains`.
pub(crate) fn once_released<T>(
    address: SocketAddr,
    wait: &Wait<'_>,
    mut drains: impl FnMut() -> bool,
    mut open: impl FnMut() -> io::Result<T>,
) -> Result<T, NotHad> {
    let mut until = Instant::now() + wait.patience;
    let mut ask_at = Instant::now();
    let mut told = None;
    loop {
        let in_use = match open() {
            Ok(opened) => return Ok(opened),
            Err(error) if error.kind() == ErrorKind::AddrInUse => error,
            Err(error) => return Err(NotHad::Refused(error)),
        };
        if Instant::now() >= ask_at {
            let holder = if drains() { Holder::Drains } else { Holder::Other };
            ask_at = Instant::now() + ASK_AGAIN;
            if holder == Holder::Drains {
                until = Instant::now() + wait.patience;
            }
            if told < Some(holder) {
                tell(address, holder, wait.patience);
                told = Some(holder);
            }
        }
        if (wait.given_up)() {
            return Err(NotHad::GivenUp);
        }
        if Instant::now() >= until {
            return Err(NotHad::Refused(in_use));
        }
        thread::sleep(Duration::from_millis(fastrand::u64(TRY_AGAIN_MS)));
    }
}

fn tell(address: SocketAddr, holder: Holder, patience: Duration) {
    let seconds = patience.as_secs();
    match holder {
        Holder::Drains => tracing::info!(
            %address,
            "a gateway that drains has this address: waiting until it has told all in its queue to go"
        ),
        Holder::Other => {
            tracing::warn!(%address, "another process has this address: waiting {seconds} s for it");
        }
    }
}

/// Whether a gateway that drains serves these operators: as `GET /readyz` tells everybody.
pub(crate) fn drains(operators: SocketAddr, given_up: &dyn Fn() -> bool) -> bool {
    // A port that is still to be chosen is nobody's.
    operators.port() != 0
        && ask(operators, ASK_TIMEOUT, given_up).is_ok_and(|code| code == DRAINING)
}

/// The code of the error that the operators' port answers `GET /readyz` with.
fn ask(operators: SocketAddr, within: Duration, given_up: &dyn Fn() -> bool) -> io::Result<String> {
    let until = Instant::now() + within;
    let mut stream = TcpStream::connect_timeout(&operators, within)?;
    stream.set_read_timeout(Some(LOOK_AGAIN))?;
    stream.set_write_timeout(Some(LOOK_AGAIN))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {operators}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while answer.len() < ANSWER_BYTES_MAX && Instant::now() < until && !given_up() {
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

/// The code of an error, once all of it is there.
fn code(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Told {
        code: String,
    }
    let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at(head_end + 4);
    let told = head.starts_with(b"HTTP/1.1 503 ").then(|| serde_json::from_slice::<Told>(body));
    Some(told?.ok()?.code)
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
    fn one_that_drains_is_waited_for_as_long_as_it_takes() {
        let wait = Wait { patience: Duration::from_millis(600), given_up: &|| false };
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
    fn who_does_not_drain_is_not_waited_for() {
        let wait = Wait { patience: Duration::ZERO, given_up: &|| false };
        let had = once_released(NOWHERE, &wait, || false, || Err::<(), _>(in_use()));
        assert!(matches!(had, Err(NotHad::Refused(error)) if error.kind() == ErrorKind::AddrInUse));
    }

    #[test]
    fn who_gives_up_waits_no_more() {
        let tries = Cell::new(0);
        let wait = Wait { patience: Duration::from_secs(3600), given_up: &|| tries.get() == 3 };
        let open = || {
            tries.set(tries.get() + 1);
            Err::<(), _>(in_use())
        };
        assert!(matches!(once_released(NOWHERE, &wait, || true, open), Err(NotHad::GivenUp)));
        assert_eq!(tries.get(), 3);
    }

    /// Answers one connection with a text, and what follows as long as somebody reads it.
    fn asked(
        says: &'static str,
        drips: bool,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                // The other side may have heard enough.
                drop(stream.write_all(says.as_bytes()));
                while drips && stream.write_all(b"h").is_ok() {
                    thread::sleep(Duration::from_millis(20));
                }
            });
            ask(address, within, given_up).ok()
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
        let given_up = || looks.replace(looks.get() + 1) == 3;
        assert_eq!(asked("", true, Duration::from_secs(3600), &given_up), None);
        assert_eq!(looks.get(), 4);
    }
}
