//! What a question leaves open: as the running gateway has it, or assumed. Either is said.

use std::time::Duration;

use super::args::{DriverChoice, Question, Role};
use super::io_uring_access::{Access, access};
use super::machine::{Machine, Setting, Subject};
use super::plan::{Driver, whole};
use crate::count::counted;

/// The gateway's default `session.heartbeat_interval_ms`.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// The gateway's default port.
const PORT: u16 = 7400;

/// What is taken for a gateway's shards, driver and settings.
#[derive(Clone, Debug)]
pub(super) struct Settled {
    /// At least 1.
    pub(super) shards: u64,
    pub(super) driver: Driver,
    pub(super) port: u16,
    pub(super) heartbeat_interval: Duration,
    /// What `limits.connections_max` is, where a process is asked about.
    pub(super) connections_max: Option<Setting>,
    /// What was read or assumed, in words.
    pub(super) basis: Vec<String>,
}

impl Settled {
    /// Asks the question first, then the process, then takes the default.
    pub(super) fn of(question: &Question, machine: &Machine) -> Self {
        let (shards, shards_basis) = shards(question, machine);
        let (driver, driver_basis) = driver(question, machine);
        let (port, port_basis) = port(question, machine);
        let (heartbeat_interval, heartbeat_basis) = heartbeat_interval(question, machine);
        let setting = |key| machine.running.as_ref().map(|running| running.setting(key, None));
        let mut basis = Vec::new();
        if question.role == Role::Gateway {
            basis.extend(stranger(machine));
            basis.extend(
                [shards_basis, driver_basis, port_basis, heartbeat_basis].into_iter().flatten(),
            );
        }
        let connections_max = setting("limits.connections_max");
        Self { shards, driver, port, heartbeat_interval, connections_max, basis }
    }
}

/// How often each connection gives a sign of life.
fn heartbeat_interval(question: &Question, machine: &Machine) -> (Duration, Option<String>) {
    if let Some(interval) = question.heartbeat_interval {
        return (interval, None);
    }
    let assumed = |why: &str| {
        let text = format!(
            "a heartbeat every {HEARTBEAT_INTERVAL:?} ({why}: --heartbeat-interval says otherwise)"
        );
        (HEARTBEAT_INTERVAL, Some(text))
    };
    let Some(running) = &machine.running else { return assumed("assumed") };
    match running.setting("session.heartbeat_interval_ms", None) {
        Setting::Set(text) => match text.replace('_', "").parse() {
            Ok(ms) => {
                let interval = Duration::from_millis(ms);
                (interval, Some(format!("a heartbeat every {interval:?}, as it was told")))
            }
            Err(_) => assumed("assumed"),
        },
        Setting::Default => assumed("its default"),
        Setting::File(_) | Setting::Unknown(_) => assumed("assumed"),
    }
}

/// Shards that a process is seen to have.
fn running_shards(machine: &Machine) -> Option<u64> {
    let shards = machine.running.as_ref()?.shards.as_ref().ok()?;
    Some(*shards).filter(|shards| *shards > 0)
}

/// What is to be said of a process that shows no shards.
fn stranger(machine: &Machine) -> Option<String> {
    let running = machine.running.as_ref()?;
    match &running.shards {
        Ok(0) => Some(
            "no thread of a shard in that process: it is no gateway, or one that starts".into(),
        ),
        Ok(_) => None,
        Err(unread) => Some(format!("its shards unseen: {unread}")),
    }
}

fn shards(question: &Question, machine: &Machine) -> (u64, Option<String>) {
    if let Some(shards) = question.shards {
        return (shards, None);
    }
    if let Some(shards) = running_shards(machine) {
        return (shards, Some(format!("{}, running", counted(shards, "shard"))));
    }
    let (cpus, whose) = match machine.cpus() {
        Ok(cpus) => (whole(cpus).max(1), "one for each CPU"),
        Err(_) => (1, "as its CPUs are unknown"),
    };
    let text = format!("{}, {whose} (assumed: --shards says otherwise)", counted(cpus, "shard"));
    (cpus, Some(text))
}

/// Where io_uring is in doubt, "auto" is taken for epoll, which asks for more.
fn driver(question: &Question, machine: &Machine) -> (Driver, Option<String>) {
    match (question.role, question.driver) {
        (Role::Client, _) | (_, DriverChoice::Epoll) => return (Driver::Epoll, None),
        (_, DriverChoice::Uring) => return (Driver::Uring, None),
        (_, DriverChoice::Auto) => {}
    }
    if running_shards(machine).is_some()
        && let Ok(rings) = machine.rings
    {
        return match rings as u64 {
            0 => (Driver::Epoll, Some("epoll, as it has shards and no ring".into())),
            rings => (
                Driver::Uring,
                Some(format!("io_uring, of which it has {}", counted(rings, "ring"))),
            ),
        };
    }
    let here = if machine.subject == Subject::Here { "here" } else { "for it" };
    let (driver, text) = match access(machine) {
        Access::Works => (Driver::Uring, format!("io_uring, which works {here}")),
        Access::Refused(_) => (Driver::Epoll, format!("epoll, as io_uring does not work {here}")),
        Access::Unknown(_) => (Driver::Epoll, format!("epoll, as io_uring is in doubt {here}")),
    };
    (driver, Some(format!("{text} (assumed: --driver says otherwise)")))
}

