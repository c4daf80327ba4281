//! `tide client`: one user's connection at a terminal or in a script.
//!
//! Three threads and one channel: one thread reads the socket, one reads commands, and the loop in this file receives
//! from both and owns everything else. All logic is in [`session`] and [`reconnect`], which do no I/O.
//!
//! The channel itself is unbounded, but each sender has a bound: the socket's thread may be 16 reads ahead, a script
//! one command, and a person types slowly.

mod command;
mod event;
mod input;
mod link;
mod notice;
mod reconnect;
mod session;
mod text;
mod view;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail};
use clap::Args;

use self::command::Command;
use self::event::{LinkId, LoopEvent};
use self::input::{Input, Screen};
use self::link::Link;
use self::notice::{Notice, Reason};
use self::reconnect::Reconnects;
use self::session::Session;
use crate::count::counted;
use crate::token::Signing;
use crate::wire::{Dialer, Place, Spoken, Trust, WireKind, mismatch};
use crate::{argument, duration, ports};

/// The arguments of `tide client`.
///
/// With a terminal as standard input it is interactive. Otherwise standard input is a script: each command is sent when
/// the one before it is answered, and the exit status tells whether all of them succeeded.
///
/// When the connection is lost, it waits for a random time, connects again, and resumes its rooms: missed pushes follow,
/// and a room of which pushes are missing is reported. It does not after the codes 100, 106, 107 and 110.
#[derive(Args, Debug)]
pub(crate) struct ClientArgs {
    /// Where the gateway listens: HOST:PORT, tls://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH. Of several
    /// places, with commas between them, each connection takes the next one
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "PLACE", value_delimiter = ',')]
    connect: Vec<Place>,
    #[command(flatten)]
    trust: Trust,
    /// The user to log in as
    #[arg(long, value_name = "ID", value_parser = argument::user)]
    user: u64,
    /// The token to log in with; by default one is made from the key file, as `tide token` does
    #[arg(long)]
    token: Option<String>,
    /// Log in with `token-ID`, which a gateway with --auth demo accepts
    #[arg(long, conflicts_with = "token")]
    demo_token: bool,
    #[command(flatten)]
    signing: Signing,
    /// How long to wait for the connection and for each answer
    #[arg(long, default_value = "10s", value_name = "SPAN", value_parser = duration::parse_above_0)]
    timeout: Duration,
    /// When the connection is lost, connect again after a random wait and resume the rooms; at most so many times in
    /// a row
    #[arg(long, default_value = "10", value_name = "COUNT", value_parser = argument::whole(0..=RETRIES_MAX))]
    retries: u32,
    /// After the end of the input, keep showing pushes for this long
    #[arg(long, value_name = "SECONDS|forever", value_parser = parse_watch)]
    watch: Option<Watch>,
}

/// The most tries in a row that can be asked for: about a year, with half a minute each.
const RETRIES_MAX: u32 = 1_000_000;

/// The hint where a token given with `--token` is refused.
const GIVEN_TOKEN_HINT: &str = "without --token, one is made with the gateway's key (--key-file); a gateway \
     with --auth demo takes --demo-token";

/// The hint where a demo token is refused.
const DEMO_TOKEN_HINT: &str = "only a gateway with --auth demo takes --demo-token; without it, a token is \
     made with the gateway's key (--key-file)";

/// The hint where a token made from the key file is refused.
const MINTED_TOKEN_HINT: &str = "--key-file must be the gateway's own key; a gateway with --auth demo takes \
     --demo-token";

/// Follows the advice to try ws:// where HTTP is spoken.
const NO_HTTP: &str = ". If the listener's wire is \"http\", it serves [[http_routes]] to clients such as curl, and \
     no session: name another listener";

/// How long to run after the end of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Forever,
    For(Duration),
}

/// Where the client is between its first command and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It reads input.
    Reading,
    /// The input has ended; answers are still due. Then it watches, or ends where this is `None`.
    Draining(Option<Watch>),
    /// It shows pushes until this time; `None`: without end.
    Watching(Option<Instant>),
    /// It has ended.
    Over,
}

struct Shell {
    /// Never empty.
    places: Vec<Place>,
    dialer: Dialer,
    timeout: Duration,
    watch: Option<Watch>,
    session: Session,
    link: Option<Link>,
    /// Tries included.
    links_made: usize,
    reconnects: Reconnects,
    /// Why the last login failed; `None`: none has.
    login_failure: Option<Reason>,
    input: Input,
    screen: Screen,
    stage: Stage,
    events: Receiver<LoopEvent>,
    events_tx: Sender<LoopEvent>,
}

