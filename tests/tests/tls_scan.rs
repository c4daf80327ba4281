//! What testssl.sh, an independent scanner, finds in a TLS listener: no weak version, cipher or known vulnerability.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;
use tidegate_tests::wire::{CHAIN_FILE, KEY_FILE, write_certificate};
use tidegate_tests::{Gateway, Setup, Wire, until};

/// Findings of the certificate of `tide cert --dev`, which no authority has signed.
const OF_THE_CERTIFICATE: [&str; 2] = [
    "cert_chain_of_trust", // It is signed by itself.
    "cert_revocation",     // An authority would say where it lists revoked ones.
];

/// Findings of a listener that also speaks TLS 1.2. The gateway lets the client choose the cipher suite. All that it
/// offers are strong (`cipherlist_*` says so), and a phone knows whether it has hardware for AES. From 3.2 on the scanner
/// has the second name.
const OF_TLS_1_2: [&str; 2] = ["cipher_order", "cipher_order-tls1_2"];

/// What is strong, under the names that the scanner has up to 3.0 and from 3.2 on.
const STRENGTHS: [[&str; 2]; 2] = [["cipherlist_STRONG", "cipherlist_STRONG_FS"], ["PFS", "FS"]];

/// The check for obsolete ciphers, under both names.
const OBSOLETE: [&str; 2] = ["cipherlist_AVERAGE", "cipherlist_OBSOLETED"];

/// Findings of every listener. No post-quantum key exchange is offered: the cryptography library has none. The scanner checks
/// it from 3.2 on.
const OF_THE_LIBRARY: [&str; 1] = ["FS_KEMs"];

/// Warnings that are not about the gateway.
const OF_THE_SCANNER: [&str; 3] = [
    "NPN",            // It can't be checked without TLS 1.2.
    "engine_problem", // The local openssl has no GOST ciphers.
    // Whether tickets are accepted. It is no weakness, and the check fails where openssl ends before the ticket comes.
    "sessionresumption_ticket",
];

/// Vulnerabilities that the scanner checks for any protocol over TLS. (Ticketbleed and BREACH are for HTTP alone.)
const VULNERABILITIES: [&str; 13] = [
    "heartbleed",
    "CCS",
    "ROBOT",
    "secure_renego",
    "secure_client_renego",
    "CRIME_TLS",
    "POODLE_SSL",
    "fallback_SCSV",
    "FREAK",
    "DROWN",
    "LOGJAM",
    "BEAST",
    "RC4",
];

/// What the scanner found.
struct Scan(Vec<Value>);

impl Scan {
    /// Scans an address. It asks no name server and no other host. `checks` are its options.
    fn of(address: SocketAddr, checks: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scan.json");
        let mut command = Command::new("testssl");
        command.args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"]);
        command.arg("--ip").arg(address.ip().to_string()).arg("--jsonfile").arg(&file);
        command.args(checks).arg(format!("localhost:{}", address.port()));
        // It leaves files behind where it is killed.
        command.env("TMPDIR", folder.path());
        // It starts other processes.
        let mut process = Process::start_group(command.current_dir(folder.path()), "");
        // It takes longer on a busy machine than other waits may. But it says something after each check.
        let mut lines = 0;
        while process.is_running() {
            lines = until("the scanner says more, or ends", || {
                let now = process.stdout.so_far().lines().count();
                (now > lines || !process.is_running()).then_some(now)
            });
        }
        // Its exit status is the number of findings.
        let findings = fs::read_to_string(&file).unwrap_or_default();
        let findings = serde_json::from_str(&findings)
            .unwrap_or_else(|error| panic!("{error}: {}", process.stdout.all()));
        Self(findings)
    }

    /// The severities of a check. Some have more than one finding.
    fn severities(&self, id: &str) -> Vec<&str> {
        let found = self.0.iter().filter(|finding| finding["id"] == id);
        found.map(|finding| finding["severity"].as_str().unwrap()).collect()
    }

    /// Whether a version of TLS is offered.
    fn offers(&self, version: &str) -> bool {
        let found = self.0.iter().find(|finding| finding["id"] == version);
        let found = found.unwrap_or_else(|| panic!("{version} was not checked"));
        found["finding"].as_str().unwrap().starts_with("offered")
    }

