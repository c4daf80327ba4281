//! CPUs, threads, and how packets are spread over CPUs.

use tidegate_machine::Machine;
use tidegate_machine::files::Reading;

use super::super::args::Role;
use super::super::finding::{Amount, Judgement, Place, Verdict};
use super::super::plan::{Plan, WORKERS_MAX};
use super::{Check, Impact, unless};
use crate::count::{counted, grouped};

pub(super) const CHECKS: [Check; 5] = [
    Check {
        name: "cpu-time",
        impact: Impact::Capacity,
        why: "Heartbeats come from idle connections too: a gateway that can't answer them in time \
              closes its connections as idle.",
        judge: cpu_time,
    },
    Check {
        name: "shards",
        impact: Impact::Cost,
        why: "A shard is a thread that never shares its work: more of them than CPUs take turns, fewer \
              leave CPUs to the kernel, the workers and nobody.",
        judge: shards,
    },
    Check {
        name: "threads",
        impact: Impact::Capacity,
        why: "Shards and workers, those of tide bench too, are threads, which RLIMIT_NPROC, the control group's pids.max, \
              kernel.threads-max and kernel.pid_max each bound.",
        judge: threads,
    },
    Check {
        name: "receive-queues",
        impact: Impact::Cost,
        why: "A network card's receive queue interrupts one CPU; with fewer queues than CPUs, and no \
              RPS, the kernel's part of all packets is done by few of them.",
        judge: receive_queues,
    },
    Check {
        name: "congestion-control",
        impact: Impact::Cost,
        why: "BBR paces every connection: without the fq queueing discipline each sending socket has a \
              separate timer, which costs CPU time.",
        judge: congestion_control,
    },
];

/// Threads beside shards and workers: main, signals, operators' HTTP, and some to spare.
const SPARE_THREADS: u64 = 16;

/// The longest heartbeat interval that clients keep to; they cap a longer one (PROTOCOL.md).
const HEARTBEAT_INTERVAL_MS_MAX: u64 = 300_000;

/// The share of the CPUs that the estimate may take, in percent. The rest is for bursts. An assumption.
const BUSY_PERCENT_MAX: f64 = 70.0;

fn cpu_time(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let (here, wanted) = (machine.cpus()?, plan.cpus());
    // A shard is one thread, however many CPUs there are.
    let cpus = f64::from(u32::try_from(plan.shards()).unwrap_or(u32::MAX)).min(here);
    let verdict = if wanted > cpus {
        Verdict::TooSmall
    } else {
        unless(wanted <= cpus * BUSY_PERCENT_MAX / 100.0, Verdict::Note)
    };
    let allows = Amount {
        value: Some(whole(cpus)),
        text: format!("{cpus:.1} CPUs{}", if cpus < here { ", one a shard" } else { "" }),
    };
    let needs = Amount {
        value: Some(whole(wanted.ceil())),
        text: format!(
            "at least {} CPUs for heartbeats and pushes, requests not counted (see the estimate)",
            grouped(format_args!("{wanted:.2}"))
        ),
    };
    let judgement = Judgement::new(verdict, allows, needs);
    // Heartbeats that take half of the CPUs leave the other half to requests.
    let seconds = plan.resolved.heartbeat_interval.as_secs_f64() * wanted / (cpus * 0.5);
    let interval_ms = whole((seconds * 1e3).ceil());
    if cpus < here {
        let shards =
            whole(wanted.ceil()).clamp(plan.shards() + 1, whole(here).max(plan.shards() + 1));
        return Ok(Some(judgement.fix(Place::Tidegate, format!("shards = {shards}"))));
    }
    if plan.question.pushes_per_second > 0.0 || interval_ms > HEARTBEAT_INTERVAL_MS_MAX {
        return Ok(Some(judgement));
    }
    let line = format!("session.heartbeat_interval_ms = {interval_ms}");
    Ok(Some(judgement.fix(Place::Tidegate, line)))
}

