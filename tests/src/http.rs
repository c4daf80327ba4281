//! Setups of a gateway with HTTP, and requests to it.

use crate::wire::{CHAIN_FILE, KEY_FILE, write_certificate};
use crate::{Gateway, Setup};

/// Routes to the demo backend.
pub const ROUTES: &str = r#"[
    {path="/echo",type=1}, {path="/echo",method="GET",type=1}, {path="/bytes",type=1,body="bytes"},
    {path="/open",type=1,public=true}, {path="/all",type=2}, {path="/join",type=10,body="bytes"},
]"#;

/// With a listener of HTTP that has these routes.
#[must_use]
pub fn with_http(setup: Setup, routes: &str) -> Setup {
    setup
        .set("listeners.web.listen", "127.0.0.1:0")
        .set("listeners.web.wire", "http")
        .set("http_routes", routes.replace('\n', " "))
}

/// The demo backend, with a listener of HTTP that has [`ROUTES`].
#[must_use]
pub fn demo() -> Setup {
    with_http(Setup::demo(), ROUTES)
}

/// A POST with the token of user 7.
#[must_use]
pub fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-7\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

/// A GET with the token of user 7.
pub const GET: &str = "GET /echo?a=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-7\r\n\r\n";

/// Waits until the gateway has closed `count` connections for this reason.
pub fn closed(gateway: &Gateway, reason: &str, count: f64) {
    let label = format!("\"{reason}\"");
    let name = "tidegate_http_connections_closed_total";
    gateway.operator().wait_for_metric(name, &label, |n| n == count);
}

/// As [`demo`], over TLS.
#[must_use]
pub fn https() -> Setup {
    let setup = demo().set("listeners.web.wire", "https");
    write_certificate(setup.folder());
    let setup = setup.set("tls.certificates.main.chain_file", CHAIN_FILE);
    setup.set("tls.certificates.main.key_file", KEY_FILE)
}
