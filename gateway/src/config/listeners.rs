//! Checks `listen`, `[listeners]` and `[tls]`: where clients connect, and what they speak there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::addresses;
use super::checked::*;
use super::typed::{self, Typed};
use super::values::{Checked, Checker, quoted};
use crate::driver;
use crate::wire::websocket::upgrade::{TokenSources, UpgradeRules};

/// Listeners beside the plain one, at most.
const LISTENERS_MAX: usize = driver::LISTENERS_MAX - 1;

impl Checker<'_> {
    /// The plain listener's address.
    pub(super) fn plain_listener(&self, typed: &Typed) -> Checked<Option<SocketAddr>> {
        if typed.listen.is_empty() {
            if typed.listeners.is_empty() {
                let reason = "clients have to connect somewhere: give it an address, as in 127.0.0.1:7400, or add a listener, \
                              as in listeners.web = { listen = \"0.0.0.0:7480\", wire = \"ws\" }";
                return Err(self.refuse("listen", quoted(""), reason));
            }
            return Ok(None);
        }
        self.address("listen", &typed.listen).map(Some)
    }

    /// The other listeners.
    pub(super) fn listeners(
        &self,
        typed: &BTreeMap<String, typed::Listener>,
        limits: &LimitsConfig,
    ) -> Checked<Vec<ListenerConfig>> {
        if typed.len() > LISTENERS_MAX {
            let reason = format!("there may be {LISTENERS_MAX} at most");
            return Err(self.refuse("listeners", typed.len(), reason));
        }
        typed.iter().map(|(name, listener)| self.listener(name, listener, limits)).collect()
    }

    fn listener(
        &self,
        name: &str,
        listener: &typed::Listener,
        limits: &LimitsConfig,
    ) -> Checked<ListenerConfig> {
        let key = |key: &str| format!("listeners.{name}.{key}");
        self.plain_name("listeners", name, "a listener's")?;
        let kinds = WireKind::ALL.map(|kind| (kind.name(), kind));
        let wire = self.choice(&key("wire"), &listener.wire, &kinds)?;
        let upgrade = self.upgrade(name, wire, listener, limits)?;
        let proxy_from = self.networks(&key("proxy_from"), &listener.proxy_from)?;
        if wire == WireKind::Tcp && proxy_from.is_empty() && listener.listen.is_empty() {
            return Err(self.refuse(&key("listen"), quoted(""), "it needs an address"));
        }
        let listen = self.address(&key("listen"), &listener.listen)?;
        let origins = if wire.is_http() {
            self.origins(name, &listener.origins)?;
            listener.origins.clone()
        } else {
            Vec::new()
        };
        Ok(ListenerConfig { name: name.to_owned(), listen, wire, proxy_from, upgrade, origins })
    }

    fn upgrade(
        &self,
        name: &str,
        wire: WireKind,
        listener: &typed::Listener,
        limits: &LimitsConfig,
    ) -> Checked<Option<UpgradeRules>> {
        let key = |key: &str| format!("listeners.{name}.{key}");
        if !wire.has_websocket() {
            let set = [
                ("path", !listener.path.is_empty()),
                ("origins", !listener.origins.is_empty() && !wire.is_http()),
                ("token_from", !listener.token_from.is_empty()),
            ];
            if let Some((name, _)) = set.into_iter().find(|(_, is_set)| *is_set) {
                let reason = format!("only WebSockets have it, and wire is \"{}\"", wire.name());
                return Err(self.refuse(&key(name), "set", reason));
            }
            return Ok(None);
        }
        let path = if listener.path.is_empty() { "/" } else { &listener.path };
        if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
            let reason = "a path begins with a slash and has no query, as in /chat";
            return Err(self.refuse(&key("path"), quoted(path), reason));
        }
        self.origins(name, &listener.origins)?;
        let mut token = TokenSources::default();
        for source in &listener.token_from {
            let choices = [("header", 0), ("subprotocol", 1), ("query", 2)];
            match self.choice(&key("token_from"), source, &choices)? {
                0 => token.header = true,
                1 => token.subprotocol = true,
                _ => token.query = true,
            }
        }
        Ok(Some(UpgradeRules {
            path: path.to_owned(),
            origins: listener.origins.clone(),
            request_bytes_max: limits.upgrade_bytes_max,
            token,
        }))
    }

    fn origins(&self, name: &str, origins: &[String]) -> Checked<()> {
        for origin in origins {
            let expected = as_browsers_send(origin);
            if expected.as_ref() == Some(origin) {
                continue;
            }
            let key = format!("listeners.{name}.origins");
            if origin == "*" {
                let reason = "this is no origin; an empty list, origins = [], lets the pages of all origins connect";
                return Err(self.refuse(&key, quoted(origin), reason));
            }
            let reason = expected.map_or_else(
                || {
                    "an origin is a scheme, a host and perhaps a port, as a browser sends it: https://app.example"
                        .to_owned()
                },
                |expected| format!("a browser sends it as {expected}"),
            );
            return Err(self.refuse(&key, quoted(origin), reason));
        }
        Ok(())
    }

    /// The shards need a listener: the HTTP gateway is beside them.
    pub(super) fn clients_of_shards(
        &self,
        plain: Option<SocketAddr>,
        listeners: &[ListenerConfig],
    ) -> Checked<()> {
        if plain.is_none() && listeners.is_empty() {
            let reason = "HTTP alone is not enough: sessions, rooms and pushes need a listener with another wire, \
                          as in 127.0.0.1:7400";
            return Err(self.refuse("listen", quoted(""), reason));
        }
        Ok(())
    }

    pub(super) fn networks(&self, key: &str, texts: &[String]) -> Checked<Vec<IpNet>> {
        let parse = |text: &String| {
            let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse().ok().or_else(address).ok_or_else(|| {
                let reason = "this must be a network or an address, as in 10.0.0.0/8 or 192.0.2.7";
                self.refuse(key, quoted(text), reason)
            })
        };
        texts.iter().map(parse).collect()
    }

    pub(super) fn plain_name(&self, key: &str, name: &str, whose: &str) -> Checked<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            let reason = format!("{whose} name is made of a-z, 0-9, _ and -");
            return Err(self.refuse(key, quoted(name), reason));
        }
        Ok(())
    }

    /// All addresses of clients. None may exclude another.
    pub(super) fn client_addresses(
        &self,
        plain: Option<SocketAddr>,
        listeners: &[ListenerConfig],
    ) -> Checked<Vec<SocketAddr>> {
        let mut addresses: Vec<_> = plain.into_iter().collect();
        for listener in listeners {
            let taken = addresses.iter().find(|other| addresses::overlap(listener.listen, **other));
            if let Some(taken) = taken {
                let key = format!("listeners.{}.listen", listener.name);
                let reason = format!("another listener of this gateway is at {taken}");
                return Err(self.refuse(&key, quoted(&listener.listen.to_string()), reason));
            }
            addresses.push(listener.listen);
        }
        Ok(addresses)
    }

    pub(super) fn tls(&self, tls: &typed::Tls, listeners: &[ListenerConfig]) -> Checked<TlsConfig> {
        let certificate = |(name, files): (&String, &typed::Certificate)| {
            let key = |key: &str| format!("tls.certificates.{name}.{key}");
            self.plain_name("tls.certificates", name, "a certificate's")?;
            let ocsp_file = (!files.ocsp_file.is_empty()).then(|| files.ocsp_file.clone().into());
            Ok(CertificateConfig {
                name: name.clone(),
                chain_file: self.path(&key("chain_file"), &files.chain_file)?,
                key_file: self.path(&key("key_file"), &files.key_file)?,
                ocsp_file,
            })
        };
        let certificates = tls.certificates.iter().map(certificate).collect::<Checked<Vec<_>>>()?;
        if let Some(listener) = listeners.iter().find(|listener| listener.wire.has_tls())
            && certificates.is_empty()
        {
            let key = format!("listeners.{}.wire", listener.name);
            let reason = "TLS needs a certificate: set tls.certificates.main.chain_file and \
                          tls.certificates.main.key_file; `tide cert --dev` makes one for development";
            return Err(self.refuse(&key, quoted(listener.wire.name()), reason));
        }
        let versions = [("1.3", false), ("1.2", true)];
        let checked = TlsConfig {
            certificates,
            takes_tls12: self.choice("tls.version_min", &tls.version_min, &versions)?,
            client_certificates: self.client_certificates(tls)?,
            handshakes_per_second_max: self.number(
                "tls.handshakes_per_second_max",
                tls.handshakes_per_second_max,
                1..=1_000_000,
            )?,
        };
        if !listeners.iter().any(|listener| listener.wire.has_tls())
            && let Some(key) = self.origins.key_below("tls")
        {
            let reason = "no listener has TLS, so it would mean nothing: add one, as in listeners.tls = { listen = \
                          \"0.0.0.0:7443\", wire = \"tls\" }";
            return Err(self.refuse(key, "set", reason));
        }
        Ok(checked)
    }

    fn client_certificates(&self, tls: &typed::Tls) -> Checked<ClientCertificates> {
        let choices = [("none", 0), ("optional", 1), ("required", 2)];
        let choice = self.choice("tls.client_certificates", &tls.client_certificates, &choices)?;
        let file = &tls.client_ca_file;
        Ok(match choice {
            0 if file.is_empty() => ClientCertificates::None,
            0 => {
                let reason = "clients are not asked for certificates: set tls.client_certificates to \
                              \"optional\" or \"required\"";
                return Err(self.refuse("tls.client_ca_file", quoted(file), reason));
            }
            1 => ClientCertificates::Optional(self.path("tls.client_ca_file", file)?),
            _ => ClientCertificates::Required(self.path("tls.client_ca_file", file)?),
        })
    }
}

/// An origin as browsers send it (RFC 6454, 6.2): in small letters, and without the port that its scheme has by default. `None`:
/// it is not an origin.
fn as_browsers_send(origin: &str) -> Option<String> {
    let (scheme, rest) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // A colon in brackets is a part of an IPv6 address.
    let host_end = rest.rfind(']').map_or(0, |end| end + 1);
    let colon = rest[host_end..].find(':').map_or(rest.len(), |at| host_end + at);
    let (host, port) = (&rest[..colon], rest.get(colon + 1..));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_ip6 = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(ip6) => is_ip6(ip6),
        None => !host.is_empty() && host.bytes().all(is_plain),
    };
    if !is_host {
        return None;
    }
    let host = host.to_ascii_lowercase();
    match port.map(str::parse::<u16>) {
        None => Some(format!("{scheme}://{host}")),
        Some(Ok(port)) if port == default_port => Some(format!("{scheme}://{host}")),
        Some(Ok(port)) => Some(format!("{scheme}://{host}:{port}")),
        Some(Err(_)) => None,
    }
}
