//! A link to one Redis: a server, the master that Sentinel names, or a Cluster.
//!
//! It has one connection at a time (with a Cluster: one to each node), which carries commands, pipelined, and
//! the messages of channels. A connection that is lost is made again after a wait that grows and is random, so that
//! gateways do not return together.

use std::fmt;
use std::io;
use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo,
};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, TlsCertificates, TlsMode, Value,
};
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::redis::{LIBRARY, LIBRARY_VERSION};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::link_error::LinkError;
use crate::config::{RedisKind, RedisTarget};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a command of a Cluster may take, with its wait while the client asks for the slots, and with a second attempt at the
/// node that has its slot now: less than operators wait for the outcome of their pushes.
const COMMAND_TIMEOUT_IN_ALL: Duration = Duration::from_secs(4);

/// Commands that a connection to one node of a Cluster carries at once, at most. The others wait in the client. The queue of
/// such a connection holds 50. If commands waited for room in it, the client's own question for the slots would wait behind
/// them, and they wait for its answer: a moved slot would hold up all commands until the question times out.
const NODE_COMMANDS_MAX: usize = 40;

/// The shortest and the longest wait before a connection is made again.
const WAIT_MS: (u64, u64) = (100, 5_000);

/// A connection. It is cheap to clone, and commands of all clones share it.
#[derive(Clone)]
pub enum Connection {
    /// To one server.
    One(MultiplexedConnection),
    /// To the nodes of a Cluster: commands and channels apart. A node ends a subscription by itself when its slot moves,
    /// and the client takes that for the answer to a command, so that later answers belong to other commands.
    Cluster {
        /// For commands.
        commands: ClusterConnection,
        /// For channels.
        channels: ClusterConnection,
    },
}

/// Something that came through a connection without being asked for.
#[derive(Debug)]
pub struct Arrival {
    /// Which connection: the number that it was made with.
    pub epoch: u64,
    /// What.
    pub info: PushInfo,
}

/// Makes a connection, and loads the function library where it is missing or old.
///
/// # Errors
/// [`LinkError`].
pub async fn connect(
    target: RedisTarget,
    epoch: u64,
    arrivals: mpsc::UnboundedSender<Arrival>,
) -> Result<Connection, LinkError> {
    let failed = |error: RedisError| LinkError::of(&target, &error);
    let mut connection = if target.kind == RedisKind::Cluster {
        connect_to_cluster(&target, epoch, arrivals).await.map_err(failed)?
    } else {
        let (connection, server) =
            connect_to_one(&target, epoch, arrivals).await.map_err(failed)?;
        let mut connection = Connection::One(connection);
        let role = connection.call(&redis::cmd("ROLE")).await.map_err(failed)?;
        if !is_master(&role) {
            return Err(LinkError::Replica(server));
        }
        connection
    };
    connection.load_library().await.map_err(failed)?;
    connection.check_password(&target).await;
    Ok(connection)
}

async fn connect_to_cluster(
    target: &RedisTarget,
    epoch: u64,
    arrivals: mpsc::UnboundedSender<Arrival>,
) -> Result<Connection, RedisError> {
    let sender = move |info| arrivals.send(Arrival { epoch, info });
    let channels = cluster(target).push_sender(sender).build()?;
    Ok(Connection::Cluster {
        commands: cluster(target).build()?.get_async_connection().await?,
        channels: channels.get_async_connection().await?,
    })
}

/// Connects to a server. Returns its address, too.
async fn connect_to_one(
    target: &RedisTarget,
    epoch: u64,
    arrivals: mpsc::UnboundedSender<Arrival>,
) -> Result<(MultiplexedConnection, String), RedisError> {
    let client = client(target).await?;
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(COMMAND_TIMEOUT))
        .set_push_sender(move |info| arrivals.send(Arrival { epoch, info }));
    let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    Ok((connection, client.get_connection_info().addr().to_string()))
}

