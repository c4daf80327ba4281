//! What a backend team needs to serve Tidegate's requests. It knows nothing of the gateway itself.
//!
//! Implement [`Handler`]. It gets a [`Call`] for each request and answers it exactly once, now or later, from any
//! thread. A [`Gateway`] pushes to users, to rooms and to everybody. `HANDLER.md`, which is the page below, shows
//! it in five minutes.
//!
//! | module | what it owns |
//! |---|---|
//! | [`handler`] | [`Handler`], [`Call`], [`Failure`]: a request and its one answer |
//! | [`publisher`] | [`Gateway`], rooms, sessions: pushes, memberships and kicks |
//! | [`push`] | [`Push`]: receivers, key, time to live |
//! | [`pool`] | worker threads and their queue, with each connection's calls in order |
//! | [`batch`] | calls that are handled together, and the single wake-up for their answers |
//! | [`histogram`] | how durations are counted |
//! | [`harness`] | runs a handler in a test, without sockets |
//! | [`log_limit`] | a limit on log lines that clients can cause |
//! | [`demo`] | the demo backend: echo, push, rooms, messages |
#![doc = "\n"]
// Its examples are tested in the gateway's crate, which the last one needs and this crate does not know.
#![cfg_attr(not(doctest), doc = include_str!("../HANDLER.md"))]

pub mod batch;
pub mod demo;
pub mod handler;
pub mod harness;
pub mod histogram;
pub mod log_limit;
pub mod pool;
pub mod publisher;
pub mod push;
pub mod redis;

pub use batch::Batch;
pub use handler::{Call, Failure, Handler, Outcome, Placement};
pub use publisher::{CommandOutcome, Done, Gateway, PushError, RoomId, SessionId, UserId};
pub use push::{Nobody, Push, Target};

/// The bytes that requests, answers and pushes carry.
pub use bytes::Bytes;
/// The error codes that a handler may answer with.
pub use tidegate_protocol::Code;
