//! The registry of gateways: each writes a line about itself into a hash of Redis, and reads those of all.
//!
//! A line holds for a time. The clock is Redis', so that gateways whose clocks differ agree on who is gone. A line whose
//! time is over is kept for an hour, so that operators see which gateway is missing; then any gateway removes it. A
//! gateway that ends in order removes its own.
//!
//! The exchange with Redis is `exchange`; the rest does no I/O and reads no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io, process};

use redis::{RedisError, Value};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::contract::{self, number};
use super::link::Connection;
use crate::control::{Control, Reply, ShardInfo};

/// Time between two lines of a gateway, in milliseconds.
const EVERY_MS: u64 = 2_000;

/// How long a line holds, in milliseconds: three may fail before a gateway is taken for gone.
const VALID_MS: u64 = 8_000;

/// How long the line of a gateway is kept that is gone, in milliseconds.
const KEEP_MS: u64 = 3_600_000;

/// How long the shards may take to count.
const COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the removal of the line may take at the end.
const REMOVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a gateway says of itself: a field's value in the hash, as JSON. Fields that are missing are 0 or empty, so that
/// gateways of different versions read each other's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// Until when it holds, in milliseconds since 1970 by Redis' clock.
    pub valid_until_ms: u64,
    /// Its machine's name.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Where clients connect.
    pub listen: String,
    /// Where operators connect.
    pub admin_listen: String,
    /// Its version.
    pub version: String,
    /// When it started, in milliseconds since 1970.
    pub start_time_unix_ms: u64,
    /// The fingerprint of the key that its tickets are made with.
    pub ticket_key: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What a gateway counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// `starting`, `ready` or `draining`.
    pub state: String,
    /// Whether it takes more connections: it is ready, and below `connections_max`.
    pub accepting: bool,
    /// Open connections.
    pub connections: u64,
    /// Connections that it accepts at most.
    pub connections_max: u64,
    /// Authenticated connections.
    pub sessions: u64,
    /// Users.
    pub users: u64,
    /// Rooms whose shared logs it follows.
    pub rooms: u64,
    /// Of these, rooms whose logs are being fetched.
    pub rooms_behind: u64,
    /// Pushes to rooms that wait for Redis.
    pub pushes_waiting: u64,
    /// Shards that have not answered: they are in no figure.
    pub unresponsive_shards: u64,
}

/// A gateway of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// The id of its run.
    pub id: String,
    /// For how long its line has not held, in milliseconds; `null`: it is alive.
    pub gone_for_ms: Option<u64>,
    /// What it has said.
    #[serde(flatten)]
    pub line: Line,
}

impl Peer {
    /// Whether its line holds.
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        self.gone_for_ms.is_none()
    }

    /// Living ones first, then by machine and address.
    pub(super) fn order(&self) -> (bool, &str, &str, &str) {
        (!self.is_alive(), &self.line.host, &self.line.listen, &self.id)
    }
}

impl Line {
    /// Whether two gateways make tickets with different keys. One of an earlier version does not say.
    #[must_use]
    pub fn has_other_ticket_key(&self, other: &Self) -> bool {
        let (one, other) = (&self.ticket_key, &other.ticket_key);
        !one.is_empty() && !other.is_empty() && one != other
    }

    /// What does not change while a gateway runs.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { host: host.trim().to_owned(), pid: process::id(), ..Self::default() }
    }
}

/// Reads the hash: the gateways, and the ids of those that are to be removed. A line that can't be read is ignored.
#[must_use]
pub fn read(lines: &[(String, Vec<u8>)], now_ms: u64) -> (Vec<Peer>, Vec<String>) {
    let (mut peers, mut outdated) = (Vec::new(), Vec::new());
    for (id, line) in lines {
        let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
        let gone_for_ms = now_ms.checked_sub(line.valid_until_ms);
        if gone_for_ms.is_some_and(|gone_for_ms| gone_for_ms >= KEEP_MS) {
            outdated.push(id.clone());
        } else {
            peers.push(Peer { id: id.clone(), gone_for_ms, line });
        }
    }
    (peers, outdated)
}

