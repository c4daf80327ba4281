//! The README's section on measuring, followed step by step.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::Command;

use refusing_port::RefusingPort;

mod refusing_port;

const README: &str = include_str!("../../README.md");

/// The text of the section.
fn measure_it() -> &'static str {
    let (_, section) = README.split_once("\n## Measure it\n").unwrap();
    section.split_once("\n## ").unwrap().0
}

/// Its commands, without their comments.
fn commands() -> impl Iterator<Item = &'static str> {
    let is_code = |(index, block): (usize, &'static str)| (index % 2 == 1).then_some(block);
    let blocks = measure_it().split("```").enumerate().filter_map(is_code);
    blocks.flat_map(str::lines).skip(1).map(|line| line.split(" #").next().unwrap().trim())
}

/// The gateway of "Run it" uses the same port, and refuses the tokens of `tide bench`.
#[test]
fn the_first_gateway_is_stopped_before_the_one_that_is_measured_starts() {
    let section = measure_it();
    let start = section.find("tidegate --auth demo").unwrap();
    let stop = section.find("Ctrl-C").expect("the way to stop the first is named");
    assert!(stop < start, "the first is stopped before");
    let before = &section[..start];
    assert!(before.contains("#run-it") && before.contains("7400"), "{before}");
}

/// No gateway listens, and each command that is parsed without an error says so.
#[test]
fn every_command_is_understood() {
    let port = RefusingPort::reserve();
    let place = port.address.to_string();
    let pid = std::process::id().to_string();
    let mut runs = 0;
    for command in commands().filter(|command| command.starts_with("tide ")) {
        let command = command.replace("127.0.0.1:7400", &place);
        let command = command.replace("$(pidof -s tidegate)", &pid);
        let mut words: Vec<_> = command.split_whitespace().skip(1).collect();
        // As many connections as the tests' limit of open files allows.
        if let Some(at) = words.iter().position(|word| *word == "--connections") {
            words[at + 1] = words[at + 1].get(..4).unwrap_or(words[at + 1]);
        }
        let output = Command::new(env!("CARGO_BIN_EXE_tide")).args(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = match command.contains("compare") {
            true => "before.json can't be read".to_owned(),
            false => format!("no gateway listens on {place}"),
        };
        assert!(said.contains(&expected), "{command}: {said}");
        runs += 1;
    }
    assert_eq!(runs, 10);
}
