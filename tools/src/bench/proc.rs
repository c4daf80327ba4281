//! CPU time and memory of a process, read from `/proc`; whether it is the server that is measured.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tidegate_machine::files::{Cause, Files, Unread};
use tidegate_machine::network;

use super::source;
use crate::listener::{demand_any_listener, demand_listener};
use crate::stdout;

/// What to do where the process does not listen on an address of `--connect`.
const PID_HINT: &str = "Name the process that does with --pid, or leave --pid out: its CPU time and memory would \
     not be those of the server";

/// The length of a tick in `/proc/PID/stat`: `USER_HZ` is 100 on all of today's architectures.
const TICK_NS: u64 = 10_000_000;

/// How long a connect may take that only finds out whether anything listens.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What a process has used until now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// CPU time of its living threads, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// CPU time in user mode, in nanoseconds, exact to a tick.
    pub(super) user_ns: u64,
    /// CPU time in the kernel, in nanoseconds, exact to a tick.
    pub(super) system_ns: u64,
    /// Resident memory in bytes.
    pub(super) rss_bytes: u64,
}

/// Reads the usage of a process.
pub(super) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let (user_ns, system_ns) = stat(pid)?;
    // A kernel without CONFIG_SCHED_INFO has ticks only.
    let cpu_ns = schedstat(pid).unwrap_or(user_ns + system_ns);
    Ok(Usage { cpu_ns, user_ns, system_ns, rss_bytes: rss_bytes(pid)? })
}

/// Ensures that the process of `--pid` is the one that listens on all addresses of `--connect`.
///
/// Another user's process can't be inspected, although its figures can be read. Then this only reports that.
pub(super) fn demand_server(pid: u32, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let files = Files::system();
    let demand = || match network::is_own_namespace(&files, &pid.to_string())? {
        true => addresses.iter().try_for_each(|&to| demand_listener(&files, pid, to, PID_HINT)),
        // The way to a container may translate addresses, so the process may listen on another one.
        false => demand_any_listener(&files, pid).map(drop),
    };
    let failed = match demand() {
        Err(error) => error,
        demanded => return demanded,
    };
    match failed.downcast_ref::<Unread>() {
        Some(unread) if unread.cause == Cause::Denied => {
            stdout::print_stderr(&format!(
                "tide: whether process {pid} is the server is unknown: {unread}"
            ));
            Ok(())
        }
        _ => {
            addresses.iter().try_for_each(|&to| demand_any_server(to))?;
            Err(failed.context(format!("--pid {pid}")))
        }
    }
}

/// Ensures that something listens on an address. It connects, so it is for a run that fails in any case.
fn demand_any_server(address: SocketAddr) -> anyhow::Result<()> {
    match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Err(source::failed(address, None, error))
        }
        // What else goes wrong is not the first error of the run.
        _ => Ok(()),
    }
}

/// Resident memory in bytes.
pub(super) fn rss_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = read(pid, "status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| anyhow!("/proc/{pid}/status has no VmRSS: has the process ended?"))
}

/// The kernel's slab memory, which holds sockets; `None` where `/proc/meminfo` does not have it.
pub(super) fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix("Slab:"))?;
    Some(rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

fn schedstat(pid: u32) -> Option<u64> {
    let mut total_ns = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end between the listing and the read.
        let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else { continue };
        total_ns += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    (total_ns > 0).then_some(total_ns)
}

fn stat(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = read(pid, "stat")?;
    // The second field, the command's name in parentheses, may contain spaces and parentheses. The third
    // field follows the last parenthesis.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |field: usize| -> anyhow::Result<u64> {
        let text = rest.split_whitespace().nth(field - 3).context("/proc/PID/stat is too short")?;
        Ok(text.parse::<u64>()? * TICK_NS)
    };
    Ok((ticks(14)?, ticks(15)?))
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| {
        format!("cannot read {path}: --pid takes a running process, such as $(pidof -s tidegate)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0);
        assert!(usage.cpu_ns > 0);
    }
}
