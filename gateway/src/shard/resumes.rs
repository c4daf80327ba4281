//! Resumes: sessions whose answer waits for their rooms.
//!
//! A client that resumes names its rooms in its authentication. Each room's home answers separately, so the
//! session's answer waits for all of them: it says of each room what became of it. Until then no room's push is
//! sent to the client, and what is pushed to its user waits here, so that nothing comes before the session.
//!
//! An entry exists from the authentication until the answer, so this table is empty most of the time.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::{RoomId, UserId};
use tidegate_protocol::message::EVERYBODY;
use tidegate_protocol::proto::v1::{self, notice::What};
use tidegate_protocol::resume::{Position, Positions};

use super::command::CommandPermit;
use super::rooms::log::After;
use super::rooms::message::Joined;
use crate::config::{Rejoin, RoomsConfig};
use crate::tickets::Tickets;

/// Frames that wait for one session's answer, at most. An answer takes microseconds, unless a shard hangs.
const FRAMES_MAX: usize = 1024;

/// A room that a client has named, with a ticket that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The room.
    pub room: RoomId,
    /// Where the client is in its log.
    pub after: After,
    /// When the ticket was made, in seconds since the Unix epoch.
    pub ticket_made_s: u32,
}

/// A room that a client has named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Its home is asked.
    Wanted(Wanted),
    /// The client does not get in: its ticket does not hold, or it has named too many rooms. The name as the
    /// client has it.
    Refused(String),
}

/// What a client has asked for in its authentication.
#[derive(Debug, Default)]
pub struct Resume {
    /// Its position in everybody's room, if it gave one.
    pub everybody: Option<After>,
    /// The other rooms, in its order.
    pub named: Vec<Named>,
}

/// A frame that must not come before the session's answer.
#[derive(Debug)]
pub enum WaitingFrame {
    /// A push to the user. The permit keeps its command under way.
    Push {
        /// The frame.
        frame: Bytes,
        /// When its time to live is over, on the shard's clock.
        ends_ms: u64,
        /// Its permit.
        permit: Arc<CommandPermit>,
    },
    /// The last pushes of a room that the client has left.
    Pushes(Bytes),
    /// A membership has changed.
    Notice(What),
}

/// What became of a room that a client has named.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its home has not answered.
    Waiting(RoomId),
    /// What its home has answered; or no home was asked.
    Known(Joined),
}

/// One session's answer that waits.
#[derive(Debug)]
struct Entry {
    sequence: u64,
    resume: Resume,
    /// What became of everybody's room, and of each that was named, in the client's order.
    everybody: Option<Joined>,
    outcomes: Vec<Outcome>,
    frames: Vec<WaitingFrame>,
}

/// An answer for which all is known.
#[derive(Debug)]
pub struct Finished {
    /// The sequence of the authentication.
    pub sequence: u64,
    /// What became of everybody's room.
    pub everybody: Joined,
    /// What became of the others, in the client's order.
    pub rooms: Vec<Joined>,
    /// What has to be sent after it.
    pub frames: Vec<WaitingFrame>,
}

/// The sessions of a shard whose answers wait for their rooms, by slot.
#[derive(Debug, Default)]
pub struct Resumes {
    entries: HashMap<u32, Entry>,
}

impl Resumes {
    /// A client has authenticated and named its rooms.
    pub fn insert(&mut self, slot: u32, sequence: u64, resume: Resume) {
        let (everybody, outcomes, frames) = Default::default();
        self.entries.insert(slot, Entry { sequence, resume, everybody, outcomes, frames });
    }

