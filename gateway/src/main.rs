//! The `tidegate` binary: the gateway with the demo backend in the process.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::Context as _;
use crossbeam::channel::{self, Receiver};
use crossbeam::select;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidegate::config::{self, AuthMode, Config};
use tidegate::server::Builder;
use tidegate::service::Service;
use tidegate::{Server, telemetry};
use tidegate_backend::demo::Demo;

fn main() -> ExitCode {
    let loaded = match config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(loaded) => loaded,
        Err(error) => error.exit(),
    };
    let done = if loaded.check_only { check(loaded.config) } else { run(loaded.config) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(config: Config) -> anyhow::Result<()> {
    builder(config).check()?;
    println!("the configuration is valid");
    Ok(())
}

fn builder(config: Config) -> Builder {
    Server::builder(config).handler("demo", Demo::default())
}

fn run(config: Config) -> anyhow::Result<()> {
    let metrics = telemetry::install(&config.log)?;
    let signals = signals().context("can't listen for signals")?;
    let auth = config.auth.mode.clone();
    let server = builder(config).metrics(metrics).start()?;
    announce(&server, &auth);
    let service = Service::ready(server.control()).context("can't watch the shards")?;
    select! {
        recv(signals) -> _ => {
            println!("saying goodbye to everybody; once more to end at once");
            service.stopping();
            server.shutdown();
        }
        recv(server.ended()) -> ended => {
            let (shard, outcome) = ended?;
            service.stopping();
            server.stop();
            outcome.map_err(|reason| anyhow::anyhow!("shard {shard} failed: {reason}"))?;
        }
    }
    thread::spawn(move || {
        if signals.recv().is_ok() {
            std::process::exit(130);
        }
    });
    server.wait()?;
    println!("gone");
    Ok(())
}

/// Says where the gateway listens and what to type next.
fn announce(server: &Server, auth: &AuthMode) {
    println!("listening for clients on {}", server.client_address());
    println!("listening for operators on http://{}/", server.admin_address());
    let client = server.client_address();
    let demo = if *auth == AuthMode::Demo { " --demo-token" } else { "" };
    let built_here = std::env::current_exe().is_ok_and(|executable| is_built_here(&executable));
    let tide = if built_here { "cargo run --release -p tidegate-tools --" } else { "tide" };
    println!();
    println!("next, in another terminal:");
    println!("  {tide} client --connect {client} --user 7{demo}");
    println!("Ctrl-C ends the gateway.");
}

/// Whether an executable lies where cargo put it: cargo marks the folder that holds those of all
/// profiles, which may have any name (`CARGO_TARGET_DIR`), and is a level further up with `--target`.
fn is_built_here(executable: &Path) -> bool {
    let is_cargos = |folder: &Path| {
        let mark = fs::read_to_string(folder.join("CACHEDIR.TAG")).unwrap_or_default();
        mark.contains("created by cargo")
    };
    executable.ancestors().skip(2).take(2).any(is_cargos)
}

/// SIGINT and SIGTERM, as they come.
fn signals() -> std::io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (sender, receiver) = channel::unbounded();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_cargos_where_cargo_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let is_built_here = |path: &str| is_built_here(&folder.path().join(path));
        assert!(!is_built_here("out/release/tidegate"));
        fs::create_dir(folder.path().join("out")).unwrap();
        let mark = "Signature: 8a477f597d28d172789f06886806bc55\n# ... created by cargo.\n";
        fs::write(folder.path().join("out/CACHEDIR.TAG"), mark).unwrap();
        assert!(is_built_here("out/release/tidegate"));
        assert!(is_built_here("out/x86_64-unknown-linux-musl/release/tidegate"));
        assert!(!is_built_here("bin/tidegate"));
        // Deeper it is a test's, which announces nothing.
        assert!(!is_built_here("out/a/b/c/tidegate"));
    }
}
