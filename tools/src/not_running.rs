//! The error where no gateway listens: how to start one there, and which option names another address.

use std::net::SocketAddr;

use crate::wire::Place;

/// A gateway's default addresses, for clients and for operators.
const DEFAULT_ADDRESSES: [&str; 2] = ["127.0.0.1:7400", "127.0.0.1:7401"];

/// The error for a client's address, which `--connect` names. `more` has further flags that the gateway needs.
pub(crate) fn no_gateway(place: &str, more: &str) -> String {
    format!("no gateway listens on {place}: {}", start_hint(place, "--listen", more, "--connect"))
}

/// The error for a client's address at which TLS or a WebSocket is to be.
pub(crate) fn no_listener(place: &Place) -> String {
    format!(
        "no gateway listens on {}: start one whose tidegate.toml has [listeners.NAME] with this address and wire = \"{}\", or \
         name another place with --connect",
        place.authority(),
        place.kind().name()
    )
}

/// The error for an operators' address, which `--admin` names.
pub(crate) fn no_operator_http(place: &str) -> String {
    let start_hint = start_hint(place, "--admin", "", "--admin");
    format!("no gateway listens on {place} for operators: {start_hint}")
}

fn start_hint(place: &str, listen: &str, more: &str, option: &str) -> String {
    let mut flags = String::new();
    // A gateway can listen on an address only, not on a name.
    if !DEFAULT_ADDRESSES.contains(&place) && place.parse::<SocketAddr>().is_ok() {
        flags = format!(" {listen} {place}");
    }
    flags.push_str(more);
    let separator = if flags.is_empty() { "" } else { " --" };
    format!(
        "start one with `tidegate{flags}` (in the source tree with `cargo run --release{separator}{flags}`), or \
         name another address with {option}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_the_start_command_and_the_option_are_named() {
        let usual = no_gateway("127.0.0.1:7400", "");
        let said = "no gateway listens on 127.0.0.1:7400: start one with `tidegate` (in the source \
                    tree with `cargo run --release`), or name another address with --connect";
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
