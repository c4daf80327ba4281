//! How many connections are open, and which is closed for a new one.
//!
//! When `http.connections_max` connections are open, a new one gets the slot of one that keeps the gateway waiting: for its
//! PROXY header, its handshake, a request, or a body. A connection whose token is being verified counts as such a one: its token
//! may be forged. Among these, the connections that have not shown a valid token are closed first, and of them the one that was
//! accepted first; of the others the one that has waited longest. So no client can hold all slots without a token, not even
//! with requests that need none.
//!
//! A connection keeps its slot while the gateway works on its request otherwise, and for [`PROTECTED`]: after it was accepted,
//! and with a token also after each time that it begins to wait.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::metrics::{ACCEPT_PAUSES, ACCEPTED, CONNECTIONS};

/// How long a connection that waits keeps its slot in any case: its request may be on its way, over a network with some
/// hundred milliseconds of delay.
pub(super) const PROTECTED: Duration = Duration::from_secs(1);

/// All slots.
pub(super) struct Slots {
    open: Cell<usize>,
    max: usize,
    /// [`PROTECTED`]; tests use another.
    protected: Duration,
    next_number: Cell<u64>,
    /// The connections that keep the gateway waiting.
    waiting: RefCell<BTreeMap<Rank, Rc<Eviction>>>,
    /// Whether a connection that was evicted has not ended yet.
    is_evicting: Cell<bool>,
    /// A connection has ended, or keeps the gateway waiting.
    changed: Notify,
    gauge: Gauge,
    accepted: Counter,
    pauses: Counter,
}

/// The connection with the lowest rank is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    has_authenticated: bool,
    /// Since when it waits; without a token, since it was accepted.
    since: Instant,
    /// Increases from one connection to the next.
    number: u64,
}

/// Tells a connection's task that it has to end.
#[derive(Default)]
struct Eviction {
    is_ordered: Cell<bool>,
    ordered: Notify,
}

/// A connection's slot, in use until this is dropped.
pub(super) struct Slot {
    slots: Rc<Slots>,
    number: u64,
    accepted_at: Instant,
    has_authenticated: Cell<bool>,
    /// `None`: the gateway works on its request, or it was evicted.
    rank: Cell<Option<Rank>>,
    eviction: Rc<Eviction>,
}

impl Slots {
    /// `max`: how many may be open. `protected`: see [`PROTECTED`].
    pub(super) fn new(max: usize, protected: Duration) -> Rc<Self> {
        Rc::new(Self {
            open: Cell::new(0),
            max,
            protected,
            next_number: Cell::new(0),
            waiting: RefCell::default(),
            is_evicting: Cell::new(false),
            changed: Notify::new(),
            gauge: gauge!(CONNECTIONS),
            accepted: counter!(ACCEPTED),
            pauses: counter!(ACCEPT_PAUSES),
        })
    }

    /// Takes a slot. Waits for one where none is free, and evicts a connection if one may be evicted.
    pub(super) async fn take(self: &Rc<Self>) -> Slot {
        if self.open.get() >= self.max {
            self.pauses.increment(1);
        }
        loop {
            let changed = self.changed.notified();
            if self.open.get() < self.max {
                break;
            }
            match self.evict_one() {
                None => changed.await,
                Some(retry_at) => drop(timeout_at(retry_at, changed).await),
            }
        }
        self.open.set(self.open.get() + 1);
        self.gauge.increment(1.0);
        self.accepted.increment(1);
        let slot = Slot {
            slots: Rc::clone(self),
            number: self.next_number.replace(self.next_number.get() + 1),
            accepted_at: Instant::now(),
            has_authenticated: Cell::new(false),
            rank: Cell::new(None),
            eviction: Rc::default(),
        };
        slot.wait_for_peer();
        slot
    }

    /// Evicts a connection, if one may be evicted now and no other is about to end. Returns when to try again.
    fn evict_one(&self) -> Option<Instant> {
        if self.is_evicting.get() {
            return None;
        }
        let mut waiting = self.waiting.borrow_mut();
        let first = waiting.first_entry()?;
        let protected_until = first.key().since + self.protected;
        if protected_until > Instant::now() {
            return Some(protected_until);
        }
        let eviction = first.remove();
        eviction.is_ordered.set(true);
        eviction.ordered.notify_one();
        self.is_evicting.set(true);
        None
    }

