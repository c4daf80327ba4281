//! Who is connected: so many connections at once, none for long without a request, and a place for whoever
//! comes next.
//!
//! Descriptors are what a gateway has least of: whoever leaves connections to this server open must not take
//! them from clients, nor lock the other operators out. So there are [`CONNECTIONS_MAX`] places. When all are
//! taken, a newcomer gets the place of another, which is closed:
//!
//! - first of those that have not shown the token, the one that came first. Who came just now
//!   has [`NEW_KEPT`] to ask, so that a crowd which connects over and over pushes nobody out unheard;
//! - [`PROVEN_MAX`] of those that have shown it keep their places. One more takes the place of the first
//!   among them that keeps the gateway waiting: for a body, for its answer to be read, for a next request;
//! - who waits for the gateway keeps its place for [`WORK_KEPT`], with the token or without.
//!
//! So a crowd of any size that does nothing keeps nobody out, and a newcomer waits for those before it alone.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio::{select, task, time};

use super::api::Arrived;
use super::stream::Stream;

/// Connections at most, beside one that waits for the place that was taken from another. The gateway keeps 64
/// descriptors for other things than clients, and needs a dozen of them elsewhere. More connections wait in
/// the kernel's accept queue.
const CONNECTIONS_MAX: usize = 40;

/// Connections that have shown the token and keep their place. The places that are left go round.
const PROVEN_MAX: usize = 24;

/// How long a request's head may take to come, from when the connection waits for it. So it is also how
/// long a connection may be silent, before its first request and between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a request's head. Longer: 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Lines of a request's head. More: 431.
const HEADERS_MAX: usize = 64;

/// Bytes that are read ahead of a connection's requests, and that its answers are cut to.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How long a newcomer keeps its place in any case: its request may come a moment after it. Where many wait, this
/// is how long each costs those behind it, divided by the places: a thousand are let in within a quarter of a
/// second.
const NEW_KEPT: Duration = Duration::from_millis(10);

/// How long whose request the gateway works on keeps its place in any case. Most are answered within it, and
/// whoever wants the place waits.
const WORK_KEPT: Duration = Duration::from_millis(100);

/// How long accepting waits after the system had no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the gateway ended a connection: the label of [`CUT`].
const CAUSES: [&str; 5] = ["evicted", "head_timeout", "idle", "malformed", "write_timeout"];

/// Counts connections that the gateway ended.
const CUT: &str = "tidegate_operator_connections_cut_total";

fn count(cause: &'static str) {
    counter!(CUT, "cause" => cause).increment(1);
}

/// The connections there are.
#[derive(Default)]
pub(super) struct Places {
    open: Mutex<Vec<Open>>,
    /// A connection has ended, or has had its answer. One waits for it.
    changed: Notify,
}

/// One connection.
struct Open {
    /// Newer ones have higher numbers.
    number: u64,
    /// When it was let in.
    since: Instant,
    /// It has shown the token, and keeps its place.
    proven: bool,
    /// Since when its request is there and not answered: it waits for the gateway.
    working: Option<Instant>,
    /// It has had an answer.
    served: bool,
    /// Ends it. `None`: it was told.
    cut: Option<oneshot::Sender<()>>,
}

/// A connection's name. The place is free again when the connection's task has ended: see [`Taken`].
#[derive(Clone)]
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
}

/// A place that is taken until this is dropped.
struct Taken(Place);

impl Places {
    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, from another connection where none is free.
    async fn take(self: &Arc<Self>, number: u64) -> (Taken, oneshot::Receiver<()>) {
        loop {
            let next = {
                let mut open = self.lock();
                if open.len() < CONNECTIONS_MAX {
                    let (cut, is_cut) = oneshot::channel();
                    open.push(Open {
                        number,
                        since: Instant::now(),
                        proven: false,
                        working: None,
                        served: false,
                        cut: Some(cut),
                    });
                    let places = Arc::clone(self);
                    return (Taken(Place { places, number }), is_cut);
                }
                evict(&mut open)
            };
            match next {
                None => self.changed.notified().await,
                Some(next) => drop(time::timeout_at(next, self.changed.notified()).await),
            }
        }
    }

    /// Ends a connection to have its descriptor.
    fn make_room(&self) {
        let _when = evict(&mut self.lock());
    }

    /// Waits until nobody is connected.
    async fn all_gone(&self) {
        while !self.lock().is_empty() {
            self.changed.notified().await;
        }
    }
}

/// Ends the connection that came first among those that have no place to keep, unless it came just now; of those
/// that wait for the gateway only who has done so for long, and where there is no other. Does nothing while one that was told
/// to go is still there. Returns when to try again, where nobody may be ended now.
fn evict(open: &mut [Open]) -> Option<Instant> {
    if open.iter().any(|connection| connection.cut.is_none()) {
        return None;
    }
    let unproven = open.iter_mut().filter(|connection| !connection.proven);
    let first = unproven.min_by_key(|other| (other.working.is_some(), other.kept_until()))?;
    let until = first.kept_until();
    if until > Instant::now() {
        return Some(until);
    }
    if let Some(cut) = first.cut.take() {
        // Its task has ended by itself when this fails.
        let _ = cut.send(());
    }
    None
}

