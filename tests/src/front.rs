//! Real balancers in front of real gateways: nginx, HAProxy and gateways run with the examples of `deploy/`.
//!
//! What belongs to a machine is replaced: addresses, ports, paths, the account and the chroot, and how many connections and
//! descriptors there may be. nginx is one process, without workers. A site is on 127.0.0.1 (the balancer; also on ::1, where the
//! machine has IPv6), 127.0.0.11 and 127.0.0.12 (the gateways).

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::port::Port;
use crate::process::Process;
use crate::{Setup, until, wire};

/// The file of certificates, in a site's folder.
const CHAIN_FILE: &str = "fullchain.pem";

/// The ports of the examples where gateways listen, the operators' last.
const GATEWAY_PORTS: [u16; 7] = [7400, 7444, 7480, 7482, 7490, 7492, 7401];

/// A balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// nginx, with its modules for HTTP and streams.
    Nginx,
    /// `HAProxy`.
    Haproxy,
}

impl Balancer {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Nginx, Self::Haproxy];

    /// Its example.
    #[must_use]
    pub fn example(self) -> String {
        read(match self {
            Self::Nginx => "nginx.conf",
            Self::Haproxy => "haproxy.cfg",
        })
    }

    /// Its program.
    #[must_use]
    pub fn program(self) -> PathBuf {
        let name = match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        // An ordinary user's PATH may lack the folder of servers.
        let found = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        let found = found.map(|folder| folder.join(name)).find(|file| file.exists());
        found.unwrap_or_else(|| panic!("no {name}: run scripts/install-test-deps"))
    }

    /// The ports of the example where clients connect.
    #[must_use]
    pub const fn ports(self) -> &'static [u16] {
        match self {
            Self::Nginx => &[7443, 7444, 7481, 8443],
            Self::Haproxy => &[7443, 7444, 8443],
        }
    }

    /// Lets its example listen at a port of this machine alone.
    fn listen_here(self, text: &str, example: u16, port: u16) -> String {
        match self {
            Self::Nginx => {
                let text = replace(
                    text,
                    &format!("listen {example}"),
                    &format!("listen 127.0.0.1:{port}"),
                );
                let everywhere = format!("listen [::]:{example}");
                let line = if has_ipv6() { "listen" } else { "#" };
                replace(&text, &everywhere, &format!("{line} [::1]:{port}"))
            }
            Self::Haproxy => {
                let everywhere = format!("bind :{example},[::]:{example} v6only");
                let here = if has_ipv6() {
                    format!("bind 127.0.0.1:{port},[::1]:{port} v6only")
                } else {
                    format!("bind 127.0.0.1:{port}")
                };
                replace(text, &everywhere, &here)
            }
        }
    }
}

/// Whether this machine has an address of IPv6.
#[must_use]
pub fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// An example of `deploy/`.
fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)).unwrap()
}

/// With the settings that are comments: their `#` has no space behind it.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with([' ', '#']) => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Replaces all of `from`, of which there is some.
#[track_caller]
fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the example has no {from:?} any more");
    text.replace(from, to)
}

/// Two gateways and a balancer on this machine.
#[derive(Debug)]
pub struct Site {
    balancer: Balancer,
    folder: TempDir,
    /// Ports of gateways and of the balancer in the examples, and here.
    gateways: Vec<(u16, Port)>,
    clients: Vec<(u16, Port)>,
}

impl Site {
    /// Reserves its ports, and makes a certificate.
    #[must_use]
    pub fn new(balancer: Balancer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        wire::write_certificate(folder.path());
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        let (chain, key) = (read(wire::CHAIN_FILE), read(wire::KEY_FILE));
        fs::write(folder.path().join(CHAIN_FILE), &chain).unwrap();
        // HAProxy wants both in one file.
        fs::write(folder.path().join("tidegate.pem"), chain + &key).unwrap();
        let reserve = |ports: &[u16]| ports.iter().map(|port| (*port, Port::reserve())).collect();
        let (gateways, clients) = (reserve(&GATEWAY_PORTS), reserve(balancer.ports()));
        Self { balancer, folder, gateways, clients }
    }

    /// The certificate that clients trust.
    #[must_use]
    pub fn certificate(&self) -> String {
        fs::read_to_string(self.folder.path().join(CHAIN_FILE)).unwrap()
    }

    /// The address of a gateway's listener. Gateways have the numbers 1 and 2, and listeners the ports of the example.
    #[must_use]
    pub fn gateway_address(&self, number: u8, port: u16) -> SocketAddr {
        (Ipv4Addr::new(127, 0, 0, 10 + number), number_of(&self.gateways, port)).into()
    }

