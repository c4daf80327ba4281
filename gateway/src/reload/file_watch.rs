//! Looks at the configuration's file, and reloads when it has changed, where `reload_on_change` is set.
//!
//! It compares contents, as it is done with certificates: a file that is replaced over a link, as orchestrators do it, is
//! seen too.

use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fs, io, thread};

use crossbeam::channel::{self, RecvTimeoutError, Sender};

use super::{Reloader, Trigger};

/// The time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

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
        // What the gateway has started with, unless it was changed since then.
        let mut seen = fs::read(&path).ok();
        thread::Builder::new().name("config-watch".into()).spawn(move || {
            while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(reloader) = Weak::upgrade(&reloader) else { return };
                let now = fs::read(&path).ok();
                let is_on = reloader.settings().config.reload_on_change;
                // A file that is gone is being replaced.
                if now.is_some() && now != seen {
                    seen = now;
                    if is_on {
                        // It has logged what came of it.
                        drop(reloader.reload(Trigger::File));
                    }
                }
            }
        })?;
        Ok(Some(Self { _stop: stop }))
    }
}
