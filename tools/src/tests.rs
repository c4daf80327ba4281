//! The whole command line: every argument of every command.

use std::collections::BTreeSet;

use clap::error::ErrorKind;
use clap::{Arg, Command};

use super::*;

/// Arguments that accept any text: names of files, figures and rooms, texts to push, tokens.
const FREE: [&str; 15] = [
    "--ca",
    "--dir",
    "--file",
    "--key",
    "--key-file",
    "--kid",
    "--label",
    "--only",
    "--token",
    "--token-file",
    "--token-template",
    "A.json",
    "B.json",
    "ROOM",
    "TEXT",
];

/// Values that are wrong for each other argument, some of them only slightly.
const WRONG: [&str; 15] = [
    "",
    "x",
    "-1",
    "+1",
    "1.5.5",
    "1 000",
    "0x10",
    "99999999999999999999999",
    "NaN",
    "-inf",
    "5w",
    "127.0.0.1",
    "127.0.0.1:0",
    "::1:7400",
    "/",
];

/// Error texts of libraries. They do not name the accepted values, so `tide` must not print them.
const UNHELPFUL: [&str; 9] = [
    "invalid digit",
    "invalid float",
    "invalid socket",
    "invalid IP",
    "cannot parse",
    "number too",
    "is not in",
    "would be zero",
    "empty string",
];

#[test]
fn the_command_line_is_sound() {
    command_line().debug_assert();
}

/// Calls `look` with the words of each command and each of its arguments that takes a value.
fn each_argument(command: &Command, words: &[String], look: &mut impl FnMut(&[String], &Arg)) {
    let takes_values = |argument: &&Arg| argument.get_action().takes_values();
    command.get_arguments().filter(takes_values).for_each(|argument| look(words, argument));
    for command in command.get_subcommands() {
        let words = [words, &[command.get_name().to_owned()]].concat();
        each_argument(command, &words, look);
    }
}

/// An argument's name in errors.
fn name(argument: &Arg) -> String {
    let value = || argument.get_value_names().unwrap()[0].to_string();
    argument.get_long().map_or_else(value, |long| format!("--{long}"))
}

/// The error for a value, if the value is refused.
fn refusal(words: &[String], argument: &Arg, value: &str) -> Option<String> {
    let mut line = words.to_vec();
    match argument.get_long() {
        Some(long) => line.push(format!("--{long}={value}")),
        None => {
            line.push("--".to_owned());
            // The positional arguments before it need a valid value.
            line.resize(line.len() + argument.get_index().unwrap_or(1) - 1, "7".to_owned());
            line.push(value.to_owned());
        }
    }
    let error = command_line().try_get_matches_from(line).err()?;
    let of_a_value = matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue);
    of_a_value.then(|| error.to_string())
}

#[test]
fn every_wrong_value_is_refused_with_its_argument_and_what_would_be_taken() {
    let (mut refused, mut free) = (0, BTreeSet::new());
    let mut command = command_line();
    command.build();
    each_argument(&command, &["tide".to_owned()], &mut |words, argument| {
        let refusal = |value: &&'static str| Some((*value, refusal(words, argument, value)?));
        let refusals: Vec<_> = WRONG.iter().filter_map(refusal).collect();
        let name = name(argument);
        // The arguments of `clap`'s own `help` are names of commands.
        if refusals.iter().all(|(value, _)| value.is_empty()) && words[1] != "help" {
            free.insert(name.clone());
        }
        for (value, said) in refusals {
            refused += 1;
            let of = format!("{words:?} {name} {value:?}: {said}");
            assert!(said.contains(&name), "the argument is not named: {of}");
            assert!(said.contains(value), "the value is not named: {of}");
            let helps = UNHELPFUL.iter().all(|unhelpful| !said.contains(unhelpful));
            assert!(helps, "what would be taken is not named: {of}");
        }
    });
    assert_eq!(free, BTreeSet::from(FREE.map(str::to_owned)));
    assert!(refused > 500, "{refused}");
}

#[test]
fn a_negative_number_is_a_value() {
    for line in ["tide client --user -1", "tide kick -1", "tide bench request --rate -1"] {
        let error = command_line().try_get_matches_from(line.split(' ')).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ValueValidation, "{error}");
    }
}

/// By default `clap` lists a group of arguments before the arguments that are typed in front of it.
#[test]
fn the_usage_has_arguments_in_the_order_in_which_they_are_typed() {
    let mut commands = vec![command_line()];
    while let Some(mut command) = commands.pop() {
        let usage = command.render_usage().to_string();
        let value = |argument: &Arg| argument.get_value_names().unwrap()[0].to_string();
        let names: Vec<_> = command.get_positionals().map(value).collect();
        let places: Vec<_> = names.iter().map(|name| usage.find(name.as_str())).collect();
        assert!(places.is_sorted() && !places.contains(&None), "{names:?}: {usage}");
        commands.extend(command.get_subcommands().cloned());
    }
}

/// `clap` finds out only when it parses an argument whether its value has the type of its field.
#[test]
fn every_command_is_read() {
    for line in [
        "push user 7 --type 1 x",
        "push room quiz --type 1 x",
        "push all --type 1 x",
        "push all --type 1 --key k --ttl 1.5s x",
        "kick 7",
        "expel quiz 7",
        "stats",
        "user 7",
        "room quiz",
        "token --user 7 --ttl 1.5h",
        "client --user 7 --timeout 1s --watch 5 --connect localhost:7400",
        "doctor --connections 1m --pid 1 --shards 2 --port 7400 --address-pairs 3 \
         --heartbeat-interval 30s --pushes-per-second 0.2",
        "bench connect --connect 127.0.0.1:7400 --connections 1,000 --workers 2 --pid 1 \
         --large-answers 5 --source 10.0.0.1 --connect-rate 5 --admission-timeout 2s --heartbeat-interval 1s",
        "bench request --connect [::1]:7400 --bytes 5 --type 1 --depth 3 --first-user 5",
        "bench request --connect [::1]:7400 --in-flight 3",
        "bench broadcast --connect [::1]:7400 --bytes 64 --type 2 --in-flight 3 --echo-rate 0 \
         --echo-connections 5 --echo-bytes 5",
        "bench storm --connect [::1]:7400 --slow-share 0.5 --slow-deadline 5",
        "bench show --connect [::1]:7400 --arrive 5 --question-every 1 --answer-share 1 \
         --barrage 0 --leave 1 --bytes 64 --answer-bytes 5",
        "bench compare a b --fail-above 1.1",
    ] {
        let line = ["tide"].into_iter().chain(line.split_whitespace());
        let matches = command_line().try_get_matches_from(line.clone());
        let read = matches.and_then(|matches| Cli::from_arg_matches(&matches));
        assert!(read.is_ok(), "{:?}: {read:?}", line.collect::<Vec<_>>());
    }
}
