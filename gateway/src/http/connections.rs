//! Accepts clients' connections and serves each on a task of its own.
//!
//! A connection has `limits.open_timeout_ms` for its PROXY header and its TLS handshake, `http.head_timeout_ms` for each head,
//! and so between two requests, and a fixed time in which an answer has to be read. So each slot becomes free again. When none
//! is free, `slots` says which connection is closed for a new one.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::counter;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio::{select, task};
use tokio_rustls::TlsAcceptor;

use super::exchange::{Client, Site};
use super::metrics::{ACCEPT_PAUSES, count_closed, count_refused};
use super::slots::{Slot, Slots};
use super::{Phase, drain_begins, drain_is_over, proxied};
use crate::config::ListenerConfig;
use crate::http_io::accept::{ACCEPT_PAUSE, AcceptQueue, Accepted};
use crate::http_io::cause_of;
use crate::http_io::stream::{Observer, Stream};
use crate::limits::addresses::Refusal;
use crate::shard::Shared;
use crate::wire::proxy::{Mistake, ProxyRules};

/// Most fields of a request's head. More: 431.
const HEADERS_MAX: usize = 100;

/// Bytes of a connection that are read ahead, and that are written at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// How long a connection that has sent nothing may stay when the gateway drains: its request may be on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// A listening socket, and what clients speak there.
pub(super) struct Listener {
    pub(super) queue: AcceptQueue,
    pub(super) config: Rc<ListenerConfig>,
    pub(super) tls: Option<Arc<ArcSwap<ServerConfig>>>,
    pub(super) proxy: Option<Arc<ProxyRules>>,
}

/// Accepts until the gateway drains, and then what waits in the kernel's queue, which would reset it. Ends when that is served,
/// and at the latest when the drain is over.
pub(super) async fn accept(
    listener: Listener,
    site: Rc<Site>,
    slots: Rc<Slots>,
    phases: watch::Receiver<Phase>,
) {
    let over = drain_is_over(phases.clone(), Arc::clone(&site.shared));
    let accepting = Accepting { listener, site, slots, phases, without_slot: Cell::new(0) };
    select! {
        () = accepting.run() => {}
        () = over => {}
    }
    let connections = accepting.listener.queue.close() + accepting.without_slot.get();
    if connections > 0 {
        counter!("tidegate_accept_queue_resets_total").increment(connections.into());
        let listener = &accepting.listener.config.name;
        tracing::warn!(
            listener,
            connections,
            "HTTP connections were reset in the accept queue: there was no room for them before the drain's end"
        );
    }
}

/// A listening socket that is accepted from.
struct Accepting {
    listener: Listener,
    site: Rc<Site>,
    slots: Rc<Slots>,
    phases: watch::Receiver<Phase>,
    /// 1 while an accepted connection waits for a slot.
    without_slot: Cell<u32>,
}

impl Accepting {
    async fn run(&self) {
        let mut phases = self.phases.clone();
        let mut failures = Failures::default();
        loop {
            let accepted = select! {
                accepted = self.listener.queue.next() => accepted,
                () = drain_begins(&mut phases) => break,
            };
            match accepted {
                Ok(accepted) => {
                    failures.end();
                    self.serve(accepted).await;
                }
                Err(error) => failures.wait(&error).await,
            }
        }
        // The queue is first in, first out: after as many accepts as it holds, each connection is accepted that waited when the
        // drain began, however many have come since.
        let mut left = self.listener.queue.capacity();
        loop {
            match self.listener.queue.next_waiting(&mut left).await {
                Ok(None) => return,
                Ok(Some(accepted)) => {
                    failures.end();
                    self.serve(accepted).await;
                }
                Err(error) => failures.wait(&error).await,
            }
        }
    }

    /// Serves a connection as soon as it has a slot.
    async fn serve(&self, (tcp, peer): Accepted) {
        self.without_slot.set(1);
        let slot = Rc::new(self.slots.take().await);
        self.without_slot.set(0);
        let serving = Serving {
            site: Rc::clone(&self.site),
            config: Rc::clone(&self.listener.config),
            tls: self.listener.tls.as_ref().map(|tls| tls.load_full()),
            proxy: self.listener.proxy.clone(),
            phases: self.phases.clone(),
            slot,
        };
        task::spawn_local(serving.run(tcp, peer));
        // The tasks that run have their turn.
        task::yield_now().await;
    }
}

/// Whether accepting fails. The log gets one line each time that it begins to.
#[derive(Default)]
struct Failures {
    has_failed: bool,
}

impl Failures {
    async fn wait(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_failed, true) {
            tracing::error!(%error, "can't accept HTTP connections; will try again");
        }
        counter!(ACCEPT_PAUSES).increment(1);
        sleep(ACCEPT_PAUSE).await;
    }

    const fn end(&mut self) {
        self.has_failed = false;
    }
}

