//! CPU time and memory of a process, as the kernel keeps them under `/proc`.

use std::fs;

use anyhow::{Context, anyhow};

/// Length of a tick in `/proc/PID/stat`: `USER_HZ` is 100 wherever Linux runs today.
const TICK_NS: u64 = 10_000_000;

/// What a process had used at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// CPU time of its living threads, in nanoseconds.
    pub(super) cpu_ns: u64,
    /// CPU time in user mode, in nanoseconds but to the tick.
    pub(super) user_ns: u64,
    /// CPU time in the kernel, in nanoseconds but to the tick.
    pub(super) system_ns: u64,
    /// Resident memory in bytes.
    pub(super) rss_bytes: u64,
}

/// Looks at a process.
pub(super) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let (user_ns, system_ns) = stat(pid)?;
    // Without CONFIG_SCHED_INFO there are only ticks.
    let cpu_ns = schedstat(pid).unwrap_or(user_ns + system_ns);
    Ok(Usage { cpu_ns, user_ns, system_ns, rss_bytes: rss_bytes(pid)? })
}

/// Resident memory in bytes.
pub(super) fn rss_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = read(pid, "status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).ok_or_else(|| anyhow!("process {pid} states no resident memory"))
}

/// What the kernel keeps in slabs, which is where sockets are; `None` where it doesn't say.
pub(super) fn slab_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix("Slab:"))?;
    Some(rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

fn schedstat(pid: u32) -> Option<u64> {
    let mut total_ns = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread can end between the listing and the look.
        let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else { continue };
        total_ns += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    (total_ns > 0).then_some(total_ns)
}

fn stat(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = read(pid, "stat")?;
    // The command's name, in parentheses, may hold anything; the third field follows it.
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
        format!("cannot read {path}: --pid takes a process that runs, as $(pidof -s tidegate)")
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
