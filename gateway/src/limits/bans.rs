//! Who is refused until when.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use super::prefix::Prefix;

/// Bans at a time. A further one ends the one that would end first.
pub const BANS_MAX: usize = 65_536;

/// Prefixes that are banned.
#[derive(Debug, Default)]
pub struct Bans {
    /// How many there are, without the lock: mostly there is none.
    count: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    until_ms: HashMap<Prefix, u64>,
    by_end: BTreeSet<(u64, Prefix)>,
}

impl Bans {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Table) -> R) -> R {
        let mut table = self.table();
        let result = change(&mut table);
        self.count.store(table.by_end.len(), Ordering::Release);
        result
    }

    /// How many there are, also of those that have ended and that nobody has asked for since.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether a prefix is banned.
    #[must_use]
    pub fn contains(&self, prefix: Prefix, now_ms: u64) -> bool {
        self.count() > 0
            && self.change(|table| {
                table.end_until(now_ms);
                table.until_ms.contains_key(&prefix)
            })
    }

    /// Bans a prefix until then. A longer ban stays. Returns whether another ban had to end for it.
    pub fn add(&self, prefix: Prefix, until_ms: u64) -> bool {
        self.change(|table| {
            let before = table.until_ms.get(&prefix).copied();
            if before.is_some_and(|before| before >= until_ms) {
                return false;
            }
            if let Some(before) = before {
                table.by_end.remove(&(before, prefix));
            }
            table.until_ms.insert(prefix, until_ms);
            table.by_end.insert((until_ms, prefix));
            let is_full = table.by_end.len() > BANS_MAX;
            if is_full {
                table.end_first();
            }
            is_full
        })
    }

    /// Ends a ban. Returns whether there was one.
    pub fn lift(&self, prefix: Prefix) -> bool {
        self.change(|table| {
            let until_ms = table.until_ms.remove(&prefix);
            until_ms.is_some_and(|until_ms| table.by_end.remove(&(until_ms, prefix)))
        })
    }

    /// At most `max` bans, and the end of each: those that end first come first.
    #[must_use]
    pub fn list(&self, max: usize, now_ms: u64) -> Vec<(Prefix, u64)> {
        self.change(|table| {
            table.end_until(now_ms);
            table.by_end.iter().take(max).map(|(until_ms, prefix)| (*prefix, *until_ms)).collect()
        })
    }
}

impl Table {
    fn end_until(&mut self, now_ms: u64) {
        while self.by_end.first().is_some_and(|(until_ms, _)| *until_ms <= now_ms) {
            self.end_first();
        }
    }

    fn end_first(&mut self) {
        if let Some((_, prefix)) = self.by_end.pop_first() {
            self.until_ms.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::limits::prefix::Width;

    fn host(number: usize) -> Prefix {
        let number = u32::try_from(number).unwrap();
        Prefix::new(Ipv4Addr::from_bits(number).into(), Width::Host)
    }

    #[test]
    fn a_ban_holds_until_its_end() {
        let bans = Bans::default();
        assert!(!bans.contains(host(1), 0));
        assert!(!bans.add(host(1), 1_000));
        assert!(bans.contains(host(1), 999) && !bans.contains(host(2), 999));
        assert!(!bans.add(host(1), 500), "a shorter one");
        assert!(bans.contains(host(1), 999));
        assert!(!bans.add(host(1), 2_000), "a longer one");
        assert!(bans.contains(host(1), 1_999));
        assert_eq!(bans.list(9, 1_999), [(host(1), 2_000)]);
        assert!(!bans.contains(host(1), 2_000));
        assert_eq!((bans.count(), bans.list(9, 2_000)), (0, vec![]));
    }

    #[test]
    fn a_ban_can_be_lifted() {
        let bans = Bans::default();
        bans.add(host(1), 1_000);
        assert!(bans.lift(host(1)) && !bans.lift(host(1)));
        assert!(!bans.contains(host(1), 0));
    }

    #[test]
    fn there_are_no_more_than_the_bound_and_the_first_to_end_goes() {
        let bans = Bans::default();
        for number in 0..BANS_MAX {
            assert!(!bans.add(host(number), 1_000 + number as u64));
        }
        assert!(bans.add(host(BANS_MAX), 5_000_000));
        assert_eq!(bans.count(), BANS_MAX);
        assert!(!bans.contains(host(0), 0) && bans.contains(host(1), 0));
        assert!(bans.contains(host(BANS_MAX), 0));
    }
}
