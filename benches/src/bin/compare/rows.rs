//! What is compared with what, and what is good enough.

use tidegate_protocol::frame::frame_len;
use tidegate_protocol::message::{Response, SUCCESS};

/// Bytes of `biz_data` in a push.
const PUSH_BYTES: usize = 130;
/// Members that are pushed to.
const MEMBERS: &str = "10000";
/// The gateway's demo type that pushes to everybody.
const PUSH_KIND: i32 = 2;
/// Connections of one thread of a floor that has many, so that a table of 20,000 descriptors holds them.
const SCALE_THREAD_CONNECTIONS: u32 = 16_000;
/// Pushes that are delivered a second as connections grow: half of what the client's core can take at a million.
const SCALE_DELIVERIES_PER_SECOND: u32 = 25_000;
/// A room's offset as it is for most of a run: two bytes on the wire.
const TYPICAL_OFFSET: u64 = 1000;

/// Where the gateway's demo backend runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placement {
    /// On a worker thread.
    Worker,
    /// On the shard's own.
    Shard,
}

/// What serves one side of a comparison.
#[derive(Clone, Debug)]
pub(crate) enum Server {
    /// A floor: its binary and arguments.
    Floor(&'static str, Vec<String>),
    /// The gateway.
    Gateway(Placement, Driver),
}

/// How the gateway talks to the kernel.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Driver {
    /// As it chooses.
    Auto,
    /// epoll.
    Epoll,
    /// io_uring.
    Uring,
}

impl Driver {
    /// As the gateway's flag has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// What serves.
    pub(crate) server: Server,
    /// Arguments of `tide bench`.
    pub(crate) load: Vec<String>,
    /// Arguments of a second `tide bench`, which loads the server meanwhile and isn't measured.
    pub(crate) beside: Option<Vec<String>>,
}

/// How a figure is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds: the target is for the ratio.
    Nanos,
    /// Bytes: the target is for the gateway's figure, since a floor keeps next to nothing.
    Bytes,
}

/// One figure that both sides yield.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Added to the row's name.
    pub(crate) name: &'static str,
    /// Its key in the floor's report.
    pub(crate) floor_key: &'static str,
    /// Its key in the gateway's report.
    pub(crate) gateway_key: &'static str,
    /// The gateway's latency in its report, for p99 / p50; empty where that says nothing.
    pub(crate) latency: &'static str,
    /// What it is in.
    pub(crate) unit: Unit,
    /// The most that is good enough; infinite where the figure is only to be seen.
    pub(crate) target: f64,
}

/// One comparison.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: &'static str,
    /// The bare one.
    pub(crate) floor: Side,
    /// The gateway.
    pub(crate) gateway: Side,
    /// What is taken from both.
    pub(crate) figures: Vec<Figure>,
    /// Seconds that it measures at least, however few were asked for.
    pub(crate) seconds_min: u32,
    /// The client's core is kept from halting: its workers take turns on it, so none can spin.
    pub(crate) keeps_awake: bool,
}

impl Row {
    /// The same load on a gateway with that driver.
    pub(crate) fn driven_by(mut self, driver: Driver) -> Self {
        for side in [&mut self.floor, &mut self.gateway] {
            if let Server::Gateway(_, of_side) = &mut side.server {
                *of_side = driver;
            }
        }
        self
    }

    /// The gateway with epoll in the floor's place: no more than that is good enough.
    pub(crate) fn against_epoll(mut self) -> Self {
        self.floor = self.clone().driven_by(Driver::Epoll).gateway;
        for figure in &mut self.figures {
            figure.floor_key = figure.gateway_key;
            if figure.unit == Unit::Nanos && figure.target.is_finite() {
                figure.target = 1.0;
            }
        }
        self
    }
}

/// Every row, in order.
pub(crate) fn all() -> Vec<Row> {
    use Placement::{Shard, Worker};
    vec![
        echo("echo on the shard, 1,000 connections, depth 1", Shard, "1000", "1", 1.08),
        echo("echo on a worker, 1,000 connections, depth 1", Worker, "1000", "1", 1.15),
        echo("echo on the shard, 1,000 connections, depth 8", Shard, "1000", "8", 1.30),
        echo("echo on a worker, 1,000 connections, depth 8", Worker, "1000", "8", 1.40),
        echo("echo on the shard, 10,000 connections, depth 1", Shard, "10000", "1", 1.08),
        echo("echo on a worker, 10,000 connections, depth 1", Worker, "10000", "1", 1.15),
        open_loop("echo on the shard, 10,000 connections, 20,000 a second", Shard, "20000", 1.10),
        open_loop("echo on a worker, 10,000 connections, 20,000 a second", Worker, "20000", 1.10),
        open_loop("echo on the shard, 10,000 connections, 60,000 a second", Shard, "60000", 1.10),
        open_loop("echo on a worker, 10,000 connections, 60,000 a second", Worker, "60000", 1.10),
        broadcast("broadcast to 10,000, 5 a second", "5", &["--rate", "5"], 1.10),
        // The floor does not merge; a gateway that does is far below it.
        broadcast("broadcast to 10,000, 8 in flight", "0", &["--in-flight", "8"], 1.00),
        cycle("connect, authenticate, heartbeat, close", &[], 1.15),
        cycle("the same, pipelined", &["--pipelined"], 1.15),
        idle(),
        echo_beside_nothing(),
        echo_beside_pushes(),
    ]
}

