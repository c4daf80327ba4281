//! What `tide doctor` can be asked.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::argument::{self, whole};
use crate::count::{self, grouped};
use crate::duration;
use crate::operator::Token;

/// The arguments of `tide doctor`.
#[derive(Args, Debug)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct DoctorArgs {
    /// Connections that the machine is to hold: 100000, 100k, 1m; without it, connections_max of the gateway that
    /// --admin or --pid names
    #[arg(long, value_name = "N", value_parser = count::connections)]
    pub(super) connections: Option<u32>,
    #[command(flatten)]
    pub(super) question: Question,
    /// Judge the limits and the network namespace of this process. A gateway is asked through --admin what it
    /// runs with: shards, driver, port, heartbeat interval, connections_max. Run this while it holds few
    /// connections: those count as used of the machine's files and memory, and are asked for again
    #[arg(long, value_parser = argument::process)]
    pub(super) pid: Option<u32>,
    /// Ask the running gateway whose operators' HTTP listens here; with --pid, 127.0.0.1:7401 where it is
    /// left out
    #[arg(long, value_name = "HOST:PORT", value_parser = argument::place)]
    pub(super) admin: Option<String>,
    #[command(flatten)]
    pub(super) token: Token,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
    /// Try to make a ring and end with the errno: `tide doctor` starts itself with this, since a seccomp
    /// filter may kill the process that tries
    #[arg(long, hide = true)]
    pub(super) probe_io_uring: bool,
}

/// What is asked beside the number of connections and the process.
#[derive(Args, Clone, Debug)]
pub(super) struct Question {
    /// Who is to hold them: a gateway accepts, a bench client needs a port for each
    #[arg(long, default_value = "gateway")]
    pub(super) role: Role,
    /// Shards of the gateway; without it, those of the running gateway, or one per CPU
    #[arg(long, value_parser = whole::<u64>(1..=256))]
    pub(super) shards: Option<u64>,
    /// How the gateway's shards talk to the kernel; auto is what the running gateway uses, or what works here
    #[arg(long, default_value = "auto")]
    pub(super) driver: DriverChoice,
    /// The port that the gateway listens on; without it, that of the running gateway, or 7400
    #[arg(long, value_parser = argument::port)]
    pub(super) port: Option<u16>,
    /// Client: pairs of a source address and a gateway's address and port that the connections are
    /// spread over; without it, as many as tide bench uses on loopback by default
    #[arg(long, value_name = "PAIRS")]
    #[arg(value_parser = whole::<u64>(1..=1_000_000_000))]
    pub(super) address_pairs: Option<u64>,
    /// How often each connection sends a heartbeat: a number and ms, s, m, h or d; without it, as the running
    /// gateway asks, or 30s
    #[arg(long, value_name = "SPAN", value_parser = duration::parse_above_0)]
    pub(super) heartbeat_interval: Option<Duration>,
    /// Pushes that each connection gets a second, 0.2 for one in five seconds
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = rate)]
    pub(super) pushes_per_second: f64,
}

/// Who holds the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Accepts them
    Gateway,
    /// Opens them: `tide bench`
    Client,
}

/// The driver of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DriverChoice {
    /// io_uring where it works, else epoll
    Auto,
    /// epoll
    Epoll,
    /// io_uring
    Uring,
}

/// Pushes a second at most.
const PUSHES_MAX: f64 = 1e6;

const EXIT_STATUS: &str = "Exit status:
  0  nothing is too small; there may be notes
  1  something is too small: this machine can't hold so many
  2  wrong usage, the process is not a gateway, the gateway did not answer, or something could not be read
     that may be too small";

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=PUSHES_MAX).contains(rate));
    rate.ok_or_else(|| {
        let most = grouped(PUSHES_MAX);
        format!("it takes a number from 0 to {most}: 0.2 is one in five seconds")
    })
}
