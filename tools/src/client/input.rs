//! Where commands come from and lines go to: a terminal with an editor, or plain input and output.
//!
//! A thread reads, so that pushes are shown while nobody types. It understands `quit` by itself:
//! once it has read that, it gives the terminal back and reads no more.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;

use anstream::ColorChoice;
use anyhow::{Context as _, Error, Result};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor, ExternalPrinter};

use super::Wake;
use super::command::Command;
use crate::stdout;

/// What the editor shows before what is typed.
const PROMPT: &str = "tide> ";

/// Where lines go to. It writes beside what is being typed, not into it.
pub(super) struct Screen {
    /// `None`: plain output.
    editor: Option<Box<dyn ExternalPrinter + Send>>,
    /// Whether somebody still reads it: not so once `tide client | head` has its lines.
    is_read: bool,
}

/// The thread that reads commands.
#[derive(Debug)]
pub(super) struct Input {
    turns: SyncSender<()>,
    /// Whether somebody types, and need not wait for a turn.
    is_interactive: bool,
    turn_is_out: bool,
}

/// Starts reading when the first turn is given: an editor if both ends are a terminal.
///
/// # Errors
/// When the thread can't be started.
pub(super) fn start(wakes: &Sender<Wake>) -> Result<(Input, Screen)> {
    let (turns, my_turns) = mpsc::sync_channel(1);
    let wakes = wakes.clone();
    let edited = edited();
    let is_interactive = edited.is_some();
    let thread = thread::Builder::new().name("tide-input".into());
    let screen = match edited {
        Some((editor, printer)) => {
            thread
                .spawn(move || read_edited(editor, &my_turns, &wakes))
                .context("can't start the thread that reads commands")?;
            Screen { editor: Some(printer), is_read: true }
        }
        None => {
            thread
                .spawn(move || read_plain(&my_turns, &wakes))
                .context("can't start the thread that reads commands")?;
            Screen { editor: None, is_read: true }
        }
    };
    Ok((Input { turns, is_interactive, turn_is_out: false }, screen))
}

impl Input {
    /// Whether somebody types. A script, which is anything else, gets one turn after another.
    pub(super) fn is_interactive(&self) -> bool {
        self.is_interactive
    }

    /// Lets the thread read a command, unless it already may.
    pub(super) fn give_turn(&mut self) {
        if !self.turn_is_out {
            self.turn_is_out = self.turns.try_send(()).is_ok();
        }
    }

    /// A command came: a script waits for its next turn.
    pub(super) fn took_turn(&mut self) {
        self.turn_is_out = self.is_interactive;
    }
}

impl Screen {
    /// Shows a line that answers, or that came from the gateway. Nobody may read it: a script goes on to its
    /// end all the same.
    ///
    /// # Errors
    /// When standard output can't be written to.
    pub(super) fn show(&mut self, line: &str) -> Result<()> {
        let shown = match &mut self.editor {
            Some(editor) => print_beside(editor.as_mut(), line),
            None => writeln!(anstream::stdout(), "{line}"),
        };
        self.is_read &= !shown.as_ref().is_err_and(stdout::is_unread);
        stdout::unless_gone(shown).context("can't write to standard output")
    }

    /// Whether somebody still reads what is shown, as far as is known.
    pub(super) const fn is_read(&self) -> bool {
        self.is_read
    }

    /// Shows a line about the connection. A script's output stays clear of it.
    ///
    /// # Errors
    /// When the terminal can't be written to.
    pub(super) fn remark(&mut self, line: &str) -> Result<()> {
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

    /// The editor has gone: from now on output is plain.
    pub(super) fn input_ended(&mut self) {
        self.editor = None;
    }
}

fn print_beside(editor: &mut dyn ExternalPrinter, line: &str) -> io::Result<()> {
    let has_colours = anstream::AutoStream::choice(&io::stdout()) != ColorChoice::Never;
    let line =
        if has_colours { line.to_owned() } else { anstream::adapter::strip_str(line).to_string() };
    // It fails only when the editor has just gone, and took the terminal's raw mode with it.
    editor.print(format!("{line}\n")).or_else(|_| writeln!(anstream::stdout(), "{line}"))
}

/// An editor and the way to print beside it, if this is a terminal that can be edited on.
fn edited() -> Option<(DefaultEditor, Box<dyn ExternalPrinter + Send>)> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = DefaultEditor::with_config(config).ok()?;
    let printer = editor.create_external_printer().ok()?;
    Some((editor, Box::new(printer)))
}

/// Reads what is typed. After the first turn it waits for none: the prompt stands while answers are
/// on their way, and what is printed beside it is only taken while it stands.
fn read_edited(mut editor: DefaultEditor, turns: &Receiver<()>, wakes: &Sender<Wake>) {
    if turns.recv().is_err() {
        return;
    }
    let end = 'typing: loop {
        match editor.readline(PROMPT) {
            // What was pasted comes as one, with its line ends inside.
            Ok(lines) => {
                for wake in lines.lines().filter_map(understand) {
                    if matches!(wake, Wake::Quit) {
                        break 'typing Wake::Quit;
                    }
                    if wakes.send(wake).is_err() {
                        return;
                    }
                }
            }
            // Ctrl-C drops the line, as it does in a shell.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break Wake::EndOfInput,
            Err(error) => {
                break Wake::NoInput(Error::new(error).context("can't read the terminal"));
            }
        }
    };
    // The editor goes first: who still prints beside it would wait for nobody.
    drop(editor);
    let _nobody_listens = wakes.send(end);
}

/// Reads a script: a command for each turn.
fn read_plain(turns: &Receiver<()>, wakes: &Sender<Wake>) {
    let mut lines = io::stdin().lock().lines();
    while turns.recv().is_ok() {
        let wake = next_command(&mut lines);
        let is_last = !matches!(wake, Wake::Command(_) | Wake::Misread(_));
        if wakes.send(wake).is_err() || is_last {
            return;
        }
    }
}

fn next_command(lines: &mut impl Iterator<Item = io::Result<String>>) -> Wake {
    loop {
        match lines.next() {
            None => return Wake::EndOfInput,
            Some(Err(error)) => {
                return Wake::NoInput(Error::new(error).context("can't read standard input"));
            }
            Some(Ok(line)) => {
                if let Some(wake) = understand(&line) {
                    return wake;
                }
            }
        }
    }
}

/// What a line wakes the loop for; `None` when it says nothing.
fn understand(line: &str) -> Option<Wake> {
    match Command::parse(line) {
        Ok(None) => None,
        Ok(Some(Command::Quit)) => Some(Wake::Quit),
        Ok(Some(command)) => Some(Wake::Command(command)),
        Err(error) => Some(Wake::Misread(error)),
    }
}
