//! Queues and ports: what connections need before the gateway accepts them and after it closes them.

use tidegate_machine::Machine;
use tidegate_machine::files::Reading;

use super::super::args::Role;
use super::super::finding::{Amount, Judgement, Place, Verdict};
use super::super::plan::Plan;
use super::{Check, Impact, unless};
use crate::bench;
use crate::count::{counted, grouped};

pub(super) const CHECKS: [Check; 5] = [
    Check {
        name: "somaxconn",
        impact: Impact::Cost,
        why: "The kernel silently cuts each listener's backlog to net.core.somaxconn; when it is full, \
              a burst of phones that reconnect is dropped and tries again after a second or more.",
        judge: somaxconn,
    },
    Check {
        name: "syn-backlog",
        impact: Impact::Cost,
        why: "With SYN cookies on, tcp_max_syn_backlog is not consulted, and a queue full of handshakes \
              that nobody completes turns nobody away; with them off, unknown peers are dropped from \
              three quarters of tcp_max_syn_backlog on.",
        judge: syn_backlog,
    },
    Check {
        name: "source-ports",
        impact: Impact::Capacity,
        why: "A client's connections to one address and port each need a port of their own for every \
              source address.",
        judge: source_ports,
    },
    Check {
        name: "listening-port",
        impact: Impact::Cost,
        why: "A port in the range that outgoing connections draw from may be taken by one of them when \
              the gateway restarts, and it can't listen then.",
        judge: listening_port,
    },
    Check {
        name: "orphans",
        impact: Impact::Cost,
        why: "A socket that the gateway has closed and whose phone hasn't acknowledged everything is an \
              orphan; too many are reset, and lose the goodbye that says when to reconnect.",
        judge: orphans,
    },
];

/// Connections from one address to one address and port beyond which connecting gets slow. Measured: 2,000 connects
/// a second with 25,000 of 28,232 ports in use, more than 50,000 with 2,500.
const FAST_PER_PAIR: u64 = bench::PER_SOURCE as u64;

fn somaxconn(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let most = machine.network.somaxconn.clone()?;
    // The queue never holds more than all connections.
    let backlog = plan.resolved.backlog;
    let wanted = backlog.min(plan.connections);
    let verdict = unless(most >= wanted, Verdict::Note);
    let needs = Amount::with_text(wanted, format!("{} for each shard's listener", grouped(wanted)));
    let judgement = Judgement::new(verdict, Amount::number(most), needs);
    Ok(Some(judgement.fix(Place::Sysctl, format!("net.core.somaxconn = {backlog}"))))
}

fn syn_backlog(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let (cookies, most) =
        (machine.network.syncookies.clone()?, machine.network.syn_backlog_max.clone()?);
    if cookies > 0 {
        let allows = Amount::with_text(
            most,
            format!("{}, not consulted: tcp_syncookies is {cookies}", grouped(most)),
        );
        return Ok(Some(Judgement::new(Verdict::Ok, allows, Amount::text("SYN cookies"))));
    }
    let allows = Amount::with_text(most, format!("{}, and tcp_syncookies is 0", grouped(most)));
    let needs = Amount::text("SYN cookies");
    let judgement = Judgement::new(Verdict::Note, allows, needs);
    Ok(Some(judgement.fix(Place::Sysctl, "net.ipv4.tcp_syncookies = 1")))
}

/// How many of the ports from `first` to `last` are not reserved.
fn free_ports(first: u64, last: u64, reserved: &[[u64; 2]]) -> u64 {
    // The kernel lists ranges that don't overlap.
    let taken =
        reserved.iter().map(|&[from, to]| (to.min(last) + 1).saturating_sub(from.max(first)));
    (last + 1).saturating_sub(first).saturating_sub(taken.sum())
}

