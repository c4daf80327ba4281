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

use crate::operator::{ADMIN, destination, takes_operators};

/// How long each step of a question may take. What listens has been reached before.
const STEP_TIMEOUT: Duration = Duration::from_secs(1);

/// A gateway's default address for clients.
const CLIENTS: &str = "127.0.0.1:7400";

/// The hint for an address that was to be the operators', if clients connect there.
pub(crate) fn is_for_clients(place: &str, address: SocketAddr) -> Option<String> {
    if !takes_clients(address) {
        return None;
    }
    let operators = operators_beside(address).unwrap_or_else(|| ADMIN.to_owned());
    Some(format!(
        "{place} is where a gateway's clients connect. Its operators' HTTP has an address of its own, which it prints \
         when it starts: try --admin {operators}"
    ))
}

/// The hint for an address that was to be the clients', if it is a gateway's operators' HTTP.
pub(crate) fn is_for_operators(place: &str, address: SocketAddr) -> Option<String> {
    if !takes_operators(address) {
        return None;
    }
    let clients = other_port(address, takes_clients).unwrap_or_else(|| CLIENTS.to_owned());
    Some(format!(
        "{place} is a gateway's operators' HTTP. Its clients have an address of their own, which it prints when it \
         starts: try --connect {clients}"
    ))
}

/// The operators' HTTP of the gateway whose clients connect here, if its process is visible.
pub(crate) fn operators_beside(clients: SocketAddr) -> Option<String> {
    other_port(clients, takes_operators)
}

/// Another address of the process that listens here, if that is visible and the address answers so.
fn other_port(address: SocketAddr, answers: fn(SocketAddr) -> bool) -> Option<String> {
    let files = Files::system();
    let pid = listeners::process_at(&files, address).ok()??;
    let mut listens = listeners::of_process(&files, pid).ok()?.into_iter().map(destination);
    listens.find(|&other| other.port() != address.port() && answers(other)).map(|it| it.to_string())
}

/// Whether what listens speaks the clients' protocol. Anything that it says about a heartbeat shows that.
fn takes_clients(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, STEP_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(STEP_TIMEOUT)).ok()?;
        let now = Instant::now();
        let mut client = Client::new(now);
        client.heartbeat(now);
        stream.write_all(client.outgoing()).ok()?;
        let (mut buffer, mut says) = ([0; 1024], false);
        while !says {
            let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
            client.receive(&buffer[..count], |_| says = true).ok()?;
        }
        Some(())
    };
    ask().is_some()
}
