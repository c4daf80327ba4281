use super::*;
use crate::driver::ConnId;
use crate::shard::tokens::TokenPage;

fn addr(slot: u32) -> SessionAddr {
    SessionAddr::new(0, ConnId { slot, generation: 1 })
}

fn token(name: &str) -> TokenDigest {
    TokenDigest::of(name)
}

const KNOWN: Verdict = Verdict::Known { ends_in_ms: None };

/// With a connection, and all channels heard; the first pass has found nobody.
fn tokens() -> Tokens {
    let mut tokens = Tokens::new(1, 300_000);
    tokens.on_up(0);
    (0..PARTITIONS).for_each(|partition| tokens.on_subscribed(partition));
    tokens.tick(1_000);
    outputs(&mut tokens);
    tokens.on_page(page(0, vec![], None), 1_000);
    assert!(tokens.next_request(1_000).is_none());
    tokens
}

fn page(from: u32, tokens: Vec<ListedToken>, next: Option<u32>) -> TokenPage {
    TokenPage { shard: 0, from, tokens, next }
}

fn listed(slot: u32, user_id: UserId, ends_in_ms: Option<u64>) -> ListedToken {
    ListedToken { conn: addr(slot).conn(), user_id, token: token("a"), ends_in_ms }
}

/// What the part asks for, in a form that can be compared.
fn outputs(tokens: &mut Tokens) -> Vec<String> {
    let outputs = std::iter::from_fn(|| tokens.next_output());
    let text = |output| match output {
        Output::Post(0, TokenMessage::Verdict { conn, verdict }) => {
            format!("{} {verdict:?}", conn.slot)
        }
        Output::Post(0, TokenMessage::List { from }) => format!("list {from}"),
        Output::Post(0, TokenMessage::Revoke { user_id, token }) => {
            format!("gone {user_id} {token:?}")
        }
        Output::Post(0, TokenMessage::NewEnd { conn, ends_in_ms, .. }) => {
            format!("end {} {ends_in_ms:?}", conn.slot)
        }
        Output::Revoke(user_id, token) => format!("revoke {user_id} {token:?}"),
        Output::Subscribe(partition) => format!("subscribe {partition}"),
        other => format!("{other:?}"),
    };
    outputs.map(text).collect()
}

/// The requests, by partition, with how many tokens each asks for.
fn requests(tokens: &mut Tokens, now_ms: u64) -> Vec<(u8, u64, usize)> {
    let requests = std::iter::from_fn(|| tokens.next_request(now_ms));
    let arguments = |cmd: &Cmd| (cmd.args_iter().count() - 5) / 2;
    requests.map(|it| (it.partition, it.number, arguments(&it.cmd))).collect()
}

fn answer(tokens: &mut Tokens, request: (u8, u64, usize), verdict: Verdict, now_ms: u64) {
    let (partition, number, count) = request;
    tokens.on_answer(partition, number, Some(vec![verdict; count]), now_ms);
}

#[test]
fn lookups_of_a_partition_are_gathered_while_its_command_is_under_way() {
    let mut tokens = tokens();
    for slot in 0..1_201_u32 {
        tokens.look_up(addr(slot), 128 * u64::from(slot), token("a"), 1_000);
        if slot == 0 {
            assert_eq!(requests(&mut tokens, 1_000), [(0, 1, 1)]);
        }
    }
    assert!(requests(&mut tokens, 1_000).is_empty(), "one command of a partition at a time");
    // Another partition does not wait.
    tokens.look_up(addr(5_000), 127, token("a"), 1_000);
    assert_eq!(requests(&mut tokens, 1_000), [(127, 2, 1)]);
    answer(&mut tokens, (0, 1, 1), KNOWN, 1_001);
    let counts = std::iter::from_fn(|| {
        let request = requests(&mut tokens, 1_001).pop()?;
        answer(&mut tokens, request, Verdict::Unknown, 1_001);
        Some(request.2)
    });
    assert_eq!(counts.collect::<Vec<_>>(), [500, 500, 200]);
    let verdicts = outputs(&mut tokens);
    assert_eq!(verdicts.len(), 1_201);
    assert_eq!(verdicts[0], "0 Known { ends_in_ms: None }");
    assert_eq!(verdicts[1_200], "1200 Unknown");
    assert_eq!(tokens.waiting(), 1);
}

