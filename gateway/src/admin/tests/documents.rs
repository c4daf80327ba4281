//! The documents name the bounds that the code has.

use super::*;

/// The documents in a single line each, as their paragraphs are wrapped.
fn documents() -> [String; 2] {
    [include_str!("../../../../README.md"), include_str!("../../../../ARCHITECTURE.md")]
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn documents_name_the_bounds_that_hold() {
    let [silence, body, answer, head, write] = [
        SILENCE_MAX,
        BODY_TIMEOUT,
        ANSWER_TIMEOUT,
        connections::HEAD_TIMEOUT,
        crate::http_io::stream::WRITE_TIMEOUT,
    ]
    .map(|bound| {
        assert_eq!(bound.subsec_nanos(), 0);
        bound.as_secs()
    });
    assert_eq!(head, write, "README.md names them together");
    let (open, queued) = (connection_table::CONNECTIONS_MAX, binding::BACKLOG);
    let queued = format!("{},{:03}", queued / 1000, queued % 1000);
    let [readme, architecture] = documents();
    for text in [
        format!("503 names those that have not for {silence} s"),
        format!("408 the body did not come within {body} s"),
        format!("504 a shard did not answer within {answer} s"),
        // It is also the metric's help, which another test compares with this row.
        format!("| Shards that have not answered for {silence} s. |"),
        format!("At most {open} operators' connections are open"),
        format!("the reading of an answer have {head} s each"),
    ] {
        assert!(readme.contains(&text), "README.md lacks {text:?}");
    }
    for text in [
        format!("| operators' connections | {open}; {queued} more in the kernel's queue |"),
        format!("| {head}, {body}, {answer} and {write} s |"),
        format!("| the silence of a shard or of the HTTP gateway | {silence} s |"),
    ] {
        assert!(architecture.contains(&text), "ARCHITECTURE.md lacks {text:?}");
    }
}
