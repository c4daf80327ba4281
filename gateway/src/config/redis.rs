//! The URLs of Redis, and what they mean.

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::check::DAY_MS;
use super::secret_text::SecretText;
use super::typed;
use super::values::{Checked, Checker, quoted};

impl Checker<'_> {
    /// `None` where no URL is set.
    pub(super) fn redis(&self, redis: &typed::Redis) -> Checked<Option<RedisConfig>> {
        let password = self.redis_password(&redis.password_file)?;
        let ca = self.redis_ca(&redis.ca_file)?;
        let target = |key: &str, url: &str| match url {
            "" => Ok(None),
            url => match RedisTarget::parse(url) {
                Ok(mut target) => {
                    if let Some(password) = &password {
                        target.password = Some(password.clone());
                    }
                    target.ca.clone_from(&ca);
                    Ok(Some(target))
                }
                // The URL may hold a password.
                Err(reason) => Err(self.refuse(key, "(a URL)", reason)),
            },
        };
        let shared = target("redis.url", &redis.url)?;
        let pushes = target("redis.pushes_url", &redis.pushes_url)?;
        let presence = target("redis.presence_url", &redis.presence_url)?;
        let tokens = target("redis.tokens_url", &redis.tokens_url)?;
        let push_wait = self.millis("redis.push_wait_ms", redis.push_wait_ms, 1_000..=DAY_MS)?;
        let grace_ms = redis.offline_grace_ms;
        let offline_grace = self.millis("redis.offline_grace_ms", grace_ms, 0..=DAY_MS)?;
        let Some(shared) = shared else {
            let urls = [
                ("redis.pushes_url", pushes),
                ("redis.presence_url", presence),
                ("redis.tokens_url", tokens),
            ];
            return match urls.into_iter().find(|(_, url)| url.is_some()) {
                None => Ok(None),
                Some((key, _)) => {
                    let reason = "redis.url is not set, which the other concerns need: set it too";
                    Err(self.refuse(key, "(a URL)", reason))
                }
            };
        };
        Ok(Some(RedisConfig {
            pushes: pushes.unwrap_or_else(|| shared.clone()),
            presence: presence.unwrap_or_else(|| shared.clone()),
            tokens: tokens.unwrap_or_else(|| shared.clone()),
            shared,
            password_file: redis.password_file.clone(),
            ca_file: redis.ca_file.clone(),
            push_wait,
            offline_grace,
        }))
    }

    fn redis_ca(&self, file: &str) -> Checked<Option<Vec<u8>>> {
        if file.is_empty() {
            return Ok(None);
        }
        match std::fs::read(file) {
            Ok(pem) if String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") => {
                Ok(Some(pem))
            }
            Ok(_) => {
                let reason =
                    "the file holds no certificate: -----BEGIN CERTIFICATE----- is missing";
                Err(self.refuse("redis.ca_file", quoted(file), reason))
            }
            Err(error) => {
                let reason = format!("the file can't be read: {error}");
                Err(self.refuse("redis.ca_file", quoted(file), reason))
            }
        }
    }

    fn redis_password(&self, file: &str) -> Checked<Option<SecretText>> {
        if file.is_empty() {
            return Ok(None);
        }
        match std::fs::read_to_string(file) {
            Ok(text) if text.trim().is_empty() => {
                Err(self.refuse("redis.password_file", quoted(file), "the file is empty"))
            }
            Ok(text) => Ok(Some(SecretText::new(text.trim().to_owned()))),
            Err(error) => {
                let reason = format!("the file can't be read: {error}");
                Err(self.refuse("redis.password_file", quoted(file), reason))
            }
        }
    }
}

/// What gateways share through Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfig {
    /// For the concerns that have no Redis of their own.
    pub shared: RedisTarget,
    /// Where rooms' logs are.
    pub pushes: RedisTarget,
    /// Where the users' presence is kept.
    pub presence: RedisTarget,
    /// Where session tokens are.
    pub tokens: RedisTarget,
    /// The file that the password came from; empty: none.
    pub password_file: String,
    /// The file that the certificates came from; empty: none.
    pub ca_file: String,
    /// How long a push waits for Redis.
    pub push_wait: Duration,
    /// How long a user without a session still counts as online.
    pub offline_grace: Duration,
}

/// How a Redis is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisTarget {
    /// What answers at the hosts.
    pub kind: RedisKind,
    /// Hosts and ports: at least one.
    pub hosts: Vec<(String, u16)>,
    /// With TLS.
    pub is_tls: bool,
    /// The user; `None`: the default user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<SecretText>,
    /// The name by which Sentinel knows the master; empty without Sentinel.
    pub master: String,
    /// The certificates that sign Redis' own, PEM. `None`: those that the system trusts.
    pub ca: Option<Vec<u8>>,
}

/// What answers at the hosts of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// One server.
    Single,
    /// Sentinels, which know the master.
    Sentinel,
    /// Nodes of a Cluster.
    Cluster,
}

