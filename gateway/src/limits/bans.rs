//! Which prefixes are refused, and until when.
//!
//! Failed logins make bans, and so do operators. Each kind has a bound of its own: an attacker can't end an operator's ban by
//! being banned with many addresses.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use hashbrown::HashMap;

use super::prefix::Prefix;

/// Bans of a kind at a time. A further one ends the one that would end first.
pub const BANS_MAX: usize = 65_536;

/// Bans that have ended and are removed with one call, at most: shards wait meanwhile.
const REMOVED_MAX: usize = 256;

/// What made a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The limit of failed logins.
    Limit,
    /// An operator.
    Operator,
}

impl Maker {
    /// Its name where gateways share bans.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Operator => "operator",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Limit, Self::Operator].into_iter().find(|maker| maker.name() == name)
    }
}

/// Prefixes that are banned.
#[derive(Debug, Default)]
pub struct Bans {
    /// How many there are, without the lock: mostly there is none.
    count: AtomicUsize,
    tables: RwLock<[Table; 2]>,
}

#[derive(Debug, Default)]
struct Table {
    until_ms: HashMap<Prefix, u64>,
    by_end: BTreeSet<(u64, Prefix)>,
}

impl Bans {
    fn read<R>(&self, read: impl FnOnce(&[Table; 2]) -> R) -> R {
        read(&self.tables.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<R>(&self, now_ms: u64, change: impl FnOnce(&mut [Table; 2]) -> R) -> R {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.iter_mut().for_each(|table| table.remove_ended(now_ms));
        let result = change(&mut tables);
        self.count.store(tables.iter().map(|table| table.by_end.len()).sum(), Ordering::Release);
        result
    }

    /// How many there are, also of those that have ended and were not removed yet.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether one of these prefixes is banned.
    #[must_use]
    pub fn contain_any(&self, prefixes: [Prefix; 2], now_ms: u64) -> bool {
        if self.count() == 0 {
            return false;
        }
        let is_banned = |table: &Table| {
            let until_ms = |prefix| table.until_ms.get(prefix).copied().unwrap_or(0);
            prefixes.iter().any(|prefix| until_ms(prefix) > now_ms)
        };
        self.read(|tables| tables.iter().any(is_banned))
    }

    /// Removes some of the bans that have ended. Shards call it in their housekeeping, so that accepts ask no table of ended bans.
    pub fn remove_ended(&self, now_ms: u64) {
        if self.count() > 0 {
            self.change(now_ms, |_| ());
        }
    }

    /// Bans a prefix until then. A longer ban of the same maker stays. Returns whether another ban had to end for it.
    pub fn add(&self, prefix: Prefix, maker: Maker, until_ms: u64, now_ms: u64) -> bool {
        self.change(now_ms, |tables| {
            let table = &mut tables[maker as usize];
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
                table.remove_first();
            }
            is_full
        })
    }

    /// Ends a ban, of the limit or of an operator. Returns whether there was one.
    pub fn lift(&self, prefix: Prefix, now_ms: u64) -> bool {
        self.change(now_ms, |tables| {
            let lifted = tables.iter_mut().map(|table| table.lift(prefix, now_ms));
            lifted.fold(false, |any, one| any | one)
        })
    }

    /// At most `max` bans, and the end of each: those that end first come first.
    #[must_use]
    pub fn list(&self, max: usize, now_ms: u64) -> Vec<(Prefix, u64)> {
        let mut bans: Vec<_> = self.read(|tables| {
            let alive = |table: &Table| {
                let from = table.by_end.iter().filter(|(until_ms, _)| *until_ms > now_ms);
                from.take(max).map(|(until_ms, prefix)| (*prefix, *until_ms)).collect::<Vec<_>>()
            };
            tables.iter().flat_map(alive).collect()
        });
        bans.sort_unstable_by_key(|(_, until_ms)| *until_ms);
        bans.truncate(max);
        bans
    }
}

impl Table {
    fn remove_ended(&mut self, now_ms: u64) {
        for _ in 0..REMOVED_MAX {
            if self.by_end.first().is_none_or(|(until_ms, _)| *until_ms > now_ms) {
                return;
            }
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        if let Some((_, prefix)) = self.by_end.pop_first() {
            self.until_ms.remove(&prefix);
        }
    }

    fn lift(&mut self, prefix: Prefix, now_ms: u64) -> bool {
        let Some(until_ms) = self.until_ms.remove(&prefix) else { return false };
        self.by_end.remove(&(until_ms, prefix));
        until_ms > now_ms
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

    fn contains(bans: &Bans, prefix: Prefix, now_ms: u64) -> bool {
        bans.contain_any([host(999_999_999), prefix], now_ms)
    }

    #[test]
    fn a_ban_holds_until_its_end() {
        let bans = Bans::default();
        let add = |until_ms| bans.add(host(1), Maker::Limit, until_ms, 0);
        assert!(!contains(&bans, host(1), 0));
        assert!(!add(1_000));
        assert!(contains(&bans, host(1), 999) && !contains(&bans, host(2), 999));
        assert!(!add(500), "a shorter one");
        assert!(contains(&bans, host(1), 999));
        assert!(!add(2_000), "a longer one");
        assert!(contains(&bans, host(1), 1_999));
        assert_eq!(bans.list(9, 1_999), [(host(1), 2_000)]);
        assert!(!contains(&bans, host(1), 2_000));
        assert_eq!((bans.count(), bans.list(9, 2_000)), (1, vec![]));
        bans.remove_ended(2_000);
        assert_eq!(bans.count(), 0);
    }

    #[test]
    fn bans_of_both_makers_can_be_lifted() {
        let bans = Bans::default();
        for makers in [&[Maker::Limit][..], &[Maker::Operator], &[Maker::Limit, Maker::Operator]] {
            for maker in makers {
                assert!(!bans.add(host(1), *maker, 1_000, 0));
            }
            assert!(bans.lift(host(1), 0) && !bans.lift(host(1), 0));
            assert!(!contains(&bans, host(1), 0));
        }
    }

    #[test]
    fn there_are_no_more_than_the_bound_and_the_first_to_end_goes_but_none_of_an_operators() {
        let bans = Bans::default();
        bans.add(host(7_000_000), Maker::Operator, 10, 0);
        for number in 0..BANS_MAX {
            assert!(!bans.add(host(number), Maker::Limit, 1_000 + number as u64, 0));
        }
        assert!(bans.add(host(BANS_MAX), Maker::Limit, 5_000_000, 0));
        assert_eq!(bans.count(), BANS_MAX + 1);
        assert!(!contains(&bans, host(0), 0) && contains(&bans, host(1), 0));
        assert!(contains(&bans, host(BANS_MAX), 0) && contains(&bans, host(7_000_000), 0));
        // One call removes no more than some of those that have ended.
        bans.remove_ended(5_000_000);
        assert_eq!(bans.count(), BANS_MAX - REMOVED_MAX);
    }
}