fn shards(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let cpus = machine.whole_cpus()?;
    let needs = Amount::with_text(plan.shards(), counted(plan.shards(), "shard"));
    let allows =
        Amount::with_text(cpus, format!("{} by affinity and quota", counted(cpus, "whole CPU")));
    let judgement = Judgement::new(unless(plan.shards() <= cpus, Verdict::Note), allows, needs);
    Ok(Some(judgement.fix(Place::Tidegate, format!("shards = {cpus}"))))
}

fn threads(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let limit = machine.process.files.clone().map_or(None, |limit| limit.hard);
    let wanted = match plan.question.role {
        // By default there is a worker for each CPU.
        Role::Gateway => plan.shards() + machine.whole_cpus()? + SPARE_THREADS,
        Role::Client => plan.workers(limit).min(WORKERS_MAX) + SPARE_THREADS,
    };
    let is_root = machine.process.status.clone()?.uid == 0;
    let processes = machine.process.processes.clone()?.soft;
    let bounds = [
        // The kernel does not apply it to root.
        (
            processes.filter(|_| !is_root),
            "RLIMIT_NPROC",
            Place::Systemd,
            format!("LimitNPROC={wanted}"),
        ),
        (
            machine.control_group.threads.clone()?,
            "pids.max",
            Place::Systemd,
            format!("TasksMax={wanted}"),
        ),
        (
            Some(machine.threads_max.clone()?),
            "kernel.threads-max",
            Place::Sysctl,
            format!("kernel.threads-max = {}", wanted + 4_096),
        ),
        (
            Some(machine.pid_max.clone()?),
            "kernel.pid_max",
            Place::Sysctl,
            format!("kernel.pid_max = {}", wanted + 4_096),
        ),
    ];
    let known = bounds
        .into_iter()
        .filter_map(|(bound, name, place, line)| Some((bound?, name, place, line)));
    let least = known.min_by_key(|(bound, ..)| *bound);
    let (bound, name, place, line) = least.expect("two of the bounds are always there");
    let verdict = unless(bound >= wanted, Verdict::TooSmall);
    let allows =
        Amount::with_text(bound, format!("{} ({name}, the least of its bounds)", grouped(bound)));
    let judgement = Judgement::new(verdict, allows, Amount::number(wanted));
    Ok(Some(judgement.fix(place, line)))
}

fn receive_queues(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    // What comes over loopback passes no network card.
    let on_loopback = plan.resolved.running.as_ref().is_some_and(|running| running.on_loopback);
    if plan.question.role == Role::Client || on_loopback {
        return Ok(None);
    }
    let interfaces = machine.network.interfaces.clone()?;
    let cpus = machine.whole_cpus()?;
    let wanted =
        Amount::with_text(cpus, format!("{}, one for each CPU, or RPS", counted(cpus, "queue")));
    let fewest = interfaces
        .iter()
        .filter(|interface| interface.spread_queues < interface.receive_queues)
        .min_by_key(|interface| interface.receive_queues);
    let Some(interface) = fewest else {
        let state = if interfaces.is_empty() { "loopback alone" } else { "RPS on every queue" };
        return Ok(Some(Judgement::new(Verdict::Ok, Amount::text(state), wanted)));
    };
    let (name, queues) = (&interface.name, interface.receive_queues);
    let allows = Amount::with_text(queues, format!("{queues} on {name}"));
    let mask = if cpus >= 64 { u64::MAX } else { (1 << cpus) - 1 };
    let judgement = Judgement::new(unless(queues >= cpus, Verdict::Note), allows, wanted)
        .fix(Place::Shell, format!("ethtool -L {name} combined {cpus}"))
        .fix(
            Place::Shell,
            format!(
                "for q in /sys/class/net/{name}/queues/rx-*; do echo {mask:x} > $q/rps_cpus; done"
            ),
        );
    Ok(Some(judgement))
}

