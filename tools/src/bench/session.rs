//! Connecting, authenticating, staying alive: what every scenario's connections go through first.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, anyhow, bail};
use hdrhistogram::Histogram;
use prost::Message as _;
use tidegate_protocol::Code;
use tidegate_protocol::limits::HEARTBEAT_INTERVAL_MS;
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT, Request, Response, SUCCESS};
use tidegate_protocol::proto::v1::Session;

use super::args::CommonArgs;
use super::engine::{CloseCause, Nanos, Sockets, due_after};
use super::report::{histogram, record};

/// Sequence of an authentication.
const AUTHENTICATE_SEQUENCE: u64 = 1;
/// Sequence of a heartbeat.
const HEARTBEAT_SEQUENCE: u64 = 2;
/// The first sequence of a business request: none of the above.
pub(super) const BUSINESS_SEQUENCE: u64 = 16;
/// Connections under way at once, when no rate is asked for: less than any accept queue holds.
const UNDER_WAY_MAX: usize = 128;

/// Writes the frames of one user's session.
#[derive(Debug)]
pub(super) struct Credentials {
    template: String,
    first_user: u64,
    /// The token written last.
    token: String,
}

impl Credentials {
    pub(super) fn new(args: &CommonArgs) -> Self {
        let (template, first_user) = (args.token_template.clone(), args.first_user);
        Self { template, first_user, token: String::new() }
    }

    pub(super) fn put_authenticate(&mut self, slot: usize, out: &mut Vec<u8>) {
        let user_id = self.first_user + slot as u64;
        self.token.clear();
        let mut parts = self.template.split("{user}");
        self.token.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let _ = write!(self.token, "{user_id}{part}");
        }
        let sequence = AUTHENTICATE_SEQUENCE;
        let token = &self.token;
        Request { kind: AUTHENTICATE, user_id, token, sequence, ..Request::default() }
            .encode_frame(out);
    }
}

pub(super) fn put_heartbeat(out: &mut Vec<u8>) {
    let sequence = HEARTBEAT_SEQUENCE;
    Request { kind: HEARTBEAT, sequence, ..Request::default() }.encode_frame(out);
}

/// What an answer was, of those that belong to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionAnswer {
    /// The user is in; the gateway wants a heartbeat this often, in milliseconds, or 0.
    Authenticated { heartbeat_interval_ms: u32 },
    /// A heartbeat was answered.
    Pong,
    /// Something else.
    NotMine,
}

/// Judges an answer.
///
/// # Errors
/// It is a failure, or the end of the session.
#[inline]
pub(super) fn read_answer(slot: usize, answer: &Response<'_>) -> anyhow::Result<SessionAnswer> {
    if answer.status != SUCCESS {
        return Err(failed(slot, answer));
    }
    match (answer.kind, answer.sequence) {
        (AUTHENTICATE, AUTHENTICATE_SEQUENCE) => {
            let session = Session::decode(answer.biz_data)
                .with_context(|| format!("connection {slot}: its session can't be read"))?;
            let heartbeat_interval_ms = session.heartbeat_interval_ms;
            Ok(SessionAnswer::Authenticated { heartbeat_interval_ms })
        }
        (HEARTBEAT, HEARTBEAT_SEQUENCE) => Ok(SessionAnswer::Pong),
        (AUTHENTICATE | HEARTBEAT, sequence) => bail!(
            "connection {slot}: an answer of type {} carries sequence {sequence}, which was never sent",
            answer.kind
        ),
        _ => Ok(SessionAnswer::NotMine),
    }
}

/// Says what a failure is.
pub(super) fn failed(slot: usize, answer: &Response<'_>) -> anyhow::Error {
    let &Response { kind, sequence, retry_after_ms, .. } = answer;
    let code = answer.code().map_or_else(
        || format!("an unknown code ({:?})", answer.biz_data),
        |code| format!("{} {}", code.number(), code.name()),
    );
    if kind == AUTHENTICATE && sequence == 0 {
        return anyhow!("connection {slot}: the gateway ended the session with {code}");
    }
    if answer.code() == Some(Code::Unauthenticated) {
        return anyhow!(
            "connection {slot}: the gateway refused its token with {code}: start the gateway with \
             --auth demo, which takes the tokens of tide bench, or name its users' with --token-template"
        );
    }
    anyhow!(
        "connection {slot}: request {sequence} of type {kind} failed with {code} \
         (retry after {retry_after_ms} ms)"
    )
}

/// Brings connections up and keeps them up. Slot `n` is user `first_user + n`.
#[derive(Debug)]
pub(super) struct Sessions {
    addresses: Vec<SocketAddr>,
    credentials: Credentials,
    raw: bool,
    count: usize,
    /// Nanoseconds between two connects; 0: as fast as it goes.
    connect_interval_ns: f64,
    /// Slots below this one have been told to connect. up <= started <= count
    started: usize,
    up: usize,
    /// When each slot began to connect, then when it began to authenticate.
    since: Vec<Nanos>,
    first_connect_at: Option<Nanos>,
    all_up_at: Nanos,
    heartbeat_interval_ns: Nanos,
    /// Heartbeats sent so far, by turns: number `n` is slot `n % count`'s.
    heartbeats: u64,
    heartbeats_since: Option<Nanos>,
    pongs: u64,
    /// From the first byte of the authentication to its answer.
    pub(super) auth_latency: Histogram<u64>,
    /// From the connect to the socket's being open.
    pub(super) connect_latency: Histogram<u64>,
}