    /// Findings that are worse than a remark. A check that could not be made is one of them.
    fn bad(&self) -> Vec<&str> {
        let is_bad = |finding: &&Value| {
            !matches!(finding["severity"].as_str().unwrap(), "OK" | "INFO" | "DEBUG")
        };
        self.0.iter().filter(is_bad).map(|finding| finding["id"].as_str().unwrap()).collect()
    }

    /// Nothing is weak but what may be expected, and every vulnerability was checked and is not there.
    fn assert_strong(&self, expected: &[&str]) {
        let mut bad = self.bad();
        bad.retain(|id| !OF_THE_SCANNER.contains(id) && !OF_THE_LIBRARY.contains(id));
        bad.retain(|id| !expected.contains(id));
        assert!(bad.is_empty(), "{bad:?} in {:#?}", self.0);
        for id in VULNERABILITIES {
            let severities = self.severities(id);
            assert!(!severities.is_empty(), "{id} was not checked: {:#?}", self.0);
            assert!(severities.iter().all(|severity| *severity == "OK"), "{id}: {severities:?}");
        }
        for ids in STRENGTHS {
            let severities: Vec<_> = ids.iter().flat_map(|id| self.severities(id)).collect();
            assert_eq!(severities, ["OK"], "{ids:?}");
        }
    }
}

/// Versions, kinds of ciphers, forward secrecy, the server's preferences and defaults, and all vulnerabilities.
const ALL_CHECKS: [&str; 6] = ["-p", "-s", "-f", "-P", "-S", "-U"];

/// A gateway with a TLS listener and a certificate for development.
fn with_tls() -> Setup {
    let setup = Setup::demo()
        .listener("tls", Wire::Tls)
        .set("tls.certificates.dev.chain_file", ".tidegate/dev-cert.pem")
        .set("tls.certificates.dev.key_file", ".tidegate/dev-key.pem");
    let mut tide = Command::new(&programs().tide);
    let made = Process::run(tide.args(["cert", "--dev"]).current_dir(setup.folder()), "");
    assert!(made.0.success(), "{}", made.2);
    setup
}

/// Scans a gateway, and returns which versions of TLS it offers.
fn scan(gateway: &Gateway) -> (Scan, Vec<&'static str>) {
    let scan = Scan::of(gateway.address(Wire::Tls), &ALL_CHECKS);
    let mut offered = vec!["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3"];
    offered.retain(|version| scan.offers(version));
    (scan, offered)
}

#[test]
fn a_scanner_finds_nothing_weak_in_the_default_listener() {
    let gateway = with_tls().start();
    let (scan, offered) = scan(&gateway);
    assert_eq!(offered, ["TLS1_3"]);
    scan.assert_strong(&OF_THE_CERTIFICATE);
}

#[test]
fn a_scanner_finds_nothing_weak_in_a_listener_with_tls_1_2() {
    let gateway = with_tls().set("tls.version_min", "1.2").start();
    let (scan, offered) = scan(&gateway);
    assert_eq!(offered, ["TLS1_2", "TLS1_3"]);
    scan.assert_strong(&[&OF_THE_CERTIFICATE[..], &OF_TLS_1_2].concat());
}

/// Otherwise the tests above would pass with a scanner that sees nothing.
#[test]
fn the_scanner_finds_what_is_weak_in_another_server() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", "127.0.0.1:0", "-cert", CHAIN_FILE, "-key", KEY_FILE]);
    // Obsolete ciphers, with the oldest version that speaks them.
    command.args(["-no_tls1_3", "-cipher", "ALL:@SECLEVEL=0", "-min_protocol", "TLSv1", "-www"]);
    let server = Process::start(command.current_dir(folder.path()), "");
    let address = until("openssl listens", || {
        let said = server.stdout.so_far();
        said.lines().find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok())
    });
    let scan = Scan::of(address, &["-p", "-s"]);
    let bad = scan.bad();
    for ids in [&["TLS1"][..], &["TLS1_1"], &OBSOLETE] {
        assert!(ids.iter().any(|id| bad.contains(id)), "{ids:?} is not in {bad:?}");
    }
}
