//! A request and its one answer.
//!
//! The gateway makes a [`Call`] of each business request and hands it to the [`Handler`] that its
//! route names. The call owns the right to answer: answering consumes it, dropping it answers
//! [`Code::BackendFailed`], so each call is answered exactly once and none is forgotten.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::Code;

use crate::batch::Batch;
use crate::publisher::{Gateway, SessionId, UserId};

/// What answers business requests.
///
/// One handler serves all connections, from several threads at once: state of its own needs a lock
/// or belongs to a thread. The calls of one connection come in order, one after the other.
pub trait Handler: Send + Sync + 'static {
    /// Answers a call, now or later: the call may be sent to another thread and answered from there.
    ///
    /// A panic is caught; it answers this call with [`Code::BackendFailed`] and no other.
    fn handle(&self, call: Call, gateway: &Gateway);

    /// Answers calls that came together, where doing so is cheaper: one database query for all, say.
    ///
    /// The answers given from here leave together when this returns.
    fn handle_batch(&self, batch: &mut Batch, gateway: &Gateway) {
        for call in batch {
            self.handle(call, gateway);
        }
    }

    /// Where the handler wants to run.
    fn placement(&self) -> Placement {
        Placement::Worker
    }
}

/// Which thread runs a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// A thread of the backend's worker pool. The handler may block.
    #[default]
    Worker,
    /// The shard's own thread: no hop between threads. The handler must never block and should take
    /// microseconds, since every connection of the shard waits for it.
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
    /// How long the client should wait before it tries again, in milliseconds; 0: nothing said.
    /// Meant for [`Code::RateLimited`], [`Code::Overloaded`] and [`Code::Draining`].
    pub retry_after_ms: u32,
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, retry_after_ms: 0 }
    }
}

/// Names a call to whoever takes its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId(pub u64);

/// Takes the answers of calls: a shard of the gateway, or a test.
pub trait AnswerPort: Send + Sync {
    /// Takes the one answer of a call. Must not block.
    fn answer(&self, call: CallId, outcome: Outcome);
}

/// A business request that waits for its answer.
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
    /// Makes a call. `port` gets its answer.
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

    /// Who asks. Authenticated.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.user_id
    }

    /// The connection that asks: what joins a room.
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

    /// Answers either way.
    pub fn finish(mut self, outcome: Outcome) {
        if let Some(port) = self.port.take() {
            port.answer(self.id, outcome);
        }
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
