//! Logins: from a client's authentication to its session. Redis is asked where it keeps the tokens, and so are the
//! homes of the rooms that the client resumes.

use tidegate_backend::UserId;
use tidegate_protocol::resume::Positions;

use super::clients::cause::Cause;
use super::clients::lifecycle::{AfterAuthFailure, Login};
use super::clients::lookups::Lookup;
use super::resumes::{Finished, RoomTickets, WaitingFrame, Wanted};
use super::rooms::log::After;
use super::rooms::message::{Asker, Joined, RoomMessage};
use super::tokens::{TokenMessage, TokenPage, Verdict};
use super::users::message::UserMessage;
use super::{Shard, rooms};
use crate::auth::{AuthError, TokenDigest, TokenEnd};
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
        let (token, refused) = match self.shared.verifier.digest(token) {
            None => {
                let verified = self.shared.verifier.verify(user_id, token, self.clock.unix_ms());
                return self.log_in(slot, claim, None, verified);
            }
            Some(Ok(token)) => (Some(token), self.look_up(slot, claim, token)),
            Some(Err(error)) => (None, Err(error)),
        };
        if let Err(error) = refused {
            self.log_in(slot, claim, token, Err(error));
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
        let Claim { user_id, resume, sequence } = claim;
        let resume = resume.as_bytes().into();
        self.clients.begin_lookup(slot, Lookup { user_id, token, sequence, resume })?;
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        cluster.post(ToCluster::LookUp { addr, user_id, token });
        Ok(())
    }

    pub(super) fn on_token_message(&mut self, message: TokenMessage) {
        match message {
            TokenMessage::Verdict { conn, verdict } => self.on_verdict(conn, verdict),
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

    fn on_verdict(&mut self, conn: ConnId, verdict: Verdict) {
        let Some(lookup) = self.clients.end_lookup(conn) else { return };
        let verified = match verdict {
            Verdict::Known { ends_in_ms } => Ok(TokenEnd::after(ends_in_ms, self.clock.unix_ms())),
            Verdict::Unknown => Err(AuthError::UnknownToken),
            Verdict::Unavailable => Err(AuthError::RedisUnavailable),
        };
        let Lookup { user_id, token, sequence, resume } = lookup;
        // They were read before.
        let resume = Positions::decode(&resume).unwrap_or_default();
        self.log_in(conn.slot, Claim { user_id, resume, sequence }, Some(token), verified);
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
        if login.is_err() && verified.err().is_none_or(|error| !error.is_unknowable()) {
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
        let (user_id, shards) = (self.clients.at(slot).user_id, self.shared.config.shards);
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
        RoomTickets { tickets: &self.shared.tickets, rooms: &self.shared.config.rooms }
    }
}
