//! The pages that need no token: health, readiness, and the page to look at.

use super::*;

#[test]
fn health_and_the_page_need_no_token() {
    let test = TestServer::new();
    let open = |path| test.ask_as(None, "GET", path, b"");
    assert_eq!(open("/healthz").status, 200);
    assert_eq!(open("/readyz").status, 200);
    let page = open("/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("text/html") && page.head.contains("content-security-policy"));
    assert!(page.body.contains("<title>Tidegate</title>"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "self-contained");

    test.fake.draining.store(true, Ordering::Relaxed);
    assert_eq!(open("/healthz").status, 200);
    let draining = open("/readyz");
    assert!(draining.error(503).contains("draining"));
    assert!(draining.head.contains("retry-after: 1"));
}

/// The hash of the only element with this name, as a content security policy has it.
fn hash_of(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    assert_eq!((page.matches(&format!("<{element}")).count(), page.matches(&open).count()), (1, 1));
    let (_, rest) = page.split_once(&open).unwrap();
    let (content, _) = rest.split_once(&close).unwrap();
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(content)))
}

#[test]
fn the_pages_policy_allows_its_own_script_and_style_alone() {
    let page = TestServer::new().ask_as(None, "GET", "/", b"");
    // Hashes are case-sensitive, unlike the rest of the head.
    let policy = super::super::api::PAGE_POLICY;
    assert!(page.head.contains(&policy.to_lowercase()), "{}", page.head);
    for (directive, element) in [("script-src", "script"), ("style-src", "style")] {
        let expected = format!("{directive} {}", hash_of(&page.body, element));
        assert!(policy.split("; ").any(|found| found == expected), "{expected} is not in {policy}");
    }
    // The hashes cover neither handlers nor styles in attributes.
    assert!(!page.body.contains(" style=") && !page.body.contains(" onclick="), "{}", page.body);
}

#[test]
fn the_page_has_the_names_of_the_metrics() {
    let page = TestServer::new().ask_as(None, "GET", "/", b"").body;
    let (_, columns) = page.split_once("const COLUMNS = [").unwrap();
    let (columns, _) = columns.split_once("];").unwrap();
    let names: Vec<_> = columns.split('"').skip(1).step_by(2).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let row = format!("| `tidegate_{name}` | shard |");
        assert!(include_str!("../../../../README.md").contains(&row), "{name} is not a metric");
    }
}

#[test]
fn health_is_answered_while_the_other_thread_is_busy() {
    let test = TestServer::new();
    std::thread::scope(|threads| {
        let asked = threads.spawn(|| test.get("/rooms/blocks"));
        let blocked = test.fake.blocked.lock().unwrap();
        drop(test.fake.changed.wait_while(blocked, |(begun, _)| !*begun).unwrap());
        for path in ["/healthz", "/readyz", "/"] {
            assert_eq!(test.ask_as(None, "GET", path, b"").status, 200);
        }
        test.ask_as(None, "GET", "/stats", b"").error(401);
        assert!(!asked.is_finished());
        test.fake.blocked.lock().unwrap().1 = true;
        test.fake.changed.notify_all();
        assert_eq!(asked.join().unwrap().status, 404);
    });
}

#[test]
fn readiness_says_that_redis_is_away_and_refuses_where_logins_need_it() {
    for needed in [false, true] {
        let status = Status::new("a");
        status.add_link("pushes", "redis://host:6379".into(), needed);
        let test = TestServer::with_about(about().with_cluster(Some(status.clone())));
        let away = test.ask_as(None, "GET", "/readyz", b"");
        if needed {
            assert!(away.error(503).contains("can't log in"), "{}", away.body);
        } else {
            assert_eq!(away.status, 200);
            assert!(away.body.starts_with("ready; Redis has been away for "), "{}", away.body);
        }
        status.up("pushes");
        assert_eq!(test.ask_as(None, "GET", "/readyz", b"").body, "ready\n");
    }
}
