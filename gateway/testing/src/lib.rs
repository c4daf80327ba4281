//! The world in which tests run whole shards: one thread, a simulated network, and a clock that only
//! the test moves.
//!
//! The simulation, the regressions, the differential test, the allocation counts and the fuzz target
//! `connection` all use it, so a change to the gateway's public face is one edit here.
//!
//! | module | what it owns |
//! |---|---|
//! | `setup` | configuration for tests; puts a gateway together without threads |
//! | `world` | shards, their drivers, idle workers, the clock; what backends and operators command |
//! | `network` | the clients' side of the simulated network |
//! | [`wire`] | the clients' side of TLS, WebSocket and the PROXY protocol |
//! | `phone` | a client that remembers every response |
//! | `scripted` | a handler that does what a request asks for |
//! | `seeds` | runs a test once per seed, and says how to repeat a failure |
//!
//! # A new regression test
//!
//! ```
//! use tidegate_backend::Code;
//! use tidegate_testing::scripted::ECHO;
//! use tidegate_testing::World;
//!
//! let mut world = World::new(|config| config.limits.frame_to_client_bytes_max = 1_000);
//! let mut phone = world.log_in(0);
//! world.ask(&phone, ECHO, 1, &[7; 2_000]);
//! phone.read(&mut world);
//! assert_eq!(phone.received[0].code, Some(Code::BackendFailed));
//! assert_eq!(world.count(|stats| stats.oversize_answers), 1);
//! ```
//!
//! Nothing happens without a call: [`World::turns`] runs the shards, [`World::pass`] lets time pass, and
//! [`Phone::read`] reads. Requests through [`World::ask`] include the turns that an answer on the shard's
//! thread needs.
//!
//! # Time
//!
//! A world has the gateway's two clocks: the monotonic one of the shards and the wall clock. [`World::advance`] moves
//! both, and [`World::set_wall_ms`] sets the wall clock alone, as an administrator may.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

mod network;
mod phone;
pub mod scripted;
mod seeds;
mod setup;
pub mod wire;
mod world;

pub use network::{Peer, SimDriver, sim, wire_settings, wired};
pub use phone::{Phone, Received, frame, login, login_again, resume_with};
pub use scripted::Scripted;
pub use seeds::for_each_seed;
pub use setup::{FIRST_OFFSET, Setup};
pub use tidegate::shard::clients::cause::Cause;
pub use world::{SteppedDriver, World};
