//! More at once than a poll does, or than a shard does in time.

use std::collections::VecDeque;

use super::*;
use crate::spare::SPARE_ENTRIES;

/// Peers that have connected and sent their client hello.
fn crowd(bench: &mut Bench, count: usize) -> Vec<Peer> {
    let connect = |number: usize| {
        let id = bench.sim().connect().unwrap();
        Peer { id, client: WireClient::new(WireKind::TLS, number as u64), end: None }
    };
    (0..count).map(connect).collect()
}

fn begun(peers: &mut [Peer], bench: &mut Bench) -> usize {
    let mut begun = 0;
    for peer in peers {
        peer.pass(bench);
        begun += usize::from(peer.client.is_open());
    }
    begun
}

#[test]
fn other_connections_are_served_between_the_steps_of_a_storm() {
    let mut bench = Bench::on(WireKind::TLS);
    let (mut early, conn) = bench.connect(WireKind::TLS);
    let mut peers = crowd(&mut bench, 60);
    let (mut open, mut polls, mut asked) = (0, 0, 0);
    bench.until("not all open", |bench| {
        let before = open;
        open = begun(&mut peers, bench);
        assert!(open - before <= HANDSHAKES_EACH_POLL as usize, "{} in one poll", open - before);
        assert!(bench.received(conn).len() >= asked, "a byte waits behind handshakes");
        polls += 1;
        early.client.send(b"x");
        early.pass(bench);
        asked += 1;
        // Time would stand still while there is something to do.
        let now = bench.sim().now();
        bench.sim().set_now(now + Duration::from_millis(1));
        open == peers.len() && bench.wired.wires.opening.is_empty()
    });
    // Each has two steps: the client hello, and what ends the handshake.
    assert!(polls >= 2 * 60 / HANDSHAKES_EACH_POLL as usize, "{polls} polls");
    assert_eq!(bench.failure(conn), None);
}

#[test]
fn no_more_handshakes_begin_than_the_rate_allows() {
    const RATE: u32 = 10;
    let mut bench = Bench::new(Settings { handshakes_per_second: RATE, ..settings(WireKind::TLS) });
    let start = bench.sim().now();
    let mut peers = crowd(&mut bench, 40);
    bench.recorder.idle_for = None;
    bench.until("not all open", |bench| {
        let open = begun(&mut peers, bench);
        let allowed = f64::from(RATE) * (bench.sim().now() - start).as_secs_f64()
            + f64::from(HANDSHAKES_EACH_POLL);
        assert!(open as f64 <= allowed + 0.01, "{open} of {allowed}");
        open == peers.len()
    });
    let took = bench.sim().now() - start;
    assert!(took < Duration::from_secs(4), "{took:?}: a handshake that has begun waits for none");
}

#[test]
fn those_that_wait_too_long_for_their_turn_fail() {
    let mut bench = Bench::new(Settings { handshakes_per_second: 1, ..settings(WireKind::TLS) });
    let mut peers = crowd(&mut bench, 30);
    bench.recorder.idle_for = None;
    let failed = |bench: &Bench| {
        bench.facts().iter().filter(|fact| matches!(fact, Fact::Failed(..))).count()
    };
    bench.until("all are served", |bench| {
        begun(&mut peers, bench);
        bench.wired.wires.handshakes.is_empty() && failed(bench) > 0
    });
    let open = begun(&mut peers, &mut bench);
    assert!((10..=16).contains(&open), "{open} are open");
    // One may be open for its client, and not for the gateway.
    assert!((30..=31).contains(&(failed(&bench) + open)), "{} failed", failed(&bench));
}

#[test]
fn a_client_has_a_session_from_its_first_step_on() {
    let mut bench = Bench::new(Settings { handshakes_per_second: 1, ..settings(WireKind::TLS) });
    let (_silent, conn) = bench.connect_raw();
    let mut peers = crowd(&mut bench, 30);
    let sessions = |bench: &Bench| {
        bench.wired.wires.opening.values().filter(|opening| opening.has_session()).count()
    };
    bench.until("no session", |bench| {
        begun(&mut peers, bench);
        sessions(bench) > 0 && bench.wired.wires.opening.len() > 30
    });
    assert!(sessions(&bench) <= HANDSHAKES_EACH_POLL as usize, "{} sessions", sessions(&bench));
    assert!(!bench.wired.wires.opening[&conn].has_session(), "a client that has said nothing");
}

