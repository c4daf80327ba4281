//! Logins: from a client's authentication to its session. Redis is asked where it keeps the tokens, other threads check
//! signatures that take long, and the homes of the rooms that the client resumes are asked for their pushes.

use std::sync::Arc;

use tidegate_backend::UserId;
use tidegate_protocol::resume::Positions;

use super::clients::cause::Cause;
use super::clients::lifecycle::{AfterAuthFailure, Login};
use super::clients::verifications::{PendingLogin, Proof};
use super::resumes::{Finished, RoomTickets, WaitingFrame, Wanted};
use super::rooms::log::After;
use super::rooms::message::{Asker, Joined, RoomMessage};
use super::tokens::{TokenMessage, TokenPage, Verdict};
use super::users::message::UserMessage;
use super::{Shard, rooms};
use crate::auth::signatures::{SignatureCheck, Waiter};
use crate::auth::{AuthError, TokenDigest, TokenEnd, Verification};
use crate::cluster::message::ToCluster;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;

/// What a client claims in its authentication, besides its token.
#[derive(Clone, Copy)]
struct Claim<'a> {
    user_id: UserId,
    resume: Positions<'a>,
    sequence: u64,
}

impl Claim<'_> {
    /// What is kept of it while its token is verified.
    fn pending(&self, proof: Proof) -> PendingLogin {
        let Self { user_id, resume, sequence } = *self;
        PendingLogin { user_id, proof, sequence, resume: resume.as_bytes().into() }
    }
}

impl Shard {
    pub(super) fn on_authenticate(
        &mut self,
        slot: u32,
        user_id: UserId,
        token: &str,
        resume: Positions<'_>,
        sequence: u64,
    ) {
        let claim = Claim { user_id, resume, sequence };
        let refused = match self.settings.verifier.begin(user_id, token, self.clock.unix_ms()) {
            Verification::Ended(verified) => return self.log_in(slot, claim, None, verified),
            Verification::Redis(token) => self.look_up(slot, claim, token),
            Verification::Signature(check) => self.check_signature(slot, claim, &check),
        };
        if let Err(error) = refused {
            self.log_in(slot, claim, None, Err(error));
        }
    }

    /// Has a token looked up in Redis. The verdict comes in a message.
    fn look_up(
        &mut self,
        slot: u32,
        claim: Claim<'_>,
        token: TokenDigest,
    ) -> Result<(), AuthError> {
        let cluster = self.shared.cluster.as_ref().ok_or(AuthError::RedisUnavailable)?;
        self.clients.begin_verification(slot, claim.pending(Proof::Redis(token)))?;
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        cluster.post(ToCluster::LookUp { addr, user_id: claim.user_id, token });
        Ok(())
    }

    /// Has a token's signature checked by another thread. The verdict comes in a message.
    fn check_signature(
        &mut self,
        slot: u32,
        claim: Claim<'_>,
        check: &Arc<SignatureCheck>,
    ) -> Result<(), AuthError> {
        // Before the verification begins: from then on a verdict has to come.
        let signatures = self.settings.verifier.signatures();
        let signatures = signatures.ok_or(AuthError::TooManyVerifications)?;
        let proof = Proof::Signature(Arc::clone(check));
        self.clients.begin_verification(slot, claim.pending(proof))?;
        let (conn, flow) = (self.clients.conn_id(slot), self.clients.flow(slot));
        let waiter =
            Waiter { conn, flow, reply: self.shared.addresses[usize::from(self.id)].clone() };
        let kept_bytes = claim.resume.as_bytes().len();
        signatures.submit(check, waiter, kept_bytes, self.clock.received()).inspect_err(|_| {
            self.clients.end_verification(conn);
        })
    }

    pub(super) fn on_token_message(&mut self, message: TokenMessage) {
        match message {
            TokenMessage::Verdict { conn, verdict } => self.on_verdict(conn, verdict),
            TokenMessage::Signature { conn, signed } => self.on_signature(conn, signed),
            TokenMessage::Revoke { user_id, token } => {
                for slot in self.clients.sessions_with_token(user_id, token) {
                    self.close_gracefully(slot, Cause::TokenRevoked);
                }
            }
            TokenMessage::NewEnd { conn, token, ends_in_ms } => {
                let end = TokenEnd::after(ends_in_ms, self.clock.unix_ms());
                self.clients.set_new_token_end(conn, token, end, &self.clock);
            }
            TokenMessage::List { from } => {
                let (tokens, next) = self.clients.list_tokens(from, &self.clock);
                if let Some(cluster) = &self.shared.cluster {
                    let page = TokenPage { shard: self.id, from, tokens, next };
                    cluster.post(ToCluster::Tokens(page));
                }
            }
        }
    }

    /// Redis knows a connection's token, or does not.
    fn on_verdict(&mut self, conn: ConnId, verdict: Verdict) {
        let Some(login) = self.clients.end_verification(conn) else { return };
        let verified = match verdict {
            Verdict::Known { ends_in_ms } => Ok(TokenEnd::after(ends_in_ms, self.clock.unix_ms())),
            Verdict::Unknown => Err(AuthError::UnknownToken),
            Verdict::Unavailable => Err(AuthError::RedisUnavailable),
        };
        self.continue_login(conn.slot, &login, verified);
    }

