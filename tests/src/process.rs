//! A process that ends with its test, and its output.

use std::fs;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{TIMEOUT, until};

/// A child process. It is killed when this is dropped. If the test fails, its output is shown.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// It leads a group of processes, which is killed with it.
    leads_group: bool,
    /// Ends of pipes that are not read.
    unread: [Option<PipeReader>; 2],
    /// Its standard output.
    pub stdout: Arc<Output>,
    /// Its standard error: the log.
    pub stderr: Arc<Output>,
}

/// What a process has written to a stream so far.
#[derive(Debug, Default)]
pub struct Output {
    so_far: Mutex<SoFar>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct SoFar {
    text: String,
    /// The stream has ended.
    ended: bool,
}

/// Where a standard stream of a process leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sink {
    /// The output is kept for the test.
    #[default]
    Kept,
    /// A pipe without a reader.
    ReaderGone,
    /// A full pipe, which is not read until [`Process::read_stderr`].
    PipeFull,
    /// A file on a full disk.
    DiskFull,
    /// A file of the maximal length that the process may write. The command must set the limit to
    /// [`FILE_BYTES_MAX`].
    FileLimit,
    /// The stream is closed before the program starts.
    Closed,
}

impl Sink {
    /// The stream for the child, and the end of the pipe that is not read.
    fn open(self) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::Kept => (Stdio::piped(), None),
            Self::ReaderGone => (io::pipe().unwrap().1.into(), None),
            Self::PipeFull => {
                let (reader, writer) = io::pipe().unwrap();
                fill(&writer);
                (writer.into(), Some(reader))
            }
            Self::DiskFull => (File::options().write(true).open("/dev/full").unwrap().into(), None),
            Self::FileLimit => {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[b'x'; FILE_BYTES_MAX]).unwrap();
                (file.into(), None)
            }
            // The starting command closes the stream.
            Self::Closed => (Stdio::null(), None),
        }
    }
}

/// The longest file that a process with [`Sink::FileLimit`] may make, in bytes.
pub const FILE_BYTES_MAX: usize = 4096;

/// Fills a pipe with lines.
fn fill(writer: &io::PipeWriter) {
    let blocking = rustix::fs::fcntl_getfl(writer).unwrap();
    rustix::fs::fcntl_setfl(writer, blocking | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(writer, b"x\n").is_ok() {}
    rustix::fs::fcntl_setfl(writer, blocking).unwrap();
}

impl Process {
    /// Starts a process. Its standard input is `input`.
    #[must_use]
    pub fn start(command: &mut Command, input: &str) -> Self {
        Self::start_with(command, input, Sink::Kept, Sink::Kept)
    }

    /// Starts a process that starts others. They all are killed when this is dropped.
    #[must_use]
    pub fn start_group(command: &mut Command, input: &str) -> Self {
        let mut process = Self::start(command.process_group(0), input);
        process.leads_group = true;
        process
    }

    /// Starts a process with other sinks for its standard output and standard error.
    #[must_use]
    pub fn start_with(command: &mut Command, input: &str, stdout: Sink, stderr: Sink) -> Self {
        let ((stdout, stdout_unread), (stderr, stderr_unread)) = (stdout.open(), stderr.open());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        // Without this the command would keep its ends of the pipes open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let stdout = child.stdout.take().map_or_else(Output::nothing, Output::listen);
        let stderr = child.stderr.take().map_or_else(Output::nothing, Output::listen);
        // A process that ends without reading its input breaks the pipe, which is no failure.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        Self { child, leads_group: false, unread: [stdout_unread, stderr_unread], stdout, stderr }
    }

    /// Starts to read the standard error of a process that was started with [`Sink::PipeFull`].
    pub fn read_stderr(&mut self) {
        self.stderr = Output::listen(self.unread[1].take().unwrap());
    }

    /// Runs a process to its end. Returns its exit status, standard output and standard error.
    #[must_use]
    pub fn run(command: &mut Command, input: &str) -> (ExitStatus, String, String) {
        let mut process = Self::start(command, input);
        let status = process.wait();
        (status, process.stdout.all(), process.stderr.all())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The memory that the process has written to, in bytes. Pages of its program file are not in it: how many of them are
    /// mapped depends on the machine's page cache.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let pid = self.pid().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        until("the process ends", || self.child.try_wait().unwrap())
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be that of another group.
        if self.leads_group && self.is_running() {
            kill_process_group(self.pid(), Signal::KILL).unwrap_or_default();
        }
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let (stdout, stderr) = (self.stdout.all(), self.stderr.all());
            eprintln!("--- stdout of {} ---\n{stdout}--- stderr ---\n{stderr}---", self.child.id());
        }
    }
}

impl Output {
    /// The output of a stream that is not kept: empty.
    fn nothing() -> Arc<Self> {
        let said = Self::default();
        said.so_far.lock().unwrap().ended = true;
        Arc::new(said)
    }

    fn listen(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let said = Arc::new(Self::default());
        let listener = Arc::clone(&said);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut cut = Vec::new();
            loop {
                let count = pipe.read(&mut buffer).unwrap_or_default();
                cut.extend_from_slice(&buffer[..count]);
                // Whole lines, so that no character is cut in two. A bar on a terminal ends each with a carriage return.
                let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
                let whole = cut.iter().rposition(ends).map_or(0, |end| end + 1);
                let whole = if count == 0 { cut.len() } else { whole };
                let lines: Vec<u8> = cut.drain(..whole).collect();
                let mut so_far = listener.so_far.lock().unwrap();
                so_far.text.push_str(&String::from_utf8_lossy(&lines));
                so_far.ended = count == 0;
                listener.more.notify_all();
                if so_far.ended {
                    return;
                }
            }
        });
        said
    }

    /// The output until now.
    #[must_use]
    pub fn so_far(&self) -> String {
        self.so_far.lock().unwrap().text.clone()
    }

    /// The whole output. The process must have ended.
    #[must_use]
    pub fn all(&self) -> String {
        let so_far = self.so_far.lock().unwrap();
        let (so_far, _) =
            self.more.wait_timeout_while(so_far, TIMEOUT, |so_far| !so_far.ended).unwrap();
        so_far.text.clone()
    }

    /// Waits until the output contains `text`.
    pub fn wait_for(&self, text: &str) {
        self.find(text, |so_far| so_far.contains(text).then_some(()));
    }

    /// Waits until `find` returns something for the output.
    pub fn find<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        let mut so_far = self.so_far.lock().unwrap();
        loop {
            if let Some(found) = find(&so_far.text) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // A panic with the lock held would poison it for the code that shows the output.
            if so_far.ended || left.is_zero() {
                drop(so_far);
                panic!("the output never had: {what}");
            }
            so_far = self.more.wait_timeout(so_far, left).unwrap().0;
        }
    }
}
