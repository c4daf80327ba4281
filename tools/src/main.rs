//! `tide`: what a person at a terminal needs beside a gateway. Tokens, an interactive client, pushes, load,
//! and a look at the machine.
//!
//! This file reads the command line and hands over. Each subcommand is a module that owns its
//! arguments and returns an error that names the thing and the way out.

mod absent;
mod bench;
mod client;
mod count;
mod doctor;
mod duration;
mod push;
mod stdout;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tokens, an interactive client, pushes and load for Tidegate.
#[derive(Debug, Parser)]
#[command(name = "tide", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a gateway and measure it
    Bench(Box<bench::BenchArgs>),
    /// Talk to a gateway as one user: type commands, or pipe them in
    Client(client::ClientArgs),
    /// Say what stands between this machine and N connections, and what mends it
    Doctor(doctor::DoctorArgs),
    /// Print a token that a gateway with the same key takes
    Token(token::TokenArgs),
    /// Push to a user, a room or everybody, through the operators' HTTP
    Push(push::PushArgs),
    /// Close every connection of a user, through the operators' HTTP
    Kick(push::KickArgs),
    /// Show what the gateway counts, as JSON
    Stats(push::StatsArgs),
    /// Show what the gateway knows of a user, as JSON
    User(push::UserArgs),
    /// Show what the gateway knows of a room, as JSON
    Room(push::RoomArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Bench(args) => return exit(bench::run(*args)),
        Command::Client(args) => client::run(args),
        // Its exit status says what it found.
        Command::Doctor(args) => return doctor::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Push(args) => push::run(args),
        Command::Kick(args) => push::kick(&args),
        Command::Stats(args) => push::stats(&args),
        Command::User(args) => push::user(&args),
        Command::Room(args) => push::room(&args),
    };
    exit(done.map(|()| ExitCode::SUCCESS))
}

fn exit(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        stdout::remark(&format!("tide: {error:#}"));
        ExitCode::FAILURE
    })
}
