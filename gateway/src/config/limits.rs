//! The bounds' part of typed -> checked, and what `limits.connections_max = 0` comes to on this machine.

use std::time::Duration;

use tidegate_machine::capacity::{self, Basis, CONNECTIONS_MAX, ConnectionsMax};
use tidegate_machine::files::Files;
use tidegate_machine::{descriptors, memory};

use super::ConfigError;
use super::check::{DAY_MS, GIB, KIB, MIB};
use super::checked::{DriverKind, LimitsConfig};
use super::typed;
use super::values::{Checked, Checker};
use crate::session_id::SLOT_BITS;

// All connections may be on one shard, whose slots have so many bits.
const _: () = assert!(CONNECTIONS_MAX == 1 << SLOT_BITS);

impl Checker<'_> {
    pub(super) fn limits(
        &self,
        limits: &typed::Limits,
        driver: DriverKind,
        shards: u16,
        http_connections: u64,
    ) -> Checked<LimitsConfig> {
        let connections =
            self.connections_max(limits.connections_max, driver, shards, http_connections)?;
        let per_second = limits.frames_per_second_max;
        let (open_timeout, upgrade_bytes_max, message_bytes_max) = self.wire_limits(limits)?;
        let checked = LimitsConfig {
            frame_bytes_max: self.number(
                "limits.frame_bytes_max",
                limits.frame_bytes_max,
                64..=16 * MIB,
            )?,
            frame_to_client_bytes_max: self.number(
                "limits.frame_to_client_bytes_max",
                limits.frame_to_client_bytes_max,
                64..=64 * MIB,
            )?,
            outbox_bytes_max: self.number(
                "limits.outbox_bytes_max",
                limits.outbox_bytes_max,
                KIB..=GIB,
            )?,
            memory_bytes_max: self.memory_bytes_max(limits)?,
            connections_max: usize::try_from(connections.connections).expect("at most 2^26"),
            connections_max_basis: connections.basis,
            accepts_per_second_max: Some(self.number(
                "limits.accepts_per_second_max",
                limits.accepts_per_second_max,
                0..=1_000_000,
            )?)
            .filter(|&limit| limit > 0),
            open_timeout,
            upgrade_bytes_max,
            message_bytes_max,
            frames_per_second_max: Some(self.number(
                "limits.frames_per_second_max",
                per_second,
                0..=1_000_000,
            )?)
            .filter(|&limit| limit > 0),
            frames_burst_max: self.number(
                "limits.frames_burst_max",
                limits.frames_burst_max,
                1..=1_000_000,
            )?,
            calls_per_connection_max: self.number(
                "limits.calls_per_connection_max",
                limits.calls_per_connection_max,
                1..=65_535,
            )?,
            commands_max: self.number(
                "limits.commands_max",
                limits.commands_max,
                1..=10_000_000,
            )?,
            commands_bytes_max: self.number(
                "limits.commands_bytes_max",
                limits.commands_bytes_max,
                64..=1024 * GIB,
            )?,
            push_keys_bytes_max: self.number(
                "limits.push_keys_bytes_max",
                limits.push_keys_bytes_max,
                KIB..=1024 * GIB,
            )?,
            fan_out_slice_members: self.number(
                "limits.fan_out_slice_members",
                limits.fan_out_slice_members,
                1..=1_000_000,
            )?,
        };
        self.largest_push_fits(&checked)?;
        Ok(checked)
    }

    fn memory_bytes_max(&self, limits: &typed::Limits) -> Checked<Option<usize>> {
        let (key, typed) = ("limits.memory_bytes_max", limits.memory_bytes_max);
        let bytes = self.number(key, typed, 0..=1024 * GIB)?;
        Ok((bytes > 0).then_some(bytes))
    }

    fn largest_push_fits(&self, checked: &LimitsConfig) -> Checked<()> {
        if checked.commands_bytes_max >= checked.frame_to_client_bytes_max {
            return Ok(());
        }
        let reason = format!(
            "this must be at least limits.frame_to_client_bytes_max ({}), or the largest push could never be taken",
            checked.frame_to_client_bytes_max
        );
        let key = "limits.commands_bytes_max";
        Err(self.refuse(key, checked.commands_bytes_max, reason))
    }

    /// How long a wire may take to open; the longest request for a WebSocket; the longest WebSocket message.
    fn wire_limits(&self, limits: &typed::Limits) -> Checked<(Duration, usize, u32)> {
        let (key, timeout_ms) = ("limits.open_timeout_ms", limits.open_timeout_ms);
        let open_timeout = self.millis(key, timeout_ms, 100..=DAY_MS)?;
        let (key, bytes) = ("limits.upgrade_bytes_max", limits.upgrade_bytes_max);
        let upgrade_bytes_max = self.number(key, bytes, 512..=64 * KIB)?;
        let (key, bytes) = ("limits.message_bytes_max", limits.message_bytes_max);
        Ok((open_timeout, upgrade_bytes_max, self.number(key, bytes, 64..=64 * MIB)?))
    }

    /// How many connections are accepted. 0 leaves it to the machine.
    fn connections_max(
        &self,
        typed: i64,
        driver: DriverKind,
        shards: u16,
        http_connections: u64,
    ) -> Checked<ConnectionsMax> {
        let key = "limits.connections_max";
        let configured = self.number::<u64>(key, typed, 0..=CONNECTIONS_MAX.cast_signed())?;
        let shards = u64::from(shards);
        let limit = descriptors::limit();
        // HTTP connections are in the same table of descriptors.
        let without_http = limit.map(|limit| limit.saturating_sub(http_connections));
        let by_default = match driver {
            DriverKind::Epoll => ConnectionsMax::epoll_default(without_http, shards),
            DriverKind::Uring => {
                ConnectionsMax::uring_default(memory::Limit::of_caller(&Files::system()))
            }
        };
        let one_table = capacity::connections_per_table(without_http, shards);
        let limit = limit.unwrap_or(u64::MAX);
        if one_table == 0 {
            let reserve = capacity::reserved_descriptors(shards);
            return Err(ConfigError::Descriptors { limit, reserve });
        }
        let all_tables = one_table.saturating_mul(shards);
        if driver == DriverKind::Epoll && configured > all_tables {
            let beside = match http_connections {
                0 => String::new(),
                connections => format!(", beside {connections} of HTTP (http.connections_max)"),
            };
            let reason = format!(
                "with epoll, the limit of open descriptors ({limit}) has room for {one_table} a shard, \
                 {all_tables} in all{beside}: raise it with `ulimit -n` or systemd's LimitNOFILE=, use more shards or \
                 driver = \"uring\", or use 0 for what one table of descriptors allows"
            );
            return Err(self.refuse(key, typed, reason));
        }
        Ok(match configured {
            0 => by_default,
            connections => ConnectionsMax { connections, basis: Basis::Configured },
        })
    }
}
