//! `tide client`: one user's connection at a terminal or in a script.
//!
//! Three threads and one channel: one thread reads the socket, one reads commands, and the loop here
//! takes from both and owns everything else. All meaning is in [`session`], which has no I/O.
//!
//! The loop's channel has no bound of its own; each who sends into it has one: the socket's thread
//! may be 16 reads ahead, a script one command, and a person types.

mod command;
mod input;
mod link;
mod notice;
mod rooms;
mod session;
mod view;

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail, ensure};
use clap::Args;

use self::command::Command;
use self::input::{Input, Screen};
use self::link::{Link, LinkId};
use self::notice::Notice;
use self::session::Session;
use crate::count::counted;
use crate::token::Signing;
use crate::{argument, duration};

/// The arguments of `tide client`.
///
/// From a terminal it is interactive. Anything else on standard input is a script: a command is sent
/// once the one before it is answered, and the exit code says whether all went well.
#[derive(Args, Debug)]
pub(crate) struct ClientArgs {
    /// Where the gateway listens
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "HOST:PORT", value_parser = argument::place)]
    connect: String,
    /// Who to log in as
    #[arg(long, value_name = "ID", value_parser = argument::user)]
    user: u64,
    /// The token to log in with; without one, it is made from the key file as `tide token` does
    #[arg(long)]
    token: Option<String>,
    /// Log in with `token-ID`, which a gateway in demo mode takes
    #[arg(long, conflicts_with = "token")]
    demo_token: bool,
    #[command(flatten)]
    signing: Signing,
    /// How long to wait for the connection and for each answer
    #[arg(long, default_value = "10s", value_name = "SPAN", value_parser = duration::parse_above_0)]
    timeout: Duration,
    /// Go on showing pushes for so long after the end of the input
    #[arg(long, value_name = "SECONDS|forever", value_parser = parse_watch)]
    watch: Option<Watch>,
}

/// What helps when the token of `--token` is refused.
const GIVEN_WAY_OUT: &str = "without --token, one is made with the gateway's key (--key-file); a gateway \
     with --auth demo takes --demo-token";

/// What helps when a demo token is refused.
const DEMO_WAY_OUT: &str = "only a gateway with --auth demo takes --demo-token; without it, a token is \
     made with the gateway's key (--key-file)";

/// What helps when a token that was made here is refused.
const MINTED_WAY_OUT: &str = "--key-file must be the gateway's own key; a gateway with --auth demo takes \
     --demo-token";

/// How long to stay after the end of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Forever,
    For(Duration),
}

/// What the loop wakes up for.
#[derive(Debug)]
enum Wake {
    /// A command was read.
    Command(Command),
    /// A line is no command.
    Misread(Error),
    /// There is no more input.
    EndOfInput,
    /// There is no more input, and no reason to stay.
    Quit,
    /// The input can't be read.
    NoInput(Error),
    /// Bytes came from the gateway.
    Received(LinkId, Vec<u8>),
    /// A connection ended, perhaps for a reason.
    Closed(LinkId, Option<io::Error>),
}

/// What becomes of the loop once there is no more input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// There is input.
    Reading,
    /// Answers are outstanding; then this.
    Settling(Option<Watch>),
    /// Pushes are shown until then; `None`: for ever.
    Watching(Option<Instant>),
    /// It is over.
    Over,
}

struct Shell {
    address: String,
    patience: Duration,
    watch: Option<Watch>,
    session: Session,
    link: Option<Link>,
    links_made: u64,
    input: Input,
    screen: Screen,
    stay: Stay,
    wakes: Receiver<Wake>,
    wake: Sender<Wake>,
}

/// Runs until the input ends, or as long as it is told to stay after that.
///
/// # Errors
/// When it can't connect or log in. From a script, also when a command failed or the gateway closed.
pub(crate) fn run(args: ClientArgs) -> Result<()> {
    let (token, way_out) = match args.token {
        Some(token) => (token, GIVEN_WAY_OUT),
        None if args.demo_token => (format!("token-{}", args.user), DEMO_WAY_OUT),
        None => {
            let token = args.signing.mint(args.user).context(
                "no token to log in with; --token gives one, --demo-token makes one for a demo gateway",
            )?;
            (token, MINTED_WAY_OUT)
        }
    };
    let (wake, wakes) = mpsc::channel();
    let (input, screen) = input::start(&wake)?;
    let mut shell = Shell {
        address: args.connect,
        patience: args.timeout,
        watch: args.watch,
        session: Session::new(args.user, token, args.timeout),
        link: None,
        links_made: 0,
        input,
        screen,
        stay: Stay::Reading,
        wakes,
        wake,
    };
    shell.log_in(way_out)?;
    shell.run()
}

