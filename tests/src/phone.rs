//! A blocking client. It keeps events until a test asks for them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use rustls::ClientConfig;
use socket2::{Domain, SockRef, Socket, Type};
use tidegate_protocol::client::{Client, Event, Failure};
use tidegate_protocol::message::Request;
use tidegate_protocol::proto::demo::{JoinRoom, LeaveRoom, RoomMessage, SayInRoom};
use tidegate_protocol::proto::v1::{Position, Resume, Room, Session, notice::What};
use tidegate_protocol::{Code, message};

use crate::TIMEOUT;
use crate::wire::{Transport, Wire};

/// The demo backend's types.
pub mod demo {
    /// Answers with the bytes that came.
    pub const ECHO: i32 = 1;
    /// Pushes the bytes that came to everybody.
    pub const PUSH_ALL: i32 = 2;
    /// Joins a room.
    pub const JOIN: i32 = 10;
    /// Leaves a room.
    pub const LEAVE: i32 = 11;
    /// Pushes a message to a room.
    pub const SAY: i32 = 12;
}

/// The quiz example's types.
pub mod quiz {
    /// An answer to the question.
    pub const ANSWER: i32 = 100;
    /// The host asks a question: a push to everybody, and an answer to all that wait.
    pub const ASK: i32 = 101;
    /// Answers after so many milliseconds.
    pub const THINK: i32 = 102;
    /// Waits for the next question.
    pub const WAIT: i32 = 103;
    /// Panics.
    pub const PANIC: i32 = 104;
}

/// The types of the example `blocking`.
pub mod blocking {
    /// Answers after a millisecond, in which the worker is blocked.
    pub const WORK: i32 = 200;
    /// Blocks the worker until it is released.
    pub const HANG: i32 = 201;
    /// Answers with the bytes that came.
    pub const ECHO: i32 = 202;
    /// Releases what blocks, whatever the workers do.
    pub const RELEASE: i32 = 210;
}

/// How a request ended.
pub type Outcome = Result<Bytes, Failure>;

/// One connection to a gateway. While it waits for an event, it keeps all others, and notices by themselves.
#[derive(Debug)]
pub struct Phone {
    transport: Transport,
    client: Client,
    /// Events in order that no test has asked for yet.
    events: VecDeque<Event>,
    /// Notices in order that no test has asked for yet. Most tests ignore them, as a client of version 1.0 does.
    notices: VecDeque<Notice>,
    /// How many of them had come when a session's answer came.
    notices_before_session: usize,
    /// Pushes that have arrived.
    pushes: usize,
    /// How the connection ended.
    end: Option<End>,
    session: Option<Session>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an end of stream, after everything was read.
    Closed,
    /// With a reset.
    Reset,
}

/// A membership has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How many pushes came on this connection before it.
    pub after_pushes: usize,
    /// What it says.
    pub what: What,
}

/// A push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Its type.
    pub kind: i32,
    /// Its room's number on this connection; 0 for a push to this user.
    pub room: u32,
    /// Its offset in the room's log; 0 for a push to this user.
    pub offset: u64,
    /// What it carries.
    pub biz_data: Bytes,
}

impl Push {
    /// The text of a room's message.
    #[must_use]
    pub fn text(&self) -> String {
        let message = RoomMessage::decode(self.biz_data.clone()).unwrap();
        String::from_utf8(message.text.to_vec()).unwrap()
    }
}

