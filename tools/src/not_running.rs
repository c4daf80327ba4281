//! What to say where no gateway listens: how to start one there, and how to name another place.

use std::net::SocketAddr;

/// Where a gateway listens for clients and for operators unless it is told otherwise.
const DEFAULT_ADDRESSES: [&str; 2] = ["127.0.0.1:7400", "127.0.0.1:7401"];

/// Of clients, who name the place with `--connect`. `more` is what the gateway needs beside.
pub(crate) fn no_gateway(place: &str, more: &str) -> String {
    format!("no gateway listens on {place}: {}", start_hint(place, "--listen", more, "--connect"))
}

/// Of operators, who name the place with `--admin`.
pub(crate) fn no_operator_http(place: &str) -> String {
    let start_hint = start_hint(place, "--admin", "", "--admin");
    format!("no gateway listens on {place} for operators: {start_hint}")
}

fn start_hint(place: &str, listen: &str, more: &str, option: &str) -> String {
    let mut flags = String::new();
    // A gateway listens on an address, not on a name.
    if !DEFAULT_ADDRESSES.contains(&place) && place.parse::<SocketAddr>().is_ok() {
        flags = format!(" {listen} {place}");
    }
    flags.push_str(more);
    let separator = if flags.is_empty() { "" } else { " --" };
    format!(
        "start one with `tidegate{flags}` (in the source tree with `cargo run --release{separator}{flags}`), or \
         name another place with {option}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_the_start_and_the_option_are_named() {
        let usual = no_gateway("127.0.0.1:7400", "");
        let said = "no gateway listens on 127.0.0.1:7400: start one with `tidegate` (in the source \
                    tree with `cargo run --release`), or name another place with --connect";
        assert_eq!(usual, said);
        let other = no_gateway("127.0.0.1:1", " --auth demo");
        assert!(other.contains("`tidegate --listen 127.0.0.1:1 --auth demo`"), "{other}");
        assert!(
            other.contains("`cargo run --release -- --listen 127.0.0.1:1 --auth demo`"),
            "{other}"
        );
        assert!(no_gateway("localhost:1", "").contains("`tidegate` "));
        assert!(no_operator_http("127.0.0.1:9").contains("`tidegate --admin 127.0.0.1:9`"));
    }
}
