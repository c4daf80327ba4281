//! Memory of the machine and of a control group, and how much of it TCP may use.

use tidegate_machine::Machine;
use tidegate_machine::files::Reading;

use super::super::args::Role;
use super::super::finding::{Amount, Judgement, Place, Verdict, bytes_text};
use super::super::plan::Plan;
use super::{Check, Impact, unless};
use crate::count::{counted, grouped};

pub(super) const CHECKS: [Check; 3] = [
    Check {
        name: "memory",
        impact: Impact::Capacity,
        why: "An idle connection costs the kernel some kilobytes that can't be swapped out, and a \
              control group's limit counts them too.",
        judge: memory,
    },
    Check {
        name: "tcp-mem",
        impact: Impact::Cost,
        why: "Idle connections charge nothing to tcp_mem, but one with anything queued charges at least \
              a page; beyond the pressure mark windows shrink, beyond the maximum sends wait and received \
              segments are dropped.",
        judge: tcp_mem,
    },
    Check {
        name: "send-buffer",
        impact: Impact::Cost,
        why: "The gateway caps what a phone that doesn't read can hold with SO_SNDBUF, which the kernel \
              silently cuts to net.core.wmem_max: less room means more waiting in the gateway.",
        judge: send_buffer,
    },
];

/// The share of the memory that idle connections may take, in percent. The rest is for what they queue. An
/// assumption.
const IDLE_PERCENT_MAX: u64 = 80;

/// Memory that the process can still get: the machine's or its control group's, whichever is less.
fn available(machine: &Machine) -> Reading<(u64, &'static str)> {
    let free = machine.memory_bytes.clone()?;
    Ok(match machine.control_group.memory_bytes.clone()? {
        Some(left) if left < free => (left, "left in its control group"),
        _ => (free, "available"),
    })
}

fn memory(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let (bytes, whose) = available(machine)?;
    let limit = machine.process.files.clone().map_or(None, |limit| limit.hard);
    let wanted = plan.memory_bytes(limit);
    let verdict = if wanted > bytes {
        Verdict::TooSmall
    } else {
        unless(wanted <= bytes / 100 * IDLE_PERCENT_MAX, Verdict::Note)
    };
    let allows = Amount::with_text(bytes, format!("{} {whose}", bytes_text(bytes)));
    let needs = Amount::with_text(wanted, format!("{} while idle", bytes_text(wanted)));
    let judgement = Judgement::new(verdict, allows, needs);
    if whose == "available" {
        return Ok(Some(judgement));
    }
    // A quarter more than idle connections take.
    let mib = (wanted / 4 * 5).div_ceil(1 << 20);
    let judgement = judgement.fix(Place::Systemd, format!("MemoryMax={mib}M"));
    Ok(Some(judgement.fix(Place::Container, format!("--memory {mib}m"))))
}

fn tcp_mem(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let [_, pressure, most] = machine.tcp_mem.clone()?;
    let wanted = plan.connections;
    let verdict = unless(pressure >= wanted, Verdict::Note);
    let allows = Amount::with_text(
        pressure,
        format!("{} before pressure, {} at most", counted(pressure, "page"), grouped(most)),
    );
    let needs = Amount::with_text(
        wanted,
        format!(
            "{} when every connection has unacknowledged data, as after a push to all",
            counted(wanted, "page")
        ),
    );
    let judgement = Judgement::new(verdict, allows, needs);
    // The kernel's own proportions are 3 : 4 : 6.
    let line = format!("net.ipv4.tcp_mem = {} {wanted} {}", wanted * 3 / 4, wanted * 3 / 2);
    Ok(Some(judgement.fix(Place::Sysctl, line)))
}

fn send_buffer(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let most = machine.network.wmem_max.clone()?;
    let wanted = plan.resolved.send_buffer_bytes;
    let verdict = unless(most >= wanted, Verdict::Note);
    let judgement = Judgement::new(verdict, Amount::bytes(most), Amount::bytes(wanted));
    Ok(Some(judgement.fix(Place::Sysctl, format!("net.core.wmem_max = {wanted}"))))
}