fn congestion_control(machine: &Machine, _plan: &Plan) -> Reading<Option<Judgement>> {
    let algorithm = machine.network.congestion_control.clone()?;
    if algorithm != "bbr" {
        let needs = Amount::text("no pacing by the socket");
        return Ok(Some(Judgement::new(Verdict::Ok, Amount::text(algorithm), needs)));
    }
    let discipline = machine.default_qdisc.clone()?;
    let verdict = unless(discipline == "fq", Verdict::Note);
    let allows = Amount::text(format!("{algorithm} with {discipline} as default discipline"));
    let judgement = Judgement::new(verdict, allows, Amount::text("fq under bbr, or cubic"))
        .fix(Place::Sysctl, "net.core.default_qdisc = fq")
        .fix(Place::Sysctl, "net.ipv4.tcp_congestion_control = cubic");
    Ok(Some(judgement))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
const fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::running::Running;
    use super::super::super::tests::{question, running};
    use super::super::judge;
    use super::super::probing::{find, gateway, lines};
    use super::*;
    use tidegate_machine::fixture::Tree;

    #[test]
    fn heartbeats_have_the_time_they_take() {
        // 1,000,000 * 8.2 us = 8.2 CPU seconds for all, on 8 CPUs.
        let every = |ms: u64| {
            let ask = |ask: &mut super::super::super::args::Question| {
                ask.heartbeat_interval = Some(Duration::from_millis(ms));
            };
            find("cpu-time", 1_000_000, |_| {}, ask).unwrap()
        };
        assert_eq!(every(1_000).verdict, Verdict::TooSmall);
        assert_eq!(every(1_100).verdict, Verdict::Note);
        assert_eq!(every(1_500).verdict, Verdict::Ok);
        assert_eq!(lines(&every(1_000)), ["session.heartbeat_interval_ms = 2050"]);
        // Clients cap the interval at five minutes.
        let most = find("cpu-time", 4_000_000_000, |_| {}, |_| {}).unwrap();
        assert_eq!((most.verdict, lines(&most)), (Verdict::TooSmall, vec![]));
        let pushed = find("cpu-time", 1_000_000, |_| {}, |ask| ask.pushes_per_second = 1.1);
        assert_eq!(pushed.unwrap().verdict, Verdict::TooSmall);
    }

    #[test]
    fn a_shard_uses_one_cpu() {
        // 8.2 CPU seconds every three, on one of 8 CPUs.
        let found = find(
            "cpu-time",
            1_000_000,
            |_| {},
            |ask| {
                (ask.heartbeat_interval, ask.shards) = (Some(Duration::from_secs(3)), Some(1));
            },
        );
        let found = found.unwrap();
        assert_eq!((found.verdict, found.allows.value), (Verdict::TooSmall, Some(1)));
        assert_eq!(lines(&found), ["shards = 3"]);
    }

    #[test]
    fn a_quota_counts_like_missing_cpus() {
        let quota = |tree: &mut Tree| {
            tree.set("sys/fs/cgroup/system.slice/tidegate.service/cpu.max", "250000 100000");
        };
        let found = find("shards", 1, quota, |ask| ask.shards = Some(3)).unwrap();
        assert_eq!((found.verdict, found.allows.value), (Verdict::Note, Some(2)));
        assert_eq!(lines(&found), ["shards = 2"]);
        assert_eq!(gateway("shards", 1, quota).verdict, Verdict::Ok);
        let older = |tree: &mut Tree| {
            tree.set("proc/self/cgroup", "2:cpu,cpuacct:/\n");
            let mount = "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct";
            tree.set("proc/self/mountinfo", mount);
            tree.set("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000");
            tree.set("sys/fs/cgroup/cpu/cpu.cfs_period_us", "50000");
        };
        assert_eq!(gateway("shards", 1, older).allows.value, Some(2));
    }

    #[test]
    fn threads_have_the_least_of_four_bounds() {
        // 8 shards, 8 workers, 16 others.
        let group = |tree: &mut Tree| {
            tree.set("sys/fs/cgroup/system.slice/tidegate.service/pids.max", "31");
        };
        let found = gateway("threads", 1, group);
        assert_eq!((found.verdict, found.needs.value), (Verdict::TooSmall, Some(32)));
        assert_eq!(lines(&found), ["TasksMax=32"]);
        // RLIMIT_NPROC does not apply to root.
        let few = "Max processes  31  31  processes\nMax open files  9  1048576  files";
        assert_eq!(gateway("threads", 1, |t| t.set("proc/self/limits", few)).verdict, Verdict::Ok);
        let user = gateway("threads", 1, |tree| {
            tree.set("proc/self/limits", few);
            tree.status("Uid:\t0\t0\t0\t0", "Uid:\t7\t7\t7\t7");
        });
        assert_eq!(user.verdict, Verdict::TooSmall);
        let pids = gateway("threads", 1, |tree| tree.set("proc/sys/kernel/pid_max", "31"));
        assert_eq!(lines(&pids), ["kernel.pid_max = 4128"]);
    }

    #[test]
    fn a_card_has_a_queue_for_each_cpu_or_software_spreads_them() {
        let single = |tree: &mut Tree| {
            for queue in 1..8 {
                tree.remove(&format!("sys/class/net/eth0/queues/rx-{queue}"));
            }
        };
        let found = gateway("receive-queues", 1, single);
        assert_eq!((found.verdict, found.allows.value), (Verdict::Note, Some(1)));
        assert!(lines(&found)[1].contains("echo ff >"), "{found:?}");
        let spread = gateway("receive-queues", 1, |tree| {
            single(tree);
            tree.set("sys/class/net/eth0/queues/rx-0/rps_cpus", "00000000,000000ff");
        });
        assert_eq!(spread.verdict, Verdict::Ok);
    }

    #[test]
    fn a_gateway_that_listens_on_loopback_alone_gets_no_advice_on_network_cards() {
        let mut tree = Tree::good();
        tree.remove("sys/class/net/eth0/queues/rx-1");
        let machine = tree.machine();
        let names_cards = |on_loopback| {
            let running = Running { on_loopback, ..running() };
            let plan = Plan::new(1, question(), &machine, Some(&running));
            let mut judged = judge(&machine, &plan).into_iter();
            judged.any(|judged| judged.finding.check == "receive-queues")
        };
        assert!(names_cards(false) && !names_cards(true));
    }

    #[test]
    fn interfaces_that_are_down_or_virtual_beside_a_device_do_not_count() {
        let others = |tree: &mut Tree| {
            tree.set("proc/self/net/dev", "h|\nh|\n lo: 0\n eth0: 0\n ifb0: 0\n veth1: 0\n");
            for (name, flags) in [("ifb0", "0x82"), ("veth1", "0x1003")] {
                tree.set(&format!("sys/class/net/{name}/type"), "1");
                tree.set(&format!("sys/class/net/{name}/flags"), flags);
                tree.set(&format!("sys/class/net/{name}/queues/rx-0/rps_cpus"), "0");
            }
        };
        assert_eq!(gateway("receive-queues", 1, others).verdict, Verdict::Ok);
        let container = gateway("receive-queues", 1, |tree| {
            others(tree);
            tree.remove("sys/class/net/eth0/device");
        });
        assert_eq!((container.verdict, container.allows.value), (Verdict::Note, Some(1)));
        let none = gateway("receive-queues", 1, |tree| tree.set("proc/self/net/dev", "lo: 0"));
        assert_eq!(none.allows.text, "loopback alone");
    }

    #[test]
    fn bbr_wants_fq() {
        let bbr = |tree: &mut Tree| tree.set("proc/sys/net/ipv4/tcp_congestion_control", "bbr");
        assert_eq!(gateway("congestion-control", 1, bbr).verdict, Verdict::Ok);
        let without = gateway("congestion-control", 1, |tree| {
            bbr(tree);
            tree.set("proc/sys/net/core/default_qdisc", "pfifo_fast");
        });
        assert_eq!(without.verdict, Verdict::Note);
        assert_eq!(lines(&without)[0], "net.core.default_qdisc = fq");
    }
}