#[test]
fn bytes_that_make_no_record_take_no_turn() {
    let mut bench = Bench::on(WireKind::TLS);
    let (slow, _) = bench.connect_raw();
    for byte in HELLO {
        bench.say(slow, &[*byte]);
        assert!(bench.wired.wires.handshakes.is_empty());
    }
}

/// Lets time pass, with a poll. Time would stand still while there is something to do.
fn tick(bench: &mut Bench, time: Duration) {
    bench.poll();
    let now = bench.sim().now();
    bench.sim().set_now(now + time);
}

/// Closes what has failed, as a core does. `seen`: how many facts were looked at.
fn close_failed(bench: &mut Bench, seen: &mut usize) {
    let failed = |fact: &Fact| match fact {
        Fact::Failed(conn, _) => Some(*conn),
        _ => None,
    };
    let failed: Vec<_> = bench.facts()[*seen..].iter().filter_map(failed).collect();
    *seen = bench.facts().len();
    failed.into_iter().for_each(|conn| bench.wired.close(conn));
}

#[test]
fn a_sustained_overload_does_not_lower_the_number_of_handshakes_that_complete() {
    const RATE: u32 = 20;
    const TICK: Duration = Duration::from_millis(20);
    /// So long a client takes to answer, in ticks.
    const ROUND_TRIP: usize = 10;
    let mut bench = Bench::new(Settings { handshakes_per_second: RATE, ..settings(WireKind::TLS) });
    let (mut peers, mut seen, mut completed_before) = (VecDeque::new(), 0, 0);
    for number in 0..2000 {
        // 50 in a second, 2.5 times as many as the rate allows, for 40 s.
        peers.extend(crowd(&mut bench, 1).into_iter().map(|peer| (number, peer)));
        for (since, peer) in &mut peers {
            if (number - *since) % ROUND_TRIP == 0 {
                peer.pass(&mut bench);
            }
        }
        // Those that are open go away.
        let is_open = |(_, peer): &(usize, Peer)| {
            peer.end.is_some() || peer.client.is_open() && peer.client.out.is_empty()
        };
        if number % ROUND_TRIP == 0 {
            peers.iter().filter(|peer| is_open(peer)).for_each(|(_, peer)| {
                bench.sim().half_close(peer.id);
            });
            peers.retain(|peer| !is_open(peer));
        }
        tick(&mut bench, TICK);
        close_failed(&mut bench, &mut seen);
        if number == 999 {
            completed_before = bench.wired.figures().completed_handshakes;
        }
    }
    let figures = bench.wired.figures();
    let completed = figures.completed_handshakes - completed_before;
    assert!((360..=400).contains(&completed), "{completed} in 20 s");
    // Clients that wait do so for the time to open, and no longer.
    assert!((200..=310).contains(&figures.waiting_handshakes), "{figures:?}");
    // When the load falls, those that still wait are served, or fail.
    for _ in 0..600 {
        peers.iter_mut().for_each(|(_, peer)| peer.pass(&mut bench));
        tick(&mut bench, TICK);
        close_failed(&mut bench, &mut seen);
    }
    assert_eq!(bench.wired.figures().waiting_handshakes, 0);
    let served = bench.wired.figures().completed_handshakes - figures.completed_handshakes;
    assert!(served >= 110, "{served}");
}