#[cfg(test)]
mod tests {
    use super::super::super::finding::Finding;
    use super::super::probing::{gateway, lines};
    use super::*;
    use tidegate_machine::fixture::Tree;

    /// A million connections under 4.5 GiB of io_uring, 8 rings.
    const NEED: u64 = 1_000_000 * (3_670 + 870 + 256) + 8 * 413_000;

    fn with_memory(kib: u64) -> Finding {
        let text = format!("MemTotal: 1 kB\nMemAvailable: {kib} kB\n");
        gateway("memory", 1_000_000, |tree| tree.set("proc/meminfo", &text))
    }

    #[test]
    fn idle_connections_fit_with_room_for_what_they_queue() {
        assert_eq!(with_memory(NEED / 1_024).verdict, Verdict::TooSmall);
        let tight = with_memory(NEED / 1_024 + 1);
        assert_eq!((tight.verdict, tight.needs.value), (Verdict::Note, Some(NEED)));
        assert_eq!(with_memory(NEED / 1_024 * 100 / 79).verdict, Verdict::Ok);
    }

    #[test]
    fn a_control_group_of_version_2_counts_and_so_does_one_above_it() {
        let group = |own: &'static str, above: &'static str| {
            gateway("memory", 1_000_000, move |tree: &mut Tree| {
                let at = |path: &str, name: &str| format!("sys/fs/cgroup/{path}/{name}");
                for (path, max) in [("system.slice/tidegate.service", own), ("system.slice", above)]
                {
                    tree.set(&at(path, "memory.max"), max);
                    tree.set(&at(path, "memory.current"), "3000000");
                    tree.set(&at(path, "memory.stat"), "anon 5\ninactive_file 1000000");
                }
            })
        };
        assert_eq!(group("max", "max").verdict, Verdict::Ok);
        let own = group("1000000000", "max");
        assert_eq!((own.verdict, own.allows.value), (Verdict::TooSmall, Some(998_000_000)));
        assert!(lines(&own)[0].starts_with("MemoryMax="), "{own:?}");
        assert_eq!(group("max", "900000000").allows.value, Some(898_000_000));
        assert_eq!(group("lots", "max").verdict, Verdict::Unknown);
    }

    #[test]
    fn a_control_group_of_version_1_counts() {
        let group = |limit: &'static str| {
            gateway("memory", 1_000_000, move |tree: &mut Tree| {
                tree.set("proc/self/cgroup", "4:memory:/docker/abc\n0::/\n");
                // A namespace that shows the group as its root.
                let mount =
                    "30 23 0:26 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
                tree.set("proc/self/mountinfo", mount);
                tree.set("sys/fs/cgroup/memory/memory.limit_in_bytes", limit);
                tree.set("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000");
                tree.set("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1000");
            })
        };
        assert_eq!(group("9223372036854771712").verdict, Verdict::Ok);
        assert_eq!(group("1000000").allows.value, Some(996_000));
    }

    #[test]
    fn a_page_for_each_is_free_of_pressure() {
        let mem = |text: &'static str| {
            gateway("tcp-mem", 1_000_000, move |t: &mut Tree| {
                t.set("proc/sys/net/ipv4/tcp_mem", text);
            })
        };
        assert_eq!(mem("1 1000000 1000001").verdict, Verdict::Ok);
        let small = mem("287901 383869 575802");
        assert_eq!((small.verdict, small.allows.value), (Verdict::Note, Some(383_869)));
        assert_eq!(lines(&small), ["net.ipv4.tcp_mem = 750000 1000000 1500000"]);
    }

    #[test]
    fn the_requested_send_buffer_is_granted() {
        let small =
            gateway("send-buffer", 1, |tree| tree.set("proc/sys/net/core/wmem_max", "65535"));
        assert_eq!(small.verdict, Verdict::Note);
        assert_eq!(lines(&small), ["net.core.wmem_max = 65536"]);
    }
}
