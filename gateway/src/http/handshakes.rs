//! How many TLS handshakes begin: `tls.handshakes_per_second_max`, as on a shard.
//!
//! One costs as much CPU time as many requests. So the rate bounds the share of the thread's time that a storm of them takes.
//! Handshakes that wait begin in their order. One that is cancelled leaves no state: only the first of them waits for a token.

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use std::time::Duration;

/// Handshakes that may begin at once: as many as a shard does in a turn.
const BURST: f64 = 4.0;

/// See the [module](self).
pub(super) struct Handshakes {
    per_second: f64,
    /// Serves those that wait for it in their order.
    bucket: Mutex<Bucket>,
}

/// A token bucket.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Handshakes {
    pub(super) fn new(per_second: u32) -> Self {
        let bucket = Mutex::new(Bucket { tokens: BURST, at: Instant::now() });
        Self { per_second: f64::from(per_second.max(1)), bucket }
    }

    /// Waits until one more may begin.
    pub(super) async fn begin(&self) {
        let mut bucket = self.bucket.lock().await;
        loop {
            let now = Instant::now();
            let passed = now.duration_since(std::mem::replace(&mut bucket.at, now));
            let more = passed.as_secs_f64() * self.per_second;
            bucket.tokens = (bucket.tokens + more).min(BURST);
            if bucket.tokens >= 1.0 {
                bucket.tokens -= 1.0;
                return;
            }
            sleep(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn a_cancelled_wait_leaves_its_place_to_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let handshakes = Handshakes::new(1_000_000);
            let mut context = Context::from_waker(Waker::noop());
            // It is not refilled meanwhile.
            let held = handshakes.bucket.lock().await;
            for _ in 0..1000 {
                assert_eq!(pin!(handshakes.begin()).poll(&mut context), Poll::Pending);
            }
            drop(held);
            for _ in 0..10 {
                handshakes.begin().await;
            }
        });
    }
}
