//! Accepts operators' connections and serves each in a separate task. The [table](super::connection_table) says
//! how many there are at once, and which is closed for a new connection.
//!
//! A connection without the token gets one answer and is closed, so what it costs is bounded: what it sends
//! after its request is not served. Probes of orchestrators and load balancers use one connection per request in any
//! case. A connection that has shown the token may send more requests.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::counter;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio::{select, task, time};

use super::access::Peer;
use super::connection_table::{ConnectionHandle, ConnectionTable, Slot};
use super::metrics_cache::Arrived;
use crate::http_io::accept::{ACCEPT_PAUSE, AcceptQueue};
use crate::http_io::cause_of;
use crate::http_io::stream::{Observer, Stream};

/// How long a request's head may take to arrive, from when the connection waits for it. So it is also how long a
/// connection may be silent before its first request and between two.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a request's head. Longer: 431.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most fields of a request's head. More: 431.
const HEADERS_MAX: usize = 64;

/// Most bytes of a connection that are read ahead, and most that are written at once.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Why the gateway closed a connection: the values of the label `reason` of [`CLOSED`].
const REASONS: [&str; 5] = ["evicted", "head_timeout", "idle", "malformed", "write_timeout"];

/// Counts connections that the gateway closed.
const CLOSED: &str = "tidegate_operator_connections_closed_total";

fn count(reason: &'static str) {
    counter!(CLOSED, "reason" => reason).increment(1);
}

/// Accepts and serves connections until `stopped`, and then ends them: a request under way gets its answer if it
/// comes within `grace`.
pub(super) async fn serve(
    queue: AcceptQueue,
    service: HttpService,
    stopped: oneshot::Receiver<()>,
    grace: Duration,
) {
    REASONS.iter().for_each(|&reason| counter!(CLOSED, "reason" => reason).increment(0));
    let table = Arc::<ConnectionTable>::default();
    let (drain, draining) = watch::channel(());
    let accepting = {
        let table = Arc::clone(&table);
        task::spawn(async move { accept_all(&queue, &table, &service, &draining).await })
    };
    // Its sender is dropped, or sends.
    drop(stopped.await);
    accepting.abort();
    // This drops the queue: no more connections are accepted.
    drop(accepting.await);
    drop(drain);
    drop(time::timeout(grace, table.wait_until_empty()).await);
}

/// How requests are read and answered.
#[derive(Clone)]
pub(super) struct HttpService {
    pub(super) router: Router,
    /// [`HEAD_TIMEOUT`]; tests use another.
    pub(super) head_timeout: Duration,
}

async fn accept_all(
    queue: &AcceptQueue,
    table: &Arc<ConnectionTable>,
    service: &HttpService,
    draining: &watch::Receiver<()>,
) {
    // The log gets one line each time that accepting begins to fail.
    let mut fails = false;
    for number in 0.. {
        let (stream, peer) = loop {
            match queue.next().await {
                Ok(accepted) => break accepted,
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        tracing::error!(%error, "can't accept operators' connections; will try again");
                    }
                    table.free_descriptor();
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        fails = false;
        let (slot, evicted) = table.add(number).await;
        task::spawn(serve_one(
            (stream, Peer(peer)),
            slot,
            evicted,
            service.clone(),
            draining.clone(),
        ));
        // The task reads what has arrived before the next connection may take its slot.
        task::yield_now().await;
    }
}

impl Observer for ConnectionHandle {
    fn on_closing(&mut self) {
        self.mark_closing();
    }
}

async fn serve_one(
    (stream, peer): (TcpStream, Peer),
    slot: Slot,
    evicted: oneshot::Receiver<()>,
    HttpService { router, head_timeout }: HttpService,
    mut draining: watch::Receiver<()>,
) {
    let handle = slot.0.clone();
    let stream = Stream::new(stream, handle.clone());
    let router = TowerToHyperService::new(router);
    let answered = Arc::new(AtomicBool::new(false));
    let is_answered = Arc::clone(&answered);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(handle.clone());
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(Arrived(Instant::now()));
        let (answer, handle, answered) =
            (router.call(request), handle.clone(), Arc::clone(&answered));
        async move {
            let mut answer = answer.await?;
            if !handle.mark_answered() {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            answered.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        // A peer that has ended its side may still wait for the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut drains = false;
    let ended = {
        let mut evicted = pin!(evicted);
        loop {
            select! {
                ended = connection.as_mut() => break ended,
                _ = evicted.as_mut() => return count("evicted"),
                // Its sender says nothing: it is dropped.
                _ = draining.changed(), if !drains => {
                    drains = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = ended
        && let Some(cause) = cause_of(&error, is_answered.load(Ordering::Relaxed))
    {
        count(cause);
    }
}
