//! Whoever else has a port that a gateway wants.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Holds a port, and answers everybody on it for as long as the test lasts.
pub fn hold(answer: impl Fn(TcpStream) + Send + Copy + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    address
}

/// A byte now and then, for more than half an hour.
pub fn drip(mut stream: TcpStream) {
    while stream.write_all(b"H").is_ok() {
        thread::park_timeout(Duration::from_millis(500));
    }
}

/// Nothing, for as long as the test lasts.
pub fn keep_silent(mut stream: TcpStream) {
    drop(stream.read_to_end(&mut Vec::new()));
}

/// That it drains, and does so for ever.
pub fn drain(mut stream: TcpStream) {
    let body = r#"{"error":"it drains","code":"draining"}"#;
    let head = format!("HTTP/1.1 503 No\r\nContent-Length: {}\r\n\r\n", body.len());
    // The asker has closed: it has heard enough.
    drop(stream.write_all(format!("{head}{body}").as_bytes()));
    keep_silent(stream);
}
