//! The offset file: what keeps a restart from giving offsets that an earlier run gave.
//!
//! Clients drop a push whose offset they have seen (PROTOCOL.md, "Rooms and resume"). A run's offsets begin at
//! the wall clock, in microseconds, and advance by the monotonic clock. If the wall clock is set back before a
//! restart, the new run would give offsets that clients have seen, and they would drop its pushes in silence.
//! So each run reserves the offsets of the next minute in a file, and the next run begins above them.
//!
//! The file holds one number, an offset that no run has given. A run that is killed leaves its reservation
//! there, so the next run may begin up to a minute ahead of the wall clock, or ahead of where that run began.
//! That does no harm: clients only compare offsets. Two gateways that share the file never lower what the other
//! has written.
//!
//! What is written survives a power cut: the new file's bytes are on the disk before it takes the old one's
//! place, and then its name is (`durable`). The tests check that both are asked for, in this order, and that a
//! failure is counted. They can't check that a disk keeps what it has confirmed: that shows only when its power
//! is cut.
//!
//! A separate thread writes the file twice a minute, so a full disk or a slow one stops no shard. A run that ends in
//! order leaves the offset that it came to, and one that is killed its reservation.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError, Sender};
use metrics::counter;
use tidegate_backend::log_limit::LogLimit;

use crate::durable;

/// How often the reservation is renewed.
const RENEWED_EVERY: Duration = Duration::from_secs(30);

/// What a reservation covers beyond the time at which it is written: two renewals, so that one may fail.
const RESERVED: Duration = Duration::from_secs(60);

/// Longest file that is read, in bytes: a number of 20 digits, and white space.
const BYTES_MAX: u64 = 64;

/// The greatest number that the file may hold: the greatest that all numbers of JavaScript are exact up to, and
/// the year 2255 as an offset. So no offset overflows, however long the gateway runs.
const OFFSET_MAX: u64 = 1 << 53;

