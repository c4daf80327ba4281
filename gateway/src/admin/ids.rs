//! Reads ids and parameters from a request. Each has exactly one spelling.
//!
//! A second spelling is probably a mistake: `007` may be meant as a name, and a `+` as a space. So a number is plain
//! digits, and only a room's name is percent-encoded.

use axum::http::Uri;
use percent_encoding::percent_decode_str;
use tidegate_backend::publisher::{RoomId, UserId};

use super::error::ApiError;

/// The name of everybody's room.
const EVERYBODY: &str = "*";

/// A user's id: a segment of the path, counted from 1.
pub(super) fn user(uri: &Uri, segment: usize) -> Result<UserId, ApiError> {
    let text = raw(uri, segment);
    number(text).ok_or_else(|| ApiError::BadUser(text.to_owned()))
}

/// The name of a room to show; the room of everybody is allowed.
pub(super) fn any_room(uri: &Uri, segment: usize) -> Result<RoomId, ApiError> {
    match decoded(uri, segment)? {
        name if name == EVERYBODY => Ok(RoomId::everybody()),
        name => Ok(RoomId::new(name)?),
    }
}

/// The name of a room to push to.
pub(super) fn room(uri: &Uri, segment: usize) -> Result<RoomId, ApiError> {
    Ok(RoomId::new(decoded(uri, segment)?)?)
}

/// A push's type: the only parameter.
pub(super) fn kind(uri: &Uri) -> Result<i32, ApiError> {
    let mut kind = None;
    for (name, value) in parameters(uri) {
        match name {
            "type" if kind.is_some() => return Err(ApiError::RepeatedParameter(name.to_owned())),
            "type" => kind = Some(value),
            _ => return Err(ApiError::BadParameter(name.to_owned())),
        }
    }
    let kind = kind.ok_or(ApiError::NoType)?;
    number(kind).filter(|&kind| kind > 0).ok_or_else(|| ApiError::BadType(kind.to_owned()))
}

/// Checks that there are no parameters.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), ApiError> {
    let first = parameters(uri).next();
    first.map_or(Ok(()), |(name, _)| Err(ApiError::BadParameter(name.to_owned())))
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let query = uri.query().filter(|query| !query.is_empty());
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

/// A whole number without a sign, and without zeros before it.
fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

fn raw(uri: &Uri, segment: usize) -> &str {
    uri.path().split('/').nth(segment).unwrap_or_default()
}

fn decoded(uri: &Uri, segment: usize) -> Result<String, ApiError> {
    let raw = raw(uri, segment);
    let bad = |why: &str| ApiError::BadRoom(format!("the room id {raw:?} {why}"));
    let encoded_whole = raw.split('%').skip(1).all(|rest| {
        let digits = rest.get(..2);
        digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
    });
    if !encoded_whole {
        return Err(bad("has a % without two hexadecimal digits: a % itself is %25"));
    }
    let name = percent_decode_str(raw).decode_utf8().map_err(|_| bad("is not UTF-8"))?;
    Ok(name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn a_number_is_spelled_in_one_way() {
        assert_eq!(user(&uri("/users/0"), 2).unwrap(), 0);
        assert_eq!(user(&uri("/users/18446744073709551615"), 2).unwrap(), u64::MAX);
        for wrong in ["007", "+7", "-0", "-7", "7.0", "%37", "7%20", "18446744073709551616", "0x7"]
        {
            let error = user(&uri(&format!("/users/{wrong}")), 2).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")) && error.contains("plain"), "{error}");
            let error = kind(&uri(&format!("/push/all?type={wrong}"))).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")) && error.contains("plain"), "{error}");
        }
        assert_eq!(kind(&uri("/push/all?type=2147483647")).unwrap(), i32::MAX);
    }

    #[test]
    fn parameters_are_known_and_come_once() {
        for (query, error) in [
            ("type=5&type=5", "repeated"),
            ("type=5&x=1", "\"x\""),
            ("Type=5", "\"Type\""),
            ("%74ype=5", "\"%74ype\""),
            ("type=5&", "\"\""),
            ("", "?type=N"),
        ] {
            let said = kind(&uri(&format!("/push/all?{query}"))).unwrap_err().to_string();
            assert!(said.contains(error), "{query}: {said}");
        }
        assert!(no_parameters(&uri("/stats")).is_ok() && no_parameters(&uri("/stats?")).is_ok());
        assert!(no_parameters(&uri("/stats?type=5")).is_err());
    }

    #[test]
    fn a_room_is_named_by_its_utf8() {
        assert_eq!(room(&uri("/rooms/a%2Fb%c3%A9+"), 2).unwrap().as_str(), "a/b\u{e9}+");
        assert!(any_room(&uri("/rooms/%2A"), 2).unwrap().is_everybody());
        for (name, error) in [
            ("%zz", "two hexadecimal digits"),
            ("a%", "two hexadecimal digits"),
            ("a%4", "two hexadecimal digits"),
            ("%ff", "UTF-8"),
            ("", "at least one byte"),
            ("*", "/push/all"),
            ("%2a", "/push/all"),
        ] {
            let said = room(&uri(&format!("/rooms/{name}")), 2).unwrap_err().to_string();
            assert!(said.contains(error), "{name}: {said}");
        }
    }
}