#[test]
fn a_lookup_waits_two_seconds_for_redis_and_no_longer() {
    let mut tokens = tokens();
    tokens.look_up(addr(1), 0, token("a"), 10_000);
    let request = requests(&mut tokens, 10_000)[0];
    tokens.look_up(addr(2), 0, token("a"), 10_500);
    tokens.tick(11_999);
    assert_eq!(outputs(&mut tokens), [""; 0]);
    tokens.tick(12_000);
    assert_eq!(outputs(&mut tokens), ["1 Unavailable"]);
    // A late answer changes nothing, and the partition goes on.
    answer(&mut tokens, request, KNOWN, 12_100);
    let request = requests(&mut tokens, 12_100)[0];
    answer(&mut tokens, request, KNOWN, 12_100);
    assert_eq!(outputs(&mut tokens), ["2 Known { ends_in_ms: None }"]);
    let Counters { lookups, unavailable, .. } = tokens.counters();
    assert_eq!((lookups, unavailable, tokens.waiting()), (2, 1, 0));
}

#[test]
fn a_command_that_failed_is_made_again_while_its_logins_have_time() {
    let mut tokens = tokens();
    for slot in [1, 2] {
        tokens.look_up(addr(slot), 0, token("a"), 10_000);
    }
    let (partition, number, count) = requests(&mut tokens, 10_000)[0];
    assert_eq!(count, 2);
    tokens.on_answer(partition, number, None, 10_010);
    assert!(requests(&mut tokens, 10_010).is_empty(), "not at once");
    tokens.tick(10_110);
    let request = requests(&mut tokens, 10_110)[0];
    assert_eq!(request.2, 2);
    // An answer of the wrong length is none.
    tokens.on_answer(partition, request.1, Some(vec![KNOWN]), 10_120);
    tokens.tick(12_000);
    assert_eq!(outputs(&mut tokens), ["1 Unavailable", "2 Unavailable"]);
}

#[test]
fn without_a_connection_a_lookup_waits_only_for_the_first_two_seconds() {
    let mut tokens = tokens();
    tokens.on_down(10_000);
    tokens.look_up(addr(1), 0, token("a"), 11_000);
    assert!(requests(&mut tokens, 11_000).is_empty());
    tokens.tick(11_999);
    assert_eq!(outputs(&mut tokens), [""; 0]);
    tokens.tick(12_000);
    tokens.look_up(addr(2), 0, token("a"), 12_000);
    assert_eq!(outputs(&mut tokens), ["1 Unavailable", "2 Unavailable"]);
    assert!(tokens.ready.is_empty(), "nothing gathers while there is no connection");
    // A short absence is not felt.
    tokens.on_up(20_000);
    tokens.on_down(20_000);
    tokens.look_up(addr(3), 0, token("a"), 20_100);
    tokens.on_up(20_200);
    let request = requests(&mut tokens, 20_200)[0];
    outputs(&mut tokens);
    answer(&mut tokens, request, KNOWN, 20_200);
    assert_eq!(outputs(&mut tokens), ["3 Known { ends_in_ms: None }"]);
}