fn source_ports(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Gateway {
        return Ok(None);
    }
    let [first, last] = machine.network.ports.clone()?;
    let ports = free_ports(first, last, &machine.network.reserved_ports.clone()?);
    let fast_pairs = plan.connections.div_ceil(FAST_PER_PAIR);
    // On loopback the kernel chooses the first source address; `tide bench` names the others.
    let by_itself = fast_pairs.min(1 + bench::LOOPBACK_SOURCES as u64);
    let pairs = plan.question.address_pairs.unwrap_or(by_itself);
    let whose = match plan.question.address_pairs {
        Some(_) => "",
        None => {
            ", which `tide bench` uses for a gateway on 127.0.0.1 (assumed; for one elsewhere it \
             is --source and here --address-pairs)"
        }
    };
    let most = ports.saturating_mul(pairs);
    let wanted_pairs = plan.connections.div_ceil(ports.max(1));
    let verdict = if most < plan.connections {
        Verdict::TooSmall
    } else if plan.connections > FAST_PER_PAIR.saturating_mul(pairs) {
        Verdict::Note
    } else {
        Verdict::Ok
    };
    let allows = Amount::with_text(
        most,
        format!(
            "{}: ports {first} to {last}, {} free, times {} of addresses{whose}",
            grouped(most),
            grouped(ports),
            counted(pairs, "pair")
        ),
    );
    let needs = Amount::with_text(
        plan.connections,
        format!(
            "{}: {} to one gateway address, {} for fast connects ({} each)",
            counted(plan.connections, "port"),
            counted(wanted_pairs, "source address"),
            grouped(fast_pairs),
            grouped(FAST_PER_PAIR)
        ),
    );
    let mut judgement = Judgement::new(verdict, allows, needs);
    if verdict == Verdict::TooSmall && (first, last) != (1_024, 65_535) {
        judgement = judgement.fix(Place::Sysctl, "net.ipv4.ip_local_port_range = 1024 65535");
    }
    let more = if verdict == Verdict::TooSmall { wanted_pairs } else { fast_pairs };
    let shell = format!(
        "tide doctor --role client --connections {} --address-pairs {more}  # with as many for tide bench --source",
        plan.connections
    );
    Ok(Some(judgement.fix(Place::Shell, shell)))
}

fn listening_port(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let [first, last] = machine.network.ports.clone()?;
    let reserved = machine.network.reserved_ports.clone()?;
    let port = u64::from(plan.resolved.port);
    let within = |&[from, to]: &[u64; 2]| (from..=to).contains(&port);
    let safe = !(first..=last).contains(&port) || reserved.iter().any(within);
    let allows = Amount::text(format!("outgoing connections draw from {first} to {last}"));
    let needs = Amount::with_text(port, format!("{port} outside of it, or reserved"));
    let judgement = Judgement::new(unless(safe, Verdict::Note), allows, needs);
    let kept = reserved.iter().map(|[from, to]| format!("{from}-{to},")).collect::<String>();
    let line = format!("net.ipv4.ip_local_reserved_ports = {kept}{port}");
    Ok(Some(judgement.fix(Place::Sysctl, line)))
}

fn orphans(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    if plan.question.role == Role::Client {
        return Ok(None);
    }
    let most = machine.orphans_max.clone()?;
    let wanted = plan.connections;
    let needs = Amount::with_text(
        wanted,
        format!("{} if all are closed at once and none answers", grouped(wanted)),
    );
    let judgement =
        Judgement::new(unless(most >= wanted, Verdict::Note), Amount::number(most), needs);
    Ok(Some(judgement.fix(Place::Sysctl, format!("net.ipv4.tcp_max_orphans = {wanted}"))))
}

#[cfg(test)]
mod tests {
    use super::super::super::args::Question;
    use super::super::super::finding::Finding;
    use super::super::probing::{find, gateway, lines};
    use super::*;
    use tidegate_machine::fixture::Tree;

    fn client(count: u64, pairs: u64, change: impl FnOnce(&mut Tree)) -> Finding {
        let ask = |ask: &mut Question| (ask.role, ask.address_pairs) = (Role::Client, Some(pairs));
        find("source-ports", count, change, ask).unwrap()
    }

    #[test]
    fn a_listener_gets_the_backlog_it_asks_for_or_less() {
        let old = |tree: &mut Tree| tree.set("proc/sys/net/core/somaxconn", "128");
        let low = gateway("somaxconn", 1_000_000, old);
        assert_eq!((low.verdict, low.allows.value), (Verdict::Note, Some(128)));
        assert_eq!(lines(&low), ["net.core.somaxconn = 4096"]);
        assert_eq!(gateway("somaxconn", 100, old).verdict, Verdict::Ok);
    }

