//! Tables in which the kernel looks up packets: established sockets, tracked connections.

use tidegate_machine::Machine;
use tidegate_machine::files::Reading;
use tidegate_machine::network::Owner;

use super::super::finding::{Amount, Judgement, Place, Verdict};
use super::super::plan::Plan;
use super::{Check, Impact, unless};
use crate::count::{counted, grouped};

pub(super) const CHECKS: [Check; 2] = [
    Check {
        name: "established-hash",
        impact: Impact::Cost,
        why: "Each packet is looked up in the established hash; with more sockets than buckets a lookup \
              walks past other sockets, and at a million each is a cache miss.",
        judge: established_hash,
    },
    Check {
        name: "conntrack",
        impact: Impact::Capacity,
        why: "Where a firewall or NAT rule uses connection tracking, a full nf_conntrack drops the \
              packets of new connections.",
        judge: conntrack,
    },
];

/// Memory of a bucket, in bytes: one pointer.
const BUCKET_BYTES: u64 = 8;

fn established_hash(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let table = machine.network.established.clone()?;
    let shared = match table.owner {
        Owner::Own => "",
        Owner::Shared => ", the machine's, shared with other namespaces",
    };
    let chain = plan.connections.div_ceil(table.buckets.max(1));
    let verdict = unless(plan.connections <= table.buckets, Verdict::Note);
    let allows =
        Amount::with_text(table.buckets, format!("{}{shared}", counted(table.buckets, "bucket")));
    let wanted = plan.connections.next_power_of_two();
    let needs = Amount::with_text(
        plan.connections,
        format!(
            "{}: up to {} a bucket on average",
            counted(plan.connections, "socket"),
            grouped(chain)
        ),
    );
    let line = format!("thash_entries={wanted}");
    let judgement = Judgement::new(verdict, allows, needs).fix(Place::Boot, line);
    Ok(Some(match table.owner {
        Owner::Own => judgement,
        // A namespace that is made later can have a separate table, without a reboot.
        Owner::Shared => judgement.fix(
            Place::Sysctl,
            format!(
                "net.ipv4.tcp_child_ehash_entries = {wanted}  # before the namespace is made, in the \
                 one that makes it; {} KiB",
                wanted * BUCKET_BYTES / 1_024
            ),
        ),
    }))
}

fn conntrack(machine: &Machine, plan: &Plan) -> Reading<Option<Judgement>> {
    let most = match machine.network.conntrack_max.clone() {
        Ok(most) => most,
        Err(unread) if unread.is_absent() => {
            let allows = Amount::text("not loaded: nothing is tracked");
            return Ok(Some(Judgement::new(Verdict::Ok, allows, Amount::text("nothing"))));
        }
        Err(unread) => return Err(unread),
    };
    let count = machine.network.conntrack_count.clone()?;
    let wanted = count + plan.connections;
    let enough = most == 0 || most >= wanted;
    let active = if count == 0 { "nothing tracked now" } else { "active" };
    let less = if count == 0 { Verdict::Note } else { Verdict::TooSmall };
    let most_text = if most == 0 { "no limit".to_owned() } else { grouped(most) };
    let allows =
        Amount::with_text(most, format!("{most_text}, {active} ({})", counted(count, "entry")));
    let needs =
        Amount::with_text(wanted, format!("{} if the connections are tracked", grouped(wanted)));
    let port = plan.resolved.port;
    let judgement = Judgement::new(unless(enough, less), allows, needs)
        .fix(Place::Sysctl, format!("net.netfilter.nf_conntrack_max = {}", wanted + wanted / 4))
        .fix(
            Place::Shell,
            format!(
                "nft 'add table inet tidegate; \
                 add chain inet tidegate in {{ type filter hook prerouting priority raw; }}; \
                 add chain inet tidegate out {{ type filter hook output priority raw; }}; \
                 add rule inet tidegate in tcp dport {port} notrack; \
                 add rule inet tidegate out tcp sport {port} notrack'"
            ),
        );
    Ok(Some(judgement))
}

#[cfg(test)]
mod tests {
    use super::super::probing::{gateway, lines};
    use super::*;
    use tidegate_machine::fixture::Tree;

    const HASH: &str = "proc/sys/net/ipv4/tcp_ehash_entries";

    #[test]
    fn more_sockets_than_buckets_make_chains() {
        let small = gateway("established-hash", 1_000_000, |tree| tree.set(HASH, "262144"));
        assert_eq!((small.verdict, small.allows.value), (Verdict::Note, Some(262_144)));
        assert!(small.needs.text.contains("up to 4 a bucket"), "{small:?}");
        assert_eq!(lines(&small), ["thash_entries=1048576"]);
        let enough = gateway("established-hash", 262_144, |tree| tree.set(HASH, "262144"));
        assert_eq!(enough.verdict, Verdict::Ok);
    }

    #[test]
    fn a_table_with_a_minus_is_the_machines() {
        let shared = gateway("established-hash", 1_000_000, |tree| tree.set(HASH, "-262144"));
        assert_eq!((shared.verdict, shared.allows.value), (Verdict::Note, Some(262_144)));
        assert!(shared.allows.text.contains("shared"), "{shared:?}");
        assert!(lines(&shared)[1].starts_with("net.ipv4.tcp_child_ehash_entries = 1048576"));
    }

    #[test]
    fn an_older_kernel_says_it_in_its_log() {
        let log = |text: &'static str| {
            gateway("established-hash", 1_000, move |tree: &mut Tree| {
                tree.remove(HASH);
                tree.set("dev/kmsg", text);
            })
        };
        let said =
            log("6,1,2,-;TCP established hash table entries: 524288 (order: 10, 4194304 bytes)");
        assert_eq!((said.verdict, said.allows.value), (Verdict::Ok, Some(524_288)));
        assert_eq!(log("6,1,2,-;something else").verdict, Verdict::Unknown);
    }

    fn tracked(max: &str, count: &str) -> super::super::super::finding::Finding {
        gateway("conntrack", 1_000_000, |tree| {
            tree.set("proc/sys/net/netfilter/nf_conntrack_max", max);
            tree.set("proc/sys/net/netfilter/nf_conntrack_count", count);
        })
    }

    #[test]
    fn tracking_matters_where_it_is_on() {
        assert_eq!(gateway("conntrack", 1_000_000, |_| {}).verdict, Verdict::Ok);
        let idle = tracked("262144", "0");
        assert_eq!(idle.verdict, Verdict::Note);
        let active = tracked("262144", "10");
        assert_eq!((active.verdict, active.needs.value), (Verdict::TooSmall, Some(1_000_010)));
        assert_eq!(lines(&active)[0], "net.netfilter.nf_conntrack_max = 1250012");
        assert!(lines(&active)[1].contains("tcp dport 7400 notrack"), "{active:?}");
        assert_eq!(tracked("1000010", "10").verdict, Verdict::Ok);
        assert_eq!(tracked("0", "10").verdict, Verdict::Ok);
        assert_eq!(tracked("many", "10").verdict, Verdict::Unknown);
        assert_eq!(tracked("5", "some").verdict, Verdict::Unknown);
    }
}