#[test]
fn lookups_under_way_are_made_again_on_the_next_connection_before_the_old_command_fails() {
    let mut tokens = tokens();
    for slot in [1, 2] {
        tokens.look_up(addr(slot), 0, token("a"), 10_000);
    }
    let first = requests(&mut tokens, 10_000)[0];
    tokens.look_up(addr(3), 0, token("a"), 10_500);
    // The server stopped answering. The command of the old connection has no outcome yet.
    tokens.on_down(11_000);
    assert!(requests(&mut tokens, 11_000).is_empty());
    tokens.on_up(11_100);
    outputs(&mut tokens);
    let again = requests(&mut tokens, 11_100)[0];
    assert_eq!((again.0, again.2), (0, 3));
    // The old command's outcome comes late: neither a failure nor an answer changes anything.
    tokens.on_answer(first.0, first.1, None, 11_110);
    answer(&mut tokens, first, Verdict::Unknown, 11_120);
    assert_eq!((outputs(&mut tokens), requests(&mut tokens, 11_120).len()), (vec![], 0));
    answer(&mut tokens, again, KNOWN, 11_130);
    let verdicts = ["1", "2", "3"].map(|slot| format!("{slot} Known {{ ends_in_ms: None }}"));
    assert_eq!(outputs(&mut tokens), verdicts);
    assert_eq!(tokens.waiting(), 0);
}

#[test]
fn a_new_connection_does_not_extend_the_time_of_a_lookup() {
    let mut tokens = tokens();
    tokens.look_up(addr(1), 0, token("a"), 10_000);
    assert_eq!(requests(&mut tokens, 10_000).len(), 1);
    tokens.on_down(11_000);
    tokens.on_up(11_500);
    outputs(&mut tokens);
    let again = requests(&mut tokens, 11_500)[0];
    tokens.tick(12_000);
    assert!(outputs(&mut tokens).contains(&"1 Unavailable".to_owned()));
    answer(&mut tokens, again, KNOWN, 12_010);
    assert_eq!((outputs(&mut tokens), tokens.waiting()), (vec![], 0));
}

#[test]
fn a_token_that_is_revoked_while_its_lookup_is_under_way_is_looked_up_again() {
    let mut tokens = tokens();
    for (slot, user_id, name) in [(1, 0, "a"), (2, 0, "b"), (3, 128, "a")] {
        tokens.look_up(addr(slot), user_id, token(name), 10_000);
    }
    let request = requests(&mut tokens, 10_000)[0];
    tokens.on_revoked(0, Some(token("a")));
    // Redis has answered before the revocation, and the answer comes behind it.
    answer(&mut tokens, request, KNOWN, 10_001);
    let known = "Known { ends_in_ms: None }";
    let revoke = format!("revoke 0 {:?}", Some(token("a")));
    assert_eq!(outputs(&mut tokens), [revoke, format!("2 {known}"), format!("3 {known}")]);
    let request = requests(&mut tokens, 10_001)[0];
    assert_eq!(request.2, 1);
    tokens.on_revoked(0, None);
    answer(&mut tokens, request, KNOWN, 10_002);
    let request = requests(&mut tokens, 10_002)[0];
    answer(&mut tokens, request, Verdict::Unknown, 10_003);
    assert_eq!(outputs(&mut tokens), ["revoke 0 None", "1 Unknown"]);
    assert_eq!(tokens.waiting(), 0);
}

#[test]
fn all_sessions_are_checked_once_all_revocations_are_heard_and_then_now_and_then() {
    let mut tokens = Tokens::new(1, 300_000);
    tokens.on_up(0);
    assert_eq!(outputs(&mut tokens).len(), 128);
    (1..PARTITIONS).for_each(|partition| tokens.on_subscribed(partition));
    tokens.on_unsubscribed(0, 1_000);
    tokens.tick(1_500);
    assert_eq!((outputs(&mut tokens), tokens.heard_partitions()), (vec![], 127));
    tokens.tick(2_000);
    assert_eq!(outputs(&mut tokens), ["subscribe 0"]);
    tokens.on_subscribed(0);
    tokens.tick(2_050);
    assert_eq!(outputs(&mut tokens), ["list 0"]);
    tokens.on_page(page(0, vec![listed(1, 0, None)], Some(1_000)), 2_060);
    tokens.tick(2_100);
    assert_eq!(outputs(&mut tokens), [""; 0], "pages are paced");
    tokens.tick(2_160);
    assert_eq!(outputs(&mut tokens), ["list 1000"]);
    tokens.on_page(page(1_000, vec![], None), 2_170);
    tokens.tick(300_000);
    assert_eq!(outputs(&mut tokens), [""; 0]);
    tokens.tick(302_050);
    assert_eq!(outputs(&mut tokens), ["list 0"]);
    // A doubt while a pass is under way starts another one behind it.
    tokens.on_node_lost();
    tokens.on_page(page(0, vec![], None), 302_060);
    tokens.tick(303_050);
    assert_eq!(outputs(&mut tokens), ["list 0"]);
    // A page of a pass that was ended is not taken for one of the next.
    tokens.on_down(303_060);
    tokens.on_page(page(0, vec![listed(1, 0, None)], Some(1_000)), 303_070);
    assert_eq!(tokens.waiting_checks, 0);
}

