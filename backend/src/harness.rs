//! Runs a handler in a test, without sockets.
//!
//! ```
//! use tidegate_backend::harness::Harness;
//! use tidegate_backend::{Call, Gateway, Handler};
//!
//! struct Shout;
//! impl Handler for Shout {
//!     fn handle(&self, call: Call, gateway: &Gateway) {
//!         gateway.push_all(2, call.biz_data().clone()).ok();
//!         let loud = call.biz_data().to_ascii_uppercase();
//!         call.answer(loud);
//!     }
//! }
//!
//! let harness = Harness::new(Shout);
//! assert_eq!(harness.call(7, 1, "hello").unwrap(), "HELLO");
//! assert_eq!(harness.commands().len(), 1);
//! ```

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{self, Receiver, Sender};

use crate::handler::{AnswerPort, Call, CallId, Handler, Outcome};
use crate::publisher::{
    Command, CommandOutcome, Done, Gateway, GatewayPort, PushError, Report, SessionId, UserId,
};

/// How long [`Harness::call`] waits for an answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a handler and records the commands that it gives to the gateway.
pub struct Harness<H> {
    handler: H,
    gateway: Gateway,
    commands: Arc<Commands>,
}

struct Commands {
    taken: Mutex<Vec<Command>>,
    refusal: Mutex<Option<PushError>>,
    /// How the commands end that were taken.
    outcome: Mutex<CommandOutcome>,
}

impl Default for Commands {
    fn default() -> Self {
        let outcome = Mutex::new(Ok(Done::with_connections(1)));
        Self { taken: Mutex::default(), refusal: Mutex::default(), outcome }
    }
}

impl GatewayPort for Commands {
    fn command(&self, command: Command) -> Result<(), PushError> {
        if let Some(refusal) = *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(refusal);
        }
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        Ok(())
    }

    fn command_reporting(&self, command: Command, report: Report) {
        let taken = self.command(command);
        let outcome = *self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        report(taken.and(outcome));
    }
}

struct Answers(Sender<Outcome>);

impl AnswerPort for Answers {
    fn answer(&self, _call: CallId, outcome: Outcome) {
        // The receiver is gone when the test no longer waits.
        drop(self.0.send(outcome));
    }
}

/// An answer that may not be there yet.
#[derive(Debug)]
pub struct PendingAnswer(Receiver<Outcome>);

impl PendingAnswer {
    /// Waits for the answer.
    ///
    /// # Panics
    /// If none comes within [`ANSWER_TIMEOUT`].
    ///
    /// # Errors
    /// The failure that the handler answered with.
    pub fn wait(self) -> Outcome {
        self.0.recv_timeout(ANSWER_TIMEOUT).expect("the handler answers, or drops the call")
    }

    /// The answer, if there is one already.
    #[must_use]
    pub fn now(&self) -> Option<Outcome> {
        self.0.try_recv().ok()
    }
}

impl<H: Handler> Harness<H> {
    /// A harness for this handler.
    #[must_use]
    pub fn new(handler: H) -> Self {
        let commands = Arc::<Commands>::default();
        let gateway = Gateway::new(Arc::clone(&commands) as Arc<dyn GatewayPort>);
        Self { handler, gateway, commands }
    }

    /// Sends a request as `user_id` and waits for its answer. The session has the number of the user.
    ///
    /// # Errors
    /// The failure that the handler answered with.
    ///
    /// # Panics
    /// If no answer comes within [`ANSWER_TIMEOUT`].
    pub fn call(&self, user_id: UserId, kind: i32, biz_data: impl Into<Bytes>) -> Outcome {
        self.start(user_id, kind, biz_data).wait()
    }

    /// Sends a request and does not wait for its answer. A panic of the handler answers as it does in a gateway.
    pub fn start(&self, user_id: UserId, kind: i32, biz_data: impl Into<Bytes>) -> PendingAnswer {
        let (sender, receiver) = channel::bounded(1);
        let port = Arc::new(Answers(sender));
        let session = SessionId(user_id);
        let call = Call::new(kind, user_id, session, biz_data.into(), CallId(0), port);
        let work = AssertUnwindSafe(|| self.handler.handle(call, &self.gateway));
        drop(panic::catch_unwind(work));
        PendingAnswer(receiver)
    }

    /// The commands that the handler has given to the gateway, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<Command> {
        self.commands.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets how commands end from now on, for handlers that ask for a report. The report comes at once, on the
    /// thread of the command. Without this, each command goes to one connection.
    pub fn end_commands_with(&self, outcome: CommandOutcome) {
        *self.commands.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }

    /// Makes the gateway refuse all commands from now on, or take them again.
    pub fn refuse_commands(&self, refusal: Option<PushError>) {
        *self.commands.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }

    /// The gateway that the handler sees.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }
}
