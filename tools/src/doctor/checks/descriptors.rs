//! Descriptors of the process and of the machine, and access to those of io_uring.

use tidegate_machine::files::Reading;
use tidegate_machine::io_uring::Unavailable;
use tidegate_machine::{Machine, capacity};

use super::super::args::{DriverChoice, Role};
use super::super::driver::Driver;
use super::super::finding::{Amount, Judgement, Place, Verdict};
use super::super::plan::{
    Plan, RING_FILES_MAX, RING_FILL_PERCENT, RING_MAPPINGS, SPARE_FILES_CLIENT, WORKERS_MAX,
};
use super::super::running::Running;
use super::{Check, Impact, unless};
use crate::count::{counted, grouped};

pub(super) const CHECKS: [Check; 5] = [
    Check {
        name: "open-files",
        impact: Impact::Capacity,
        why: "RLIMIT_NOFILE bounds each table of descriptors: a ring's under io_uring, where more \
              rings help and cost CPU time, a thread's under epoll; the gateway raises the soft limit \
              to the hard one by itself.",
        judge: open_files,
    },
    Check {
        name: "nr-open",
        impact: Impact::Capacity,
        why: "Nobody, not even root, can raise RLIMIT_NOFILE above fs.nr_open.",
        judge: nr_open,
    },
    Check {
        name: "file-max",
        impact: Impact::Capacity,
        why: "fs.file-max counts the open files of the whole machine, direct descriptors of io_uring \
              and every thread's table included; only CAP_SYS_ADMIN may go beyond it.",
        judge: file_max,
    },
    Check {
        name: "io-uring",
        impact: Impact::Capacity,
        why: "Where a sysctl, a container's seccomp profile or a systemd unit forbids io_uring, the \
              gateway falls back to epoll, whose connections need plain descriptors.",
        judge: io_uring,
    },
    Check {
        name: "mappings",
        impact: Impact::Capacity,
        why: "Each ring maps its queues: many small rings, which a small RLIMIT_NOFILE asks for, run \
              into vm.max_map_count.",
        judge: mappings,
    },
];

/// A systemd unit's filter that allows io_uring.
const SYSTEM_CALL_FILTER: &str =
    "SystemCallFilter=@system-service @io-event io_uring_setup io_uring_enter io_uring_register";

/// Mappings of a process that do not belong to rings: libraries, heaps, stacks.
const SPARE_MAPPINGS: u64 = 2_000;

/// Files that other processes may open meanwhile.
const SPARE_FILES_MACHINE: u64 = 1_000;

/// Suggested limits are multiples of this.
const ROUND: u64 = 1_024;

/// The limit that the process reaches: the gateway and `tide bench` raise the soft limit to the hard one.
pub(super) fn limit(machine: &Machine) -> Reading<Option<u64>> {
    Ok(machine.process.files.clone()?.hard)
}

/// The limit that needs no further rings and no further shards.
fn comfortable(plan: &Plan) -> u64 {
    let needed = match (plan.question.role, plan.driver()) {
        (Role::Client, _) => plan.connections.div_ceil(WORKERS_MAX) + SPARE_FILES_CLIENT,
        (Role::Gateway, Driver::Epoll) => plan.connections_per_shard() + plan.plain_files(0),
        (Role::Gateway, Driver::Uring) => {
            let table = (plan.connections_per_shard() * 100).div_ceil(RING_FILL_PERCENT);
            table.min(RING_FILES_MAX).max(plan.plain_files(plan.shards()))
        }
    };
    needed.next_multiple_of(ROUND)
}

