//! `tide bans`: which addresses a gateway refuses, and for how long. It bans others, and lifts bans.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::argument;
use crate::duration;
use crate::operator::Operator;
use crate::stdout;

/// The arguments of `tide bans`.
///
/// A ban is on an address, on an IPv4 /24, or on an IPv6 /64 or /48. New connections from it are closed at once. Those that are
/// open stay. Too many failed logins make a ban, where addresses.failed_logins_per_minute_max is set.
#[derive(Args, Debug)]
pub(crate) struct BansArgs {
    #[command(subcommand)]
    command: Option<Change>,
    /// Print the gateway's answer unchanged
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Debug, Subcommand)]
enum Change {
    /// Ban an address or a network
    Add {
        /// 192.0.2.7, 192.0.2.0/24, 2001:db8::7, 2001:db8::/64 or 2001:db8::/48
        #[arg(value_parser = argument::prefix)]
        prefix: String,
        /// For how long: up to 30d
        #[arg(long = "for", default_value = "1h", value_name = "TIME", value_parser = duration::parse_above_0)]
        lasts: Duration,
    },
    /// End a ban
    Lift {
        /// As `tide bans` shows it
        #[arg(value_parser = argument::prefix)]
        prefix: String,
    },
}

/// Shows bans, makes one, or ends one.
///
/// # Errors
/// The gateway can't be asked, or refuses. A ban that is to be lifted is not there.
pub(crate) fn run(args: &BansArgs) -> Result<()> {
    let operator = &args.operator;
    let (answer, text) = match &args.command {
        None => {
            let answer = operator.get("/bans")?;
            let text = listed(&answer);
            (answer.to_string(), text)
        }
        Some(Change::Add { prefix, lasts }) => {
            let seconds = lasts.as_secs_f64().ceil();
            let answer = operator.post(&format!("/bans?prefix={prefix}&seconds={seconds}"), b"")?;
            let text = format!("banned for {seconds} s: {prefix}");
            (answer, text)
        }
        Some(Change::Lift { prefix }) => {
            let answer = operator.post(&format!("/bans/lift?prefix={prefix}"), b"")?;
            let parsed: Option<Value> = serde_json::from_str(&answer).ok();
            if parsed.and_then(|answer| answer["was_banned"].as_bool()) == Some(false) {
                return Err(anyhow!("{prefix} is not banned; `tide bans` lists what is"));
            }
            (answer, format!("no longer banned: {prefix}"))
        }
    };
    let parsed: Option<Value> = serde_json::from_str(&answer).ok();
    if parsed.and_then(|answer| answer["shared"].as_bool()) == Some(false) {
        stdout::print_stderr(
            "warning: other gateways do not learn it, since too many changes wait for Redis: try again, or run this for each gateway",
        );
    }
    stdout::print(|out| writeln!(out, "{}", if args.json { &answer } else { &text }))
}

/// The bans, one in a line.
fn listed(answer: &Value) -> String {
    let bans = answer["bans"].as_array().map(Vec::as_slice).unwrap_or_default();
    if bans.is_empty() {
        return "nobody is banned".to_owned();
    }
    let line = |ban: &Value| {
        let prefix = ban["prefix"].as_str().unwrap_or_default();
        format!("{prefix:<44} {} s left", ban["seconds_left"])
    };
    let mut lines: Vec<String> = bans.iter().map(line).collect();
    let count = answer["count"].as_u64().unwrap_or(0);
    let shown = u64::try_from(bans.len()).unwrap_or(u64::MAX);
    if count > shown {
        lines.push(format!("and {} more, which last longer", count - shown));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bans_are_listed_one_in_a_line() {
        assert_eq!(listed(&json!({ "count": 0, "bans": [] })), "nobody is banned");
        let bans = json!([{ "prefix": "192.0.2.7", "seconds_left": 12 }]);
        let text = listed(&json!({ "count": 3, "bans": bans }));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("192.0.2.7 ") && lines[0].ends_with(" 12 s left"), "{text}");
        assert_eq!(lines[1..], ["and 2 more, which last longer"]);
    }
}
