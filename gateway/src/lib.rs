//! The Tidegate gateway, as a library.

pub mod config;
pub mod control;
