//! Limits by address (how many connections, accepts and failed logins there may be from one address and its prefix), rates of
//! connections, sessions, users and routes, and the memory budget of the process.
//!
//! | module | what it owns |
//! |---|---|
//! | [`addresses`] | the limits together: what becomes of an accept, a failed login, a close |
//! | [`prefix`] | which addresses count as one |
//! | [`counts`] | how many connections each address has |
//! | [`rate_sketch`] | how often something happens for each address, in fixed memory |
//! | [`rate`] | how often a connection or a route may be asked |
//! | [`user_rates`] | how often each user may call a route |
//! | [`places`] | when refused requests are to be retried |
//! | [`memory`] | what the process holds for clients, and what goes first when that is too much |
//! | [`sessions`] | how often one session may join and leave rooms |
//! | [`bans`] | which prefixes are refused, and until when |
//! | [`ban_changes`] | bans that other gateways are to learn |
//!
//! **Memory is bounded.** Open connections are counted exactly: there are no more entries than connections. For rates that
//! is no bound, since addresses come and go: an attacker with a /32 of IPv6 has 4 billion prefixes of /64. So rates are in
//! a sketch, whose size is chosen at the start and whose error is on one side: it may find that something happened *more* often than
//! it did, never less, so no limit is passed unseen. How seldom it refuses somebody wrongly is in [`rate_sketch`], and
//! tested.

pub mod addresses;
pub mod ban_changes;
pub mod bans;
pub mod counts;
pub mod memory;
pub mod places;
pub mod prefix;
pub mod rate;
pub mod rate_sketch;
pub mod sessions;
pub mod user_rates;
