//! A million distinct addresses in a minute at the limits by address: what they cost, and how often they are wrong. It is
//! simulated: no socket is opened, and the minute is over as soon as all is counted.
//!
//! Every address connects once and fails one login, far below its limits, so each refusal and each ban of one is an error.
//! Beside them are greedy addresses: some connect as often as they may and more, all the time, and as many fail logins until
//! they are banned. It writes one JSON object. `benches/limits
//! addresses` runs it for several cases and makes a table of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use tidegate::limits::addresses::{AddressLimits, PrefixLimits, Settings};
use tidegate::limits::rate_sketch::Rate;

/// The minute, in microseconds.
const MINUTE_US: u64 = 60_000_000;
/// Accepts of a host a second, and at once.
const ACCEPTS: u32 = 10;
const BURST: u32 = 20;
/// Failed logins of a host in a minute.
const FAILED_LOGINS: u32 = 10;
/// A greedy address tries twice each time that it has got a new token: this often in the minute.
const TURNS: u64 = 60 * ACCEPTS as u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    /// IPv4 addresses, at random.
    V4,
    /// IPv6 /64s of one /32, at random.
    V6,
}

/// Simulates many addresses at the limits by address.
#[derive(Debug, Parser)]
struct Args {
    /// Distinct addresses in a minute.
    #[arg(long, default_value_t = 1_000_000)]
    addresses: u64,
    /// Greedy addresses beside them: this many connect, and as many fail logins.
    #[arg(long, default_value_t = 0)]
    greedy: u64,
    /// Family of the addresses.
    #[arg(long, default_value = "v4")]
    family: Family,
}

fn main() {
    let args = Args::parse();
    println!("{}", simulate(args.addresses, args.greedy, args.family));
}

fn simulate(addresses: u64, greedy: u64, family: Family) -> Value {
    let empty = resident_bytes();
    let limits = AddressLimits::new(settings(), Instant::now());
    let mut others = Duration::ZERO;
    let (mut refused, mut banned, mut greedy_served) = (0_u64, 0_u64, 0_u64);
    let mut counted = Vec::with_capacity(usize::try_from(addresses).unwrap_or_default());
    let start = Instant::now();
    for number in 0..addresses {
        let now_us = number * MINUTE_US / addresses.max(1);
        let since = Instant::now();
        for turn in turns(number, addresses, greedy) {
            let (is_first, which) = (turn < greedy, turn % greedy);
            let own = address(family, 1, 2 * which);
            for _ in 0..if is_first { 2 * BURST } else { 2 } {
                if limits.accept(own, now_us) == Ok(true) {
                    greedy_served += 1;
                    limits.close(own);
                }
            }
            // One that is banned fails no further logins.
            let own = address(family, 1, 2 * which + 1);
            for _ in 0..if is_first { 2 * FAILED_LOGINS } else { 0 } {
                limits.login_failed(own, now_us);
            }
        }
        others += since.elapsed();
        let own = address(family, 2, number);
        match limits.accept(own, now_us) {
            Ok(_) => counted.push(own),
            Err(_) => refused += 1,
        }
        limits.login_failed(own, now_us);
    }
    let each_ns = (start.elapsed() - others).as_nanos() as f64 / addresses.max(1) as f64;
    let addresses_bytes = counted.len() * size_of::<IpAddr>();
    let open = resident_bytes().saturating_sub(empty).saturating_sub(addresses_bytes as u64);
    for &own in &counted {
        match limits.accept(own, MINUTE_US + 5_000_000) {
            Ok(_) => limits.close(own),
            Err(_) => banned += 1,
        }
    }
    let (connections, bans) = (counted.len(), limits.bans().count());
    counted.iter().for_each(|own| limits.close(*own));
    drop(counted);
    let closed = resident_bytes().saturating_sub(empty);
    json!({
        "family": format!("{family:?}").to_lowercase(), "addresses": addresses, "greedy": greedy,
        "refused": refused, "banned": banned, "bans": bans, "greedy_served": greedy_served,
        "each_ns": each_ns, "connections": connections, "open_bytes": open, "closed_bytes": closed,
    })
}

/// The turns of greedy addresses that come with address `number`: address `turn % greedy` has turn `turn`.
fn turns(number: u64, addresses: u64, greedy: u64) -> std::ops::Range<u64> {
    let until = |number: u64| number * greedy * TURNS / addresses.max(1);
    until(number)..until(number + 1)
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    let minute = Duration::from_secs(60);
    let limits = |times: u32| PrefixLimits {
        connections_max: Some(100 * times),
        accepts: Some(Rate::new(ACCEPTS * times, second, BURST * times)),
        accepts_burst_max: BURST * times,
        failed_logins: Some(Rate::new(FAILED_LOGINS * times, minute, FAILED_LOGINS * times)),
    };
    Settings { host: limits(1), network: limits(10), ban: 10 * minute, ..Settings::default() }
}

/// Address `number` of a group. Multiplying by an odd number permutes them, so they are distinct.
#[expect(clippy::cast_possible_truncation, reason = "that is the modulus")]
fn address(family: Family, group: u32, number: u64) -> IpAddr {
    let number = number as u32;
    match family {
        // Numbers of two groups differ in their last bit, and are below 2^31.
        Family::V4 => {
            Ipv4Addr::from_bits((number << 1 | (group & 1)).wrapping_mul(0x9e37_79b1)).into()
        }
        Family::V6 => {
            let network = (number << 1 | (group & 1)).wrapping_mul(0x9e37_79b1);
            Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(network) << 64 | 1).into()
        }
    }
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
