//! Reads ids and parameters from a request. Each has exactly one spelling.
//!
//! A second spelling is probably a mistake: `007` may be meant as a name, and a `+` as a space. So a number is plain
//! digits, and only a room's name and a push's key are percent-encoded.

use std::time::Duration;

use axum::http::{HeaderMap, Uri};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tidegate_backend::publisher::{Push, RoomId, Target, UserId};

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

/// The header that carries a push's key, as other services take it.
const KEY_HEADER: &str = "idempotency-key";

/// A push to a target, without its data: its type, key and time to live.
pub(super) fn push(target: Target, uri: &Uri, headers: &HeaderMap) -> Result<Push, ApiError> {
    let (mut kind, mut key, mut ttl_ms) = (None, None, None);
    for (name, value) in parameters(uri) {
        let parameter = match name {
            "type" => &mut kind,
            "key" => &mut key,
            "ttl_ms" => &mut ttl_ms,
            _ => return Err(ApiError::BadParameter(name.to_owned())),
        };
        if parameter.replace(value).is_some() {
            return Err(ApiError::RepeatedParameter(name.to_owned()));
        }
    }
    let kind = kind.ok_or(ApiError::NoType)?;
    let kind = number(kind).filter(|&kind| kind > 0);
    let kind = kind.ok_or_else(|| ApiError::BadType(raw_parameter(uri, "type")))?;
    let mut push = Push::new(target, kind, Bytes::new());
    if let Some(key) = key_of(key, headers)? {
        push = push.key(key);
    }
    if let Some(text) = ttl_ms {
        let ttl_ms = number(text).ok_or_else(|| ApiError::BadTtl(text.to_owned()))?;
        push = push.ttl(Duration::from_millis(ttl_ms));
    }
    push.check()?;
    Ok(push)
}

/// The key of a push, from the parameter, percent-encoded, or from the header, as it is.
fn key_of(parameter: Option<&str>, headers: &HeaderMap) -> Result<Option<Vec<u8>>, ApiError> {
    let mut in_headers = headers.get_all(KEY_HEADER).iter();
    let key = match (parameter, in_headers.next()) {
        (Some(_), Some(_)) => return Err(ApiError::RepeatedParameter("key".to_owned())),
        (Some(key), None) if is_encoded_whole(key) => percent_decode_str(key).collect(),
        (Some(key), None) => return Err(ApiError::BadKey(key.to_owned())),
        (None, Some(key)) => key.as_bytes().to_vec(),
        (None, None) => return Ok(None),
    };
    match in_headers.next() {
        Some(_) => Err(ApiError::RepeatedParameter("Idempotency-Key".to_owned())),
        None => Ok(Some(key)),
    }
}

/// The value of a parameter, as it is in the request.
fn raw_parameter(uri: &Uri, wanted: &str) -> String {
    parameters(uri).find(|&(name, _)| name == wanted).unwrap_or_default().1.to_owned()
}

/// Checks that there are no parameters.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), ApiError> {
    let first = parameters(uri).next();
    first.map_or(Ok(()), |(name, _)| Err(ApiError::BadParameter(name.to_owned())))
}

/// The parameters of these names, in this order, each at most once. There may be no others.
pub(super) fn named<'a, const N: usize>(
    uri: &'a Uri,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], ApiError> {
    let mut values = [None; N];
    for (name, value) in parameters(uri) {
        let Some(index) = names.iter().position(|known| *known == name) else {
            return Err(ApiError::BadParameter(name.to_owned()));
        };
        if values[index].replace(value).is_some() {
            return Err(ApiError::RepeatedParameter(name.to_owned()));
        }
    }
    Ok(values)
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let query = uri.query().filter(|query| !query.is_empty());
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

/// A whole number without a sign, and without zeros before it.
pub(super) fn number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

fn raw(uri: &Uri, segment: usize) -> &str {
    uri.path().split('/').nth(segment).unwrap_or_default()
}

fn decoded(uri: &Uri, segment: usize) -> Result<String, ApiError> {
    let raw = raw(uri, segment);
    let bad = |why: &str| ApiError::BadRoom(format!("the room id {raw:?} {why}"));
    if !is_encoded_whole(raw) {
        return Err(bad("has a % without two hexadecimal digits: a % itself is %25"));
    }
    let name = percent_decode_str(raw).decode_utf8().map_err(|_| bad("is not UTF-8"))?;
    Ok(name.into_owned())
}

/// Whether two hexadecimal digits are behind each `%`.
fn is_encoded_whole(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| {
        let digits = rest.get(..2);
        digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    fn parse(uri: &Uri, headers: &HeaderMap) -> Result<Push, ApiError> {
        push(Target::User(7), uri, headers)
    }

    fn kind(uri: &Uri) -> Result<i32, ApiError> {
        parse(uri, &HeaderMap::new()).map(|push| push.kind)
    }

    #[test]
    fn a_key_comes_from_the_parameter_or_the_header() {
        let header = |values: &[&'static str]| {
            let name =
                |&value| (HeaderName::from_static(KEY_HEADER), HeaderValue::from_static(value));
            values.iter().map(name).collect::<HeaderMap>()
        };
        let key = |query: &str, headers: &[&'static str]| {
            let push = parse(&uri(&format!("/push/all?type=5{query}")), &header(headers))?;
            Ok::<_, ApiError>(push.options.and_then(|options| options.key))
        };
        assert_eq!(key("", &[]).unwrap(), None);
        assert_eq!(key("&key=a%2Fb%00c+", &[]).unwrap().unwrap(), (*b"a/b\0c+").into());
        assert_eq!(key("", &["\"a b\""]).unwrap().unwrap(), (*b"\"a b\"").into());
        let longest = format!("&key={}", "k".repeat(64));
        assert_eq!(key(&longest, &[]).unwrap().unwrap().len(), 64);
        let too_long = format!("&key={}", "k".repeat(65));
        for (query, headers, error) in [
            ("&key=", &[][..], "1 to 64 bytes"),
            (&too_long, &[], "1 to 64 bytes"),
            ("", &[""], "1 to 64 bytes"),
            ("&key=%zz", &[], "hexadecimal"),
            ("&key=a&key=b", &[], "repeated"),
            ("&key=a", &["a"], "repeated"),
            ("", &["a", "a"], "repeated"),
        ] {
            let said = key(query, headers).unwrap_err().to_string();
            assert!(said.contains(error), "{query} {headers:?}: {said}");
        }
    }

    #[test]
    fn a_time_to_live_is_in_plain_digits() {
        let ttl =
            |text: &str| parse(&uri(&format!("/push/all?type=5&ttl_ms={text}")), &HeaderMap::new());
        for (text, ttl_ms) in [("1", 1), ("4294967295", 4_294_967_295)] {
            let options = ttl(text).unwrap().options.unwrap();
            assert_eq!(options.ttl, Some(Duration::from_millis(ttl_ms)));
        }
        for wrong in ["0", "", "-1", "05", "4294967296", "1.5", "1s", "99999999999999999999"] {
            let said = ttl(wrong).unwrap_err().to_string();
            assert!(said.contains("1 to 4294967295"), "{wrong}: {said}");
        }
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