/// How many connections a gateway has beyond its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Surplus {
    /// Connections that it has.
    pub connections: u64,
    /// Connections that it would have if all had the same share of their `connections_max`.
    pub fair: u64,
    /// What it has beyond that.
    pub surplus: u64,
}

/// Computes the surplus of the gateway with this id among those that are alive and not draining. `None`: there is no
/// other.
#[must_use]
pub fn surplus(own: &str, peers: &[Peer]) -> Option<Surplus> {
    let serves = |peer: &&Peer| peer.is_alive() && peer.line.figures.state == "ready";
    let weight = |peer: &Peer| u128::from(peer.line.figures.connections_max.max(1));
    let me = peers.iter().find(|peer| peer.id == own)?;
    let others = peers.iter().filter(|peer| peer.id != own).filter(serves);
    let (mut count, mut weights, mut all) =
        (0, weight(me), u128::from(me.line.figures.connections));
    for other in others {
        count += 1;
        weights += weight(other);
        all += u128::from(other.line.figures.connections);
    }
    let connections = me.line.figures.connections;
    // Rounded up: nobody is sent away for half a connection.
    let fair = u64::try_from((all * weight(me)).div_ceil(weights)).unwrap_or(u64::MAX);
    let surplus = connections.saturating_sub(fair);
    (count > 0).then_some(Surplus { connections, fair, surplus })
}

/// Asks the shards for their figures. A shard that has not answered is not asked again, since its questions would pile
/// up.
pub struct Census {
    control: Arc<dyn Control>,
    connections_max: u64,
    asked: Vec<Option<Reply<ShardInfo>>>,
}

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Census")
    }
}

impl Census {
    /// Of the shards behind `control`.
    #[must_use]
    pub fn new(control: Arc<dyn Control>, connections_max: u64) -> Self {
        let asked = (0..control.shards()).map(|_| None).collect();
        Self { control, connections_max, asked }
    }

    async fn count(&mut self) -> Figures {
        let Self { control, connections_max, asked } = self;
        let readiness = control.readiness();
        let mut figures = Figures {
            state: readiness.name().to_owned(),
            connections_max: *connections_max,
            ..Figures::default()
        };
        for (shard, asked) in (0..).zip(&mut *asked) {
            asked.get_or_insert_with(|| control.shard(shard));
        }
        let until = tokio::time::Instant::now() + COUNT_TIMEOUT;
        for slot in asked {
            let Some(mut reply) = slot.take() else { continue };
            match tokio::time::timeout_at(until, &mut reply).await {
                Ok(Ok(ShardInfo { connections, sessions, users, .. })) => {
                    figures.connections += connections;
                    figures.sessions += sessions;
                    figures.users += users;
                }
                // It has ended.
                Ok(Err(_)) => {}
                Err(_) => {
                    figures.unresponsive_shards += 1;
                    *slot = Some(reply);
                }
            }
        }
        figures.accepting = control.is_ready() && figures.connections < *connections_max;
        figures
    }
}

/// What of the figures the thread that speaks with Redis knows itself.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// See [`Figures`].
    pub rooms: usize,
    /// See [`Figures`].
    pub rooms_behind: usize,
    /// See [`Figures`].
    pub pushes_waiting: usize,
}

/// When the next line is due. It lends the [`Census`] to the line that is under way.
#[derive(Debug)]
pub struct Registration {
    id: String,
    fixed: Line,
    census: Option<Census>,
    next_ms: u64,
}

/// A line that is to be written.
#[derive(Debug)]
pub struct Beat {
    id: String,
    line: Line,
    lag: Lag,
    census: Census,
}

impl Registration {
    /// The gateway makes tickets with another key from now on.
    pub fn set_ticket_key(&mut self, fingerprint: String) {
        self.fixed.ticket_key = fingerprint;
    }