    #[test]
    fn without_cookies_the_backlog_of_handshakes_bites() {
        let small = |tree: &mut Tree| tree.set("proc/sys/net/ipv4/tcp_max_syn_backlog", "16");
        assert_eq!(gateway("syn-backlog", 1_000_000, small).verdict, Verdict::Ok);
        let off = |tree: &mut Tree| tree.set("proc/sys/net/ipv4/tcp_syncookies", "0");
        let found = gateway("syn-backlog", 1_000_000, off);
        assert_eq!(found.verdict, Verdict::Note);
        assert_eq!(lines(&found), ["net.ipv4.tcp_syncookies = 1"]);
    }

    #[test]
    fn a_client_needs_a_port_for_each_connection_and_pair() {
        assert_eq!(client(2_500, 1, |_| {}).verdict, Verdict::Ok);
        assert_eq!(client(28_232, 1, |_| {}).verdict, Verdict::Note);
        let short = client(28_233, 1, |_| {});
        assert_eq!((short.verdict, short.allows.value), (Verdict::TooSmall, Some(28_232)));
        assert!(short.needs.text.contains("2 source addresses"), "{short:?}");
        assert_eq!(client(1_000_000, 400, |_| {}).verdict, Verdict::Ok);
        let reserved = |tree: &mut Tree| {
            tree.set("proc/sys/net/ipv4/ip_local_reserved_ports", "7400-7401,32768-33000,60999");
        };
        assert_eq!(client(1, 1, reserved).allows.value, Some(28_232 - 234));
        assert!(find("source-ports", 1, |_| {}, |_| {}).is_none());
    }

    #[test]
    fn tide_bench_uses_enough_source_addresses_on_loopback() {
        let ask = |ask: &mut Question| ask.role = Role::Client;
        let million = find("source-ports", 1_000_000, |_| {}, ask).unwrap();
        assert_eq!(million.verdict, Verdict::Ok);
        assert!(
            million.allows.text.contains("400 pairs of addresses, which `tide bench`"),
            "{million:?}"
        );
        // 40,001 sources, 2,500 each.
        let many = find("source-ports", 100_002_501, |_| {}, ask).unwrap();
        assert_eq!(many.verdict, Verdict::Note);
    }

    #[test]
    fn ports_are_counted_without_those_reserved() {
        assert_eq!(free_ports(60_000, 60_010, &[]), 11);
        assert_eq!(free_ports(60_000, 60_010, &[[1, 60_003], [60_010, 60_020]]), 6);
        assert_eq!(free_ports(10, 9, &[]), 0);
    }

    #[test]
    fn a_listening_port_is_outside_of_the_range_or_reserved() {
        let wide =
            |tree: &mut Tree| tree.set("proc/sys/net/ipv4/ip_local_port_range", "1024 65535");
        let taken = gateway("listening-port", 1, |tree| {
            wide(tree);
            tree.set("proc/sys/net/ipv4/ip_local_reserved_ports", "9000-9001");
        });
        assert_eq!(taken.verdict, Verdict::Note);
        assert_eq!(lines(&taken), ["net.ipv4.ip_local_reserved_ports = 9000-9001,7400"]);
        let reserved = gateway("listening-port", 1, |tree| {
            wide(tree);
            tree.set("proc/sys/net/ipv4/ip_local_reserved_ports", "7400");
        });
        assert_eq!(reserved.verdict, Verdict::Ok);
    }

    #[test]
    fn a_drain_of_everybody_may_orphan_everybody() {
        let small = |tree: &mut Tree| tree.set("proc/sys/net/ipv4/tcp_max_orphans", "131072");
        let found = gateway("orphans", 1_000_000, small);
        assert_eq!(found.verdict, Verdict::Note);
        assert_eq!(lines(&found), ["net.ipv4.tcp_max_orphans = 1000000"]);
        assert_eq!(gateway("orphans", 131_072, small).verdict, Verdict::Ok);
    }
}
