//! WebSocket (RFC 6455): the upgrade, and the frames.
//!
//! | module | what it owns |
//! |---|---|
//! | [`upgrade`] | the HTTP request that opens a WebSocket, and its response |
//! | [`frames`] | what is kept of a WebSocket between two reads, and how frames are read and written |
//!
//! No extension is offered, so nothing is compressed. The crate `tungstenite` parses and writes the headers of frames, and checks
//! the upgrade.

pub mod frames;
pub mod upgrade;
