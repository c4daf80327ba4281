//! Looks at the configuration's file, and reloads when it has changed, where `reload_on_change` is set.
//!
//! It compares contents, as it is done with certificates: a file that is replaced over a link, as orchestrators do it, is
//! seen too. A part of a file is mostly a valid configuration, in which keys are missing. So a file is loaded only once two looks in
//! a row have seen the same, never while it is empty, and only if it still has `reload_on_change = true`: otherwise half a file would
//! end the watch, and the whole one would never be loaded.
//!
//! A file that was refused is tried again, more and more rarely, since the cause may be elsewhere: a key that is not written yet, or an
//! identity provider that is away.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fs, io, thread};

use crossbeam::channel::{self, RecvTimeoutError, Sender};

use super::Reloader;
use crate::config::Fingerprint;

/// The time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Most looks from one try to the next one with the same file: about a minute.
const LOOKS_BETWEEN_TRIES_MAX: u32 = 32;

/// Looks until it is dropped.
#[derive(Debug)]
pub(crate) struct FileWatch {
    /// Its end stops the thread.
    _stop: Sender<()>,
}

impl FileWatch {
    /// Starts the thread. `None`: there is no file.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(reloader: &Arc<Reloader>) -> io::Result<Option<Self>> {
        let Some(path) = reloader.sources().and_then(|sources| sources.file()) else {
            return Ok(None);
        };
        let (stop, stopped) = channel::bounded::<()>(0);
        let reloader = Arc::downgrade(reloader);
        let mut looks = Looks::default();
        thread::Builder::new().name("config-watch".into()).spawn(move || {
            while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(reloader) = Weak::upgrade(&reloader) else { return };
                if !reloader.settings().config.reload_on_change {
                    looks = Looks::default();
                    continue;
                }
                let Some(in_use) = reloader.file_in_use() else { continue };
                if let Some(seen) = looks.next(contents(&path), in_use) {
                    looks.tried(seen, reloader.reload_watched(seen).is_ok());
                }
            }
        })?;
        Ok(Some(Self { _stop: stop }))
    }
}

/// What the file holds. `None`: it is gone or empty, as while it is replaced, or it is no file: a pipe would never end.
fn contents(path: &Path) -> Option<Fingerprint> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let contents = fs::read(path).ok()?;
    (!contents.trim_ascii().is_empty()).then(|| Fingerprint::of(&contents))
}

/// Decides when the file is loaded.
#[derive(Default)]
struct Looks {
    /// What the look before has seen.
    before: Option<Fingerprint>,
    refused: Option<Refused>,
}

/// A file that was refused.
#[derive(Clone, Copy)]
struct Refused {
    file: Fingerprint,
    /// The looks from the last try to the next one.
    pause: u32,
    /// How many of them are left.
    left: u32,
}

impl Looks {
    /// The next look has seen this. `in_use`: what the file held when it was loaded. Returns what is to be loaded now.
    fn next(&mut self, seen: Option<Fingerprint>, in_use: Fingerprint) -> Option<Fingerprint> {
        let before = std::mem::replace(&mut self.before, seen);
        let seen = seen.filter(|_| seen == before)?;
        let is_due = match &mut self.refused {
            Some(refused) if refused.file == seen => {
                refused.left -= 1;
                refused.left == 0
            }
            // Also one that is as before: its reload says that all is well again.
            Some(_) => true,
            None => seen != in_use,
        };
        is_due.then_some(seen)
    }

    /// What `next` returned was loaded, or was refused.
    fn tried(&mut self, file: Fingerprint, is_loaded: bool) {
        let before = self.refused.filter(|refused| refused.file == file);
        let pause = before.map_or(1, |before| (before.pause * 2).min(LOOKS_BETWEEN_TRIES_MAX));
        self.refused = (!is_loaded).then_some(Refused { file, pause, left: pause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &str) -> Fingerprint {
        Fingerprint::of(contents.as_bytes())
    }

    #[test]
    fn a_file_is_loaded_once_two_looks_have_seen_the_same() {
        let (old, half, whole) = (file("old"), file("half"), file("whole"));
        let mut looks = Looks::default();
        assert_eq!(looks.next(Some(old), old), None);
        assert_eq!(looks.next(Some(old), old), None);
        assert_eq!(looks.next(Some(half), old), None);
        assert_eq!(looks.next(None, old), None, "it is gone");
        assert_eq!(looks.next(Some(half), old), None, "a look that saw nothing is between");
        assert_eq!(looks.next(Some(whole), old), None);
        assert_eq!(looks.next(Some(whole), old), Some(whole));
        looks.tried(whole, true);
        assert_eq!(looks.next(Some(whole), whole), None);
        // An operator's reload has loaded another one.
        assert_eq!(looks.next(Some(half), half), None);
        assert_eq!(looks.next(Some(half), half), None);
    }

    #[test]
    fn a_refused_file_is_tried_again_more_and_more_rarely_until_it_is_another_one() {
        let (old, bad, good) = (file("old"), file("bad"), file("good"));
        let mut looks = Looks::default();
        let mut tries = Vec::new();
        for look in 0..140 {
            if let Some(seen) = looks.next(Some(bad), old) {
                tries.push(look);
                looks.tried(seen, false);
            }
        }
        assert_eq!(tries, [1, 2, 4, 8, 16, 32, 64, 96, 128]);
        assert_eq!(looks.next(Some(good), old), None);
        assert_eq!(looks.next(Some(good), old), Some(good), "another one is tried at once");
        looks.tried(good, false);
        assert_eq!(looks.next(Some(old), old), None);
        assert_eq!(
            looks.next(Some(old), old),
            Some(old),
            "so that operators see that it is as before"
        );
        looks.tried(old, true);
        assert_eq!(looks.next(Some(old), old), None);
    }

    #[test]
    fn what_is_empty_or_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(contents(&path), None);
        fs::write(&path, " \n").unwrap();
        assert_eq!(contents(&path), None);
        fs::write(&path, "shards = 1\n").unwrap();
        assert_eq!(contents(&path), Some(file("shards = 1\n")));
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        // To open it would wait for a writer.
        assert_eq!(contents(&pipe), None);
    }
}
