//! What all clients of the crowd have received, and the checks of it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tidegate_protocol::memberships::Change;

/// Missing numbers that a report names, at most.
const MISSING_MAX: usize = 20_000;

/// What one client has received. Outlives a connection, and a report.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// The last number of the numbered room; 0: none.
    pub(crate) last: u64,
    /// A gap was reported since.
    gap_reported: bool,
    /// The last number of a push to this user alone; 0: none.
    last_to_user: u64,
}

/// Counts over all clients since the last report.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) pushes: u64,
    pub(crate) repeated: u64,
    pub(crate) out_of_order: u64,
    /// Numbers that clients did not receive, and how many did not.
    pub(crate) missing: BTreeMap<u64, u64>,
    pub(crate) missing_unreported: u64,
    pub(crate) gaps_reported: u64,
    /// Pushes to one user: all of them, those whose number was received before, numbers that were skipped, and those whose
    /// payload names another user.
    pub(crate) to_user: u64,
    pub(crate) to_user_repeated: u64,
    pub(crate) to_user_missing: u64,
    pub(crate) to_other_user: u64,
    pub(crate) complete: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) came_back: u64,
    pub(crate) failed_attempts: u64,
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) return_ms: Histogram<u64>,
    pub(crate) first_number: u64,
    pub(crate) last_number: u64,
}

impl Report {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pushes: 0,
            repeated: 0,
            out_of_order: 0,
            missing: BTreeMap::new(),
            missing_unreported: 0,
            gaps_reported: 0,
            to_user: 0,
            to_user_repeated: 0,
            to_user_missing: 0,
            to_other_user: 0,
            complete: 0,
            refused: 0,
            lost: 0,
            came_back: 0,
            failed_attempts: 0,
            latency_us: Histogram::new(3)?,
            return_ms: Histogram::new(3)?,
            first_number: 0,
            last_number: 0,
        })
    }

    pub(crate) fn on_change(&mut self, received: &mut Received, change: &Change) {
        match change {
            Change::Gap { .. } => {
                self.gaps_reported += 1;
                received.gap_reported = true;
            }
            Change::Refused { .. } => self.refused += 1,
            Change::NotKept { .. } => {}
        }
    }

    /// A push of the numbered room.
    pub(crate) fn on_room_push(&mut self, received: &mut Received, biz_data: &[u8]) {
        let [number, sent_us, _] = numbers(biz_data);
        self.pushes += 1;
        self.record_latency(sent_us);
        self.first_number = if self.first_number == 0 { number } else { self.first_number };
        self.last_number = self.last_number.max(number);
        if number <= received.last {
            self.out_of_order += 1;
            return;
        }
        if received.last > 0 {
            for missing in received.last + 1..number {
                if self.missing.len() < MISSING_MAX {
                    *self.missing.entry(missing).or_default() += 1;
                }
                self.missing_unreported += u64::from(!received.gap_reported);
            }
        }
        (received.last, received.gap_reported) = (number, false);
    }

    /// A push to this user alone.
    pub(crate) fn on_user_push(&mut self, received: &mut Received, user_id: u64, biz_data: &[u8]) {
        let [number, sent_us, addressee] = numbers(biz_data);
        self.to_user += 1;
        self.record_latency(sent_us);
        if addressee != user_id {
            self.to_other_user += 1;
        } else if number <= received.last_to_user {
            self.to_user_repeated += 1;
        } else {
            self.to_user_missing += number - received.last_to_user - 1;
            received.last_to_user = number;
        }
    }

    fn record_latency(&mut self, sent_us: u64) {
        // The histogram grows by itself.
        let _ = self.latency_us.record(unix_us().saturating_sub(sent_us));
    }

    pub(crate) fn to_json(&self, clients: usize, connected: usize, at_last_number: usize) -> Value {
        let quantiles = |histogram: &Histogram<u64>| {
            json!({
                "count": histogram.len(),
                "p50": histogram.value_at_quantile(0.5),
                "p99": histogram.value_at_quantile(0.99),
                "p999": histogram.value_at_quantile(0.999),
                "max": histogram.max(),
            })
        };
        json!({
            "clients": clients, "connected": connected, "at_last_number": at_last_number,
            "first_number": self.first_number, "last_number": self.last_number,
            "pushes": self.pushes, "repeated": self.repeated,
            "out_of_order": self.out_of_order,
            "missing": self.missing, "missing_unreported": self.missing_unreported,
            "gaps_reported": self.gaps_reported, "rooms_complete": self.complete,
            "to_user": self.to_user, "to_user_repeated": self.to_user_repeated,
            "to_user_missing": self.to_user_missing, "to_other_user": self.to_other_user,
            "refused": self.refused, "connections_lost": self.lost,
            "came_back": self.came_back, "failed_attempts": self.failed_attempts,
            "latency_us": quantiles(&self.latency_us), "return_ms": quantiles(&self.return_ms),
        })
    }
}

/// The numbers that a payload begins with; 0 for one that is not there.
fn numbers(biz_data: &[u8]) -> [u64; 3] {
    let text = std::str::from_utf8(biz_data).unwrap_or_default();
    let mut words = text.split(' ').map(|word| word.parse().unwrap_or(0));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