impl Open {
    fn kept_until(&self) -> Instant {
        let new = self.since + NEW_KEPT;
        self.working.map_or(new, |working| new.max(working + WORK_KEPT))
    }
}

impl Place {
    /// The connection has shown the token. It keeps its place, if need be instead of the one that came first
    /// among those that did and now keep the gateway waiting, or else have had an answer before.
    pub(super) fn prove(&self) {
        let mut open = self.places.lock();
        if open.iter().filter(|other| other.proven && other.number != self.number).count()
            >= PROVEN_MAX
        {
            let may_go =
                |other: &&mut Open| other.proven && (other.working.is_none() || other.served);
            let others = open.iter_mut().filter(may_go);
            let Some(first) = others.min_by_key(|other| (other.working, other.number)) else {
                return;
            };
            first.proven = false;
        }
        drop(open);
        self.update(|this| this.proven = true);
    }

    /// Says whether the gateway works on the connection's request, all of which is there.
    pub(super) fn set_working(&self, working: bool) {
        self.update(|this| this.working = working.then(Instant::now));
    }

    fn set_served(&self) {
        self.update(|this| (this.working, this.served) = (None, true));
        self.places.changed.notify_one();
    }

    fn update(&self, change: impl FnOnce(&mut Open)) {
        let mut open = self.places.lock();
        if let Some(this) = open.iter_mut().find(|this| this.number == self.number) {
            change(this);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Place { places, number } = &self.0;
        places.lock().retain(|connection| connection.number != *number);
        places.changed.notify_one();
    }
}

/// Accepts and serves connections until it is told to stop, and then ends them: who has a request under way
/// gets its answer, if it comes within `grace`.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    stopped: oneshot::Receiver<()>,
    grace: Duration,
) {
    CAUSES.iter().for_each(|&cause| counter!(CUT, "cause" => cause).increment(0));
    let places = Arc::<Places>::default();
    let (drain, draining) = watch::channel(());
    let accepting = {
        let places = Arc::clone(&places);
        task::spawn(async move { accept(&listener, &places, &router, &draining).await })
    };
    // Its sender is dropped, or sends.
    drop(stopped.await);
    accepting.abort();
    // The listener is gone with it: nobody else is let in.
    drop(accepting.await);
    drop(drain);
    drop(time::timeout(grace, places.all_gone()).await);
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Places>,
    router: &Router,
    draining: &watch::Receiver<()>,
) {
    // One line for each time that it begins to fail.
    let mut fails = false;
    for number in 0.. {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    fails = false;
                    // A crowd that connects and resets has one gone for each that waits.
                    if matches!(stream.take_error(), Ok(None)) {
                        break stream;
                    }
                }
                // One that was gone before it was accepted is no reason to wait.
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        tracing::error!(%error, "can't accept operators' connections; goes on trying");
                    }
                    places.make_room();
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let (taken, cut) = places.take(number).await;
        task::spawn(serve_one(stream, taken, cut, router.clone(), draining.clone()));
        // It runs, and the kernel is asked for its bytes, before the next one comes and may take its place.
        task::yield_now().await;
    }
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn serve_one(
    stream: TcpStream,
    taken: Taken,
    cut: oneshot::Receiver<()>,
    router: Router,
    mut draining: watch::Receiver<()>,
) {
    let place = taken.0.clone();
    let router = TowerToHyperService::new(router);
    let served = Arc::new(AtomicBool::new(false));
    let is_served = Arc::clone(&served);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(place.clone());
        request.extensions_mut().insert(Arrived(Instant::now()));
        let (answer, place, served) = (router.call(request), place.clone(), Arc::clone(&served));
        async move {
            let answer = answer.await;
            place.set_served();
            served.store(true, Ordering::Relaxed);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        // Who has nothing more to send may still wait for the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(Stream::new(stream)), service);
    let mut connection = pin!(connection);
    let mut drains = false;
    let ended = {
        let mut cut = pin!(cut);
        loop {
            select! {
                ended = connection.as_mut() => break ended,
                _ = cut.as_mut() => return count("evicted"),
                // Its sender says nothing: it is dropped.
                _ = draining.changed(), if !drains => {
                    drains = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = ended
        && let Some(cause) = cause_of(&error, is_served.load(Ordering::Relaxed))
    {
        count(cause);
    }
}

/// Why a connection was ended. `None`: its peer did, or the network.
fn cause_of(error: &hyper::Error, served: bool) -> Option<&'static str> {
    let timed_out = || {
        let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
        (source.kind() == io::ErrorKind::TimedOut).then_some("write_timeout")
    };
    match error {
        _ if error.is_timeout() => Some(if served { "idle" } else { "head_timeout" }),
        _ if error.is_parse() => Some("malformed"),
        _ => timed_out(),
    }
}