/// Whether the connections fit under a limit, and a text that says what they need.
fn fits(plan: &Plan, limit: u64) -> (Verdict, String) {
    let wanted = comfortable(plan);
    match (plan.question.role, plan.driver()) {
        (Role::Client, _) => fits_bench(plan, limit),
        (Role::Gateway, Driver::Epoll) => {
            let enough = capacity::connections_per_table(Some(limit), plan.shards())
                * plan.shards()
                >= plan.connections;
            let other = plan.fewest_shards(limit).filter(|_| !enough);
            let other = other
                .map_or_else(String::new, |shards| format!("; or {}", counted(shards, "shard")));
            let shards = counted(plan.shards(), "epoll shard");
            let wanted = grouped(wanted);
            let text = format!("{wanted} in each table, as {shards} can have one each{other}");
            (unless(enough, Verdict::TooSmall), text)
        }
        (Role::Gateway, Driver::Uring) => {
            let (rings, shards) = (plan.rings(Some(limit)), counted(plan.shards(), "shard"));
            let (has, plain) = (counted(rings, "ring"), plan.plain_files(rings));
            let (wanted, under) = (grouped(wanted), grouped(limit));
            let needed = counted(plain, "plain descriptor");
            let one_each = format!("{wanted} for one ring in each of {shards}");
            if plain > limit {
                let text = format!(
                    "{one_each}; with {under} there would be {has}, which need {needed} themselves"
                );
                (Verdict::TooSmall, text)
            } else if rings > plan.shards() && limit < RING_FILES_MAX {
                let text = format!(
                    "{one_each}; with {under} it is {has}: ten in a thread cost about 15 % more CPU time \
                     than one, fifty 20 %"
                );
                (Verdict::Note, text)
            } else {
                (Verdict::Ok, format!("{has} for {shards}, and {needed}"))
            }
        }
    }
}

/// The same for `tide bench`, whose workers have a table each.
fn fits_bench(plan: &Plan, limit: u64) -> (Verdict, String) {
    let workers = plan.workers(Some(limit));
    if limit > SPARE_FILES_CLIENT && workers <= WORKERS_MAX {
        let text =
            format!("{} of one `tide bench`, each with its own table", counted(workers, "worker"));
        return (Verdict::Ok, text);
    }
    let text = format!(
        "{} in each table of its {WORKERS_MAX} workers; or {} of `tide bench`, each with a --first-user of \
         its own",
        grouped(comfortable(plan)),
        grouped(workers.div_ceil(WORKERS_MAX))
    );
    (Verdict::TooSmall, text)
}

fn open_files(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let soft = machine.process.files.clone()?.soft;
    let Some(limit) = limit(machine)? else {
        let needs = Amount::number(comfortable(plan));
        return Ok(Some(Judgement::new(Verdict::Ok, Amount::text("unlimited"), needs)));
    };
    let (verdict, text) = fits(plan, limit);
    let soft = soft.map_or_else(|| "unlimited".to_owned(), grouped);
    let allows =
        Amount::with_text(limit, format!("{} in each table (soft limit {soft})", grouped(limit)));
    let wanted = comfortable(plan);
    let needs = Amount::with_text(wanted, text);
    let mut judgement = Judgement::new(verdict, allows, needs)
        .fix(Place::Systemd, format!("LimitNOFILE={wanted}"))
        .fix(Place::Limits, format!("tidegate - nofile {wanted}"))
        .fix(Place::Container, format!("--ulimit nofile={wanted}:{wanted}"));
    if plan.question.role == Role::Gateway
        && plan.driver() == Driver::Epoll
        && let Some(shards) = plan.fewest_shards(limit)
    {
        judgement = judgement.fix(Place::Tidegate, format!("shards = {shards}"));
    }
    Ok(Some(judgement))
}

fn nr_open(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let most = machine.nr_open.clone()?;
    let wanted = comfortable(plan);
    // A limit that is enough need not be raised. Another can be raised up to `most`.
    let reachable = limit(machine).unwrap_or(None).map_or(most, |limit| limit.max(most));
    let (verdict, _) = fits(plan, reachable);
    let judgement = Judgement::new(verdict, Amount::number(most), Amount::number(wanted))
        .fix(Place::Sysctl, format!("fs.nr_open = {wanted}"));
    Ok(Some(judgement))
}

