//! The HTTP request that opens a WebSocket, and its response (RFC 6455, section 4).

use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tidegate_backend::UserId;
use tidegate_protocol::Request as Frame;
use tidegate_protocol::message::AUTHENTICATE;
use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::machine::TryParse as _;
use tungstenite::handshake::server::{Request, Response, create_response, write_response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderName, ORIGIN, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};

/// The subprotocol of this gateway, which every client offers.
pub const SUBPROTOCOL: &str = "tidegate.v1";

/// In front of a token that is offered as a subprotocol: browsers can set no other header.
const TOKEN_PREFIX: &str = "tidegate.token.";

/// Where a login token may come from besides the first frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenSources {
    /// `Authorization: Bearer …`.
    pub header: bool,
    /// A second subprotocol, `tidegate.token.…`.
    pub subprotocol: bool,
    /// The query parameter `token`. Logs of proxies may show it.
    pub query: bool,
}

impl TokenSources {
    /// The names of those that are on.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let all =
            [(self.header, "header"), (self.subprotocol, "subprotocol"), (self.query, "query")];
        all.into_iter().filter(|(is_on, _)| *is_on).map(|(_, name)| name).collect()
    }
}

/// What an upgrade has to be.
#[derive(Clone, Debug)]
pub struct UpgradeRules {
    /// The path, with its slash.
    pub path: String,
    /// Pages that may connect, as browsers name them (`https://app.example`). Empty: all. Who sends no `Origin` is no
    /// browser, and may connect.
    pub origins: Vec<String>,
    /// The most bytes of a request.
    pub request_bytes_max: usize,
    /// Where a token may come from.
    pub token: TokenSources,
}

/// A login that came with the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyLogin {
    /// From the query parameter `user_id`, or the token's `sub`.
    pub user_id: UserId,
    /// As it came.
    pub token: String,
}

impl EarlyLogin {
    /// The same as a client's first frame.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (user_id, token) = (self.user_id, self.token.as_str());
        Frame { kind: AUTHENTICATE, user_id, token, ..Frame::default() }.encode_frame(&mut bytes);
        bytes
    }
}

/// What the bytes at the beginning of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// The beginning of a request. More bytes are needed.
    Incomplete,
    /// The connection is a WebSocket from now on.
    Accepted {
        /// Bytes of the request.
        request_bytes: usize,
        /// What to send.
        response: Vec<u8>,
        /// The login that came with it.
        login: Option<EarlyLogin>,
    },
    /// The connection is to be closed after this response.
    Refused {
        /// What to send.
        response: Vec<u8>,
        /// Why, for the log.
        reason: &'static str,
    },
}

/// Reads the bytes at the beginning of a connection.
#[must_use]
pub fn upgrade(bytes: &[u8], rules: &UpgradeRules) -> Upgrade {
    match Request::try_parse(bytes) {
        Ok(None) if bytes.len() <= rules.request_bytes_max => Upgrade::Incomplete,
        Ok(None) => refused("431 Request Header Fields Too Large", "the request is too long", ""),
        Ok(Some((request_bytes, _))) if request_bytes > rules.request_bytes_max => {
            refused("431 Request Header Fields Too Large", "the request is too long", "")
        }
        Ok(Some((request_bytes, mut request))) => match accept(&mut request, rules) {
            Ok((response, login)) => Upgrade::Accepted { request_bytes, response, login },
            Err(refusal) => refusal,
        },
        Err(Error::Protocol(ProtocolError::WrongHttpMethod)) => {
            refused("405 Method Not Allowed", "the method is not GET", "Allow: GET\r\n")
        }
        Err(Error::Capacity(_)) => {
            refused("431 Request Header Fields Too Large", "the request has too many headers", "")
        }
        Err(_) => refused("400 Bad Request", "this is no HTTP/1.1 request", ""),
    }
}

/// Names what a client asks for as tungstenite expects it: it looks at the first header of a name, and compares all of `Upgrade`.
/// But both headers are lists, which a proxy between may have split or extended (RFC 9110, section 5.3).
fn normalize(request: &mut Request) {
    for (name, token) in [(CONNECTION, "Upgrade"), (UPGRADE, "websocket")] {
        if has_token(request, &name, token) {
            request.headers_mut().insert(name, HeaderValue::from_static(token));
        }
    }
}

