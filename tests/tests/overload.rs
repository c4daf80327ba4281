//! Calls under load: workers that block, queues that are full, and more requests than a backend can serve.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use tidegate_tests::phone::blocking::{ECHO, HANG, RELEASE, WORK};
use tidegate_tests::{Code, Operator, Phone, Setup, until};

const MIB: usize = 1024 * 1024;

/// Blocks a worker with a call of this phone, and waits until a worker has taken it.
fn hang(operator: &Operator, phone: &mut Phone) -> u64 {
    let taken = "tidegate_queue_wait_seconds_count";
    let before = operator.metric(taken, "blocking").unwrap();
    let asked = phone.send(HANG, b"hang");
    operator.wait_for_metric(taken, "blocking", |n| n > before);
    asked
}

/// Releases whatever blocks.
fn release(phone: &mut Phone) {
    phone.ask(RELEASE, b"").unwrap();
}

#[test]
fn a_call_that_hangs_delays_only_its_own_connection() {
    let gateway = Setup::blocking(60_000).start();
    let operator = gateway.operator();
    let mut hanging = gateway.login(1);
    let first = hang(&operator, &mut hanging);
    let second = hanging.send(ECHO, b"behind it");
    // One worker of two is left, for all other connections.
    let mut phones: Vec<_> = (2..50).map(|user_id| gateway.login(user_id)).collect();
    for round in 0..5 {
        let text = [round; 10];
        let asked: Vec<_> = phones.iter_mut().map(|phone| phone.send(ECHO, &text)).collect();
        for (phone, asked) in phones.iter_mut().zip(asked) {
            assert_eq!(phone.outcome(asked).unwrap(), text[..]);
        }
    }
    operator.wait_for_metric("tidegate_queued_calls", "blocking", |n| n == 1.0);
    operator.wait_for_metric("tidegate_queued_bytes", "blocking", |n| n == 9.0);
    release(&mut phones[0]);
    assert_eq!(hanging.outcome(first).unwrap(), "hang");
    assert_eq!(hanging.outcome(second).unwrap(), "behind it");
    operator.wait_for_metric("tidegate_queued_calls", "blocking", |n| n == 0.0);
}

#[test]
fn calls_that_time_out_leave_the_queue_though_all_workers_hang() {
    const REQUEST_BYTES: usize = 60 * 1024;
    const BYTES_MAX: usize = 8 * MIB;
    let gateway = Setup::blocking(1000)
        .set("backends.blocking.queue_bytes_max", BYTES_MAX)
        .set("limits.frame_bytes_max", 64 * 1024)
        .start();
    let operator = gateway.operator();
    let mut hanging: Vec<_> = (1..=2).map(|user_id| gateway.login(user_id)).collect();
    let asked: Vec<_> = hanging.iter_mut().map(|phone| hang(&operator, phone)).collect();
    for (phone, asked) in hanging.iter_mut().zip(asked) {
        phone.fails(asked, Code::Timeout);
    }
    let before = gateway.process.memory_bytes();
    let mut phones: Vec<_> = (10..30).map(|user_id| gateway.login(user_id)).collect();
    let body = vec![b'x'; REQUEST_BYTES];
    let (mut timeouts, mut refusals) = (0, 0);
    // Each round is more than the queue may hold; all rounds together are 5 times that.
    for _ in 0..2 {
        let request = (ECHO, &body[..]);
        let asked: Vec<_> =
            phones.iter_mut().map(|phone| phone.send_together(&[request; 10])).collect();
        for (phone, asked) in phones.iter_mut().zip(asked) {
            for sequence in asked {
                match phone.outcome(sequence).unwrap_err().code {
                    Some(Code::Timeout) => timeouts += 1,
                    Some(Code::Overloaded) => refusals += 1,
                    code => panic!("{code:?}"),
                }
            }
        }
        operator.wait_for_metric("tidegate_queued_bytes", "blocking", |n| n == 0.0);
        let grown = gateway.process.memory_bytes().saturating_sub(before);
        // The queue, what its memory allocator keeps, and the frames of one turn.
        assert!(grown < 4 * BYTES_MAX, "{grown} bytes");
    }
    assert!(timeouts > 0 && refusals > 0, "{timeouts} {refusals}");
    let counted = operator.metric("tidegate_queue_timeouts_total", "blocking");
    assert_eq!(counted, Some(f64::from(timeouts)));
    assert_eq!(operator.metric("tidegate_queued_calls", "blocking"), Some(0.0));
    // None of them was handled: the workers still have the calls that hang, and then they are free.
    release(&mut phones[0]);
    assert_eq!(phones[0].ask(ECHO, b"hello").unwrap(), "hello");
    // Only the calls that hung are answered late.
    operator.wait_for_metric("tidegate_late_answers_total", "", |n| n == 2.0);
}