fn file_max(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let (most, in_use) = (machine.file_max.clone()?, machine.files_in_use.clone()?);
    let rings = match plan.driver() {
        Driver::Epoll => 0,
        Driver::Uring => plan.rings(limit(machine).unwrap_or(None)),
    };
    let wanted = in_use + plan.connections + plan.plain_files(rings) + SPARE_FILES_MACHINE;
    let verdict = unless(most >= wanted, Verdict::TooSmall);
    let needs =
        Amount::with_text(wanted, format!("{}, open now: {}", grouped(wanted), grouped(in_use)));
    let judgement = Judgement::new(verdict, Amount::number(most), needs)
        .fix(Place::Sysctl, format!("fs.file-max = {}", wanted.next_multiple_of(ROUND)));
    Ok(Some(judgement))
}

fn io_uring(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let less = match (plan.question.role, plan.question.driver) {
        (Role::Client, _) | (_, DriverChoice::Epoll) => return Ok(None),
        (_, DriverChoice::Auto) => Verdict::Note,
        (_, DriverChoice::Uring) => Verdict::TooSmall,
    };
    let needs = Amount::text(match less {
        Verdict::TooSmall => "io_uring, as asked",
        _ => "io_uring, or epoll instead",
    });
    if let Some(running) = &plan.resolved.running {
        return Ok(as_running(running, less, needs));
    }
    let refused = |text: String| Judgement::new(less, Amount::text(text), needs.clone());
    let text = machine.io_uring().map_err(|unavailable| (unavailable.to_string(), unavailable));
    Ok(Some(match text {
        Ok(()) => Judgement::new(Verdict::Ok, Amount::text("works"), needs),
        Err((why, Unavailable::Unknown(_))) if less == Verdict::Note => {
            refused(format!("in doubt, so the rest is judged for epoll: {why}"))
        }
        Err((why, Unavailable::Unknown(_))) => {
            Judgement::new(Verdict::Unknown, Amount::text(why), needs)
        }
        Err((_, Unavailable::NotBuilt)) => {
            refused("the kernel was built without it (ENOSYS)".to_owned())
                .fix(Place::Tidegate, "driver = \"epoll\"")
        }
        Err((_, Unavailable::Disabled(value))) => {
            refused(format!("forbidden by kernel.io_uring_disabled = {value} (EPERM)"))
                .fix(Place::Sysctl, "kernel.io_uring_disabled = 0")
        }
        Err((_, Unavailable::Seccomp)) => refused("forbidden by a seccomp filter".to_owned())
            .fix(Place::Container, "--security-opt seccomp=sysctl/seccomp.json")
            .fix(Place::Systemd, SYSTEM_CALL_FILTER),
        Err((why, Unavailable::TooOld(_))) => {
            refused(why).fix(Place::Tidegate, "driver = \"epoll\"")
        }
        Err((why, Unavailable::Errno(_))) => refused(why),
    }))
}

/// What a running gateway says of io_uring. `None`: it was configured for epoll, and so it is asked for.
fn as_running(running: &Running, less: Verdict, needs: Amount) -> Option<Judgement> {
    let rings = counted(running.rings, "ring");
    Some(match (running.driver, &running.driver_refusal) {
        (Driver::Uring, _) => {
            Judgement::new(Verdict::Ok, Amount::text(format!("the gateway uses {rings}")), needs)
        }
        (Driver::Epoll, Some(why)) => Judgement::new(
            less,
            Amount::text(format!("the gateway could not use it: {why}")),
            needs,
        ),
        (Driver::Epoll, None) if less == Verdict::Note => return None,
        (Driver::Epoll, None) => {
            let text = "the gateway is configured for epoll, and has not tried";
            Judgement::new(Verdict::Unknown, Amount::text(text), needs)
                .fix(Place::Tidegate, "driver = \"uring\"")
        }
    })
}

