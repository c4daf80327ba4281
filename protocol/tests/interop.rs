//! Holds the stock protobuf libraries of other languages, with the lines that `PROTOCOL.md` gives, to the
//! test vectors, and the page's table of what they lack to what they do. `../interop` has the programs.

pub mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use prost::Message as _;
use serde_json::Value;
use tidegate_protocol::limits;
use tidegate_protocol::proto::v1;

/// The programs that read all vectors by themselves.
const LANGUAGES: [&str; 4] = ["java", "python", "node", "go"];

/// Fewest comparisons that a program makes if it reads all files.
const CHECKED_MIN: usize = 300;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Builds the programs, once.
fn build() {
    static BUILT: OnceLock<bool> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let status = Command::new(folder("interop/build")).status();
        status.expect("the script can be run").success()
    });
    assert!(built, "the programs of the other languages do not build: see above");
}

/// Runs a check, and gives what it says.
fn check(language: &str, input: &str) -> String {
    build();
    let mut child = Command::new(folder("interop/run"))
        .args(["check", language])
        .arg(folder("vectors"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the script can be run");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    // It may talk before it has read everything.
    let feeding = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    drop(feeding.join());
    assert!(output.status.success(), "{language} disagrees: see above");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What the checks of all languages say, by language.
fn said() -> &'static BTreeMap<&'static str, String> {
    static SAID: OnceLock<BTreeMap<&str, String>> = OnceLock::new();
    SAID.get_or_init(|| {
        build();
        let checks = LANGUAGES.map(|language| (language, thread::spawn(|| check(language, ""))));
        let ended = checks.map(|(language, check)| (language, check.join().expect("it agrees")));
        ended.into()
    })
}

fn load(file: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(&page::read(&format!("vectors/{file}"))).expect("JSON");
    file["vectors"].as_array().expect("vectors").clone()
}

#[test]
fn the_libraries_of_other_languages_agree_with_every_vector() {
    for (language, said) in said() {
        let checked = said.lines().find_map(|line| line.strip_prefix("checked "));
        let checked: usize = checked.expect("it counts").parse().expect("a number");
        assert!(checked >= CHECKED_MIN, "{language} made {checked} comparisons");
    }
}

#[test]
fn what_each_library_takes_is_what_the_vectors_say() {
    let mut accepted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut stacks = BTreeSet::new();
    for line in said().values().flat_map(|said| said.lines()) {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["accepts" | "refuses", stack, vector] = words[..] {
            stacks.insert(stack);
            if words[0] == "accepts" {
                accepted.entry(vector).or_default().insert(stack);
            }
        }
    }
    assert_eq!(stacks, BTreeSet::from(["go", "java", "netty", "node", "python"]));
    for vector in load("malformed.json") {
        let name = vector["name"].as_str().expect("a name");
        let marked = vector["accepted_by"].as_array();
        let marked = marked.into_iter().flatten().map(|stack| stack.as_str().expect("a name"));
        // Older versions are named with their number, and not here.
        let marked: BTreeSet<&str> = marked.filter(|stack| stacks.contains(stack)).collect();
        assert_eq!(accepted.remove(name).unwrap_or_default(), marked, "accepted_by of {name}");
    }
}

/// What prost's own function makes of a probe.
fn prost_probe(probe: &str, bytes: &[u8]) -> &'static str {
    match v1::Response::decode_length_delimited(bytes) {
        Err(_) => "refuses",
        Ok(_) if probe == "060802" => "half a message",
        Ok(response) if response == v1::Response::default() => "empty message",
        Ok(_) => "accepts",
    }
}

/// A frame whose payload is one byte longer than a client takes: `biz_data` and nothing else.
fn too_long() -> Vec<u8> {
    let field_bytes = 4;
    let biz_data = vec![0; limits::FRAME_TO_CLIENT_BYTES_MAX + 1 - field_bytes];
    let response = v1::Response { biz_data: biz_data.into(), ..v1::Response::default() };
    assert_eq!(response.encoded_len(), limits::FRAME_TO_CLIENT_BYTES_MAX + 1);
    response.encode_length_delimited_to_vec()
}

#[test]
fn the_pages_table_says_what_each_library_does() {
    let cpp = check("cpp", "");
    let mut outcomes: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for line in said().values().flat_map(|said| said.lines()).chain(cpp.lines()) {
        if let Some((stack, rest)) =
            line.strip_prefix("probe ").and_then(|line| line.split_once(' '))
        {
            let (probe, outcome) = rest.split_once(' ').expect("an outcome");
            outcomes.insert((stack, probe), outcome);
        }
    }
    let probes: [(&str, Vec<u8>); 5] = [
        ("too_long", too_long()),
        ("ffffffff0f", vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("8080808010", vec![0x80, 0x80, 0x80, 0x80, 0x10]),
        ("8000", vec![0x80, 0x00]),
        ("060802", vec![0x06, 0x08, 0x02]),
    ];
    for (probe, bytes) in &probes {
        outcomes.insert(("rust", probe), prost_probe(probe, bytes));
    }
    let page = page::read("PROTOCOL.md");
    let rows = page::rows(&page, "| reader |");
    for row in &rows {
        let stack = row[0].split(':').next().expect("a name");
        for (cell, (probe, _)) in row[1..].iter().zip(&probes) {
            if let Some(outcome) = outcomes.remove(&(stack, *probe)) {
                assert_eq!(cell, outcome, "{} of {probe}", row[0]);
            }
        }
    }
    assert!(outcomes.is_empty(), "the page has no row for {:?}", outcomes.keys());
}

#[test]
fn the_pages_lines_for_cpp_read_what_the_vectors_say() {
    let mut wanted = BTreeMap::new();
    let mut input = String::new();
    let mut add = |vector: &Value, hex: &str, outcome: Option<(usize, &'static str)>| {
        let name = vector["name"].as_str().expect("a name");
        input += &format!("{name} {} {hex}\n", vector["payload_bytes_max"]);
        wanted.insert(name.to_owned(), outcome);
    };
    for vector in load("streams.json") {
        let chunks = vector["chunks"].as_array().expect("chunks");
        let hex: String = chunks.iter().filter_map(|chunk| chunk["hex"].as_str()).collect();
        let payloads =
            chunks.iter().map(|chunk| chunk["payloads"].as_array().expect("a list").len()).sum();
        let whole = if vector["incomplete_bytes"] == 0 { "whole" } else { "cut" };
        let may_accept = vector["sdk_may_accept"] == true;
        add(&vector, &hex, (!may_accept).then_some((payloads, whole)));
    }
    for vector in load("malformed.json") {
        // What the answer holds is another reader's affair.
        let refused = vector["sdk_may_accept"] == false && vector["refused_as"] != "answer";
        add(&vector, vector["stream"].as_str().expect("hex"), refused.then_some((0, "cut")));
    }
    let said = check("cpp", &input);
    for line in said.lines().filter_map(|line| line.strip_prefix("stream cpp ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, count, end] = words[..] else { panic!("{line}") };
        let Some(outcome) = wanted.remove(name).expect("each stream once") else { continue };
        assert_eq!((count.parse(), end), (Ok(outcome.0), outcome.1), "{name}");
    }
    assert!(wanted.is_empty(), "it was silent about {:?}", wanted.keys());
}

/// The lines between `PROTOCOL.md: NAME` and `end` in a program, without their indentation.
fn shown(source: &str) -> (String, String) {
    let mut lines = source.lines();
    let (indent, name) = lines
        .find_map(|line| line.split_once("// PROTOCOL.md: ").or(line.split_once("# PROTOCOL.md: ")))
        .expect("a mark");
    let ends = |line: &&str| !matches!(line.trim(), "// end" | "# end");
    let shown = lines.take_while(ends).map(|line| line.strip_prefix(indent).unwrap_or(line));
    (name.to_owned(), shown.collect::<Vec<_>>().join("\n").trim_end().to_owned())
}

#[test]
fn the_pages_lines_are_the_ones_that_run() {
    let text = page::read("PROTOCOL.md");
    for (source, language) in [
        ("java/Client.java", "java"),
        ("java/NettyFrames.java", "java"),
        ("python/client.py", "python"),
        ("python/rooms.py", "python"),
        ("node/client.js", "javascript"),
        ("go/frame.go", "go"),
        ("cpp/check.cc", "cpp"),
    ] {
        let (name, lines) = shown(&page::read(&format!("interop/{source}")));
        let on_page = page::blocks(&text, language);
        assert!(on_page.iter().any(|(_, block)| *block == lines), "{name}: {source} has\n{lines}");
    }
}

#[test]
fn the_examples_are_short() {
    for example in ["java/Client.java", "python/client.py", "node/client.js", "go/client/main.go"] {
        let lines = page::read(&format!("interop/{example}")).lines().count();
        assert!(lines < 100, "{example} has {lines} lines");
    }
}
