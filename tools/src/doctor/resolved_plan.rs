//! What a question leaves open: taken from the running gateway, or assumed. The report names which.

use std::time::Duration;

use tidegate_machine::capacity::{BACKLOG, SEND_BUFFER_BYTES};
use tidegate_machine::{Machine, Subject};
use tidegate_protocol::limits::HEARTBEAT_INTERVAL_MS;

use super::args::{DriverChoice, Question, Role};
use super::driver::Driver;
use super::running::Running;
use crate::count::counted;

/// The gateway's default `session.heartbeat_interval_ms`.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(HEARTBEAT_INTERVAL_MS as u64);

/// The gateway's default port.
const PORT: u16 = 7400;

/// What the checks take for a gateway's shards, driver and settings.
#[derive(Clone, Debug)]
pub(super) struct ResolvedPlan {
    /// At least 1.
    pub(super) shards: u64,
    pub(super) driver: Driver,
    pub(super) port: u16,
    pub(super) heartbeat_interval: Duration,
    /// Connections that the kernel queues for each shard until they are accepted.
    pub(super) backlog: u64,
    /// What the gateway sets as `SO_SNDBUF`.
    pub(super) send_buffer_bytes: u64,
    /// The gateway that runs, where one is asked about.
    pub(super) running: Option<Running>,
    /// What was read or assumed, in words.
    pub(super) basis: Vec<String>,
}

impl ResolvedPlan {
    /// The question decides first, then the running gateway, then the default.
    pub(super) fn of(question: &Question, machine: &Machine, running: Option<&Running>) -> Self {
        let (shards, shards_basis) = shards(question, machine, running);
        let (driver, driver_basis) = driver(question, machine, running);
        let (heartbeat_interval, heartbeat_basis) = heartbeat_interval(question, running);
        let port = question.port.or(running.map(|running| running.port)).unwrap_or(PORT);
        let mut basis: Vec<_> = running.map(introduction).into_iter().collect();
        if question.role == Role::Gateway {
            basis.extend([shards_basis, driver_basis, heartbeat_basis].into_iter().flatten());
        }
        Self {
            shards,
            driver,
            port,
            heartbeat_interval,
            backlog: running.map_or(u64::from(BACKLOG), |running| running.backlog),
            send_buffer_bytes: running
                .map_or(SEND_BUFFER_BYTES, |running| running.send_buffer_bytes),
            running: running.cloned(),
            basis,
        }
    }
}

fn introduction(running: &Running) -> String {
    format!(
        "what the gateway says: version {}, port {}, at most {} ({})",
        running.version,
        running.port,
        counted(running.connections_max, "connection"),
        running.connections_max_basis
    )
}

/// How often each connection sends a heartbeat.
fn heartbeat_interval(
    question: &Question,
    running: Option<&Running>,
) -> (Duration, Option<String>) {
    if let Some(interval) = question.heartbeat_interval {
        return (interval, None);
    }
    if let Some(running) = running {
        let interval = running.heartbeat_interval;
        return (interval, Some(format!("a heartbeat every {interval:?}")));
    }
    let text = format!(
        "a heartbeat every {HEARTBEAT_INTERVAL:?}, the gateway's default (assumed: --heartbeat-interval names \
         another)"
    );
    (HEARTBEAT_INTERVAL, Some(text))
}

fn shards(
    question: &Question,
    machine: &Machine,
    running: Option<&Running>,
) -> (u64, Option<String>) {
    if let Some(shards) = question.shards {
        return (shards, None);
    }
    if let Some(running) = running {
        return (running.shards, Some(counted(running.shards, "shard")));
    }
    let (cpus, why) = match machine.whole_cpus() {
        Ok(cpus) => (cpus, "one for each CPU"),
        Err(_) => (1, "as its CPUs are unknown"),
    };
    let text = format!("{}, {why} (assumed: --shards names another)", counted(cpus, "shard"));
    (cpus, Some(text))
}

/// Where io_uring may not work, "auto" is taken for epoll, which needs more.
fn driver(
    question: &Question,
    machine: &Machine,
    running: Option<&Running>,
) -> (Driver, Option<String>) {
    match (question.role, question.driver) {
        (Role::Client, _) | (_, DriverChoice::Epoll) => return (Driver::Epoll, None),
        (_, DriverChoice::Uring) => return (Driver::Uring, None),
        (_, DriverChoice::Auto) => {}
    }
    if let Some(running) = running {
        let text = match running.driver {
            Driver::Epoll => "epoll".to_owned(),
            Driver::Uring => format!("io_uring, {}", counted(running.rings, "ring")),
        };
        return (running.driver, Some(text));
    }
    debug_assert_eq!(machine.subject, Subject::Caller, "a gateway says what it uses");
    let (driver, text) = match machine.io_uring() {
        Ok(()) => (Driver::Uring, "io_uring, which works here"),
        Err(_) => (Driver::Epoll, "epoll, as io_uring does not work here, or may not"),
    };
    (driver, Some(format!("{text} (assumed: --driver names another)")))
}

#[cfg(test)]
mod tests {
    use tidegate_machine::fixture::Tree;

    use super::super::tests::{question, running};
    use super::*;

    fn open() -> Question {
        Question { heartbeat_interval: None, ..question() }
    }

    #[test]
    fn a_running_gateway_says_what_it_runs_with() {
        let running = Running {
            shards: 3,
            driver: Driver::Uring,
            rings: 6,
            port: 7500,
            heartbeat_interval: Duration::from_secs(900),
            backlog: 7,
            send_buffer_bytes: 8_192,
            ..running()
        };
        let plan = ResolvedPlan::of(&open(), &Tree::good().machine(), Some(&running));
        assert_eq!((plan.shards, plan.driver, plan.port), (3, Driver::Uring, 7500));
        assert_eq!((plan.backlog, plan.send_buffer_bytes), (7, 8_192));
        assert_eq!(plan.heartbeat_interval, Duration::from_secs(900));
        let basis = plan.basis.join("\n");
        assert!(!basis.contains("assumed"), "{basis}");
        assert!(basis.contains("io_uring, 6 rings") && basis.contains("every 900s"), "{basis}");
    }

    #[test]
    fn what_is_assumed_is_said() {
        let plan = ResolvedPlan::of(&open(), &Tree::good().machine(), None);
        assert_eq!((plan.shards, plan.driver, plan.port), (8, Driver::Uring, 7400));
        assert_eq!(plan.heartbeat_interval, Duration::from_secs(30));
        let basis = plan.basis.join("\n");
        for option in ["--shards", "--driver", "--heartbeat-interval"] {
            assert!(basis.contains(&format!("(assumed: {option} names another)")), "{basis}");
        }
    }

    #[test]
    fn the_question_decides_first() {
        let mut question = question();
        (question.shards, question.port, question.driver) =
            (Some(5), Some(80), DriverChoice::Uring);
        question.heartbeat_interval = Some(Duration::from_secs(7));
        let plan = ResolvedPlan::of(&question, &Tree::good().machine(), Some(&running()));
        assert_eq!((plan.shards, plan.driver, plan.port), (5, Driver::Uring, 80));
        assert_eq!(plan.heartbeat_interval, Duration::from_secs(7));
        assert_eq!(plan.basis.len(), 1, "{:?}", plan.basis);
    }
}
