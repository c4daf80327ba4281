//! Passes over the tokens of all sessions: which shard lists its next page, and when.

/// Time between two pages of a shard, in milliseconds. A page is of 1,000 slots: a pass over 100,000 takes 10 s.
const PAGE_MS: u64 = 100;

/// No page is asked for while this number of tokens wait to be checked.
const WAITING_MAX: usize = 20_000;

/// Time between a doubt and the pass that ends it, in milliseconds: several doubts come together.
const DOUBT_MS: u64 = 1_000;

/// Where the pass is at one shard.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// At its end.
    #[default]
    Done,
    /// The shard is to list its slots from `from` on, not before `at_ms`.
    Next { from: u32, at_ms: u64 },
    /// The shard was asked for the page from this slot on.
    Asked { from: u32 },
}

/// See the [module](self).
#[derive(Debug)]
pub struct Walk {
    places: Vec<Place>,
    recheck_ms: u64,
    /// A revocation may have been missed: a pass has to start, after the one that is under way.
    has_doubt: bool,
    /// When the last pass started.
    started_ms: u64,
    pages: Vec<(u16, u32)>,
}

impl Walk {
    /// A pass starts every `recheck_ms`, and after a doubt.
    #[must_use]
    pub fn new(shards: u16, recheck_ms: u64) -> Self {
        let places = vec![Place::Done; usize::from(shards)];
        Self { places, recheck_ms, has_doubt: false, started_ms: 0, pages: Vec::new() }
    }

    /// A revocation may have been missed.
    pub const fn on_doubt(&mut self) {
        self.has_doubt = true;
    }

    /// Ends the pass. The next one starts when there is a connection.
    pub fn stop(&mut self) {
        self.places.fill(Place::Done);
        self.pages.clear();
        self.has_doubt = true;
    }

    /// A shard has listed a page. `false`: it belongs to a pass that was ended.
    pub fn on_page(&mut self, shard: u16, from: u32, next: Option<u32>, now_ms: u64) -> bool {
        let place = self.places.get_mut(usize::from(shard));
        let is_it = |place: &&mut Place| matches!(place, Place::Asked { from: at } if *at == from);
        let Some(place) = place.filter(is_it) else { return false };
        let at_ms = now_ms + PAGE_MS;
        *place = next.map_or(Place::Done, |from| Place::Next { from, at_ms });
        true
    }

    /// Starts a pass, and asks for pages. `is_heard`: all revocations are heard. `waiting`: tokens that wait to be checked.
    pub fn tick(&mut self, is_heard: bool, waiting: usize, now_ms: u64) {
        if !is_heard {
            return;
        }
        // After a doubt the pass under way goes on to its end, so that doubts which keep coming can't keep it at its start.
        let is_done = self.places.iter().all(|place| matches!(place, Place::Done));
        let pause_ms = if self.has_doubt { DOUBT_MS } else { self.recheck_ms };
        let is_due = is_done && self.started_ms + pause_ms.min(self.recheck_ms) <= now_ms;
        if is_due {
            (self.started_ms, self.has_doubt) = (now_ms, false);
            self.places.fill(Place::Next { from: 0, at_ms: now_ms });
        }
        if waiting >= WAITING_MAX {
            return;
        }
        for (shard, place) in (0..).zip(&mut self.places) {
            if let Place::Next { from, at_ms } = *place
                && at_ms <= now_ms
            {
                self.pages.push((shard, from));
                *place = Place::Asked { from };
            }
        }
    }

    /// The next page to be asked for: of this shard, from this slot on.
    pub fn next_page(&mut self) -> Option<(u16, u32)> {
        self.pages.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(walk: &mut Walk) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| walk.next_page()).collect()
    }

    #[test]
    fn no_page_is_asked_for_while_many_tokens_wait() {
        let mut walk = Walk::new(2, 60_000);
        walk.on_doubt();
        walk.tick(false, 0, 1_000);
        assert_eq!(pages(&mut walk), [], "revocations are not heard yet");
        walk.tick(true, 0, 1_000);
        assert_eq!(pages(&mut walk), [(1, 0), (0, 0)]);
        assert!(walk.on_page(0, 0, Some(1_000), 1_010) && walk.on_page(1, 0, None, 1_010));
        walk.tick(true, WAITING_MAX, 2_000);
        assert_eq!(pages(&mut walk), []);
        walk.tick(true, WAITING_MAX - 1, 2_010);
        assert_eq!(pages(&mut walk), [(0, 1_000)]);
    }

    #[test]
    fn a_page_that_was_not_asked_for_is_ignored() {
        let mut walk = Walk::new(1, 60_000);
        walk.on_doubt();
        walk.tick(true, 0, 1_000);
        assert_eq!(pages(&mut walk), [(0, 0)]);
        assert!(walk.on_page(0, 0, Some(1_000), 1_000));
        walk.tick(true, 0, 1_100);
        // The connection is lost and made again: the page that was asked for last comes late.
        walk.stop();
        walk.tick(true, 0, 2_500);
        assert_eq!(pages(&mut walk), [(0, 0)]);
        assert!(!walk.on_page(0, 1_000, None, 2_510) && !walk.on_page(9, 0, None, 2_510));
        assert!(walk.on_page(0, 0, None, 2_520) && !walk.on_page(0, 0, None, 2_530));
    }
}
