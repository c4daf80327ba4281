//! Who is still at work on a command: shared by everyone it was passed to, done when the last drops it.
//!
//! A [`Receipt`] counts the connections that a push went to and holds the command's place in the
//! [`Gate`]. So the bound on commands under way covers all shards that a command visits, and "went to
//! N connections" is exact.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_backend::PushError;
use tokio::sync::oneshot;

/// The bound on commands under way, in number and in bytes.
#[derive(Debug)]
pub struct Gate {
    commands: AtomicUsize,
    bytes: AtomicUsize,
    commands_max: usize,
    bytes_max: usize,
    refused: AtomicU64,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub const fn new(commands_max: usize, bytes_max: usize) -> Self {
        Self {
            commands: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            commands_max,
            bytes_max,
            refused: AtomicU64::new(0),
        }
    }

    /// Lets a command of this many bytes in. Where nothing else is under way, any size may.
    ///
    /// # Errors
    /// [`PushError::Overloaded`].
    pub fn enter(
        self: &Arc<Self>,
        bytes: usize,
        reply: Option<oneshot::Sender<u64>>,
    ) -> Result<Arc<Receipt>, PushError> {
        let commands = self.commands.fetch_add(1, Ordering::Relaxed);
        let under_way = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if commands > 0 && (commands >= self.commands_max || under_way + bytes > self.bytes_max) {
            self.leave(bytes);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(PushError::Overloaded);
        }
        let gate = Arc::clone(self);
        Ok(Arc::new(Receipt { connections: AtomicU64::new(0), bytes, gate, reply: reply.into() }))
    }

    /// Commands under way.
    #[must_use]
    pub fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }

    /// Whether more than half of it is taken: what only waits for company should go.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.commands.load(Ordering::Relaxed) > self.commands_max / 2
            || self.bytes.load(Ordering::Relaxed) > self.bytes_max / 2
    }

    /// Commands refused since the last time this was asked.
    pub fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }

    fn leave(&self, bytes: usize) {
        self.commands.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One command's place in the gate. See the [module](self).
#[derive(Debug)]
pub struct Receipt {
    connections: AtomicU64,
    bytes: usize,
    gate: Arc<Gate>,
    reply: Mutex<Option<oneshot::Sender<u64>>>,
}

impl Receipt {
    /// Adds connections that the command went to.
    pub fn add(&self, connections: usize) {
        self.connections.fetch_add(connections as u64, Ordering::Relaxed);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
        let reply = self.reply.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reply) = reply {
            // Nobody waits any longer when this fails.
            let _ = reply.send(*self.connections.get_mut());
        }
    }
}

/// An answer that several shards add to; it is sent when the last of them is done.
#[derive(Debug)]
pub struct Gather<T> {
    inner: Mutex<Option<(T, oneshot::Sender<T>)>>,
}

impl<T> Gather<T> {
    /// Starts with what is known.
    #[must_use]
    pub fn new(known: T, reply: oneshot::Sender<T>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Some((known, reply))) })
    }

    /// Adds to it.
    pub fn add(&self, add: impl FnOnce(&mut T)) {
        if let Some((known, _)) = self.inner.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            add(known);
        }
    }
}

impl<T> Drop for Gather<T> {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((known, reply)) = inner {
            drop(reply.send(known));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_held_until_the_last_shard_is_done() {
        let gate = Arc::new(Gate::new(2, 100));
        let (reply, mut answer) = oneshot::channel();
        let first = gate.enter(10, Some(reply)).unwrap();
        let passed_on = Arc::clone(&first);
        first.add(2);
        drop(first);
        assert!(answer.try_recv().is_err());
        assert!(!gate.is_crowded());
        let _second = gate.enter(90, None).unwrap();
        assert!(gate.is_crowded());
        assert_eq!(gate.enter(0, None).unwrap_err(), PushError::Overloaded);
        assert_eq!(gate.take_refused(), 1);
        passed_on.add(1);
        drop(passed_on);
        assert_eq!(answer.try_recv(), Ok(3));
        assert_eq!(gate.enter(11, None).unwrap_err(), PushError::Overloaded, "too many bytes");
        assert!(gate.enter(10, None).is_ok());
    }

    #[test]
    fn a_large_one_goes_alone() {
        let gate = Arc::new(Gate::new(2, 100));
        assert!(gate.enter(5000, None).is_ok());
    }
}
