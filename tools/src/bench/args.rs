//! What `tide bench` can be asked for.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;

use super::WORKERS_MAX;
use super::report::{Asked, CompareArgs, OutputArgs};
use super::source::{Addresses, SourceRange};
use crate::argument::{self, BYTES_MAX, whole};
use crate::{count, duration};

/// Loads a gateway and measures it.
///
/// Everything that comes back is verified. One process holds as many connections as there is memory
/// for: past the limit of open files they are split over threads with files of their own.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) scenario: Scenario,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Scenario {
    /// Connects and authenticates many clients and holds them; or goes through whole connections.
    Connect(ConnectArgs),
    /// Sends requests and checks every byte of every answer.
    Request(RequestArgs),
    /// Pushes to everybody and checks that everybody gets everything, once, in order.
    Broadcast(BroadcastArgs),
    /// Connects, authenticates, closes, and again, as fast as it goes: `--connections` of these at a time.
    Storm(StormArgs),
    /// A live show: everybody arrives, gets questions and a barrage of pushes, answers some, and leaves.
    Show(ShowArgs),
    /// Puts two reports side by side: what --output wrote, or --json printed.
    Compare(CompareArgs),
}

/// What every scenario takes.
#[derive(Debug, clap::Args)]
pub(super) struct CommonArgs {
    #[command(flatten)]
    pub(super) asked: Asked,
    /// Where the gateway listens; repeat it to spread the connections over several.
    #[arg(long = "connect", value_name = "ADDR", required = true, value_parser = argument::address)]
    pub(super) addresses: Vec<SocketAddr>,
    /// Connections to hold: `1500`, `100k`, `1m`.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = count::connections)]
    pub(super) connections: u32,
    /// Threads that share the connections, each with open files of its own. Without it, as few as the
    /// limit of open files needs: one, where that holds all. Where they share a core they take turns, and
    /// latencies count the wait.
    #[arg(long, value_name = "COUNT", value_parser = whole(1..=WORKERS_MAX))]
    pub(super) workers: Option<usize>,
    /// Addresses to connect from, in turn: `10.0.0.7`, or `10.0.0.7-10.0.0.99`; may be repeated. Each has
    /// some 28,000 ports for each address to connect to. Without it, connections to 127.x.y.z come from a
    /// source for every 2,500, and all others from where the kernel sees fit.
    #[arg(long = "source", value_name = "ADDR")]
    pub(super) sources: Vec<SourceRange>,
    /// Connections a second to open; without it, as fast as it goes.
    #[arg(long, visible_alias = "ramp-rate", value_name = "PER_SECOND", value_parser = argument::rate)]
    pub(super) connect_rate: Option<f64>,
    /// How long the gateway may let nobody in while somebody waits; then the run ends with an error.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse_interval)]
    pub(super) patience: Duration,
    /// How often each connection sends a heartbeat; without it, as often as the gateway asks for.
    #[arg(long, value_name = "TIME", value_parser = duration::parse_interval)]
    pub(super) heartbeat_interval: Option<Duration>,
    /// How long to measure: `4`, `4s`, `500ms`, `2m`, `1h`.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_or_seconds)]
    pub(super) duration: Duration,
    /// How long to run before measuring.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration::parse_or_seconds)]
    pub(super) warmup: Duration,
    /// The token of a user; `{user}` stands for its id. The default fits a gateway with --auth demo.
    #[arg(long, default_value = "token-{user}")]
    pub(super) token_template: String,
    /// The first connection's user id; each one after it has the next.
    #[arg(long, value_name = "ID", default_value_t = 1, value_parser = whole(0..=u64::MAX / 2))]
    pub(super) first_user: u64,
    /// Never sleeps. Where the server runs on this machine, each send to a client that sleeps makes the
    /// server pay for waking it, which no network would.
    #[arg(long)]
    pub(super) spin: bool,
    /// The server's process: adds its CPU time and memory to the report.
    ///
    /// Memory per connection means something only for a server that has just been started: an older one still
    /// holds memory of connections that are gone.
    #[arg(long, value_parser = argument::process)]
    pub(super) pid: Option<u32>,
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
    /// Closes with a reset rather than in order.
    #[arg(long, requires = "cycle")]
    pub(super) reset: bool,
    /// Speaks no protocol: sends as many bytes and expects them back.
    #[arg(long)]
    pub(super) raw: bool,
    /// Sends one heartbeat on each connection, as fast as they are answered, and measures that instead of
    /// `--duration`.
    #[arg(long, conflicts_with_all = ["cycle", "raw"])]
    pub(super) heartbeat_sweep: bool,
    /// Has each connection get one echo of this many bytes, then looks at the memory again.
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
    /// The requests' type; it has to be one that echoes.
    #[arg(long = "type", default_value_t = 1, value_parser = whole(1..=i32::MAX))]
    pub(super) kind: i32,
    /// Closed loop: requests under way on each connection.
    #[arg(long, default_value_t = 1, value_parser = whole::<u32>(1..=65_536))]
    pub(super) depth: u32,
    /// Closed loop: requests under way in total. Each next one is sent on the next connection, so that
    /// they move over all connections in turn.
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["depth", "rate"])]
    #[arg(value_parser = whole::<u32>(1..=1_000_000_000))]
    pub(super) under_way: Option<u32>,
    /// Open loop: requests a second in total; latency counts from the intended time.
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "depth", value_parser = argument::rate)]
    pub(super) rate: Option<f64>,
    /// Speaks no protocol: sends as many bytes as the request's frame has and expects them back.
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
    /// The publications' type; it has to be one that pushes to everybody.
    #[arg(long = "type", default_value_t = 2, value_parser = whole(1..=i32::MAX))]
    pub(super) kind: i32,
    /// Publications a second; 0 publishes nothing.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1.0, value_parser = argument::rate_or_0)]
    pub(super) rate: f64,
    /// As fast as it goes, with this many publications under way.
    #[arg(long, conflicts_with = "rate", value_parser = whole::<u32>(1..=4096))]
    pub(super) in_flight: Option<u32>,
    /// Echoes a second on connections of their own, measured at the same time.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0.0, value_parser = argument::rate_or_0)]
    pub(super) echo_rate: f64,
    /// The connections of those echoes.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = count::connections)]
    pub(super) echo_connections: u32,
    /// Bytes of `biz_data` in each of those echoes.
    #[arg(long, default_value_t = 64, value_parser = whole(0..=BYTES_MAX))]
    pub(super) echo_bytes: usize,
    /// Speaks no protocol: publishes nothing and counts what comes, `--bytes` for a delivery.
    #[arg(long, conflicts_with_all = ["echo_rate", "in_flight"])]
    pub(super) raw: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct StormArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// The part of the connections, from 0 to 1, that connect and then say nothing: each has to be sent
    /// away with a goodbye 109, and another comes.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = argument::share)]
    pub(super) slow_share: f64,
    /// The longest that one of these may be left waiting for its goodbye.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration::parse_or_seconds)]
    pub(super) slow_deadline: Duration,
    /// Closes with a reset rather than in order.
    #[arg(long)]
    pub(super) reset: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// Everybody arrives within this long. The show lasts for `--warmup` and `--duration` after that.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse_or_seconds)]
    pub(super) arrive: Duration,
    /// How often there is a question: a push to everybody.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_interval)]
    pub(super) question_every: Duration,
    /// The part of the audience, from 0 to 1, that answers a question: with an echo, within a second.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = argument::share)]
    pub(super) answer_share: f64,
    /// Pushes a second to everybody, beside the questions; 0: none.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 20.0, value_parser = argument::rate_or_0)]
    pub(super) barrage: f64,
    /// Everybody leaves within this long, at most 60s.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::parse_or_seconds)]
    pub(super) leave: Duration,
    /// Bytes of `biz_data` in each push.
    #[arg(long, default_value_t = 130, value_parser = whole(0..=BYTES_MAX))]
    pub(super) bytes: usize,
    /// Bytes of `biz_data` in each answer.
    #[arg(long, default_value_t = 64, value_parser = whole(0..=BYTES_MAX))]
    pub(super) answer_bytes: usize,
}

impl CommonArgs {
    /// Where connections go and whence.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses::new(self.addresses.clone(), self.sources.clone())
    }

    /// Refuses a window in which nothing can happen, before anybody connects.
    ///
    /// # Errors
    /// It is such a one.
    pub(super) fn demand_window(&self) -> anyhow::Result<()> {
        ensure!(
            !self.duration.is_zero(),
            "--duration 0 measures nothing: name a time, such as 10s"
        );
        Ok(())
    }
}