    /// Whether the answer of the session in a slot waits here.
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        !self.entries.is_empty() && self.entries.contains_key(&slot)
    }

    /// The session is open. Returns the client's position in everybody's room, and the rooms whose homes have
    /// to be asked.
    ///
    /// `membership` returns what the client is sent about a room that it is in already, whatever its ticket is worth.
    pub fn start(
        &mut self,
        slot: u32,
        mut membership: impl FnMut(&str) -> Option<Joined>,
    ) -> (Option<After>, Vec<Wanted>) {
        let Some(entry) = self.entries.get_mut(&slot) else { return (None, Vec::new()) };
        let mut asked = Vec::new();
        for named in mem::take(&mut entry.resume.named) {
            entry.outcomes.push(match named {
                Named::Wanted(wanted) => {
                    let room = wanted.room.clone();
                    asked.push(wanted);
                    Outcome::Waiting(room)
                }
                Named::Refused(name) => {
                    let joined = membership(&name).unwrap_or_else(|| Joined::refused(name));
                    Outcome::Known(joined)
                }
            });
        }
        (entry.resume.everybody, asked)
    }

    /// What became of everybody's room.
    pub fn joined_everybody(&mut self, slot: u32, joined: Joined) {
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.everybody = Some(joined);
        }
    }

    /// A room's home has answered.
    pub fn joined(&mut self, slot: u32, joined: Joined) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        let is_it = |outcome: &&mut Outcome| matches!(outcome, Outcome::Waiting(room) if room.as_str() == joined.name);
        if let Some(outcome) = entry.outcomes.iter_mut().find(is_it) {
            // Notices of an earlier membership of this room are out of date.
            let is_of_it = |frame: &WaitingFrame| match frame {
                WaitingFrame::Notice(What::Left(room)) => *room == joined.name,
                WaitingFrame::Notice(What::Joined(room)) => room.name == joined.name,
                WaitingFrame::Push { .. } | WaitingFrame::Pushes(_) => false,
            };
            entry.frames.retain(|frame| !is_of_it(frame));
            *outcome = Outcome::Known(joined);
        }
    }

    /// Whether too many frames wait for the session's answer: its connection has to be closed.
    #[must_use]
    pub fn is_full(&self, slot: u32) -> bool {
        self.entries.get(&slot).is_some_and(|entry| entry.frames.len() >= FRAMES_MAX)
    }

    /// Keeps a frame until the session is answered.
    ///
    /// # Errors
    /// The frame: no answer waits here, so it can be sent.
    pub fn keep(&mut self, slot: u32, frame: WaitingFrame) -> Result<(), WaitingFrame> {
        match self.entries.get_mut(&slot) {
            Some(entry) => entry.frames.push(frame),
            None => return Err(frame),
        }
        Ok(())
    }

    /// Takes the answer of a session if all is known.
    pub fn take_finished(&mut self, slot: u32) -> Option<Finished> {
        let entry = self.entries.get(&slot)?;
        if entry.everybody.is_none()
            || entry.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Waiting(_)))
        {
            return None;
        }
        let Entry { sequence, everybody, outcomes, frames, .. } = self.entries.remove(&slot)?;
        let known = |outcome| match outcome {
            Outcome::Known(joined) => Some(joined),
            Outcome::Waiting(_) => None,
        };
        let rooms = outcomes.into_iter().filter_map(known).collect();
        Some(Finished { sequence, everybody: everybody?, rooms, frames })
    }

    /// The connection is about to close: nobody waits for the answer.
    pub fn remove(&mut self, slot: u32) {
        if !self.entries.is_empty() {
            self.entries.remove(&slot);
        }
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.entries.shrink_to_fit();
    }
}

/// The tickets of a gateway's rooms, by the rooms' policies.
#[derive(Clone, Copy, Debug)]
pub struct RoomTickets<'a> {
    /// Makes and checks them.
    pub tickets: &'a Tickets,
    /// The rooms' policies and limits.
    pub rooms: &'a RoomsConfig,
}