    /// The address where the balancer has this port of its example.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, number_of(&self.clients, port)).into()
    }

    /// The same on ::1.
    #[must_use]
    pub fn address_v6(&self, port: u16) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, number_of(&self.clients, port)).into()
    }

    /// A gateway with `behind-proxy.toml`, the demo backend and a log of its connections.
    #[must_use]
    pub fn gateway(&self, number: u8) -> Setup {
        let mut text = self.with_addresses(&read("behind-proxy.toml"));
        text = replace(&text, "/etc/tidegate", self.folder.path().to_str().unwrap());
        if self.balancer == Balancer::Nginx {
            text = uncommented(&text);
        }
        // The example is the first gateway's.
        let admin = self.gateway_address(number, 7401);
        text = replace(&text, "127.0.0.11", &admin.ip().to_string());
        let setup = Setup::demo().toml(&text).flag("--log").flag("debug");
        setup.set("listen", "").set("admin.listen", admin)
    }

    fn with_addresses(&self, text: &str) -> String {
        let mut text = replace(text, "10.0.0.", "127.0.0.").replace("127.0.0.5/32", "127.0.0.1/32");
        for (example, port) in &self.gateways {
            let port = port.number();
            text = text.replace(&format!(":{example}"), &format!(":{port}"));
            text = text.replace(&format!("port {example}"), &format!("port {port}"));
        }
        text
    }

    /// The balancer's example with this machine's addresses, ports, paths and account.
    #[must_use]
    pub fn config(&self) -> String {
        let (mut text, folder) = (self.balancer.example(), self.folder.path().to_str().unwrap());
        for (example, port) in &self.clients {
            text = self.balancer.listen_here(&text, *example, port.number());
        }
        text = self.with_addresses(&text);
        match self.balancer {
            Balancer::Nginx => {
                // Another account is for root alone. nginx warns of it otherwise.
                text = replace(&text, "user www-data;\n", "");
                text = replace(&text, "/etc/tidegate/", &format!("{folder}/"));
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|of| format!("{of}_temp_path {folder}/{of};"));
                replace(&text, "http {", &format!("http {{\n{}", temporary.join("\n")))
            }
            Balancer::Haproxy => {
                text = replace(&text, "/etc/haproxy/", &format!("{folder}/"));
                for line in ["user haproxy", "group haproxy", "chroot /var/lib/haproxy"] {
                    text = replace(&text, &format!("    {line}\n"), "");
                }
                text
            }
        }
    }

    /// The balancer's own check of a configuration.
    ///
    /// # Errors
    /// It finds something wrong: what it says.
    pub fn check(&self, text: &str) -> Result<String, String> {
        let mut command = match self.balancer {
            // It writes the file even for a check.
            Balancer::Nginx => self.nginx(text, &["-t", "-g", &self.pid_file()]),
            Balancer::Haproxy => self.haproxy(text, &["-c", "-V"]),
        };
        let (status, said, log) = Process::run(&mut command, "");
        if status.success() { Ok(said + &log) } else { Err(said + &log) }
    }

    /// Starts the balancer, and waits until it listens. It is one process, which is killed when its test ends.
    #[must_use]
    pub fn start(&self) -> Process {
        let text = self.config();
        // The tests run with few descriptors.
        let mut command = match self.balancer {
            Balancer::Nginx => {
                let text = replace(&text, "worker_rlimit_nofile 262144;", "");
                let text = replace(&text, "worker_connections 131072;", "worker_connections 256;");
                let globals = format!("daemon off; master_process off; {}", self.pid_file());
                self.nginx(&text, &["-g", &globals])
            }
            Balancer::Haproxy => {
                let text = replace(&text, "maxconn 100000", "maxconn 100");
                let text = replace(&text, "maxconn 40000", "maxconn 40");
                let text = replace(&text, "maxconn 20000", "maxconn 20");
                self.haproxy(&text, &["-db"])
            }
        };
        let mut process = Process::start(&mut command, "");
        for (example, _) in &self.clients {
            until("the balancer listens", || {
                assert!(process.is_running(), "the balancer has ended");
                TcpStream::connect(self.address(*example)).ok()
            });
        }
        process
    }

    fn pid_file(&self) -> String {
        format!("pid {};", self.folder.path().join("nginx.pid").display())
    }

    fn nginx(&self, text: &str, arguments: &[&str]) -> Command {
        let file = self.folder.path().join("nginx.conf");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(self.balancer.program());
        command.arg("-c").arg(file).args(["-e", "stderr"]).args(arguments);
        command
    }

    fn haproxy(&self, text: &str, arguments: &[&str]) -> Command {
        let file = self.folder.path().join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(self.balancer.program());
        command.args(arguments).arg("-f").arg(file).current_dir(self.folder.path());
        command
    }
}

/// The port here that an example's port has become.
fn number_of(ports: &[(u16, Port)], example: u16) -> u16 {
    let found = ports.iter().find(|(port, _)| *port == example);
    found.unwrap_or_else(|| panic!("the examples have no port {example}")).1.number()
}