fn mappings(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.driver() != Driver::Uring {
        return Ok(None);
    }
    let most = machine.map_count_max.clone()?;
    let rings = plan.rings(limit(machine).unwrap_or(None));
    let wanted = rings * RING_MAPPINGS + SPARE_MAPPINGS;
    let verdict = unless(most >= wanted, Verdict::TooSmall);
    let needs =
        Amount::with_text(wanted, format!("{} for {}", grouped(wanted), counted(rings, "ring")));
    let judgement = Judgement::new(verdict, Amount::number(most), needs)
        .fix(Place::Sysctl, format!("vm.max_map_count = {wanted}"));
    Ok(Some(judgement))
}

#[cfg(test)]
mod tests {
    use tidegate_machine::fixture::Tree;

    use super::super::super::args::Question;
    use super::super::super::finding::Finding;
    use super::super::super::tests::{question, running};
    use super::super::probing::{find, gateway, lines};
    use super::*;

    fn uring(count: u64, shards: u64, hard: &str) -> Finding {
        let change = |tree: &mut Tree| tree.open_files("1024", hard);
        find("open-files", count, change, |ask| ask.shards = Some(shards)).unwrap()
    }

    fn epoll(count: u64, shards: u64, hard: &str) -> Finding {
        let change = |tree: &mut Tree| tree.open_files("1024", hard);
        let ask = |ask: &mut super::super::super::args::Question| {
            (ask.driver, ask.shards) = (DriverChoice::Epoll, Some(shards));
        };
        find("open-files", count, change, ask).unwrap()
    }

    #[test]
    fn a_small_limit_costs_io_uring_rings_and_so_cpu_time() {
        let enough = uring(17_000, 1, "20480");
        assert_eq!(enough.verdict, Verdict::Ok);
        assert_eq!((enough.allows.value, enough.needs.value), (Some(20_480), Some(20_480)));
        let many = uring(1_000_000, 1, "20000");
        assert_eq!(many.verdict, Verdict::Note);
        assert!(many.needs.text.contains("59 rings"), "{many:?}");
        // A ring holds no more than 2^20, so no larger limit is proposed.
        assert!(lines(&many).contains(&"LimitNOFILE=1048576"), "{many:?}");
        assert_eq!(uring(1_000_000, 1, "1048576").verdict, Verdict::Ok);
        assert_eq!(uring(1_000_000, 1, "unlimited").verdict, Verdict::Ok);
    }

    #[test]
    fn rings_are_descriptors_too() {
        // 0.85 * 1024 = 870: 1150 rings, which don't fit under 1024 themselves.
        let too_many = uring(1_000_000, 1, "1024");
        assert_eq!(too_many.verdict, Verdict::TooSmall);
        assert!(too_many.needs.text.contains("1,218 plain descriptors"), "{too_many:?}");
        assert_eq!(uring(100_000, 1, "1024").verdict, Verdict::Note);
    }

    #[test]
    fn epoll_holds_a_table_for_each_shard() {
        // 64 descriptors and 4 for each shard are reserved.
        assert_eq!(epoll(1_000_000, 8, "125096").verdict, Verdict::Ok);
        let small = epoll(1_000_000, 8, "125095");
        assert_eq!(small.verdict, Verdict::TooSmall);
        assert!(lines(&small).contains(&"shards = 9"), "{small:?}");
        assert!(lines(&small).contains(&"LimitNOFILE=125952"), "{small:?}");
        // More than 256 shards are never proposed.
        let tiny = epoll(1_000_000, 8, "1024");
        assert!(!lines(&tiny).iter().any(|line| line.starts_with("shards")), "{tiny:?}");
        assert_eq!(epoll(1, 1, "64").verdict, Verdict::TooSmall);
    }