fn cluster(target: &RedisTarget) -> ClusterClientBuilder {
    let nodes = target.hosts.iter().map(|(host, port)| address(target, host, *port));
    let mut builder = ClusterClientBuilder::new(nodes)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(COMMAND_TIMEOUT)
        .overall_response_timeout(Some(COMMAND_TIMEOUT_IN_ALL))
        .connection_concurrency_limit(NODE_COMMANDS_MAX)
        // The client would also repeat a command whose answer was lost, and a push would come twice. The part that sends a
        // command knows whether it may be repeated.
        .retries(0);
    if let Some(user) = &target.user {
        builder = builder.username(user);
    }
    if let Some(password) = &target.password {
        builder = builder.password(password.as_str());
    }
    if target.is_tls {
        builder = builder.tls(TlsMode::Secure).certs(certificates(target));
    }
    builder
}

fn certificates(target: &RedisTarget) -> TlsCertificates {
    TlsCertificates { client_tls: None, root_cert: target.ca.clone() }
}

fn is_master(role: &Value) -> bool {
    let Value::Array(fields) = role else { return false };
    match fields.first() {
        Some(Value::BulkString(role)) => role == b"master",
        Some(Value::SimpleString(role)) => role == "master",
        _ => false,
    }
}

fn address(target: &RedisTarget, host: &str, port: u16) -> ConnectionAddr {
    if target.is_tls {
        let host = host.to_owned();
        return ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
    }
    ConnectionAddr::Tcp(host.to_owned(), port)
}

async fn client(target: &RedisTarget) -> Result<Client, RedisError> {
    let hosts = || target.hosts.iter().map(|(host, port)| address(target, host, *port));
    if target.kind == RedisKind::Sentinel {
        let mut builder =
            SentinelClientBuilder::new(hosts(), &target.master, SentinelServerType::Master)?
                .set_client_to_redis_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &target.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &target.password {
            builder = builder.set_client_to_redis_password(password.as_str());
        }
        if target.is_tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates(target))
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_certificates(certificates(target));
        }
        return builder.build()?.async_get_client().await;
    }
    let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &target.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &target.password {
        settings = settings.set_password(password.as_str());
    }
    let first = hosts().next().expect("a target has a host");
    let info = first.into_connection_info()?.set_redis_settings(settings);
    match target.is_tls {
        true => Client::build_with_tls(info, certificates(target)),
        false => Client::open(info),
    }
}

impl Connection {
    /// Sends a command and waits for its answer. Commands of one task are carried out in the order in which the futures
    /// are first polled.
    ///
    /// # Errors
    /// The answer's, or the connection's.
    pub async fn call(&mut self, cmd: &Cmd) -> Result<Value, RedisError> {
        let answer = match self {
            Self::One(connection) => connection.send_packed_command(cmd).await?,
            Self::Cluster { commands, .. } => {
                let answer = call_cluster(commands, cmd);
                let timed_out = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
                timeout(COMMAND_TIMEOUT_IN_ALL, answer).await.unwrap_or_else(timed_out)?
            }
        };
        answer.extract_error()
    }

