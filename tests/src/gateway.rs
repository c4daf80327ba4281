//! A gateway in a separate process and folder: start with flags, stop, kill, restart.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::{Resource, Rlimit, Signal, prlimit};
use tempfile::TempDir;

use crate::port::Port;
use crate::process::{FILE_BYTES_MAX, Process, Sink};
use crate::programs::programs;
use crate::wire::{self, Wire};
use crate::{Operator, Phone, until};

/// What to start and how.
#[derive(Debug)]
pub struct Setup {
    program: PathBuf,
    /// Arguments of `confine`: what the gateway may not use.
    confines: Vec<String>,
    flags: Vec<String>,
    variables: Vec<(String, OsString)>,
    port: Option<Port>,
    /// The operators' port, if it can't be read from the standard output.
    admin_port: Option<Port>,
    stdout: Sink,
    stderr: Sink,
    folder: TempDir,
}

/// A running gateway. It is killed when its test ends.
#[derive(Debug)]
pub struct Gateway {
    setup: Setup,
    /// Its process.
    pub process: Process,
    clients: SocketAddr,
    operators: SocketAddr,
}

impl Setup {
    /// A gateway with the demo backend and demo tokens, on one shard.
    #[must_use]
    pub fn demo() -> Self {
        Self::of(&programs().tidegate).shards(1).set("auth.mode", "demo")
    }

    /// A gateway that requires JSON Web Tokens, with the default configuration.
    #[must_use]
    pub fn jwt() -> Self {
        Self::of(&programs().tidegate)
    }

    /// The example `quiz`, which has its own backend beside the demo's. Its calls time out no earlier than a test.
    #[must_use]
    pub fn quiz() -> Self {
        let setup = Self::of(&programs().quiz).shards(1).set("auth.mode", "demo");
        setup.quiz_times_out_after_ms(60_000)
    }