#[test]
fn a_backend_serves_again_as_soon_as_an_overload_is_over() {
    // Two workers serve some 2,000 calls a second, so 300 ms of timeout are some 600 calls.
    let gateway = Setup::blocking(300).set("limits.calls_per_connection_max", 1000).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=20).map(|user_id| gateway.login(user_id)).collect();
    let asked: Vec<_> =
        phones.iter_mut().map(|phone| phone.send_together(&[(WORK, "x"); 300])).collect();
    let mut timeouts = 0;
    for (phone, asked) in phones.iter_mut().zip(asked) {
        let outcomes = asked.into_iter().map(|sequence| phone.outcome(sequence));
        timeouts += outcomes.filter(Result::is_err).count();
    }
    assert!(timeouts > 1000, "{timeouts}: more was asked than could be served in time");
    // Every request has its answer, so nothing is left for the workers.
    operator.wait_for_metric("tidegate_queued_calls", "blocking", |n| n == 0.0);
    let mut calls = 20.0 * 300.0;
    until("the backend serves again", || {
        calls += 1.0;
        phones[0].ask(WORK, b"again").is_ok_and(|same| same == "again").then_some(())
    });
    // These are exported together.
    operator.wait_for_metric("tidegate_calls_total", "", |n| n == calls);
    let late = operator.metric("tidegate_late_answers_total", "").unwrap();
    // Each worker may have had a call at hand when its time was up.
    assert!(late < 100.0, "{late} calls were handled for nobody");
}

#[test]
fn calls_that_wait_too_long_are_refused_and_all_others_are_answered() {
    let route = r#"{types=[200,209],backend="blocking",timeout_ms=60000,waiting_ms_max=100}"#;
    let gateway = Setup::blocking(60_000)
        .set("routes", format!("[{route}]"))
        .set("limits.calls_per_connection_max", 1000)
        .start();
    let operator = gateway.operator();
    assert_eq!(operator.metric("tidegate_shedding", "blocking"), Some(0.0));
    let mut phones: Vec<_> = (1..=20).map(|user_id| gateway.login(user_id)).collect();
    // Two workers serve some 2,000 calls a second.
    let asked: Vec<_> =
        phones.iter_mut().map(|phone| phone.send_together(&[(WORK, "x"); 300])).collect();
    let (mut answered, mut waits) = (0_u32, Vec::new());
    for (phone, asked) in phones.iter_mut().zip(asked) {
        for sequence in asked {
            match phone.outcome(sequence) {
                Ok(_) => answered += 1,
                Err(failure) => {
                    assert_eq!(failure.code, Some(Code::Overloaded));
                    waits.push(failure.retry_after);
                }
            }
        }
    }
    // 100 ms are some 200 calls.
    assert!(answered > 0 && waits.len() > 1000, "{answered} answered, {} refused", waits.len());
    let refused = operator.metric("tidegate_refused_calls_total", "waiting").unwrap();
    assert_eq!(refused, f64::from(u32::try_from(waits.len()).unwrap()));
    // Those that were answered are those that workers took, and all together would have waited for 3 s.
    let taken = operator.metric("tidegate_queue_wait_seconds_count", "blocking").unwrap();
    assert_eq!(taken, f64::from(answered));
    let soon = operator.metric("tidegate_queue_wait_seconds_bucket", "le=\"1\"").unwrap();
    assert_eq!(soon, taken, "waited for less than a second");
    // They do not come back together.
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 100, "{} waits", waits.len());
    assert_eq!(phones[0].ask(WORK, b"again").unwrap(), "again");
    operator.wait_for_metric("tidegate_shedding", "blocking", |shedding| shedding == 0.0);
}

#[test]
fn a_backend_that_hangs_gets_no_more_calls_until_it_answers() {
    let gateway = Setup::blocking(500).set("backends.blocking.circuit_timeouts", 3).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=3).map(|user_id| gateway.login(user_id)).collect();
    for phone in &mut phones[..2] {
        hang(&operator, phone);
    }
    let phone = &mut phones[2];
    phone.send(ECHO, b"no worker is free");
    operator.wait_for_metric("tidegate_circuit_open", "blocking", |open| open == 1.0);
    // A probe still times out.
    let failure = until("a call is refused", || {
        let failure = phone.ask(ECHO, b"refused").unwrap_err();
        (failure.code == Some(Code::Overloaded)).then_some(failure)
    });
    assert!(!failure.retry_after.is_zero());
    phone.assert_is_served();
    release(phone);
    until("a probe is answered", || phone.ask(ECHO, b"answered").ok());
    assert_eq!(operator.metric("tidegate_circuit_open", "blocking"), Some(0.0));
    assert_eq!(operator.metric("tidegate_circuit_openings_total", "blocking"), Some(1.0));
    assert_eq!(phone.ask(ECHO, b"all calls").unwrap(), "all calls");
}