fn port(question: &Question, machine: &Machine) -> (u16, Option<String>) {
    if let Some(port) = question.port {
        return (port, None);
    }
    let Some(running) = &machine.running else { return (PORT, None) };
    let assumed = |why: String| {
        (PORT, Some(format!("port {PORT}, the default (assumed: {why}; --port says otherwise)")))
    };
    match running.setting("listen", Some("--listen")) {
        Setting::Set(address) => {
            match address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()) {
                Some(0) => {
                    let text =
                        format!("port {PORT}, as it took any: --port names the one that it got");
                    (PORT, Some(text))
                }
                Some(port) => {
                    (port, Some(format!("port {port}, as it was told to listen on {address}")))
                }
                None => assumed(format!("it was told to listen on {address}")),
            }
        }
        Setting::Default => (PORT, Some(format!("port {PORT}, the default"))),
        Setting::File(file) => assumed(format!("{file}, which it has read, may name another")),
        Setting::Unknown(unread) => assumed(unread.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Tree, question};
    use super::super::machine::Probe;
    use super::*;

    /// A gateway that runs with these threads and arguments.
    fn running(threads: &[&str], cmdline: &str) -> Machine {
        let mut tree = Tree::good();
        tree.set("proc/7/cmdline", &cmdline.replace(' ', "\0"));
        tree.set("proc/7/environ", "");
        tree.set("proc/7/fd/0", "");
        for (number, name) in threads.iter().enumerate() {
            tree.set(&format!("proc/7/task/{number}/comm"), name);
        }
        Machine::read(tree.root(), Subject::Running(7), Probe::Works)
    }

    #[test]
    fn what_a_gateway_runs_with_is_read() {
        let machine =
            running(&["tidegate", "shard-0", "shard-1"], "tidegate --listen 0.0.0.0:7500");
        let settled = Settled::of(&question(), &machine);
        assert_eq!((settled.shards, settled.driver, settled.port), (2, Driver::Epoll, 7500));
        assert_eq!(settled.connections_max, Some(Setting::Default));
        assert!(settled.basis.iter().all(|said| !said.contains("assumed")), "{:?}", settled.basis);
        let mut rings = machine;
        rings.rings = Ok(3);
        let settled = Settled::of(&question(), &rings);
        assert_eq!(settled.driver, Driver::Uring);
        assert!(settled.basis.contains(&"io_uring, of which it has 3 rings".into()));
    }

    #[test]
    fn what_is_assumed_is_said() {
        let settled = Settled::of(&question(), &running(&["sleep"], "sleep 5"));
        let said = settled.basis.join("\n");
        assert!(said.contains("no thread of a shard"), "{said}");
        assert!(said.contains("(assumed: --shards says otherwise)"), "{said}");
        assert!(said.contains("(assumed: --driver says otherwise)"), "{said}");
        let any = Settled::of(&question(), &running(&["shard-0"], "tidegate --listen [::1]:0"));
        assert!(
            (any.port, any.basis.join("\n").contains("it took any")) == (7400, true),
            "{any:?}"
        );
        let file = running(&["shard-0"], "tidegate --config t.toml");
        let said = Settled::of(&question(), &file).basis.join("\n");
        assert!(said.contains("1 shard, running"), "{said}");
        assert!(said.contains("t.toml, which it has read, may name another"), "{said}");
    }

    #[test]
    fn what_is_asked_for_wins() {
        let mut asked = question();
        (asked.shards, asked.port, asked.driver) = (Some(5), Some(80), DriverChoice::Uring);
        asked.heartbeat_interval = Some(Duration::from_secs(7));
        let settled = Settled::of(&asked, &running(&["shard-0"], "tidegate"));
        assert_eq!((settled.shards, settled.driver, settled.port), (5, Driver::Uring, 80));
        assert_eq!(settled.heartbeat_interval, Duration::from_secs(7));
        assert!(settled.basis.is_empty(), "{:?}", settled.basis);
    }

    #[test]
    fn heartbeats_come_as_often_as_the_gateway_was_told() {
        let asked = Question { heartbeat_interval: None, ..question() };
        let interval = |command| {
            let settled = Settled::of(&asked, &running(&["shard-0"], command));
            let said = settled.basis.into_iter().find(|basis| basis.contains("heartbeat"));
            (settled.heartbeat_interval.as_secs(), said.unwrap())
        };
        let told = interval("tidegate --set session.heartbeat_interval_ms=900_000");
        assert_eq!(told, (900, "a heartbeat every 900s, as it was told".into()));
        let (seconds, said) = interval("tidegate");
        assert_eq!(seconds, 30);
        assert!(said.contains("its default: --heartbeat-interval"), "{said}");
        let (seconds, said) = interval("tidegate --config t.toml");
        assert_eq!(seconds, 30);
        assert!(said.contains("assumed: --heartbeat-interval"), "{said}");
    }
}
