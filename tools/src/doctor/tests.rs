//! What the tests of the plan and of the checks ask about.

use std::time::Duration;

use super::args::{DriverChoice, Question, Role};
use super::driver::Driver;
use super::running::Running;

/// A gateway on the driver that suits the machine.
pub(super) fn question() -> Question {
    Question {
        role: Role::Gateway,
        shards: None,
        driver: DriverChoice::Auto,
        port: None,
        address_pairs: None,
        heartbeat_interval: Some(Duration::from_secs(30)),
        pushes_per_second: 0.0,
    }
}

/// A gateway with two shards on epoll that accepts 1,000 connections.
pub(super) fn running() -> Running {
    Running {
        pid: 7,
        version: "1.2.3".into(),
        shards: 2,
        driver: Driver::Epoll,
        driver_refusal: None,
        rings: 0,
        port: 7400,
        on_loopback: false,
        heartbeat_interval: Duration::from_secs(30),
        connections_max: 1_000,
        connections_max_basis: "descriptors".into(),
        backlog: 4_096,
        send_buffer_bytes: 65_536,
    }
}
