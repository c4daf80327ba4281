//! Measures the HTTP gateway beside a bare hyper server, in one run.
//!
//! Both get the same requests on the same number of connections, in turn, for some rounds. A server has one core and the
//! client another. The figure is the server's CPU time per request; the ratio is the median of the rounds' ratios.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use std::{fs, process};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;

/// Measures the HTTP gateway beside a bare hyper server.
#[derive(Debug, Parser)]
struct Args {
    /// Connections, each with one request under way.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests of a round, for each server.
    #[arg(long, default_value_t = 100_000)]
    requests: usize,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The servers' core.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The client's core.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
}

/// What is measured: a name, and the gateway's flags; `None`: the floor.
const ROWS: [(&str, Option<&[&str]>); 4] = [
    ("bare hyper", None),
    ("gateway, no token, handler on its thread", Some(&["demo", "shard", "true"])),
    ("gateway, no token, handler on a worker", Some(&["demo", "worker", "true"])),
    ("gateway, JWT (HS256), handler on a worker", Some(&["jwt", "worker", "false"])),
];

/// A server that is killed at its end.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("can't start {command:?}"))?;
        let stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let address = stdout
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening for clients on http://")?.parse().ok());
        let address = address.with_context(|| format!("{command:?} does not listen"))?;
        Ok(Self { child, address })
    }

    /// The CPU time of all its threads, in nanoseconds.
    fn cpu_ns(&self) -> anyhow::Result<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        let mut sum = 0;
        for task in tasks {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let spent = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
            sum += spent.context("no schedstat")?;
        }
        Ok(sum)
    }
}

fn gateway(folder: &Path, core: usize, flags: &[&str]) -> anyhow::Result<Command> {
    let [auth, placement, public] = flags else { bail!("three flags") };
    let mut command = pinned(core, "tidegate")?;
    command
        .current_dir(folder)
        .args(["--auth", auth, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args(["--shards", "1", "--log", "warn", "--set", "backends.demo.workers=1"])
        .args(["--set", &format!("backends.demo.placement={placement}")])
        .args(["--set", "listeners.web.listen=127.0.0.1:0", "--set", "listeners.web.wire=http"])
        .args(["--set", &format!("http_routes=[{{path=\"/echo\",type=1,public={public}}}]")]);
    Ok(command)
}

fn pinned(core: usize, binary: &str) -> anyhow::Result<Command> {
    let own = std::env::current_exe()?;
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(own.with_file_name(binary));
    Ok(command)
}

/// A token of user 7, made with the secret of the gateway in this folder.
fn token(folder: &Path) -> anyhow::Result<String> {
    let tide = std::env::current_exe()?.with_file_name("tide");
    let made = Command::new(tide).args(["token", "--user", "7"]).current_dir(folder).output()?;
    ensure!(made.status.success(), "tide token: {}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

/// Sends this number of requests and reads the answers. Returns how many were answered in a second.
fn load(server: &Server, args: &Args, token: &str) -> anyhow::Result<f64> {
    let body = "{\"question\":17,\"answer\":\"b\"}";
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut streams = Vec::new();
    for _ in 0..args.connections {
        let stream = TcpStream::connect(server.address)?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let (began, mut buffer) = (Instant::now(), [0; 4096]);
    for _ in 0..args.requests / args.connections {
        for stream in &mut streams {
            stream.write_all(request.as_bytes())?;
        }
        for stream in &mut streams {
            let mut length = 0;
            // The body comes last.
            while !buffer[..length].ends_with(body.as_bytes()) {
                let bytes = stream.read(&mut buffer[length..])?;
                length += bytes;
                let text = String::from_utf8_lossy(&buffer[..length]);
                ensure!(bytes > 0 && text.starts_with("HTTP/1.1 200 "), "the answer is {text}");
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure")]
    Ok((args.requests as f64) / began.elapsed().as_secs_f64())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let own = ["-pc", &args.client_core.to_string(), &process::id().to_string()].map(str::to_owned);
    let moved = Command::new("taskset").args(own).stdout(Stdio::null()).status()?;
    ensure!(moved.success(), "the client can't have core {}", args.client_core);
    let folder = std::env::temp_dir().join(format!("tidegate-bench-http-{}", process::id()));
    fs::create_dir(&folder)?;
    let mut figures = ROWS.map(|_| (Vec::new(), Vec::new(), Vec::new()));
    for _ in 0..args.rounds {
        let mut floor = 0.0;
        for ((_, flags), figures) in ROWS.iter().zip(&mut figures) {
            let mut command = match flags {
                None => pinned(args.server_core, "floor-http")?,
                Some(flags) => gateway(&folder, args.server_core, flags)?,
            };
            let server = Server::start(&mut command)?;
            let token = if flags.is_some_and(|flags| flags[0] == "jwt") {
                token(&folder)?
            } else {
                "token-7".to_owned()
            };
            let before = server.cpu_ns()?;
            let rate = load(&server, &args, &token)?;
            #[expect(clippy::cast_precision_loss, reason = "a figure")]
            let us = (server.cpu_ns()? - before) as f64 / 1e3 / args.requests as f64;
            floor = if flags.is_none() { us } else { floor };
            figures.0.push(rate);
            figures.1.push(us);
            figures.2.push(us / floor);
        }
    }
    fs::remove_dir_all(&folder)?;
    println!("| server | requests/s | CPU us per request | ratio |\n|---|---|---|---|");
    for ((name, _), (rates, us, ratios)) in ROWS.iter().zip(&mut figures) {
        let (rate, us, ratio) = (median(rates), median(us), median(ratios));
        println!("| {name} | {rate:.0} | {us:.2} | {ratio:.2} |");
    }
    Ok(())
}
