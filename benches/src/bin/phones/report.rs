//! What all phones have seen since the last report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tidegate_protocol::Code;

/// Counts and latencies.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) since: Instant,
    pub(crate) sent: u64,
    /// Requests whose time came while no phone was in.
    pub(crate) unsent: u64,
    /// Answers with other bytes than were sent.
    pub(crate) wrong: u64,
    /// Requests whose connection was lost before their answer.
    pub(crate) unanswered: u64,
    /// Connections that were lost after the login.
    pub(crate) lost: u64,
    /// Connections that ended before the login.
    pub(crate) turned_away: u64,
    /// Goodbyes, by code.
    pub(crate) goodbyes: BTreeMap<u32, u64>,
    /// Requests that failed, by code, and how long that took. All latencies count from the time at which the request was due.
    pub(crate) failed_us: BTreeMap<u32, Histogram<u64>>,
    pub(crate) answered_us: Histogram<u64>,
    /// How late requests were sent: what of the latencies is this process's own.
    pub(crate) send_delay_us: Histogram<u64>,
    /// From the first try to the session, of phones that came in for the first time.
    pub(crate) login_ms: Histogram<u64>,
}

impl Report {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            since: Instant::now(),
            sent: 0,
            unsent: 0,
            wrong: 0,
            unanswered: 0,
            lost: 0,
            turned_away: 0,
            goodbyes: BTreeMap::new(),
            failed_us: BTreeMap::new(),
            answered_us: Histogram::new(3)?,
            send_delay_us: Histogram::new(3)?,
            login_ms: Histogram::new(3)?,
        })
    }

    pub(crate) fn answered(&mut self, after: Duration) {
        record(&mut self.answered_us, after.as_micros());
    }

    pub(crate) fn failed(&mut self, code: Option<Code>, after: Duration) -> Result<()> {
        let histogram = match self.failed_us.entry(number(code)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Histogram::new(3)?),
        };
        record(histogram, after.as_micros());
        Ok(())
    }

    pub(crate) fn goodbye(&mut self, code: Option<Code>) {
        *self.goodbyes.entry(number(code)).or_default() += 1;
    }

    pub(crate) fn sent(&mut self, delay: Duration) {
        self.sent += 1;
        record(&mut self.send_delay_us, delay.as_micros());
    }

    pub(crate) fn logged_in(&mut self, after: Duration) {
        record(&mut self.login_ms, after.as_millis());
    }

    pub(crate) fn to_json(&self) -> Value {
        let failed: BTreeMap<_, _> =
            self.failed_us.iter().map(|(code, histogram)| (code, quantiles(histogram))).collect();
        json!({
            "seconds": self.since.elapsed().as_secs_f64(),
            "sent": self.sent, "unsent": self.unsent, "wrong": self.wrong,
            "unanswered": self.unanswered, "lost": self.lost, "turned_away": self.turned_away,
            "goodbyes": self.goodbyes, "failed_us": failed,
            "answered_us": quantiles(&self.answered_us), "send_delay_us": quantiles(&self.send_delay_us),
            "login_ms": quantiles(&self.login_ms),
        })
    }
}

fn number(code: Option<Code>) -> u32 {
    code.map_or(0, Code::number)
}

fn record(histogram: &mut Histogram<u64>, value: u128) {
    // The histogram grows by itself.
    let _ = histogram.record(u64::try_from(value).unwrap_or(u64::MAX));
}

fn quantiles(histogram: &Histogram<u64>) -> Value {
    json!({
        "count": histogram.len(),
        "p50": histogram.value_at_quantile(0.5),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}
