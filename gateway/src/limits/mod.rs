//! Limits by address: how many connections, accepts and failed logins there may be from one address and its prefix.
//!
//! | module | what it owns |
//! |---|---|
//! | [`addresses`] | the limits together: what becomes of an accept, a failed login, a close |
//! | [`prefix`] | which addresses count as one |
//! | [`count_sketch`] | how many connections each address has, in fixed memory |
//! | [`rate_sketch`] | how often something happens for each address, in fixed memory |
//! | [`bans`] | who is refused until when |
//!
//! **Memory is fixed, whoever connects.** A table with an entry for each address would grow with the number of addresses, and
//! an attacker with a /32 of IPv6 has 4 billion prefixes of /64. A table that forgets the address it has not seen for longest
//! forgets those with many idle connections, which are what it is there to count. A sketch has neither fault: its size is
//! chosen at the start, and its error is on one side. It may say *more* than there was, never less, so no limit is passed
//! unseen; how seldom it refuses somebody wrongly is computed in [`count_sketch`] and tested.

pub mod addresses;
pub mod bans;
pub mod count_sketch;
pub mod prefix;
pub mod rate_sketch;
