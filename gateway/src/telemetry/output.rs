//! Lines for the standard output and the standard error, from any thread, without waiting for a reader.
//!
//! A write to a pipe that nobody reads blocks, and a write to a pipe without a reader or to a full disk
//! fails. Neither may stop a shard, so no other thread of the gateway writes to a stream: it puts its line into a
//! bounded queue, and a thread for each stream writes. A line that finds the queue full, or that the kernel
//! refuses, is dropped and counted ([`Output::dropped`]). Once the reader is back, the log says how many lines are
//! missing.
//!
//! `tracing-appender` has such a queue, but its guard reports a slow end with `eprintln!`, which blocks on the
//! same full pipe, and it bounds lines, not bytes.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;

/// Lines that may wait for one stream.
const LINES_MAX: usize = 8_192;

/// Bytes that may wait for one stream.
const BYTES_MAX: usize = 1024 * 1024;

/// How long the end of the process waits for the lines that are still in a queue.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// One of the two standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// For the user who started the gateway.
    Stdout,
    /// The log.
    Stderr,
}

impl Stream {
    const fn label(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Why lines were dropped, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The queue was full: the reader is slower than the gateway, or has stopped reading.
    pub queue_full: u64,
    /// The kernel refused the write: the reader is gone, or the disk is full.
    pub write_failed: u64,
}

impl Dropped {
    const fn total(self) -> u64 {
        self.queue_full + self.write_failed
    }
}

/// The queue before one stream. See the [module](self).
#[derive(Debug)]
pub struct Output {
    stream: Stream,
    queue: Sender<Entry>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    queued_bytes: AtomicUsize,
    queue_full: AtomicU64,
    write_failed: AtomicU64,
}

#[derive(Debug)]
enum Entry {
    Line(Box<[u8]>),
    /// Everything before this has been written or dropped when the sender is.
    Flush(#[expect(dead_code, reason = "its drop is the signal")] Sender<()>),
}

/// The standard output's queue. The first call starts its thread.
pub fn stdout() -> &'static Output {
    static STDOUT: OnceLock<Output> = OnceLock::new();
    STDOUT.get_or_init(|| Output::start(Stream::Stdout))
}

/// The standard error's queue. The first call starts its thread.
pub fn stderr() -> &'static Output {
    static STDERR: OnceLock<Output> = OnceLock::new();
    STDERR.get_or_init(|| Output::start(Stream::Stderr))
}

/// Waits until the queued lines of both streams are written, for a second at most. Call it before the process ends.
pub fn flush() {
    flush_within(FLUSH_PATIENCE);
}

/// Like [`flush`], for `patience` at most, both streams together.
pub fn flush_within(patience: Duration) {
    let deadline = Instant::now() + patience;
    let flushed = [stdout(), stderr()].map(|output| output.begin_flush(deadline));
    for flushed in flushed {
        // Either the other end was dropped or the time is over. Both end the wait.
        let _ = flushed.recv_deadline(deadline);
    }
}

impl Output {
    fn start(stream: Stream) -> Self {
        let (queue, lines) = channel::bounded(LINES_MAX);
        let state = Arc::<State>::default();
        let state_of_writer = Arc::clone(&state);
        let writer = Writer {
            stream,
            lines,
            state: state_of_writer,
            reported: 0,
            confirmed: 0,
            is_cut: false,
        };
        // Without a thread the queue has no receiver, and every line counts as dropped.
        drop(thread::Builder::new().name(stream.label().into()).spawn(move || writer.run()));
        Self { stream, queue, state }
    }

    /// Queues a line, to which this adds the newline.
    pub fn line(&self, line: impl AsRef<str>) {
        self.push(format!("{}\n", line.as_ref()).into_bytes().into());
    }