impl RedisTarget {
    /// Reads a URL: `redis://`, `redis-sentinel://` or `redis-cluster://`, each also as `rediss…` with TLS; then
    /// `[user[:password]@]host[:port][,host[:port]…]`, and `/master` for Sentinel.
    ///
    /// # Errors
    /// What is wrong with it, and what it should be. The text holds no password.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("it has no scheme, as redis:// is one")?;
        let (kind, is_tls) = match scheme {
            "redis" => (RedisKind::Single, false),
            "rediss" => (RedisKind::Single, true),
            "redis-sentinel" => (RedisKind::Sentinel, false),
            "rediss-sentinel" => (RedisKind::Sentinel, true),
            "redis-cluster" => (RedisKind::Cluster, false),
            "rediss-cluster" => (RedisKind::Cluster, true),
            _ => {
                return Err(
                    "its scheme is none of redis, redis-sentinel, redis-cluster, and these as rediss with TLS",
                );
            }
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, "")))
        {
            None => (None, None),
            Some((user, password)) => (decoded(user)?, decoded(password)?),
        };
        let default_port = if kind == RedisKind::Sentinel { 26379 } else { 6379 };
        let hosts: Result<Vec<_>, _> =
            hosts.split(',').map(|host| host_and_port(host, default_port)).collect();
        let (master, db) = match (kind, path.split_once('/')) {
            (RedisKind::Sentinel, Some((master, db))) => (master, db),
            (RedisKind::Sentinel, None) => (path, ""),
            _ => ("", path),
        };
        if kind == RedisKind::Sentinel && master.is_empty() {
            return Err(
                "it lacks the master's name behind the hosts, as in redis-sentinel://host:26379/mymaster",
            );
        }
        // Channels are shared by all databases: two systems in two databases would get each other's messages.
        if !db.is_empty() && db != "0" {
            return Err(
                "it names a database, but channels belong to all databases of a server: use a server for each system",
            );
        }
        let password = password.map(SecretText::new);
        let master = master.to_owned();
        Ok(Self { kind, hosts: hosts?, is_tls, user, password, master, ca: None })
    }
}

fn decoded(text: &str) -> Result<Option<String>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let text = percent_decode_str(text).decode_utf8();
    text.map(|text| Some(text.into_owned())).map_err(|_| "its user or password is not UTF-8")
}

fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), &'static str> {
    // An IPv6 address is in brackets.
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Ok(default_port), str::parse);
    match (host, port) {
        ("", _) => Err("it lacks a host"),
        (_, Err(_) | Ok(0)) => Err("a port in it is no number from 1 to 65535"),
        (host, Ok(port)) => Ok((host.to_owned(), port)),
    }
}

/// The URL without user and password, for logs and operators.
impl fmt::Display for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.is_tls { "s" } else { "" };
        let kind = match self.kind {
            RedisKind::Single => "",
            RedisKind::Sentinel => "-sentinel",
            RedisKind::Cluster => "-cluster",
        };
        write!(f, "redis{tls}{kind}://")?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{host}{close}:{port}")?;
        }
        if !self.master.is_empty() {
            write!(f, "/{}", self.master)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_all_kinds_are_read_and_shown_without_their_passwords() {
        let cases = [
            ("redis://host", "redis://host:6379"),
            ("redis://user:p%40ss@host:7000/0", "redis://host:7000"),
            ("rediss://:secret@[::1]:7000", "rediss://[::1]:7000"),
            ("redis-sentinel://a,b:1/show", "redis-sentinel://a:26379,b:1/show"),
            ("rediss-sentinel://:x@a/show/0", "rediss-sentinel://a:26379/show"),
            ("redis-cluster://a:1,b:2", "redis-cluster://a:1,b:2"),
        ];
        for (url, shown) in cases {
            let target = RedisTarget::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(target.to_string(), shown);
            assert!(!format!("{target:?}").contains("secret"));
        }
        let target = RedisTarget::parse("redis://user:p%40ss@host:7000").unwrap();
        assert_eq!(target.user.as_deref(), Some("user"));
        assert_eq!(target.password.unwrap().as_str(), "p@ss");
    }

    #[test]
    fn a_wrong_url_is_refused_with_what_is_wrong() {
        let cases = [
            ("host:6379", "scheme"),
            ("http://host", "scheme"),
            ("redis://", "lacks a host"),
            ("redis://host:0", "port"),
            ("redis://host:65536", "port"),
            ("redis://host/x", "database"),
            ("redis://host/-1", "database"),
            ("redis-cluster://a,b/1", "database"),
            ("redis-cluster://a,,b", "lacks a host"),
            ("redis-sentinel://a:26379", "master's name"),
            ("redis://%ff:x@host", "UTF-8"),
        ];
        for (url, part) in cases {
            let error = RedisTarget::parse(url).unwrap_err();
            assert!(error.contains(part), "{url}: {error}");
        }
    }
}
