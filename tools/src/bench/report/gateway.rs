//! The settings of the gateway that was measured, so that a report says what explains its figures.
//!
//! The gateway says them itself, in its `/stats`. It is asked after the run, when a question costs no figure anything.
//! A gateway that can't be asked spoils no run: the report says that its settings are unknown, and why.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tidegate_machine::listeners;

use super::pairs::Pairs;
use crate::argument;
use crate::operator::{Operator, Token, destination};
use crate::ports;

/// The keys of `tidegate.toml` that a report records, beside those of each backend.
const KEYS: [&str; 11] = [
    "shards",
    "coalesce_us",
    "session.heartbeat_interval_ms",
    "limits.frames_per_second_max",
    "limits.calls_per_connection_max",
    "limits.outbox_bytes_max",
    "limits.fan_out_slice_members",
    "socket.send_buffer_bytes",
    "rooms.log_bytes_max",
    "rooms.merge_window_ms",
    "log.filter",
];

/// The keys of a backend that a report records.
const BACKEND_KEYS: [&str; 3] = ["placement", "workers", "batch_calls_max"];

/// How the gateway is asked.
#[derive(Debug, clap::Args)]
pub(in crate::bench) struct GatewayArgs {
    /// The gateway's operators' HTTP, which is asked after the run for the settings that the report records. By
    /// default, that of the process which listens at the first --connect, if it is on this machine.
    #[arg(long, value_name = "HOST:PORT", value_parser = argument::place)]
    admin: Option<String>,
    #[command(flatten)]
    token: Token,
}

impl GatewayArgs {
    /// The settings of the gateway that listens at this address, by key. A reason where they are unknown.
    pub(super) fn ask(&self, address: SocketAddr) -> Result<Pairs<String>, String> {
        self.settings(destination(address)).map_err(|error| format!("{error:#}"))
    }

    fn settings(&self, address: SocketAddr) -> Result<Pairs<String>> {
        // Without a token nothing has to be found.
        self.token.ensure_readable()?;
        let found = || ports::operators_beside(address);
        let admin = self.admin.clone().or_else(found).with_context(|| {
            format!(
                "no operators' HTTP was found beside {address}; name it with --admin, and its token with --token-file"
            )
        })?;
        let stats = Operator::new(admin.clone(), self.token.clone()).get("/stats")?;
        let gateway = &stats["gateway"];
        let listens: SocketAddr = (gateway["listen"].as_str())
            .and_then(|listens| listens.parse().ok())
            .context("the gateway's /stats does not say where it listens")?;
        // Another machine's addresses may be translated on the way.
        ensure!(
            !address.ip().is_loopback() || listeners::serves(listens, address),
            "the gateway at {admin} listens for clients on {listens}, and not on {address}"
        );
        Ok(recorded(gateway))
    }
}

/// What a report records of the object `gateway` in `/stats`. What it does not have is left out.
fn recorded(gateway: &Value) -> Pairs<String> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    };
    let config = &gateway["config"];
    let plain = ["version", "driver"].map(|name| (name.to_owned(), text(&gateway[name])));
    let keys = KEYS.map(|key| {
        let value = key.split('.').fold(config, |table, name| &table[name]);
        (key.to_owned(), text(value))
    });
    let backends = config["backends"].as_object().into_iter().flatten();
    let backends = backends.flat_map(|(name, backend)| {
        BACKEND_KEYS.map(|key| (format!("backends.{name}.{key}"), text(&backend[key])))
    });
    let all = plain.into_iter().chain(keys).chain(backends);
    Pairs(all.filter_map(|(key, value)| Some((key, value?))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_explains_a_figure_is_recorded_and_what_names_files_is_not() {
        let config = json!({
            "shards": 2, "coalesce_us": 300,
            "auth": { "key_file": "secret.key" },
            "rooms": { "merge_window_ms": 50 },
            "backends": { "demo": { "placement": "auto", "workers": 4, "queue_calls_max": 9 } },
        });
        let gateway = json!({ "version": "1.2.3", "pid": 7, "driver": "uring", "config": config });
        let recorded = recorded(&gateway);
        let recorded: Vec<_> =
            recorded.0.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        let expected = [
            ("version", "1.2.3"),
            ("driver", "uring"),
            ("shards", "2"),
            ("coalesce_us", "300"),
            ("rooms.merge_window_ms", "50"),
            ("backends.demo.placement", "auto"),
            ("backends.demo.workers", "4"),
        ];
        assert_eq!(recorded, expected);
    }
}
