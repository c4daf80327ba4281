//! Standard output and standard error, whose readers may go early: `tide doctor ... | head`.

use std::io::{self, ErrorKind, Write};

use anyhow::Context as _;

/// Writes to standard output. A reader that has gone is no error: the command does the rest of its work, and its exit
/// status is the same.
///
/// # Errors
/// Standard output can't be written for another reason, such as a full disk.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    let written = write(&mut out).and_then(|()| out.flush());
    unless_gone(written).context("can't write to standard output")
}

/// Prints a line to standard error. A failed write is ignored, since there is nowhere to report it.
pub(crate) fn print_stderr(line: &str) {
    drop(writeln!(anstream::stderr(), "{line}"));
}

/// Turns the error for a reader that has gone into success.
///
/// # Errors
/// Any other error.
pub(crate) fn unless_gone(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if is_unread(&error) => Ok(()),
        written => written,
    }
}

/// Whether an error means that the reader has gone.
pub(crate) fn is_unread(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_has_gone_is_no_error() {
        assert!(unless_gone(Ok(())).is_ok());
        assert!(unless_gone(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(unless_gone(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
