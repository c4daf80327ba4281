//! Parsers of arguments. Each error names the accepted values; `clap` adds the argument and the value.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use tidegate_protocol::limits::{PUSH_KEY_BYTES_MAX, ROOM_ID_BYTES_MAX};

use crate::count::{digits_of, grouped};

/// The longest message, in bytes: the gateway's highest `limits.frame_bytes_max`.
pub(crate) const BYTES_MAX: usize = 16 * 1024 * 1024;

/// Parses a whole number within bounds.
pub(crate) fn whole<N>(
    range: RangeInclusive<N>,
) -> impl Fn(&str) -> Result<N, String> + Clone + Send + Sync + 'static
where
    N: Clone + Display + FromStr + PartialOrd + Send + Sync + 'static,
{
    move |text| {
        let number = digits_of(text).and_then(|digits| digits.parse::<N>().ok());
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (least, most) = (grouped(range.start()), grouped(range.end()));
            format!("it takes a whole number from {least} to {most}")
        })
    }
}

/// Parses a port.
///
/// # Errors
/// It is no port, or 0, which means any port.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "a port is a whole number from 1 to 65535".into())
}

/// Parses the name of a room.
///
/// # Errors
/// It is empty or too long.
pub(crate) fn room(text: &str) -> Result<String, String> {
    if (1..=ROOM_ID_BYTES_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("a room's name has from 1 to {ROOM_ID_BYTES_MAX} bytes"))
}

/// Parses the key of a push.
///
/// # Errors
/// It is empty or too long.
pub(crate) fn push_key(text: &str) -> Result<String, String> {
    if (1..=PUSH_KEY_BYTES_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("a push's key has from 1 to {PUSH_KEY_BYTES_MAX} bytes"))
}

/// Parses what a ban is on: an address, an IPv4 /24, or an IPv6 /64 or /48.
///
/// # Errors
/// It is none of these.
pub(crate) fn prefix(text: &str) -> Result<String, String> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(a, bits)| (a, Some(bits)));
    let can_be_banned = match (address.parse(), bits) {
        (Ok(IpAddr::V4(_)), bits) => matches!(bits, None | Some("24" | "32")),
        (Ok(IpAddr::V6(_)), bits) => matches!(bits, None | Some("48" | "64")),
        (Err(_), _) => false,
    };
    can_be_banned.then(|| text.to_owned()).ok_or_else(|| {
        "it takes an IPv4 address or /24, or an IPv6 address, /64 or /48: 192.0.2.7, 192.0.2.0/24, 2001:db8::/64".into()
    })
}

/// Parses a process id.
///
/// # Errors
/// It is no process id.
pub(crate) fn process(text: &str) -> Result<u32, String> {
    let most = i32::MAX.unsigned_abs();
    let pid = text.parse().ok().filter(|pid| (1..=most).contains(pid));
    pid.ok_or_else(|| "it takes the number of a process, as $(pidof -s tidegate) gives it".into())
}

/// Parses a user id.
///
/// # Errors
/// It is no user id.
pub(crate) fn user(text: &str) -> Result<u64, String> {
    // An id has only one spelling, the same as in a token.
    let usual =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let id = text.parse().ok().filter(|_| usual);
    id.ok_or_else(|| format!("a user is a whole number from 0 to {}", u64::MAX))
}

/// Parses the address of a gateway: a name or an IP address, and a port.
///
/// # Errors
/// It is no such address.
pub(crate) fn place(text: &str) -> Result<String, String> {
    let wrong = || "it takes a host and a port: 127.0.0.1:7400, gateway.example:7400".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    // An IPv6 address needs brackets.
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let named = !host.is_empty()
        && (is_bracketed || !host.contains(':'))
        && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
    if port.is_some() && named { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// Parses a rate per second, above 0.
///
/// # Errors
/// It is no such number.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("it is no rate: a number above 0, such as 500 or 0.2".into()),
    }
}

/// Parses a rate per second, 0 or more.
///
/// # Errors
/// It is no such number.
pub(crate) fn rate_or_0(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("it is no rate: a number of 0 or more, such as 500 or 0.2".into()),
    }
}

/// Parses a fraction from 0 to 1.
///
/// # Errors
/// It is no such number.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("it is no share: a number from 0 to 1, such as 0.05".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_read_within_its_bounds() {
        let read = whole(1..=65_536_u32);
        assert_eq!(read("1"), Ok(1));
        assert_eq!(read("65,536"), Ok(65_536));
        for wrong in ["", "x", "0", "65537", "-1", "+1", "1.5", "1e3", "99999999999999999999"] {
            let said = read(wrong).unwrap_err();
            assert_eq!(said, "it takes a whole number from 1 to 65,536", "{wrong}");
        }
    }

    #[test]
    fn a_user_has_one_spelling() {
        assert_eq!(user("0"), Ok(0));
        assert_eq!(user("18446744073709551615"), Ok(u64::MAX));
        for wrong in ["", "x", "-1", "+7", "07", "1,000", "18446744073709551616"] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_has_a_host_and_a_port() {
        for right in ["127.0.0.1:7400", "localhost:1", "[::1]:7400", "gateway.example:65535"] {
            assert_eq!(place(right), Ok(right.to_owned()));
        }
        for wrong in
            ["", "x", ":7400", "x:", "x:0", "x:65536", "::1:7400", "http://x:7400", "a b:1"]
        {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_ban_is_on_an_address_or_a_network_of_one_of_the_widths() {
        for right in
            ["192.0.2.7", "192.0.2.7/32", "192.0.2.0/24", "::1", "2001:db8::/64", "2001:db8::/48"]
        {
            assert_eq!(prefix(right), Ok(right.to_owned()));
        }
        for wrong in ["", "x", "192.0.2", "192.0.0.0/16", "2001:db8::/32", "::1/24", "192.0.2.7/"] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rate_and_a_share_are_numbers() {
        assert_eq!((rate("0.2"), rate_or_0("0"), share("1")), (Ok(0.2), Ok(0.0), Ok(1.0)));
        assert!(["0", "-1", "NaN", "inf", "x"].iter().all(|wrong| rate(wrong).is_err()));
        assert!(["-1", "NaN", "inf", ""].iter().all(|wrong| rate_or_0(wrong).is_err()));
        assert!(["-0.1", "1.1", "NaN", "half"].iter().all(|wrong| share(wrong).is_err()));
    }
}
