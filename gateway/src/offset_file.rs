//! The offset file: what keeps a restart from giving offsets that an earlier run gave.
//!
//! Clients drop a push whose offset they have seen (PROTOCOL.md, "Rooms and resume"). A run's offsets begin at the wall clock,
//! in microseconds, and go on by the monotonic clock. If the wall clock is set back before a restart, the new run would
//! give offsets that clients have seen, and they would drop its pushes in silence. So each run
//! reserves the offsets of the next minute in a file, and the next run begins above them.
//!
//! The file holds three numbers, all in microseconds since the Unix epoch: the offset that the run had come to, the end of
//! its reservation, and the wall clock at that time. If the wall clock is not behind that, as after any restart in order, the next run
//! begins at the wall clock. Otherwise it begins at the end of the reservation.
//!
//! A thread of its own writes the file twice a minute, so a full disk or a slow one stops no shard. A run that ends in
//! order leaves the offset that it came to, and one that is killed its reservation.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use metrics::counter;
use tidegate_backend::log_limit::LogLimit;

use crate::clock::WallClock;

/// How often the reservation is renewed.
const RENEWED_EVERY: Duration = Duration::from_secs(30);

/// What a reservation covers beyond the time at which it is written: two renewals, so that one may fail.
const RESERVED: Duration = Duration::from_secs(60);

/// Longest file that is read, in bytes: three numbers of 20 digits, and white space.
const BYTES_MAX: u64 = 128;

/// The counter of failed writes.
pub const WRITE_ERRORS: &str = "tidegate_offset_file_errors_total";

/// Why the offset file can't be used. The operator must fix it.
#[derive(Debug, thiserror::Error)]
pub enum OffsetFileError {
    /// The file can't be read.
    #[error(
        "rooms.offset_file: can't read {path}: {cause}; let the gateway read it, or name another file",
        path = path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file holds something else.
    #[error(
        "rooms.offset_file: {path} does not hold what a gateway writes, which is three numbers; name another file, \
         or remove this one if the clock was not set back since the last run",
        path = path.display()
    )]
    Unfit {
        /// The file.
        path: PathBuf,
    },
}

/// What a run has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The offset that the run had come to when it wrote the file.
    pub reached: u64,
    /// The run gave no offset from here on. reached <= end
    pub end: u64,
    /// The wall clock when it wrote the file, in microseconds since the Unix epoch.
    pub written_at_us: u64,
}

impl Reservation {
    /// The first offset of a run that begins at this time.
    #[must_use]
    pub fn next_first_offset(&self, unix_us: u64) -> u64 {
        let reached_by_now = unix_us.checked_sub(self.written_at_us);
        // A clock that was not set back tells how far the run can have come since then.
        let reached_by_now = reached_by_now.map(|since_us| self.reached.saturating_add(since_us));
        self.end.min(reached_by_now.unwrap_or(u64::MAX)).max(unix_us)
    }
}

/// Reads what the last run has left; `None` if there is no file.
///
/// # Errors
/// [`OffsetFileError`] when there is a file that holds something else, or that can't be read.
pub fn read(path: &Path) -> Result<Option<Reservation>, OffsetFileError> {
    let unreadable = |cause| OffsetFileError::Unreadable { path: path.to_owned(), cause };
    let unfit = || OffsetFileError::Unfit { path: path.to_owned() };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        // Where a folder is missing, or is no folder, there is no file either.
        Err(error) if is_missing(&error) => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(unfit());
    }
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => unfit(),
        _ => unreadable(error),
    })?;
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    match numbers.as_deref() {
        Ok(&[reached, end, written_at_us]) if reached <= end => {
            Ok(Some(Reservation { reached, end, written_at_us }))
        }
        _ => Err(unfit()),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The first offset of a run: the wall clock, or more if the last run may have given more.
///
/// # Errors
/// As [`read`].
pub fn first_offset(path: Option<&Path>, unix_us: u64) -> Result<u64, OffsetFileError> {
    let Some(left) = path.map(read).transpose()?.flatten() else { return Ok(unix_us) };
    let first_offset = left.next_first_offset(unix_us);
    if unix_us < left.written_at_us {
        tracing::warn!(
            behind_s = (left.written_at_us - unix_us) / 1_000_000,
            "the wall clock was set back since the last run; offsets of pushes go on above those of the last run"
        );
    }
    Ok(first_offset)
}

/// Keeps the file up to date until it is dropped.
#[derive(Debug)]
pub struct OffsetKeeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl OffsetKeeper {
    /// Reserves offsets for a run that began with `first_offset` at `started`, and starts the thread that renews the
    /// reservation. A file that can't be written is no reason not to start: it is logged and counted.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        path: PathBuf,
        first_offset: u64,
        started: Instant,
        wall_clock: WallClock,
    ) -> io::Result<Self> {
        let warnings = LogLimit::new();
        let mut file = OffsetFile { path, first_offset, started, wall_clock, warnings };
        file.write(RESERVED);
        let (stop, stopped) = channel::bounded::<()>(0);
        let run = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(RENEWED_EVERY) {
                file.write(RESERVED);
            }
            // No offset is given any more.
            file.write(Duration::ZERO);
        };
        let thread = thread::Builder::new().name("offset-file".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for OffsetKeeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            drop(thread.join());
        }
    }
}

