//! To whom `tide` sends the operators' token, and to whom it does not.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::process::Output;
use std::thread;

use operators_http::{NO_TOKEN, OperatorsHttp, tide};
use rustix::process::{Uid, geteuid};
use tempfile::NamedTempFile;

mod operators_http;

/// A user that is neither root nor the owner of the tests' files: `nobody`.
const STRANGER: u32 = 65_534;

/// One command for each way to the operators' HTTP, and its exit status where the token is not sent.
const COMMANDS: [(&str, i32); 6] = [
    ("push all --type 2 x", 1),
    ("kick 7", 1),
    ("stats", 1),
    ("user 7", 1),
    ("room quiz", 1),
    ("doctor --connections 5", 2),
];

fn token_file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, "secret\n").unwrap();
    file
}

fn run(command: &str, admin: &str, file: &NamedTempFile) -> Output {
    let arguments: Vec<_> = command.split(' ').collect();
    tide(&arguments, admin, file.path(), b"")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_gateway_is_asked_without_the_token_first() {
    for (command, _) in COMMANDS {
        let gateway = OperatorsHttp::start(NO_TOKEN, "200 OK", r#"{"connections":1}"#);
        let output = run(command, &gateway.address.to_string(), &token_file());
        let asked = gateway.end();
        let tokens: Vec<_> = asked.iter().map(|asked| &*asked.authorization).collect();
        assert_eq!(tokens, ["", "Bearer secret"], "{command}: {}", said(&output));
        assert_eq!((&*asked[0].line, &*asked[0].body), ("GET /stats HTTP/1.1", &b""[..]));
    }
}

#[test]
fn a_listener_that_is_no_gateway_does_not_get_the_token() {
    let others = ["200 OK", "401 Unauthorized", "401 Unauthorized\r\nWWW-Authenticate: Bearer"];
    for (command, status) in COMMANDS {
        for other in others {
            let listener = OperatorsHttp::start(other, "200 OK", r#"{"connections":1}"#);
            let output = run(command, &listener.address.to_string(), &token_file());
            assert_eq!(output.status.code(), Some(status), "{command}: {}", said(&output));
            let expected = "is not a Tidegate gateway's operators' HTTP: it answered ";
            assert!(said(&output).contains(expected), "{command}: {}", said(&output));
            let asked = listener.end();
            assert!(asked.iter().all(|asked| asked.authorization.is_empty()), "{command}");
        }
    }
}

#[test]
fn the_token_does_not_cross_the_network_in_clear_text() {
    // An address for documentation, which no machine has.
    for (command, status) in COMMANDS {
        let output = run(command, "192.0.2.1:7401", &token_file());
        assert_eq!(output.status.code(), Some(status), "{command}: {}", said(&output));
        for part in
            ["192.0.2.1:7401 is another machine", "clear text", "ssh -L", "--trust-listener"]
        {
            assert!(said(&output).contains(part), "{part}: {command}: {}", said(&output));
        }
    }
}

#[test]
fn another_users_process_does_not_get_the_token() {
    if !geteuid().is_root() {
        println!("skipped: only root can listen as another user");
        return;
    }
    let start = || {
        let bind = || {
            // Of this thread alone.
            rustix::thread::set_thread_uid(Uid::from_raw(STRANGER)).unwrap();
            TcpListener::bind("127.0.0.1:0").unwrap()
        };
        let listener = thread::spawn(bind).join().unwrap();
        OperatorsHttp::on(listener, NO_TOKEN, "200 OK", r#"{"connections":1}"#)
    };
    let sent = |listener: OperatorsHttp| {
        listener.end().iter().any(|asked| asked.authorization == "Bearer secret")
    };
    for (command, status) in COMMANDS {
        let listener = start();
        let admin = listener.address.to_string();
        let output = run(command, &admin, &token_file());
        assert_eq!(output.status.code(), Some(status), "{command}: {}", said(&output));
        let expected = format!("a process of user {STRANGER} listens on {admin}");
        assert!(said(&output).contains(&expected), "{command}: {}", said(&output));
        assert!(!sent(listener), "{command}");

        // The owner of the file may have it, and anybody whom the operator trusts.
        let (listener, file) = (start(), token_file());
        chown(file.path(), Some(STRANGER), None).unwrap();
        run(command, &listener.address.to_string(), &file);
        assert!(sent(listener), "{command}");
        let listener = start();
        let trusted = format!("{command} --trust-listener");
        run(&trusted, &listener.address.to_string(), &token_file());
        assert!(sent(listener), "{command}");
    }
}