#[test]
fn a_session_whose_token_is_gone_is_ended_and_a_new_end_is_passed_on() {
    let mut tokens = tokens();
    tokens.walk.on_doubt();
    tokens.tick(2_000);
    let ends = [None, None, Some(100_000), Some(100_000), Some(100_000)];
    let sessions = (0..).zip(ends).map(|(slot, end)| listed(slot, 0, end)).collect();
    tokens.on_page(page(0, sessions, None), 2_000);
    assert!(requests(&mut tokens, 2_500).is_empty(), "checks are gathered");
    tokens.tick(3_000);
    let (partition, number, _) = requests(&mut tokens, 3_000)[0];
    outputs(&mut tokens);
    let known = |ms| Verdict::Known { ends_in_ms: Some(ms) };
    let verdicts = vec![KNOWN, Verdict::Unknown, known(99_000), known(200_000), KNOWN];
    tokens.on_answer(partition, number, Some(verdicts), 3_100);
    let gone = format!("gone 0 {:?}", Some(token("a")));
    assert_eq!(outputs(&mut tokens), [gone.as_str(), "end 3 Some(200000)", "end 4 None"]);
    let Counters { checks, gone, .. } = tokens.counters();
    assert_eq!((checks, gone, tokens.waiting_checks), (5, 1, 0));
}

#[test]
fn checks_go_with_logins_and_those_that_failed_or_are_old_are_made_by_another_pass() {
    let mut tokens = tokens();
    tokens.walk.on_doubt();
    tokens.tick(2_000);
    outputs(&mut tokens);
    tokens.on_page(page(0, vec![listed(1, 0, None)], None), 2_000);
    tokens.look_up(addr(2), 128, token("a"), 2_010);
    let request = requests(&mut tokens, 2_010)[0];
    assert_eq!(request.2, 2);
    tokens.on_answer(request.0, request.1, None, 2_020);
    assert_eq!((tokens.waiting_checks, tokens.waiting()), (0, 1));
    tokens.tick(3_050);
    assert_eq!(outputs(&mut tokens), ["list 0"]);
    // Redis says that the token is gone, but so late that it may have ended by itself.
    tokens.on_page(page(0, vec![listed(1, 1, Some(70_000))], None), 3_060);
    tokens.tick(4_060);
    outputs(&mut tokens);
    let request = requests(&mut tokens, 4_060).into_iter().find(|it| it.0 == 1).unwrap();
    answer(&mut tokens, request, Verdict::Unknown, 34_000);
    assert_eq!(outputs(&mut tokens), [""; 0]);
    tokens.tick(34_050);
    assert!(outputs(&mut tokens).contains(&"list 0".to_owned()));
}

#[test]
fn a_subscription_without_an_outcome_is_made_again() {
    let mut tokens = tokens();
    tokens.on_unsubscribed(7, 2_000);
    tokens.tick(3_000);
    assert_eq!(outputs(&mut tokens), ["subscribe 7"]);
    tokens.tick(3_000 + CONFIRM_MS - 1);
    assert_eq!(outputs(&mut tokens), [""; 0], "its outcome may still come");
    tokens.tick(3_000 + CONFIRM_MS);
    assert_eq!(outputs(&mut tokens), ["subscribe 7"]);
    tokens.on_subscribed(7);
    tokens.tick(3_000 + 2 * CONFIRM_MS);
    assert_eq!(outputs(&mut tokens), ["list 0"], "all are heard again");
}