#[test]
fn a_client_that_has_gone_costs_no_turn() {
    for resets in [false, true] {
        let mut bench =
            Bench::new(Settings { handshakes_per_second: 1, ..settings(WireKind::TLS) });
        let mut early = crowd(&mut bench, HANDSHAKES_EACH_POLL as usize);
        bench.recorder.idle_for = None;
        bench.until("not all open", |bench| begun(&mut early, bench) == early.len());
        let mut gone = crowd(&mut bench, 20);
        gone.iter_mut().for_each(|peer| peer.pass(&mut bench));
        bench.recorder.idle_for = Some(Duration::ZERO);
        bench.polls(2);
        assert_eq!(bench.wired.figures().waiting_handshakes, 20);
        for peer in &gone {
            if resets { bench.sim().reset(peer.id) } else { bench.sim().half_close(peer.id) }
        }
        bench.polls(2);
        assert_eq!(bench.wired.figures().waiting_handshakes, 0);
        let from = bench.sim().now();
        let mut late = crowd(&mut bench, 1);
        bench.recorder.idle_for = None;
        bench.until("not served", |bench| begun(&mut late, bench) == 1);
        let took = bench.sim().now() - from;
        assert!(took <= Duration::from_secs(2), "{took:?}");
        let ended = bench.facts().iter().filter(|fact| matches!(fact, Fact::Ended(_))).count();
        assert_eq!(ended, if resets { 0 } else { 20 }, "the core hears of it at once");
    }
}

/// Bytes that wait for a step of opening.
fn kept_bytes(bench: &Bench) -> Vec<usize> {
    bench.wired.wires.opening.values().map(|opening| opening.kept_bytes()).collect()
}

/// Peers that have got the server's part of the handshake, and have their own and a lot of payload to send.
fn eager(bench: &mut Bench, count: usize, payload: &[u8]) -> Vec<Peer> {
    let mut peers = crowd(bench, count);
    for peer in &mut peers {
        assert_eq!(peer.client.send(payload), payload.len());
    }
    bench.until("not all begun", |bench| {
        for peer in &mut peers {
            if !peer.client.is_open() {
                let written = bench.sim().write(peer.id, &peer.client.out);
                peer.client.out.drain(..written);
                if let Arrived::Bytes(bytes) = bench.sim().read(peer.id) {
                    peer.client.receive(&bytes);
                }
            }
        }
        let now = bench.sim().now();
        bench.sim().set_now(now + Duration::from_millis(1));
        peers.iter().all(|peer| peer.client.is_open())
    });
    peers
}

#[test]
fn a_client_that_sends_much_behind_its_handshake_is_paused_until_its_turn() {
    let mut bench = Bench::on(WireKind::TLS);
    let payload = vec![7; 200_000];
    let mut peers = eager(&mut bench, 60, &payload[..60_000]);
    for peer in &mut peers {
        let mut sent = 60_000;
        while sent < payload.len() {
            let taken = peer.client.send(&payload[sent..]);
            sent += taken;
            let written = bench.sim().write(peer.id, &peer.client.out);
            assert_eq!(written, peer.client.out.len());
            peer.client.out.clear();
        }
    }
    let mut most = 0;
    bench.until("bytes are lost", |bench| {
        most = most.max(kept_bytes(bench).into_iter().max().unwrap_or(0));
        let received = |fact: &Fact| match fact {
            Fact::Received(_, bytes) => bytes.len(),
            _ => 0,
        };
        bench.facts().iter().map(received).sum::<usize>() == 60 * payload.len()
    });
    // What one poll brings: the next one finds it paused.
    assert_eq!(most, crate::driver::RECEIVE_BYTES_MAX);
    assert!(!bench.facts().iter().any(|fact| matches!(fact, Fact::Failed(..))));
}

#[test]
fn what_many_send_behind_their_handshakes_has_a_bound() {
    let mut bench = Bench::on(WireKind::TLS);
    let payload = vec![7; 60_000];
    let peers = eager(&mut bench, 400, &payload);
    for peer in &peers {
        assert_eq!(bench.sim().write(peer.id, &peer.client.out), peer.client.out.len());
    }
    bench.poll();
    let kept: usize = kept_bytes(&bench).iter().sum();
    assert!((100 * 60_000..150 * 60_000).contains(&kept), "{kept}");
    let failed =
        bench.facts().iter().filter(|fact| matches!(fact, Fact::Failed(_, Failure::TooMuch)));
    assert!((250..300).contains(&failed.count()));
}