/// Runs until the input ends, and then for as long as `--watch` says.
///
/// # Errors
/// It can't connect or log in. A script also fails when a command failed or the gateway closed the connection.
pub(crate) fn run(args: ClientArgs) -> Result<()> {
    let (token, hint) = match args.token {
        Some(token) => (token, GIVEN_TOKEN_HINT),
        None if args.demo_token => (format!("token-{}", args.user), DEMO_TOKEN_HINT),
        None => {
            let token = args.signing.mint(args.user).context(
                "no token to log in with; --token gives one, --demo-token makes one for a demo gateway",
            )?;
            (token, MINTED_TOKEN_HINT)
        }
    };
    let (events_tx, events) = mpsc::channel();
    let (input, screen) = input::start(&events_tx)?;
    let mut shell = Shell {
        dialer: Dialer::new(&args.trust, &args.connect)?,
        places: args.connect,
        timeout: args.timeout,
        watch: args.watch,
        session: Session::new(args.user, token, args.timeout),
        login_failure: None,
        link: None,
        links_made: 0,
        reconnects: Reconnects::new(args.retries),
        input,
        screen,
        stage: Stage::Reading,
        events,
        events_tx,
    };
    shell.log_in(hint)?;
    shell.run()
}

impl Shell {
    /// Connects and waits for the session. No command is read until then.
    fn log_in(&mut self, hint: &str) -> Result<()> {
        for _ in 1..self.places.len() {
            match self.open() {
                Ok(()) => break,
                Err(error) => self.screen.show_status(&view::status_line(&format!("{error:#}")))?,
            }
        }
        if self.link.is_none() {
            self.open()?;
        }
        while self.session.is_logging_in() {
            self.turn()?;
        }
        match self.login_failure {
            _ if self.session.is_logged_in() => Ok(()),
            Some(Reason::Refused(_)) => bail!("could not log in; if the token was refused: {hint}"),
            Some(Reason::NoAnswer(_)) => bail!(
                "could not log in: no answer came. The gateway may be full, and its log says so \
                 (limits.connections_max, ulimit -n)"
            ),
            _ => bail!(
                "could not log in: the connection ended without an answer. The listener may want a PROXY header \
                 (listeners.NAME.proxy_from), which tide does not send, or another wire; the gateway's log says so"
            ),
        }
    }

    fn run(&mut self) -> Result<()> {
        while self.stage != Stage::Over {
            // A script waits for the next session where there will be one.
            let is_ready =
                self.session.is_idle() && (self.session.is_logged_in() || !self.expects_session());
            if self.stage == Stage::Reading && (is_ready || self.input.is_interactive()) {
                self.input.allow_read();
            }
            self.turn()?;
            self.move_on();
        }
        if self.input.is_interactive() {
            return Ok(());
        }
        match self.session.failures() {
            0 if self.session.is_logged_in() => Ok(()),
            0 => bail!("the gateway closed the connection"),
            failures => bail!("{} failed", counted(failures, "command")),
        }
    }

    /// Whether there is a session, or will be one without a command.
    fn expects_session(&self) -> bool {
        self.session.is_logged_in()
            || self.session.is_logging_in()
            || self.session.is_leaving()
            || self.reconnects.due().is_some()
    }

    /// Writes pending bytes, waits for one event, and shows the result.
    fn turn(&mut self) -> Result<()> {
        let outgoing = self.session.take_outgoing();
        if let Some(link) = &mut self.link
            && !outgoing.is_empty()
        {
            link.write(&outgoing);
        }
        if let Some(event) = self.wait() {
            self.take(event)?;
        }
        self.session.handle_timeout(Instant::now());
        self.show()?;
        self.reconnect()
    }

    /// The next event; `None` when a timeout came first.
    fn wait(&self) -> Option<LoopEvent> {
        let watched = match self.stage {
            Stage::Watching(until) => until,
            _ => None,
        };
        let timers = [self.session.poll_timeout(), self.reconnects.due(), watched];
        let until = timers.into_iter().flatten().min();
        let event = match until {
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => {
                self.events.recv_timeout(until.saturating_duration_since(Instant::now()))
            }
        };
        match event {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("the shell holds a sender"),
        }
    }

    fn take(&mut self, event: LoopEvent) -> Result<()> {
        let now = Instant::now();
        match event {
            LoopEvent::Command(command) => {
                self.input.command_read();
                self.execute(now, command)
            }
            LoopEvent::ParseFailed(error) => {
                self.input.command_read();
                self.report_error(&error)
            }
            LoopEvent::EndOfInput => self.end_input(self.watch),
            LoopEvent::Quit => self.end_input(None),
            LoopEvent::InputFailed(error) => {
                self.end_input(None)?;
                self.report_error(&error)
            }
            LoopEvent::Received(id, bytes) => self.received(now, id, bytes),
            LoopEvent::Closed(id, error) => {
                if self.link.as_ref().is_some_and(|link| link.id() == id) {
                    let reason = error.map_or_else(String::new, |error| format!(": {error}"));
                    return self.closed(&format!("the gateway closed the connection{reason}"));
                }
                Ok(())
            }
        }
    }

    fn execute(&mut self, now: Instant, command: Command) -> Result<()> {
        match command {
            Command::Help => self.screen.show(&command::help()),
            Command::Reconnect => {
                self.disconnect()?;
                self.reconnects.started();
                self.open().or_else(|error| self.report_error(&error))
            }
            command => {
                self.session.send(now, command);
                Ok(())
            }
        }
    }