impl Phone {
    /// Connects.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).unwrap())
    }

    /// Connects, if somebody listens.
    #[must_use]
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        TcpStream::connect(address).ok().map(Self::on)
    }

    /// Connects with a small receive buffer: what the client does not read soon waits in the gateway.
    #[must_use]
    pub fn connect_narrow(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Set before the connect, which negotiates the window.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::on(socket.into())
    }

    /// Connects from an address of this machine.
    #[must_use]
    pub fn connect_tcp_from(address: SocketAddr, from: IpAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::on(socket.into())
    }

    fn on(stream: TcpStream) -> Self {
        set_up(&stream);
        Self::with(Transport::plain(stream))
    }

    /// Connects, and opens a wire.
    ///
    /// # Errors
    /// Nobody listens, or the wire does not open.
    pub fn connect_over(
        address: SocketAddr,
        wire: Wire,
        config: impl FnOnce(&str) -> Arc<ClientConfig>,
    ) -> io::Result<Self> {
        Self::open(TcpStream::connect(address)?, wire, config)
    }

    /// Connects from an address of this machine, and opens a wire.
    ///
    /// # Errors
    /// Nobody listens, or the wire does not open.
    pub fn connect_from(
        source: Ipv4Addr,
        address: SocketAddr,
        wire: Wire,
        config: impl FnOnce(&str) -> Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect(&address.into())?;
        Self::open(socket.into(), wire, config)
    }

    fn open(
        stream: TcpStream,
        wire: Wire,
        config: impl FnOnce(&str) -> Arc<ClientConfig>,
    ) -> io::Result<Self> {
        set_up(&stream);
        Transport::open(stream, wire, config).map(Self::with)
    }

    fn with(transport: Transport) -> Self {
        let client = Client::new(Instant::now());
        let (events, notices, notices_before_session, pushes) = Default::default();
        let (end, session) = (None, None);
        Self { transport, client, events, notices, notices_before_session, pushes, end, session }
    }

    /// The code of the gateway's close frame, where it is a WebSocket and one has come.
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        self.transport.close.as_ref().map(|frame| frame.code.into())
    }

    /// The local address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.transport.socket.local_addr().unwrap()
    }

    /// Whether there is something to read, or the connection has ended.
    #[must_use]
    pub fn has_arrived(&self) -> bool {
        self.transport.socket.set_nonblocking(true).unwrap();
        let seen = self.transport.socket.peek(&mut [0]);
        self.transport.socket.set_nonblocking(false).unwrap();
        !self.events.is_empty()
            || seen.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true)
    }

    /// Opens a session with a demo token, and waits for it.
    pub fn login(&mut self, user_id: u64) -> Session {
        self.login_with(user_id, &format!("token-{user_id}"))
    }

    /// Opens a session, and waits for it.
    pub fn login_with(&mut self, user_id: u64, token: &str) -> Session {
        let session = self.try_login(user_id, token);
        session.unwrap_or_else(|failure| panic!("the login of user {user_id} failed: {failure:?}"))
    }

    /// Tries to open a session.
    pub fn try_login(&mut self, user_id: u64, token: &str) -> Result<Session, Failure> {
        let asked = self.send_login(user_id, token);
        self.login_outcome(asked)
    }

    /// Waits for the outcome of an authentication that was sent.
    pub fn login_outcome(&mut self, asked: u64) -> Result<Session, Failure> {
        let outcome = self.wait_for(|event| match event {
            Event::Authenticated { sequence, session } if *sequence == asked => {
                Some(Ok(session.clone()))
            }
            Event::Failed { sequence, failure, .. } if *sequence == asked => Some(Err(*failure)),
            _ => None,
        });
        if let Ok(session) = &outcome {
            self.session = Some(session.clone());
        }
        outcome
    }

    /// Comes back with these positions: opens a session with a demo token, and checks that nothing comes before it.
    pub fn login_again(&mut self, user_id: u64, positions: &[Position]) -> Session {
        self.send_login_again(user_id, positions);
        match self.next() {
            Some(Event::Authenticated { session, .. }) => {
                let before = self.notices.iter().take(self.notices_before_session);
                let before: Vec<_> = before.collect();
                assert!(before.is_empty(), "before the session: {before:?}");
                self.session = Some(session.clone());
                session
            }
            other => panic!("{other:?} instead of the session of user {user_id}"),
        }
    }

    /// As [`Self::login_again`]; `None` if the gateway is gone before it has answered.
    pub fn try_login_again(&mut self, user_id: u64, positions: &[Position]) -> Option<Session> {
        let (token, now) = (format!("token-{user_id}"), Instant::now());
        let resume = Resume { positions: positions.to_vec() };
        self.client.resume(now, user_id, &token, &resume);
        let bytes = self.client.outgoing().split();
        self.transport.write_all(&bytes).ok()?;
        match self.next()? {
            Event::Authenticated { session, .. } => Some(session),
            other => panic!("{other:?} instead of the session of user {user_id}"),
        }
    }

    /// Sends an authentication with these positions and a demo token. Returns its sequence.
    pub fn send_login_again(&mut self, user_id: u64, positions: &[Position]) -> u64 {
        let (token, now) = (format!("token-{user_id}"), Instant::now());
        let resume = Resume { positions: positions.to_vec() };
        let sequence = self.client.resume(now, user_id, &token, &resume);
        self.flush();
        sequence
    }

    /// Sends an authentication. Returns its sequence.
    pub fn send_login(&mut self, user_id: u64, token: &str) -> u64 {
        let sequence = self.client.authenticate(Instant::now(), user_id, token);
        self.flush();
        sequence
    }

    /// The gateway's answer to the login.
    #[must_use]
    pub fn session(&self) -> Session {
        self.session.clone().expect("the phone has logged in")
    }

    /// Sends a request. Returns its sequence.
    pub fn send(&mut self, kind: i32, biz_data: &[u8]) -> u64 {
        let sequence = self.client.request(Instant::now(), kind, biz_data);
        self.flush();
        sequence
    }

    /// Sends many requests in one write. Returns their sequences.
    pub fn send_together<B: AsRef<[u8]>>(&mut self, requests: &[(i32, B)]) -> Vec<u64> {
        let now = Instant::now();
        let sequences = requests
            .iter()
            .map(|(kind, biz_data)| self.client.request(now, *kind, biz_data.as_ref()))
            .collect();
        self.flush();
        sequences
    }

    /// Sends a request and waits for its outcome.
    pub fn ask(&mut self, kind: i32, biz_data: &[u8]) -> Outcome {
        let sequence = self.send(kind, biz_data);
        self.outcome(sequence)
    }

    /// Sends a request and waits for its outcome; `None` if the connection ends before.
    pub fn ask_or_end(&mut self, kind: i32, biz_data: &[u8]) -> Option<Outcome> {
        let asked = self.client.request(Instant::now(), kind, biz_data);
        let bytes = self.client.outgoing().split();
        self.transport.write_all(&bytes).ok()?;
        loop {
            match self.next()? {
                Event::Answer { sequence, biz_data, .. } if sequence == asked => {
                    return Some(Ok(biz_data));
                }
                Event::Failed { sequence, failure, .. } if sequence == asked => {
                    return Some(Err(failure));
                }
                _ => {}
            }
        }
    }

    /// Requests an echo and checks it: the gateway has read what was sent before, and still serves the client.
    pub fn assert_is_served(&mut self) {
        assert_eq!(self.ask(demo::ECHO, b"still here?"), Ok("still here?".into()));
    }

    /// Sends a heartbeat. Returns its sequence.
    pub fn send_heartbeat(&mut self) -> u64 {
        let sequence = self.client.heartbeat(Instant::now());
        self.flush();
        sequence
    }

    /// Sends a heartbeat, and waits for its pong.
    pub fn heartbeat(&mut self) {
        let asked = self.send_heartbeat();
        self.wait_for(|event| match event {
            Event::Pong { sequence, .. } if *sequence == asked => Some(()),
            _ => None,
        });
    }

    /// Reads raw bytes until the gateway sends no more.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn read_bytes(&mut self) -> io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.transport.read(&mut buffer)? {
                0 => return Ok(all),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Sends raw bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.transport.write_all(bytes).unwrap();
    }

    /// Sends raw bytes, if the gateway still takes them.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.transport.write_all(bytes)
    }

    /// Sends `bytes` again and again while the gateway takes them, at most `sent_max` in all; `sent` counts them.
    /// Returns how many bytes it took now. The last write may end within `bytes`.
    pub fn send_until_full(&mut self, bytes: &[u8], sent: &mut usize, sent_max: usize) -> usize {
        let before = *sent;
        self.transport.socket.set_nonblocking(true).unwrap();
        while *sent < sent_max {
            match self.transport.socket.write(&bytes[*sent % bytes.len()..]) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        self.transport.socket.set_nonblocking(false).unwrap();
        *sent - before
    }

    /// Shuts down the sending side. Reading continues.
    pub fn stop_sending(&self) {
        self.transport.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection.
    pub fn reset(self) {
        SockRef::from(&self.transport.socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Waits for the outcome of a request.
    pub fn outcome(&mut self, asked: u64) -> Outcome {
        self.wait_for(|event| match event {
            Event::Answer { sequence, biz_data, .. } if *sequence == asked => {
                Some(Ok(biz_data.clone()))
            }
            Event::Failed { sequence, failure, .. } if *sequence == asked => Some(Err(*failure)),
            _ => None,
        })
    }

    /// Waits for the failure of a request, and checks its code.
    pub fn fails(&mut self, asked: u64, code: Code) -> Failure {
        let failure = self.outcome(asked).expect_err("the request should fail");
        assert_eq!(failure.code, Some(code));
        failure
    }

    /// Waits for the next push.
    pub fn push(&mut self) -> Push {
        self.wait_for(|event| match event {
            Event::Push { kind, room, offset, biz_data } => {
                let (kind, room, offset, biz_data) = (*kind, *room, *offset, biz_data.clone());
                Some(Push { kind, room, offset, biz_data })
            }
            _ => None,
        })
    }

    /// Waits for the next notice.
    pub fn notice(&mut self) -> Notice {
        loop {
            if let Some(notice) = self.notices.pop_front() {
                return notice;
            }
            assert_eq!(self.end, None, "the connection ended before the notice");
            self.receive();
        }
    }

    /// Waits for the next notice, which says that this is a member of a room, or is refused.
    pub fn joined(&mut self) -> Room {
        match self.notice().what {
            What::Joined(room) => room,
            What::Left(room) => panic!("it left {room}"),
        }
    }

    /// Notices that no test has asked for, after everything sent before is answered.
    pub fn other_notices(&mut self) -> Vec<Notice> {
        self.heartbeat();
        self.notices.drain(..).collect()
    }

    /// The notices that have arrived so far and were not read yet.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.drain(..).collect()
    }

    /// Waits for so many pushes.
    pub fn pushes(&mut self, count: usize) -> Vec<Push> {
        (0..count).map(|_| self.push()).collect()
    }

    /// Waits for the gateway's last frame, and leaves the connection open.
    pub fn wait_for_goodbye(&mut self) -> Failure {
        self.wait_for(|event| match event {
            Event::Goodbye(failure) => Some(*failure),
            _ => None,
        })
    }

    /// Waits for the gateway's last frame, which has this code, and for the end of the connection.
    pub fn goodbye(&mut self, code: Code) -> Failure {
        let failure = self.wait_for_goodbye();
        assert_eq!(failure.code, Some(code));
        assert_eq!(self.end(), End::Closed);
        assert!(self.events.is_empty(), "events after the goodbye: {:?}", self.events);
        failure
    }

    /// Reads to the end of the connection, and returns how it ended. Events are kept.
    pub fn end(&mut self) -> End {
        loop {
            if let Some(end) = self.end {
                return end;
            }
            self.receive();
        }
    }

    /// Events that no test has asked for, after everything sent before is answered.
    pub fn leftovers(&mut self) -> Vec<Event> {
        self.heartbeat();
        self.events.drain(..).collect()
    }

    /// Waits for the first event that `pick` accepts. The others are kept.
    pub fn wait_for<T>(&mut self, pick: impl Fn(&Event) -> Option<T>) -> T {
        let mut looked_at = 0;
        loop {
            while let Some(event) = self.events.get(looked_at) {
                if let Some(picked) = pick(event) {
                    self.events.remove(looked_at);
                    return picked;
                }
                looked_at += 1;
            }
            if let Some(end) = self.end {
                panic!("the connection ended ({end:?}) before the event, after {}", self.summary());
            }
            self.receive();
        }
    }

    /// Joins a room of the demo backend. With `last_offset` it gets the pushes after that offset.
    pub fn join(&mut self, room: &str, last_offset: u64) {
        let join = JoinRoom { room: room.into(), last_offset };
        assert_eq!(self.ask(demo::JOIN, &join.encode_to_vec()), Ok(Bytes::new()));
    }

    /// Leaves a room of the demo backend.
    pub fn leave(&mut self, room: &str) {
        let leave = LeaveRoom { room: room.into() };
        assert_eq!(self.ask(demo::LEAVE, &leave.encode_to_vec()), Ok(Bytes::new()));
    }

    /// Pushes a message to a room of the demo backend.
    pub fn say(&mut self, room: &str, text: &str) {
        let say = said(room, text);
        assert_eq!(self.ask(demo::SAY, &say), Ok(Bytes::new()));
    }

    /// Runs `work` with this client on another thread.
    pub fn in_background<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        thread::spawn(move || work(&mut self))
    }

    fn flush(&mut self) {
        let bytes = self.client.outgoing().split();
        self.transport.write_all(&bytes).unwrap();
    }

    /// Events that no test has asked for, for the message of a failure.
    fn summary(&self) -> String {
        let last: Vec<_> = self.events.iter().rev().take(10).collect();
        format!("{} events that nobody asked for, the last ones first: {last:?}", self.events.len())
    }

    /// Reads once.
    fn receive(&mut self) {
        let mut buffer = [0; 16 * 1024];
        match self.transport.read(&mut buffer) {
            // A signal of a debugger, or SIGCONT: the kernel does not restart a read with a timeout (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) => self.end = Some(End::Closed),
            Ok(count) => {
                let Self { client, events, notices, notices_before_session, pushes, .. } = self;
                let take = |event| match event {
                    Event::Joined(room) => {
                        let what = What::Joined(room);
                        notices.push_back(Notice { after_pushes: *pushes, what });
                    }
                    Event::Left { room } => {
                        let what = What::Left(room);
                        notices.push_back(Notice { after_pushes: *pushes, what });
                    }
                    event => {
                        if matches!(event, Event::Authenticated { .. }) {
                            *notices_before_session = notices.len();
                        }
                        *pushes += usize::from(matches!(event, Event::Push { .. }));
                        events.push_back(event);
                    }
                };
                client.receive(&buffer[..count], take).unwrap();
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.end = Some(End::Reset),
            Err(error) => panic!("{error}, after {}", self.summary()),
        }
    }
}

/// All events but the notices, in order, to the end of the connection.
impl Iterator for Phone {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        while self.events.is_empty() && self.end.is_none() {
            self.receive();
        }
        self.events.pop_front()
    }
}

fn set_up(stream: &TcpStream) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
}

