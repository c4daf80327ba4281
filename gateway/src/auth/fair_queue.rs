//! A queue that is fair between clients' addresses: stochastic fairness queueing (McKenney, INFOCOM 1990).
//!
//! A keyed hash puts each address into one of 1,024 buckets. Buckets take turns, and a turn serves one entry. So an attacker
//! with few addresses delays only itself, and clients whose addresses share its buckets. An exact queue for each address
//! would need memory for each, and a bound on it that the attacker could fill.
//!
//! The queue has one bound, in memory. A bucket may fill it while nobody else needs it, as where all clients come through one
//! balancer. Then an entry of another bucket takes the place of the newest one of the longest bucket. The longest bucket is the
//! one with most entries, and not the one that needs most memory: a turn serves one entry, so a bucket with one large entry
//! takes no more of the threads' time than one with a small entry.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// A flood from one address delays the clients whose hash is in the same bucket: one in this many.
const BUCKETS: usize = 1024;

/// After this time new entries are spread by another key, so that no two addresses share a bucket for longer.
const KEY_LIFETIME: Duration = Duration::from_secs(10);

/// Entries for which an empty bucket keeps memory.
const KEPT_ENTRIES: usize = 8;

/// What the queue distinguishes clients by: a hash of the address, of an IPv6 address its network of 64 bits, as one
/// subscriber has all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow(u32);

/// Makes flows. Its key is random, so nobody can choose addresses that collide.
#[derive(Clone, Debug, Default)]
pub(super) struct FlowHasher(RandomState);

impl FlowHasher {
    /// The flow of an address.
    #[must_use]
    pub(super) fn flow(&self, address: IpAddr) -> Flow {
        let subscriber = match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        };
        #[expect(clippy::cast_possible_truncation, reason = "a shorter hash")]
        Flow(self.0.hash_one(subscriber) as u32)
    }
}

/// The outcome of a push.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed<T> {
    /// The entry waits. These lost their places to it; mostly none.
    Waits {
        /// The entries, newest first.
        displaced: Vec<T>,
    },
    /// The queue is full, and has too few entries of buckets that are longer than the entry's.
    Refused(T),
}

/// The entries of one bucket, with their sizes, the oldest first.
#[derive(Debug)]
struct Bucket<T> {
    entries: VecDeque<(u32, T)>,
    /// It is in the list of buckets that take turns. It may be empty there.
    is_listed: bool,
}

/// How long a bucket is. Of two with equally many entries, the larger one is the longer one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Length {
    entries: u32,
    size: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    buckets: Vec<Bucket<T>>,
    /// The length of each bucket: apart from the buckets, so that the longest is found in few cache lines.
    lengths: Vec<Length>,
    /// Buckets that take turns: each at most once.
    turns: VecDeque<usize>,
    /// The size of all entries: at most `size_max`.
    size: u32,
    size_max: u32,
    len: usize,
    key: RandomState,
    /// When the key was drawn; `None`: nothing has been added yet.
    keyed_at: Option<Instant>,
}

impl<T> FairQueue<T> {
    /// An empty queue. `size_max`: the most that the sizes of its entries may add up to, at least 1.
    pub(super) fn new(size_max: u32) -> Self {
        let bucket = || Bucket { entries: VecDeque::new(), is_listed: false };
        Self {
            buckets: (0..BUCKETS).map(|_| bucket()).collect(),
            lengths: vec![Length::default(); BUCKETS],
            turns: VecDeque::new(),
            size: 0,
            size_max: size_max.max(1),
            len: 0,
            key: RandomState::new(),
            keyed_at: None,
        }
    }

    /// Entries that wait.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Adds an entry of this size. One that is larger than the bound counts as much as the bound.
    pub(super) fn push(&mut self, flow: Flow, size: u32, entry: T, now: Instant) -> Pushed<T> {
        let size = size.clamp(1, self.size_max);
        let index = self.bucket_of(flow, now);
        let Some(displaced) = self.make_room(index, size) else { return Pushed::Refused(entry) };
        let bucket = &mut self.buckets[index];
        bucket.entries.push_back((size, entry));
        if !bucket.is_listed {
            bucket.is_listed = true;
            self.turns.push_back(index);
        }
        self.count_in(index, size);
        Pushed::Waits { displaced }
    }

    /// Takes the newest entries of longer buckets than this one until an entry of this size has room. Takes none if they are
    /// too few.
    fn make_room(&mut self, index: usize, size: u32) -> Option<Vec<T>> {
        let mut taken: Vec<(usize, u32, T)> = Vec::new();
        while self.size + size > self.size_max {
            let longest = self.longest_other(index);
            let is_longer = self.lengths[longest].entries > self.lengths[index].entries;
            let Some((size, entry)) = is_longer.then(|| self.take_newest(longest)).flatten() else {
                for (index, size, entry) in taken.into_iter().rev() {
                    self.buckets[index].entries.push_back((size, entry));
                    self.count_in(index, size);
                }
                return None;
            };
            taken.push((longest, size, entry));
        }
        Some(taken.into_iter().map(|(_, _, entry)| entry).collect())
    }

