//! The command line of `tide bench`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;

use super::WORKERS_MAX;
use super::report::{CompareArgs, GatewayArgs, Invocation, OutputArgs};
use super::source::{Addresses, SourceRange};
use crate::argument::{self, BYTES_MAX, whole};
use crate::wire::{Target, Trust};
use crate::{count, duration};

/// Loads a gateway and measures it.
///
/// Every byte of an answer is verified. Memory alone limits the connections of one process: beyond the
/// limit of open files they are split over threads, each with its own descriptor table.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) scenario: Scenario,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Scenario {
    /// Connects and authenticates many clients and holds them; with --cycle, connects and closes again and again.
    Connect(ConnectArgs),
    /// Sends requests and checks every byte of every answer.
    Request(RequestArgs),
    /// Pushes to all clients and checks that each gets every push, once and in order.
    Broadcast(BroadcastArgs),
    /// Connects, authenticates, closes, and again, as fast as possible: `--connections` of these at a time.
    Storm(StormArgs),
    /// A live show: the audience arrives, gets questions and many other pushes, answers some, and leaves.
    Show(ShowArgs),
    /// Compares two reports: files that --output wrote, or what --json printed.
    Compare(CompareArgs),
}

/// Options of every scenario.
#[derive(Debug, clap::Args)]
pub(super) struct CommonArgs {
    #[command(flatten)]
    pub(super) invocation: Invocation,
    /// Where the gateway listens: HOST:PORT, tls://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH. Repeat
    /// it to spread the connections over several places.
    #[arg(id = "connect", long, value_name = "PLACE", required = true)]
    pub(super) targets: Vec<Target>,
    #[command(flatten)]
    pub(super) trust: Trust,
    /// Connections to hold: `1500`, `100k`, `1m`.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = count::connections)]
    pub(super) connections: u32,
    /// Threads that share the connections, each with its own descriptor table. By default, as few as the
    /// limit of open files allows. Threads that share a core take turns, and latencies include that wait.
    #[arg(long, value_name = "COUNT", value_parser = whole(1..=WORKERS_MAX))]
    pub(super) workers: Option<usize>,
    /// Source addresses to connect from, in rotation: `10.0.0.7`, or `10.0.0.7-10.0.0.99`; may be repeated.
    /// Each has some 28,000 ports per destination. By default, each 2,500 connections to 127.x.y.z have their
    /// own source address, and the kernel chooses it for all other destinations.
    #[arg(id = "source", long, value_name = "ADDR")]
    pub(super) sources: Vec<SourceRange>,
    /// Connections to open per second; by default, as fast as possible.
    #[arg(long, visible_alias = "ramp-rate", value_name = "PER_SECOND", value_parser = argument::rate)]
    pub(super) connect_rate: Option<f64>,
    /// How long connections may wait while the gateway admits none; then the run ends with an error.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse_interval)]
    pub(super) admission_timeout: Duration,
    /// How often each connection sends a heartbeat; by default, as often as the gateway asks for.
    #[arg(long, value_name = "TIME", value_parser = duration::parse_interval)]
    pub(super) heartbeat_interval: Option<Duration>,
    /// How long to measure: `4`, `4s`, `500ms`, `2m`, `1h`.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_or_seconds)]
    pub(super) duration: Duration,
    /// How long to run the load before measuring.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse_or_seconds)]
    pub(super) warmup: Duration,
    /// The token of a user; `{user}` is replaced by the user's id. The default fits a gateway with --auth demo.
    #[arg(long, default_value = "token-{user}")]
    pub(super) token_template: String,
    /// The user id of the first connection; the next connection has the next id, and so on.
    #[arg(long, value_name = "ID", default_value_t = 1, value_parser = whole(0..=u64::MAX / 2))]
    pub(super) first_user: u64,
    /// Polls without sleeping. On the same machine, a server pays CPU time to wake a client that sleeps; over
    /// a network it would not.
    #[arg(long)]
    pub(super) spin: bool,
    /// The server's process: adds its CPU time and memory to the report. It must listen on every address of
    /// `--connect`.
    ///
    /// Memory per connection is meaningful only for a server that was just started: an older one still holds
    /// memory of closed connections.
    #[arg(long, value_parser = argument::process)]
    pub(super) pid: Option<u32>,
    #[command(flatten)]
    pub(super) gateway: GatewayArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConnectArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// Connect, authenticate, heartbeat, close, and again: `--connections` of these at a time.
    #[arg(long)]
    pub(super) cycle: bool,
    /// Sends authentication and heartbeat in one segment.
    #[arg(long, requires = "cycle")]
    pub(super) pipelined: bool,
    /// Closes with a reset (RST) and not with a FIN.
    #[arg(long, requires = "cycle")]
    pub(super) reset: bool,
    /// Without the protocol: sends the same number of bare bytes and expects them back.
    #[arg(long)]
    pub(super) raw: bool,
    /// Sends one heartbeat on each connection, as fast as they are answered, and measures for that long instead
    /// of `--duration`.
    #[arg(long, conflicts_with_all = ["cycle", "raw"])]
    pub(super) heartbeat_sweep: bool,
    /// Sends one echo of this many bytes on each connection, then measures the memory again.
    #[arg(long, value_name = "BYTES", conflicts_with = "cycle", value_parser = whole(0..=BYTES_MAX))]
    pub(super) large_answers: Option<usize>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RequestArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// Bytes of `biz_data` in each request.
    #[arg(long, default_value_t = 64, value_parser = whole(0..=BYTES_MAX))]
    pub(super) bytes: usize,
    /// The type of the requests; the backend must answer it with an echo.
    #[arg(id = "type", long, default_value_t = 1, value_parser = whole(1..=i32::MAX))]
    pub(super) kind: i32,
    /// Closed loop: requests in flight on each connection.
    #[arg(long, default_value_t = 1, value_parser = whole::<u32>(1..=65_536))]
    pub(super) depth: u32,
    /// Closed loop: requests in flight in total. Each further request goes to the next connection, so all
    /// connections are used in rotation.
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["depth", "rate"])]
    #[arg(value_parser = whole::<u32>(1..=1_000_000_000))]
    pub(super) in_flight: Option<u32>,
    /// Open loop: requests per second in total; latency counts from the scheduled time.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "depth", value_parser = argument::rate)]
    pub(super) rate: Option<f64>,
    /// Without the protocol: sends as many bare bytes as the request's frame has and expects them back.
    #[arg(long)]
    pub(super) raw: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct BroadcastArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// Bytes of `biz_data` in each push.
    #[arg(long, default_value_t = 130, value_parser = whole(0..=BYTES_MAX))]
    pub(super) bytes: usize,
    /// The type of the publications; the backend must push it to all clients.
    #[arg(id = "type", long, default_value_t = 2, value_parser = whole(1..=i32::MAX))]
    pub(super) kind: i32,
    /// Publications per second; 0 publishes nothing.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0, value_parser = argument::rate_or_0)]
    pub(super) rate: f64,
    /// Publishes as fast as possible, with this many publications in flight.
    #[arg(long, conflicts_with = "rate", value_parser = whole::<u32>(1..=4096))]
    pub(super) in_flight: Option<u32>,
    /// Echoes per second on separate connections, measured at the same time.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0.0, value_parser = argument::rate_or_0)]
    pub(super) echo_rate: f64,
    /// The number of connections for these echoes.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = count::connections)]
    pub(super) echo_connections: u32,
    /// Bytes of `biz_data` in each of these echoes.
    #[arg(long, default_value_t = 64, value_parser = whole(0..=BYTES_MAX))]
    pub(super) echo_bytes: usize,
    /// Without the protocol: publishes nothing and counts received bytes, `--bytes` of them as one delivery.
    #[arg(long, conflicts_with_all = ["echo_rate", "in_flight"])]
    pub(super) raw: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct StormArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// The share of the connections, from 0 to 1, that connect and then send nothing. The gateway must close
    /// each of them with a goodbye 109; then another one connects.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = argument::share)]
    pub(super) slow_share: f64,
    /// The gateway must close each of these within this time.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration::parse_or_seconds)]
    pub(super) slow_deadline: Duration,
    /// Closes with a reset (RST) and not with a FIN.
    #[arg(long)]
    pub(super) reset: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// The audience connects evenly over this time. The show then lasts for `--warmup` and `--duration`.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_or_seconds)]
    pub(super) arrive: Duration,
    /// The time between two questions: each is a push to all clients.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_interval)]
    pub(super) question_every: Duration,
    /// The share of the audience, from 0 to 1, that answers a question: with an echo, within a second.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = argument::share)]
    pub(super) answer_share: f64,
    /// Barrage comments per second: pushes to all clients, beside the questions; 0: none.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 20.0, value_parser = argument::rate_or_0)]
    pub(super) barrage: f64,
    /// The audience disconnects evenly over this time, at most 60s.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_or_seconds)]
    pub(super) leave: Duration,
    /// Bytes of `biz_data` in each push.
    #[arg(long, default_value_t = 130, value_parser = whole(0..=BYTES_MAX))]
    pub(super) bytes: usize,
    /// Bytes of `biz_data` in each answer.
    #[arg(long, default_value_t = 64, value_parser = whole(0..=BYTES_MAX))]
    pub(super) answer_bytes: usize,
}

/// What opens a connection, for the title of a report.
pub(super) fn connect_label(common: &CommonArgs) -> &'static str {
    if common.all_have_tls() { "connect, TLS handshake" } else { "connect" }
}

impl CommonArgs {
    /// The address of each place.
    pub(super) fn socket_addresses(&self) -> Vec<SocketAddr> {
        self.targets.iter().map(|target| target.address).collect()
    }

    /// Whether each connection makes a TLS handshake.
    pub(super) fn all_have_tls(&self) -> bool {
        self.targets.iter().all(|target| target.place.kind().has_tls())
    }

    /// The destination and source addresses of the connections.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses::new(self.socket_addresses(), self.sources.clone())
    }

    /// Refuses an empty measured window before anything connects.
    ///
    /// # Errors
    /// `--duration` is 0.
    pub(super) fn ensure_window(&self) -> anyhow::Result<()> {
        ensure!(
            !self.duration.is_zero(),
            "--duration 0 measures nothing: use a longer time, such as 10s"
        );
        Ok(())
    }
}