/// The data of a request that pushes a message to a room of the demo backend.
#[must_use]
pub fn said(room: &str, text: &str) -> Vec<u8> {
    SayInRoom { room: room.into(), text: text.to_owned().into() }.encode_to_vec()
}

/// A request's whole frame.
#[must_use]
pub fn request_frame(kind: i32, biz_data: &[u8], sequence: u64) -> Vec<u8> {
    frame(&Request { kind, biz_data, sequence, ..Request::default() })
}

/// An authentication's whole frame, with a demo token.
#[must_use]
pub fn login_frame(user_id: u64, sequence: u64) -> Vec<u8> {
    let (kind, token) = (message::AUTHENTICATE, &*format!("token-{user_id}"));
    frame(&Request { kind, user_id, token, sequence, ..Request::default() })
}

/// A heartbeat's whole frame.
#[must_use]
pub fn heartbeat_frame(sequence: u64) -> Vec<u8> {
    frame(&Request { kind: message::HEARTBEAT, sequence, ..Request::default() })
}

fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    request.encode_frame(&mut frame);
    frame
}

/// Events by the sequence of the request that they answer; 0: none.
#[must_use]
pub fn by_sequence(events: impl IntoIterator<Item = Event>) -> HashMap<u64, Vec<Event>> {
    let mut by_sequence: HashMap<u64, Vec<Event>> = HashMap::new();
    for event in events {
        let sequence = match &event {
            Event::Authenticated { sequence, .. }
            | Event::Pong { sequence, .. }
            | Event::Answer { sequence, .. }
            | Event::Failed { sequence, .. } => *sequence,
            Event::Push { .. } | Event::Joined(_) | Event::Left { .. } | Event::Goodbye(_) => 0,
        };
        by_sequence.entry(sequence).or_default().push(event);
    }
    by_sequence
}