/// Whether a token is in the headers of a name, which are one list.
fn has_token(request: &Request, name: &HeaderName, token: &str) -> bool {
    let headers = request.headers().get_all(name).into_iter();
    let mut tokens = headers.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
    tokens.any(|it| it.trim().eq_ignore_ascii_case(token))
}

fn accept(
    request: &mut Request,
    rules: &UpgradeRules,
) -> Result<(Vec<u8>, Option<EarlyLogin>), Upgrade> {
    normalize(request);
    let request = &*request;
    if request.uri().path() != rules.path {
        return Err(refused("404 Not Found", "no WebSocket is at this path", ""));
    }
    if !request.headers().contains_key(HOST) {
        return Err(refused("400 Bad Request", "the header Host is missing", ""));
    }
    let mut response = create_response(request).map_err(|error| match error {
        Error::Protocol(
            ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::MissingSecWebSocketVersionHeader,
        ) => refused(
            "426 Upgrade Required",
            "this is a WebSocket: it needs Upgrade: websocket, Connection: Upgrade and Sec-WebSocket-Version: 13",
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        ),
        _ => refused("400 Bad Request", "Sec-WebSocket-Key is not 16 bytes in base64", ""),
    })?;
    if let Some(origin) = request.headers().get(ORIGIN)
        && !rules.origins.is_empty()
        && !rules.origins.iter().any(|allowed| origin.as_bytes() == allowed.as_bytes())
    {
        return Err(refused("403 Forbidden", "pages of this origin may not connect", ""));
    }
    let offered = || {
        let headers = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
        headers
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
    };
    if !offered().any(|protocol| protocol == SUBPROTOCOL) {
        let reason = "Sec-WebSocket-Protocol has to offer tidegate.v1";
        return Err(refused("400 Bad Request", reason, ""));
    }
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    let login = early_login(request, offered, rules.token)
        .map_err(|reason| refused("400 Bad Request", reason, ""))?;
    Ok((written(&response), login))
}

/// The login that comes with a request.
fn early_login<'a, I: Iterator<Item = &'a str>>(
    request: &'a Request,
    offered: impl Fn() -> I,
    from: TokenSources,
) -> Result<Option<EarlyLogin>, &'static str> {
    let query = |name: &str| {
        let pairs = request.uri().query().unwrap_or_default().split('&');
        pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    };
    let bearer = || {
        let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    };
    let decoded = |value: &str| {
        percent_encoding::percent_decode_str(value)
            .decode_utf8()
            .ok()
            .map(std::borrow::Cow::into_owned)
    };
    let token = None
        .or_else(|| bearer().filter(|_| from.header))
        .or_else(|| {
            let token = offered().find_map(|protocol| protocol.strip_prefix(TOKEN_PREFIX))?;
            from.subprotocol.then(|| token.to_owned())
        })
        .or_else(|| query("token").filter(|_| from.query).and_then(decoded));
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    let user_id = match query("user_id") {
        Some(text) => text.parse().map_err(|_| "user_id is no number"),
        None => subject(&token).ok_or("a token that is no JWT needs the query parameter user_id"),
    };
    Ok(Some(EarlyLogin { user_id: user_id?, token }))
}

/// The `sub` that a JWT claims. Nothing is verified here: the check of the token compares it with the user.
fn subject(token: &str) -> Option<UserId> {
    let payload = token.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    match claims.get("sub")? {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64(),
        _ => None,
    }
}

fn written(response: &Response) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    write_response(&mut bytes, response)
        .expect("a vector takes all bytes, and the headers are text");
    bytes
}

fn refused(status: &str, reason: &'static str, headers: &str) -> Upgrade {
    let length = reason.len() + 1;
    let response = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{reason}\n"
    );
    Upgrade::Refused { response: response.into_bytes(), reason }
}

#[cfg(test)]
mod tests;
