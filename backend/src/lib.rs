//! What a backend team depends on to serve Tidegate's requests, and nothing of the gateway.
//!
//! Implement [`Handler`]; a [`Call`] comes in, is answered exactly once, now or later, from any
//! thread; a [`Gateway`] pushes to users, rooms and everybody. `HANDLER.md` shows it in five minutes:
//! it is the page below.
//!
//! | module | what it owns |
//! |---|---|
//! | [`handler`] | [`Handler`], [`Call`], [`Failure`]: a request and its one answer |
//! | [`publisher`] | [`Gateway`], rooms, sessions: what a backend says unasked |
//! | [`pool`] | worker threads, one connection's calls in order, batches |
//! | [`batch`] | calls handed over together, and their answers' single wake-up |
//! | [`harness`] | a handler under test, without sockets |
//! | [`demo`] | the demo backend: echo, push, rooms, messages |
#![doc = "\n"]
// Its examples are tested with the gateway, which the last of them needs and this crate doesn't know.
#![cfg_attr(not(doctest), doc = include_str!("../HANDLER.md"))]

pub mod batch;
pub mod demo;
pub mod handler;
pub mod harness;
pub mod log_limit;
pub mod pool;
pub mod publisher;

pub use batch::Batch;
pub use handler::{Call, Failure, Handler, Outcome, Placement};
pub use publisher::{CommandOutcome, Done, Gateway, PushError, RoomId, SessionId, UserId};

/// The bytes that requests, answers and pushes carry.
pub use bytes::Bytes;
/// The error codes that a handler may answer with.
pub use tidegate_protocol::Code;
