//! Holds `PROTOCOL.md` to the code: its bytes, its messages, its codes and its numbers.

pub mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use page::{blocks, read, rows};
use prost::Message as _;
use tidegate_protocol::client::Client;
use tidegate_protocol::proto::demo;
use tidegate_protocol::proto::v1::{self, notice};
use tidegate_protocol::{Code, Request, limits, server};

/// 2026-01-01T00:00:00Z.
const SERVER_TIME_MS: u64 = 1_767_225_600_000;

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
    let said = demo::RoomMessage { room: "quiz".into(), from_user_id: 7, text: "hi".into() };
    let session = v1::Session {
        session_id: 0x0102_0304_0506_0708,
        heartbeat_interval_ms: limits::HEARTBEAT_INTERVAL_MS,
        server_time_ms: SERVER_TIME_MS,
        ..v1::Session::default()
    };
    let log = session.session_id;
    let position = v1::Position { room: "quiz".into(), log, offset: 33, ticket: "proof".into() };
    let resume = v1::Resume { positions: vec![position] };
    let room = |name: &str, number, log, head, ticket: &'static str| {
        let (name, ticket) = (name.into(), ticket.into());
        v1::Room { name, number, log, head, ticket, ..v1::Room::default() }
    };
    let everybody = room("*", 1, 0x1112_1314_1516_1718, 9, "");
    let recovery = v1::Recovery::Complete.into();
    let quiz = v1::Room { recovery, ..room("quiz", 5, log, 34, "fresh") };
    let with_rooms = v1::Session { rooms: vec![everybody, quiz], ..session };
    let joined = notice::What::Joined(room("chat", 6, log, 2, "proof"));
    let joined = v1::Notice { what: Some(joined) };
    let left = v1::Notice { what: Some(notice::What::Left("chat".into())) };
    let mut again = Client::new(now);
    again.resume(now, 7, "token-7", &resume);
    BTreeMap::from([
        ("resume", again.outgoing().split().to_vec()),
        ("session-rooms", written(|out| server::put_session(out, 1, &with_rooms))),
        ("notice-joined", written(|out| server::put_notice(out, &joined))),
        ("notice-left", written(|out| server::put_notice(out, &left))),
        ("authenticate", asked(&mut |client| client.authenticate(now, 7, "token-7"))),
        ("business-request", asked(&mut |client| client.request(now, 1, b"hello"))),
        ("heartbeat", asked(&mut |client| client.heartbeat(now))),
        ("empty", written(|out| Request::default().encode_frame(out))),
        ("session", written(|out| server::put_session(out, 1, &session))),
        ("answer", written(|out| server::put_answer(out, 1, 2, b"hello"))),
        ("failure", written(|out| server::put_failure(out, 1, 2, Code::RateLimited, 250))),
        ("pong", written(|out| server::put_pong(out, 3, SERVER_TIME_MS))),
        ("room-push", written(|out| server::put_push(out, 12, &said.encode_to_vec(), 34, 5))),
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

/// The lines of the messages, without comments, blank lines and indentation.
fn messages(proto: &str) -> Vec<String> {
    let code = |line: &str| line.split("//").next().unwrap_or("").trim().to_owned();
    let text: Vec<String> = proto.lines().map(code).filter(|line| !line.is_empty()).collect();
    let starts = |line: &String| line.starts_with("message ") || line.starts_with("enum ");
    let start = text.iter().position(starts).expect("a message");
    text[start..].to_vec()
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

/// What may come in a state of the machine in which bytes are read, by the names of the vectors' events.
fn everything_that_comes() -> BTreeSet<String> {
    let mut events: BTreeSet<String> =
        ["session", "answer", "pong", "push", "joined", "left", "ignored"]
            .into_iter()
            .chain(["failure ?", "goodbye ?", "bad frame", "end", "timer"])
            .chain(["request", "connect()", "close()"])
            .map(str::to_owned)
            .collect();
    for code in Code::ALL {
        let number = code.number();
        if code.ends_session() {
            events.insert(format!("goodbye {number}"));
        }
        // 100 and 108 are both.
        if code.fails_request() {
            events.insert(format!("failure {number}"));
        }
    }
    events
}

#[test]
fn the_state_machine_has_a_row_for_everything_that_can_come() {
    let mut handled: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut state = String::new();
    let mut next = BTreeSet::new();
    for row in rows(&read("PROTOCOL.md"), "| state | on |") {
        let [of, on, what, to] = &row[..] else { panic!("{row:?} has four cells") };
        if !of.is_empty() {
            state.clone_from(of);
        }
        assert!(!what.is_empty() && !to.is_empty(), "{state}: {row:?}");
        // Without an event it is another case of the row above.
        let events = on.split('`').skip(1).step_by(2).map(str::to_owned);
        let known = handled.entry(state.clone()).or_default();
        for event in events {
            assert!(known.insert(event.clone()), "{state} has two rows for {event}");
        }
        next.extend(to.split(", or ").map(str::to_owned));
    }
    assert_eq!(next, handled.keys().cloned().collect(), "every state is reached, and has rows");
    for state in ["Authenticating", "Open", "Draining", "Closing"] {
        assert_eq!(handled[state], everything_that_comes(), "{state}");
    }
    for (state, events) in &handled {
        for event in ["request", "close()", "connect()"] {
            let has = events.contains(event);
            assert!(has, "{state} has no row for {event}");
        }
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

/// The headings of a page, as links name them.
fn headings(page: &str) -> BTreeSet<String> {
    let slug = |line: &str| {
        let kept = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-';
        line.trim_start_matches('#').trim().chars().filter(kept).collect::<String>()
    };
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| slug(line).to_lowercase().replace(' ', "-")).collect()
}

#[test]
fn every_file_that_the_pages_link_to_is_there() {
    for page in ["PROTOCOL.md", "vectors/README.md", "interop/README.md"] {
        let text = read(page);
        // What is in a code block is no link.
        let prose: Vec<&str> = text.split("\n```").step_by(2).collect();
        let prose = prose.join("\n");
        let links = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (link, _) in links {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(page).parent().expect("a folder");
            let file = if file.is_empty() { page.into() } else { folder.join(file) };
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
            assert!(path.exists(), "{page}: {link} is not there");
            let named = || headings(&read(file.to_str().expect("UTF-8"))).contains(heading);
            assert!(heading.is_empty() || named(), "{page}: no heading #{heading}");
        }
    }
}
