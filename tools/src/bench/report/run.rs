//! What was run, when and where: enough to repeat the run, and to see why two runs differ.

use std::fs;

use clap::{ArgMatches, Args, Command, FromArgMatches, Id};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::pairs::Pairs;
use crate::count::grouped;

/// Options that tell what a report is called, where it goes and whom it asks, and not what is run.
const NOT_OF_THE_RUN: [&str; 7] =
    ["admin", "html", "json", "label", "output", "token-file", "trust-listener"];

/// Options whose number is an identifier, which is shown without separators.
const IDENTIFIERS: [&str; 3] = ["--first-user", "--pid", "--type"];

/// What was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    /// The version of `tide`.
    pub(super) tide: String,
    /// When it began, as RFC 3339 to the second.
    pub(super) date_utc: String,
    /// The kernel of the machine that `tide` ran on.
    pub(super) kernel: String,
    /// The CPUs of that machine; 0 where that is unknown.
    pub(super) cpus: u64,
    /// The options by their long names, defaults included. A flag that was not given is absent.
    pub(super) options: Pairs<String>,
    /// `--label`.
    #[serde(default)]
    pub(super) label: Option<String>,
    /// The settings of the gateway, by key; `None` where they are unknown.
    #[serde(default)]
    pub(super) gateway: Option<Pairs<String>>,
    /// Why they are unknown.
    #[serde(default)]
    pub(super) gateway_unknown: Option<String>,
}

impl Run {
    /// A run of `invocation` on this machine.
    pub(super) fn on_this_machine(invocation: &Invocation) -> Self {
        let began = invocation.began_at;
        let began = began.replace_nanosecond(0).unwrap_or(began);
        Self {
            tide: env!("CARGO_PKG_VERSION").into(),
            date_utc: began.format(&Rfc3339).unwrap_or_else(|_| "unknown".into()),
            kernel: kernel(),
            cpus: cpus(),
            options: invocation.options.clone(),
            label: None,
            gateway: None,
            gateway_unknown: None,
        }
    }

    /// Sets the gateway's settings, or the reason why they are unknown.
    pub(super) fn set_gateway(&mut self, settings: Result<Pairs<String>, String>) {
        (self.gateway, self.gateway_unknown) = match settings {
            Ok(settings) => (Some(settings), None),
            Err(reason) => (None, Some(reason)),
        };
    }

    /// A setting of the gateway.
    pub(super) fn setting(&self, key: &str) -> Option<&str> {
        self.gateway.as_ref()?.get(key).map(String::as_str)
    }

    /// The most telling of the gateway's settings in one line, or why they are unknown.
    pub(super) fn gateway_line(&self) -> String {
        let Some(settings) = &self.gateway else {
            return format!("its settings are unknown: {}", self.why_unknown());
        };
        let is_short = |key: &str| !key.contains('.') || key.ends_with(".workers");
        let shown = settings.0.iter().filter(|(key, _)| is_short(key));
        let shown: Vec<_> = shown.map(|(key, value)| format!("{key} {value}")).collect();
        shown.join(", ")
    }

    /// Why the gateway's settings are unknown.
    pub(super) fn why_unknown(&self) -> &str {
        self.gateway_unknown.as_deref().unwrap_or("a tide wrote the report that did not ask")
    }

    /// When, where and with which version, for people.
    pub(super) fn environment(&self) -> [(&'static str, String); 4] {
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

/// An option's value for people: a count has a comma for every thousand. The command line takes it in this
/// form too.
pub(super) fn display_value(option: &str, value: &str) -> String {
    let is_count = option.starts_with("--") && !IDENTIFIERS.contains(&option);
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

/// All CPUs that are online. `available_parallelism` would count only those that this process may use.
fn cpus() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(is_cpu).count() as u64
}

/// The options of the command line as text, so that a report shows every option of every scenario without
/// a separate list. It has to be the first field of a command's arguments, since each field removes what it
/// reads from the matches. Each argument's id has to be its long name, with `_` for `-`.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Invocation {
    options: Pairs<String>,
    began_at: OffsetDateTime,
}

impl Args for Invocation {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

impl FromArgMatches for Invocation {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // The ids include those of groups, whose values are ids of arguments.
        let is_option = |id: &&Id| matches.try_get_one::<Id>(id.as_str()).is_err();
        let options = matches
            .ids()
            .filter(is_option)
            .filter_map(|id| Some((id.as_str().replace('_', "-"), value(matches, id.as_str())?)))
            .filter(|(name, _)| !NOT_OF_THE_RUN.contains(&name.as_str()))
            .collect();
        Ok(Self { options: Pairs(options), began_at: OffsetDateTime::now_utc() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A value of this type, written without separators.
fn number<N: ToString + Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
) -> Option<String> {
    matches.try_get_one::<N>(id).ok().flatten().map(N::to_string)
}

fn value(matches: &ArgMatches, id: &str) -> Option<String> {
    // `100k` and `100000` are the same number, so both are written in the same way.
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
        // Without `{user}` the template is a real token. Reports are shared, so it is left out.
        template if id == "token_template" && !template.contains("{user}") => {
            Some("(one token, not shown)".into())
        }
        value => Some(value.to_owned()),
    }
}
