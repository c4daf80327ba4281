use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::*;

/// Commands that are under way at once: more than a task of tokio may carry out in one turn, and more than the queues of the
/// client hold.
const CONCURRENT: usize = 300;

/// Commands that each task sends, one after another.
const ROUNDS: usize = 10;

/// One command in this number is answered with MOVED.
const MOVED_EVERY: usize = 40;

/// A Cluster of one node, which serves all slots.
struct FakeCluster {
    port: u16,
    /// Commands whose connection it has closed without an answer.
    unanswered: Arc<AtomicUsize>,
}

impl FakeCluster {
    /// Its threads end with their connections, which end with the test.
    fn start() -> Self {
        let node = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = node.local_addr().expect("it is bound").port();
        let unanswered = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unanswered);
        thread::spawn(move || {
            for connection in node.incoming().flatten() {
                let counter = Arc::clone(&counter);
                thread::spawn(move || serve(&connection, port, &counter));
            }
        });
        Self { port, unanswered }
    }

    fn connect(&self, runtime: &Runtime) -> Connection {
        let target = RedisTarget::parse(&format!("redis-cluster://127.0.0.1:{}", self.port));
        let (arrivals, _arrived) = mpsc::unbounded_channel();
        let connected = connect(target.expect("it is a URL"), 0, arrivals);
        runtime.block_on(connected).expect("the node answers")
    }
}

/// Answers the commands of a connection until it ends.
fn serve(connection: &TcpStream, port: u16, unanswered: &AtomicUsize) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    let (mut gets, mut decrements) = (0, 0);
    loop {
        let words = read_command(&mut reader)?;
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            ["HELLO", ..] => "%1\r\n+proto\r\n:3\r\n".to_owned(),
            ["PING"] => "+PONG\r\n".to_owned(),
            // The library is there, and newer.
            ["FCALL", ..] => ":1000000\r\n".to_owned(),
            ["CLUSTER", "SLOTS"] => {
                let node = format!("*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n");
                format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}")
            }
            ["GET", _] => {
                gets += 1;
                if gets % MOVED_EVERY == 0 {
                    format!("-MOVED 1 127.0.0.1:{port}\r\n")
                } else {
                    "+value\r\n".to_owned()
                }
            }
            // The slot has moved, and no answer to CLUSTER SLOTS says so.
            ["DECR", _] => {
                decrements += 1;
                if decrements == 1 {
                    format!("-MOVED 1 127.0.0.1:{port}\r\n")
                } else {
                    ":-1\r\n".to_owned()
                }
            }
            ["INCR", _] => {
                unanswered.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            _ => "+OK\r\n".to_owned(),
        };
        (&*connection).write_all(answer.as_bytes())?;
    }
}

/// Reads an array of strings.
fn read_command(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut line = String::new();
    let mut read_number = |reader: &mut dyn BufRead| -> io::Result<usize> {
        line.clear();
        reader.read_line(&mut line)?;
        let number = line.get(1..).and_then(|digits| digits.trim_end().parse().ok());
        number.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let count: usize = read_number(reader)?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut bytes = vec![0; read_number(reader)? + 2];
        reader.read_exact(&mut bytes)?;
        bytes.truncate(bytes.len() - 2);
        words.push(String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?);
    }
    Ok(words)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The client carries out all commands in one task. While it asks for the slots again, it does not continue the commands
/// that are under way. None of these may hold what the question for the slots waits for.
#[test]
fn no_command_is_lost_when_slots_move_while_many_are_under_way() {
    let (cluster, runtime) = (FakeCluster::start(), runtime());
    let connection = cluster.connect(&runtime);
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..CONCURRENT {
            let mut connection = connection.clone();
            tasks.spawn(async move {
                let mut answered = 0;
                while answered < ROUNDS {
                    match connection.call(redis::cmd("GET").arg("key")).await {
                        Ok(_) => answered += 1,
                        Err(error) => assert_eq!(error.code(), Some("MOVED"), "{error}"),
                    }
                }
            });
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome.expect("each command has its answer");
        }
    });
}

#[test]
fn a_command_whose_answer_is_lost_is_not_repeated() {
    let (cluster, runtime) = (FakeCluster::start(), runtime());
    let mut connection = cluster.connect(&runtime);
    let outcome = runtime.block_on(async {
        let outcome = connection.call(redis::cmd("INCR").arg("key")).await;
        // Until the client has a connection again, which would carry what it repeats.
        let connected = async {
            while connection.ping().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), connected).await.expect("it connects again");
        outcome
    });
    assert!(outcome.is_err_and(|error| error.code().is_none()), "what came of it is unknown");
    assert_eq!(cluster.unanswered.load(Ordering::Relaxed), 1);
}

#[test]
fn a_command_follows_its_slot_to_the_node_that_has_it() {
    let (cluster, runtime) = (FakeCluster::start(), runtime());
    let mut connection = cluster.connect(&runtime);
    let answer = runtime.block_on(connection.call(redis::cmd("DECR").arg("key")));
    assert_eq!(answer, Ok(Value::Int(-1)));
}