    /// The example `blocking`, whose backend blocks its two workers and has so long to answer.
    #[must_use]
    pub fn blocking(timeout_ms: u32) -> Self {
        let route = |types, backend| {
            format!(r#"{{types={types},backend="{backend}",timeout_ms={timeout_ms}}}"#)
        };
        let routes = [
            route("[1,99]", "demo"),
            route("[200,209]", "blocking"),
            route("[210,219]", "control"),
        ];
        Self::of(&programs().blocking)
            .shards(1)
            .set("auth.mode", "demo")
            .set("backends.blocking.workers", 2)
            .set("backends.control.placement", "shard")
            .set("routes", format!("[{}]", routes.join(",")))
    }

    /// Sets the timeout of calls to the quiz.
    #[must_use]
    pub fn quiz_times_out_after_ms(self, ms: u32) -> Self {
        let demo = r#"{types=[1,99],backend="demo"}"#;
        let quiz = format!(r#"{{types=[100,199],backend="quiz",timeout_ms={ms}}}"#);
        // The check of the configuration knows a backend only by a key of it.
        self.set("backends.quiz.workers", 2).set("routes", format!("[{demo},{quiz}]"))
    }

    fn of(program: &Path) -> Self {
        let setup = Self {
            program: program.to_owned(),
            confines: Vec::new(),
            flags: Vec::new(),
            variables: Vec::new(),
            port: None,
            admin_port: None,
            stdout: Sink::Kept,
            stderr: Sink::Kept,
            folder: tempfile::tempdir().unwrap(),
        };
        setup.set("listen", "127.0.0.1:0").set("admin.listen", "127.0.0.1:0")
    }

    /// Starts this program in place of the one under test: for measurements.
    #[must_use]
    pub fn program(mut self, path: &Path) -> Self {
        self.program = path.canonicalize().unwrap();
        self
    }

    /// Sets a key of the configuration.
    #[must_use]
    pub fn set(self, key: &str, value: impl Display) -> Self {
        self.flag("--set").flag(&format!("{key}={value}"))
    }

    /// Adds a listener for each wire, and a certificate.
    #[must_use]
    pub fn wires(self) -> Self {
        wire::write_certificate(self.folder());
        let wires = Wire::ALL.iter().filter(|wire| **wire != Wire::Tcp);
        wires
            .fold(self, |setup, wire| setup.listener(wire.name(), *wire))
            .set("tls.certificates.main.chain_file", wire::CHAIN_FILE)
            .set("tls.certificates.main.key_file", wire::KEY_FILE)
    }

    /// Adds a listener. Listeners are announced in the order of their names.
    #[must_use]
    pub fn listener(self, name: &str, wire: Wire) -> Self {
        self.set(&format!("listeners.{name}.listen"), "127.0.0.1:0")
            .set(&format!("listeners.{name}.wire"), wire.name())
    }

    /// Adds a flag.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Confines the gateway with a container's seccomp profile.
    #[must_use]
    pub fn seccomp(mut self, profile: &Path) -> Self {
        self.confines.push(format!("--seccomp={}", profile.display()));
        self
    }

    /// Makes the kernel refuse io_uring, as in many containers.
    #[must_use]
    pub fn without_uring(mut self) -> Self {
        self.confines.push("--no-io-uring".to_owned());
        self
    }

    /// Limits its open descriptors.
    #[must_use]
    pub fn descriptors(mut self, limit: u64) -> Self {
        self.confines.push(format!("--nofile={limit}"));
        self
    }

    /// Gives it a configuration file with this text.
    #[must_use]
    pub fn toml(self, text: &str) -> Self {
        fs::write(self.folder.path().join("tidegate.toml"), text).unwrap();
        self.flag("--config").flag("tidegate.toml")
    }

    /// Sets the number of shards.
    #[must_use]
    pub fn shards(self, count: u16) -> Self {
        self.set("shards", count)
    }

    /// Makes it listen on a port that is still free after a restart.
    #[must_use]
    pub fn on_a_reserved_port(mut self) -> Self {
        let port = Port::reserve();
        let address = format!("127.0.0.1:{}", port.number());
        self.port = Some(port);
        self.set("listen", address)
    }

    /// Connects its standard output to a sink.
    #[must_use]
    pub fn stdout(mut self, sink: Sink) -> Self {
        self.stdout = sink;
        if sink == Sink::Kept {
            return self;
        }
        // The addresses can't be read from its standard output.
        let admin_port = Port::reserve();
        let address = format!("127.0.0.1:{}", admin_port.number());
        self.admin_port = Some(admin_port);
        self.set("admin.listen", address).on_a_reserved_port()
    }

    /// Connects its standard error, and so its log, to a sink.
    #[must_use]
    pub fn stderr(mut self, sink: Sink) -> Self {
        self.stderr = sink;
        self
    }

    /// The folder that it runs in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it, and waits until it listens.
    #[must_use]
    pub fn start(self) -> Gateway {
        let (process, clients, operators) = self.launch();
        Gateway { setup: self, process, clients, operators }
    }

    /// Starts it without waiting.
    #[must_use]
    pub fn begin(&self) -> Process {
        Process::start(&mut self.command(), "")
    }

    /// Runs a gateway that ends without a signal. Returns its exit status, standard output and standard error.
    #[must_use]
    pub fn run(&self) -> (ExitStatus, String, String) {
        Process::run(&mut self.command(), "")
    }

    /// The command that starts it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut line: Vec<OsString> = Vec::new();
        let sinks = [(self.stdout, "1>&-"), (self.stderr, "2>&-")];
        let closed = sinks.into_iter().filter(|(sink, _)| *sink == Sink::Closed);
        let closed: Vec<_> = closed.map(|(_, redirection)| redirection).collect();
        if !closed.is_empty() {
            line.extend(["sh".into(), "-c".into()]);
            line.extend([format!("exec \"$@\" {}", closed.join(" ")).into(), "sh".into()]);
        }
        if sinks.iter().any(|(sink, _)| *sink == Sink::FileLimit) {
            line.extend(["prlimit".into(), format!("--fsize={FILE_BYTES_MAX}").into()]);
        }
        if !self.confines.is_empty() {
            line.push(programs().confine.clone().into());
            line.extend(self.confines.iter().map(OsString::from));
        }
        line.push(self.program.clone().into());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        command.args(&self.flags).current_dir(self.folder());
        for (name, _) in std::env::vars_os() {
            // The whole suite runs once with each driver.
            if name.to_string_lossy().starts_with("TIDEGATE_") && name != "TIDEGATE_DRIVER" {
                command.env_remove(name);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn launch(&self) -> (Process, SocketAddr, SocketAddr) {
        let process = Process::start_with(&mut self.command(), "", self.stdout, self.stderr);
        if let (Some(port), Some(admin_port)) = (&self.port, &self.admin_port) {
            let [clients, operators] =
                [port, admin_port].map(|port| SocketAddr::from(([127, 0, 0, 1], port.number())));
            until("the gateway listens", || TcpStream::connect(clients).ok());
            return (process, clients, operators);
        }
        // With or without a PROXY header.
        let clients = process.stdout.find("where clients connect", |said| {
            announced_places(said).first().map(|place| address_of(place))
        });
        let before = "listening for operators on http://";
        let operators = process.stdout.find(before, |said| {
            let line = said.lines().find_map(|line| line.strip_prefix(before))?;
            line.strip_suffix('/')?.parse().ok()
        });
        (process, clients, operators)
    }
}

/// The places where clients connect, of what a gateway has announced so far.
#[must_use]
pub fn announced_places(said: &str) -> Vec<String> {
    let whole = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let of_clients = whole.filter(|line| line.starts_with("listening for clients "));
    of_clients.filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
}

impl Gateway {
    /// Where clients connect.
    #[must_use]
    pub const fn clients(&self) -> SocketAddr {
        self.clients
    }

    /// Where operators connect.
    #[must_use]
    pub const fn operators(&self) -> SocketAddr {
        self.operators
    }

    /// The places where clients connect, as `tide client --connect` takes them, in the order of the listeners' names.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        announced_places(&self.process.stdout.so_far())
    }

    /// The place where this wire is spoken, of a gateway that was set up with [`Setup::wires`].
    #[must_use]
    pub fn place(&self, wire: Wire) -> String {
        let scheme = format!("{}://", wire.name());
        let speaks = |place: &String| match wire {
            Wire::Tcp => !place.contains("://"),
            _ => place.starts_with(&scheme),
        };
        self.places().into_iter().find(speaks).expect("a listener has this wire")
    }

    /// The address where this wire is spoken.
    #[must_use]
    pub fn address(&self, wire: Wire) -> SocketAddr {
        address_of(&self.place(wire))
    }

    /// The certificate that the gateway's folder holds now.
    #[must_use]
    pub fn certificate(&self) -> String {
        fs::read_to_string(self.folder().join(wire::CHAIN_FILE)).unwrap()
    }

    /// A client that is connected over a wire, without a session.
    #[must_use]
    pub fn connect_over(&self, wire: Wire) -> Phone {
        let config = |alpn: &str| wire::client_config(&[&self.certificate()], alpn);
        Phone::connect_over(self.address(wire), wire, config).unwrap()
    }

    /// A client with a session, over a wire.
    #[must_use]
    pub fn login_over(&self, wire: Wire, user_id: u64) -> Phone {
        let mut phone = self.connect_over(wire);
        phone.login(user_id);
        phone
    }

    /// The folder that it runs in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.setup.folder()
    }

    /// How it was started.
    #[must_use]
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// A client that is connected, without a session.
    #[must_use]
    pub fn connect(&self) -> Phone {
        Phone::connect(self.clients)
    }

    /// A client with a session, with a demo token.
    #[must_use]
    pub fn login(&self, user_id: u64) -> Phone {
        let mut phone = self.connect();
        phone.login(user_id);
        phone
    }

    /// An operator with the gateway's token.
    #[must_use]
    pub fn operator(&self) -> Operator {
        let token = fs::read_to_string(self.folder().join(".tidegate/admin.token")).unwrap();
        Operator::new(self.operators, token.trim())
    }

    /// Runs `tide` with these arguments in the gateway's folder.
    #[must_use]
    pub fn tide(&self, arguments: &[&str], input: &str) -> (ExitStatus, String, String) {
        let mut command = Command::new(&programs().tide);
        Process::run(command.args(arguments).current_dir(self.folder()), input)
    }

    /// Prevents it from opening another descriptor, as long as it closes none.
    pub fn take_descriptors(&self) {
        let pid = self.process.pid();
        let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
        let number = |file: std::io::Result<fs::DirEntry>| {
            file.unwrap().file_name().into_string().unwrap().parse::<u64>().unwrap()
        };
        let open: BTreeSet<_> = open.map(number).collect();
        // The kernel gives the lowest free one.
        let free = (0..).find(|number| !open.contains(number));
        let limit = Rlimit { current: free, maximum: free };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    }

    /// Sends SIGTERM, as a service manager does: it drains.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Kills it with SIGKILL, and starts it again on the same port.
    pub fn crash_and_restart(&mut self) {
        self.process.kill();
        self.restart();
    }

    /// Starts it again in the same folder with the same flags. It must have ended.
    pub fn restart(&mut self) {
        let before = self.clients;
        (self.process, self.clients, self.operators) = self.setup.launch();
        if self.setup.port.is_some() {
            assert_eq!(self.clients, before);
        }
    }
}

/// The address in a place.
#[must_use]
pub fn address_of(place: &str) -> SocketAddr {
    let address = place.split_once("://").map_or(place, |(_, rest)| rest);
    address.split('/').next().unwrap_or(address).parse().unwrap()
}
