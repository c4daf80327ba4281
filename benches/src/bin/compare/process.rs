//! Child processes, pinned to a core. None outlives the comparison.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::rows::{Driver, Placement, Server};

/// How long a server may take to print its address.
const START_MAX: Duration = Duration::from_secs(20);
/// How often a running client is polled.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The text before the address in the gateway's output.
const ANNOUNCEMENT: &str = "listening for clients on ";
/// The exit status after a signal, as shells use it for SIGINT.
const INTERRUPTED: i32 = 130;

/// Processes that were started and not yet waited for.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// On a signal, kills the started processes and exits.
pub(crate) fn end_all_on_signal() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            for &pid in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                kill(pid);
            }
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(())
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// A child process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    child: Child,
}

impl Owned {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        running.push(child.id());
        Ok(Self { child })
    }

    /// Whether it has ended without a signal.
    pub(crate) fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Remove it from the list before waiting: afterwards its id may belong to another process.
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|&pid| pid != self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the binaries and the cores they run on.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    /// The directory of the binaries.
    pub(crate) binaries: PathBuf,
    /// A directory for files that a server writes.
    pub(crate) scratch: PathBuf,
    /// The servers' core.
    pub(crate) server_core: usize,
    /// The client's core.
    pub(crate) client_core: usize,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Running {
    owned: Owned,
    port: u16,
}

impl Bench {
    /// Starts a server and waits until it listens.
    pub(crate) fn serve(&self, server: &Server) -> anyhow::Result<Running> {
        let mut command = match server {
            Server::Floor(binary, arguments) => {
                let mut command = self.pinned(self.server_core, binary);
                command.args(arguments);
                command
            }
            Server::Gateway(placement, driver) => self.gateway(*placement, *driver),
        };
        command.current_dir(&self.scratch).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut owned = Owned::start(&mut command)?;
        let output = owned.child.stdout.take().context("the server's output is piped")?;
        let lines = read_lines(output)?;
        let is_gateway = matches!(server, Server::Gateway(..));
        let port = wait_for_port(&lines, is_gateway)
            .with_context(|| format!("{command:?} does not say where it listens"))?;
        Ok(Running { owned, port })
    }

    fn gateway(&self, placement: Placement, driver: Driver) -> Command {
        let placement = match placement {
            Placement::Worker => "backends.demo.placement=worker",
            Placement::Shard => "backends.demo.placement=shard",
        };
        let mut command = self.pinned(self.server_core, "tidegate");
        command
            .args(["--auth", "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--shards", "1", "--set", "backends.demo.workers=1", "--set", placement])
            .args(["--driver", driver.name(), "--log", "warn"])
            // Each gateway is killed at its end. Its reservation of offsets is of no use to the next one.
            .args(["--set", "rooms.offset_file="])
            // No row measures periodic heartbeats. A million of them would distort the figures.
            .args(["--set", "session.heartbeat_interval_ms=900000"]);
        command
    }

    fn pinned(&self, core: usize, binary: &str) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).arg(self.binaries.join(binary));
        command
    }

    /// Runs `work` while the client's core is kept from halting.
    pub(crate) fn while_awake<T>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", "taskset", "-c", &self.client_core.to_string()]);
        command.arg(self.binaries.join("keep-awake")).stdin(Stdio::piped());
        let mut keeper = Owned::start(&mut command)?;
        let outcome = work()?;
        if keeper.has_ended()? {
            bail!("{command:?} ended too early: the client's core may have halted");
        }
        Ok(outcome)
    }

    /// Starts to load a server. The load ends when the returned process is dropped.
    pub(crate) fn start_load(&self, running: &Running, load: &[String]) -> anyhow::Result<Owned> {
        let mut command = self.pinned(self.client_core, "tide");
        command
            .arg("bench")
            .args(load)
            .args(["--connect", &format!("127.0.0.1:{}", running.port), "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Owned::start(&mut command)
    }

    /// Loads a server and returns the client's report.
    pub(crate) fn load(
        &self,
        running: &Running,
        load: &[String],
        time_max: Duration,
    ) -> anyhow::Result<Map<String, Value>> {
        let mut command = self.pinned(self.client_core, "tide");
        command
            .arg("bench")
            .args(load)
            .args(["--connect", &format!("127.0.0.1:{}", running.port), "--json"])
            .args(["--pid", &running.owned.child.id().to_string()])
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut owned = Owned::start(&mut command)?;
        let (report, errors) = (owned.child.stdout.take(), owned.child.stderr.take());
        // A report with many samples is longer than a pipe holds, and the client would block: read while it runs.
        let report = read_whole(report.context("standard output is piped")?)?;
        let errors = read_whole(errors.context("standard error is piped")?)?;
        let deadline = Instant::now() + time_max;
        let status = loop {
            match owned.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => bail!("{command:?} takes too long"),
                None => std::thread::sleep(LOOK_INTERVAL),
            }
        };
        let ended = |_| anyhow!("reading what {command:?} says has ended with a panic");
        let report = report.join().map_err(ended)??;
        let errors = errors.join().map_err(ended)??;
        if !status.success() {
            bail!("{command:?} failed:\n{}", errors.trim());
        }
        serde_json::from_str(&report).with_context(|| format!("{command:?} gave no report"))
    }
}

/// Reads to the end on a separate thread.
fn read_whole(
    mut output: impl std::io::Read + Send + 'static,
) -> std::io::Result<JoinHandle<std::io::Result<String>>> {
    std::thread::Builder::new().name("output".into()).spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    })
}

/// Reads to the end, so that the process never blocks on a full pipe.
fn read_lines(output: impl std::io::Read + Send + 'static) -> anyhow::Result<Receiver<String>> {
    let (sender, lines) = channel();
    std::thread::Builder::new().name("output".into()).spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    })?;
    Ok(lines)
}

fn wait_for_port(lines: &Receiver<String>, is_gateway: bool) -> anyhow::Result<u16> {
    let deadline = Instant::now() + START_MAX;
    loop {
        let line = lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .map_err(|error| anyhow!("it ended, or took too long: {error}"))?;
        let port = if is_gateway {
            let Some((_, address)) = line.split_once(ANNOUNCEMENT) else { continue };
            address.trim().rsplit(':').next().unwrap_or_default().to_owned()
        } else {
            line
        };
        return port.trim().parse().with_context(|| format!("`{port}` is no port"));
    }
}

/// Builds the compared binaries.
pub(crate) fn build(root: &Path) -> anyhow::Result<()> {
    let packages = ["-p", "tidegate", "-p", "tidegate-tools", "-p", "tidegate-benches"];
    let status = Command::new("cargo")
        .args(["build", "--release", "--bins"])
        .args(packages)
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the build failed");
    }
    Ok(())
}
