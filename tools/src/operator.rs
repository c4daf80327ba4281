//! The operators' HTTP of a gateway. Every request with the operators' token goes through here, and [`Operator::admitted`]
//! decides whether the token is sent.
//!
//! Whoever has the token can push to every client, and HTTP sends it in clear text to any process that listens. So it is sent only
//! where two things hold:
//!
//! 1. The listener is on this machine, and its socket belongs to root, to the calling user or to the owner of the token's
//!    file, all of whom can read the file anyway. `--trust-listener` takes the place of this check.
//! 2. It answers a request without the token as a gateway does: with 401 and the realm `tidegate`. This keeps the token
//!    from other programs of the same users.
//!
//! The token is sent on a separate connection, right after these checks. Another user's process could take the port within that
//! millisecond, if the gateway ends in it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use tidegate_machine::files::Files;
use tidegate_machine::listeners;
use ureq::http::Response;

use crate::{argument, not_running, ports};

/// How long one request may take, from connecting to the last byte of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an unknown listener may take to show that it is a gateway.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The default address of a gateway's operators' HTTP.
pub(crate) const ADMIN: &str = "127.0.0.1:7401";

/// The default file of a gateway's operators' token.
const TOKEN_FILE: &str = ".tidegate/admin.token";

/// What is asked without the token: nothing is done, and a gateway answers 401.
const PROBE: &str = "/stats";

/// The challenge of a gateway's 401: the field `WWW-Authenticate`.
const CHALLENGE: &str = "Bearer realm=\"tidegate\"";

/// A gateway's operators' HTTP, and the token for it.
#[derive(Args, Debug)]
pub(crate) struct Operator {
    /// The address of the gateway's operators' HTTP
    #[arg(long, default_value = ADMIN, value_name = "HOST:PORT", value_parser = argument::place)]
    admin: String,
    #[command(flatten)]
    token: Token,
}

/// The operators' token, and where it may be sent.
#[derive(Args, Clone, Debug)]
pub(crate) struct Token {
    /// The file with the operators' token
    #[arg(long, default_value = TOKEN_FILE, value_name = "FILE")]
    token_file: PathBuf,
    /// Send the token to another machine, in clear text, or to a process of another user. Without this it goes only to a
    /// process on this machine that runs as root, as you, or as the owner of the token's file
    #[arg(long)]
    trust_listener: bool,
}

impl Operator {
    /// The operators' HTTP of the gateway that listens at `admin`.
    pub(crate) const fn new(admin: String, token: Token) -> Self {
        Self { admin, token }
    }

    /// Posts bytes. Returns the answer's body.
    ///
    /// # Errors
    /// When the token must not be sent, the gateway can't be reached, or it refuses.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Result<String> {
        let Admitted { address, authorization } = self.admitted()?;
        let request = agent(REQUEST_TIMEOUT).post(url(address, path)).header("Host", &self.admin);
        let request = request.header("Authorization", authorization);
        self.success(request.content_type("application/octet-stream").send(body))
    }

    /// Deletes. Returns the answer's body.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub(crate) fn delete(&self, path: &str) -> Result<String> {
        let Admitted { address, authorization } = self.admitted()?;
        let request = agent(REQUEST_TIMEOUT).delete(url(address, path)).header("Host", &self.admin);
        self.success(request.header("Authorization", authorization).call())
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let Admitted { address, authorization } = self.admitted()?;
        let request = agent(REQUEST_TIMEOUT).get(url(address, path)).header("Host", &self.admin);
        let request = request.header("Authorization", authorization);
        let answer = self.success(request.call())?;
        serde_json::from_str(&answer)
            .with_context(|| format!("the gateway's answer is no JSON: {answer}"))
    }

    /// Where the token may be sent, and the field that sends it.
    ///
    /// # Errors
    /// When it must not be sent to what listens there, or nothing does, or there is no token.
    fn admitted(&self) -> Result<Admitted> {
        let (token, owner) = self.token.read()?;
        let addresses: Vec<_> = (self.admin.to_socket_addrs())
            .with_context(|| format!("can't resolve {}", self.admin))?
            .map(destination)
            .collect();
        if !self.token.trust_listener {
            addresses.iter().try_for_each(|&address| self.demand_local(address))?;
        }
        let address = self.demand_gateway(&addresses)?;
        if !self.token.trust_listener {
            self.demand_owner(address, owner)?;
        }
        Ok(Admitted { address, authorization: format!("Bearer {token}") })
    }

    /// Ensures that an address is of this machine.
    fn demand_local(&self, address: SocketAddr) -> Result<()> {
        ensure!(
            is_local(address),
            "the operators' token was not sent: {} is another machine (or a container), and HTTP would send it there in clear text. Use a \
             tunnel (`ssh -L 7401:127.0.0.1:{} {}`) and --admin 127.0.0.1:7401, or accept that with --trust-listener",
            self.admin,
            address.port(),
            address.ip()
        );
        Ok(())
    }

    /// Asks without the token. Returns the first address at which something listens, which must be a gateway.
    fn demand_gateway(&self, addresses: &[SocketAddr]) -> Result<SocketAddr> {
        let mut refused = None;
        for &address in addresses {
            match agent(REQUEST_TIMEOUT).get(url(address, PROBE)).header("Host", &self.admin).call()
            {
                // Another address of the same name may be the gateway's.
                Err(error) => refused = Some((address, error)),
                Ok(answer) if is_gateways(&answer) => return Ok(address),
                Ok(answer) => bail!(
                    "what listens at {} is not a Tidegate gateway's operators' HTTP: it answered {} to a request \
                     without the token, which was therefore not sent; --admin names another address",
                    self.admin,
                    answer.status()
                ),
            }
        }
        match refused {
            Some((address, error)) if !is_refused(&error) => {
                let hint = ports::is_for_clients(&self.admin, address);
                Err(hint.map_or_else(|| self.unreachable(error), Error::msg))
            }
            Some((_, error)) => Err(self.unreachable(error)),
            None => bail!("{} has no address", self.admin),
        }
    }

    /// Ensures that what listens at an address of this machine belongs to a user that may have the token.
    fn demand_owner(&self, address: SocketAddr, file_owner: u32) -> Result<()> {
        let accept = "accept that with --trust-listener";
        let owners = listeners::owners_at(&Files::system(), address).with_context(|| {
            format!("whose process listens on {address} is unknown, so the operators' token was not sent; {accept}")
        })?;
        ensure!(
            !owners.is_empty(),
            "the operators' token was not sent: no process here listens on {address}, so something else passes \
             connections on; {accept}"
        );
        let caller = rustix::process::geteuid().as_raw();
        let stranger = owners.into_iter().find(|owner| ![0, caller, file_owner].contains(owner));
        let Some(stranger) = stranger else { return Ok(()) };
        bail!(
            "the operators' token was not sent: a process of user {stranger} listens on {address}, but the token's file \
             belongs to user {file_owner}. Run this as user {stranger} if that is the gateway's, or {accept}"
        )
    }

    /// The body of a successful answer.
    fn success(&self, answer: Result<Response<ureq::Body>, ureq::Error>) -> Result<String> {
        let mut answer = answer.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        let body = answer.body_mut().read_to_string().context("the gateway's answer broke off")?;
        if status.is_success() {
            return Ok(body);
        }
        let said: Option<Value> = serde_json::from_str(&body).ok();
        let said = said.as_ref().and_then(|value| value["error"].as_str()).unwrap_or(body.trim());
        let hint = match status.as_u16() {
            401 | 403 => " (is this the gateway's own --token-file?)",
            _ => "",
        };
        bail!("the gateway answered {status}: {said}{hint}")
    }

    fn unreachable(&self, error: ureq::Error) -> Error {
        let place = &self.admin;
        let said = if is_refused(&error) {
            not_running::no_operator_http(place)
        } else {
            format!(
                "can't reach the operators' HTTP at {place}: does a gateway run there? --admin names another \
                 address"
            )
        };
        Error::new(error).context(said)
    }
}