struct OffsetFile {
    path: PathBuf,
    first_offset: u64,
    started: Instant,
    wall_clock: WallClock,
    /// The limit on log lines of failed writes.
    warnings: LogLimit,
}

impl OffsetFile {
    /// Writes the offset that the run has come to, and `ahead` of it.
    fn write(&mut self, ahead: Duration) {
        // A room gets less than one push a microsecond, so this is above all that were given.
        let reached = self.first_offset + micros(self.started.elapsed());
        let (end, written_at_us) = (reached + micros(ahead), self.wall_clock.unix_us());
        if let Err(error) = replace(&self.path, &format!("{reached} {end} {written_at_us}\n")) {
            counter!(WRITE_ERRORS).increment(1);
            if let Some(suppressed) = self.warnings.allow() {
                tracing::warn!(
                    path = %self.path.display(),
                    %error,
                    suppressed,
                    "rooms.offset_file can't be written; if the wall clock is set back before the next start, clients \
                     will drop pushes"
                );
            }
        }
    }
}

/// Puts a new file in the place of an old one, so that a reader finds one or the other.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // What is left of it helps nobody.
        let _ = fs::remove_file(&new);
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 3_600_000_000;

    #[test]
    fn a_run_begins_above_the_run_before_though_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/offset");
        let now = 1_700_000_000_000_000;
        assert_eq!(first_offset(Some(&path), now).unwrap(), now, "there is no file yet");
        let clock = WallClock::new(move || Duration::from_micros(now));
        let keeper = OffsetKeeper::start(path.clone(), now, Instant::now(), clock).unwrap();
        let killed = read(&path).unwrap().unwrap();
        assert!(killed.end >= now + micros(RESERVED), "a run that is killed leaves a reservation");
        drop(keeper);
        let ended = read(&path).unwrap().unwrap();
        assert!(ended.end == ended.reached && ended.end < killed.end, "{ended:?} {killed:?}");
        assert_eq!(first_offset(Some(&path), now - HOUR_US).unwrap(), ended.end);
        assert_eq!(first_offset(Some(&path), now + HOUR_US).unwrap(), now + HOUR_US);
        assert_eq!(first_offset(None, now).unwrap(), now);
        let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "no temporary file is left");
    }

    #[test]
    fn a_restart_does_not_move_offsets_ahead_of_a_clock_that_goes_on() {
        let left = Reservation { reached: 1_000, end: 61_000, written_at_us: 1_000 };
        assert_eq!(left.next_first_offset(1_500), 1_500);
        assert_eq!(left.next_first_offset(90_000), 90_000);
        assert_eq!(left.next_first_offset(999), 61_000, "the clock was set back");
        // The run before had begun above the clock.
        let ahead = Reservation { reached: 5_000, end: 65_000, written_at_us: 1_000 };
        assert_eq!(ahead.next_first_offset(1_500), 5_500);
        assert_eq!(ahead.next_first_offset(80_000), 80_000);
        assert_eq!(ahead.next_first_offset(62_000), 65_000, "but no further than it reserved");
    }

    #[test]
    fn a_file_that_holds_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offset");
        for text in ["", "abc", "1 2", "1 2 -3", "2 1 3", "1 2 99999999999999999999999", "1 2 3 4"]
        {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("does not hold what a gateway writes"), "{text:?}: {error}");
        }
        assert!(matches!(read(folder.path()), Err(OffsetFileError::Unfit { .. })), "a folder");
        fs::write(&path, " 17 18\n19\n").unwrap();
        let left = Reservation { reached: 17, end: 18, written_at_us: 19 };
        assert_eq!(read(&path).unwrap(), Some(left));
    }

    #[test]
    fn a_file_that_cannot_be_written_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        fs::write(&in_the_way, "").unwrap();
        let path = in_the_way.join("offset");
        assert_eq!(first_offset(Some(&path), 7).unwrap(), 7);
        let clock = WallClock::system();
        drop(OffsetKeeper::start(path, 1, Instant::now(), clock).unwrap());
    }
}
