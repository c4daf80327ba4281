//! What the client's loop waits for. The threads that read the socket and the input send it.

use std::io;

use anyhow::Error;

use super::command::Command;

/// Names a connection, so that late events of a former connection are not taken for events of the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkId(pub(super) usize);

/// One event.
#[derive(Debug)]
pub(super) enum LoopEvent {
    /// A command was read.
    Command(Command),
    /// A line is no command.
    ParseFailed(Error),
    /// The input has ended.
    EndOfInput,
    /// The user ended the client with `quit`.
    Quit,
    /// The input can't be read.
    InputFailed(Error),
    /// Bytes came from the gateway.
    Received(LinkId, Vec<u8>),
    /// A connection ended, with the error where there was one.
    Closed(LinkId, Option<io::Error>),
}