impl RoomTickets<'_> {
    fn are_made_for(&self, room: &str) -> bool {
        room != EVERYBODY && self.rooms.policy_of(room).rejoin == Rejoin::Ticket
    }

    /// Checks the tickets of the rooms that a client has named. Returns how many rooms were refused, too. A
    /// name beyond twice what a client may have is not looked at.
    #[must_use]
    pub fn read_resume(
        &self,
        user_id: UserId,
        positions: Positions<'_>,
        now_ms: u64,
    ) -> (Resume, u64) {
        let rooms_max = self.rooms.rooms_per_connection_max;
        let (mut resume, mut names, mut refused) = (Resume::default(), HashSet::new(), 0);
        for Position { room, log, offset, ticket } in positions {
            // A client without a position joins as if it were new.
            let after = if log == 0 { After::Now } else { After::Position { log, offset } };
            if room == EVERYBODY {
                resume.everybody.get_or_insert(after);
            } else if names.insert(room) {
                if resume.named.len() >= 2 * rooms_max {
                    break;
                }
                let is_allowed = resume.named.len() < rooms_max && self.are_made_for(room);
                let check = || self.tickets.check(ticket, user_id, room, now_ms).ok();
                let ticket_made_s = is_allowed.then(check).flatten();
                let named = match (RoomId::new(room), ticket_made_s) {
                    (Ok(room), Some(ticket_made_s)) => {
                        Named::Wanted(Wanted { room, after, ticket_made_s })
                    }
                    _ => Named::Refused(room.to_owned()),
                };
                refused += u64::from(matches!(named, Named::Refused(_)));
                resume.named.push(named);
            }
        }
        (resume, refused)
    }

    /// What a user's client is sent about a room, with a ticket if it is a member.
    #[must_use]
    pub fn describe(&self, user_id: UserId, joined: Joined) -> v1::Room {
        let Joined { name, log, head, recovery, ticket_s } = joined;
        let has_ticket = log.is_some() && ticket_s > 0 && self.are_made_for(&name);
        let make = || Bytes::copy_from_slice(&self.tickets.make(user_id, &name, ticket_s));
        let ticket = has_ticket.then(make).unwrap_or_default();
        v1::Room {
            name,
            number: log.map_or(0, |log| log.number),
            log: log.map_or(0, |log| log.id.get()),
            head,
            recovery: recovery.into(),
            ticket,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId::new(name).unwrap()
    }

    fn wanted(name: &str) -> Named {
        Named::Wanted(Wanted { room: room(name), after: After::Now, ticket_made_s: 0 })
    }

    fn names(finished: &Finished) -> Vec<&str> {
        finished.rooms.iter().map(|joined| joined.name.as_str()).collect()
    }

    #[test]
    fn the_answer_waits_for_all_rooms_and_has_them_in_the_clients_order() {
        let mut resumes = Resumes::default();
        let named = vec![wanted("a"), Named::Refused("b".into()), wanted("c")];
        resumes.insert(5, 9, Resume { everybody: None, named });
        let (everybody, asked) = resumes.start(5, |_| None);
        assert_eq!(everybody, None);
        assert_eq!(asked.iter().map(|wanted| wanted.room.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        resumes.joined_everybody(5, Joined::refused("*"));
        resumes.joined(5, Joined::refused("c"));
        assert!(resumes.take_finished(5).is_none());
        resumes.joined(5, Joined::refused("other"));
        assert!(resumes.take_finished(5).is_none());
        assert!(resumes.keep(5, WaitingFrame::Notice(What::Left("d".into()))).is_ok());
        assert!(resumes.keep(6, WaitingFrame::Notice(What::Left("d".into()))).is_err());
        resumes.joined(5, Joined::refused("a"));
        let finished = resumes.take_finished(5).unwrap();
        assert_eq!((finished.sequence, finished.frames.len()), (9, 1));
        assert_eq!(names(&finished), ["a", "b", "c"]);
        assert!(!resumes.contains(5) && resumes.take_finished(5).is_none());
    }

    #[test]
    fn a_session_for_which_too_many_frames_wait_is_to_be_closed() {
        let mut resumes = Resumes::default();
        resumes.insert(5, 9, Resume::default());
        while !resumes.is_full(5) {
            resumes.keep(5, WaitingFrame::Notice(What::Left("d".into()))).unwrap();
        }
        assert!(!resumes.is_full(6));
        resumes.remove(5);
        assert!(!resumes.is_full(5) && !resumes.contains(5));
    }
}