    #[test]
    fn a_client_has_a_table_for_each_worker() {
        let ask = |ask: &mut super::super::super::args::Question| ask.role = Role::Client;
        let client = |count, limit: &'static str| {
            find("open-files", count, move |tree| tree.open_files("256", limit), ask).unwrap()
        };
        // 48 of each table are reserved.
        let one = client(1_000, "1048");
        assert_eq!(one.verdict, Verdict::Ok);
        assert!(one.needs.text.contains("1 worker of one `tide bench`"), "{one:?}");
        let million = client(1_000_000, "20000");
        assert_eq!(million.verdict, Verdict::Ok);
        assert!(million.needs.text.contains("51 workers"), "{million:?}");
        // 512 workers of 1000.
        assert_eq!(client(512_000, "1048").verdict, Verdict::Ok);
        let many = client(512_001, "1048");
        assert_eq!(many.verdict, Verdict::TooSmall);
        assert!(many.needs.text.contains("2 of `tide bench`"), "{many:?}");
        assert!(lines(&many).contains(&"LimitNOFILE=2048"), "{many:?}");
        assert_eq!(client(1, "48").verdict, Verdict::TooSmall);
    }

    #[test]
    fn the_bound_on_the_limit_matters_where_the_limit_is_too_small() {
        let low = |tree: &mut Tree| {
            tree.open_files("1024", "4096");
            tree.set("proc/sys/fs/nr_open", "65536");
        };
        let uring = gateway("nr-open", 1_000_000, low);
        assert_eq!(uring.verdict, Verdict::Note);
        assert_eq!(lines(&uring), ["fs.nr_open = 147456"]);
        let epoll =
            find("nr-open", 1_000_000, low, |ask| ask.driver = DriverChoice::Epoll).unwrap();
        assert_eq!(epoll.verdict, Verdict::TooSmall);
        assert_eq!(lines(&epoll), ["fs.nr_open = 125952"]);
    }

    #[test]
    fn the_machines_files_hold_what_is_open_and_what_comes() {
        let short = gateway("file-max", 1_000_000, |t| t.set("proc/sys/fs/file-max", "1002103"));
        // 1000 open, a million, 64 + 4 * 8 + 8 rings, 1000 for others.
        assert_eq!(short.needs.value, Some(1_002_104));
        assert_eq!(short.verdict, Verdict::TooSmall);
        assert_eq!(lines(&short), ["fs.file-max = 1002496"]);
        let enough = gateway("file-max", 1_000_000, |t| t.set("proc/sys/fs/file-max", "1002104"));
        assert_eq!(enough.verdict, Verdict::Ok);
    }

    #[test]
    fn many_rings_need_many_mappings() {
        let low = |tree: &mut Tree| {
            tree.open_files("1024", "20000");
            tree.set("proc/sys/vm/max_map_count", "2255");
        };
        // 8 shards of 125000, 17000 a ring: 64 rings.
        let short = gateway("mappings", 1_000_000, low);
        assert_eq!((short.verdict, short.needs.value), (Verdict::TooSmall, Some(2_256)));
        assert_eq!(lines(&short), ["vm.max_map_count = 2256"]);
        let epoll = find("mappings", 10, |_| {}, |ask| ask.driver = DriverChoice::Epoll);
        assert!(epoll.is_none());
    }

    #[test]
    fn a_running_gateway_says_whether_it_could_use_io_uring() {
        let found = |running: Running, driver| {
            let machine = Tree::good().machine();
            let question = Question { driver, ..question() };
            let plan = Plan::new(10, question, &machine, Some(&running));
            io_uring(&machine, &plan).unwrap().map(|judged| (judged.verdict, judged.allows.text))
        };
        let uring = Running { driver: Driver::Uring, rings: 4, ..running() };
        let (verdict, text) = found(uring, DriverChoice::Auto).unwrap();
        assert!(verdict == Verdict::Ok && text.contains("4 rings"), "{text}");
        let refused = || Running { driver_refusal: Some("a reason".into()), ..running() };
        let (verdict, text) = found(refused(), DriverChoice::Auto).unwrap();
        assert!(verdict == Verdict::Note && text.contains("a reason"), "{text}");
        let (verdict, _) = found(refused(), DriverChoice::Uring).unwrap();
        assert_eq!(verdict, Verdict::TooSmall);
        assert_eq!(found(running(), DriverChoice::Auto), None);
        let (verdict, _) = found(running(), DriverChoice::Uring).unwrap();
        assert_eq!(verdict, Verdict::Unknown);
    }
}
