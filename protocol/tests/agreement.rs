//! Holds the test vectors to each other and to `PROTOCOL.md`: the same bytes never get two verdicts, and
//! each verdict is that of a rule on the page.

pub mod page;

use std::collections::{BTreeMap, BTreeSet};

use page::{read, rows};
use serde_json::Value;

/// Most bytes of a varint that any protobuf library reads.
const VARINT_BYTES_MAX: usize = 10;

fn load(file: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(&read(&format!("vectors/{file}"))).expect("JSON");
    file["vectors"].as_array().expect("vectors").clone()
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hex digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_else(|| panic!("{} has no {key}", vector["name"]))
}

fn bytes_max(vector: &Value) -> u128 {
    vector["payload_bytes_max"].as_u64().expect("a number").into()
}

/// The bytes of a frame, given whole or as parts.
fn frame(vector: &Value) -> Vec<u8> {
    match vector["frame"].as_str() {
        Some(frame) => unhex(frame),
        None => parts(&vector["frame_parts"]),
    }
}

fn parts(parts: &Value) -> Vec<u8> {
    let repeated = |part: &Value| {
        let times = part["times"].as_u64().expect("a number").try_into().expect("a count");
        unhex(text(part, "hex")).repeat(times)
    };
    parts.as_array().expect("parts").iter().flat_map(repeated).collect()
}

/// A varint at the front of some bytes: its bytes, and its value as far as it has come.
fn varint(bytes: &[u8]) -> (&[u8], u128) {
    let last = bytes.iter().take(VARINT_BYTES_MAX).position(|byte| *byte < 0x80);
    let varint = &bytes[..last.map_or(bytes.len().min(VARINT_BYTES_MAX), |last| last + 1)];
    let bits = |(index, byte): (usize, &u8)| u128::from(byte & 0x7f) << (7 * index);
    (varint, varint.iter().enumerate().map(bits).sum())
}

/// What follows the frames that a stream yields.
fn behind_frames<'a>(mut stream: &'a [u8], payloads: &[Vec<u8>]) -> &'a [u8] {
    for payload in payloads {
        let (prefix, length) = varint(stream);
        assert_eq!(length, payload.len() as u128, "a payload is listed that is not in the stream");
        let start = prefix.len();
        assert_eq!(stream[start..start + payload.len()], payload[..]);
        stream = &stream[start + payload.len()..];
    }
    stream
}

/// A length that is refused.
struct Refusal {
    vector: Value,
    /// The length, and what follows it.
    bytes: Vec<u8>,
}

/// Every length that any vector wants refused.
fn refused_lengths() -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for vector in load("malformed.json") {
        if vector["refused_as"] == "frame" {
            let bytes = unhex(text(&vector, "stream"));
            refusals.push(Refusal { vector, bytes });
        }
    }
    for vector in load("streams.json") {
        if vector["ends"] == "refused" {
            let (stream, payloads) = stream(&vector);
            let bytes = behind_frames(&stream, &payloads).to_vec();
            refusals.push(Refusal { vector, bytes });
        }
    }
    refusals
}

/// All bytes of a stream, and the payloads that it yields.
fn stream(vector: &Value) -> (Vec<u8>, Vec<Vec<u8>>) {
    let chunks = vector["chunks"].as_array().expect("chunks");
    let stream = chunks.iter().flat_map(|chunk| unhex(text(chunk, "hex"))).collect();
    let payloads = chunks.iter().flat_map(|chunk| chunk["payloads"].as_array().expect("payloads"));
    (stream, payloads.map(|payload| unhex(payload.as_str().expect("hex"))).collect())
}

#[test]
fn a_length_never_gets_two_verdicts() {
    let mut verdicts = BTreeMap::new();
    for Refusal { vector, bytes } in refused_lengths() {
        let (length, _) = varint(&bytes);
        // Whether a length is too long depends on the maximum; whether it is padded doesn't.
        let maximum = (vector["why"] == "too_long").then(|| bytes_max(&vector));
        let verdict = (vector["why"].clone(), vector["sdk_may_accept"].clone());
        let known = verdicts.entry((length.to_vec(), maximum)).or_insert_with(|| verdict.clone());
        assert_eq!(*known, verdict, "{}", vector["name"]);
    }
}