    /// Of the gateway with this id. `fixed`: what does not change while it runs.
    #[must_use]
    pub const fn new(id: String, fixed: Line, census: Census) -> Self {
        Self { id, fixed, census: Some(census), next_ms: 0 }
    }

    /// The next line, if it is due and none is under way.
    pub fn next(&mut self, now_ms: u64, lag: Lag) -> Option<Beat> {
        if now_ms < self.next_ms {
            return None;
        }
        let census = self.census.take()?;
        self.next_ms = now_ms + EVERY_MS;
        Some(Beat { id: self.id.clone(), line: self.fixed.clone(), lag, census })
    }

    /// A line is written, or could not be.
    pub fn returned(&mut self, census: Census) {
        self.census = Some(census);
    }
}

/// What came of a line.
#[derive(Debug)]
pub struct Exchanged {
    /// It goes back to the [`Registration`].
    pub census: Census,
    /// What the gateway says of itself.
    pub line: Line,
    /// The gateways; `None`: there is no connection.
    pub peers: Option<Result<Vec<Peer>, RedisError>>,
    /// How long one command took.
    pub round_trip: Option<Duration>,
}

impl Beat {
    /// Counts, and writes and reads the lines where there is a connection.
    pub async fn carry_out(self, connection: Option<Connection>) -> Exchanged {
        let Self { id, mut line, lag, mut census } = self;
        let as_u64 = |count| u64::try_from(count).unwrap_or(u64::MAX);
        line.figures = Figures {
            rooms: as_u64(lag.rooms),
            rooms_behind: as_u64(lag.rooms_behind),
            pushes_waiting: as_u64(lag.pushes_waiting),
            ..census.count().await
        };
        let Some(connection) = connection else {
            return Exchanged { census, line, peers: None, round_trip: None };
        };
        let (peers, round_trip) = match exchange(connection, &id, &mut line).await {
            Ok((peers, round_trip)) => (Ok(peers), Some(round_trip)),
            Err(error) => (Err(error), None),
        };
        Exchanged { census, line, peers: Some(peers), round_trip }
    }
}

/// Writes the line, reads all, and removes those of gateways that have long been gone.
async fn exchange(
    mut connection: Connection,
    id: &str,
    line: &mut Line,
) -> Result<(Vec<Peer>, Duration), RedisError> {
    let began = Instant::now();
    let now_ms = time_ms(&connection.call(&redis::cmd("TIME")).await?).ok_or_else(unreadable)?;
    let round_trip = began.elapsed();
    line.valid_until_ms = now_ms + VALID_MS;
    let json = serde_json::to_string(&line).map_err(io::Error::other)?;
    let key = contract::GATEWAYS;
    connection.call(redis::cmd("HSET").arg(key).arg(id).arg(json)).await?;
    let all = connection.call(redis::cmd("HGETALL").arg(key)).await?;
    let (peers, outdated) = read(&fields(all).ok_or_else(unreadable)?, now_ms);
    if !outdated.is_empty() {
        connection.call(redis::cmd("HDEL").arg(key).arg(outdated)).await?;
    }
    Ok((peers, round_trip))
}

/// Removes the line of a gateway that ends.
pub async fn remove(mut connection: Connection, id: &str) {
    let mut cmd = redis::cmd("HDEL");
    cmd.arg(contract::GATEWAYS).arg(id);
    // Without an answer the line ends by itself.
    drop(timeout(REMOVE_TIMEOUT, connection.call(&cmd)).await);
}

fn unreadable() -> RedisError {
    io::Error::new(io::ErrorKind::InvalidData, "Redis' answer can't be read").into()
}

/// The answer of `TIME`: seconds and microseconds.
fn time_ms(answer: &Value) -> Option<u64> {
    let Value::Array(parts) = answer else { return None };
    let [seconds, micros] = parts.as_slice() else { return None };
    Some(number(seconds)? * 1_000 + number(micros)? / 1_000)
}

