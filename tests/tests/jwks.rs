//! Key sets: rotation without a restart, and servers and files that fail.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_tests::holder;
use tidegate_tests::port::Port;
use tidegate_tests::process::Process;
use tidegate_tests::{Code, Gateway, Operator, Setup, until};

const REFRESHES: &str = "tidegate_jwks_refreshes_total";

/// A day: no regular read happens during a test.
const NEVER_MS: u64 = 86_400_000;

/// Serves a folder, and redirects /moved. Its arguments: the port, the folder, the certificate and its key, or nothing.
const SERVER: &str = r#"
import functools, http.server, ssl, sys
port, folder, *tls = sys.argv[1:]
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/moved":
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", "/jwks.json")
        self.end_headers()
address = ("127.0.0.1", int(port))
server = http.server.ThreadingHTTPServer(address, functools.partial(Handler, directory=folder))
if tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    server.socket = context.wrap_socket(server.socket, server_side=True)
print("serves on port", server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A web server with a key set.
struct KeyServer {
    folder: TempDir,
    process: Process,
    port: u16,
}

impl KeyServer {
    fn start(keys: &[Value]) -> Self {
        Self::start_on(0, keys, &[])
    }

    fn start_on(port: u16, keys: &[Value], tls: &[PathBuf]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        publish(&folder.path().join("jwks.json"), keys);
        let mut command = Command::new("python3");
        command.args(["-c", SERVER, &port.to_string()]).arg(folder.path()).args(tls);
        let process = Process::start(&mut command, "");
        let port = process
            .stdout
            .find("its port", |said| said.trim().strip_prefix("serves on port ")?.parse().ok());
        Self { folder, process, port }
    }

    fn publish(&self, keys: &[Value]) {
        publish(&self.folder.path().join("jwks.json"), keys);
    }

    fn write(&self, text: &str) {
        replace(&self.folder.path().join("jwks.json"), text);
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/jwks.json", self.port)
    }

    /// How many requests for the set have arrived.
    fn requests(&self) -> usize {
        self.process.stderr.so_far().matches("GET /jwks.json").count()
    }
}

fn publish(path: &Path, keys: &[Value]) {
    replace(path, &json!({ "keys": keys }).to_string());
}

/// Replaces a file as careful writers do: by a rename.
fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).unwrap();
    fs::rename(draft, path).unwrap();
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/testdata").join(name)
}