    /// Lines that were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.state.dropped()
    }

    /// The stream's name in metrics and in the log.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        self.stream.label()
    }

    /// Whether a text for this stream may be coloured: on a terminal, unless the user asks for none
    /// (no-color.org).
    #[must_use]
    pub fn takes_colours(&self) -> bool {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_terminal = match self.stream {
            Stream::Stdout => io::stdout().is_terminal(),
            Stream::Stderr => io::stderr().is_terminal(),
        };
        is_terminal && !refused
    }

    /// A channel that closes once everything that is queued now has been written or dropped.
    fn begin_flush(&self, deadline: Instant) -> Receiver<()> {
        let (done, flushed) = channel::bounded(1);
        // If the queue stays full, the channel closes at once.
        let _ = self.queue.send_deadline(Entry::Flush(done), deadline);
        flushed
    }

    fn push(&self, line: Box<[u8]>) {
        let bytes = line.len();
        let queued = self.state.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A single line may be longer than the bound.
        let fits = queued == 0 || queued + bytes <= BYTES_MAX;
        if !fits || self.queue.try_send(Entry::Line(line)).is_err() {
            self.state.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.state.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl State {
    fn dropped(&self) -> Dropped {
        Dropped {
            queue_full: self.queue_full.load(Ordering::Relaxed),
            write_failed: self.write_failed.load(Ordering::Relaxed),
        }
    }
}

/// The writer of a formatter: one call of `write` is one line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines(pub(super) &'static Output);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes.into());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes one stream.
struct Writer {
    stream: Stream,
    lines: Receiver<Entry>,
    state: Arc<State>,
    /// Dropped lines that a queued line of the log reports.
    reported: u64,
    /// Of these, those whose report was written. confirmed <= reported
    confirmed: u64,
    /// The last write ended within a line.
    is_cut: bool,
}

impl Writer {
    fn run(mut self) {
        block_signals();
        while let Ok(entry) = self.lines.recv() {
            let Entry::Line(line) = entry else { continue };
            let written = self.write(&line);
            self.state.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            match written {
                Ok(()) => self.tell_of_drops(),
                Err(_) => {
                    self.state.write_failed.fetch_add(1, Ordering::Relaxed);
                    // It may have been a report: the lines in it are reported again.
                    self.reported = self.confirmed;
                }
            }
        }
    }

    /// Reports how many lines are missing, once the queue has room for the report.
    fn tell_of_drops(&mut self) {
        if !self.lines.is_empty() {
            return;
        }
        // Earlier reports were in this queue, and are written.
        self.confirmed = self.reported;
        let dropped = self.state.dropped();
        let lines = dropped.total() - self.reported;
        if lines > 0 {
            self.reported = dropped.total();
            tracing::error!(
                lines,
                stream = self.stream.label(),
                "lines were dropped: the reader was too slow or gone, or the disk was full"
            );
            if self.state.dropped().queue_full > dropped.queue_full {
                // Other threads may have filled the queue meanwhile, so this report may have been dropped.
                self.reported = self.confirmed;
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_cut {
            self.write_all(b"\n")?;
            self.is_cut = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let stream = match self.stream {
            Stream::Stdout => stdout.as_fd(),
            Stream::Stderr => stderr.as_fd(),
        };
        let whole = rest.len();
        while !rest.is_empty() {
            match rustix::io::write(stream, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                // Another process that shares the pipe has made it non-blocking.
                Err(Errno::AGAIN) => wait_for_room(stream)?,
                Err(error) => {
                    self.is_cut |= rest.len() < whole;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

fn wait_for_room(stream: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Blocks signals that a write may raise, and that would end or stop the whole process: beyond the limit of a file's
/// size (SIGXFSZ, setrlimit(2)), and from the background to a terminal with `tostop` (SIGTTOU, termios(3)). With them
/// blocked, the first write fails and the second succeeds. Rust ignores SIGPIPE.
fn block_signals() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.add(Signal::SIGTTOU);
    // It fails only for an invalid argument.
    let _ = signals.thread_block();
}