impl Shell {
    /// Connects and waits for the session; input waits as well.
    fn log_in(&mut self, way_out: &str) -> Result<()> {
        self.open()?;
        while self.session.is_logging_in() {
            self.turn()?;
        }
        ensure!(
            self.session.is_in(),
            "could not log in; if the token was refused: {way_out}; if nobody answered: the gateway may be full, \
             and then its log says so (limits.connections_max, ulimit -n)"
        );
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        while self.stay != Stay::Over {
            let is_ready = self.session.is_settled() && !self.session.is_logging_in();
            if self.stay == Stay::Reading && (is_ready || self.input.is_interactive()) {
                self.input.give_turn();
            }
            self.turn()?;
            self.move_on();
        }
        if self.input.is_interactive() {
            return Ok(());
        }
        match self.session.failures() {
            0 if self.session.is_in() => Ok(()),
            0 => bail!("the gateway closed the connection"),
            failures => bail!("{} failed", counted(failures, "command")),
        }
    }

    /// Writes what is to be written, waits for one thing to happen, and shows what came of it.
    fn turn(&mut self) -> Result<()> {
        let outgoing = self.session.take_outgoing();
        if let Some(link) = &mut self.link
            && !outgoing.is_empty()
        {
            link.write(&outgoing);
        }
        if let Some(wake) = self.wait() {
            self.take(wake)?;
        }
        self.session.handle_timeout(Instant::now());
        self.show()
    }

    /// The next thing that happens; `None` when a time came first.
    fn wait(&self) -> Option<Wake> {
        let watched = match self.stay {
            Stay::Watching(until) => until,
            _ => None,
        };
        let until = self.session.poll_timeout().into_iter().chain(watched).min();
        let wake = match until {
            None => self.wakes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => self.wakes.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match wake {
            Ok(wake) => Some(wake),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("the shell holds a sender"),
        }
    }

    fn take(&mut self, wake: Wake) -> Result<()> {
        let now = Instant::now();
        match wake {
            Wake::Command(command) => {
                self.input.took_turn();
                self.obey(now, command)
            }
            Wake::Misread(error) => {
                self.input.took_turn();
                self.complain(&error)
            }
            Wake::EndOfInput => self.end_input(self.watch),
            Wake::Quit => self.end_input(None),
            Wake::NoInput(error) => {
                self.end_input(None)?;
                self.complain(&error)
            }
            Wake::Received(id, bytes) => self.received(now, id, &bytes),
            Wake::Closed(id, why) => {
                if self.link.as_ref().is_some_and(|link| link.id() == id) {
                    let why = why.map_or_else(String::new, |error| format!(": {error}"));
                    return self.closed(&format!("the gateway closed the connection{why}"));
                }
                Ok(())
            }
        }
    }

    fn obey(&mut self, now: Instant, command: Command) -> Result<()> {
        match command {
            Command::Help => self.screen.show(&command::help()),
            Command::Reconnect => {
                self.hang_up()?;
                self.open().or_else(|error| self.complain(&error))
            }
            command => {
                self.session.ask(now, command);
                Ok(())
            }
        }
    }

    fn received(&mut self, now: Instant, id: LinkId, bytes: &[u8]) -> Result<()> {
        let Some(link) = self.link.as_ref().filter(|link| link.id() == id) else { return Ok(()) };
        link.took_read();
        match self.session.receive(now, bytes) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.show()?;
                self.closed(&format!(
                    "closed, since what came can't be understood ({error}); is it a gateway that listens there, \
                     and for clients?"
                ))
            }
        }
    }

    fn open(&mut self) -> Result<()> {
        self.links_made += 1;
        let id = LinkId(self.links_made);
        self.link = Some(Link::open(id, &self.address, self.patience, &self.wake)?);
        self.session.opened(Instant::now());
        self.screen.remark(&view::note(&format!("connected to {}", self.address)))
    }

    /// Ends the connection from this end.
    fn hang_up(&mut self) -> Result<()> {
        self.link = None;
        self.session.closed();
        self.show()
    }

    /// The connection has ended from the other end.
    fn closed(&mut self, why: &str) -> Result<()> {
        self.hang_up()?;
        let way_out = if self.stay == Stay::Reading { "; \"reconnect\" tries again" } else { "" };
        self.screen.remark(&view::note(&format!("{why}{way_out}")))
    }

    fn complain(&mut self, error: &Error) -> Result<()> {
        self.session.count_failure();
        self.screen.show(&view::complaint(&format!("{error:#}")))
    }

    fn end_input(&mut self, watch: Option<Watch>) -> Result<()> {
        self.screen.input_ended();
        self.stay = Stay::Settling(watch);
        Ok(())
    }

    /// After the end of the input: from settling to watching to over.
    fn move_on(&mut self) {
        if let Stay::Settling(watch) = self.stay
            && self.session.is_settled()
        {
            self.stay = match watch {
                None => Stay::Over,
                Some(Watch::Forever) => Stay::Watching(None),
                Some(Watch::For(span)) => Stay::Watching(Instant::now().checked_add(span)),
            };
        }
        if let Stay::Watching(until) = self.stay {
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if is_over || !self.session.is_in() || !self.screen.is_read() {
                self.stay = Stay::Over;
            }
        }
    }

    /// Shows what the session has to tell. A login that failed ends its connection.
    fn show(&mut self) -> Result<()> {
        for notice in self.session.take_notices() {
            let line = view::render(&notice);
            match notice {
                Notice::LoginFailed { .. } => {
                    self.link = None;
                    self.screen.remark(&line)?;
                }
                Notice::LoggedIn { .. } | Notice::Goodbye(_) => self.screen.remark(&line)?,
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