    /// The oldest entry of the bucket whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        while let Some(index) = self.turns.pop_front() {
            let bucket = &mut self.buckets[index];
            let oldest = bucket.entries.pop_front();
            bucket.is_listed = !bucket.entries.is_empty();
            if bucket.is_listed {
                self.turns.push_back(index);
            } else if bucket.entries.capacity() > KEPT_ENTRIES {
                bucket.entries = VecDeque::new();
            }
            // It is empty if it lost its last entry to another bucket.
            if let Some((size, entry)) = oldest {
                self.count_out(index, size);
                return Some(entry);
            }
        }
        None
    }

    fn take_newest(&mut self, index: usize) -> Option<(u32, T)> {
        let (size, entry) = self.buckets[index].entries.pop_back()?;
        self.count_out(index, size);
        Some((size, entry))
    }

    fn count_in(&mut self, index: usize, size: u32) {
        let length = &mut self.lengths[index];
        (length.entries, length.size) = (length.entries + 1, length.size + size);
        self.size += size;
        self.len += 1;
    }

    fn count_out(&mut self, index: usize, size: u32) {
        let length = &mut self.lengths[index];
        (length.entries, length.size) = (length.entries - 1, length.size - size);
        self.size -= size;
        self.len -= 1;
    }

    /// The longest bucket but this one.
    fn longest_other(&self, index: usize) -> usize {
        let others = (0..BUCKETS).filter(|other| *other != index);
        others.max_by_key(|other| self.lengths[*other]).unwrap_or_default()
    }

    fn bucket_of(&mut self, flow: Flow, now: Instant) -> usize {
        let keyed_at = *self.keyed_at.get_or_insert(now);
        if now.saturating_duration_since(keyed_at) >= KEY_LIFETIME {
            (self.key, self.keyed_at) = (RandomState::new(), Some(now));
        }
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is small")]
        let index = (self.key.hash_one(flow) % BUCKETS as u64) as usize;
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Queue(FairQueue<u32>, Instant);

    impl Queue {
        fn new(size_max: u32) -> Self {
            Self(FairQueue::new(size_max), Instant::now())
        }

        fn push(&mut self, flow: u32, size: u32, entry: u32) -> Pushed<u32> {
            self.0.push(Flow(flow), size, entry, self.1)
        }

        /// A flow whose bucket none of `others` has.
        fn flow_beside(&mut self, others: &[u32]) -> u32 {
            let now = self.1;
            let taken: Vec<_> =
                others.iter().map(|flow| self.0.bucket_of(Flow(*flow), now)).collect();
            (1_000..).find(|flow| !taken.contains(&self.0.bucket_of(Flow(*flow), now))).unwrap()
        }

        fn all(&mut self) -> Vec<u32> {
            std::iter::from_fn(|| self.0.pop()).collect()
        }
    }

    const WAITS: Pushed<u32> = Pushed::Waits { displaced: Vec::new() };

    #[test]
    fn an_address_with_many_entries_delays_another_one_by_one_turn() {
        let mut queue = Queue::new(1_000);
        let honest = queue.flow_beside(&[1]);
        (0..500).for_each(|entry| assert_eq!(queue.push(1, 1, entry), WAITS));
        assert_eq!(queue.push(honest, 1, 9_000), WAITS);
        assert_eq!(queue.push(honest, 1, 9_001), WAITS);
        let served = queue.all();
        assert_eq!(&served[..5], [0, 9_000, 1, 9_001, 2]);
        assert_eq!(served.len(), 502);
        assert_eq!((queue.0.len(), queue.0.size), (0, 0));
        assert!(queue.0.buckets.iter().all(|bucket| bucket.entries.capacity() <= KEPT_ENTRIES));
    }

    #[test]
    fn one_address_may_fill_the_queue_and_others_displace_its_newest_entries() {
        let mut queue = Queue::new(4);
        let second = queue.flow_beside(&[1]);
        let third = queue.flow_beside(&[1, second]);
        (0..4).for_each(|entry| assert_eq!(queue.push(1, 1, entry), WAITS));
        assert_eq!(queue.push(1, 1, 4), Pushed::Refused(4));
        assert_eq!(queue.push(second, 1, 10), Pushed::Waits { displaced: vec![3] });
        // Each has its share then, and keeps it: 3 and 1, and not more than 2 and 2.
        assert_eq!(queue.push(second, 1, 11), Pushed::Waits { displaced: vec![2] });
        assert_eq!(queue.push(second, 1, 12), Pushed::Refused(12));
        assert_eq!(queue.push(1, 1, 5), Pushed::Refused(5));
        // A large entry takes as much as it needs: one from each of the longest.
        let Pushed::Waits { displaced } = queue.push(third, 2, 20) else { panic!("it has room") };
        assert_eq!(
            (displaced.len(), displaced.contains(&1), displaced.contains(&11)),
            (2, true, true)
        );
        assert_eq!(queue.all(), [0, 10, 20]);
    }

    #[test]
    fn entries_count_and_not_their_sizes() {
        // As many buckets as are needed to fill the queue with 8 KiB each, in entries of 1 KiB.
        let mut queue = Queue::new(64);
        let mut hostile = vec![1];
        while hostile.len() < 8 {
            hostile.push(queue.flow_beside(&hostile));
        }
        for flow in &hostile {
            (0..8).for_each(|entry| assert_eq!(queue.push(*flow, 1, entry), WAITS));
        }
        // A client that resumes rooms has one entry of 8 KiB. It takes one entry of each.
        let honest = queue.flow_beside(&hostile);
        assert_eq!(queue.push(honest, 8, 100), Pushed::Waits { displaced: vec![7; 8] });
        // Its entry is the largest, and keeps its place.
        for flow in &hostile {
            assert_eq!(queue.push(*flow, 1, 8), Pushed::Refused(8));
        }
        // Of buckets with equally many entries, the largest loses its newest.
        let mut queue = Queue::new(10);
        assert_eq!(queue.push(hostile[0], 8, 0), WAITS);
        assert_eq!(queue.push(honest, 2, 1), WAITS);
        assert_eq!(queue.push(hostile[1], 2, 2), Pushed::Waits { displaced: vec![0] });
        assert_eq!((queue.0.size, queue.0.len()), (4, 2));
    }

    #[test]
    fn an_entry_for_which_too_few_can_lose_their_places_displaces_none() {
        let mut queue = Queue::new(4);
        let second = queue.flow_beside(&[1]);
        (0..3).for_each(|entry| assert_eq!(queue.push(1, 1, entry), WAITS));
        assert_eq!(queue.push(second, 1, 10), WAITS);
        // Two of the first bucket could make room for 2, and not for 4.
        assert_eq!(queue.push(second, 4, 11), Pushed::Refused(11));
        assert_eq!((queue.0.size, queue.0.len()), (4, 4));
        assert_eq!(queue.all(), [0, 10, 1, 2]);
        assert_eq!((queue.0.size, queue.0.len()), (0, 0));
        assert!(queue.0.lengths.iter().all(|length| *length == Length::default()));
    }

    #[test]
    fn an_entry_larger_than_the_bound_waits_alone_and_a_displaced_bucket_returns() {
        let mut queue = Queue::new(3);
        let second = queue.flow_beside(&[1]);
        assert_eq!(queue.push(1, 100, 0), WAITS);
        assert_eq!(queue.push(second, 1, 10), Pushed::Waits { displaced: vec![0] });
        // Its bucket is in the list of turns, though it is empty.
        assert_eq!(queue.push(1, 1, 1), WAITS);
        assert_eq!(queue.push(1, 1, 2), WAITS);
        assert_eq!(queue.all(), [1, 10, 2]);
        assert_eq!(queue.push(1, 1, 3), WAITS);
        assert_eq!(queue.all(), [3]);
    }

    #[test]
    fn addresses_that_share_a_bucket_part_when_the_key_changes() {
        let mut queue = Queue::new(1_000);
        let now = queue.1;
        let of = |queue: &mut Queue, flow, now| queue.0.bucket_of(Flow(flow), now);
        let first = of(&mut queue, 1, now);
        let shared: Vec<u32> =
            (2..20_000).filter(|flow| of(&mut queue, *flow, now) == first).collect();
        assert!(shared.len() > 1, "some of 20,000 addresses share each of 1,024 buckets");
        let later = now + KEY_LIFETIME;
        let first = of(&mut queue, 1, later);
        let still = shared.iter().filter(|flow| of(&mut queue, **flow, later) == first).count();
        assert!(still < shared.len(), "the same addresses would share a bucket for ever");
    }

    #[test]
    fn a_network_of_64_bits_is_one_client_and_so_is_an_address_in_either_form() {
        let hasher = FlowHasher::default();
        let flow = |text: &str| hasher.flow(text.parse().unwrap());
        assert_eq!(flow("2001:db8:1:2::1"), flow("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(flow("2001:db8:1:2::1"), flow("2001:db8:1:3::1"));
        assert_ne!(flow("10.0.0.1"), flow("10.0.0.2"));
        assert_eq!(flow("::ffff:10.0.0.1"), flow("10.0.0.1"));
    }
}
