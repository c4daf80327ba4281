//! The Tidegate gateway, as a library.

pub mod admin;
pub mod auth;
pub mod config;
pub mod control;
pub mod secret;
pub mod telemetry;