/// The gateway's, by direction: what it takes, and what it refuses for what the payload says.
#[test]
fn a_frame_that_is_well_formed_in_one_file_is_refused_in_none() {
    let mut good: BTreeMap<&str, BTreeSet<Vec<u8>>> = BTreeMap::new();
    good.insert("to_gateway", load("requests.json").iter().map(frame).collect());
    good.insert("to_client", load("responses.json").iter().map(frame).collect());
    for vector in load("streams.json") {
        let (bytes, payloads) = stream(&vector);
        behind_frames(&bytes, &payloads);
        for payload in payloads {
            let Some(prefix) = u8::try_from(payload.len()).ok().filter(|length| *length < 0x80)
            else {
                continue;
            };
            let frame = [vec![prefix], payload].concat();
            good.get_mut(text(&vector, "direction")).expect("a direction").insert(frame);
        }
    }
    let mut refused = 0;
    for vector in load("malformed.json") {
        let stream = unhex(text(&vector, "stream"));
        assert!(!good[text(&vector, "direction")].contains(&stream), "{}", vector["name"]);
        refused += 1;
    }
    assert!(refused > 50, "the vectors are read");
}

/// What the page lets an SDK do, by `why`: the last column of its table.
fn rules() -> BTreeMap<String, String> {
    let rule = |row: Vec<String>| {
        let [why, _, gateway, sdk] = &row[..] else { panic!("{row:?} has four cells") };
        assert!(gateway == "refuses" || gateway.is_empty(), "{row:?}");
        (why.trim_matches('`').to_owned(), sdk.clone())
    };
    rows(&read("PROTOCOL.md"), "| `why` |").into_iter().map(rule).collect()
}

#[test]
fn the_page_and_the_vectors_readme_name_the_same_faults() {
    let faults = |file, header, why: usize, what: usize| {
        let rows = rows(&read(file), header).into_iter();
        rows.map(|row| (row[why].clone(), row[what].clone())).collect::<BTreeMap<_, _>>()
    };
    let page = faults("PROTOCOL.md", "| `why` |", 0, 1);
    assert_eq!(faults("vectors/README.md", "| why |", 0, 2), page);
}

#[test]
fn each_verdict_is_that_of_a_rule_on_the_page() {
    let rules = rules();
    let mut used = BTreeSet::new();
    let refused = load("malformed.json");
    for vector in refused.iter().filter(|vector| vector["refused_as"] != "frame") {
        let why = text(vector, "why");
        used.insert(why.to_owned());
        used.extend(vector["biz_data_why"].as_str().map(str::to_owned));
        let Some(may_accept) = vector["sdk_may_accept"].as_bool() else {
            assert_eq!(vector["direction"], "to_gateway", "{}", vector["name"]);
            assert!(rules.contains_key(why), "{why} has no rule");
            continue;
        };
        let rule = if why == "bad_answer" {
            assert!(rules[why].starts_with("as for the payload"), "{}", rules[why]);
            &rules[text(vector, "biz_data_why")]
        } else {
            &rules[why]
        };
        assert!(rule.starts_with("refuses") || rule.starts_with("may accept"), "{rule}");
        assert_eq!(may_accept, rule.starts_with("may accept"), "{}: {rule}", vector["name"]);
    }
    for Refusal { vector, bytes } in refused_lengths() {
        let why = text(&vector, "why");
        used.insert(why.to_owned());
        let (prefix, length) = varint(&bytes);
        let is_padded = prefix.len() > 1 && prefix.ends_with(&[0]) || prefix.len() > 5;
        let is_cut = prefix.last().is_some_and(|byte| *byte >= 0x80);
        let (wanted, may_accept) = if is_padded || is_cut {
            assert!(rules["overlong"].starts_with("may accept"));
            ("overlong", length <= bytes_max(&vector))
        } else {
            assert_eq!(rules["too_long"], "refuses");
            assert!(length > bytes_max(&vector), "{}", vector["name"]);
            ("too_long", false)
        };
        assert_eq!(why, wanted, "{}", vector["name"]);
        assert_eq!(vector["sdk_may_accept"], may_accept, "{}", vector["name"]);
    }
    assert_eq!(used, rules.into_keys().collect(), "each rule has a vector, and each vector a rule");
}

#[test]
fn what_a_library_takes_is_marked_as_such() {
    let mut marked = 0;
    for vector in load("malformed.json") {
        if !vector["accepted_by"].is_null() {
            assert_eq!(vector["sdk_may_accept"], true, "{}", vector["name"]);
            assert!(!vector["accepted_by"].as_array().expect("a list").is_empty());
            marked += 1;
        }
    }
    assert!(marked > 10, "the vectors are read");
}

#[test]
fn names_are_unique_in_their_file() {
    for file in
        ["requests.json", "responses.json", "streams.json", "malformed.json", "memberships.json"]
    {
        let mut names = BTreeSet::new();
        for vector in load(file) {
            assert!(names.insert(text(&vector, "name").to_owned()), "{file}: {}", vector["name"]);
        }
    }
}
