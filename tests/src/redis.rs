//! Real Redis servers: one, a Sentinel set, a cluster. Each has a separate folder and ports below the kernel's range, so
//! that it restarts with its data on its port. All of them end with their test.
//!
//! The harness speaks to them through `redis-cli`. Tests use a client of their own.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::port::Port;
use crate::process::Process;
use crate::until;

mod cluster;
mod deployment;
mod sentinel;

pub use cluster::Cluster;
pub use deployment::Deployment;
pub use sentinel::SentinelSet;

/// How long `redis-cli` waits, in seconds.
const CLI_TIMEOUT_S: &str = "5";

/// What to start and how. Without options: no persistence, no password.
#[derive(Clone, Debug)]
pub struct RedisSetup {
    /// The lines of `redis.conf`.
    config: String,
    password: Option<String>,
    arguments: Vec<String>,
}

/// A Redis server.
#[derive(Debug)]
pub struct Redis {
    port: Port,
    folder: TempDir,
    password: Option<String>,
    arguments: Vec<String>,
    /// The port of the cluster bus.
    bus: Option<Port>,
    process: Process,
}

impl Default for RedisSetup {
    fn default() -> Self {
        Self { config: String::new(), password: None, arguments: Vec::new() }.line("save \"\"")
    }
}

impl RedisSetup {
    /// Adds a line to `redis.conf`, for example `user publisher on >secret ~tg1:* +fcall`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        writeln!(self.config, "{line}").unwrap();
        self
    }

    /// Writes each command to a file before it is answered, so that a restart loses nothing.
    #[must_use]
    pub fn append_only(self) -> Self {
        self.line("appendonly yes").line("appendfsync always")
    }

    /// The password of the default user.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.line(&format!("requirepass {password}")).line(&format!("masterauth {password}"))
    }

    /// A replica of another server.
    #[must_use]
    pub fn replica_of(self, master: &Redis) -> Self {
        self.line(&format!("replicaof 127.0.0.1 {}", master.port()))
            .line("repl-diskless-sync-delay 0")
    }

    /// A sentinel, not a server with data.
    fn sentinel(mut self) -> Self {
        // A sentinel refuses options of a server with data.
        self.config.clear();
        self.arguments.push("--sentinel".to_owned());
        self
    }

    /// Starts the server and waits until it answers.
    #[must_use]
    pub fn start(self) -> Redis {
        self.start_on(None)
    }

    /// Starts a node of a cluster.
    fn start_node(self) -> Redis {
        let bus = Port::reserve();
        let port = bus.number();
        self.line("cluster-enabled yes").line(&format!("cluster-port {port}")).start_on(Some(bus))
    }

    fn start_on(self, bus: Option<Port>) -> Redis {
        let port = Port::reserve();
        let folder = tempfile::tempdir().unwrap();
        let fixed =
            format!("bind 127.0.0.1\nport {}\ndir {}\n", port.number(), folder.path().display());
        fs::write(folder.path().join("redis.conf"), fixed + &self.config).unwrap();
        let process = start_process(&folder, &self.arguments);
        let (password, arguments) = (self.password, self.arguments);
        let mut redis = Redis { port, folder, password, arguments, bus, process };
        redis.wait_for_answer();
        redis
    }
}

fn start_process(folder: &TempDir, arguments: &[String]) -> Process {
    let mut command = Command::new("redis-server");
    command.arg(folder.path().join("redis.conf")).args(arguments);
    Process::start(&mut command, "")
}

impl Redis {
    /// A server without persistence and password.
    #[must_use]
    pub fn single() -> Self {
        RedisSetup::default().start()
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its URL, with the password of the default user.
    #[must_use]
    pub fn url(&self) -> String {
        let user = self.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{user}127.0.0.1:{}/", self.port())
    }

    /// The folder with its configuration and its data.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The server with both of its ports, as `redis-cli --cluster` writes it.
    fn cluster_address(&self) -> String {
        let bus = self.bus.as_ref().expect("a node of a cluster").number();
        format!("127.0.0.1:{}@{bus}", self.port())
    }

    /// Runs `redis-cli` with this server and returns its output: errors too, which begin with their word. It is empty if
    /// the server does not answer in time.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = self.run_cli(arguments, "");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a command that must be answered with OK.
    pub fn ok(&self, arguments: &[&str]) {
        assert_eq!(self.cli(arguments), "OK", "{arguments:?}");
    }

    /// Loads a function library, as a gateway does.
    pub fn load_library(&self, text: &str) {
        let output = self.run_cli(&["-x", "FUNCTION", "LOAD", "REPLACE"], text);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(answer.trim_end(), "tidegate", "the library is not loaded");
    }

    fn run_cli(&self, arguments: &[&str], input: &str) -> Output {
        // A server that is paused does not answer.
        let mut command = Command::new("timeout");
        command.args([CLI_TIMEOUT_S, "redis-cli", "-p", &self.port().to_string()]).args(arguments);
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input");
        fs::write(&path, input).unwrap();
        command.stdin(fs::File::open(path).unwrap()).stderr(Stdio::piped());
        command.output().unwrap_or_else(|error| panic!("can't run redis-cli: {error}"))
    }

    /// The value of a line `name:value` of INFO.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<String> {
        let info = self.cli(&["INFO"]);
        let mut lines = info.lines().map(str::trim_end);
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned))
    }

    /// Whether it is a master that answers.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.info("role").as_deref() == Some("master")
    }

    /// Waits until this replica has everything that its master has.
    pub fn wait_for_sync(&self, master: &Self) {
        until("the replica is up to date", || {
            let linked = self.info("master_link_status")? == "up";
            let same = self.info("slave_repl_offset")? == master.info("master_repl_offset")?;
            (linked && same).then_some(())
        });
    }

    fn wait_for_answer(&mut self) {
        until("Redis answers", || {
            assert!(self.process.is_running(), "redis-server ended: {}", self.process.stdout.all());
            (self.cli(&["PING"]) == "PONG").then_some(())
        });
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait();
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, with its data and on its port. It must have ended.
    pub fn restart(&mut self) {
        assert!(!self.process.is_running(), "still running");
        self.process = start_process(&self.folder, &self.arguments);
        self.wait_for_answer();
    }

    /// Stops it with SIGSTOP: its sockets stay and nothing is answered.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it continue after [`Redis::pause`].
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }
}
