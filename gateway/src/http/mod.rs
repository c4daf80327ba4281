//! HTTP for clients' rare requests, on a thread of its own beside the shards.
//!
//! A listener whose wire is `http` or `https` serves the requests of `[[http_routes]]`. Each leads to a type, and so to the
//! same route, backend, timeout and bounds as a request over a session. There is no session: a backend sees a
//! [`session`](tidegate_backend::Call::session) that no shard has, so it can't join a room.
//!
//! | module | what it owns |
//! |---|---|
//! | `connections` | accepting, the PROXY header, TLS, deadlines, the drain of a connection |
//! | `slots` | how many connections are open, and which is closed for a new one |
//! | `handshakes` | how many TLS handshakes begin |
//! | `proxied` | the PROXY header of a stream |
//! | `head_scanner` | whether a request's length is ambiguous |
//! | `exchange` | one request and its answer |
//! | `routes` | path and method -> type |
//! | `transcode` | bodies and queries <-> what backends get |
//! | `media` | what a request sends and accepts |
//! | `error` | why a request fails: status and code |
//! | `dispatcher` | calls without an answer: to backends, one more shard |
//! | `openapi` | the document that describes the routes |
//! | `metrics` | its figures |
//!
//! hyper reads and writes HTTP/1. HTTP/2 is not served: its streams would need bounds of their own, and a client
//! with many requests has a session.

mod connections;
mod dispatcher;
mod error;
mod exchange;
mod handshakes;
mod head_scanner;
mod media;
pub mod metrics;
mod openapi;
mod proxied;
mod routes;
mod slots;
mod transcode;

use std::io;
use std::net::TcpListener;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tidegate_backend::log_limit::LogLimit;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::{select, task, time};

use connections::Listener;
use dispatcher::Dispatcher;
use exchange::Site;
use handshakes::Handshakes;
pub(crate) use routes::Routes;
use slots::{PROTECTED, Slots};
pub use transcode::MessageError;

use crate::config::{HttpConfig, ListenerConfig};
use crate::http_io::accept::AcceptQueue;
use crate::parts::Parts;
use crate::settings::Settings;
use crate::shard::mailbox::Address;
use crate::shard::{Shared, draining};
use crate::telemetry::panics::text_of;
use crate::wire::certificates::Certificates;

/// Where the document is that describes the routes.
pub(crate) const OPENAPI_PATH: &str = "/openapi.json";

/// How far the end of the HTTP gateway has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// `/readyz` says that the gateway drains, and requests are served as before.
    Grace,
    Draining,
    /// Answers under way have a second at most.
    Hurried,
    Stopped,
}

/// Moves the HTTP gateway to its end.
#[derive(Clone, Debug)]
pub(crate) struct HttpPhase {
    phase: watch::Sender<Phase>,
    settings: Arc<ArcSwap<Settings>>,
}

impl HttpPhase {
    /// After the time of grace: accepts no new connections, and answers further requests with 503 and 108. Requests that
    /// have arrived get their answers.
    pub(crate) fn drain(&self) {
        self.advance(if self.grace().is_zero() { Phase::Draining } else { Phase::Grace });
    }

    fn grace(&self) -> Duration {
        self.settings.load().config.shutdown.ready_grace
    }

    /// Drains in a hurry.
    pub(crate) fn hurry(&self) {
        self.advance(Phase::Hurried);
    }

    /// Goes on to a phase, never back.
    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let is_later = *phase < to;
            *phase = to.max(*phase);
            is_later
        });
    }

    /// Ends the time of grace when it is over.
    async fn end_grace(self) {
        let mut phases = self.phase.subscribe();
        drop(phases.wait_for(|phase| *phase != Phase::Serving).await);
        time::sleep(self.grace()).await;
        self.advance(Phase::Draining);
    }
}

/// Ends the HTTP gateway at once when it is dropped. Others keep the phase too, so that its channel stays open.
#[derive(Debug)]
struct StopsAtDrop(HttpPhase);

impl Drop for StopsAtDrop {
    fn drop(&mut self) {
        self.0.advance(Phase::Stopped);
    }
}

/// Checks what can be checked without serving: the messages that routes name.
///
/// # Errors
/// [`MessageError`].
pub fn check(config: &HttpConfig) -> Result<(), MessageError> {
    Routes::load(config).map(drop)
}

/// What the HTTP gateway needs of the server.
pub(crate) struct Surroundings {
    pub(crate) parts: Parts,
    /// Where answers and verdicts on tokens come to.
    pub(crate) address: Address,
    /// One for each of `config.http.listeners`.
    pub(crate) sockets: Vec<TcpListener>,
    pub(crate) certificates: Option<Arc<Certificates>>,
}

/// A running HTTP gateway. Dropping it stops it too, without waiting for it.
#[derive(Debug)]
pub(crate) struct HttpServer {
    phase: StopsAtDrop,
    thread: JoinHandle<()>,
}

