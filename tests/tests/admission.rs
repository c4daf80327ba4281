//! A storm of phones on a gateway that limits how many it lets in each second.

use std::thread;
use std::time::Instant;

use tidegate_protocol::client::Event;
use tidegate_tests::{Phone, Setup, Wire, until};

#[test]
fn each_phone_of_a_storm_comes_in_when_it_was_told_to_come_back() {
    const PHONES: u64 = 150;
    let gateway = Setup::demo().shards(1).set("limits.accepts_per_second_max", 50).start();
    let address = gateway.address(Wire::Tcp);
    let storm: Vec<_> = (1..=PHONES)
        .map(|user_id| {
            thread::spawn(move || {
                let mut tries = 0;
                loop {
                    tries += 1;
                    let mut phone = Phone::connect(address);
                    phone.send_login(user_id, &format!("token-{user_id}"));
                    let goodbye = phone.wait_for(|event| match event {
                        Event::Authenticated { .. } => Some(None),
                        Event::Goodbye(goodbye) => Some(Some(*goodbye)),
                        _ => None,
                    });
                    let Some(goodbye) = goodbye else { return tries };
                    assert!(goodbye.retry_after.as_millis() >= 1_000, "{goodbye:?}");
                    // As a client does: not before it was told to.
                    let until = Instant::now() + goodbye.retry_after;
                    while let Some(left) = until.checked_duration_since(Instant::now()) {
                        thread::sleep(left);
                    }
                }
            })
        })
        .collect();
    let tries: Vec<u32> = storm.into_iter().map(|phone| phone.join().unwrap()).collect();
    let turned_away = u64::from(tries.iter().sum::<u32>()) - PHONES;
    assert!(turned_away > 0, "there was no storm");
    let operator = gateway.operator();
    let counted = || operator.metric("tidegate_connections_closed_total", "reason=\"turned_away\"");
    until("each is counted", || (counted() == Some(turned_away as f64)).then_some(()));
}