    /// Waits until no connection is open.
    pub(super) async fn wait_until_empty(&self) {
        loop {
            let changed = self.changed.notified();
            if self.open.get() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Slot {
    /// Ends when this connection is evicted.
    pub(super) async fn evicted(&self) {
        self.eviction.ordered.notified().await;
    }

    /// The connection keeps the gateway waiting from now on, if it did not already.
    pub(super) fn wait_for_peer(&self) {
        if self.rank.get().is_some() || self.eviction.is_ordered.get() {
            return;
        }
        let (has_authenticated, number) = (self.has_authenticated.get(), self.number);
        let since = if has_authenticated { Instant::now() } else { self.accepted_at };
        let rank = Rank { has_authenticated, since, number };
        self.rank.set(Some(rank));
        self.slots.waiting.borrow_mut().insert(rank, Rc::clone(&self.eviction));
        self.slots.changed.notify_waiters();
    }

    /// The gateway works on the connection's request from now on.
    pub(super) fn work(&self) {
        if let Some(rank) = self.rank.take() {
            self.slots.waiting.borrow_mut().remove(&rank);
        }
    }

    /// Waits for this, which verifies the token of the connection's request. Meanwhile the connection may be evicted.
    pub(super) async fn while_evictable<T>(&self, verification: impl Future<Output = T>) -> T {
        self.wait_for_peer();
        let verified = verification.await;
        self.work();
        verified
    }

    /// The connection has shown a valid token. Call it while the gateway works on its request.
    pub(super) fn mark_authenticated(&self) {
        self.has_authenticated.set(true);
    }

    pub(super) fn has_authenticated(&self) -> bool {
        self.has_authenticated.get()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.work();
        let slots = &self.slots;
        if self.eviction.is_ordered.get() {
            slots.is_evicting.set(false);
        }
        slots.open.set(slots.open.get() - 1);
        slots.gauge.decrement(1.0);
        slots.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn run(test: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap().block_on(test);
    }

    /// Polls a future once.
    fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    /// Which of these connections is evicted for a new one.
    fn evicted(slots: &Rc<Slots>, open: &[&Slot]) -> Option<usize> {
        assert!(now_or_never(slots.take()).is_none(), "no slot is free");
        open.iter().position(|slot| now_or_never(slot.evicted()).is_some())
    }

    #[test]
    fn a_new_connection_gets_the_slot_of_the_oldest_one_without_a_token_whatever_that_has_asked_for()
     {
        run(async {
            let slots = Slots::new(4, Duration::ZERO);
            let [first, second, third, fourth] =
                [slots.take().await, slots.take().await, slots.take().await, slots.take().await];
            // The first one shows its token, the second one's request waits for a backend, the third one is answered.
            first.work();
            first.mark_authenticated();
            first.wait_for_peer();
            second.work();
            third.work();
            third.wait_for_peer();
            let all = [&first, &second, &third, &fourth];
            assert_eq!(evicted(&slots, &all), Some(2));
            assert_eq!(evicted(&slots, &all), None, "one connection ends for one that comes");
            drop(third);
            let fifth = now_or_never(slots.take()).expect("a slot is free");
            fifth.work();
            let all = [&first, &second, &fourth, &fifth];
            assert_eq!(evicted(&slots, &all), Some(2));
            drop(fourth);
            let sixth = now_or_never(slots.take()).expect("a slot is free");
            sixth.work();
            let all = [&first, &second, &fifth, &sixth];
            assert_eq!(evicted(&slots, &all), Some(0), "it is the only one that waits");
            drop(first);
            drop([second, fifth, sixth]);
            assert_eq!((slots.open.get(), slots.waiting.borrow().len()), (0, 0));
        });
    }

    #[test]
    fn a_connection_that_has_just_begun_to_wait_keeps_its_slot() {
        run(async {
            let slots = Slots::new(1, LONG);
            let open = slots.take().await;
            assert_eq!(evicted(&slots, &[&open]), None);
        });
    }

    #[test]
    fn a_connection_may_be_evicted_while_its_token_is_verified_and_not_after() {
        run(async {
            let slots = Slots::new(2, Duration::ZERO);
            let [first, second] = [slots.take().await, slots.take().await];
            first.work();
            second.work();
            assert_eq!(first.while_evictable(std::future::ready(7)).await, 7);
            assert_eq!(evicted(&slots, &[&first, &second]), None);
            let mut verification = pin!(second.while_evictable(std::future::pending::<()>()));
            let mut context = Context::from_waker(Waker::noop());
            assert!(verification.as_mut().poll(&mut context).is_pending());
            assert_eq!(evicted(&slots, &[&first, &second]), Some(1));
        });
    }

    #[test]
    fn a_new_connection_waits_until_another_one_keeps_the_gateway_waiting() {
        run(async {
            let slots = Slots::new(1, Duration::ZERO);
            let open = slots.take().await;
            open.work();
            let mut next = pin!(slots.take());
            let mut poll = || next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(poll().is_pending() && now_or_never(open.evicted()).is_none());
            open.wait_for_peer();
            assert!(poll().is_pending() && now_or_never(open.evicted()).is_some());
            drop(open);
            assert!(poll().is_ready());
        });
    }
}