fn fields(answer: Value) -> Option<Vec<(String, Vec<u8>)>> {
    let Value::Map(pairs) = answer else { return None };
    let pair = |pair| match pair {
        (Value::BulkString(id), Value::BulkString(line)) => {
            Some((String::from_utf8(id).ok()?, line))
        }
        _ => None,
    };
    Some(pairs.into_iter().filter_map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: &str, connections: u64, connections_max: u64, state: &str) -> Peer {
        let state = state.to_owned();
        let figures = Figures { connections, connections_max, state, ..Figures::default() };
        Peer { id: id.into(), gone_for_ms: None, line: Line { figures, ..Line::default() } }
    }

    #[test]
    fn a_gateway_is_gone_when_its_line_has_ended_and_is_removed_an_hour_later() {
        let line = Line { valid_until_ms: 10_000, ..Line::default() };
        let lines = [("a".to_owned(), serde_json::to_vec(&line).unwrap())];
        let gone = |now_ms| read(&lines, now_ms).0.first().map(|peer| peer.gone_for_ms);
        assert_eq!(gone(9_999), Some(None));
        assert_eq!(gone(10_000), Some(Some(0)));
        assert_eq!(gone(3_609_999), Some(Some(3_599_999)));
        assert_eq!(read(&lines, 3_610_000), (vec![], vec!["a".to_owned()]));
    }

    #[test]
    fn lines_of_other_versions_are_read() {
        let lines = [
            ("old".to_owned(), b"{\"valid_until_ms\":9,\"connections\":3}".to_vec()),
            ("new".to_owned(), b"{\"valid_until_ms\":9,\"colour\":\"blue\"}".to_vec()),
            ("broken".to_owned(), b"{".to_vec()),
        ];
        let (peers, outdated) = read(&lines, 1);
        let ids: Vec<_> = peers.iter().map(|peer| &*peer.id).collect();
        assert_eq!((ids, outdated.len()), (vec!["old", "new"], 0));
        assert_eq!(peers[0].line.figures.connections, 3);
    }

    #[test]
    fn ticket_keys_differ_only_where_both_gateways_say_theirs() {
        let line = |key: &str| Line { ticket_key: key.into(), ..Line::default() };
        assert!(line("a").has_other_ticket_key(&line("b")));
        assert!(!line("a").has_other_ticket_key(&line("a")));
        assert!(!line("").has_other_ticket_key(&line("b")));
        assert!(!line("a").has_other_ticket_key(&line("")));
    }

    #[test]
    fn the_surplus_is_what_exceeds_the_share_of_the_gateways_that_serve() {
        let mut peers = vec![
            peer("a", 150, 100, "ready"),
            peer("b", 150, 100, "ready"),
            peer("c", 0, 100, "ready"),
        ];
        let expected = Surplus { connections: 150, fair: 100, surplus: 50 };
        assert_eq!(surplus("a", &peers), Some(expected));
        assert_eq!(surplus("c", &peers).unwrap().surplus, 0);
        // A larger machine has a larger share.
        peers[2].line.figures.connections_max = 400;
        assert_eq!(surplus("a", &peers).unwrap().fair, 50);
        // One that drains, starts or is gone gets nobody.
        for change in [
            (|peer: &mut Peer| peer.line.figures.state = "draining".into()) as fn(&mut Peer),
            |peer| peer.line.figures.state = "starting".into(),
            |peer| peer.gone_for_ms = Some(1),
        ] {
            let mut peers = peers.clone();
            change(&mut peers[2]);
            assert_eq!(surplus("a", &peers).unwrap().surplus, 0);
            change(&mut peers[1]);
            assert_eq!(surplus("a", &peers), None, "it is alone");
        }
        assert_eq!(surplus("z", &peers), None, "it is not known yet");
    }

    #[test]
    fn redis_time_is_in_milliseconds() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let time = Value::Array(vec![text("1700000000"), text("123456")]);
        assert_eq!(time_ms(&time), Some(1_700_000_000_123));
        assert_eq!(time_ms(&Value::Nil), None);
    }
}
