//! The frames of one session: authentication, heartbeats, and their answers.

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow, bail};
use prost::Message as _;
use tidegate_protocol::Code;
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT, Request, Response, SUCCESS};
use tidegate_protocol::proto::v1::Session;

use super::args::CommonArgs;

/// The sequence of an authentication.
const AUTHENTICATE_SEQUENCE: u64 = 1;
/// The sequence of a heartbeat.
const HEARTBEAT_SEQUENCE: u64 = 2;
/// The first sequence of a business request: above those of the session.
pub(super) const BUSINESS_SEQUENCE: u64 = 16;

/// Writes authentications. Slot `n` authenticates as user `first_user + n`.
#[derive(Debug)]
pub(super) struct Credentials {
    template: String,
    first_user: u64,
    /// The token written last; kept so that its memory is used again.
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

/// An answer, as the session sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionAnswer {
    /// The user is authenticated. The gateway asks for a heartbeat this often; 0: not at all.
    Authenticated { heartbeat_interval_ms: u32 },
    /// A heartbeat was answered.
    Pong,
    /// It does not belong to the session.
    Other,
}

/// Classifies an answer.
///
/// # Errors
/// It is a failure, or it ends the session.
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
        _ => Ok(SessionAnswer::Other),
    }
}

/// Describes a failure, with a hint where the token was refused.
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
