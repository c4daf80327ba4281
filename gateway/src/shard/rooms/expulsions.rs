//! Users that a backend has expelled from a room: the tickets that they had are worthless.
//!
//! A ticket is valid without a look at any table, so what makes it worthless has to be remembered: at the
//! room's home, until the last ticket from before has expired. The list is bounded. When it is full, all
//! tickets of this shard's rooms that were made until now are worthless: their clients ask the backend again.
//! So the bound never lets an expelled user in.
//!
//! The list is in memory. Where gateways share rooms, Redis has it too, and each gateway gets it with the room's log. A
//! gateway that is alone has forgotten it after a restart: a ticket from before an expulsion is then valid until it
//! expires. Where that matters, the room's policy is `rejoin = "backend"`.

use std::collections::HashMap;

use tidegate_backend::{RoomId, UserId};

/// Expulsions that are remembered, at most: 16 MiB or less.
const EXPULSIONS_MAX: usize = 100_000;

/// The expulsions from the rooms whose home is one shard.
#[derive(Debug)]
pub struct Expulsions {
    /// When a user was expelled from a room last, in seconds since the Unix epoch.
    expelled_s: HashMap<(RoomId, UserId), u32>,
    /// Tickets that were made until then are worthless.
    all_until_s: u32,
    /// The latest time that a ticket of this shard's rooms carries.
    stamped_s: u32,
    /// The lowest time that the next one may carry: it is made after an expulsion.
    next_s: u32,
    ticket_ttl_s: u32,
}

impl Expulsions {
    /// None yet. Tickets are valid for `ticket_ttl_s`.
    #[must_use]
    pub fn new(ticket_ttl_s: u32) -> Self {
        Self { expelled_s: HashMap::new(), all_until_s: 0, stamped_s: 0, next_s: 0, ticket_ttl_s }
    }

    /// The time that the ticket of a new member carries: now, but after each expulsion that came before.
    pub fn stamp(&mut self, now_s: u32) -> u32 {
        let stamp_s = now_s.max(self.next_s);
        self.stamped_s = self.stamped_s.max(stamp_s);
        stamp_s
    }

    /// A user is expelled at this time. Returns whether the list was full, so that all tickets are worthless.
    pub fn expel(&mut self, room: &RoomId, user_id: UserId, now_s: u32) -> bool {
        // Tickets that were made before carry this time at most.
        self.expel_until(room, user_id, now_s.max(self.stamped_s))
    }

    /// Tickets of a user that were made until then are worthless. Returns whether the list was full.
    pub fn expel_until(&mut self, room: &RoomId, user_id: UserId, now_s: u32) -> bool {
        self.next_s = self.next_s.max(now_s.saturating_add(1));
        let mut is_full = false;
        if self.expelled_s.len() >= EXPULSIONS_MAX {
            let ttl_s = self.ticket_ttl_s;
            self.expelled_s.retain(|_, expelled_s| now_s.saturating_sub(*expelled_s) < ttl_s);
            // At least a tenth has to be free, or each expulsion would walk through the list.
            is_full = self.expelled_s.len() > EXPULSIONS_MAX / 10 * 9;
        }
        if is_full {
            self.expelled_s = HashMap::new();
            self.all_until_s = self.all_until_s.max(now_s);
        } else {
            let known_s = self.expelled_s.entry((room.clone(), user_id)).or_default();
            *known_s = now_s.max(*known_s);
        }
        is_full
    }

    /// All tickets of this shard's rooms that were made until then are worthless. Returns whether some were not before.
    pub fn expel_all(&mut self, until_s: u32) -> bool {
        self.next_s = self.next_s.max(until_s.saturating_add(1));
        let is_later = until_s > self.all_until_s;
        self.all_until_s = self.all_until_s.max(until_s);
        is_later
    }

    /// Until when a user's tickets for a room are worthless, in seconds since the Unix epoch.
    #[must_use]
    pub fn until_s(&self, room: &RoomId, user_id: UserId) -> u32 {
        let expelled_s = self.expelled_s.get(&(room.clone(), user_id));
        expelled_s.copied().unwrap_or(0).max(self.all_until_s)
    }