/// Echoes and pushes as connections grow by a thousand times. As many echoes are under way, and they move over
/// all; as many pushes are delivered, and each goes to all.
pub(crate) fn scale() -> Vec<Row> {
    let echoes = [
        ("echo, 1,000 of 1,000 connections under way", 1000),
        ("echo, 1,000 of 10,000 under way", 10_000),
        ("echo, 1,000 of 100,000 under way", 100_000),
        ("echo, 1,000 of 500,000 under way", 500_000),
        ("echo, 1,000 of 1,000,000 under way", 1_000_000),
    ];
    let pushes = [
        ("push to each of 1,000 members", 1000),
        ("push to each of 10,000 members", 10_000),
        ("push to each of 100,000 members", 100_000),
        ("push to each of 500,000 members", 500_000),
        ("push to each of 1,000,000 members", 1_000_000),
    ];
    let echoes = echoes.map(|(name, connections)| scaled_echo(name, connections));
    let pushes = pushes.map(|(name, connections)| scaled_push(name, connections));
    echoes.into_iter().chain(pushes).collect()
}

/// Where the kernel spreads a floor's connections over its threads, by chance, each has a quarter to spare.
fn scale_threads(connections: u32) -> String {
    connections.div_ceil(SCALE_THREAD_CONNECTIONS).to_string()
}

fn scaled_echo(name: &'static str, connections: u32) -> Row {
    let (threads, connections) = (scale_threads(connections), connections.to_string());
    let load = ["request", "--connections", &connections, "--in-flight", "1000"];
    Row {
        name,
        floor: floor("floor-echo", &["--threads", &threads], &[&load[..], &["--raw"]].concat()),
        gateway: gateway(Placement::Shard, &load),
        figures: cpu(1.25),
        seconds_min: 0,
        keeps_awake: true,
    }
}

fn scaled_push(name: &'static str, connections: u32) -> Row {
    let rate = format!("{:.3}", f64::from(SCALE_DELIVERIES_PER_SECOND) / f64::from(connections));
    // Two pushes to everybody, at least.
    let seconds_min = 2 * connections.div_ceil(SCALE_DELIVERIES_PER_SECOND);
    let (threads, connections) = (scale_threads(connections), connections.to_string());
    let (floor_bytes, bytes) = (push_frame_bytes().to_string(), PUSH_BYTES.to_string());
    let load = ["broadcast", "--connections", &connections];
    let raw = ["--raw", "--bytes", &floor_bytes];
    let floor_args =
        ["--connections", &connections, "--threads", &threads, "--bytes", &floor_bytes];
    Row {
        name,
        floor: floor(
            "floor-fanout",
            &[&floor_args[..], &["--rate", &rate]].concat(),
            &[&load[..], &raw].concat(),
        ),
        gateway: gateway(
            Placement::Worker,
            &[&load[..], &["--bytes", &bytes, "--rate", &rate]].concat(),
        ),
        figures: cpu(1.15),
        seconds_min,
        keeps_awake: true,
    }
}

fn cpu(target: f64) -> Vec<Figure> {
    let key = "server_cpu_ns_each";
    let (floor_key, gateway_key, latency) = (key, key, "latency");
    vec![Figure { name: "", floor_key, gateway_key, latency, unit: Unit::Nanos, target }]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.into()).collect()
}

fn floor(binary: &'static str, arguments: &[&str], load: &[&str]) -> Side {
    Side { server: Server::Floor(binary, words(arguments)), load: words(load), beside: None }
}

fn gateway(placement: Placement, load: &[&str]) -> Side {
    Side { server: Server::Gateway(placement, Driver::Auto), load: words(load), beside: None }
}

fn echo(
    name: &'static str,
    placement: Placement,
    connections: &str,
    depth: &str,
    target: f64,
) -> Row {
    let load = ["request", "--spin", "--connections", connections, "--depth", depth];
    Row {
        name,
        floor: floor("floor-echo", &[], &[&load[..], &["--raw"]].concat()),
        gateway: gateway(placement, &load),
        figures: cpu(target),
        seconds_min: 0,
        keeps_awake: false,
    }
}