    /// Subscribes to a channel, or ends that. The confirmation comes as an [`Arrival`] too.
    ///
    /// # Errors
    /// The answer's, or the connection's.
    pub async fn subscribe(&mut self, channel: &str, is_on: bool) -> Result<(), RedisError> {
        match self {
            Self::Cluster { channels, .. } if is_on => channels.ssubscribe(channel).await,
            Self::Cluster { channels, .. } => channels.sunsubscribe(channel).await,
            Self::One(connection) => {
                let word = if is_on { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" };
                let answer = connection.send_packed_command(redis::cmd(word).arg(channel)).await?;
                answer.extract_error().map(drop)
            }
        }
    }

    /// Checks that the server answers, or each master of a Cluster, on both connections. Either may fail alone: each
    /// has a client of its own, which carries out all its commands in one task and stops with them while it asks for the slots.
    ///
    /// # Errors
    /// The answer's, or the connection's.
    pub async fn ping(&mut self) -> Result<(), RedisError> {
        let ping = redis::cmd("PING");
        match self {
            Self::One(_) => self.call(&ping).await.map(drop),
            Self::Cluster { commands, channels } => {
                let policy = Some(ResponsePolicy::AllSucceeded);
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, policy));
                let (commands, channels) = tokio::join!(
                    commands.route_command(ping.clone(), masters.clone()),
                    channels.route_command(ping, masters)
                );
                commands?.extract_error()?;
                channels?.extract_error().map(drop)
            }
        }
    }

    /// Warns if there is a password for a server that has none: whoever reaches it can read and write all.
    async fn check_password(&mut self, target: &RedisTarget) {
        static LOGGED: LogLimit = LogLimit::new();
        let (Self::One(_), None, Some(password)) = (&*self, &target.user, &target.password) else {
            return;
        };
        // HELLO takes any password then. AUTH without a user says that there is none.
        let answer = self.call(redis::cmd("AUTH").arg(password.as_str())).await;
        if answer.is_err_and(|error| error.to_string().contains("without any password configured"))
            && let Some(suppressed) = LOGGED.allow()
        {
            tracing::warn!(
                suppressed,
                redis = %target,
                "Redis has no password, though one is configured here: whoever reaches it can read and write everything. \
                Set requirepass in redis.conf"
            );
        }
    }

    /// Loads the function library on each master where it is missing or older than this gateway's.
    ///
    /// # Errors
    /// The answer's, or the connection's.
    pub async fn load_library(&mut self) -> Result<(), RedisError> {
        let mut version = redis::cmd("FCALL");
        version.arg("tidegate_version").arg(0);
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg("REPLACE").arg(LIBRARY);
        match self {
            Self::One(_) => {
                let loaded = self.call(&version).await.ok();
                if loaded.is_none_or(|loaded| is_older(&loaded)) {
                    self.call(&load).await?;
                }
            }
            Self::Cluster { commands: connection, .. } => {
                let masters =
                    |policy| RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, policy));
                let newest = connection.route_command(version, masters(None)).await;
                let Ok(Value::Map(versions)) = newest else {
                    let policy = Some(ResponsePolicy::AllSucceeded);
                    connection.route_command(load, masters(policy)).await?;
                    return Ok(());
                };
                if versions.iter().any(|(_, version)| is_older(version)) {
                    let policy = Some(ResponsePolicy::AllSucceeded);
                    connection.route_command(load, masters(policy)).await?;
                }
            }
        }
        Ok(())
    }
}

/// Sends a command to the node that has its slot, also if that is another one than the client knows.
async fn call_cluster(commands: &mut ClusterConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    let answer = commands.req_packed_command(cmd).await;
    let Some(node) = answer.as_ref().err().and_then(moved_to) else { return answer };
    match commands.route_command(cmd.clone(), RoutingInfo::SingleNode(node)).await {
        // The command was not carried out, as the first answer says.
        Err(error) if error.kind() == ErrorKind::ClusterConnectionNotFound => answer,
        second => second,
    }
}

/// The node that has the slot of a command, if another one has refused the command because of that. The client asks for
/// the slots again, but the node that it asks may learn of the move later.
fn moved_to(error: &RedisError) -> Option<SingleNodeRoutingInfo> {
    if error.code() != Some("MOVED") {
        return None;
    }
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    Some(SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port: port.parse().ok()? })
}

fn is_older(version: &Value) -> bool {
    !matches!(version, Value::Int(version) if *version >= i64::from(LIBRARY_VERSION))
}

/// How long to wait before the next attempt, after this number of failed ones.
#[must_use]
pub fn wait_before(attempts: u32) -> Duration {
    let (shortest, longest) = WAIT_MS;
    let longest = shortest.saturating_mul(1 << attempts.min(16)).min(longest);
    Duration::from_millis(fastrand::u64(longest / 2..=longest))
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "Connection::One",
            Self::Cluster { .. } => "Connection::Cluster",
        })
    }
}

#[cfg(test)]
mod tests;
