use super::*;

fn log(frames: &[&'static str], bytes_max: usize) -> Log {
    let mut log = Log::of_tests(100, bytes_max);
    frames.iter().for_each(|frame| log.append(Bytes::from_static(frame.as_bytes())));
    log.release();
    log.trim(log.end());
    log
}

#[test]
fn one_read_takes_all_frames_up_to_the_limit() {
    let mut log = log(&["a", "b", "c"], 10_000);
    assert_eq!(log.chunk(100, 103), Some(("abc".into(), 103)));
    assert_eq!(log.chunk(101, 103), Some(("bc".into(), 103)));
    assert_eq!(log.chunk(102, 103), Some(("c".into(), 103)));
    assert_eq!(log.chunk(103, 103), None);
    log.append("d".into());
    assert_eq!(log.released(), 103);
    assert_eq!(log.chunk(101, 103), Some(("bc".into(), 103)));
    assert_eq!(log.chunk(101, 104), Some(("bcd".into(), 104)));
    assert_eq!(log.chunk(101, 103), Some(("bc".into(), 103)), "not beyond the limit");
    log.release();
    assert_eq!(log.released(), 104);
}

#[test]
fn members_at_the_same_offset_share_a_merged_chunk() {
    let mut log = log(&["a", "b", "c"], 10_000);
    let (first, _) = log.chunk(100, 103).unwrap();
    let (second, _) = log.chunk(100, 103).unwrap();
    assert_eq!(first.as_ptr(), second.as_ptr());
    log.forget_merged();
    assert!(log.merged.is_none());
}

#[test]
fn the_oldest_frames_are_dropped_and_the_newest_is_kept() {
    let mut log = log(&["a", "b", "c"], 2 * (FRAME_OVERHEAD_BYTES + 1));
    assert_eq!((log.first(), log.end()), (101, 103));
    log.append(Bytes::from(vec![0; 5000]));
    assert!(log.must_release());
    log.release();
    assert!(!log.must_release());
    log.trim(102);
    assert_eq!((log.first(), log.end()), (102, 104), "what was not offered stays");
    log.trim(104);
    assert_eq!((log.first(), log.end()), (103, 104));
    assert_eq!(log.bytes(), 5000 + FRAME_OVERHEAD_BYTES);
}

#[test]
fn a_long_merged_chunk_is_shared_though_more_pushes_have_come() {
    let mut log = Log::of_tests(1, usize::MAX);
    for _ in 0..8 {
        log.append(Bytes::from(vec![1; CHUNK_BYTES_MAX / 8]));
    }
    let (short, _) = log.chunk(1, 4).unwrap();
    let (long, to) = log.chunk(1, 5).unwrap();
    assert_eq!((short.len(), long.len(), to), (CHUNK_BYTES_MAX * 3 / 8, CHUNK_BYTES_MAX / 2, 5));
    let (again, to) = log.chunk(1, 9).unwrap();
    assert_eq!((again.as_ptr(), to), (long.as_ptr(), 5), "half a chunk is worth a send");
    let (whole, to) = log.chunk(2, 9).unwrap();
    assert_eq!((whole.len(), to), (CHUNK_BYTES_MAX * 7 / 8, 9), "it begins elsewhere");
    assert_eq!(
        log.chunk(2, 4).map(|(bytes, to)| (bytes.len(), to)),
        Some((CHUNK_BYTES_MAX / 4, 4))
    );
}

#[test]
fn a_chunk_is_bounded_and_a_long_frame_is_a_separate_chunk() {
    let mut log = Log::of_tests(1, usize::MAX);
    for _ in 0..5 {
        log.append(Bytes::from(vec![1; CHUNK_BYTES_MAX / 2]));
    }
    log.append(Bytes::from(vec![2; 2 * CHUNK_BYTES_MAX]));
    log.release();
    let read = |log: &mut Log, from| log.chunk(from, 7).map(|(bytes, to)| (bytes.len(), to));
    assert_eq!(read(&mut log, 1), Some((CHUNK_BYTES_MAX, 3)));
    assert_eq!(read(&mut log, 5), Some((CHUNK_BYTES_MAX / 2, 6)));
    assert_eq!(read(&mut log, 6), Some((2 * CHUNK_BYTES_MAX, 7)));
}

#[test]
fn a_member_recovers_if_the_log_still_holds_all_that_it_missed() {
    let mut log = log(&["a", "b", "c"], 2 * (FRAME_OVERHEAD_BYTES + 1));
    assert_eq!((log.first(), log.end(), log.head()), (101, 103, 102));
    let position = |log, offset| After::Position { log, offset };
    let start = |after| log.start_after(after, 0);
    assert_eq!(start(After::Now), (103, Recovery::NotAsked));
    assert_eq!(start(position(7, 102)), (103, Recovery::Complete));
    assert_eq!(start(position(7, 100)), (101, Recovery::Complete));
    assert_eq!(start(position(7, 99)), (101, Recovery::Gap), "100 is gone");
    assert_eq!(start(position(7, 0)), (101, Recovery::Gap), "100 is gone");
    assert_eq!(start(position(7, 103)), (103, Recovery::Gap), "there never was a 103");
    assert_eq!(start(position(7, u64::MAX)), (103, Recovery::Gap));
    assert_eq!(start(position(8, 102)), (103, Recovery::Gap), "another log");
    assert_eq!(start(After::Offset(100)), (101, Recovery::Complete));
    assert_eq!(start(After::Offset(0)), (101, Recovery::Gap), "100 is gone");
    log.append("d".into());
    assert_eq!(log.start_after(position(7, 102), 0), (103, Recovery::Complete));
}

#[test]
fn an_expired_push_leaves_an_empty_frame_and_frees_its_bytes() {
    let mut log = log(&["a"], 10_000);
    assert!(!log.has_lifetimes());
    log.append_expiring("bb".into(), 50, 3);
    log.append("c".into());
    let (shared, _) = log.chunk(100, 103).unwrap();
    assert_eq!((&shared[..], log.next_expiry_ms()), (&b"abbc"[..], Some(50)));
    let bytes = log.bytes();
    let mut expired = Vec::new();
    log.expire(49, |offset| expired.push(offset));
    assert!(expired.is_empty());
    log.expire(50, |offset| expired.push(offset));
    assert_eq!(expired, [101]);
    assert_eq!((log.bytes(), log.next_expiry_ms()), (bytes - 2, None));
    assert_eq!(log.unreleased_bytes, 1 + 2 * FRAME_OVERHEAD_BYTES);
    assert_eq!((log.first(), log.end()), (100, 103), "no offset changes");
    assert_eq!(log.chunk(100, 103), Some(("ac".into(), 103)), "the chunk is merged again");
    assert_eq!(log.chunk(101, 102), Some(("".into(), 102)));
    assert_eq!(log.ended_between(100, 103).collect::<Vec<_>>(), [(101, 3)]);
    assert_eq!(log.clone().released_copy().chunk(100, 103), Some(("ac".into(), 103)));
    for (offset, expected) in [(99, Recovery::Gap), (100, Recovery::Gap), (101, Recovery::Complete)]
    {
        let after = After::Position { log: 7, offset };
        assert_eq!(log.start_after(after, 0), (offset + 1, expected));
    }
}

#[test]
fn a_log_that_drops_its_last_push_with_a_lifetime_is_like_one_that_never_had_any() {
    let mut log = log(&[], 3 * FRAME_OVERHEAD_BYTES);
    log.append_expiring("a".into(), 50, 0);
    log.append_expiring("b".into(), 60, 0);
    log.expire(50, |_| {});
    ["c", "d"].into_iter().for_each(|frame| log.append(frame.into()));
    log.release();
    log.trim(log.end());
    assert_eq!((log.first(), log.bytes()), (102, 2 * (FRAME_OVERHEAD_BYTES + 1)));
    assert!(!log.has_lifetimes());
    assert_eq!(log.next_expiry_ms(), None);
}

#[test]
fn a_client_that_has_seen_more_of_a_shared_log_than_this_gateway_misses_nothing() {
    let name = LogName { id: LogId(7), number: 3 };
    let frames = (1..=5).map(|_| (Bytes::from_static(b"frame"), NEVER_MS));
    let log = Log::shared(name, 1, frames, 10_000);
    let start = |offset| log.start_after(After::Position { log: 7, offset }, 0);
    assert_eq!(start(5), (6, Recovery::Complete));
    assert_eq!(start(6), (6, Recovery::Complete), "6 comes again, and the client drops it");
    assert_eq!(start(5 + AHEAD_MAX), (6, Recovery::Complete));
    assert_eq!(start(6 + AHEAD_MAX), (6, Recovery::Gap), "no log has that");
    let renamed = log.renamed(LogId(8), 4, 4);
    let start = |offset| renamed.start_after(After::Position { log: 8, offset }, 0);
    assert_eq!((start(3), start(4)), ((4, Recovery::Complete), (4, Recovery::Complete)));
}

#[test]
fn a_backend_that_asks_for_all_pushes_gets_all_since_the_log_began() {
    let log = log(&["a", "b"], 10_000);
    assert_eq!(log.start_after(After::Offset(0), 0), (100, Recovery::Complete));
}

#[test]
fn a_member_that_saw_an_empty_log_recovers_until_its_first_push_is_gone() {
    let mut log = log(&[], 2 * (FRAME_OVERHEAD_BYTES + 1));
    assert_eq!(log.head(), 0);
    let saw_nothing = After::Position { log: 7, offset: 0 };
    assert_eq!(log.start_after(saw_nothing, 0), (100, Recovery::Complete));
    log.append("a".into());
    assert_eq!(log.start_after(saw_nothing, 0), (100, Recovery::Complete));
    ["b", "c"].into_iter().for_each(|frame| log.append(frame.into()));
    log.release();
    log.trim(log.end());
    assert_eq!(log.start_after(saw_nothing, 0), (101, Recovery::Gap));
}

#[test]
fn a_member_without_a_position_gets_what_the_policy_replays() {
    let log = log(&["a", "b", "c"], 10_000);
    assert_eq!(log.start_after(After::Now, 1), (102, Recovery::NotAsked));
    assert_eq!(log.start_after(After::Now, 1_000), (100, Recovery::NotAsked));
    let other_log = After::Position { log: 8, offset: 3 };
    assert_eq!(log.start_after(other_log, 2), (101, Recovery::Gap));
    let same_log = After::Position { log: 7, offset: 102 };
    assert_eq!(log.start_after(same_log, 2), (103, Recovery::Complete), "it has them");
}

#[test]
fn ids_differ_between_logs_shards_and_runs() {
    let draw = |key, shard| {
        let mut ids = LogIds::new(key, shard);
        [ids.draw(), ids.draw(), ids.draw()]
    };
    let all = [draw(1, 0), draw(1, 1), draw(2, 0), draw(2, 1)].concat();
    let distinct: std::collections::HashSet<_> = all.iter().map(|id| id.get()).collect();
    assert_eq!(distinct.len(), all.len());
    assert_eq!(draw(1, 0), draw(1, 0));
}
