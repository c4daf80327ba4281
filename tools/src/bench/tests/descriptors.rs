//! The tests' server frees the descriptor of each connection that has ended.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tidegate_protocol::message::{AUTHENTICATE, Request};

use super::server::{Fault, Server};

/// Connections that are opened and closed.
const CONNECTIONS: u64 = 1_000;
/// The limit of open files of the process: far below the number of connections.
const DESCRIPTORS_MAX: u32 = 256;
/// Closed connections that the server may still hold open.
const LATE_MAX: usize = 16;
/// How long the server may take to close one.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Descriptors are counted per process, so the check runs in its own process.
#[test]
fn a_closed_connection_leaves_no_descriptor() {
    let script = format!("ulimit -n {DESCRIPTORS_MAX} && exec \"$0\" \"$@\"");
    let test = "bench::tests::descriptors::in_a_process_of_its_own";
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--ignored"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

#[test]
#[ignore = "counts the descriptors of its process, which has to run no other test: the test above starts it"]
fn in_a_process_of_its_own() {
    let before = descriptors();
    let server = Server::start(Fault::None);
    for user_id in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let (token, mut frame) = (format!("token-{user_id}"), Vec::new());
        Request { kind: AUTHENTICATE, user_id, token: &token, sequence: 1, ..Request::default() }
            .encode_frame(&mut frame);
        stream.write_all(&frame).unwrap();
        assert!(stream.read(&mut [0; 64]).unwrap() > 0, "user {user_id} is authenticated");
        drop(stream);
        wait_until_open_are(&server, LATE_MAX);
    }
    wait_until_open_are(&server, 0);
    drop(server);
    assert_eq!(descriptors(), before);
}

fn wait_until_open_are(server: &Server, most: usize) {
    let deadline = Instant::now() + TIMEOUT;
    while server.open() > most {
        assert!(Instant::now() < deadline, "{} connections are still open", server.open());
        thread::yield_now();
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
