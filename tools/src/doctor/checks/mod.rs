//! The checks: pure functions from a snapshot and a plan to a result. None reads anything.
//!
//! Each checks a limit that can keep connections out, or one that makes them cost more. `sysctl/README.md` lists what
//! is often tuned and does neither.

mod connections_max;
mod descriptors;
mod memory;
mod processors;
mod tables;
mod waiting;

pub(super) use connections_max::CONNECTIONS_MAX;

use tidegate_machine::Machine;
use tidegate_machine::files::Reading;

use super::finding::{Amount, Finding, Judgement, Verdict};
use super::plan::Plan;

/// One check.
pub(super) struct Check {
    /// Its name, for programs too.
    name: &'static str,
    /// What is at stake.
    impact: Impact,
    /// Why it matters, in a sentence.
    why: &'static str,
    /// `None` where the check does not apply to the question.
    judge: fn(&Machine, &Plan) -> Reading<Option<Judgement>>,
}

/// What is at stake in a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Impact {
    /// Whether the connections can be held.
    Capacity,
    /// What the connections cost.
    Cost,
}

/// A finding, and what its check affects.
pub(super) struct Judged {
    pub(super) finding: Finding,
    pub(super) impact: Impact,
}

const ALL: [&[Check]; 6] = [
    &connections_max::CHECKS,
    &descriptors::CHECKS,
    &waiting::CHECKS,
    &tables::CHECKS,
    &memory::CHECKS,
    &processors::CHECKS,
];

/// Runs each check that applies to the question.
pub(super) fn judge(machine: &Machine, plan: &Plan) -> Vec<Judged> {
    ALL.iter().copied().flatten().filter_map(|check| check.run(machine, plan)).collect()
}

impl Check {
    fn run(&self, machine: &Machine, plan: &Plan) -> Option<Judged> {
        let judgement = match (self.judge)(machine, plan) {
            Ok(judgement) => judgement?,
            Err(unread) => {
                let needs = Amount::text("to be readable");
                Judgement::new(Verdict::Unknown, Amount::text(unread.to_string()), needs)
            }
        };
        let Judgement { verdict, allows, needs, fix } = judgement;
        let finding = Finding { check: self.name, verdict, allows, needs, why: self.why, fix };
        Some(Judged { finding, impact: self.impact })
    }
}

/// Ok where it is enough, otherwise `less`.
const fn unless(enough: bool, less: Verdict) -> Verdict {
    if enough { Verdict::Ok } else { less }
}

#[cfg(test)]
mod probing {
    //! How the tests of the checks run one.

    use super::super::args::Question;
    use super::super::tests::question;
    use tidegate_machine::fixture::Tree;

    use super::*;

    /// What a check finds on a good machine with one change.
    pub(super) fn find(
        check: &str,
        connections: u64,
        change: impl FnOnce(&mut Tree),
        ask: impl FnOnce(&mut Question),
    ) -> Option<Finding> {
        let mut tree = Tree::good();
        change(&mut tree);
        let mut question = question();
        ask(&mut question);
        let machine = tree.machine();
        let plan = Plan::new(connections, question, &machine, None);
        let judged = judge(&machine, &plan).into_iter().map(|judged| judged.finding);
        judged.into_iter().find(|finding| finding.check == check)
    }

    /// The same for a gateway with default settings, to which the check applies.
    pub(super) fn gateway(check: &str, count: u64, change: impl FnOnce(&mut Tree)) -> Finding {
        find(check, count, change, |_| {}).unwrap()
    }

    /// The lines that fix it.
    pub(super) fn lines(finding: &Finding) -> Vec<&str> {
        finding.fix.iter().map(|fix| fix.line.as_str()).collect()
    }

    #[test]
    fn a_good_machine_passes_and_every_check_has_a_unique_name() {
        let machine = Tree::good().machine();
        let findings = judge(&machine, &Plan::new(1_000_000, question(), &machine, None));
        let mut names: Vec<_> = findings.iter().map(|judged| judged.finding.check).collect();
        for Judged { finding, .. } in &findings {
            assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
            assert!(finding.fix.is_empty(), "{finding:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len());
    }

    #[test]
    fn absent_or_invalid_values_are_unknown_to_each_check_and_never_ok() {
        let files = [
            ("proc/sys/fs/nr_open", "nr-open"),
            ("proc/sys/fs/file-max", "file-max"),
            ("proc/sys/fs/file-nr", "file-max"),
            ("proc/self/limits", "open-files"),
            ("proc/sys/net/core/somaxconn", "somaxconn"),
            ("proc/sys/net/ipv4/tcp_max_syn_backlog", "syn-backlog"),
            ("proc/sys/net/ipv4/tcp_syncookies", "syn-backlog"),
            ("proc/sys/net/ipv4/ip_local_port_range", "listening-port"),
            ("proc/sys/net/ipv4/ip_local_reserved_ports", "listening-port"),
            ("proc/sys/net/ipv4/tcp_mem", "tcp-mem"),
            ("proc/sys/net/core/wmem_max", "send-buffer"),
            ("proc/sys/net/ipv4/tcp_max_orphans", "orphans"),
            ("proc/sys/net/ipv4/tcp_ehash_entries", "established-hash"),
            ("proc/sys/net/ipv4/tcp_congestion_control", "congestion-control"),
            ("proc/meminfo", "memory"),
            ("proc/self/cgroup", "memory"),
            ("proc/self/mountinfo", "threads"),
            ("proc/sys/vm/max_map_count", "mappings"),
            ("proc/sys/kernel/pid_max", "threads"),
            ("proc/sys/kernel/threads-max", "threads"),
            ("proc/self/status", "cpu-time"),
            ("proc/self/net/dev", "receive-queues"),
            ("sys/class/net/eth0/flags", "receive-queues"),
        ];
        let nonsense_is_fine = [
            "proc/self/cgroup",
            "proc/self/mountinfo",
            "proc/self/net/dev",
            "proc/sys/net/ipv4/tcp_congestion_control",
        ];
        for (path, check) in files {
            let absent = gateway(check, 1_000_000, |tree| tree.remove(path));
            assert_eq!(absent.verdict, Verdict::Unknown, "{path}: {absent:?}");
            if !nonsense_is_fine.contains(&path) {
                let nonsense = gateway(check, 1_000_000, |tree| tree.set(path, "no, such 1 thing"));
                assert_eq!(nonsense.verdict, Verdict::Unknown, "{path}: {nonsense:?}");
            }
            let unreadable = gateway(check, 1_000_000, |tree| {
                tree.remove(path);
                tree.set(&format!("{path}/a-folder-in-its-place"), "");
            });
            assert_eq!(unreadable.verdict, Verdict::Unknown, "{path}: {unreadable:?}");
        }
    }
}
