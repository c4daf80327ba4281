//! Standard output, whose reader may have had enough before the end: `tide doctor ... | head`.

use std::io::{self, ErrorKind, Write};

use anyhow::Context as _;

/// Writes to standard output as far as somebody reads it. Who goes early ends nothing: what else
/// there is to do is done, and the exit status says what it would have said.
///
/// # Errors
/// When it can't be written for another reason, such as a disk that is full.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    let written = write(&mut out).and_then(|()| out.flush());
    unless_gone(written).context("can't write to standard output")
}

/// Tells standard error something. There is nobody to tell where that can't be written.
pub(crate) fn print_stderr(line: &str) {
    drop(writeln!(anstream::stderr(), "{line}"));
}

/// Takes a reader that has gone for one that has read everything.
///
/// # Errors
/// Any other than that the reader has gone.
pub(crate) fn unless_gone(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if is_unread(&error) => Ok(()),
        written => written,
    }
}

/// Whether an error says that the reader has gone.
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
