//! The Tidegate gateway, as a library: link it, bring handlers of your own, and write your own `main`.
//!
//! [`run`](run::run) is a whole `main`, and [`Server`] a gateway within a program of another purpose. The rest is the way of a frame, from the socket to the backend and back:
//! [`driver`] -> [`shard`] -> [`router`] -> backend, and the same
//! back through the shard's [mailbox](shard::mailbox).

pub mod about;
pub mod admin;
pub mod allocator;
pub mod auth;
pub mod clock;
pub mod cluster;
pub mod config;
mod conn_table;
pub mod control;
pub mod driver;
mod durable;
mod holder;
pub mod http;
mod http_io;
pub mod hub;
pub mod limits;
pub mod metrics_page;
pub mod offset_file;
pub mod parts;
pub mod reload;
pub mod router;
pub mod run;
pub mod secret;
pub mod server;
pub mod service;
pub mod session_id;
pub mod settings;
pub mod shard;
mod spare;
pub mod telemetry;
pub mod tickets;
pub mod wire;

pub use run::run;
pub use server::Server;

/// Where the examples of the backends' page are tested.
#[cfg(doctest)]
#[doc = include_str!("../../backend/HANDLER.md")]
struct HandlerPage;
