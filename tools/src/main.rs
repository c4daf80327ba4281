//! `tide`: the command line tool for Tidegate: tokens, an interactive client, pushes, load, and a check of the machine.
//!
//! This file parses the command line and calls the subcommand. Each subcommand is a module that owns its arguments. Its
//! errors name what failed and what to do.

mod argument;
mod bans;
mod bench;
mod cert;
mod client;
mod cluster;
mod count;
mod doctor;
mod drain;
mod duration;
mod listener;
mod not_running;
mod operator;
mod option_order;
mod ports;
mod push;
mod reload;
mod stdout;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Tokens, an interactive client, pushes and load for Tidegate.
#[derive(Debug, Parser)]
#[command(name = "tide", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the addresses that a gateway refuses; ban one, or lift a ban
    Bans(bans::BansArgs),
    /// Load a gateway and measure it
    Bench(Box<bench::BenchArgs>),
    /// Make a self-signed certificate for development
    Cert(cert::CertArgs),
    /// Talk to a gateway as one user: type commands, or pipe them in
    Client(client::ClientArgs),
    /// Show the gateways that serve the same clients, and even them out
    Cluster(Box<cluster::ClusterArgs>),
    /// Tell whether this machine holds N connections, and what to change if not
    Doctor(doctor::DoctorArgs),
    /// Have a gateway drain: clients reconnect elsewhere, answers go out, and it ends
    Drain(drain::DrainArgs),
    /// Print a token that a gateway with the same key accepts
    Token(token::TokenArgs),
    /// Push to a user, a room or all users, through the operators' HTTP
    Push(push::PushArgs),
    /// Close every connection of a user, through the operators' HTTP
    Kick(push::KickArgs),
    /// End a user's memberships of a room, through the operators' HTTP
    Expel(push::ExpelArgs),
    /// Have a gateway load its configuration, keys and certificates again
    Reload(reload::ReloadArgs),
    /// Show the gateway's counters, as JSON
    Stats(push::StatsArgs),
    /// Show a user's connections, as JSON
    User(push::UserArgs),
    /// Show a room, as JSON
    Room(push::RoomArgs),
}

fn main() -> ExitCode {
    let line = option_order::behind_subcommands(&command_line(), std::env::args_os().collect());
    let cli = Cli::from_arg_matches(&command_line().get_matches_from(line));
    let done = match cli.unwrap_or_else(|error| error.exit()).command {
        Command::Bans(args) => bans::run(&args),
        Command::Bench(args) => return exit(bench::run(*args)),
        Command::Cert(args) => cert::run(&args),
        Command::Client(args) => client::run(args),
        Command::Cluster(args) => cluster::run(&args),
        // Its exit status tells what it found.
        Command::Doctor(args) => return doctor::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Push(args) => push::run(args),
        Command::Kick(args) => push::kick(&args),
        Command::Expel(args) => push::expel(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Stats(args) => push::stats(&args),
        Command::User(args) => push::user(&args),
        Command::Room(args) => push::room(&args),
    };
    exit(done.map(|()| ExitCode::SUCCESS))
}

/// The whole command line.
fn command_line() -> clap::Command {
    taking_negative_numbers(Cli::command())
}

/// Accepts negative numbers as values, so that an argument's own parser refuses them and says why. Without this `clap`
/// would report an unknown argument.
fn taking_negative_numbers(command: clap::Command) -> clap::Command {
    let names: Vec<_> = command.get_subcommands().map(|it| it.get_name().to_owned()).collect();
    let command = command.mut_args(|argument| {
        let takes_values = argument.get_action().takes_values();
        argument.allow_negative_numbers(takes_values)
    });
    names
        .iter()
        .fold(command, |command, name| command.mut_subcommand(name, taking_negative_numbers))
}

fn exit(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        stdout::print_stderr(&format!("tide: {error:#}"));
        ExitCode::FAILURE
    })
}
