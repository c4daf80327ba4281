//! What the gateway prints once it listens: its addresses, the file of the operators' token, and a command to try.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::{AuthConfig, AuthMode, Config, JwtAlgorithm, JwtKeys, WireKind};
use crate::server::{ClientAddress, Server};
use crate::telemetry::output;

/// Where `tide` looks for the secret of tokens, relative to its working folder.
const TIDES_KEY_FILE: &str = ".tidegate/jwt-hs256.key";

/// The folder of this crate's source where it was built. Its parent has `tide`, if it is still there.
const SOURCE: &str = env!("CARGO_MANIFEST_DIR");

/// What the announcement needs of the configuration.
#[derive(Debug)]
pub(super) struct Announcement {
    token_file: PathBuf,
    login: &'static str,
    /// Behind `login`; empty where that needs none.
    key_file: String,
}

/// The program, as far as it decides how `tide` is run.
struct Program<'a> {
    /// The working folder.
    folder: &'a Path,
    executable: &'a Path,
    /// The folder of this crate's source.
    source: &'a Path,
}

impl Announcement {
    /// Takes what it needs.
    pub(super) fn of(config: &Config) -> Self {
        let (login, key_file) = login(&config.auth);
        Self { token_file: config.admin.token_file.clone(), login, key_file }
    }

    /// Prints where the gateway listens, and a command to try.
    pub(super) fn print(&self, server: &Server) {
        let folder = std::env::current_dir().unwrap_or_default();
        let executable = std::env::current_exe().unwrap_or_default();
        let source = Path::new(SOURCE);
        let program = Program { folder: &folder, executable: &executable, source };
        let stdout = output::stdout();
        for line in self.lines(server.client_addresses(), server.admin_address(), &program) {
            stdout.line(line);
        }
    }

    fn lines(
        &self,
        clients: &[ClientAddress],
        operators: SocketAddr,
        program: &Program<'_>,
    ) -> Vec<String> {
        let (tide, login) = (program.tide(), self.login);
        let token_file = program.folder.join(&self.token_file);
        // An empty key file has no option either.
        let key_file = &self.key_file;
        let mut lines: Vec<_> = clients
            .iter()
            .map(|clients| {
                let with = if clients.wants_proxy_header { "with a PROXY header " } else { "" };
                // Programs read the place: it is the last word.
                format!("listening for clients {with}on {}", place(clients))
            })
            .collect();
        lines.extend([
            format!("listening for operators on http://{operators}/"),
            format!("the operators' token is in {}", token_file.display()),
            String::new(),
        ]);
        // `tide client` speaks no HTTP, and sends no PROXY header.
        let is_for_tide =
            |clients: &&ClientAddress| !clients.wire.is_http() && !clients.wants_proxy_header;
        if let Some(clients) = clients.iter().find(is_for_tide) {
            let clients = place(clients);
            lines.extend([
                format!("next, in another terminal in {}:", program.folder.display()),
                format!("  {tide} client --connect {clients} --user 7{login}{key_file}"),
            ]);
        }
        lines.push("Ctrl-C ends the gateway.".to_owned());
        lines
    }
}

/// An address as `tide client --connect` takes it.
fn place(clients: &ClientAddress) -> String {
    match clients.wire {
        WireKind::Tcp => clients.address.to_string(),
        wire => format!("{}://{}{}", wire.name(), clients.address, clients.path),
    }
}

/// The options with which `tide client` logs in.
fn login(auth: &AuthConfig) -> (&'static str, String) {
    match &auth.mode {
        AuthMode::Demo => (" --demo-token", String::new()),
        AuthMode::Jwt {
            keys: JwtKeys::One { algorithm: JwtAlgorithm::Hs256, key_file }, ..
        } => {
            if key_file == Path::new(TIDES_KEY_FILE) {
                return ("", String::new());
            }
            (" --key-file ", shell_word(&key_file.display().to_string()))
        }
        // The gateway has public keys, or none: it can make no token.
        AuthMode::Jwt { .. } | AuthMode::Redis => (" --token ", "TOKEN".to_owned()),
    }
}

