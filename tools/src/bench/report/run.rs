//! What was run, when and where: enough to run it again, and to see why two runs differ.

use std::fs;

use clap::{ArgMatches, Args, Command, FromArgMatches, Id};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::document::Pairs;
use crate::bench::args::BenchArgs;
use crate::count::grouped;

/// Options that say where a report goes, not what is run.
const OUTPUTS: [&str; 3] = ["json", "html", "output"];

/// Options whose numbers are names.
const NAMES: [&str; 3] = ["--first-user", "--pid", "--type"];

/// What was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    /// The version of `tide`.
    pub(super) tide: String,
    /// When it began, as RFC 3339 to the second.
    pub(super) date_utc: String,
    /// The kernel of the machine that `tide` ran on.
    pub(super) kernel: String,
    /// The CPUs of that machine; 0 when it does not say.
    pub(super) cpus: u64,
    /// The options by their long names, defaults too. A flag that is not given is not there.
    pub(super) options: Pairs<String>,
}

impl Run {
    /// The one that was asked for, on this machine.
    pub(super) fn on_this_machine(asked: &Asked) -> Self {
        let began = asked.began_at.replace_nanosecond(0).unwrap_or(asked.began_at);
        Self {
            tide: env!("CARGO_PKG_VERSION").into(),
            date_utc: began.format(&Rfc3339).unwrap_or_else(|_| "unknown".into()),
            kernel: kernel(),
            cpus: cpus(),
            options: asked.options.clone(),
        }
    }

    /// When, where and with what, for people.
    pub(super) fn circumstances(&self) -> [(&'static str, String); 4] {
        let cpus = if self.cpus == 0 { "unknown".into() } else { self.cpus.to_string() };
        [
            ("Date (UTC)", self.date_utc.clone()),
            ("Client's kernel", self.kernel.clone()),
            ("Client's CPUs", cpus),
            ("Version of tide", self.tide.clone()),
        ]
    }

    /// An option's value.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }
}

/// An option's value, for people: a number that counts something has a comma for every thousand, and is taken
/// so, too.
pub(super) fn for_people(option: &str, value: &str) -> String {
    let is_count = option.starts_with("--") && !NAMES.contains(&option);
    let is_whole = value.bytes().all(|byte| byte.is_ascii_digit());
    if is_count && is_whole { grouped(value) } else { value.to_owned() }
}

fn kernel() -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/sys/kernel/{file}"));
    match (read("ostype"), read("osrelease")) {
        (Ok(name), Ok(release)) => format!("{} {}", name.trim(), release.trim()),
        _ => "unknown".into(),
    }
}

/// All that are on line, where `available_parallelism` would count those this process may use.
fn cpus() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(is_cpu).count() as u64
}

/// What the command line said, read beside the arguments themselves, so that a report shows any
/// option that any scenario has. It has to come first among a command's fields: those take what they read.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Asked {
    options: Pairs<String>,
    began_at: OffsetDateTime,
}

impl Args for Asked {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

impl FromArgMatches for Asked {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let bench = BenchArgs::augment_args(Command::new("bench"));
        // A group of arguments is listed among them; its values are names of arguments.
        let is_option = |id: &&Id| matches.try_get_one::<Id>(id.as_str()).is_err();
        let options = matches
            .ids()
            .filter(is_option)
            .filter_map(|id| Some((long_name(&bench, id.as_str()), value(matches, id.as_str())?)))
            .filter(|(name, _)| !OUTPUTS.contains(&name.as_str()))
            .collect();
        Ok(Self { options: Pairs(options), began_at: OffsetDateTime::now_utc() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The long name of an option of any scenario.
fn long_name(bench: &Command, id: &str) -> String {
    let mut options = bench.get_subcommands().flat_map(Command::get_arguments);
    let long = options.find(|option| option.get_id() == id).and_then(clap::Arg::get_long);
    long.unwrap_or(id).to_owned()
}

/// A value of this type, as one spells it without separators.
fn number<N: ToString + Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
) -> Option<String> {
    matches.try_get_one::<N>(id).ok().flatten().map(N::to_string)
}

fn value(matches: &ArgMatches, id: &str) -> Option<String> {
    // 100k is no other number than 100000, whichever was typed.
    if let Some(number) = number::<u32>(matches, id)
        .or_else(|| number::<u64>(matches, id))
        .or_else(|| number::<usize>(matches, id))
    {
        return Some(number);
    }
    let values: Vec<_> =
        matches.get_raw(id)?.map(std::ffi::OsStr::to_string_lossy).map(String::from).collect();
    match values.join(", ").as_str() {
        "false" => None,
        // One that names no user is somebody's token, and a report is shown around.
        template if id == "token_template" && !template.contains("{user}") => {
            Some("(one token, not shown)".into())
        }
        value => Some(value.to_owned()),
    }
}
