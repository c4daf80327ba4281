//! One command to a server, as `redis-cli` sends it, without a process for each command.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

/// How long a server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a command. Returns the answer as `redis-cli` writes it: each string, number and error of it is a line. It is empty if
/// the server can't be reached or does not answer in time.
pub(super) fn run(port: u16, password: Option<&str>, command: &[&str]) -> String {
    ask(port, password, false, command).unwrap_or_default()
}

/// As [`run`], and follows redirections to other nodes of a cluster.
pub(super) fn run_in_cluster(mut port: u16, password: Option<&str>, command: &[&str]) -> String {
    let mut is_asking = false;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = ask(port, password, is_asking, command).unwrap_or_default();
        let words: Vec<_> = answer.split(' ').collect();
        let [kind @ ("MOVED" | "ASK"), _slot, address] = words.as_slice() else { return answer };
        // Nodes that have not heard of a move yet may redirect to each other.
        assert!(Instant::now() < deadline, "{command:?}: {answer}");
        is_asking = *kind == "ASK";
        port = address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
    }
}

fn ask(port: u16, password: Option<&str>, is_asking: bool, command: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut send = |words: &[&str]| {
        stream.write_all(&encode(words))?;
        let mut lines = Vec::new();
        read_answer(&mut reader, &mut lines)?;
        io::Result::Ok(lines.join("\n").trim_end().to_owned())
    };
    if let Some(password) = password {
        send(&["AUTH", password])?;
    }
    if is_asking {
        send(&["ASKING"])?;
    }
    send(command)
}

fn encode(words: &[&str]) -> Vec<u8> {
    let strings = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), strings.collect::<String>()).into_bytes()
}

/// Reads an answer of RESP2, and adds its lines.
fn read_answer(reader: &mut impl BufRead, lines: &mut Vec<String>) -> io::Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
    match kind {
        // A negative length says that there is nothing.
        "$" => {
            let mut bytes = Vec::new();
            if let Ok(length) = rest.parse::<usize>() {
                bytes.resize(length + 2, 0);
                reader.read_exact(&mut bytes)?;
                bytes.truncate(length);
            }
            lines.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        "*" => match rest.parse::<usize>() {
            Ok(0) | Err(_) => lines.push(String::new()),
            Ok(count) => {
                for _ in 0..count {
                    read_answer(reader, lines)?;
                }
            }
        },
        _ => lines.push(rest.to_owned()),
    }
    Ok(())
}
