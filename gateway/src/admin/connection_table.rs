//! The table of open operators' connections, and which of them is closed when a new connection needs its slot.
//!
//! Descriptors are scarce: a peer that leaves connections to this server open must neither take them from clients nor
//! lock other operators out. So the table has [`CONNECTIONS_MAX`] slots.
//! When all are in use, a new one gets the slot of another connection, which is closed:
//!
//! - Connections that have not shown the token lose theirs first, in the order in which their protection ended.
//!   A new connection is protected for [`NEW_PROTECTED`], so its request is read even if others keep connecting.
//! - A request that the gateway works on protects its connection for [`WORK_PROTECTED`], with or without the token.
//! - A connection whose last answer is out is no longer protected.
//! - [`AUTHENTICATED_MAX`] connections that have shown the token keep their slots. One more takes the slot of
//!   the first among them that keeps the gateway waiting: for a body, for an answer to be read, for a request.
//!
//! So a new connection waits at most `NEW_PROTECTED / CONNECTIONS_MAX` for each connection before it in the kernel's
//! queue, as long as that is more than a connection costs to accept, answer and close. [`BACKLOG`] bounds the
//! queue such that the whole of it takes at most [`QUEUE_WAIT_MAX`], or 2.5 times as long while
//! [`AUTHENTICATED_MAX`] connections keep their slots.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{self, Instant};

use super::binding::BACKLOG;

/// Most open connections, without the one that waits for a slot. The gateway keeps 64 descriptors for other
/// things than clients, and needs a dozen of them elsewhere. More connections wait in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 40;

/// Most connections that keep their slots because they have shown the token. Newcomers share the others.
const AUTHENTICATED_MAX: usize = 24;

/// How long a new connection keeps its slot in any case, since its request may come a moment later. Older ones are
/// evicted before it.
const NEW_PROTECTED: Duration = Duration::from_millis(5);

/// How long a connection keeps its slot while the gateway works on its request. Most are answered sooner.
const WORK_PROTECTED: Duration = Duration::from_millis(100);

/// The longest wait of a new connection for those before it in the kernel's queue: half a usual probe's timeout.
const QUEUE_WAIT_MAX: Duration = Duration::from_millis(500);

const _: () = assert!(
    BACKLOG as u128 * NEW_PROTECTED.as_micros() / CONNECTIONS_MAX as u128
        <= QUEUE_WAIT_MAX.as_micros()
);

/// All open connections.
#[derive(Default)]
pub(super) struct ConnectionTable {
    entries: Mutex<Vec<Entry>>,
    /// A connection has ended, or has been answered. The accept loop waits for it.
    changed: Notify,
}

/// An open connection.
struct Entry {
    /// Increases from one connection to the next.
    number: u64,
    accepted: Instant,
    /// It has shown the token, and keeps its slot.
    authenticated: bool,
    /// Since when its request is complete and not answered.
    working: Option<Instant>,
    /// It has been answered at least once.
    answered: bool,
    /// Since when its last answer is out.
    closing: Option<Instant>,
    /// Ends it. `None`: it was evicted, and its task has not ended yet.
    evict: Option<oneshot::Sender<()>>,
}

/// Refers to a connection in the table. It does not keep the slot: see [`Slot`].
#[derive(Clone)]
pub(super) struct ConnectionHandle {
    table: Arc<ConnectionTable>,
    number: u64,
}

/// A slot in the table, in use until this is dropped.
pub(super) struct Slot(pub(super) ConnectionHandle);

impl ConnectionTable {
    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. Evicts another when no slot is free, and waits for it. The receiver resolves when this
    /// connection is evicted.
    pub(super) async fn add(self: &Arc<Self>, number: u64) -> (Slot, oneshot::Receiver<()>) {
        loop {
            let retry_at = {
                let mut entries = self.lock();
                if entries.len() < CONNECTIONS_MAX {
                    let (evict, evicted) = oneshot::channel();
                    entries.push(Entry::new(number, evict));
                    let table = Arc::clone(self);
                    return (Slot(ConnectionHandle { table, number }), evicted);
                }
                evict_one(&mut entries)
            };
            match retry_at {
                None => self.changed.notified().await,
                Some(at) => drop(time::timeout_at(at, self.changed.notified()).await),
            }
        }
    }

