//! Holds `PROTOCOL.md` to the code: its bytes, its messages, its codes and its numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use prost::Message as _;
use tidegate_protocol::client::Client;
use tidegate_protocol::proto::{demo, v1};
use tidegate_protocol::{Code, Request, limits, server};

/// 2026-01-01T00:00:00Z.
const SERVER_TIME_MS: u64 = 1_767_225_600_000;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).expect("the file is there")
}

/// The code blocks of the page with this language: what follows the language, and the text.
fn blocks(page: &str, language: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let (found, rest) = info.split_once(' ').unwrap_or((info, ""));
        if found == language {
            blocks.push((rest.to_owned(), text.join("\n")));
        }
    }
    blocks
}

/// The bytes of an annotated block: on each line what is before the bar.
fn annotated_bytes(text: &str) -> Vec<u8> {
    let byte = |pair: &str| {
        assert_eq!(pair.len(), 2, "{pair} is no byte");
        u8::from_str_radix(pair, 16).expect("hex")
    };
    text.lines()
        .flat_map(|line| {
            let (bytes, note) = line.split_once('|').expect("a line has bytes and a note");
            assert!(!note.trim().is_empty(), "{line}");
            bytes.split_whitespace().map(byte).collect::<Vec<_>>()
        })
        .collect()
}

/// A frame written by one function.
fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// What the code writes for each example of the page.
fn examples() -> BTreeMap<&'static str, Vec<u8>> {
    let now = Instant::now();
    let mut client = Client::new(now);
    let mut asked = |ask: &mut dyn FnMut(&mut Client) -> u64| {
        ask(&mut client);
        client.outgoing().split().to_vec()
    };
    let again = demo::JoinRoom { room: "quiz".into(), last_offset: 33 }.encode_to_vec();
    let said = demo::RoomMessage { room: "quiz".into(), from_user_id: 7, text: "hi".into() };
    let session = v1::Session {
        session_id: 0x0102_0304_0506_0708,
        heartbeat_interval_ms: limits::HEARTBEAT_INTERVAL_MS,
        server_time_ms: SERVER_TIME_MS,
    };
    BTreeMap::from([
        ("authenticate", asked(&mut |client| client.authenticate(now, 7, "token-7"))),
        ("business-request", asked(&mut |client| client.request(now, 1, b"hello"))),
        ("heartbeat", asked(&mut |client| client.heartbeat(now))),
        ("join-again", asked(&mut |client| client.request(now, 10, &again))),
        ("empty", written(|out| Request::default().encode_frame(out))),
        ("session", written(|out| server::put_session(out, 1, &session))),
        ("answer", written(|out| server::put_answer(out, 1, 2, b"hello"))),
        ("failure", written(|out| server::put_failure(out, 1, 2, Code::RateLimited, 250))),
        ("pong", written(|out| server::put_pong(out, 3, SERVER_TIME_MS))),
        ("room-push", written(|out| server::put_push(out, 12, &said.encode_to_vec(), 34))),
        ("goodbye", written(|out| server::put_goodbye(out, Code::Draining, 1500))),
        ("malformed", written(|out| server::put_goodbye(out, Code::Malformed, 0))),
    ])
}

#[test]
fn every_example_is_what_the_code_writes() {
    let mut examples = examples();
    for (name, text) in blocks(&read("PROTOCOL.md"), "hex") {
        let wanted = examples.remove(name.as_str()).expect("each example once, by a known name");
        assert_eq!(annotated_bytes(&text), wanted, "{name}");
    }
    assert!(examples.is_empty(), "the page lacks {:?}", examples.keys());
}

/// The notes of an example, line by line, as far as a number can be read out of them.
#[test]
fn every_examples_length_is_what_its_note_says() {
    for (name, text) in blocks(&read("PROTOCOL.md"), "hex") {
        let (_, note) = text.split_once("length: ").expect("an example begins with its length");
        let digits: String = note.chars().take_while(char::is_ascii_digit).collect();
        let bytes = annotated_bytes(&text);
        assert_eq!(digits.parse(), Ok(bytes.len() - 1), "{name}");
    }
}

/// A message's fields, without comments, blank lines and indentation.
fn messages(proto: &str) -> Vec<String> {
    let code = |line: &str| line.split("//").next().unwrap_or("").trim().to_owned();
    let text: Vec<String> = proto.lines().map(code).filter(|line| !line.is_empty()).collect();
    text.split_inclusive(|line| line == "}")
        .map(|message| {
            let start = message.iter().position(|line| line.starts_with("message "));
            message[start.expect("a message")..].join("\n")
        })
        .collect()
}

#[test]
fn the_messages_are_those_of_the_proto_file() {
    let page = read("PROTOCOL.md");
    let [(_, text)] = blocks(&page, "proto").try_into().expect("one block of messages");
    assert_eq!(messages(&text), messages(&read("proto/tidegate.proto")));
}

#[test]
fn every_code_has_a_row_and_an_action() {
    let page = read("PROTOCOL.md");
    for code in Code::ALL {
        let row = format!("| {} | {} |", code.number(), code.name());
        assert_eq!(page.matches(&row).count(), 1, "{row}");
        let action = format!("| {}", code.number());
        let rows = page.lines().filter(|line| line.starts_with(&action)).count();
        assert!(rows >= 2, "{code} has no row that says what to do");
    }
}

#[test]
fn the_numbers_are_those_of_the_code() {
    let page = read("PROTOCOL.md");
    let intervals = limits::IDLE_INTERVAL_TENTHS;
    for stated in [
        format!("{} bytes (64 KiB) from\n  clients", limits::FRAME_FROM_CLIENT_BYTES_MAX),
        format!("{} bytes (1 MiB) to clients", limits::FRAME_TO_CLIENT_BYTES_MAX),
        format!("{}.{} heartbeat intervals", intervals / 10, intervals % 10),
        format!("| to authenticate | {} s | gateway |", limits::AUTH_TIMEOUT_MS / 1000),
        format!("from the `Session`; {} s until then", limits::HEARTBEAT_INTERVAL_MS / 1000),
        format!("closed after {} failed tries", limits::AUTH_FAILURES_MAX),
    ] {
        assert!(page.contains(&stated), "the page does not say \"{stated}\"");
    }
    assert_eq!(limits::PREFIX_BYTES_MAX, 5, "the page says: more than five bytes");
}

#[test]
fn every_file_that_the_page_links_to_is_there() {
    let page = read("PROTOCOL.md");
    let links = page.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    for (link, _) in links {
        if let Some(heading) = link.strip_prefix('#') {
            let slug = |line: &str| {
                let kept = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-';
                line.trim_start_matches('#').trim().chars().filter(kept).collect::<String>()
            };
            let found = page
                .lines()
                .filter(|line| line.starts_with('#'))
                .any(|line| slug(line).to_lowercase().replace(' ', "-") == heading);
            assert!(found, "no heading #{heading}");
        } else {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(link);
            assert!(path.exists(), "{link} is not there");
        }
    }
}