    fn received(&mut self, now: Instant, id: LinkId, bytes: Vec<u8>) -> Result<()> {
        let Some(link) = self.link.as_mut().filter(|link| link.id() == id) else { return Ok(()) };
        link.release_read();
        // A first login to the wrong port ends with the right one. Later the address has worked.
        let may_be_wrong = self.session.is_logging_in() && self.links_made == 1;
        let (place, peer) = (&self.places[0], link.peer());
        let spoken = Spoken::instead_of_the_protocol(&bytes);
        if let Some(spoken) = spoken.filter(|_| may_be_wrong && place.kind() == WireKind::Plain) {
            let is_for_operators = ports::is_for_operators(&place.to_string(), peer);
            let mut mismatch = mismatch(place, spoken);
            if spoken == Spoken::Http {
                mismatch.push_str(NO_HTTP);
            }
            bail!(is_for_operators.unwrap_or(mismatch));
        }
        let payload = match link.receive(bytes) {
            Ok(payload) => payload,
            Err(error) => return self.closed(&format!("closed: {error}")),
        };
        match self.session.receive(now, &payload) {
            Ok(()) => Ok(()),
            Err(error) => {
                if may_be_wrong
                    && let Some(hint) = ports::is_for_operators(&place.to_string(), peer)
                {
                    bail!(hint);
                }
                self.show()?;
                self.closed(&format!(
                    "closed: the bytes received are not Tidegate's protocol ({error}); does a gateway listen there, and is it \
                     its port for clients?"
                ))
            }
        }
    }

    fn open(&mut self) -> Result<()> {
        let place = &self.places[self.links_made % self.places.len()];
        self.links_made += 1;
        let id = LinkId(self.links_made);
        self.link = Some(Link::open(id, place, &self.dialer, self.timeout, &self.events_tx)?);
        self.session.opened(Instant::now());
        self.screen.show_status(&view::status_line(&format!("connected to {place}")))
    }

    /// After a lost connection: plans the next one, and connects when it is due.
    fn reconnect(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.reconnects.due().is_some_and(|at| now >= at) {
            self.reconnects.started();
            if let Err(error) = self.open() {
                self.screen.show_status(&view::status_line(&format!("{error:#}")))?;
            }
        }
        let goes_on = !matches!(self.stage, Stage::Draining(None) | Stage::Over);
        if self.link.is_some() || !self.reconnects.is_up() || !goes_on {
            return Ok(());
        }
        let what_next = match self.reconnects.lost(now, self.session.ending()) {
            Some(wait) => format!("connecting again in {:.1} s", wait.as_secs_f64()),
            None if self.stage == Stage::Reading => "\"reconnect\" connects again".to_owned(),
            None => return Ok(()),
        };
        self.screen.show_status(&view::status_line(&what_next))
    }

    /// Closes the connection from this side.
    fn disconnect(&mut self) -> Result<()> {
        self.link = None;
        self.session.closed();
        self.show()
    }

    /// Handles a connection that the gateway closed.
    fn closed(&mut self, reason: &str) -> Result<()> {
        self.disconnect()?;
        self.screen.show_status(&view::status_line(reason))
    }

    fn report_error(&mut self, error: &Error) -> Result<()> {
        self.session.count_failure();
        self.screen.show(&view::error_line(&format!("{error:#}")))
    }

    fn end_input(&mut self, watch: Option<Watch>) -> Result<()> {
        self.screen.input_ended();
        self.stage = Stage::Draining(watch);
        Ok(())
    }

    /// After the end of the input: moves from draining to watching to the end.
    fn move_on(&mut self) {
        if let Stage::Draining(watch) = self.stage
            && self.session.is_idle()
        {
            self.stage = match watch {
                None => Stage::Over,
                Some(Watch::Forever) => Stage::Watching(None),
                Some(Watch::For(span)) => Stage::Watching(Instant::now().checked_add(span)),
            };
        }
        if let Stage::Watching(until) = self.stage {
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if is_over || !self.expects_session() || !self.screen.is_read() {
                self.stage = Stage::Over;
            }
        }
    }

    /// Shows the session's notices. A failed login closes the connection.
    fn show(&mut self) -> Result<()> {
        for notice in self.session.take_notices() {
            let line = view::render(&notice);
            match notice {
                Notice::LoginFailed { reason, .. } => {
                    self.login_failure = Some(reason);
                    self.link = None;
                    self.screen.show_status(&line)?;
                }
                Notice::LoggedIn { .. } => {
                    self.reconnects.opened(Instant::now());
                    self.screen.show_status(&line)?;
                }
                Notice::Goodbye(_) => self.screen.show_status(&line)?,
                _ => self.screen.show(&line)?,
            }
        }
        Ok(())
    }
}

fn parse_watch(text: &str) -> Result<Watch, String> {
    if text == "forever" {
        return Ok(Watch::Forever);
    }
    let span = duration::parse_or_seconds(text).map_err(|said| format!("{said}; or forever"))?;
    Ok(Watch::For(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_seconds_or_for_ever() {
        assert_eq!(parse_watch("forever").unwrap(), Watch::Forever);
        assert_eq!(parse_watch("0.5").unwrap(), Watch::For(Duration::from_millis(500)));
        assert!(parse_watch("-1").is_err());
        assert!(parse_watch("long").is_err());
    }
}
