//! A link to Redis for each concern: when it is made, lost and made again.
//!
//! Each concern has its own connection, also where two of them have the same URL. So messages of rooms do not delay who is
//! online, and a Redis that fails takes down only what it holds.
//!
//! A connection has a number, its *epoch*. Facts of an earlier connection are ignored.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::link::{self, Connection};
use super::link_error::LinkError;
use super::link_log::{Line, LinkLog};
use crate::config::{RedisConfig, RedisTarget};

/// Time between two checks of a connection.
const PING: Duration = Duration::from_secs(1);

/// Time between two checks of a Cluster's nodes. A node that does not answer has the whole link made again, so that no
/// channel stays without its subscription; not too often, since the other nodes' rooms are then opened again too.
const PING_CLUSTER: Duration = Duration::from_secs(3);

/// What a Redis is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// Logs of rooms.
    Pushes,
    /// Who is online, and commands to users.
    Presence,
    /// Session tokens.
    Tokens,
}

impl Concern {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pushes, Self::Presence, Self::Tokens];

    /// Its name, as operators see it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pushes => "pushes",
            Self::Presence => "presence",
            Self::Tokens => "tokens",
        }
    }

    /// The concern of the connection with this epoch.
    #[must_use]
    pub fn of(epoch: u64) -> Self {
        let index = epoch % Self::ALL.len() as u64;
        Self::ALL[usize::try_from(index).expect("it is an index")]
    }
}

/// The links, one for each concern.
#[derive(Debug)]
pub struct Links {
    links: [Link; Concern::ALL.len()],
}

impl Links {
    /// No connection yet. The first attempts are made at once. `has_tokens`: session tokens are in Redis.
    #[must_use]
    pub fn new(redis: &RedisConfig, has_tokens: bool, now: Instant) -> Self {
        let target = |concern| match concern {
            Concern::Pushes => redis.pushes.clone(),
            Concern::Presence => redis.presence.clone(),
            Concern::Tokens => redis.tokens.clone(),
        };
        let is_used = |concern| concern != Concern::Tokens || has_tokens;
        let link = |concern| Link::new(concern, target(concern), is_used(concern).then_some(now));
        Self { links: Concern::ALL.map(link) }
    }

    /// The link of a concern.
    #[must_use]
    pub const fn get(&self, concern: Concern) -> &Link {
        &self.links[concern as usize]
    }

    /// The link of a concern.
    pub const fn get_mut(&mut self, concern: Concern) -> &mut Link {
        &mut self.links[concern as usize]
    }
}

/// What a link needs now.
#[derive(Debug)]
pub enum Due {
    /// An attempt to connect. The outcome has to carry the epoch.
    Connect(RedisTarget, u64),
    /// A check of this connection, which has this epoch.
    Ping(Connection, u64),
}

/// One link.
#[derive(Debug)]
pub struct Link {
    target: RedisTarget,
    state: State,
    epoch: u64,
    failed_attempts: u32,
    next_ping: Instant,
    is_loading_library: bool,
    log: LinkLog,
}

#[derive(Debug)]
enum State {
    /// The concern is not used.
    Unused,
    /// An attempt is made at this time.
    Waiting(Instant),
    /// An attempt is under way.
    Connecting,
    /// There is a connection.
    Up(Connection),
}

impl Link {
    /// The first attempt is made at `first`; `None`: never.
    fn new(concern: Concern, target: RedisTarget, first: Option<Instant>) -> Self {
        let (state, epoch) = (first.map_or(State::Unused, State::Waiting), concern as u64);
        Self {
            target,
            state,
            epoch,
            failed_attempts: 0,
            next_ping: Instant::now(),
            is_loading_library: false,
            log: LinkLog::default(),
        }
    }

    /// Whether there is a connection.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Whether this is the epoch of the present connection, or of the attempt under way.
    #[must_use]
    pub const fn is_current(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }

    /// The connection and its epoch.
    #[must_use]
    pub fn connection(&self) -> Option<(Connection, u64)> {
        match &self.state {
            State::Up(connection) => Some((connection.clone(), self.epoch)),
            _ => None,
        }
    }

    /// Whether there is a connection that is lost as a whole. A Cluster's are made again by themselves.
    #[must_use]
    pub const fn is_up_to_one(&self) -> bool {
        matches!(self.state, State::Up(Connection::One(_)))
    }

    /// What the link needs now.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        self.write_log(now);
        match &self.state {
            State::Waiting(at) if *at <= now => {
                self.state = State::Connecting;
                self.epoch += Concern::ALL.len() as u64;
                Some(Due::Connect(self.target.clone(), self.epoch))
            }
            State::Up(connection) if self.next_ping <= now => {
                self.next_ping = match connection {
                    Connection::One(_) => now + PING,
                    Connection::Cluster { .. } => now + PING_CLUSTER,
                };
                Some(Due::Ping(connection.clone(), self.epoch))
            }
            _ => None,
        }
    }

    /// An attempt has ended. Returns whether there is a connection.
    pub fn on_connected(&mut self, outcome: Result<Connection, LinkError>, now: Instant) -> bool {
        match outcome {
            Ok(connection) => {
                self.log.add(Line::Connected);
                self.write_log(now);
                self.failed_attempts = 0;
                self.is_loading_library = false;
                self.next_ping = now + PING;
                self.state = State::Up(connection);
                true
            }
            Err(error) => {
                if self.failed_attempts == 0 {
                    self.log.add(Line::Unusable(error.to_string()));
                    self.write_log(now);
                }
                self.state = State::Waiting(now + link::wait_before(self.failed_attempts));
                self.failed_attempts += 1;
                false
            }
        }
    }

    /// The connection can't be used any more. Returns whether there was one.
    pub fn lose(&mut self, reason: &dyn Display, now: Instant) -> bool {
        if !self.is_up() {
            return false;
        }
        self.log.add(Line::Lost(reason.to_string()));
        self.write_log(now);
        self.epoch += Concern::ALL.len() as u64;
        self.state = State::Waiting(now + link::wait_before(0));
        true
    }

    /// Writes the line that waits, if one may be written now.
    fn write_log(&mut self, now: Instant) {
        let Some((line, suppressed)) = self.log.next_line(now) else { return };
        let redis = &self.target;
        match line {
            Line::Connected => tracing::info!(suppressed, %redis, "connected to Redis"),
            Line::Unusable(error) => {
                tracing::warn!(suppressed, %redis, error, "Redis can't be used; trying again");
            }
            Line::Lost(reason) => {
                tracing::warn!(suppressed, %redis, reason, "the connection to Redis is lost");
            }
        }
    }

    /// The server lacks the function library. Returns the connection to load it with, unless that is under way.
    pub fn start_loading_library(&mut self) -> Option<Connection> {
        if self.is_loading_library {
            return None;
        }
        let (connection, _) = self.connection()?;
        self.is_loading_library = true;
        Some(connection)
    }

    /// The library was loaded, or that failed.
    pub const fn on_library_loaded(&mut self) {
        self.is_loading_library = false;
    }
}
