//! The function library that a Redis server needs for several gateways. `REDIS.md`, which is the page below, describes
//! its functions, keys and bounds.
//!
//! A gateway loads it with `FUNCTION LOAD REPLACE` if the server has none, or one with a smaller version.
#![doc = "\n"]
#![doc = include_str!("../REDIS.md")]

/// The library's name in `FUNCTION LIST`.
pub const LIBRARY_NAME: &str = "tidegate";

/// The version of [`LIBRARY`]: what its function `tidegate_version` answers.
pub const LIBRARY_VERSION: u32 = 1;

/// The library's text, for `FUNCTION LOAD`.
pub const LIBRARY: &str = include_str!("../redis/tidegate.lua");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_name_and_the_version() {
        assert!(LIBRARY.starts_with(&format!("#!lua name={LIBRARY_NAME}\n")));
        assert!(LIBRARY.contains(&format!("\nlocal VERSION = {LIBRARY_VERSION}\n")));
    }
}