    /// The signature of a connection's token was checked, or can't be.
    fn on_signature(&mut self, conn: ConnId, signed: Result<(), AuthError>) {
        let Some(login) = self.clients.end_verification(conn) else { return };
        let now_ms = self.clock.unix_ms();
        let verified = match &login.proof {
            Proof::Signature(check) => self.settings.verifier.finish(check, signed, now_ms),
            // No signature was to be checked.
            Proof::Redis(_) => Err(AuthError::Signature),
        };
        self.continue_login(conn.slot, &login, verified);
    }

    /// Continues an authentication that has waited for this verdict.
    fn continue_login(
        &mut self,
        slot: u32,
        login: &PendingLogin,
        verified: Result<TokenEnd, AuthError>,
    ) {
        let token = match &login.proof {
            Proof::Redis(token) => Some(*token),
            Proof::Signature(_) => None,
        };
        // They were read before.
        let resume = Positions::decode(&login.resume).unwrap_or_default();
        let claim = Claim { user_id: login.user_id, resume, sequence: login.sequence };
        self.log_in(slot, claim, token, verified);
    }

    /// Continues an authentication whose token was verified with this result. `token`: set if it can be revoked.
    fn log_in(
        &mut self,
        slot: u32,
        claim: Claim<'_>,
        token: Option<TokenDigest>,
        verified: Result<TokenEnd, AuthError>,
    ) {
        let Claim { user_id, resume, sequence } = claim;
        let login = self.clients.login(slot, user_id, verified, sequence, &self.clock);
        if login.is_err() && verified.err().is_none_or(AuthError::is_guess) {
            let (conn, now_ms) = (self.clients.conn_id(slot), self.clock.now_ms());
            self.arrivals.login_failed(conn, &self.shared.address_limits, now_ms);
        }
        if login.is_ok()
            && let (Some(token), Ok(end)) = (token, verified)
        {
            self.clients.set_session_token(slot, token, end, &self.clock);
        }
        if login.is_ok() && !resume.is_empty() {
            self.counters.resumes += 1;
            let now_ms = self.clock.unix_ms();
            let (resume, refused) = self.tickets().read_resume(user_id, resume, now_ms);
            self.counters.refused_tickets += refused;
            self.resumes.insert(slot, sequence, resume);
        }
        match login {
            Ok(Login::Register) => {
                let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
                self.send_home(user_id, UserMessage::Register { user_id, addr, sequence });
                self.apply();
            }
            Ok(Login::Renewed) if resume.is_empty() => {
                let everybody = self.rooms.everybody();
                self.write_session(slot, sequence, everybody, Vec::new());
            }
            Ok(Login::Renewed) => self.resume(slot, Login::Renewed),
            Err(after) => self.after_auth_failure(slot, after),
        }
    }

    pub(super) fn after_auth_failure(&mut self, slot: u32, after: AfterAuthFailure) {
        if after == AfterAuthFailure::Close {
            self.close_gracefully(slot, Cause::AuthFailed);
        }
    }

    /// Resumes the rooms that a client has named. The session is answered when all of them have answered.
    pub(super) fn resume(&mut self, slot: u32, login: Login) {
        self.clients.start_resuming(slot);
        let Self { resumes, rooms, .. } = self;
        let (everybody, wanted) = resumes.start(slot, |room| rooms.describe_membership(slot, room));
        let everybody = match (everybody, login) {
            (None, Login::Renewed) => self.rooms.everybody(),
            (after, _) => self.rooms.join_everybody(slot, after.unwrap_or(After::Now)),
        };
        self.resumes.joined_everybody(slot, everybody);
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        let (user_id, shards) = (self.clients.at(slot).user_id, self.settings.config.shards);
        for Wanted { room, after, ticket_made_s } in wanted {
            let (home, asker) =
                (rooms::home(&room, shards), Asker::Client { user_id, ticket_made_s });
            self.post(home, RoomMessage::Join { room, addr, after, asker }.into());
        }
        self.answer_resumed(slot);
    }

    /// Answers the session of a client that resumes, once all its rooms have answered.
    pub(super) fn answer_resumed(&mut self, slot: u32) {
        let Some(finished) = self.resumes.take_finished(slot) else { return };
        let Finished { sequence, everybody, rooms, frames } = finished;
        self.clients.end_resuming(slot);
        self.write_session(slot, sequence, everybody, rooms);
        let conn = self.clients.conn_id(slot);
        for frame in frames {
            match frame {
                WaitingFrame::Push { frame, ends_ms, permit } => {
                    self.deliver(conn, &frame, ends_ms, &permit);
                }
                WaitingFrame::Pushes(chunk) => self.clients.append_shared(slot, chunk),
                WaitingFrame::Notice(what) => self.notify(slot, what),
            }
        }
    }

    pub(super) fn write_session(
        &mut self,
        slot: u32,
        sequence: u64,
        everybody: Joined,
        rooms: Vec<Joined>,
    ) {
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        let session_id = self.shared.session_ids.id(addr).0;
        let rooms = [everybody].into_iter().chain(rooms);
        let (tickets, user_id) = (self.tickets(), self.clients.at(slot).user_id);
        let rooms = rooms.map(|joined| tickets.describe(user_id, joined)).collect();
        self.clients.write_session(slot, session_id, sequence, rooms, &self.clock);
    }

    pub(super) fn tickets(&self) -> RoomTickets<'_> {
        RoomTickets { tickets: &self.settings.tickets, rooms: &self.settings.config.rooms }
    }
}
