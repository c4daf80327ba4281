//! A process that ends with its test, whatever happens, and what it says.

use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, until};

/// A child process. Dropped, it is killed; if the test fails, what it said is shown.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// What it says.
    pub stdout: Arc<Said>,
    /// What it logs.
    pub stderr: Arc<Said>,
}

/// What came out of a process so far.
#[derive(Debug, Default)]
pub struct Said {
    so_far: Mutex<SoFar>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct SoFar {
    text: String,
    /// Nothing more will come.
    ended: bool,
}

impl Process {
    /// Starts a process; `input` is all that it can read.
    #[must_use]
    pub fn start(command: &mut Command, input: &str) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        let stdout = Said::listen(child.stdout.take().unwrap());
        let stderr = Said::listen(child.stderr.take().unwrap());
        // Who ends without reading its input breaks the pipe, and that is no matter.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        Self { child, stdout, stderr }
    }

    /// Runs a process to its end: how it ended, what it said and what it logged.
    #[must_use]
    pub fn run(command: &mut Command, input: &str) -> (ExitStatus, String, String) {
        let mut process = Self::start(command, input);
        let status = process.wait();
        (status, process.stdout.all(), process.stderr.all())
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        until("the process ends", || self.child.try_wait().unwrap())
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends it as nothing else would: SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let (stdout, stderr) = (self.stdout.all(), self.stderr.all());
            eprintln!("--- stdout of {} ---\n{stdout}--- stderr ---\n{stderr}---", self.child.id());
        }
    }
}

impl Said {
    fn listen(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let said = Arc::new(Self::default());
        let listener = Arc::clone(&said);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut cut = Vec::new();
            loop {
                let count = pipe.read(&mut buffer).unwrap_or_default();
                cut.extend_from_slice(&buffer[..count]);
                // Whole lines, so that no character is cut.
                let whole = cut.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
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

    /// What was said until now.
    #[must_use]
    pub fn so_far(&self) -> String {
        self.so_far.lock().unwrap().text.clone()
    }

    /// All that was said. To be asked once the process has ended.
    #[must_use]
    pub fn all(&self) -> String {
        let so_far = self.so_far.lock().unwrap();
        let (so_far, _) =
            self.more.wait_timeout_while(so_far, PATIENCE, |so_far| !so_far.ended).unwrap();
        so_far.text.clone()
    }

    /// Waits until something was said.
    pub fn wait_for(&self, text: &str) {
        self.find(text, |so_far| so_far.contains(text).then_some(()));
    }

    /// Waits until something was said, and takes what `find` makes of it.
    pub fn find<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut so_far = self.so_far.lock().unwrap();
        loop {
            if let Some(found) = find(&so_far.text) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Panicking with the lock held would poison it for the one who shows the text.
            if so_far.ended || left.is_zero() {
                drop(so_far);
                panic!("it never said: {what}");
            }
            so_far = self.more.wait_timeout(so_far, left).unwrap().0;
        }
    }
}
