//! The figures of the HTTP gateway.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use hyper::StatusCode;
use tidegate_backend::Code;

/// The metrics: name, labels and help text. The table in the README is held to it.
pub const METRICS: &[(&str, &str, &str)] = &[
    (CONNECTIONS, "", "Open HTTP connections."),
    (ACCEPTED, "", "HTTP connections accepted."),
    (
        ACCEPT_PAUSES,
        "",
        "Times accepting HTTP connections stopped because http.connections_max was reached, or descriptors had run out.",
    ),
    (CLOSED, "reason", "HTTP connections that the gateway closed, by reason."),
    (REQUESTS, "status", "HTTP requests answered, by status."),
    (REQUESTS_IN_FLIGHT, "", "HTTP requests that wait for a token's verdict or a backend."),
    (
        REQUESTS_REFUSED,
        "",
        "HTTP requests answered with 503 because http.requests_max was reached.",
    ),
];

pub(super) const CONNECTIONS: &str = "tidegate_http_connections";
pub(super) const ACCEPTED: &str = "tidegate_http_connections_accepted_total";
pub(super) const ACCEPT_PAUSES: &str = "tidegate_http_accept_pauses_total";
pub(super) const CLOSED: &str = "tidegate_http_connections_closed_total";
pub(super) const REQUESTS: &str = "tidegate_http_requests_total";
pub(super) const REQUESTS_IN_FLIGHT: &str = "tidegate_http_requests_in_flight";
pub(super) const REQUESTS_REFUSED: &str = "tidegate_http_requests_refused_total";

/// Why the gateway closes a connection: the values of the label `reason` of
/// `tidegate_http_connections_closed_total`.
pub const REASONS: [&str; 13] = [
    "auth_failed",
    "evicted",
    "head_timeout",
    "idle",
    "malformed",
    "write_timeout",
    "open_timeout",
    "proxy",
    "tls",
    "draining",
    "banned",
    "address_connections",
    "address_accepts",
];

/// Registers all of them, so that each has a value from the start.
pub(super) fn register() {
    for (name, _, help) in METRICS {
        if name.ends_with("_total") {
            describe_counter!(*name, Unit::Count, *help);
        } else {
            describe_gauge!(*name, Unit::Count, *help);
        }
    }
    for name in [CONNECTIONS, REQUESTS_IN_FLIGHT] {
        gauge!(name).set(0.0);
    }
    for name in [ACCEPTED, ACCEPT_PAUSES, REQUESTS_REFUSED] {
        counter!(name).increment(0);
    }
    for reason in REASONS {
        counter!(CLOSED, "reason" => reason).increment(0);
    }
    counter!(REQUESTS, "status" => "200").increment(0);
}

pub(super) fn count_closed(reason: &'static str) {
    counter!(CLOSED, "reason" => reason).increment(1);
}

pub(super) fn count_answered(status: StatusCode) {
    counter!(REQUESTS, "status" => status.as_str().to_owned()).increment(1);
}

/// Counts the answer that hyper itself gives to what it can't read as a request.
pub(super) fn count_refused(error: &hyper::Error) {
    // It does not answer HTTP/2.
    if error.is_parse() && !error.is_parse_version_h2() {
        count_answered(match error.is_parse_too_large() {
            // hyper does not distinguish the two otherwise.
            true if error.to_string() == "URI too long" => StatusCode::URI_TOO_LONG,
            true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            false => StatusCode::BAD_REQUEST,
        });
    }
}

/// Counts a failure that a client gets, as shards do.
pub(super) fn count_failure(code: Code) {
    counter!("tidegate_failures_total", "code" => code.number().to_string()).increment(1);
}
