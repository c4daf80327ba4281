//! A request and its one answer.
//!
//! The gateway makes a [`Call`] of each business request and gives it to the [`Handler`] of its route. The call
//! owns the right to answer. Answering consumes it, and dropping it answers [`Code::BackendFailed`], so each call
//! is answered exactly once.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::Code;

use crate::batch::Batch;
use crate::publisher::{Gateway, SessionId, UserId};

/// Answers business requests.
///
/// One handler serves all connections, on several threads at once, so its state needs a lock or belongs to a
/// thread. The calls of one connection come in order, and never two of them at the same time.
pub trait Handler: Send + Sync + 'static {
    /// Answers a call, now or later. The call may be sent to another thread and be answered there.
    ///
    /// A panic is caught. It answers this call with [`Code::BackendFailed`], and no other call.
    fn handle(&self, call: Call, gateway: &Gateway);

    /// Answers calls together, where that is cheaper: with one database query for all of them, for example.
    ///
    /// Override it only to take several calls at once, with the batch as an iterator. The later calls of their
    /// connections then wait until this returns; with [`Batch::each`] they wait for one call only.
    fn handle_batch(&self, batch: &mut Batch, gateway: &Gateway) {
        batch.each(|call| self.handle(call, gateway));
    }

    /// The kind of thread that the handler should run on. An operator can choose another one.
    fn placement(&self) -> Placement {
        Placement::Worker
    }
}

/// The kind of thread that runs a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// A thread of the backend's worker pool. The handler may block.
    #[default]
    Worker,
    /// The shard's own thread, which saves the hop between threads. The handler must never block and should take
    /// microseconds, because every connection of the shard waits for it.
    Shard,
}

/// How a call ended: the answer's `biz_data`, or why there is none.
pub type Outcome = Result<Bytes, Failure>;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}")]
pub struct Failure {
    /// The code that the client gets.
    pub code: Code,
    /// How long the client should wait before it tries again, in milliseconds; 0 gives no advice.
    /// For [`Code::RateLimited`], [`Code::Overloaded`] and [`Code::Draining`].
    pub retry_after_ms: u32,
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, retry_after_ms: 0 }
    }
}

/// Identifies a call to the receiver of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// Receives the answers of calls: a shard of the gateway, or a test.
pub trait AnswerPort: Send + Sync {
    /// Receives the answer of a call. Must not block.
    fn answer(&self, call: CallId, outcome: Outcome);

    /// Receives that a call has expired before a handler got it. Must not block.
    fn call_expired(&self, call: CallId) {
        self.answer(call, Err(Code::Timeout.into()));
    }

    /// Receives that a call was not handed to a handler, since it has waited too long for a worker. Must not block.
    fn call_shed(&self, call: CallId) {
        self.answer(call, Err(Code::Overloaded.into()));
    }
}

/// A business request that has no answer yet.
pub struct Call {
    kind: i32,
    user_id: UserId,
    session: SessionId,
    biz_data: Bytes,
    id: CallId,
    /// Invariant: `Some` until the call is answered.
    port: Option<Arc<dyn AnswerPort>>,
}

impl Call {
    /// A call whose answer goes to `port`.
    #[must_use]
    pub fn new(
        kind: i32,
        user_id: UserId,
        session: SessionId,
        biz_data: Bytes,
        id: CallId,
        port: Arc<dyn AnswerPort>,
    ) -> Self {
        Self { kind, user_id, session, biz_data, id, port: Some(port) }
    }

    /// The request's type: greater than 0.
    #[must_use]
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// The user that sent the request. It is authenticated; it is 0 where an HTTP route is public.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    /// The connection that sent the request: what can join a room. A request that came over HTTP has no session, but
    /// an id of its own, which means no connection: [`Gateway::join`] refuses it.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The request's `biz_data`.
    #[must_use]
    pub fn biz_data(&self) -> &Bytes {
        &self.biz_data
    }

    /// Answers with success.
    pub fn answer(self, biz_data: impl Into<Bytes>) {
        self.finish(Ok(biz_data.into()));
    }

    /// Answers with a failure: `call.fail(Code::BackendFailed)`.
    pub fn fail(self, failure: impl Into<Failure>) {
        self.finish(Err(failure.into()));
    }

    /// Answers with success or with a failure.
    pub fn finish(mut self, outcome: Outcome) {
        if let Some(port) = self.port.take() {
            port.answer(self.id, outcome);
        }
    }
}

impl Call {
    /// Identifies the call to the receiver of its answer.
    #[cfg(test)]
    pub(crate) const fn id(&self) -> CallId {
        self.id
    }

    /// Reports that the call has expired before a handler got it: its 102 is the receiver's.
    pub(crate) fn report_expired(mut self) {
        if let Some(port) = self.port.take() {
            port.call_expired(self.id);
        }
    }

    /// Reports that no handler gets the call, since it has waited too long for a worker: its 104 is the receiver's.
    pub(crate) fn report_shed(mut self) {
        if let Some(port) = self.port.take() {
            port.call_shed(self.id);
        }
    }

    /// Drops the call without an answer: it has expired, and the receiver of its answer has failed it.
    pub(crate) fn discard_expired(mut self) {
        self.port = None;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(port) = self.port.take() {
            port.answer(self.id, Err(Code::BackendFailed.into()));
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("kind", &self.kind)
            .field("user_id", &self.user_id)
            .field("session", &self.session)
            .field("biz_data_bytes", &self.biz_data.len())
            .finish_non_exhaustive()
    }
}