    /// Evicts a connection to get its descriptor, if one may be evicted now.
    pub(super) fn free_descriptor(&self) {
        let _retry_at = evict_one(&mut self.lock());
    }

    /// Waits until no connection is open.
    pub(super) async fn wait_until_empty(&self) {
        while !self.lock().is_empty() {
            self.changed.notified().await;
        }
    }
}

/// Evicts the connection whose protection ended first, among those without the token. One that the gateway works
/// on is evicted only where there is no other. Does nothing while an evicted connection is still there. Returns
/// when to try again, if no connection may be evicted now.
fn evict_one(entries: &mut [Entry]) -> Option<Instant> {
    if entries.iter().any(|entry| entry.evict.is_none()) {
        return None;
    }
    let candidates = entries.iter_mut().filter(|entry| !entry.authenticated);
    let first =
        candidates.min_by_key(|entry| (entry.working.is_some(), entry.protected_until()))?;
    let until = first.protected_until();
    if until > Instant::now() {
        return Some(until);
    }
    if let Some(evict) = first.evict.take() {
        // This fails if its task has just ended.
        let _ = evict.send(());
    }
    None
}

impl Entry {
    fn new(number: u64, evict: oneshot::Sender<()>) -> Self {
        Self {
            number,
            accepted: Instant::now(),
            authenticated: false,
            working: None,
            answered: false,
            closing: None,
            evict: Some(evict),
        }
    }

    fn protected_until(&self) -> Instant {
        let new = self.accepted + NEW_PROTECTED;
        match (self.working, self.closing) {
            (Some(since), _) => new.max(since + WORK_PROTECTED),
            (None, Some(since)) => new.min(since),
            (None, None) => new,
        }
    }
}

impl ConnectionHandle {
    /// The connection has shown the token and keeps its slot. When [`AUTHENTICATED_MAX`] others do, one of
    /// them loses its protection: the first that keeps the gateway waiting, or else the first that has been answered.
    pub(super) fn mark_authenticated(&self) {
        let mut entries = self.table.lock();
        let others = entries.iter().filter(|entry| entry.number != self.number);
        if others.filter(|entry| entry.authenticated).count() >= AUTHENTICATED_MAX {
            let may_lose = |entry: &&mut Entry| {
                entry.authenticated && (entry.working.is_none() || entry.answered)
            };
            let candidates = entries.iter_mut().filter(may_lose);
            let Some(first) = candidates.min_by_key(|entry| (entry.working, entry.number)) else {
                return;
            };
            first.authenticated = false;
        }
        drop(entries);
        self.update(|entry| entry.authenticated = true);
    }

    /// Sets whether the gateway works on the connection's request, which is complete.
    pub(super) fn set_working(&self, working: bool) {
        self.update(|entry| entry.working = working.then(Instant::now));
    }

    /// The connection's request has its answer. Returns whether another request may follow: after the token was
    /// shown. Without it a connection costs one request, so a queue of them takes a bounded time.
    pub(super) fn mark_answered(&self) -> bool {
        let mut stays = false;
        self.update(|entry| {
            (entry.working, entry.answered) = (None, true);
            stays = entry.authenticated;
        });
        self.table.changed.notify_one();
        stays
    }

    /// The connection's last answer is with the kernel. What follows is the peer's end.
    pub(super) fn mark_closing(&self) {
        self.update(|entry| {
            entry.closing = Some(Instant::now());
            // No further request comes on it, so it needs no slot.
            entry.authenticated = false;
        });
        self.table.changed.notify_one();
    }

    fn update(&self, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.table.lock();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.number == self.number) {
            change(entry);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let ConnectionHandle { table, number } = &self.0;
        table.lock().retain(|entry| entry.number != *number);
        table.changed.notify_one();
    }
}
