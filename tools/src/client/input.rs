//! Where commands come from and lines go to: a terminal with a line editor, or plain standard input and output.
//!
//! A separate thread reads, so that pushes are shown while the user types nothing. It handles `quit` itself: after that it
//! restores the terminal and reads no more.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;

use anstream::ColorChoice;
use anyhow::{Context as _, Error, Result};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor, ExternalPrinter};

use super::command::Command;
use super::event::LoopEvent;
use crate::stdout;

/// The editor's prompt.
const PROMPT: &str = "tide> ";

/// Where lines are shown. On a terminal they appear above the line that is being typed.
pub(super) struct Screen {
    /// The editor's printer; `None`: plain output.
    editor: Option<Box<dyn ExternalPrinter + Send>>,
    /// Whether standard output is still read. `tide client | head` stops reading early.
    is_read: bool,
}

/// The thread that reads commands. It needs a permit for each command of a script.
#[derive(Debug)]
pub(super) struct Input {
    permits: SyncSender<()>,
    /// Whether a person types. Then no permits are needed after the first.
    is_interactive: bool,
    read_allowed: bool,
}

/// Starts the thread, which reads once the first permit is given. Uses an editor if standard input and output are a
/// terminal.
///
/// # Errors
/// The thread can't be started.
pub(super) fn start(events: &Sender<LoopEvent>) -> Result<(Input, Screen)> {
    let (permits, granted) = mpsc::sync_channel(1);
    let events = events.clone();
    let edited = open_editor();
    let is_interactive = edited.is_some();
    let thread = thread::Builder::new().name("tide-input".into());
    let screen = match edited {
        Some((editor, printer)) => {
            thread
                .spawn(move || read_edited(editor, &granted, &events))
                .context("can't start the thread that reads commands")?;
            Screen { editor: Some(printer), is_read: true }
        }
        None => {
            thread
                .spawn(move || read_plain(&granted, &events))
                .context("can't start the thread that reads commands")?;
            Screen { editor: None, is_read: true }
        }
    };
    Ok((Input { permits, is_interactive, read_allowed: false }, screen))
}

impl Input {
    /// Whether a person types. Anything else is a script.
    pub(super) fn is_interactive(&self) -> bool {
        self.is_interactive
    }

    /// Gives the thread a permit to read a command, unless it has one.
    pub(super) fn allow_read(&mut self) {
        if !self.read_allowed {
            self.read_allowed = self.permits.try_send(()).is_ok();
        }
    }

    /// Notes that a command came. A script has used its permit up by that.
    pub(super) fn command_read(&mut self) {
        self.read_allowed = self.is_interactive;
    }
}

impl Screen {
    /// Shows an answer or a push. That nobody reads it is no error: a script runs to its end.
    ///
    /// # Errors
    /// Standard output can't be written to.
    pub(super) fn show(&mut self, line: &str) -> Result<()> {
        let shown = match &mut self.editor {
            Some(editor) => print_beside(editor.as_mut(), line),
            None => writeln!(anstream::stdout(), "{line}"),
        };
        self.is_read &= !shown.as_ref().is_err_and(stdout::is_unread);
        stdout::unless_gone(shown).context("can't write to standard output")
    }

    /// Whether standard output is still read, as far as is known.
    pub(super) const fn is_read(&self) -> bool {
        self.is_read
    }

    /// Shows a line about the connection. A script gets it on standard error, so that its output has answers and pushes
    /// only.
    ///
    /// # Errors
    /// The terminal can't be written to.
    pub(super) fn show_status(&mut self, line: &str) -> Result<()> {
        match &mut self.editor {
            Some(editor) => {
                print_beside(editor.as_mut(), line).context("can't write to the terminal")
            }
            None => {
                stdout::print_stderr(line);
                Ok(())
            }
        }
    }

    /// The editor has ended: from now on output is plain.
    pub(super) fn input_ended(&mut self) {
        self.editor = None;
    }
}

fn print_beside(editor: &mut dyn ExternalPrinter, line: &str) -> io::Result<()> {
    let has_colours = anstream::AutoStream::choice(&io::stdout()) != ColorChoice::Never;
    let line =
        if has_colours { line.to_owned() } else { anstream::adapter::strip_str(line).to_string() };
    // This fails only when the editor has just ended. The terminal is in its normal mode again by then.
    editor.print(format!("{line}\n")).or_else(|_| writeln!(anstream::stdout(), "{line}"))
}

/// An editor and its printer, if standard input and output are a terminal that supports one.
fn open_editor() -> Option<(DefaultEditor, Box<dyn ExternalPrinter + Send>)> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = DefaultEditor::with_config(config).ok()?;
    let printer = editor.create_external_printer().ok()?;
    Some((editor, Box::new(printer)))
}

/// Reads what is typed. Only the first command needs a permit: the prompt is shown while answers are in flight, and the
/// printer works only while the prompt is shown.
fn read_edited(mut editor: DefaultEditor, permits: &Receiver<()>, events: &Sender<LoopEvent>) {
    if permits.recv().is_err() {
        return;
    }
    let end = 'typing: loop {
        match editor.readline(PROMPT) {
            // Pasted text comes as one line with line ends inside.
            Ok(lines) => {
                for event in lines.lines().filter_map(parse_line) {
                    if matches!(event, LoopEvent::Quit) {
                        break 'typing LoopEvent::Quit;
                    }
                    if events.send(event).is_err() {
                        return;
                    }
                }
            }
            // Ctrl-C discards the line, as in a shell.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break LoopEvent::EndOfInput,
            Err(error) => {
                break LoopEvent::InputFailed(Error::new(error).context("can't read the terminal"));
            }
        }
    };
    // Drop the editor before the last event is sent: a later print would wait for a prompt that never comes.
    drop(editor);
    let _receiver_gone = events.send(end);
}

/// Reads a script: one command per permit.
fn read_plain(permits: &Receiver<()>, events: &Sender<LoopEvent>) {
    let mut lines = io::stdin().lock().lines();
    while permits.recv().is_ok() {
        let event = next_command(&mut lines);
        let is_last = !matches!(event, LoopEvent::Command(_) | LoopEvent::ParseFailed(_));
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

fn next_command(lines: &mut impl Iterator<Item = io::Result<String>>) -> LoopEvent {
    loop {
        match lines.next() {
            None => return LoopEvent::EndOfInput,
            Some(Err(error)) => {
                return LoopEvent::InputFailed(
                    Error::new(error).context("can't read standard input"),
                );
            }
            Some(Ok(line)) => {
                if let Some(event) = parse_line(&line) {
                    return event;
                }
            }
        }
    }
}

/// The event for a line; `None` for an empty line or a comment.
fn parse_line(line: &str) -> Option<LoopEvent> {
    match Command::parse(line) {
        Ok(None) => None,
        Ok(Some(Command::Quit)) => Some(LoopEvent::Quit),
        Ok(Some(command)) => Some(LoopEvent::Command(command)),
        Err(error) => Some(LoopEvent::ParseFailed(error)),
    }
}