    /// Whether a ticket that carries this time still lets the user in.
    #[must_use]
    pub fn allow(&self, room: &RoomId, user_id: UserId, made_s: u32) -> bool {
        if self.expelled_s.is_empty() {
            return made_s > self.all_until_s;
        }
        let expelled_s = self.expelled_s.get(&(room.clone(), user_id));
        made_s > self.all_until_s && expelled_s.is_none_or(|&expelled_s| made_s > expelled_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId::new(name).unwrap()
    }

    #[test]
    fn what_another_gateway_says_spoils_no_newer_ticket() {
        let mut expulsions = Expulsions::new(100);
        assert_eq!(expulsions.stamp(2_000), 2_000);
        for _ in 0..2 {
            assert!(!expulsions.expel_until(&room("quiz"), 7, 1_500));
            assert!(!expulsions.allow(&room("quiz"), 7, 1_500));
            assert!(expulsions.allow(&room("quiz"), 7, 2_000), "a backend has let it in since");
        }
        expulsions.expel_until(&room("quiz"), 7, 1_400);
        assert!(!expulsions.allow(&room("quiz"), 7, 1_500), "the later one holds");
        assert!(expulsions.expel_all(1_800) && !expulsions.expel_all(1_700));
        assert!(!expulsions.allow(&room("other"), 9, 1_800));
    }

    #[test]
    fn tickets_from_before_an_expulsion_are_worthless_and_later_ones_hold() {
        let mut expulsions = Expulsions::new(100);
        assert!(expulsions.allow(&room("quiz"), 7, 1_000));
        assert!(!expulsions.expel(&room("quiz"), 7, 1_000));
        assert!(!expulsions.allow(&room("quiz"), 7, 999));
        assert!(!expulsions.allow(&room("quiz"), 7, 1_000));
        assert!(expulsions.allow(&room("quiz"), 7, 1_001), "a backend has let it in again");
        assert!(
            expulsions.allow(&room("quiz"), 8, 999) && expulsions.allow(&room("other"), 7, 999)
        );
    }

    #[test]
    fn a_ticket_of_the_same_second_holds_if_its_membership_began_after_the_expulsion() {
        let mut expulsions = Expulsions::new(100);
        let before = expulsions.stamp(1_000);
        expulsions.expel(&room("quiz"), 7, 1_000);
        let between = expulsions.stamp(1_000);
        assert!(!expulsions.allow(&room("quiz"), 7, before));
        assert!(expulsions.allow(&room("quiz"), 7, between));
        // Again in the same second.
        expulsions.expel(&room("quiz"), 7, 1_000);
        assert!(!expulsions.allow(&room("quiz"), 7, between));
        assert!(expulsions.allow(&room("quiz"), 7, expulsions.next_s));
        // The clock is set back: what was stamped before stays before.
        let stamped = expulsions.stamp(2_000);
        expulsions.expel(&room("quiz"), 8, 1_500);
        assert!(!expulsions.allow(&room("quiz"), 8, stamped));
    }

    #[test]
    fn a_full_list_forgets_what_has_expired_and_else_makes_all_tickets_worthless() {
        let mut expulsions = Expulsions::new(100);
        let fill = |expulsions: &mut Expulsions, now_s| {
            (0..EXPULSIONS_MAX as u64)
                .any(|user_id| expulsions.expel(&room("quiz"), user_id, now_s))
        };
        assert!(!fill(&mut expulsions, 1_000));
        assert!(!expulsions.expel(&room("quiz"), u64::MAX, 1_100), "the others have expired");
        assert!(expulsions.allow(&room("quiz"), 5, 999), "such a ticket is no longer valid");
        assert!(fill(&mut expulsions, 1_150), "none has expired");
        assert!(!expulsions.allow(&room("any"), 12_345_678, 1_150));
        assert!(expulsions.allow(&room("any"), 12_345_678, 1_151));
    }
}
