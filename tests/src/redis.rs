//! Real Redis servers: one, a Sentinel set, a cluster. Each has a separate folder and ports below the kernel's range, so
//! that it restarts with its data on its port. All of them end with their test.
//!
//! The harness sends them single commands. Tests use a client of their own.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::port::Port;
use crate::process::Process;
use crate::until;

mod cli;
mod cluster;
mod deployment;
mod sentinel;

pub use cluster::Cluster;
pub use deployment::Deployment;
pub use sentinel::SentinelSet;

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
        let mut redis = self.launch(None);
        redis.wait_for_answer();
        redis
    }

    /// Starts a node of a cluster. It may not answer yet.
    fn launch_node(self) -> Redis {
        let bus = Port::reserve();
        let port = bus.number();
        self.line("cluster-enabled yes").line(&format!("cluster-port {port}")).launch(Some(bus))
    }

    fn launch(self, bus: Option<Port>) -> Redis {
        let port = Port::reserve();
        let folder = tempfile::tempdir().unwrap();
        let fixed =
            format!("bind 127.0.0.1\nport {}\ndir {}\n", port.number(), folder.path().display());
        fs::write(folder.path().join("redis.conf"), fixed + &self.config).unwrap();
        let process = start_process(&folder, &self.arguments);
        let (password, arguments) = (self.password, self.arguments);
        Redis { port, folder, password, arguments, bus, process }
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

    /// The port of the cluster bus.
    fn bus_port(&self) -> u16 {
        self.bus.as_ref().expect("a node of a cluster").number()
    }

    /// Runs a command. Returns the answer as `redis-cli` writes it: errors too, which begin with their word. It is empty if
    /// the server can't be reached or does not answer in time.
    #[must_use]
    pub fn cli(&self, command: &[&str]) -> String {
        cli::run(self.port(), self.password.as_deref(), command)
    }

    /// Runs a command at the node of the cluster that has its key.
    fn cli_in_cluster(&self, command: &[&str]) -> String {
        cli::run_in_cluster(self.port(), self.password.as_deref(), command)
    }

    /// Runs a command that must be answered with OK.
    pub fn ok(&self, arguments: &[&str]) {
        assert_eq!(self.cli(arguments), "OK", "{arguments:?}");
    }

    /// Loads a function library, as a gateway does.
    pub fn load_library(&self, text: &str) {
        assert_eq!(self.cli(&["FUNCTION", "LOAD", "REPLACE", text]), "tidegate");
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
