//! Places: how many connections the gateway lets in.

use super::super::args::Role;
use super::super::finding::{Amount, Judgement, Place, Verdict};
use super::super::machine::{Machine, Reading, Setting};
use super::super::plan::{Driver, Plan};
use super::descriptors::limit;
use super::{Check, Stakes, unless};
use crate::count::grouped;

/// The check that finds a key which has to be set, on a machine that has room.
pub(in crate::doctor) const CONNECTIONS_MAX: &str = "connections-max";

pub(super) const CHECKS: [Check; 1] = [Check {
    name: CONNECTIONS_MAX,
    stakes: Stakes::Holding,
    why: "The gateway stops accepting at limits.connections_max. At its default, 0, a gateway on epoll \
          holds what one table of descriptors allows, and only a larger number has each shard take a \
          table of its own; one on io_uring holds what its memory allows.",
    judge: connections_max,
}];

/// Memory that the gateway reckons with for each connection where it is told no number, in bytes.
const PLACE_BYTES: u64 = 6 * 1_024;

/// Connections that the gateway has numbers for.
const PLACES_MAX: u64 = 1 << 26;

/// What the gateway takes for 0, why, in words, and what lets more in.
fn connections_by_default(
    machine: &Machine,
    plan: &Plan,
) -> Reading<(u64, &'static str, (Place, String))> {
    let mut mend = more_places(plan);
    let (most, why) = match plan.driver {
        Driver::Epoll => {
            let limit = limit(machine)?.unwrap_or(u64::MAX);
            let why = "what one table of descriptors leaves, for all shards together";
            (Plan::table_room(limit, plan.shards), why)
        }
        Driver::Uring => {
            let machines = machine.memory_total_bytes.clone()?;
            // As the gateway does: what it can't read of its group does not count.
            let (bytes, why) = match machine.control_group.memory_max_bytes.clone().unwrap_or(None)
            {
                Some(groups) if groups < machines => {
                    // To let in more than there is memory for would only end it.
                    let bytes = plan.connections * PLACE_BYTES;
                    mend = (Place::Systemd, format!("MemoryMax={bytes}"));
                    (groups, "6 KiB of its control group's memory each")
                }
                _ => (machines, "6 KiB of the machine's memory each"),
            };
            ((bytes / PLACE_BYTES).max(1), why)
        }
    };
    Ok((most.min(PLACES_MAX), why, mend))
}

fn more_places(plan: &Plan) -> (Place, String) {
    (Place::Tidegate, format!("limits.connections_max = {}", plan.connections))
}

/// Whether the gateway's own bound lets them in. Where it isn't known, its default is taken, and what
/// that leaves out is only noted: whoever reads it can still set another.
fn connections_max(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let number = |text: &str| text.replace('_', "").parse::<u64>().ok();
    let (set, less, whose) = match &plan.connections_max {
        Some(Setting::Set(text)) => match number(text) {
            Some(number) => (number, Verdict::TooSmall, "as it was told".to_owned()),
            None => (0, Verdict::Note, format!("assumed, as it was told {text}")),
        },
        Some(Setting::Default) => (0, Verdict::TooSmall, "its default".to_owned()),
        Some(Setting::File(file)) => {
            (0, Verdict::Note, format!("assumed: {file}, which it has read, may set another"))
        }
        Some(Setting::Unknown(unread)) => (0, Verdict::Note, format!("assumed: {unread}")),
        // What it will be told is not known here.
        None => (0, Verdict::Note, "its default".to_owned()),
    };
    let (most, text, (place, line)) = if set > 0 {
        (set, format!("{} ({whose})", grouped(set)), more_places(plan))
    } else {
        let (most, why, mend) = connections_by_default(machine, plan)?;
        let to_be_set = plan.connections_max.is_none() && most < plan.connections;
        let end = if to_be_set { "; it has to be set" } else { "" };
        (most, format!("{} at 0 ({whose}): {why}{end}", grouped(most)), mend)
    };
    let wanted = plan.connections;
    let needs = Amount::told(wanted, format!("{} or more", grouped(wanted)));
    let judgement = Judgement::new(unless(most >= wanted, less), Amount::told(most, text), needs);
    Ok(Some(judgement.mend(place, line)))
}

#[cfg(test)]
mod tests {
    use super::super::super::args::DriverChoice;
    use super::super::super::fixture::{Tree, question};
    use super::super::probing::{find, lines};
    use super::*;

    #[test]
    fn by_default_a_gateway_on_epoll_holds_one_table() {
        let found = |count, driver| {
            let small = |tree: &mut Tree| tree.open_files("64", "1000");
            find("connections-max", count, small, |ask| {
                (ask.driver, ask.shards) = (driver, Some(9));
            })
            .unwrap()
        };
        // 64 and 4 for each of 9 shards are no connections.
        assert_eq!(found(900, DriverChoice::Epoll).verdict, Verdict::Ok);
        let more = found(901, DriverChoice::Epoll);
        assert_eq!((more.verdict, more.allows.value), (Verdict::Note, Some(900)));
        assert_eq!(lines(&more), ["limits.connections_max = 901"]);
        // Connections of io_uring are no descriptors: 64 GiB, 6 KiB each.
        let uring = found(1_000_000, DriverChoice::Uring);
        assert_eq!((uring.verdict, uring.allows.value), (Verdict::Ok, Some(11_184_810)));
        let grouped = |tree: &mut Tree| {
            tree.set("sys/fs/cgroup/system.slice/memory.max", "6144000");
        };
        let uring = find("connections-max", 1_001, grouped, |ask| ask.driver = DriverChoice::Uring);
        let uring = uring.unwrap();
        assert_eq!((uring.verdict, uring.allows.value), (Verdict::Note, Some(1_000)));
        assert_eq!(lines(&uring), ["MemoryMax=6150144"]);
    }

    #[test]
    fn what_a_running_gateway_was_told_bounds_it() {
        let found = |setting| {
            let machine = Tree::good().machine();
            let mut plan = Plan::new(5_000, question(), &machine);
            (plan.driver, plan.connections_max) = (Driver::Epoll, Some(setting));
            let judged = connections_max(&machine, &plan).unwrap().unwrap();
            (judged.verdict, judged.allows.value)
        };
        let set = |text: &str| Setting::Set(text.to_owned());
        assert_eq!(found(set("5_000")), (Verdict::Ok, Some(5_000)));
        assert_eq!(found(set("4999")), (Verdict::TooSmall, Some(4_999)));
        // 2^20 less 64 and 4 for each of 8 shards.
        assert_eq!(found(set("0")), (Verdict::Ok, Some(1_048_480)));
        assert_eq!(found(Setting::Default), (Verdict::Ok, Some(1_048_480)));
        assert_eq!(found(Setting::File("t.toml".into())), (Verdict::Ok, Some(1_048_480)));
    }
}