impl Program<'_> {
    /// The command that runs `tide` in the working folder.
    fn tide(&self) -> String {
        const CARGO: &str = "cargo run --release";
        const TIDE: &str = "-p tidegate-tools --";
        // A program that was installed has `tide` beside it, or none.
        if !is_built_by_cargo(self.executable) {
            return "tide".to_owned();
        }
        if cargo_folder(self.folder).is_some_and(is_checkout) {
            return format!("{CARGO} {TIDE}");
        }
        // The program of an embedder: cargo finds no `tide` in its folder.
        match self.source.parent().filter(|folder| is_checkout(folder)) {
            Some(checkout) => {
                let manifest = checkout.join("Cargo.toml").display().to_string();
                format!("{CARGO} --manifest-path {} {TIDE}", shell_word(&manifest))
            }
            None => "tide".to_owned(),
        }
    }
}

/// The folder whose manifest cargo takes where it runs in this folder.
fn cargo_folder(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|folder| folder.join("Cargo.toml").exists())
}

/// Whether a folder is a checkout of Tidegate, where cargo can build `tide`.
fn is_checkout(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("tools/Cargo.toml")).unwrap_or_default();
    manifest.contains("name = \"tidegate-tools\"")
}

/// Whether cargo built an executable. Cargo keeps a file in its target folder, which may have any name
/// (`CARGO_TARGET_DIR`) and is up to two levels further up with `--target` or for an example.
fn is_built_by_cargo(executable: &Path) -> bool {
    let is_cargos = |folder: &Path| folder.join(".rustc_info.json").exists();
    executable.ancestors().skip(2).take(3).any(is_cargos)
}

