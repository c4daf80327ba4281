//! Lets options stand before a subcommand: `tide push --admin HOST:PORT room quiz`, `tide bench --connect ADDR request`.
//!
//! `clap` takes an option only behind the command that has it. It could pass one on to subcommands, but no required one,
//! and `--connect` and `--type` are. So such options are moved behind the subcommand before the line is parsed.

use std::ffi::OsString;

use clap::{Arg, Command};

/// The same line, with the options of a subcommand behind it. A line that is not understood stays as it is, so that
/// `clap` describes what was typed.
pub(crate) fn behind_subcommands(command: &Command, line: Vec<OsString>) -> Vec<OsString> {
    moved(command, &line).unwrap_or(line)
}

fn moved(command: &Command, line: &[OsString]) -> Option<Vec<OsString>> {
    let (program, mut rest) = line.split_first()?;
    let (mut current, mut path, mut options) = (command, vec![program.clone()], Vec::new());
    while current.has_subcommands() {
        let (word, after) = rest.split_first()?;
        let text = word.to_str()?;
        rest = after;
        if let Some(subcommand) = current.find_subcommand(text) {
            path.push(word.clone());
            current = subcommand;
            continue;
        }
        let (name, value) = match text.strip_prefix("--")?.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text.strip_prefix("--")?, None),
        };
        let option = option_of_subcommands(current, name)?;
        options.push(word.clone());
        if option.get_action().takes_values() && value.is_none() {
            let (value, after) = rest.split_first()?;
            options.push(value.clone());
            rest = after;
        }
    }
    path.append(&mut options);
    path.extend_from_slice(rest);
    Some(path)
}

/// The option of this name of any command below this one. Options of one name are of one kind.
fn option_of_subcommands<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let has_name = |argument: &&Arg| {
        argument.get_long_and_visible_aliases().is_some_and(|names| names.contains(&name))
    };
    command.get_subcommands().find_map(|subcommand| {
        let own = subcommand.get_arguments().find(has_name);
        own.or_else(|| option_of_subcommands(subcommand, name))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::command_line;

    fn moved(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let words = behind_subcommands(&command_line(), words);
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_may_stand_before_the_command_that_has_them() {
        for (typed, moved_to) in [
            (
                "tide push --admin [::1]:1 --type=2 room quiz x --json",
                "tide push room --admin [::1]:1 --type=2 quiz x --json",
            ),
            (
                "tide --admin h:1 push --json --type 1 all x",
                "tide push all --admin h:1 --json --type 1 x",
            ),
            // A value that is the name of a subcommand is no subcommand.
            ("tide push --file room --type 1 all", "tide push all --file room --type 1"),
            (
                "tide bench --connect 127.0.0.1:1 --spin --ramp-rate 5 request --depth 2",
                "tide bench request --connect 127.0.0.1:1 --spin --ramp-rate 5 --depth 2",
            ),
            ("tide --admin h:1 stats", "tide stats --admin h:1"),
        ] {
            assert_eq!(moved(typed), moved_to);
            let words = moved_to.split(' ');
            assert!(command_line().try_get_matches_from(words).is_ok(), "{moved_to}");
        }
    }

    #[test]
    fn any_other_line_stays_as_it_is() {
        for line in [
            "tide",
            "tide --version",
            "tide push --help",
            "tide push room quiz --type 1 --admin h:1 x",
            "tide push --no-such-option room",
            "tide push -x room",
            "tide push -- room",
            "tide push --admin",
            "tide pusch --admin h:1 room",
            "tide help push",
            "tide stats push --admin h:1",
        ] {
            assert_eq!(moved(line), line);
        }
    }

    /// Otherwise it would be unknown whether the next word is its value.
    #[test]
    fn options_of_one_name_are_of_one_kind() {
        fn look(command: &Command, kinds: &mut BTreeMap<String, bool>) {
            for argument in command.get_arguments() {
                for name in argument.get_long_and_visible_aliases().into_iter().flatten() {
                    let takes_value = argument.get_action().takes_values();
                    let known = *kinds.entry(name.to_owned()).or_insert(takes_value);
                    assert_eq!(known, takes_value, "{name}");
                }
            }
            command.get_subcommands().for_each(|command| look(command, kinds));
        }
        let mut kinds = BTreeMap::new();
        look(&command_line(), &mut kinds);
        assert!(kinds.len() > 50, "{}", kinds.len());
    }
}
