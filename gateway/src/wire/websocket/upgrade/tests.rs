//! Requests that are taken, and those that are refused.

use super::*;

fn rules() -> UpgradeRules {
    UpgradeRules {
        path: "/live".to_owned(),
        origins: vec!["https://app.example".to_owned()],
        request_bytes_max: 1000,
        token: TokenSources { header: true, subprotocol: true, query: true },
    }
}

/// A good request, with these lines more.
fn request(target: &str, lines: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: gate.example\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: tidegate.v1\r\n{lines}\r\n"
    )
}

#[track_caller]
fn refusal(request: &str, rules: &UpgradeRules) -> (String, &'static str) {
    match upgrade(request.as_bytes(), rules) {
        Upgrade::Refused { response, reason } => {
            let response = String::from_utf8(response).unwrap();
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert_eq!(body, format!("{reason}\n"));
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            assert!(head.contains("\r\nConnection: close"), "{head}");
            (head.to_owned(), reason)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn login(request: &str, rules: &UpgradeRules) -> Option<EarlyLogin> {
    match upgrade(request.as_bytes(), rules) {
        Upgrade::Accepted { login, .. } => login,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_request_is_answered_as_the_rfc_says_wherever_it_is_cut() {
    let request = request("/live", "");
    for behind in ["", "\u{1}\u{2}"] {
        let bytes = format!("{request}{behind}");
        let Upgrade::Accepted { request_bytes, response, login } =
            upgrade(bytes.as_bytes(), &rules())
        else {
            panic!("{:?}", upgrade(bytes.as_bytes(), &rules()));
        };
        assert_eq!((request_bytes, login), (request.len(), None));
        let response = String::from_utf8(response).unwrap().to_lowercase();
        let mut lines: Vec<_> = response.trim_end().split("\r\n").collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "connection: upgrade",
                "http/1.1 101 switching protocols",
                "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
                "sec-websocket-protocol: tidegate.v1",
                "upgrade: websocket",
            ]
        );
        assert!(response.ends_with("\r\n\r\n"));
    }
    for cut in 0..request.len() {
        assert_eq!(upgrade(&request.as_bytes()[..cut], &rules()), Upgrade::Incomplete, "{cut}");
    }
}

#[test]
fn connection_and_upgrade_are_lists_in_any_number_of_lines() {
    let good = request("/live", "");
    let (connection, asked) = ("Connection: keep-alive, Upgrade", "Upgrade: WebSocket");
    for (connections, upgrades) in [
        ("Connection: keep-alive\r\nConnection: Upgrade", asked),
        ("Connection: upgrade\r\nConnection: keep-alive", asked),
        ("Connection: close\r\nConnection: a ,\tUPGRADE", asked),
        (connection, "Upgrade: h2c, websocket"),
        (connection, "Upgrade: h2c\r\nUpgrade: websocket"),
    ] {
        let request = good.replace(connection, connections).replace(asked, upgrades);
        assert_eq!(login(&request, &rules()), None, "{request}");
    }
    for (connections, upgrades) in [
        ("Connection: keep-alive\r\nConnection: no-upgrade", asked),
        (connection, "Upgrade: h2c\r\nUpgrade: websockets"),
        (connection, "Upgrade: websocket2"),
    ] {
        let request = good.replace(connection, connections).replace(asked, upgrades);
        assert!(refusal(&request, &rules()).0.starts_with("HTTP/1.1 426 "), "{request}");
    }
}

#[test]
fn each_refusal_has_its_status() {
    let good = request("/live", "");
    let without = |line: &str| {
        let lines = good.split_inclusive("\r\n").filter(|other| !other.starts_with(line));
        lines.collect::<String>()
    };
    let cases = [
        ("HTTP/1.1 400 ", "\u{16}\u{3}\u{1}".to_owned()),
        ("HTTP/1.1 400 ", good.replace("HTTP/1.1", "HTTP/1.0")),
        ("HTTP/1.1 400 ", good.replace("HTTP/1.1", "HTTP/2.0")),
        ("HTTP/1.1 400 ", good.replace("Host:", "Ho st:")),
        ("HTTP/1.1 400 ", without("Host")),
        ("HTTP/1.1 405 ", good.replace("GET", "POST")),
        ("HTTP/1.1 404 ", good.replace("/live", "/")),
        ("HTTP/1.1 404 ", good.replace("/live", "/live/")),
        ("HTTP/1.1 426 ", without("Upgrade")),
        ("HTTP/1.1 426 ", good.replace("WebSocket\r\n", "h2c\r\n")),
        ("HTTP/1.1 426 ", without("Connection")),
        ("HTTP/1.1 426 ", without("Sec-WebSocket-Version")),
        ("HTTP/1.1 426 ", good.replace("Version: 13", "Version: 8")),
        ("HTTP/1.1 400 ", without("Sec-WebSocket-Key")),
        ("HTTP/1.1 400 ", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")),
        ("HTTP/1.1 400 ", good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ")),
        ("HTTP/1.1 400 ", without("Sec-WebSocket-Protocol")),
        ("HTTP/1.1 400 ", good.replace("tidegate.v1", "tidegate.v2, mqtt")),
        ("HTTP/1.1 403 ", request("/live", "Origin: https://evil.example\r\n")),
        ("HTTP/1.1 403 ", request("/live", "Origin: https://app.example.evil\r\n")),
        ("HTTP/1.1 403 ", request("/live", "Origin: null\r\n")),
        ("HTTP/1.1 400 ", request("/live?token=a&user_id=b", "")),
        ("HTTP/1.1 400 ", request("/live?token=no-jwt", "")),
        ("HTTP/1.1 431 ", request("/live", &"A: b\r\n".repeat(200))),
        ("HTTP/1.1 431 ", request("/live", &format!("A: {}\r\n", "b".repeat(900)))),
        ("HTTP/1.1 431 ", "GET /".to_owned() + &"a".repeat(1000)),
    ];
    for (status, request) in cases {
        let (head, reason) = refusal(&request, &rules());
        assert!(head.starts_with(status), "{request}: {head}, {reason}");
    }
    let (head, _) = refusal(&good.replace("GET", "POST"), &rules());
    assert!(head.contains("\r\nAllow: GET\r\n"));
    let (head, _) = refusal(&without("Upgrade"), &rules());
    assert!(head.contains("\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"));
}

#[test]
fn pages_of_the_list_may_connect_and_who_is_no_page() {
    for lines in ["", "Origin: https://app.example\r\n"] {
        assert_eq!(login(&request("/live", lines), &rules()), None);
    }
    let anyone = UpgradeRules { origins: Vec::new(), ..rules() };
    assert_eq!(login(&request("/live", "Origin: https://evil.example\r\n"), &anyone), None);
}

/// `{"sub":"42"}`, `{"sub":43}` and `{"aud":"x"}` in the middle.
const JWT: &str = "e30.eyJzdWIiOiI0MiJ9.c2ln";
const JWT_NUMBER: &str = "e30.eyJzdWIiOjQzfQ.c2ln";
const JWT_WITHOUT: &str = "e30.eyJhdWQiOiJ4In0.c2ln";

#[test]
fn a_token_comes_from_each_source_that_is_allowed() {
    let early = |user_id, token: &str| Some(EarlyLogin { user_id, token: token.to_owned() });
    let header = |value: &str| request("/live", &format!("Authorization: {value}\r\n"));
    let subprotocol =
        request("/live", &format!("Sec-WebSocket-Protocol: tidegate.token.{JWT}\r\n"));
    let query = request(&format!("/live?a=b&token={JWT}"), "");
    assert_eq!(login(&header(&format!("Bearer {JWT}")), &rules()), early(42, JWT));
    assert_eq!(login(&header(&format!("bearer {JWT_NUMBER}")), &rules()), early(43, JWT_NUMBER));
    assert_eq!(login(&header("Basic YTpi"), &rules()), None);
    assert_eq!(login(&subprotocol, &rules()), early(42, JWT));
    assert_eq!(login(&query, &rules()), early(42, JWT));
    let encoded = request("/live?token=a%2Fb%20c&user_id=7", "");
    assert_eq!(login(&encoded, &rules()), early(7, "a/b c"));
    // The parameter says which user it is, for every source.
    let both = request("/live?user_id=9", &format!("Authorization: Bearer {JWT}\r\n"));
    assert_eq!(login(&both, &rules()), early(9, JWT));
    let (_, reason) = refusal(&header(&format!("Bearer {JWT_WITHOUT}")), &rules());
    assert!(reason.contains("user_id"), "{reason}");
    let none = UpgradeRules { token: TokenSources::default(), ..rules() };
    for request in [&header(&format!("Bearer {JWT}")), &subprotocol, &query] {
        assert_eq!(login(request, &none), None, "{request}");
    }
}

#[test]
fn a_login_is_a_clients_first_frame() {
    let login = EarlyLogin { user_id: 7, token: "secret".to_owned() };
    let mut bytes = Vec::new();
    let request = tidegate_protocol::Request { user_id: 7, token: "secret", ..Default::default() };
    request.encode_frame(&mut bytes);
    assert_eq!(login.frame(), bytes);
}