/// A connection that is served.
struct Serving {
    site: Rc<Site>,
    config: Rc<ListenerConfig>,
    tls: Option<Arc<ServerConfig>>,
    proxy: Option<Arc<ProxyRules>>,
    phases: watch::Receiver<Phase>,
    slot: Rc<Slot>,
}

impl Serving {
    async fn run(self, tcp: TcpStream, peer: SocketAddr) {
        let slot = Rc::clone(&self.slot);
        select! {
            // First, so that no request is begun and cut off.
            biased;
            () = slot.evicted() => count_closed("evicted"),
            () = self.open_and_serve(tcp, peer) => {}
        }
    }

    async fn open_and_serve(self, tcp: TcpStream, peer: SocketAddr) {
        let open_timeout = self.site.dispatcher.settings().config.limits.open_timeout;
        let waits_for_header = Cell::new(true);
        let opening = async {
            let proxied = proxied::open(tcp, peer, self.proxy.as_deref()).await;
            waits_for_header.set(false);
            let (stream, address) = proxied.map_err(|error| ended(&error, "proxy"))?;
            let admitted = Admitted::new(&self.site.shared, address.ip());
            let address = (address, admitted.map_err(|refusal| Some(refusal.label()))?);
            let Some(tls) = &self.tls else { return Ok((None, Some(stream), address)) };
            self.site.handshakes.begin().await;
            let accepted = TlsAcceptor::from(Arc::clone(tls)).accept(stream).await;
            let stream = accepted.map_err(|error| ended(&error, "tls"))?;
            Ok::<_, Option<&'static str>>((Some(stream), None, address))
        };
        let opened = timeout(open_timeout, opening).await.unwrap_or_else(|_| {
            if let Some(rules) = self.proxy.as_ref().filter(|_| waits_for_header.get()) {
                rules.warn(peer, Mistake::Late);
            }
            Err(Some("open_timeout"))
        });
        match opened {
            Ok((Some(stream), _, (address, _admitted))) => self.serve(stream, address).await,
            Ok((_, Some(stream), (address, _admitted))) => self.serve(stream, address).await,
            Ok((None, None, _)) | Err(None) => {}
            Err(Some(reason)) => count_closed(reason),
        }
    }

    async fn serve(mut self, stream: impl AsyncRead + AsyncWrite + Unpin, address: SocketAddr) {
        let settings = self.site.dispatcher.settings();
        let config = &settings.config.http;
        let client = Rc::new(Client::new(
            address,
            Rc::clone(&self.config),
            Rc::clone(&self.slot),
            config.head_bytes_max,
        ));
        let service = service_fn(|request| {
            let (site, client) = (Rc::clone(&self.site), Rc::clone(&client));
            async move { Ok::<_, Infallible>(site.exchange(&client, request).await) }
        });
        let stream = Stream::new(stream, Rc::clone(&client));
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(config.head_timeout)
                .max_header_size(config.head_bytes_max)
                .max_headers(HEADERS_MAX)
                .max_buf_size(BUFFER_BYTES.max(config.head_bytes_max))
                // A client that has ended its side may still wait for the answer.
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
        );
        let draining = async {
            drain_begins(&mut self.phases).await;
            if !client.has_sent.get() {
                // hyper would close it at once, though its request may be on its way.
                sleep(DRAIN_GRACE).await;
            }
        };
        let ended = select! {
            ended = connection.as_mut() => ended,
            () = draining => {
                if !client.has_sent.get() {
                    return count_closed("draining");
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            count_refused(&error);
            if let Some(reason) = cause_of(&error, client.answered.get() > 0) {
                count_closed(reason);
            }
        }
    }
}

/// A connection that counts for its address, until this is dropped.
struct Admitted {
    shared: Arc<Shared>,
    /// `None`: it does not count.
    address: Option<IpAddr>,
}

impl Admitted {
    fn new(shared: &Arc<Shared>, address: IpAddr) -> Result<Self, Refusal> {
        let is_counted = shared.address_limits.accept(address, shared.address_limits.now_us())?;
        Ok(Self { shared: Arc::clone(shared), address: is_counted.then_some(address) })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.address.into_iter().for_each(|address| self.shared.address_limits.close(address));
    }
}

impl Observer for Rc<Client> {
    fn on_received(&mut self, bytes: &[u8]) {
        self.has_sent.set(true);
        self.scanner.borrow_mut().on_bytes(bytes);
    }

    fn on_flushed(&mut self) {
        if !self.is_busy.get() {
            self.slot.wait_for_peer();
        }
    }
}

/// Why the gateway closes a connection that could not be opened; `None`: the peer has closed it.
fn ended(error: &io::Error, reason: &'static str) -> Option<&'static str> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let by_peer = matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe);
    (!by_peer).then_some(reason)
}