/// Echoes at a fixed rate, far below what the server can do: each turn has few requests, so what a turn
/// costs by itself is in the figure.
fn open_loop(name: &'static str, placement: Placement, rate: &str, target: f64) -> Row {
    let load = ["request", "--spin", "--connections", "10000", "--rate", rate];
    let p99 = p99().into_iter().map(|figure| Figure { name: ", p99", ..figure });
    Row {
        name,
        floor: floor("floor-echo", &[], &[&load[..], &["--raw"]].concat()),
        gateway: gateway(placement, &load),
        figures: cpu(target).into_iter().chain(p99).collect(),
        seconds_min: 0,
        keeps_awake: false,
    }
}

fn broadcast(name: &'static str, floor_rate: &str, pace: &[&str], target: f64) -> Row {
    let bytes = push_frame_bytes().to_string();
    let floor_args = ["--connections", MEMBERS, "--bytes", &bytes, "--rate", floor_rate];
    let raw = ["broadcast", "--spin", "--connections", MEMBERS, "--raw", "--bytes", &bytes];
    let push_bytes = PUSH_BYTES.to_string();
    let load = ["broadcast", "--spin", "--connections", MEMBERS, "--bytes", &push_bytes];
    Row {
        name,
        floor: floor("floor-fanout", &floor_args, &raw),
        gateway: gateway(Placement::Worker, &[&load[..], pace].concat()),
        figures: cpu(target),
        seconds_min: 0,
        keeps_awake: false,
    }
}

fn cycle(name: &'static str, how: &[&str], target: f64) -> Row {
    let load = [&["connect", "--spin", "--cycle", "--connections", "64"][..], how].concat();
    Row {
        name,
        floor: floor("floor-accept", &[], &[&load[..], &["--raw"]].concat()),
        gateway: gateway(Placement::Worker, &load),
        figures: cpu(target),
        seconds_min: 0,
        keeps_awake: false,
    }
}

fn idle() -> Row {
    let load = ["connect", "--connections", "15000", "--large-answers", "61440"];
    let figure = |name, key, target| Figure {
        name,
        floor_key: key,
        gateway_key: key,
        latency: "",
        unit: Unit::Bytes,
        target,
    };
    Row {
        name: "idle memory, 15,000 connections",
        floor: floor("floor-echo", &[], &[&load[..], &["--raw"]].concat()),
        gateway: gateway(Placement::Shard, &load),
        figures: vec![
            figure("", "idle_bytes_each", 256.0),
            figure(", after 60 KiB each", "idle_after_large_bytes_each", 282.0),
        ],
        seconds_min: 0,
        keeps_awake: false,
    }
}

/// Echoes at 5,000 a second, from a process of their own: what receives ten thousand pushes is late
/// itself. It warms up for as long as the members take to come in.
const ECHOES: [&str; 8] =
    ["request", "--connections", "100", "--rate", "5000", "--warmup", "4s", "--first-user=50000"];

/// 10,000 members that nobody pushes to.
const IDLE: [&str; 3] = ["connect", "--connections", MEMBERS];
/// 10,000 members that are pushed to without pause.
const PUSHED_TO: [&str; 5] = ["broadcast", "--connections", MEMBERS, "--in-flight", "1"];

/// Echoes beside 10,000 members.
fn echoes_beside(members: &[&str]) -> Side {
    let beside = Some(words(members));
    Side { beside, ..gateway(Placement::Worker, &ECHOES) }
}

fn p99() -> Vec<Figure> {
    let key = "latency_p99_ns";
    let (floor_key, gateway_key, latency) = (key, key, "latency");
    let target = f64::INFINITY;
    vec![Figure { name: "", floor_key, gateway_key, latency, unit: Unit::Nanos, target }]
}

fn echo_beside_nothing() -> Row {
    Row {
        name: "p99 of an echo at 5,000 a second, 10,000 idle members",
        floor: floor("floor-echo", &[], &[&ECHOES[..], &["--raw"]].concat()),
        gateway: echoes_beside(&IDLE),
        figures: p99(),
        seconds_min: 0,
        keeps_awake: false,
    }
}

fn echo_beside_pushes() -> Row {
    Row {
        name: "the same while they are pushed to without pause (floor: not pushed to)",
        floor: echoes_beside(&IDLE),
        gateway: echoes_beside(&PUSHED_TO),
        figures: p99(),
        seconds_min: 0,
        keeps_awake: false,
    }
}

/// A push on the wire, so that the floor sends as many bytes as the gateway.
fn push_frame_bytes() -> usize {
    let (kind, status, offset) = (PUSH_KIND, SUCCESS, TYPICAL_OFFSET);
    let biz_data = &[0; PUSH_BYTES];
    frame_len(Response { kind, status, biz_data, offset, ..Response::default() }.payload_len())
}
