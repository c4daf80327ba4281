//! Media types: what a request sends, and what it accepts.

use axum::http::{HeaderMap, header};

use super::error::HttpError;

/// The media type of JSON.
pub(super) const JSON: &str = "application/json";

/// The media type of bytes.
pub(super) const BYTES: &str = "application/octet-stream";

/// Checks that an answer of this type is accepted (RFC 9110, 12.5.1).
pub(super) fn check_accepted(headers: &HeaderMap, media: &'static str) -> Result<(), HttpError> {
    let mut values = headers.get_all(header::ACCEPT).iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let ranges = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    // The most specific range that fits decides.
    let fitting = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next()?.to_ascii_lowercase();
        let quality = |part: &str| part.strip_prefix("q=").map(|q| q.trim().parse().unwrap_or(0.0));
        let quality: f32 = parts.find_map(quality).unwrap_or(1.0);
        let precision = match name.as_str() {
            "*/*" => 0,
            name if name == media => 2,
            name if name.strip_suffix("/*") == media.split('/').next() => 1,
            _ => return None,
        };
        Some((precision, quality))
    });
    let best =
        fitting.max_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    if best.is_some_and(|(_, quality)| quality > 0.0) {
        return Ok(());
    }
    Err(HttpError::NotAcceptable(media))
}

/// Checks that a body is JSON, as far as its head says. One that says nothing is taken for it.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), HttpError> {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = types.next() else { return Ok(()) };
    let text = value.to_str().map_err(|_| HttpError::UnsupportedType)?.to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let is_json = name == JSON || name.starts_with("application/") && name.ends_with("+json");
    let is_utf8 = parts.all(|part| {
        part.strip_prefix("charset=").is_none_or(|charset| charset.trim_matches('"') == "utf-8")
    });
    if types.next().is_none() && is_json && is_utf8 {
        Ok(())
    } else {
        Err(HttpError::UnsupportedType)
    }
}

/// Checks that a body is not compressed.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), HttpError> {
    let is_plain =
        headers.get_all(header::CONTENT_ENCODING).iter().all(|value| value == "identity");
    if is_plain { Ok(()) } else { Err(HttpError::CompressedBody) }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let value = |value: &&str| (name.clone(), HeaderValue::from_str(value).unwrap());
        values.iter().map(value).collect()
    }

    #[test]
    fn what_a_request_accepts_is_read() {
        let accepts =
            |values: &[&str]| check_accepted(&headers(&header::ACCEPT, values), JSON).is_ok();
        for values in [
            &[][..],
            &["*/*"],
            &["text/html, application/json;q=0.1"],
            &["text/html", "Application/*"],
            &["*/*;q=0, application/json"],
        ] {
            assert!(accepts(values), "{values:?}");
        }
        for values in [
            &["text/html"][..],
            &["application/json;q=0"],
            &["*/*, application/json; q=0"],
            &["application/jsonx"],
            &["application/json;q=x"],
            &[""],
        ] {
            assert!(!accepts(values), "{values:?}");
        }
    }

    #[test]
    fn what_a_body_is_said_to_be_is_read() {
        let is_json = |values: &[&str]| check_json(&headers(&header::CONTENT_TYPE, values)).is_ok();
        for values in [
            &[][..],
            &["application/json"],
            &["Application/JSON; charset=\"UTF-8\""],
            &["application/problem+json"],
        ] {
            assert!(is_json(values), "{values:?}");
        }
        for values in [
            &["text/plain"][..],
            &["application/json; charset=latin1"],
            &["application/json", "text/plain"],
            &[""],
        ] {
            assert!(!is_json(values), "{values:?}");
        }
    }
}
