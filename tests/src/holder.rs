//! Another program that holds a port which a gateway wants.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Holds a port until the test process ends. `answer` serves each connection.
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

/// Sends a byte now and then, for more than half an hour.
pub fn drip(mut stream: TcpStream) {
    while stream.write_all(b"H").is_ok() {
        thread::park_timeout(Duration::from_millis(500));
    }
}

/// Sends nothing until the test process ends.
pub fn keep_silent(mut stream: TcpStream) {
    drop(stream.read_to_end(&mut Vec::new()));
}

/// Answers that it drains, again and again.
pub fn drain(mut stream: TcpStream) {
    let body = r#"{"error":"it drains","code":"draining"}"#;
    let head = format!("HTTP/1.1 503 No\r\nContent-Length: {}\r\n\r\n", body.len());
    // The gateway that asked has closed the connection.
    drop(stream.write_all(format!("{head}{body}").as_bytes()));
    keep_silent(stream);
}
