//! Clients of the HTTP gateway: a usual one, and one that writes what it likes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::gateway::announced_places;
use crate::{Gateway, TIMEOUT};

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head, in small letters.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value.trim()).next()
    }

    /// The code of a failure with this status.
    #[must_use]
    #[track_caller]
    pub fn code(&self, status: u16) -> u64 {
        assert_eq!(self.status, status, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert!(body["error"].is_string(), "{self:?}");
        body["code"].as_u64().unwrap()
    }

    /// The body of a 200.
    #[must_use]
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.status, 200, "{self:?}");
        &self.body
    }
}

/// Where a gateway listens for HTTP.
#[must_use]
pub fn address(gateway: &Gateway) -> SocketAddr {
    gateway.process.stdout.find("the address of HTTP", |said| {
        let of = |place: &String| {
            ["http://", "https://"]
                .iter()
                .find_map(|scheme| place.strip_prefix(scheme)?.parse().ok())
        };
        announced_places(said).iter().find_map(of)
    })
}

/// A usual client.
#[derive(Debug)]
pub struct Web {
    agent: ureq::Agent,
    address: SocketAddr,
}

impl Web {
    /// A client of a gateway.
    #[must_use]
    pub fn new(gateway: &Gateway) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .allow_non_standard_methods(true)
            .build()
            .into();
        Self { agent, address: address(gateway) }
    }

    /// Sends a request with these headers.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = if body.is_empty() && method != "POST" {
            self.agent.run(request.body(()).unwrap()).unwrap()
        } else {
            self.agent.run(request.body(body).unwrap()).unwrap()
        };
        let head = answer.headers().iter();
        let head = head.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()));
        let (status, head) = (answer.status().as_u16(), head.collect());
        let body = answer.body_mut().with_config().limit(16 << 20).read_to_vec().unwrap();
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }

    /// Posts JSON with the demo token of user 7.
    #[must_use]
    pub fn post(&self, path: &str, body: &str) -> Answer {
        let headers = [("Authorization", "Bearer token-7"), ("Content-Type", "application/json")];
        self.ask("POST", path, &headers, body.as_bytes())
    }

    /// Gets a path with the demo token of user 7.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[("Authorization", "Bearer token-7")], b"")
    }
}

/// A client that writes what it likes.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    /// Connects.
    #[must_use]
    pub fn connect(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(address(gateway)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Connects and writes.
    #[must_use]
    pub fn with(gateway: &Gateway, bytes: &str) -> Self {
        let mut raw = Self::connect(gateway);
        raw.write(bytes);
        raw
    }

    /// Writes. The gateway may have closed the connection.
    pub fn write(&mut self, bytes: &str) {
        drop(self.stream.write_all(bytes.as_bytes()));
    }

    /// Ends this side.
    pub fn end(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The next answer; `None`: the gateway has closed the connection.
    pub fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if !self.read_more() {
                assert!(self.read.is_empty(), "{:?}", String::from_utf8_lossy(&self.read));
                return None;
            }
        };
        let head = String::from_utf8(self.read[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head: head.to_lowercase(), body: String::new() };
        let bytes = answer.header("content-length").map_or(0, |bytes| bytes.parse().unwrap());
        while self.read.len() < end + 4 + bytes {
            assert!(self.read_more(), "the answer ends early: {answer:?}");
        }
        let rest = self.read.split_off(end + 4 + bytes);
        answer.body = String::from_utf8(self.read.split_off(end + 4)).unwrap();
        self.read = rest;
        Some(answer)
    }

    /// Reads until the gateway has closed the connection.
    pub fn read_to_end(&mut self) {
        while self.read_more() {}
    }

    fn read_more(&mut self) -> bool {
        let mut piece = [0; 64 * 1024];
        // A reset is an end too.
        let bytes = match self.stream.read(&mut piece) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error}"),
        };
        self.read.extend_from_slice(&piece[..bytes]);
        bytes > 0
    }
}
