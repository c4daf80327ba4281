//! How a test of WebSockets sees where messages begin and end, and which are text: see
//! [`Settings::marks_messages`](super::Settings::marks_messages). What is sent begins with one of these, what is received with
//! one and with the length of the part in 4 bytes, big-endian.

/// In front of a part of a text message, or of a text to send.
pub const TEXT: u8 = 1;

/// The part ends its message.
pub const LAST: u8 = 2;

/// Instead of a message to send: the code (two bytes, big-endian) of the close frame that a shutdown sends.
pub const CLOSE: u8 = 4;

/// The mark of a part that was received.
pub(super) fn of(is_text: bool, ends_message: bool, bytes: usize) -> [u8; 5] {
    let mark = (if is_text { TEXT } else { 0 }) | (if ends_message { LAST } else { 0 });
    let [a, b, c, d] = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    [mark, a, b, c, d]
}