/// The mode of folders that are made for the file, less the umask: it holds nothing secret.
const FOLDER_MODE: u32 = 0o777;

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
        "rooms.offset_file: {path} does not hold an offset, which is a number up to {OFFSET_MAX}; name another file, \
         or remove this one if the clock was not set back since the last run",
        path = path.display()
    )]
    Unfit {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the lowest offset that a new run may give; `None` if there is no file.
///
/// # Errors
/// [`OffsetFileError`] when there is a file that holds something else, or that can't be read.
pub fn read(path: &Path) -> Result<Option<u64>, OffsetFileError> {
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
    let offset = text.trim().parse().ok().filter(|&offset| offset <= OFFSET_MAX);
    offset.map(Some).ok_or_else(unfit)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The first offset of a run: the wall clock, or what the last run has left in the file if that is more.
///
/// # Errors
/// As [`read`].
pub fn first_offset(path: Option<&Path>, unix_us: u64) -> Result<u64, OffsetFileError> {
    let Some(left) = path.map(read).transpose()?.flatten() else { return Ok(unix_us) };
    // A run that was killed leaves its reservation. More than that is left when the wall clock was set back, or
    // by several runs that were each killed within a minute of the one before.
    if let Some(ahead_us) = left.checked_sub(unix_us)
        && ahead_us > micros(RESERVED)
    {
        tracing::warn!(
            ahead_s = ahead_us / 1_000_000,
            "offsets of pushes begin ahead of the wall clock, above those of earlier runs: the wall clock was set \
             back, the gateway was killed several times within minutes, or another gateway uses the same file"
        );
    }
    Ok(left.max(unix_us))
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
    pub fn start(path: PathBuf, first_offset: u64, started: Instant) -> io::Result<Self> {
        let mut file =
            OffsetFile { path, first_offset, started, written: None, warnings: LogLimit::new() };
        file.write(RESERVED);
        let (stop, stopped) = channel::bounded::<()>(0);
        let run = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(RENEWED_EVERY) {
                file.write(RESERVED);
            }
            // No further offset is given.
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
            // It sends nothing.
            drop(thread.join());
        }
    }
}

struct OffsetFile {
    path: PathBuf,
    first_offset: u64,
    started: Instant,
    /// What this run has written last.
    written: Option<u64>,
    /// The limit on log lines of failed writes.
    warnings: LogLimit,
}

impl OffsetFile {
    /// Writes the offset that the run has reached, and `ahead` of it. What another gateway has written stays,
    /// if it is more.
    fn write(&mut self, ahead: Duration) {
        // A room gets less than one push a microsecond, so this is above all that were given.
        let reached = self.first_offset.saturating_add(micros(self.started.elapsed() + ahead));
        let others = read(&self.path).ok().flatten().filter(|&there| Some(there) != self.written);
        let offset = reached.max(others.unwrap_or_default());
        let replaced = replace(&self.path, &format!("{offset}\n"));
        if replaced.is_ok() || read(&self.path).is_ok_and(|there| there == Some(offset)) {
            self.written = Some(offset);
        }
        if let Err(error) = replaced {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &io::Error) {
        counter!(WRITE_ERRORS).increment(1);
        if let Some(suppressed) = self.warnings.allow() {
            tracing::warn!(
                path = %self.path.display(),
                %error,
                suppressed,
                "rooms.offset_file can't be written or synced; if the wall clock is set back before the next start, clients \
                 will drop pushes"
            );
        }
    }
}

/// Puts a new file in the place of an old one, so that a reader finds one or the other, after a power cut too.
/// Where the last step fails, a reader finds the new one, but a power cut may bring the old one back.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = durable::folder_of(path);
    durable::create_folders(folder, FOLDER_MODE)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Two gateways in containers may have the same process id.
    name.push(format!(".{:08x}", fastrand::u32(..)));
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // What is left of it is of no use.
        let _ = fs::remove_file(&new);
    })?;
    durable::sync_folder(folder)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::fault::with_failing;

    const HOUR_US: u64 = 3_600_000_000;

    #[test]
    fn a_run_begins_above_the_run_before_though_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/offset");
        let now = 1_700_000_000_000_000;
        assert_eq!(first_offset(Some(&path), now).unwrap(), now, "there is no file yet");
        let keeper = OffsetKeeper::start(path.clone(), now, Instant::now()).unwrap();
        let reserved = read(&path).unwrap().unwrap();
        assert!(reserved >= now + micros(RESERVED), "a run that is killed leaves a reservation");
        drop(keeper);
        let left = read(&path).unwrap().unwrap();
        assert!(left >= now && left < reserved, "a run that ends leaves what it came to");
        assert_eq!(first_offset(Some(&path), now - HOUR_US).unwrap(), left);
        assert_eq!(first_offset(Some(&path), now + HOUR_US).unwrap(), now + HOUR_US);
        assert_eq!(first_offset(None, now).unwrap(), now);
        let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "no temporary file is left");
    }

    #[test]
    fn a_run_that_ends_does_not_lower_what_its_successor_has_reserved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offset");
        let now = 1_700_000_000_000_000;
        let draining = OffsetKeeper::start(path.clone(), now, Instant::now()).unwrap();
        let began = first_offset(Some(&path), now - HOUR_US).unwrap();
        let successor = OffsetKeeper::start(path.clone(), began, Instant::now()).unwrap();
        let reserved = read(&path).unwrap().unwrap();
        drop(draining);
        assert_eq!(read(&path).unwrap().unwrap(), reserved);
        drop(successor);
        assert!(read(&path).unwrap().unwrap() >= began);
    }

    #[test]
    fn a_file_that_holds_no_offset_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offset");
        let too_large = (OFFSET_MAX + 1).to_string();
        for text in ["", "abc", "-1", "99999999999999999999999", "1 2", "\u{fffd}", &too_large] {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("does not hold an offset"), "{text:?}: {error}");
        }
        assert!(matches!(read(folder.path()), Err(OffsetFileError::Unfit { .. })), "a folder");
        fs::write(&path, format!(" {OFFSET_MAX}\n")).unwrap();
        assert_eq!(read(&path).unwrap(), Some(OFFSET_MAX));
    }

    #[test]
    fn an_offset_survives_a_power_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offset");
        replace(&path, "1\n").unwrap();
        let unsynced = with_failing(libc::SYS_fdatasync, || replace(&path, "2\n"));
        assert_eq!(unsynced.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(
            read(&path).unwrap(),
            Some(1),
            "the old file stays until the new one's bytes are synced"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        let unsynced = with_failing(libc::SYS_fsync, || replace(&path, "3\n"));
        assert_eq!(
            unsynced.unwrap_err().raw_os_error(),
            Some(libc::EIO),
            "the folder is not synced"
        );
        assert_eq!(read(&path).unwrap(), Some(3), "the folder is synced when it has the new name");
        // So is that of a folder which is made for the file.
        let below = folder.path().join("state/offset");
        assert!(with_failing(libc::SYS_fsync, || replace(&below, "4\n")).is_err());
        assert_eq!(read(&below).unwrap(), None);
    }

    #[test]
    fn a_run_that_ends_lowers_its_reservation_though_no_folder_could_be_synced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offset");
        let now = 1_700_000_000_000_000;
        let reserved = with_failing(libc::SYS_fsync, || {
            let keeper = OffsetKeeper::start(path.clone(), now, Instant::now()).unwrap();
            let reserved = read(&path).unwrap().unwrap();
            drop(keeper);
            reserved
        });
        assert!(read(&path).unwrap().unwrap() < reserved);
    }

    #[test]
    fn a_file_that_cannot_be_written_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        fs::write(&in_the_way, "").unwrap();
        let path = in_the_way.join("offset");
        assert_eq!(first_offset(Some(&path), 7).unwrap(), 7);
        drop(OffsetKeeper::start(path, 1, Instant::now()).unwrap());
    }
}