impl HttpServer {
    /// Starts the thread. If it fails, `on_failure` is called with the reason.
    ///
    /// # Errors
    /// When the system refuses a thread or a poller.
    pub(crate) fn start(
        surroundings: Surroundings,
        routes: Routes,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        metrics::register();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let settings = Arc::clone(&surroundings.parts.shared.settings);
        let phase = HttpPhase { phase, settings };
        let end_grace = phase.clone().end_grace();
        let run = move || {
            let run = || serve(&runtime, surroundings, routes, phases, end_grace);
            match panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => on_failure(error.to_string()),
                Err(payload) => on_failure(format!("it panicked: {}", text_of(&*payload))),
            }
        };
        let thread = thread::Builder::new().name("http".into()).spawn(run)?;
        Ok(Self { phase: StopsAtDrop(phase), thread })
    }

    /// What moves it to its end.
    pub(crate) fn phase(&self) -> HttpPhase {
        self.phase.0.clone()
    }

    /// Ends at once.
    pub(crate) fn stop(&self) {
        self.phase.0.advance(Phase::Stopped);
    }

    /// Waits until it has drained.
    pub(crate) fn join(self) {
        self.phase.0.drain();
        // It has reported its panic, if there was one.
        drop(self.thread.join());
    }
}

/// Reads the messages that routes name.
pub(crate) fn load_routes(config: &HttpConfig) -> Result<Routes, MessageError> {
    Routes::load(config)
}

fn serve(
    runtime: &Runtime,
    surroundings: Surroundings,
    routes: Routes,
    phases: watch::Receiver<Phase>,
    end_grace: impl Future<Output = ()> + 'static,
) -> io::Result<()> {
    let Surroundings { parts, address, sockets, certificates } = surroundings;
    let settings = parts.shared.settings();
    let config = &settings.config;
    let http = &config.http;
    let document = || Bytes::from(openapi::document(&routes).to_string());
    let openapi = http.openapi.then(document);
    let connections_max = http.connections_max;
    let local = LocalSet::new();
    let served = local.block_on(runtime, async {
        let dispatcher = Rc::new(Dispatcher::new(&parts, &address));
        let site = Rc::new(Site {
            routes,
            dispatcher: Rc::clone(&dispatcher),
            shared: Arc::clone(&parts.shared),
            openapi,
            handshakes: Handshakes::new(config.tls.handshakes_per_second_max),
            phases: phases.clone(),
            oversize_answers: LogLimit::new(),
            bad_answers: LogLimit::new(),
        });
        let slots = Slots::new(connections_max, PROTECTED);
        let turns = task::spawn_local(dispatcher.run());
        task::spawn_local(end_grace);
        let mut accepting = Vec::new();
        for (socket, config) in sockets.into_iter().zip(&http.listeners) {
            let listener = listener_of(socket, config, certificates.as_deref())?;
            let accept =
                connections::accept(listener, Rc::clone(&site), Rc::clone(&slots), phases.clone());
            accepting.push(task::spawn_local(accept));
        }
        let over = drain_is_over(phases, Arc::clone(&parts.shared));
        let ended = async {
            let all_have_ended = async {
                for accept in &mut accepting {
                    drop(accept.await);
                }
                slots.wait_until_empty().await;
            };
            select! {
                () = all_have_ended => {}
                () = over => {}
            }
            // Their time is over too: what is left for them is to count the connections that are reset.
            for accept in accepting.iter_mut().filter(|accept| !accept.is_finished()) {
                drop(time::timeout(COUNT_TIMEOUT, accept).await);
            }
        };
        select! {
            ended = turns => Err(io::Error::other(format!("its calls failed: {ended:?}"))),
            () = ended => Ok(()),
        }
    });
    // What is left ends with the tasks.
    drop(local);
    served
}

/// How long the tasks that accept may take to count what they reset.
const COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a drain that is hurried waits for answers.
const HURRY: Duration = Duration::from_millis(draining::HURRY_MS);

/// Waits until the gateway drains and its time of grace is over. It drops what `wait_for` returns at once: that is a lock, which
/// blocks the sender.
async fn drain_begins(phases: &mut watch::Receiver<Phase>) {
    // Its sender may be dropped.
    drop(phases.wait_for(|phase| *phase >= Phase::Draining).await);
}

/// Waits until the gateway has drained for as long as it may, or is stopped.
async fn drain_is_over(mut phases: watch::Receiver<Phase>, shared: Arc<Shared>) {
    drain_begins(&mut phases).await;
    let drain_timeout = shared.settings().config.shutdown.drain_timeout;
    let mut hurried = phases.clone();
    let is_hurried = async {
        drop(hurried.wait_for(|phase| *phase >= Phase::Hurried).await);
        time::sleep(HURRY).await;
    };
    let is_stopped = async { drop(phases.wait_for(|phase| *phase == Phase::Stopped).await) };
    select! {
        () = time::sleep(drain_timeout) => {}
        () = is_hurried => {}
        () = is_stopped => {}
    }
}

fn listener_of(
    socket: TcpListener,
    config: &ListenerConfig,
    certificates: Option<&Certificates>,
) -> io::Result<Listener> {
    socket.set_nonblocking(true)?;
    let tls = certificates.filter(|_| config.wire.has_tls()).map(Certificates::websocket);
    let (queue, proxy) = (AcceptQueue::new(socket)?, config.proxy_rules());
    Ok(Listener { queue, config: Rc::new(config.clone()), tls, proxy })
}