impl Sessions {
    /// Plans `count` connections. Raw ones are up as soon as they are open.
    pub(super) fn new(args: &CommonArgs, count: usize, raw: bool) -> Self {
        Self {
            addresses: args.addresses.clone(),
            credentials: Credentials::new(args),
            raw,
            count,
            connect_interval_ns: args.connect_rate.map_or(0.0, |rate| 1e9 / rate),
            started: 0,
            up: 0,
            since: vec![0; count],
            first_connect_at: None,
            all_up_at: 0,
            heartbeat_interval_ns: u64::from(HEARTBEAT_INTERVAL_MS) * 1_000_000,
            heartbeats: 0,
            heartbeats_since: None,
            pongs: 0,
            auth_latency: histogram(),
            connect_latency: histogram(),
        }
    }

    /// Connections that are up.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// Whether all are up.
    pub(super) fn all_up(&self) -> bool {
        self.up == self.count
    }

    /// Heartbeats answered since the counting began.
    pub(super) fn pongs(&self) -> u64 {
        self.pongs
    }

    /// Starts to count heartbeats, from zero.
    pub(super) fn count_pongs_from_now(&mut self) {
        self.pongs = 0;
    }

    /// Connections brought up a second, over the whole ramp.
    pub(super) fn connects_per_second(&self) -> f64 {
        let began_at = self.first_connect_at.unwrap_or_default();
        self.up as f64 * 1e9 / (self.all_up_at.saturating_sub(began_at).max(1)) as f64
    }

    /// Opens what is due and sends the heartbeats that are; says when more will be.
    pub(super) fn tick(
        &mut self,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<Option<Nanos>> {
        let began_at = *self.first_connect_at.get_or_insert(now);
        let mut next = None;
        while self.started < self.count && self.started - self.up < UNDER_WAY_MAX {
            let due_at = began_at + due_after(self.started as u64, self.connect_interval_ns);
            if due_at > now {
                next = Some(due_at);
                break;
            }
            let slot = self.started;
            sockets.connect(slot, self.addresses[slot % self.addresses.len()])?;
            self.since[slot] = now;
            self.started += 1;
        }
        let heartbeat_at = self.heartbeat(sockets, now);
        Ok(match (next, heartbeat_at) {
            (Some(next), Some(heartbeat_at)) => Some(next.min(heartbeat_at)),
            (next, heartbeat_at) => next.or(heartbeat_at),
        })
    }

    /// Spreads the heartbeats evenly: each connection has its turn once an interval.
    fn heartbeat(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        let since = self.heartbeats_since.filter(|_| !self.raw)?;
        let spacing_ns = self.heartbeat_interval_ns as f64 / self.count as f64;
        loop {
            let due_at = since + due_after(self.heartbeats + 1, spacing_ns);
            if due_at > now {
                return Some(due_at);
            }
            let slot = usize::try_from(self.heartbeats % self.count as u64).unwrap_or_default();
            // A slot that is not authenticated yet will be, or fail, before a heartbeat matters.
            if slot < self.up {
                sockets.send(slot, put_heartbeat);
            }
            self.heartbeats += 1;
        }
    }

    /// The connection is open: authenticates it.
    pub(super) fn opened(&mut self, slot: usize, out: &mut Vec<u8>, now: Nanos) {
        record(&mut self.connect_latency, now.saturating_sub(self.since[slot]));
        self.since[slot] = now;
        if self.raw {
            self.is_up(now);
        } else {
            self.credentials.put_authenticate(slot, out);
        }
    }

    /// Takes an answer; says whether it belonged to the session.
    ///
    /// # Errors
    /// It is a failure, or out of place.
    #[inline]
    pub(super) fn answered(
        &mut self,
        slot: usize,
        answer: &Response<'_>,
        now: Nanos,
    ) -> anyhow::Result<bool> {
        match read_answer(slot, answer)? {
            SessionAnswer::NotMine => return Ok(false),
            SessionAnswer::Pong => self.pongs += 1,
            SessionAnswer::Authenticated { heartbeat_interval_ms } => {
                record(&mut self.auth_latency, now.saturating_sub(self.since[slot]));
                if heartbeat_interval_ms > 0 {
                    self.heartbeat_interval_ns = u64::from(heartbeat_interval_ms) * 1_000_000;
                }
                self.is_up(now);
            }
        }
        Ok(true)
    }

    /// A connection that is lost is an error: nobody asked for it.
    pub(super) fn closed(&self, slot: usize, cause: &CloseCause) -> anyhow::Error {
        anyhow!("connection {slot}, one of {} up, was {cause}", self.up)
    }

    fn is_up(&mut self, now: Nanos) {
        self.up += 1;
        self.all_up_at = now;
        self.heartbeats_since.get_or_insert(now);
    }
}
