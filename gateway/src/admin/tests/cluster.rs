//! `/cluster`, and rebalances.

use super::*;

#[test]
fn a_gateway_without_redis_answers_with_how_to_configure_it() {
    let test = TestServer::new();
    let answer = test.ask("GET", "/cluster", b"");
    assert!(answer.error(404).contains("redis.url"), "{}", answer.body);
    let answer = test.ask("POST", "/cluster/rebalance", b"");
    assert!(answer.error(400).contains("?count=N"), "{}", answer.body);
}

#[test]
fn a_rebalance_runs_alone_until_it_ends_or_is_cancelled() {
    let test = TestServer::new();
    assert_eq!(test.ask("GET", "/cluster/rebalance", b"").json(), Value::Null);
    let dry = test.ask("POST", "/cluster/rebalance?count=4&dry_run=true", b"").json();
    assert_eq!((&dry["dry_run"], &dry["count"]), (&true.into(), &2.into()), "others are spared");
    let dry = test.ask("POST", "/cluster/rebalance?count=4&dry_run=true&spare_s=0", b"").json();
    assert_eq!((&dry["count"], &dry["movable"]), (&4.into(), &10.into()));
    assert!(test.fake.shares.lock().unwrap().is_empty(), "nobody is sent away");
    let path = "/cluster/rebalance?count=4&per_second=50&spare_s=0";
    let started = test.ask("POST", path, b"").json();
    let expected =
        json!({"dry_run": false, "count": 4, "per_second": 50, "spare_s": 0, "movable": 10});
    assert_eq!(started, expected);
    assert_eq!(test.fake.shares.lock().unwrap().len(), 2, "each shard has its share");
    let mut info = json!({
        "state": "running", "count": 4, "sent": 0, "per_second": 50, "spare_s": 0
    });
    assert_eq!(test.ask("GET", "/cluster/rebalance", b"").json(), info);
    assert!(test.ask("POST", path, b"").error(409).contains("running already"));
    info["state"] = "cancelled".into();
    assert_eq!(test.ask("DELETE", "/cluster/rebalance", b"").json(), info);
    test.fake.shares.lock().unwrap().clear();
    assert_eq!(test.ask("POST", path, b"").status, 200);
    test.fake.shares.lock().unwrap().clear();
    assert_eq!(test.ask("DELETE", "/cluster/rebalance", b"").json()["state"], "done");
    test.fake.draining.store(true, Ordering::Relaxed);
    assert!(test.ask("POST", path, b"").error(409).contains("draining"));
}

#[test]
fn a_rebalance_refuses_unknown_parameters_and_invalid_values() {
    let test = TestServer::new();
    for (query, said) in [
        ("count=0", "1 to 1000000000"),
        ("count=+5", "plain digits"),
        ("per_second=0&count=1", "1 to 20000"),
        ("spare_s=3601&count=1", "0 to 3600"),
        ("dry_run=yes&count=1", "true or false"),
        ("count=1&count=1", "repeated"),
        ("type=1", "per_second"),
    ] {
        let answer = test.ask("POST", &format!("/cluster/rebalance?{query}"), b"");
        assert!(answer.error(400).contains(said), "{query}: {}", answer.body);
    }
    assert!(test.ask("POST", "/cluster/rebalance?count=1", b"x").error(400).contains("no body"));
}