#[test]
fn a_paused_client_whose_time_is_over_is_read_again() {
    let mut bench = Bench::on(WireKind::TLS);
    let mut peers = eager(&mut bench, 30, b"hello");
    peers.iter_mut().for_each(|peer| peer.pass(&mut bench));
    bench.poll();
    let paused: Vec<_> = bench.wired.wires.opening.iter().filter(|(_, it)| it.is_paused).collect();
    let paused: Vec<_> = paused.into_iter().map(|(conn, _)| *conn).collect();
    assert!(paused.len() > 20, "{}", paused.len());
    for conn in &paused {
        bench.wired.shutdown(*conn);
    }
    peers.iter().for_each(|peer| bench.sim().half_close(peer.id));
    bench.polls(2);
    for conn in paused {
        bench.until_fact(&Fact::Ended(conn));
    }
}

#[test]
fn a_mass_timeout_is_spread_over_polls() {
    let mut bench = Bench::on(WireKind::TLS);
    let count = 2 * LATE_EACH_POLL + 100;
    let peers: Vec<_> = (0..count).map(|_| bench.sim().connect().unwrap()).collect();
    bench.recorder.idle_for = None;
    let failed = |bench: &Bench| {
        bench.facts().iter().filter(|fact| matches!(fact, Fact::Failed(..))).count()
    };
    let (mut before, mut polls) = (0, 0);
    bench.until("not all have failed", |bench| {
        let now = failed(bench);
        assert!(now - before <= LATE_EACH_POLL, "{} in one poll", now - before);
        if now > before && now < count {
            polls += 1;
            assert_eq!(
                bench.sim().idle_for(),
                if polls == 1 { bench.sim().idle_for() } else { Some(Duration::ZERO) }
            );
        }
        before = now;
        now == peers.len()
    });
    assert_eq!(polls, 2);
}

#[test]
fn time_in_which_the_machine_was_stopped_does_not_count() {
    let mut bench = Bench::on(WireKind::TLS);
    let (id, conn) = bench.connect_raw();
    let mut peer = Peer { id, client: WireClient::new(WireKind::TLS, 7), end: None };
    bench.polls(5);
    let now = bench.sim().now();
    bench.sim().set_now(now + 3 * Settings::default().open_timeout);
    bench.polls(2);
    assert_eq!(bench.failure(conn), None);
    peer.until(&mut bench, "not open", |peer| peer.client.is_open());
    // One that says nothing has its time, and no more.
    let (_, silent) = bench.connect_raw();
    let from = bench.sim().now();
    bench.sim().set_now(from + 3 * Settings::default().open_timeout);
    bench.recorder.idle_for = None;
    bench.until_fact(&Fact::Failed(silent, Failure::TimedOut));
    assert!(bench.sim().now() - from < 5 * Settings::default().open_timeout);
}

#[test]
fn a_storm_leaves_no_memory() {
    let mut bench = Bench::on(WireKind::PROXY_WSS);
    let peers: Vec<_> = (0..20_000).map(|_| bench.sim().connect().unwrap()).collect();
    bench.polls(2);
    assert_eq!(bench.wired.figures().opening, peers.len());
    peers.iter().for_each(|&peer| bench.sim().reset(peer));
    bench.recorder.facts.clear();
    bench.polls(3);
    bench.wired.free_spare_memory();
    let wires = &bench.wired.wires;
    let capacities = [wires.opening.capacity(), wires.deadlines.capacity(), wires.flows.capacity()];
    assert!(capacities.iter().all(|&capacity| capacity <= 4 * SPARE_ENTRIES), "{capacities:?}");
}

#[test]
fn the_last_long_push_is_not_kept() {
    let mut bench = Bench::on(WireKind::WEBSOCKET);
    let (_, conn) = bench.connect(WireKind::WEBSOCKET);
    let push = Bytes::from(vec![7; 100_000]);
    assert_eq!(bench.wired.send(conn, push.clone()), SendState::Done);
    assert!(!push.is_unique(), "it is kept for the next member");
    bench.wired.free_spare_memory();
    assert!(push.is_unique());
}
