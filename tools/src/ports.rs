//! A gateway's two ports: clients connect to one, and operators to the other. This finds one beside the other, and says
//! so where the wrong one was named.
//!
//! What listens is asked in its protocol, without any token.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tidegate_machine::files::Files;
use tidegate_machine::listeners;
use tidegate_protocol::client::Client;

use crate::operator::{ADMIN, PROBE_TIMEOUT, destination, is_local, takes_operators};

/// A gateway's default address for clients.
const CLIENTS: &str = "127.0.0.1:7400";

/// The hint for an address that was to be the operators', if clients connect there.
pub(crate) fn is_for_clients(place: &str, address: SocketAddr) -> Option<String> {
    if !takes_clients(address) {
        return None;
    }
    let operators = other_port_or(ADMIN, address, takes_operators);
    Some(format!(
        "{place} is where a gateway's clients connect. Its operators' HTTP has a different address, which it prints \
         when it starts: try --admin {operators}"
    ))
}

/// The hint for an address that was to be the clients', if it is a gateway's operators' HTTP.
pub(crate) fn is_for_operators(place: &str, address: SocketAddr) -> Option<String> {
    if !takes_operators(address) {
        return None;
    }
    let clients = other_port_or(CLIENTS, address, takes_clients);
    Some(format!(
        "{place} is a gateway's operators' HTTP. Its clients have an address of their own, which it prints when it \
         starts: try --connect {clients}"
    ))
}

/// The operators' HTTP of the gateway whose clients connect here, if its process is visible.
pub(crate) fn operators_beside(clients: SocketAddr) -> Option<String> {
    other_port(clients, takes_operators)
}

/// As [`other_port`]. Where that finds nothing, the default address, which on another machine is the default port there.
fn other_port_or(default: &str, address: SocketAddr, answers: fn(SocketAddr) -> bool) -> String {
    let default = || match default.rsplit_once(':').and_then(|(_, port)| port.parse().ok()) {
        Some(port) if !is_local(destination(address)) => {
            SocketAddr::new(address.ip(), port).to_string()
        }
        _ => default.to_owned(),
    };
    other_port(address, answers).unwrap_or_else(default)
}

/// Another address of the process that listens here, if that is visible and the address answers so.
fn other_port(address: SocketAddr, answers: fn(SocketAddr) -> bool) -> Option<String> {
    let address = destination(address);
    // A listener on 0.0.0.0 matches every address, but another machine's connections do not go to it.
    if !is_local(address) {
        return None;
    }
    let files = Files::system();
    let pid = listeners::process_at(&files, address).ok()??;
    let mut listens = listeners::of_process(&files, pid).ok()?.into_iter().map(destination);
    listens.find(|&other| other.port() != address.port() && answers(other)).map(|it| it.to_string())
}

/// Whether what listens speaks the clients' protocol.
fn takes_clients(address: SocketAddr) -> bool {
    takes_clients_within(address, PROBE_TIMEOUT)
}

/// Sends a heartbeat. Any whole frame in answer shows the protocol. The time is for all steps together, so that a
/// listener which sends a byte now and then can't prolong it.
fn takes_clients_within(address: SocketAddr, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    };
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, left()?).ok()?;
        let now = Instant::now();
        let mut client = Client::new(now);
        client.heartbeat(now);
        stream.set_write_timeout(Some(left()?)).ok()?;
        stream.write_all(client.outgoing()).ok()?;
        let (mut buffer, mut says) = ([0; 1024], false);
        while !says {
            stream.set_read_timeout(Some(left()?)).ok()?;
            let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
            client.receive(&buffer[..count], |_| says = true).ok()?;
        }
        Some(())
    };
    ask().is_some()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use tidegate_protocol::server;

    use super::*;

    #[test]
    fn a_listener_of_this_machine_is_not_found_at_another_machines_address() {
        let clients = TcpListener::bind("0.0.0.0:0").unwrap();
        let _operators = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = clients.local_addr().unwrap().port();
        let at = |ip: &str| format!("{ip}:{port}").parse().unwrap();
        let found = |ip: &str| other_port(at(ip), |_| true);
        for here in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "[::ffff:127.0.0.1]"] {
            assert!(found(here).is_some(), "{here}");
        }
        // Addresses for documentation, which no machine has.
        for elsewhere in ["192.0.2.1", "[::ffff:192.0.2.1]"] {
            assert_eq!(found(elsewhere), None, "{elsewhere}");
        }
        // A hint names this machine's default address for this machine alone.
        let hint = |ip: &str| other_port_or(ADMIN, at(ip), |_| false);
        assert_eq!(hint("127.0.0.1"), "127.0.0.1:7401");
        assert_eq!(hint("192.0.2.1"), "192.0.2.1:7401");
    }

    /// Whether a listener that sends this, with a pause after each byte, speaks the clients' protocol.
    fn says(frame: &[u8], pause: Duration, timeout: Duration) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                for byte in frame {
                    // The other side may have given up.
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(pause);
                }
                // A close with unread bytes would discard what was sent.
                drop(stream.read_to_end(&mut Vec::new()));
            });
            let takes = takes_clients_within(address, timeout);
            // It ends the thread where the time was over before the connection.
            drop(TcpStream::connect(address));
            takes
        })
    }

    #[test]
    fn an_answer_that_comes_byte_by_byte_has_one_deadline() {
        let mut frame = Vec::new();
        server::put_answer(&mut frame, 1, 1, &[7; 200]);
        assert!(says(&frame, Duration::ZERO, Duration::from_secs(3600)));
        // Each byte is in time, and the whole frame takes more than four seconds.
        assert!(!says(&frame, Duration::from_millis(20), Duration::from_millis(500)));
    }
}
