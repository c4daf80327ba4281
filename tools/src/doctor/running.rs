//! A gateway that runs: it is asked what it is, and nothing is derived from its command line or its threads.
//!
//! `--pid` or `--admin` names it. The process and the answer must belong together: the process listens on the
//! operators' address, and the answer names the process. Otherwise the limits of one gateway would be judged with
//! the settings of another.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tidegate_machine::files::Files;
use tidegate_machine::{listeners, network, process};

use super::args::DoctorArgs;
use super::driver::Driver;
use crate::listener::demand_listener;
use crate::operator::{ADMIN, Operator, destination, is_local};

/// What to do where the process does not listen on the operators' address.
const ADMIN_HINT: &str = "If it is a gateway, name its operators' address with --admin";

/// What a running gateway says of itself.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// Its process, as this PID namespace numbers it.
    pub(super) pid: u32,
    pub(super) version: String,
    pub(super) shards: u64,
    pub(super) driver: Driver,
    /// Why it does not use io_uring, where it would have.
    pub(super) driver_refusal: Option<String>,
    /// Rings of all shards.
    pub(super) rings: u64,
    pub(super) port: u16,
    /// Whether only this machine can connect to it.
    pub(super) on_loopback: bool,
    pub(super) heartbeat_interval: Duration,
    pub(super) connections_max: u64,
    /// What decides `connections_max`: see `tidegate_machine::capacity::Basis`.
    pub(super) connections_max_basis: String,
    pub(super) backlog: u64,
    pub(super) send_buffer_bytes: u64,
}

/// The answer to `GET /stats`, as far as it is used here.
#[derive(Deserialize)]
struct Stats {
    gateway: Gateway,
    totals: Totals,
}

#[derive(Deserialize)]
struct Gateway {
    version: String,
    pid: u32,
    listen: SocketAddr,
    driver: Driver,
    driver_refusal: Option<String>,
    connections_max: u64,
    connections_max_basis: String,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    shards: u64,
    session: Session,
    socket: Socket,
}

#[derive(Deserialize)]
struct Session {
    heartbeat_interval_ms: u64,
}

#[derive(Deserialize)]
struct Socket {
    backlog: u64,
    send_buffer_bytes: u64,
}

#[derive(Deserialize)]
struct Totals {
    rings: u64,
}

impl Running {
    /// Asks the gateway that the arguments name; `None` where they name none.
    ///
    /// # Errors
    /// When the process is not a gateway, the gateway does not answer, or the two do not belong together.
    pub(super) fn find(args: &DoctorArgs) -> Result<Option<Self>> {
        let files = Files::system();
        match (args.pid, &args.admin) {
            (None, None) => Ok(None),
            (Some(pid), admin) => {
                let admin = admin.as_deref().unwrap_or(ADMIN);
                demand_listener(&files, pid, resolve(admin)?, ADMIN_HINT)?;
                let operator = Operator::new(admin.to_owned(), args.token.clone());
                // A container's loopback is in the container's network namespace.
                let asked = network::within(&files, &pid.to_string(), || ask(&operator));
                let stats = asked.with_context(|| {
                    format!("process {pid} lives in another network namespace: run this as root, or in there")
                })??;
                demand_process(&files, pid, stats.gateway.pid, admin)?;
                Ok(Some(Self::new(pid, stats)))
            }
            (None, Some(admin)) => {
                let operator = Operator::new(admin.clone(), args.token.clone());
                let stats = ask(&operator)?;
                let pid = local_process(&files, admin, stats.gateway.pid)?;
                Ok(Some(Self::new(pid, stats)))
            }
        }
    }

    fn new(pid: u32, stats: Stats) -> Self {
        let Stats { gateway, totals } = stats;
        let Config { shards, session, socket } = gateway.config;
        Self {
            pid,
            version: gateway.version,
            shards,
            driver: gateway.driver,
            driver_refusal: gateway.driver_refusal,
            rings: totals.rings,
            port: gateway.listen.port(),
            on_loopback: gateway.listen.ip().to_canonical().is_loopback(),
            heartbeat_interval: Duration::from_millis(session.heartbeat_interval_ms),
            connections_max: gateway.connections_max,
            connections_max_basis: gateway.connections_max_basis,
            backlog: socket.backlog,
            send_buffer_bytes: socket.send_buffer_bytes,
        }
    }
}

fn ask(operator: &Operator) -> Result<Stats> {
    let answer = operator.get("/stats")?;
    serde_json::from_value(answer).context(
        "the gateway's /stats does not say what it runs with: is it of another version than this tide?",
    )
}

fn resolve(admin: &str) -> Result<SocketAddr> {
    let mut addresses =
        admin.to_socket_addrs().with_context(|| format!("can't resolve {admin}"))?;
    addresses.next().with_context(|| format!("{admin} has no address"))
}

/// Ensures that the gateway that answered is this process: while one gateway takes over from another, both listen
/// on the address.
fn demand_process(files: &Files, pid: u32, answered: u32, admin: &str) -> Result<()> {
    if process::innermost_pid(files, pid)? == answered {
        return Ok(());
    }
    bail!(
        "at {admin} process {answered} answers, and not process {pid}: does it take over from {pid}?"
    )
}

/// The process of the gateway that answered, which must run on this machine.
fn local_process(files: &Files, admin: &str, answered: u32) -> Result<u32> {
    let address = destination(resolve(admin)?);
    let listens = |pid| {
        let listens = listeners::of_process(files, pid).unwrap_or_default();
        listens.iter().any(|listener| listeners::serves(*listener, address))
    };
    // A listener on 0.0.0.0 matches another machine's address too, and process ids may be equal.
    let is_here = is_local(address);
    if is_here && listens(answered) {
        return Ok(answered);
    }
    // It may run in a separate PID namespace.
    let found = if is_here { listeners::process_at(files, address) } else { Ok(None) };
    let found = found.with_context(|| format!("which process listens on {admin} can't be read"))?;
    let pid = found.with_context(|| {
        format!(
            "a gateway answers at {admin}, but no process here listens there: run tide doctor on the gateway's \
             machine"
        )
    })?;
    demand_process(files, pid, answered, admin)?;
    Ok(pid)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_process_of_this_machine_is_not_taken_for_another_machines_gateway() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let pid = std::process::id();
        let found = |ip: &str| local_process(&Files::system(), &format!("{ip}:{port}"), pid);
        assert_eq!(found("127.0.0.1").unwrap(), pid);
        // An address for documentation, which no machine has. The process that answers there has the same id.
        let error = found("192.0.2.1").unwrap_err().to_string();
        assert!(error.contains("no process here listens there"), "{error}");
    }
}
