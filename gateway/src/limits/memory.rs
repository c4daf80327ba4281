//! The memory budget of the process: what clients can make it hold, counted over all shards, and what goes first when it is
//! nearly used.
//!
//! Each shard reports its part at the end of a turn in which it has changed, and reads the common level once a turn: so no
//! frame waits for another thread. The budget counts bytes of frames, pushes and requests. It does not count connections, code,
//! or what the allocator keeps: those have bounds of their own, or none is needed.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use metrics::{Gauge, gauge};

/// The metrics: name, labels and help text.
pub const METRICS: [(&str, &str, &str); 2] = [
    (
        "tidegate_memory_level",
        "",
        "What the memory budget (limits.memory_bytes_max) demands: 0 nothing, 1 merge windows and idle logs end, 2 new requests are refused too, 3 accepting is paused too.",
    ),
    (
        "tidegate_memory_counted_bytes",
        "part",
        "Bytes that count against limits.memory_bytes_max, by part: inbound, outbound, logs, calls. 0 where there is no budget.",
    ),
];

/// The parts of [`Usage`], as labels.
const PARTS: [&str; 4] = ["inbound", "outbound", "logs", "calls"];

/// Which part of the budget is used when a level begins, in hundredths. It ends [`HYSTERESIS`] lower.
const BEGINS: [usize; 3] = [75, 85, 95];

const HYSTERESIS: usize = 5;

/// What the use of the budget demands. Each level demands also what those below it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryLevel {
    /// Nothing.
    #[default]
    Normal,
    /// Merge windows end early, and rooms without members close at once.
    Trim,
    /// New requests are answered with 104.
    Shed,
    /// No connection is accepted.
    Full,
}

impl MemoryLevel {
    const ALL: [Self; 4] = [Self::Normal, Self::Trim, Self::Shed, Self::Full];

    /// The level at `bytes` of a budget, if it was `self` before.
    fn next(self, bytes: usize, bytes_max: usize) -> Self {
        let hundredths = bytes.saturating_mul(100) / bytes_max.max(1);
        let at = |slack: usize| {
            let begun = BEGINS.iter().filter(|&&begins| hundredths + slack >= begins).count();
            Self::ALL[begun]
        };
        // Up at once, and down only with some distance.
        if at(0) > self { at(0) } else { self.min(at(HYSTERESIS)) }
    }
}

/// What one shard holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frames of clients whose rest has not come.
    pub inbound: usize,
    /// What waits to be sent, in outboxes.
    pub outbound: usize,
    /// Pushes in the logs of rooms whose home the shard is.
    pub logs: usize,
    /// Requests that wait for their answers.
    pub calls: usize,
}

impl Usage {
    const fn parts(self) -> [usize; 4] {
        [self.inbound, self.outbound, self.logs, self.calls]
    }
}

/// The memory budget. See the [module](self).
#[derive(Debug)]
pub struct MemoryBudget {
    bytes_max: usize,
    parts: [AtomicUsize; 4],
    level: AtomicU8,
    gauges: [Gauge; 4],
    level_gauge: Gauge,
}

impl MemoryBudget {
    /// A budget of which nothing is used.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            parts: Default::default(),
            level: AtomicU8::new(0),
            gauges: PARTS.map(|part| gauge!(METRICS[1].0, "part" => part)),
            level_gauge: gauge!(METRICS[0].0),
        }
    }

    /// Takes over what a shard holds now, where it held `before`. Returns the level.
    pub fn report(&self, before: &mut Usage, now: Usage) -> MemoryLevel {
        if *before != now {
            for ((part, before), now) in self.parts.iter().zip(before.parts()).zip(now.parts()) {
                // Modulo 2^64, so a part that shrinks is subtracted.
                part.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            }
            *before = now;
        }
        self.update_level()
    }

    fn update_level(&self) -> MemoryLevel {
        let stored = self.level.load(Ordering::Relaxed);
        let level = MemoryLevel::ALL[usize::from(stored)];
        let bytes = self.bytes();
        let next = level.next(bytes, self.bytes_max);
        if next == level {
            return level;
        }
        // The thread that changes it logs it.
        let changed =
            self.level.compare_exchange(stored, next as u8, Ordering::Relaxed, Ordering::Relaxed);
        if changed.is_ok() {
            self.log(next, bytes);
        }
        next
    }

    fn log(&self, level: MemoryLevel, bytes: usize) {
        let bytes_max = self.bytes_max;
        match level {
            MemoryLevel::Normal => {
                tracing::info!(
                    bytes,
                    limits.memory_bytes_max = bytes_max,
                    "the memory budget has room again"
                );
            }
            MemoryLevel::Trim | MemoryLevel::Shed | MemoryLevel::Full => {
                let done = match level {
                    MemoryLevel::Full => "new requests are refused and accepting is paused",
                    MemoryLevel::Shed => "new requests are refused",
                    _ => "merge windows end early, and rooms without members close",
                };
                tracing::warn!(
                    bytes,
                    limits.memory_bytes_max = bytes_max,
                    "the memory budget is nearly used: {done}"
                );
            }
        }
    }

    /// Bytes that all shards hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.load(Ordering::Relaxed)).fold(0, usize::wrapping_add)
    }

    /// Whether new requests are to be refused.
    #[must_use]
    pub fn sheds(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= MemoryLevel::Shed as u8
    }

    /// Sets the metrics.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn export(&self) {
        for (gauge, part) in self.gauges.iter().zip(&self.parts) {
            gauge.set(part.load(Ordering::Relaxed) as f64);
        }
        self.level_gauge.set(f64::from(self.level.load(Ordering::Relaxed)));
    }
}

/// Registers the metrics, which exist also where there is no budget.
pub fn describe() {
    for (name, _, help) in METRICS {
        metrics::describe_gauge!(name, help);
    }
    gauge!(METRICS[0].0).set(0.0);
    PARTS.iter().for_each(|&part| gauge!(METRICS[1].0, "part" => part).set(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_begins_at_its_part_and_ends_lower() {
        use MemoryLevel::{Full, Normal, Shed, Trim};
        let budget = MemoryBudget::new(1_000);
        let mut held = Usage::default();
        let mut level = |bytes| budget.report(&mut held, Usage { logs: bytes, ..Usage::default() });
        for (bytes, expected) in [
            (749, Normal),
            (750, Trim),
            (700, Trim),
            (699, Normal),
            (5_000, Full),
            (900, Full),
            (899, Shed),
            (860, Shed),
            (800, Shed),
            (799, Trim),
            (0, Normal),
            (850, Shed),
            (949, Shed),
            (950, Full),
            (0, Normal),
        ] {
            assert_eq!(level(bytes), expected, "{bytes}");
            assert_eq!(budget.sheds(), expected >= Shed);
        }
    }

    #[test]
    fn what_shards_hold_is_added_up() {
        let budget = MemoryBudget::new(1_000);
        let (mut one, mut other) = (Usage::default(), Usage::default());
        let usage = |inbound, outbound, logs, calls| Usage { inbound, outbound, logs, calls };
        assert_eq!(budget.report(&mut one, usage(100, 200, 0, 0)), MemoryLevel::Normal);
        assert_eq!(budget.report(&mut other, usage(0, 300, 100, 60)), MemoryLevel::Trim);
        assert_eq!(budget.bytes(), 760);
        assert_eq!(budget.report(&mut one, usage(0, 10, 5, 0)), MemoryLevel::Normal);
        assert_eq!(budget.bytes(), 475);
        assert_eq!(budget.report(&mut other, Usage::default()), MemoryLevel::Normal);
        assert_eq!(budget.bytes(), 15);
    }
}
