//! A small server, correct or faulty.
//!
//! It closes its end of a connection when the client's end closes, and everything when it is dropped: a storm
//! opens and closes a thousand connections a second, and all tests of `tide` share one process and its limit
//! of open files.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tidegate_protocol::proto::v1::Session;
use tidegate_protocol::server::{
    Incoming, put_answer, put_failure, put_pong, put_push, put_session,
};
use tidegate_protocol::{Code, Reassembler};

/// The server's fault, at its third echo or push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    WrongByte,
    WrongSequence,
    Failure,
    LostPush,
    RepeatedPush,
    Hangup,
}

/// A running server. It ends when it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    served: Arc<Served>,
    accepting: Option<JoinHandle<()>>,
}

/// The state that all connections share.
struct Served {
    fault: Fault,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// In the order in which they were accepted.
    open: Vec<Connection>,
    echoes: u32,
    pushes: u64,
}

struct Connection {
    stream: Arc<TcpStream>,
    is_member: bool,
}

impl Server {
    pub(super) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(Served { fault, state: Mutex::default() });
        let accepting = Arc::clone(&served);
        let accepting = thread::spawn(move || accepting.accept(&listener));
        Self { address, served, accepting: Some(accepting) }
    }

    /// Connections that have not ended.
    pub(super) fn open(&self) -> usize {
        self.served.state.lock().unwrap().open.len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where a thread of the server has panicked, the lock is poisoned and the join below reports it.
        let mut state = self.served.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.stopping = true;
        for connection in &state.open {
            drop(connection.stream.shutdown(Shutdown::Both));
        }
        drop(state);
        // This connection wakes the accepting thread. It is refused where the thread has ended already.
        drop(TcpStream::connect(self.address));
        let ended = self.accepting.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the test's server panicked: see above");
    }
}

impl Served {
    /// Serves each connection, until the server stops and all connections have ended.
    fn accept(&self, listener: &TcpListener) {
        thread::scope(|scope| {
            for stream in listener.incoming() {
                let stream = Arc::new(stream.unwrap());
                let mut state = self.state.lock().unwrap();
                if state.stopping {
                    return;
                }
                state.open.push(Connection { stream: Arc::clone(&stream), is_member: false });
                drop(state);
                scope.spawn(move || self.serve(&stream));
            }
        });
    }

    fn serve(&self, stream: &Arc<TcpStream>) {
        self.answer_all(stream);
        let mut state = self.state.lock().unwrap();
        state.open.retain(|connection| !Arc::ptr_eq(&connection.stream, stream));
        drop(state);
        // Workers of other tests may hold copies of this descriptor, so closing it may not close the connection.
        drop(stream.shutdown(Shutdown::Both));
    }

    fn answer_all(&self, stream: &Arc<TcpStream>) {
        stream.set_nodelay(true).unwrap();
        let mut reassembler = Reassembler::new();
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = (&**stream).read(&mut buffer) {
            let mut frames = reassembler.frames(&buffer[..bytes], 100_000);
            while let Some(payload) = frames.next().unwrap() {
                let mut out = Vec::new();
                // The lock is held while writing, so that no push gets between the parts of an answer.
                let mut state = self.state.lock().unwrap();
                if !self.answer(&mut state, stream, Incoming::decode(payload).unwrap(), &mut out) {
                    return;
                }
                let _gone = (&**stream).write_all(&out);
            }
        }
    }

    /// Returns whether the connection stays open.
    fn answer(
        &self,
        state: &mut State,
        stream: &Arc<TcpStream>,
        request: Incoming<'_>,
        out: &mut Vec<u8>,
    ) -> bool {
        match request {
            Incoming::Heartbeat { sequence } => put_pong(out, sequence, 1),
            Incoming::Authenticate { user_id, token, sequence, .. } => {
                assert_eq!(token, format!("token-{user_id}"));
                let is_it = |it: &&mut Connection| Arc::ptr_eq(&it.stream, stream);
                let Some(connection) = state.open.iter_mut().find(is_it) else { return false };
                connection.is_member = true;
                let session = Session {
                    session_id: user_id,
                    heartbeat_interval_ms: 50,
                    server_time_ms: 1,
                    ..Session::default()
                };
                put_session(out, sequence, &session);
            }
            Incoming::Business { kind: 1, biz_data, sequence } => {
                state.echoes += 1;
                let mut biz_data = biz_data.to_vec();
                match self.fault {
                    Fault::Hangup if state.echoes == 3 => return false,
                    Fault::WrongByte if state.echoes == 3 => biz_data[20] ^= 1,
                    Fault::WrongSequence if state.echoes == 3 => {
                        put_answer(out, 1, sequence + 1, &biz_data);
                        return true;
                    }
                    Fault::Failure if state.echoes == 3 => {
                        put_failure(out, 1, sequence, Code::Overloaded, 5);
                        return true;
                    }
                    _ => {}
                }
                put_answer(out, 1, sequence, &biz_data);
            }
            Incoming::Business { kind, biz_data, sequence } => {
                state.pushes += 1;
                self.push(state, kind, biz_data);
                put_answer(out, kind, sequence, b"");
            }
        }
        true
    }

    fn push(&self, state: &State, kind: i32, biz_data: &[u8]) {
        let mut push = Vec::new();
        put_push(&mut push, kind, biz_data, state.pushes + 40, 0);
        let members = state.open.iter().filter(|connection| connection.is_member);
        for (index, member) in members.enumerate() {
            let times = match self.fault {
                Fault::LostPush if (index, state.pushes) == (1, 3) => 0,
                Fault::RepeatedPush if (index, state.pushes) == (1, 3) => 2,
                _ => 1,
            };
            (0..times).for_each(|_| drop((&*member.stream).write_all(&push)));
        }
    }
}
