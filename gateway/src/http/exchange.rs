//! One request and its answer.
//!
//! What can be refused is refused before the body is read, and in this order: clients that are too fast, what can't be
//! understood, pages of foreign origins, paths and methods, a gateway that drains, tokens, types of bodies. So a request without a
//! valid token costs its head, and a client that is too fast costs no more whatever it asks for.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderName, HeaderValue, StatusCode, Version, header};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, Response};
use metrics::counter;
use tidegate_backend::handler::Failure;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{Code, UserId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::dispatcher::{Ask, Dispatcher, count_refused_token};
use super::error::{Answer, HttpError, spread_ms};
use super::handshakes::Handshakes;
use super::head_scanner::{Framing, HeadScanner};
use super::media;
use super::metrics::{count_answered, count_closed, count_failure};
use super::routes::{Methods, Route, Routes};
use super::slots::Slot;
use super::transcode::Body;
use super::{OPENAPI_PATH, Phase};
use crate::auth::Verification;
use crate::config::{Config, LimitsConfig, ListenerConfig};
use crate::driver::ConnId;
use crate::http_io::bearer;
use crate::limits::rate::{Rate, RateLimiter};
use crate::shard::Shared;

/// The header with the user, where the token does not say it.
pub(super) const USER: HeaderName = HeaderName::from_static("tidegate-user");

/// The header with a request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id of a request that is taken from its client.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// What the answer to a preflight allows.
const ALLOWED_HEADERS: HeaderValue =
    HeaderValue::from_static("Authorization, Content-Type, Tidegate-User, X-Request-Id");

/// What pages may read beside the usual headers.
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static("Retry-After, X-Request-Id");

/// How long a browser may keep the answer to a preflight, in seconds.
const PREFLIGHT_MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");

/// What all requests share.
pub(super) struct Site {
    pub(super) routes: Routes,
    pub(super) dispatcher: Rc<Dispatcher>,
    pub(super) shared: Arc<Shared>,
    /// How far the end of the HTTP gateway has come.
    pub(super) phases: watch::Receiver<Phase>,
    /// The document that describes the routes; `None`: it is not served.
    pub(super) openapi: Option<Bytes>,
    pub(super) handshakes: Handshakes,
    pub(super) oversize_answers: LogLimit,
    pub(super) bad_answers: LogLimit,
}

/// A client's connection.
pub(super) struct Client {
    address: SocketAddr,
    listener: Rc<ListenerConfig>,
    pub(super) slot: Rc<Slot>,
    /// With the rate that it is for.
    limiter: RefCell<(Option<Rate>, RateLimiter)>,
    pub(super) scanner: RefCell<HeadScanner>,
    /// Whether it has sent anything.
    pub(super) has_sent: Cell<bool>,
    /// Requests that were answered.
    pub(super) answered: Cell<u64>,
    /// Answers with 401 since the last valid token.
    auth_failures: Cell<u8>,
    /// Whether a request is being answered.
    pub(super) is_busy: Cell<bool>,
    /// Whether the body of that request has not been read.
    has_unread: Cell<bool>,
}

impl Client {
    pub(super) fn new(
        address: SocketAddr,
        listener: Rc<ListenerConfig>,
        slot: Rc<Slot>,
        head_bytes_max: usize,
    ) -> Self {
        Self {
            address,
            listener,
            slot,
            limiter: RefCell::new((None, RateLimiter::new())),
            scanner: RefCell::new(HeadScanner::new(head_bytes_max)),
            has_sent: Cell::new(false),
            answered: Cell::new(0),
            auth_failures: Cell::new(0),
            is_busy: Cell::new(false),
            has_unread: Cell::new(false),
        }
    }

    /// A request has arrived.
    fn begin(&self, has_body: bool) {
        self.slot.work();
        self.is_busy.set(true);
        self.has_unread.set(has_body);
    }

    /// It has its answer.
    fn end(&self) {
        self.answered.set(self.answered.get() + 1);
        self.is_busy.set(false);
        if !self.slot.has_authenticated() {
            // So a client that does not read its answers can't keep a slot.
            self.slot.wait_for_peer();
        }
    }

    /// The client has shown a valid token.
    fn mark_authenticated(&self) {
        self.auth_failures.set(0);
        self.slot.mark_authenticated();
    }

    /// A request had no valid token. Returns how many had none since the last valid one.
    fn count_auth_failure(&self) -> u8 {
        self.auth_failures.set(self.auth_failures.get().saturating_add(1));
        self.auth_failures.get()
    }
}

/// What a request asks for.
enum Target<'a> {
    Route(&'a Route),
    OpenApi(&'a Bytes),
    /// Which methods there are.
    Options(&'static str),
}

impl Site {
    /// Answers a request.
    pub(super) async fn exchange(&self, client: &Client, request: Request<Incoming>) -> Answer {
        client.begin(!request.body().is_end_stream());
        // Each request has its own: a call that hangs holds up no other one, not even behind a balancer that sends the requests of
        // many clients over one connection.
        let conn = self.dispatcher.new_conn();
        let began = Instant::now();
        let framing = client.scanner.borrow_mut().next();
        let id = request_id(&request);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let preflight = preflight(&request);
        let answered = self.answer(client, conn, request, framing).await;
        let code = answered.as_ref().err().map(HttpError::code);
        if let Err(HttpError::BadToken(error)) = &answered
            && error.is_guess()
        {
            let limits = &self.shared.address_limits;
            limits.login_failed(client.address.ip(), limits.now_us());
        }
        let mut answer = answered.unwrap_or_else(|error| {
            if !matches!(error, HttpError::NoToken | HttpError::BadToken(_)) {
                count_failure(error.code());
            }
            error.answer(conn.slot)
        });
        let is_last = code == Some(Code::Unauthenticated)
            && client.count_auth_failure() >= self.dispatcher.settings().config.auth.failures_max;
        allow_origin(&client.listener.origins, origin.as_ref(), preflight, &mut answer);
        let headers = answer.headers_mut();
        if framing != Some(Framing::Length) || client.has_unread.get() {
            // Nothing behind a chunked request is read: see `head_scanner`. A body that was not read is in front of the next
            // request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if is_last {
            count_closed("auth_failed");
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let status = answer.status();
        count_answered(status);
        tracing::debug!(
            request_id = id.to_str().unwrap_or_default(),
            client = %client.address,
            listener = client.listener.name,
            %method,
            path,
            status = status.as_u16(),
            code = code.map(Code::number),
            us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            "an HTTP request was answered"
        );
        answer.headers_mut().insert(REQUEST_ID, id);
        client.end();
        answer
    }

    async fn answer(
        &self,
        client: &Client,
        conn: ConnId,
        request: Request<Incoming>,
        framing: Option<Framing>,
    ) -> Result<Answer, HttpError> {
        self.check_rate(client)?;
        check_framing(&request, framing)?;
        check_origin(&client.listener.origins, request.headers().get(header::ORIGIN))?;
        let route = match self.target(&request)? {
            Target::Options(allow) => return Ok(options(allow)),
            Target::OpenApi(document) => {
                media::check_accepted(request.headers(), media::JSON)?;
                return Ok(ok(document.clone(), media::JSON));
            }
            Target::Route(route) => route,
        };
        self.check_drain(conn)?;
        let media = if matches!(route.body, Body::Bytes) { media::BYTES } else { media::JSON };
        let user_id = if route.is_public {
            0
        } else {
            let user_id = self.authenticate(client, conn, &request).await?;
            client.mark_authenticated();
            user_id
        };
        media::check_accepted(request.headers(), media)?;
        let biz_data = if matches!(*request.method(), Method::GET | Method::HEAD) {
            route.body.query(request.uri().query().unwrap_or_default())?
        } else {
            self.body(client, route, request).await?
        };
        let _permit = self.dispatcher.admit().map_err(HttpError::Failed)?;
        let ask = Ask { conn, user_id, kind: route.kind, biz_data };
        let outcome = self.dispatcher.ask(ask).await.map_err(HttpError::Failed)?;
        self.pass_on(route, outcome, media)
    }

    fn target(&self, request: &Request<Incoming>) -> Result<Target<'_>, HttpError> {
        let (method, path) = (request.method(), request.uri().path());
        if path == "*" && method == Method::OPTIONS {
            return Ok(Target::Options("GET, HEAD, POST, OPTIONS"));
        }
        if let Some(document) = self.openapi.as_ref().filter(|_| path == OPENAPI_PATH) {
            let allow = "GET, HEAD, OPTIONS";
            return match *method {
                Method::GET | Method::HEAD => Ok(Target::OpenApi(document)),
                Method::OPTIONS => Ok(Target::Options(allow)),
                _ => Err(HttpError::BadMethod { allow }),
            };
        }
        let methods: &Methods = self.routes.paths.get(path).ok_or(HttpError::NoPath)?;
        if method == Method::OPTIONS {
            return Ok(Target::Options(methods.allow()));
        }
        methods.route(method).map(Target::Route)
    }

    fn check_drain(&self, conn: ConnId) -> Result<(), HttpError> {
        if *self.phases.borrow() < Phase::Draining {
            return Ok(());
        }
        let wait = self.dispatcher.settings().config.shutdown.retry_after;
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let retry_after_ms = spread_ms(wait_ms, conn.slot);
        Err(HttpError::Failed(Failure { code: Code::Draining, retry_after_ms }))
    }

    fn check_rate(&self, client: &Client) -> Result<(), HttpError> {
        let Some(rate) = rate_of(&self.dispatcher.settings().config) else { return Ok(()) };
        let since = self.shared.started.elapsed();
        let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut limiter = client.limiter.borrow_mut();
        if limiter.0 != Some(rate) {
            // What it used of another rate means nothing here.
            *limiter = (Some(rate), RateLimiter::new());
        }
        limiter.1.admit(rate, now_ms).map_err(|retry_after_ms| {
            HttpError::Failed(Failure { code: Code::RateLimited, retry_after_ms })
        })
    }

    async fn authenticate(
        &self,
        client: &Client,
        conn: ConnId,
        request: &Request<Incoming>,
    ) -> Result<UserId, HttpError> {
        let token = bearer(request.headers()).ok_or(HttpError::NoToken);
        let token = token.inspect_err(|_| count_failure(Code::Unauthenticated))?;
        let settings = self.dispatcher.settings();
        let verifier = &settings.verifier;
        let user_id = match request.headers().get(USER) {
            Some(text) => {
                let number = text.to_str().ok().and_then(|text| text.parse().ok());
                number.ok_or(HttpError::BadUser)?
            }
            None => match verifier.claimed_user(token) {
                Some(user_id) => user_id,
                None if verifier.is_redis() => return Err(HttpError::NoUser),
                // It says what is wrong with the token.
                None => 0,
            },
        };
        let unix_ms = self.shared.wall_clock.unix_ms();
        let verified = match verifier.begin(user_id, token, unix_ms) {
            Verification::Ended(verified) => verified.map(drop),
            Verification::Redis(digest) => {
                let _permit = self.dispatcher.admit().map_err(HttpError::Failed)?;
                client.slot.while_evictable(self.dispatcher.look_up(conn, user_id, digest)).await
            }
            // Without a permit: clients without a valid token would take those of others. The queue is fair.
            Verification::Signature(check) => {
                let address = client.address.ip();
                let signed = self.dispatcher.check_signature(conn, address, &check);
                client.slot.while_evictable(signed).await
            }
        };
        verified.map(|()| user_id).map_err(|error| {
            count_refused_token(error);
            HttpError::BadToken(error)
        })
    }

    async fn body(
        &self,
        client: &Client,
        route: &Route,
        request: Request<Incoming>,
    ) -> Result<Bytes, HttpError> {
        if !matches!(route.body, Body::Bytes) {
            media::check_json(request.headers())?;
        }
        media::check_encoding(request.headers())?;
        let settings = self.dispatcher.settings();
        let config = &settings.config.http;
        client.slot.wait_for_peer();
        let whole = read(request.into_body(), config.body_bytes_max);
        let bytes =
            timeout(config.body_timeout, whole).await.map_err(|_| HttpError::LateBody)??;
        client.slot.work();
        client.has_unread.set(false);
        route.body.request(bytes)
    }

    fn pass_on(
        &self,
        route: &Route,
        answer: Bytes,
        media: &'static str,
    ) -> Result<Answer, HttpError> {
        let kind = route.kind;
        self.check_length(kind, &answer)?;
        let answer = route.body.answer(answer).map_err(|reason| {
            if let Some(suppressed) = self.bad_answers.allow() {
                let reason = reason.as_str();
                tracing::warn!(
                    kind,
                    reason,
                    suppressed,
                    "an answer is not the message that http_routes names; the client gets 101"
                );
            }
            HttpError::BadAnswer
        })?;
        // JSON may be longer than the message.
        self.check_length(kind, &answer)?;
        counter!("tidegate_answers_total").increment(1);
        if answer.is_empty() && matches!(route.body, Body::Json) {
            // No bytes are no JSON.
            let mut answer = Response::new(Full::new(answer));
            *answer.status_mut() = StatusCode::NO_CONTENT;
            return Ok(answer);
        }
        Ok(ok(answer, media))
    }

    fn check_length(&self, kind: i32, answer: &Bytes) -> Result<(), HttpError> {
        let bytes = answer.len();
        if bytes <= self.dispatcher.settings().config.limits.frame_to_client_bytes_max {
            return Ok(());
        }
        counter!("tidegate_oversize_answers_total").increment(1);
        if let Some(suppressed) = self.oversize_answers.allow() {
            tracing::warn!(kind, bytes, suppressed, "an answer is too long; the client gets 101");
        }
        Err(HttpError::BadAnswer)
    }
}

/// The rate of one client's requests; `None`: there is no limit.
fn rate_of(config: &Config) -> Option<Rate> {
    let LimitsConfig { frames_per_second_max, frames_burst_max, .. } = config.limits;
    frames_per_second_max.map(|per_second| Rate::new(per_second, frames_burst_max))
}

/// Reads a body of this many bytes at most. It copies them: a piece of a body may hold far more memory than its bytes.
async fn read<B>(mut body: B, bytes_max: usize) -> Result<Bytes, HttpError>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(HttpError::BodyTooLong(bytes_max));
    }
    let mut whole = BytesMut::new();
    while let Some(piece) = body.frame().await {
        // A frame without data is a trailer.
        let Ok(data) = piece.map_err(|_| HttpError::BrokenBody)?.into_data() else { continue };
        if data.len() > bytes_max - whole.len() {
            return Err(HttpError::BodyTooLong(bytes_max));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn check_framing(request: &Request<Incoming>, framing: Option<Framing>) -> Result<(), HttpError> {
    if !matches!(framing, Some(Framing::Length | Framing::Chunked)) {
        return Err(HttpError::AmbiguousLength);
    }
    // RFC 9112, 3.2.
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let is_right = hosts == 1 || hosts == 0 && request.version() < Version::HTTP_11;
    if is_right { Ok(()) } else { Err(HttpError::BadHost) }
}

fn is_allowed(origins: &[String], origin: &HeaderValue) -> bool {
    origins.is_empty() || origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes())
}

fn check_origin(origins: &[String], origin: Option<&HeaderValue>) -> Result<(), HttpError> {
    match origin {
        Some(origin) if !is_allowed(origins, origin) => Err(HttpError::BadOrigin),
        _ => Ok(()),
    }
}

/// Which method a browser asks about before it sends a page's request (Fetch, CORS-preflight).
fn preflight(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Lets a page read the answer.
fn allow_origin(
    origins: &[String],
    origin: Option<&HeaderValue>,
    is_preflight: bool,
    answer: &mut Answer,
) {
    let allow = answer.headers().get(header::ALLOW).cloned();
    let headers = answer.headers_mut();
    if !origins.is_empty() {
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    let Some(origin) = origin.filter(|origin| is_allowed(origins, origin)) else { return };
    let all = HeaderValue::from_static("*");
    let allowed = if origins.is_empty() { all } else { origin.clone() };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if !is_preflight {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
    } else if let Some(methods) = allow {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE_S);
    }
}

/// A request's id: its client's, if that is short and plain, or a new one.
fn request_id(request: &Request<Incoming>) -> HeaderValue {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    let is_sane = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(is_plain)
    };
    let given = request.headers().get(REQUEST_ID).filter(is_sane).cloned();
    given.unwrap_or_else(|| {
        let id = format!("{:016x}", fastrand::u64(..));
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("0"))
    })
}

fn ok(body: Bytes, media: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(body));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    answer
}

fn options(allow: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    answer
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use hyper::body::{Body, Frame};

    use super::*;

    /// A body in pieces of one byte.
    struct Pieces {
        left: usize,
        kept: Arc<AtomicUsize>,
    }

    /// A piece. It counts in `kept` until it is dropped.
    struct Piece(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Piece {
        fn as_ref(&self) -> &[u8] {
            b"x"
        }
    }

    impl Drop for Piece {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            assert_eq!(self.kept.load(Ordering::Relaxed), 0, "an earlier piece is kept");
            if self.left == 0 {
                return Poll::Ready(None);
            }
            self.left -= 1;
            self.kept.fetch_add(1, Ordering::Relaxed);
            let piece = Bytes::from_owner(Piece(Arc::clone(&self.kept)));
            Poll::Ready(Some(Ok(Frame::data(piece))))
        }
    }

    #[test]
    fn a_body_in_pieces_takes_no_more_memory_than_its_bytes() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = |bytes, bytes_max| {
            let body = Pieces { left: bytes, kept: Arc::default() };
            runtime.block_on(read(body, bytes_max))
        };
        assert_eq!(read(1_000, 1_000), Ok(Bytes::from(vec![b'x'; 1_000])));
        assert_eq!(read(1_001, 1_000), Err(HttpError::BodyTooLong(1_000)));
    }
}