/// A text as one word of a shell.
fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:,".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder of the workspace.
    fn checkout() -> &'static Path {
        Path::new(SOURCE).parent().unwrap()
    }

    /// A folder with an executable that cargo built: `target/release/mine`.
    fn embedder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("target")).unwrap();
        fs::write(folder.path().join("target/.rustc_info.json"), "{}").unwrap();
        folder
    }

    fn tide(folder: &Path, executable: &Path, source: &Path) -> String {
        Program { folder, executable, source }.tide()
    }

    #[test]
    fn an_embedder_gets_a_command_that_works_in_its_own_folder() {
        let own = embedder();
        let executable = own.path().join("target/release/mine");
        let source = Path::new(SOURCE);
        let there = format!("cargo run --release --manifest-path {}", checkout().display());
        let there = format!("{there}/Cargo.toml -p tidegate-tools --");
        assert_eq!(tide(own.path(), &executable, source), there);
        // Cargo does not find the workspace from a separate package in a checkout.
        assert_eq!(tide(&checkout().join("fuzz"), &executable, source), there);
        // The source is gone, or was packaged without `tide`.
        assert_eq!(tide(own.path(), &executable, &own.path().join("gateway")), "tide");
        // It is installed.
        assert_eq!(tide(own.path(), &own.path().join("bin/mine"), source), "tide");
    }

    #[test]
    fn in_a_checkout_cargo_finds_tide_without_a_path() {
        let built = embedder();
        let executable = built.path().join("target/release/tidegate");
        for folder in [checkout().to_owned(), checkout().join("scripts")] {
            let said = tide(&folder, &executable, Path::new("/nowhere/gateway"));
            assert_eq!(said, "cargo run --release -p tidegate-tools --");
        }
    }

    #[test]
    fn an_executable_is_cargos_where_its_environment_shows_it() {
        let folder = embedder();
        let is_cargos = |path: &str| is_built_by_cargo(&folder.path().join(path));
        assert!(is_cargos("target/release/tidegate"));
        assert!(is_cargos("target/release/examples/quiz"));
        assert!(is_cargos("target/x86_64-unknown-linux-musl/release/examples/quiz"));
        assert!(!is_cargos("bin/tidegate"));
        // Deeper it is a test's, which announces nothing.
        assert!(!is_cargos("target/a/b/c/d/tidegate"));
    }

    #[test]
    fn the_command_names_the_first_listener_that_clients_of_the_binary_protocol_can_use() {
        let announcement = Announcement::of(&Config::embedded_default());
        let program = Program {
            folder: Path::new("/srv/mine"),
            executable: Path::new("/usr/bin/mine"),
            source: Path::new("/nowhere"),
        };
        let address = |wire, path: &str| {
            let address = ([127, 0, 0, 1], 7480).into();
            let (name, path) = (String::new(), path.to_owned());
            ClientAddress { name, wire, address, path, wants_proxy_header: false }
        };
        let lines = |clients: &[ClientAddress]| {
            announcement.lines(clients, ([127, 0, 0, 1], 7401).into(), &program).join("\n")
        };
        let http = address(WireKind::Http, "");
        let both = lines(&[http.clone(), address(WireKind::Wss, "/live")]);
        assert!(both.contains("listening for clients on http://127.0.0.1:7480\n"), "{both}");
        assert!(both.contains("listening for clients on wss://127.0.0.1:7480/live\n"), "{both}");
        assert!(both.contains("client --connect wss://127.0.0.1:7480/live --user 7"), "{both}");
        assert!(!lines(&[http]).contains("--connect"), "tide client does not speak HTTP");
        let proxied =
            ClientAddress { wants_proxy_header: true, ..address(WireKind::Ws, "/balanced") };
        let both = lines(&[proxied.clone(), address(WireKind::Wss, "/live")]);
        let marked = "clients with a PROXY header on ws://127.0.0.1:7480/balanced\n";
        assert!(both.contains(marked), "{both}");
        assert!(both.contains("client --connect wss://127.0.0.1:7480/live --user 7"), "{both}");
        assert!(!lines(&[proxied]).contains("--connect"), "tide client sends no PROXY header");
    }

    #[test]
    fn the_token_of_the_page_and_the_login_of_the_command_are_named() {
        let lines = |mode: AuthMode| {
            let mut config = Config::embedded_default();
            config.auth.mode = mode;
            config.admin.token_file = "state/admin.token".into();
            let program = Program {
                folder: Path::new("/srv/mine"),
                executable: Path::new("/usr/bin/mine"),
                source: Path::new("/nowhere"),
            };
            let [address, operators] = [7400, 7401].map(|port| ([127, 0, 0, 1], port).into());
            let wire = WireKind::Tcp;
            let (name, path) = (String::new(), String::new());
            let clients = &[ClientAddress { name, wire, address, path, wants_proxy_header: false }];
            Announcement::of(&config).lines(clients, operators, &program)
        };
        let jwt = |algorithm, key_file: &str| AuthMode::Jwt {
            keys: JwtKeys::One { algorithm, key_file: key_file.into() },
            audience: None,
            issuer: None,
        };
        let demo = lines(AuthMode::Demo);
        assert_eq!(demo[2], "the operators' token is in /srv/mine/state/admin.token");
        assert_eq!(demo[4], "next, in another terminal in /srv/mine:");
        let client = "  tide client --connect 127.0.0.1:7400 --user 7";
        assert_eq!(demo[5], format!("{client} --demo-token"));
        assert_eq!(lines(jwt(JwtAlgorithm::Hs256, TIDES_KEY_FILE))[5], client);
        let other = lines(jwt(JwtAlgorithm::Hs256, "my keys/a"));
        assert_eq!(other[5], format!("{client} --key-file 'my keys/a'"));
        let public = lines(jwt(JwtAlgorithm::EdDsa, "public.pem"));
        assert_eq!(public[5], format!("{client} --token TOKEN"));
    }
}
