//! A listener in the place of a gateway's operators' HTTP, which records what it is asked.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};

/// What a gateway answers to a request without the token.
pub(crate) const NO_TOKEN: &str = "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"tidegate\"";

/// A recorded request.
pub(crate) struct Asked {
    /// Method, path and query.
    pub(crate) line: String,
    /// Empty where there was none.
    pub(crate) authorization: String,
    pub(crate) body: Vec<u8>,
}

/// A listener. A request without a token gets `no_token`, a status and perhaps fields, and others get `status` and `body`.
pub(crate) struct OperatorsHttp {
    pub(crate) address: SocketAddr,
    serving: JoinHandle<Vec<Asked>>,
}

impl OperatorsHttp {
    pub(crate) fn start(no_token: &str, status: &str, body: &str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), no_token, status, body)
    }

    pub(crate) fn on(listener: TcpListener, no_token: &str, status: &str, body: &str) -> Self {
        let address = listener.local_addr().unwrap();
        let answer = |status: &str, body: &str| {
            let length = body.len();
            format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
        };
        let (refusal, success) = (answer(no_token, "{}"), answer(status, body));
        let serving = thread::spawn(move || {
            let mut all = Vec::new();
            while let Some((asked, mut stream)) = read(listener.accept().unwrap().0) {
                let is_refused = asked.authorization.is_empty();
                let answer = if is_refused { &refusal } else { &success };
                // A client that has read enough may be gone.
                drop(stream.write_all(answer.as_bytes()));
                all.push(asked);
            }
            all
        });
        Self { address, serving }
    }

    /// Ends it. Returns what it was asked.
    pub(crate) fn end(self) -> Vec<Asked> {
        // A connection without a request is the last.
        drop(TcpStream::connect(self.address).unwrap());
        self.serving.join().unwrap()
    }
}

/// Reads a request. `None`: the connection has none.
fn read(stream: TcpStream) -> Option<(Asked, TcpStream)> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let field = |name: &str| {
        let fields = head.iter().filter_map(|line| line.split_once(": "));
        let mut named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.next().map_or(String::new(), |(_, value)| value.to_owned())
    };
    let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let asked = Asked { line: head[0].clone(), authorization: field("authorization"), body };
    Some((asked, reader.into_inner()))
}

/// Runs `tide` with this address, token file and input.
pub(crate) fn tide(arguments: &[&str], admin: &str, token_file: &Path, input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tide"))
        .args(arguments)
        .args(["--admin", admin, "--token-file"])
        .arg(token_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _not_read = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}