/// A listener that may have the token.
struct Admitted {
    address: SocketAddr,
    /// The value of the field `Authorization`.
    authorization: String,
}

impl Token {
    /// Ensures that there is a token.
    ///
    /// # Errors
    /// Its file can't be read, or is empty.
    pub(crate) fn ensure_readable(&self) -> Result<()> {
        self.read().map(drop)
    }

    /// The token, and the owner of its file.
    fn read(&self) -> Result<(String, u32)> {
        let path = self.token_file.display();
        let read = || -> io::Result<_> {
            let file = File::open(&self.token_file)?;
            Ok((io::read_to_string(&file)?, file.metadata()?.uid()))
        };
        let (token, owner) = read().with_context(|| {
            format!(
                "can't read the operators' token {path}: a gateway makes it on its first start, \
                 in its working directory; run this there, or name the file with --token-file"
            )
        })?;
        ensure!(!token.trim().is_empty(), "the operators' token {path} is empty");
        Ok((token.trim().to_owned(), owner))
    }
}

/// An HTTP client without proxy and redirects. Every status is an answer and no error.
fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(timeout))
        .build()
        .into()
}

/// A URL with the address that was checked, so that no name is resolved again.
fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

/// Whether a gateway's operators' HTTP listens at this address. No token is sent.
pub(crate) fn takes_operators(address: SocketAddr) -> bool {
    agent(PROBE_TIMEOUT).get(url(address, PROBE)).call().is_ok_and(|answer| is_gateways(&answer))
}

/// Whether a gateway gave this answer to a request without the token.
fn is_gateways(answer: &Response<ureq::Body>) -> bool {
    let challenge = answer.headers().get("WWW-Authenticate");
    answer.status() == 401 && challenge.is_some_and(|challenge| challenge == CHALLENGE)
}

/// Whether an error of [`Operator::get`] and its siblings means that nothing listens at the address.
pub(crate) fn is_refused_connection(error: &Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<ureq::Error>().is_some_and(is_refused))
}

fn is_refused(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused)
}

/// Where a connection to this address goes: to the unspecified address means to this machine.
pub(crate) fn destination(mut address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        canonical => address.set_ip(canonical),
    }
    address
}

/// Whether packets to this address, which is a [`destination`], stay on this machine. The kernel gives them their own destination as the source then.
pub(crate) fn is_local(address: SocketAddr) -> bool {
    let routed = || {
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // This sends nothing: the kernel only chooses the source address.
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        socket.local_addr()
    };
    address.ip().is_loopback() || routed().is_ok_and(|source| source.ip() == address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_recognised() {
        let local = |text: &str| is_local(destination(text.parse().unwrap()));
        for here in
            ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "0.0.0.0:1", "[::]:1", "[::ffff:127.0.0.1]:1"]
        {
            assert!(local(here), "{here}");
        }
        // Addresses for documentation, which no machine has.
        for elsewhere in ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"] {
            assert!(!local(elsewhere), "{elsewhere}");
        }
    }
}
