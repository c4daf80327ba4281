//! How many connections the gateway accepts.

use tidegate_machine::Machine;
use tidegate_machine::capacity::{Basis, CONNECTION_BYTES, ConnectionsMax};
use tidegate_machine::files::Reading;
use tidegate_machine::memory::Source;

use super::super::args::Role;
use super::super::driver::Driver;
use super::super::finding::{Amount, Judgement, Place, Verdict};
use super::super::plan::Plan;
use super::super::running::Running;
use super::descriptors::limit;
use super::{Check, Impact, unless};
use crate::count::grouped;

/// The check that finds a key which has to be set although the machine has room.
pub(in crate::doctor) const CONNECTIONS_MAX: &str = "connections-max";

pub(super) const CHECKS: [Check; 1] = [Check {
    name: CONNECTIONS_MAX,
    impact: Impact::Capacity,
    why: "The gateway stops accepting at limits.connections_max. At its default, 0, a gateway on epoll \
          holds what one table of descriptors allows, and only a larger number has each shard take a \
          table of its own; one on io_uring holds what its memory allows.",
    judge: connections_max,
}];

/// Whether the gateway accepts that many. A running gateway's own number decides. A predicted default is only noted,
/// since the configuration can set another number.
fn connections_max(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let (max, less, text) = match &plan.resolved.running {
        Some(running) if applies(running, plan) => {
            let why = explain(&running.connections_max_basis);
            let text = format!("{} ({why})", grouped(running.connections_max));
            (running.connections_max, Verdict::TooSmall, text)
        }
        _ => {
            let default = default_max(machine, plan)?;
            let enough = default.connections >= plan.connections;
            let end = if enough { "" } else { "; it has to be set" };
            let why = explain(default.basis.name());
            let text = format!("{} at its default: {why}{end}", grouped(default.connections));
            (default.connections, Verdict::Note, text)
        }
    };
    let wanted = plan.connections;
    let needs = Amount::with_text(wanted, format!("{} or more", grouped(wanted)));
    let judgement =
        Judgement::new(unless(max >= wanted, less), Amount::with_text(max, text), needs);
    let (place, line) = fix(machine, plan)?;
    Ok(Some(judgement.fix(place, line)))
}

/// Whether a running gateway's number holds for the question. A default depends on shards and driver, which the
/// question may name otherwise.
fn applies(running: &Running, plan: &Plan) -> bool {
    running.connections_max_basis == Basis::Configured.name()
        || (running.shards, running.driver) == (plan.shards(), plan.driver())
}

/// What the gateway takes for 0.
fn default_max(machine: &Machine, plan: &Plan) -> Reading<ConnectionsMax> {
    Ok(match plan.driver() {
        Driver::Epoll => ConnectionsMax::epoll_default(limit(machine)?, plan.shards()),
        Driver::Uring => ConnectionsMax::uring_default(machine.memory_limit()?),
    })
}

/// A basis in words; a newer gateway may have others.
fn explain(basis: &str) -> &str {
    let known = [
        (Basis::Configured, "as configured"),
        (Basis::Descriptors, "what one table of descriptors has room for, all shards together"),
        (Basis::Memory(Source::Machine), "6 KiB of the machine's memory each"),
        (Basis::Memory(Source::ControlGroup), "6 KiB of its control group's memory each"),
        (Basis::Addressing, "a gateway can address no more"),
    ];
    known.iter().find(|(known, _)| known.name() == basis).map_or(basis, |(_, words)| words)
}

/// The line that makes it accept more. Where its control group has no memory for them, a larger
/// `limits.connections_max` would only get the gateway killed.
fn fix(machine: &Machine, plan: &Plan) -> Reading<(Place, String)> {
    let bytes = plan.connections * CONNECTION_BYTES;
    if plan.driver() == Driver::Uring {
        let limit = machine.memory_limit()?;
        if limit.source == Source::ControlGroup && limit.bytes < bytes {
            return Ok((Place::Systemd, format!("MemoryMax={bytes}")));
        }
    }
    Ok((Place::Tidegate, format!("limits.connections_max = {}", plan.connections)))
}

#[cfg(test)]
mod tests {
    use super::super::super::args::{DriverChoice, Question};
    use super::super::super::tests::{question, running};
    use tidegate_machine::fixture::Tree;

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
        // 64 descriptors and 4 for each of 9 shards are reserved.
        assert_eq!(found(900, DriverChoice::Epoll).verdict, Verdict::Ok);
        let more = found(901, DriverChoice::Epoll);
        assert_eq!((more.verdict, more.allows.value), (Verdict::Note, Some(900)));
        assert_eq!(lines(&more), ["limits.connections_max = 901"]);
        // With io_uring, memory decides: 64 GiB, 6 KiB each.
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
    fn what_a_running_gateway_says_bounds_it() {
        let found = |connections, running: Running, ask: fn(&mut Question)| {
            let machine = Tree::good().machine();
            let mut question = question();
            ask(&mut question);
            let plan = Plan::new(connections, question, &machine, Some(&running));
            let judged = connections_max(&machine, &plan).unwrap().unwrap();
            (judged.verdict, judged.allows.value)
        };
        let as_it_is = |_: &mut Question| {};
        assert_eq!(found(1_000, running(), as_it_is), (Verdict::Ok, Some(1_000)));
        assert_eq!(found(1_001, running(), as_it_is), (Verdict::TooSmall, Some(1_000)));
        // Its default depends on the shards: 2^20 less 64 and 4 for each of 8.
        let more_shards = |question: &mut Question| question.shards = Some(8);
        assert_eq!(found(1_001, running(), more_shards), (Verdict::Ok, Some(1_048_480)));
        let configured =
            Running { connections_max_basis: Basis::Configured.name().into(), ..running() };
        assert_eq!(found(1_001, configured, more_shards), (Verdict::TooSmall, Some(1_000)));
    }
}
