//! What operators are shown of Redis and of the other gateways.
//!
//! The thread that speaks with Redis writes it, and the operators' HTTP reads it. So a request never waits for Redis.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::registry::{Line, Peer};

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Status {
    gateway: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<LinkState>,
    own: Option<Line>,
    /// What was read last, and when.
    peers: Option<(Instant, Vec<Peer>)>,
}

#[derive(Debug)]
struct LinkState {
    concern: &'static str,
    url: String,
    needed_for_logins: bool,
    is_up: bool,
    /// When it went up or down.
    since: Instant,
    last_error: Option<String>,
    round_trip: Option<Duration>,
}

/// A connection to Redis, as operators see it.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// What it is for: `pushes`.
    pub concern: &'static str,
    /// Where, without user and password.
    pub url: String,
    /// Whether there is a connection.
    pub up: bool,
    /// How long there has been one, or none, in milliseconds.
    pub since_ms: u64,
    /// Why the last connection ended, or the last attempt failed; kept after the next one.
    pub last_error: Option<String>,
    /// How long the last command took that measures it, in microseconds; `null`: none yet.
    pub round_trip_us: Option<u64>,
    /// Whether clients can't log in without it.
    pub needed_for_logins: bool,
}

impl Status {
    /// Of the gateway with this id, which has read nothing yet.
    #[must_use]
    pub fn new(gateway: &str) -> Self {
        Self { gateway: gateway.into(), state: Arc::default() }
    }

    /// The id of this gateway's run.
    #[must_use]
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the connection of a concern. It is down at first. `needed_for_logins`: `/readyz` says 503 while it is down,
    /// since clients without a session can't be served.
    pub fn add_link(&self, concern: &'static str, url: String, needed_for_logins: bool) {
        self.lock().links.push(LinkState {
            concern,
            url,
            needed_for_logins,
            is_up: false,
            since: Instant::now(),
            last_error: None,
            round_trip: None,
        });
    }

    fn change(&self, concern: &str, change: impl FnOnce(&mut LinkState)) {
        if let Some(link) = self.lock().links.iter_mut().find(|link| link.concern == concern) {
            change(link);
        }
    }

    /// There is a connection.
    pub fn up(&self, concern: &str) {
        self.change(concern, |link| {
            link.since = Instant::now();
            link.is_up = true;
        });
    }

    /// There is none: it ended, or an attempt failed.
    pub fn down(&self, concern: &str, error: &dyn std::fmt::Display) {
        self.change(concern, |link| {
            if std::mem::replace(&mut link.is_up, false) {
                link.since = Instant::now();
            }
            link.last_error = Some(error.to_string());
            link.round_trip = None;
        });
    }

    /// A command took so long.
    pub fn round_trip(&self, concern: &str, took: Duration) {
        self.change(concern, |link| link.round_trip = Some(took));
    }

    /// Sets what this gateway says of itself.
    pub fn set_own(&self, line: Line) {
        self.lock().own = Some(line);
    }

    /// Sets what all gateways have said of themselves.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        self.lock().peers = Some((Instant::now(), peers));
    }

    /// The connections.
    #[must_use]
    pub fn links(&self) -> Vec<LinkStatus> {
        self.lock().links.iter().map(LinkStatus::from).collect()
    }

    /// How long Redis has been away, in seconds: the longest of all connections, or of those without which nobody can log
    /// in. `None`: it is there.
    #[must_use]
    pub fn away_s(&self, for_logins: bool) -> Option<u64> {
        let state = self.lock();
        let links = state.links.iter().filter(|link| link.needed_for_logins || !for_logins);
        links.filter(|link| !link.is_up).map(|link| link.since.elapsed().as_secs()).max()
    }

    /// All gateways as they were read last, and how long ago that was. Of this gateway it is what was counted last, though
    /// Redis may be away. `None`: nothing has been read yet.
    #[must_use]
    pub fn peers(&self) -> (Vec<Peer>, Option<Duration>) {
        let state = self.lock();
        let (age, mut peers) = match &state.peers {
            Some((at, peers)) => (Some(at.elapsed()), peers.clone()),
            None => (None, Vec::new()),
        };
        if let Some(line) = &state.own {
            peers.retain(|peer| *peer.id != *self.gateway);
            peers.push(Peer {
                id: self.gateway.to_string(),
                gone_for_ms: None,
                line: line.clone(),
            });
        }
        drop(state);
        peers.sort_by(|a, b| a.order().cmp(&b.order()));
        (peers, age)
    }
}

impl From<&LinkState> for LinkStatus {
    fn from(link: &LinkState) -> Self {
        let us = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self {
            concern: link.concern,
            url: link.url.clone(),
            up: link.is_up,
            since_ms: us(link.since.elapsed()) / 1_000,
            last_error: link.last_error.clone(),
            round_trip_us: link.round_trip.map(us),
            needed_for_logins: link.needed_for_logins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::registry::Figures;

    #[test]
    fn a_link_keeps_why_it_was_lost() {
        let status = Status::new("a");
        status.add_link("pushes", "redis://host:6379".into(), false);
        assert!(!status.links()[0].up);
        status.down("pushes", &"refused");
        status.up("pushes");
        status.round_trip("pushes", Duration::from_micros(250));
        status.down("another", &"ignored");
        let link = &status.links()[0];
        assert!(link.up && link.last_error.as_deref() == Some("refused"));
        assert_eq!(link.round_trip_us, Some(250));
        status.down("pushes", &"closed");
        let link = &status.links()[0];
        assert_eq!((link.up, link.round_trip_us), (false, None));
    }

    #[test]
    fn the_own_line_is_shown_though_redis_is_away() {
        let status = Status::new("b");
        assert!(status.peers().0.is_empty());
        let line = |connections| Line {
            figures: Figures { connections, ..Figures::default() },
            ..Line::default()
        };
        let peer = |id: &str, line| Peer { id: id.into(), gone_for_ms: None, line };
        status.set_peers(vec![peer("b", line(1)), peer("a", line(2))]);
        status.set_own(line(3));
        let (peers, age) = status.peers();
        let seen: Vec<_> = peers.iter().map(|it| (&*it.id, it.line.figures.connections)).collect();
        assert_eq!(seen, [("a", 2), ("b", 3)]);
        assert!(age.is_some());
    }
}