/// A key of the set, with the private key that signs.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn of(algorithm: Algorithm, kid: &str) -> Self {
        let pem = |name: &str| fs::read(fixture(name)).unwrap();
        let (key, mut jwk) = match algorithm {
            Algorithm::EdDSA => {
                let public = String::from_utf8(pem("eddsa.public.pem")).unwrap();
                let der = STANDARD.decode(public.lines().nth(1).unwrap()).unwrap();
                // The key is the end of its DER: RFC 8410, 4.
                let x = URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]);
                let key = EncodingKey::from_ed_pem(&pem("eddsa.private.pem")).unwrap();
                (key, json!({ "kty": "OKP", "crv": "Ed25519", "x": x }))
            }
            _ => {
                let key = match algorithm {
                    Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem("rs256.private.pem")),
                    _ => EncodingKey::from_ec_pem(&pem("es256.private.pem")),
                };
                let key = key.unwrap();
                let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
                (key, serde_json::to_value(jwk).unwrap())
            }
        };
        jwk["kid"] = kid.into();
        Self { algorithm, key, jwk }
    }

    fn token(&self, user_id: u64, kid: Option<&str>) -> String {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({ "sub": user_id.to_string(), "exp": now_s + 3600 });
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

/// The failure of a login on a new connection; `None`: it succeeds.
fn refusal(gateway: &Gateway, user_id: u64, token: &str) -> Option<Code> {
    let mut phone = gateway.connect();
    phone.try_login(user_id, token).err().map(|failure| failure.code.unwrap())
}

fn wait_until_accepted(gateway: &Gateway, user_id: u64, token: &str) {
    until("the key is accepted", || refusal(gateway, user_id, token).is_none().then_some(()));
}

#[test]
fn a_key_set_at_a_url_rotates_without_a_restart() {
    let (old, new) = (Signer::of(Algorithm::EdDSA, "a"), Signer::of(Algorithm::RS256, "b"));
    let server = KeyServer::start(std::slice::from_ref(&old.jwk));
    let gateway = Setup::jwt()
        .shards(2)
        .set("auth.jwks_url", server.url())
        .set("auth.jwks_refresh_ms", NEVER_MS)
        .start();
    let mut phone = gateway.connect();
    phone.login_with(7, &old.token(7, Some("a")));
    // One key has the algorithm of a token without a name.
    assert_eq!(refusal(&gateway, 8, &old.token(8, None)), None);
    // The algorithm is the key's, and a key signs for its own name alone.
    let unauthenticated = Some(Code::Unauthenticated);
    assert_eq!(refusal(&gateway, 8, &new.token(8, Some("a"))), unauthenticated);
    assert_eq!(server.requests(), 1, "nothing but the start has asked for the set");
    server.publish(std::slice::from_ref(&new.jwk));
    let verified = old.token(8, Some("a"));
    assert_eq!(refusal(&gateway, 8, &verified), None, "no one has asked again");
    assert_eq!(refusal(&gateway, 9, &new.token(9, Some("b"))), unauthenticated, "not known yet");
    wait_until_accepted(&gateway, 9, &new.token(9, Some("b")));
    // Also one that was verified before.
    assert_eq!(refusal(&gateway, 8, &verified), unauthenticated, "it was removed");
    assert_eq!(refusal(&gateway, 8, &old.token(8, None)), unauthenticated);
    phone.assert_is_served();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_auth_failures_total", "unknown_key", |count| count >= 2.0);
    assert_eq!(operator.metric("tidegate_jwks_keys", ""), Some(1.0));
    assert_eq!(operator.metric(REFRESHES, "ok"), Some(2.0));
    gateway.process.stderr.wait_for("tokens are verified with a new key set");
}

#[test]
fn a_key_set_in_a_file_rotates_when_another_one_is_renamed_to_its_name() {
    let (old, new) = (Signer::of(Algorithm::ES256, "a"), Signer::of(Algorithm::EdDSA, "b"));
    let setup = Setup::jwt();
    let path = setup.folder().join("keys.json");
    let unused = json!({ "kty": "RSA", "use": "enc", "kid": "enc" });
    publish(&path, &[old.jwk.clone(), unused]);
    let gateway =
        setup.set("auth.jwks_file", "keys.json").set("auth.jwks_refresh_ms", NEVER_MS).start();
    assert_eq!(refusal(&gateway, 7, &old.token(7, Some("a"))), None);
    assert_eq!(gateway.operator().metric("tidegate_jwks_keys_skipped", ""), Some(1.0));
    gateway.process.stderr.wait_for("the key \"enc\" is for something else");
    // No token names it: the file's change alone is the cause.
    publish(&path, std::slice::from_ref(&new.jwk));
    gateway.operator().wait_for_metric(REFRESHES, "ok", |count| count == 2.0);
    assert_eq!(refusal(&gateway, 7, &old.token(7, Some("a"))), Some(Code::Unauthenticated));
    assert_eq!(refusal(&gateway, 7, &new.token(7, Some("b"))), None);
    // Without the file, and with one that is no set, the last good set stays.
    for text in [None, Some("{"), Some("{\"keys\":[]}")] {
        let failures = gateway.operator().metric(REFRESHES, "failed").unwrap();
        match text {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => replace(&path, text),
        }
        gateway.operator().wait_for_metric(REFRESHES, "failed", |count| count > failures);
        assert_eq!(refusal(&gateway, 7, &new.token(7, Some("b"))), None, "{text:?}");
    }
    publish(&path, std::slice::from_ref(&old.jwk));
    wait_until_accepted(&gateway, 7, &old.token(7, Some("a")));
}

#[test]
fn invented_keys_cause_few_requests_for_the_set() {
    let signer = Signer::of(Algorithm::EdDSA, "a");
    let server = KeyServer::start(std::slice::from_ref(&signer.jwk));
    let gateway = Setup::jwt()
        .shards(2)
        .set("auth.jwks_url", server.url())
        .set("auth.jwks_refresh_ms", NEVER_MS)
        .start();
    let started = Instant::now();
    let operator = gateway.operator();
    for round in 0..10 {
        for name in 0..10 {
            let token = signer.token(7, Some(&format!("{round}-{name}")));
            assert_eq!(refusal(&gateway, 7, &token), Some(Code::Unauthenticated));
        }
        // A request of the operator's takes longer than one for the set would, if it were allowed.
        assert!(operator.metric(REFRESHES, "ok") >= Some(1.0));
    }
    // The start has made one, and the first invented key another one.
    operator.wait_for_metric(REFRESHES, "ok", |count| count >= 2.0);
    let requests = server.requests();
    let allowed = 2 + started.elapsed().as_secs() / 10;
    assert!(requests as u64 <= allowed, "{requests} requests, and {allowed} are allowed");
    assert_eq!(refusal(&gateway, 7, &signer.token(7, Some("a"))), None);
}

#[test]
fn a_server_that_fails_leaves_the_last_good_set() {
    let signer = Signer::of(Algorithm::RS256, "a");
    let mut server = KeyServer::start(std::slice::from_ref(&signer.jwk));
    let gateway =
        Setup::jwt().set("auth.jwks_url", server.url()).set("auth.jwks_refresh_ms", 1_000).start();
    let operator = gateway.operator();
    let check = |why: &str| {
        let failures = operator.metric(REFRESHES, "failed").unwrap();
        operator.wait_for_metric(REFRESHES, "failed", |count| count > failures);
        assert_eq!(refusal(&gateway, 7, &signer.token(7, Some("a"))), None, "{why}");
        assert_eq!(operator.get("/readyz"), (200, "ready\n".into()), "{why}");
    };
    let age_from = operator.metric("tidegate_jwks_refresh_time_seconds", "").unwrap();
    assert!(age_from > 1e9, "{age_from}");
    server.write("<html>");
    check("no JSON");
    server.write("{\"keys\":[]}");
    check("an empty set");
    let too_long = json!({ "keys": [signer.jwk], "x": "x".repeat(300 * 1024) });
    server.write(&too_long.to_string());
    check("a set that is too long");
    server.write(r#"{"keys":[{"kty":"oct","kid":"leak","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMko"}]}"#);
    check("a secret");
    server.process.kill();
    check("no server");
    gateway.process.stderr.wait_for("the last good key set stays in use");
}

#[test]
fn without_keys_a_gateway_starts_and_answers_104_until_it_has_them() {
    let signer = Signer::of(Algorithm::EdDSA, "a");
    let port = Port::reserve();
    let url = format!("http://127.0.0.1:{}/jwks.json", port.number());
    let gateway = Setup::jwt().set("auth.jwks_url", url).start();
    let token = signer.token(7, Some("a"));
    let mut phone = gateway.connect();
    // It is no failed try: three of those would close the connection.
    for _ in 0..5 {
        let failure = phone.try_login(7, &token).unwrap_err();
        assert_eq!(failure.code, Some(Code::Overloaded));
        assert!((1_000..2_100).contains(&failure.retry_after.as_millis()), "{failure:?}");
    }
    let (status, body) = Operator::new(gateway.operators(), "").get("/readyz");
    let code = serde_json::from_str::<Value>(&body).unwrap()["code"].clone();
    assert_eq!((status, code), (503, json!("no_keys")), "{body}");
    assert!(body.contains("auth.jwks_url") && body.contains("refused"), "{body}");
    assert_eq!(gateway.operator().json("/stats")["ready"], false);
    let refused =
        gateway
            .operator()
            .wait_for_metric("tidegate_auth_failures_total", "no_keys", |count| count >= 5.0);
    assert_eq!(refused, 5.0);
    let _server = KeyServer::start_on(port.number(), std::slice::from_ref(&signer.jwk), &[]);
    until("the gateway has keys", || (gateway.operator().get("/readyz").0 == 200).then_some(()));
    phone.login_with(7, &token);
}

#[test]
fn a_start_does_not_wait_for_a_server_that_is_silent() {
    let address = holder::hold(holder::keep_silent);
    let gateway = Setup::jwt().set("auth.jwks_url", format!("http://{address}/jwks.json")).start();
    let token = Signer::of(Algorithm::EdDSA, "a").token(7, Some("a"));
    assert_eq!(refusal(&gateway, 7, &token), Some(Code::Overloaded));
    gateway.operator().wait_for_metric(REFRESHES, "failed", |count| count >= 1.0);
}

#[test]
fn a_redirect_is_not_followed() {
    let signer = Signer::of(Algorithm::EdDSA, "a");
    let server = KeyServer::start(std::slice::from_ref(&signer.jwk));
    let moved = server.url().replace("jwks.json", "moved");
    let gateway = Setup::jwt().set("auth.jwks_url", moved).start();
    assert_eq!(refusal(&gateway, 7, &signer.token(7, Some("a"))), Some(Code::Overloaded));
    gateway.process.stderr.wait_for("the server redirects to");
    assert_eq!(server.requests(), 0);
}

#[test]
fn over_tls_the_servers_certificate_is_checked() {
    let signer = Signer::of(Algorithm::ES256, "a");
    let tls = [fixture("tls.server.pem"), fixture("tls.server.key.pem")];
    let server = KeyServer::start_on(0, std::slice::from_ref(&signer.jwk), &tls);
    let url = server.url().replace("http://", "https://");
    let start = |authorities: &str| {
        Setup::jwt()
            .set("auth.jwks_url", &url)
            .variable("SSL_CERT_FILE", fixture(authorities))
            .variable("NO_PROXY", "127.0.0.1")
            .start()
    };
    let token = signer.token(7, Some("a"));
    assert_eq!(refusal(&start("tls.ca.pem"), 7, &token), None);
    // The server's own certificate is not an authority's, so it vouches for nothing.
    let other = start("tls.server.pem");
    assert_eq!(refusal(&other, 7, &token), Some(Code::Overloaded));
    other.process.stderr.wait_for("invalid peer certificate");
}

#[test]
fn a_file_without_a_usable_key_fails_start_and_check() {
    let private = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "mine", "x": "x", "d": "x" });
    let secret = json!({ "kty": "oct", "kid": "s", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMko" });
    let n = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let short = json!({ "kty": "RSA", "kid": "old", "n": n, "e": "AQAB" });
    for (keys, hints) in [
        (None, ["auth.jwks_file", "keys.json", "No such file"]),
        (Some(vec![]), ["auth.jwks_file", "keys.json", "no key that verifies tokens"]),
        (Some(vec![short]), ["keys.json", "\"old\" has 1024 bits", "2048"]),
        (Some(vec![secret]), ["keys.json", "\"s\" is a secret", "auth.key_file"]),
        (Some(vec![private]), ["keys.json", "\"mine\" is a private key", "\"d\""]),
    ] {
        for flag in [None, Some("--check-config")] {
            let mut setup = Setup::jwt().set("auth.jwks_file", "keys.json");
            if let Some(keys) = &keys {
                publish(&setup.folder().join("keys.json"), keys);
            }
            if let Some(flag) = flag {
                setup = setup.flag(flag);
            }
            let (status, _, log) = setup.run();
            assert_eq!(status.code(), Some(1), "{log}");
            assert!(hints.iter().all(|hint| log.contains(hint)), "{hints:?}: {log}");
        }
    }
    // A check fetches nothing.
    let nowhere = Setup::jwt().set("auth.jwks_url", "https://id.invalid/").flag("--check-config");
    let (status, said, log) = nowhere.run();
    assert_eq!((status.code(), said.trim()), (Some(0), "the configuration is valid"), "{log}");
}

#[test]
fn tide_makes_tokens_for_a_key_of_the_set() {
    let signers = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
        .map(|algorithm| Signer::of(algorithm, &format!("{algorithm:?}")));
    let setup = Setup::jwt();
    let keys = signers.each_ref().map(|signer| signer.jwk.clone());
    publish(&setup.folder().join("keys.json"), &keys);
    let gateway = setup.set("auth.jwks_file", "keys.json").start();
    for (name, file) in [("RS256", "rs256"), ("ES256", "es256"), ("EdDSA", "eddsa")] {
        let private = fixture(&format!("{file}.private.pem"));
        let options = ["--algorithm", name, "--key-file", private.to_str().unwrap()];
        let make = |kid: &str| {
            let arguments = [&["token", "--user", "7", "--kid", kid], &options[..]].concat();
            let (status, token, log) = gateway.tide(&arguments, "");
            assert!(status.success(), "{log}");
            token.trim().to_owned()
        };
        assert_eq!(refusal(&gateway, 7, &make(name)), None, "{name}");
        assert_eq!(refusal(&gateway, 7, &make("other")), Some(Code::Unauthenticated), "{name}");
    }
}
