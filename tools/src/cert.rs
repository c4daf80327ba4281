//! `tide cert --dev`: makes a self-signed certificate for development, and tells how a gateway and a client use it.
//!
//! It never overwrites a file. Nothing makes a certificate by itself: a gateway with TLS and without one does not start.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use time::{Duration, OffsetDateTime};

use crate::stdout;

/// The certificate's file.
const CHAIN_FILE: &str = "dev-cert.pem";
/// Its key's file.
const KEY_FILE: &str = "dev-key.pem";
/// Names that each certificate has, since a gateway in development listens there.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// How long a certificate is valid. Browsers take no longer ones.
const VALID_DAYS: i64 = 397;

/// The arguments of `tide cert`.
///
/// For development: a client trusts the certificate only if it is named with `--ca`. Real certificates come from an authority.
#[derive(Args, Debug)]
pub(crate) struct CertArgs {
    /// Say that it is for development
    #[arg(long, required = true)]
    dev: bool,
    /// The folder for the certificate and its key
    #[arg(long, default_value = ".tidegate", value_name = "DIR")]
    dir: PathBuf,
    /// A name or an IP address that clients connect to, beside localhost, 127.0.0.1 and ::1; may be repeated
    #[arg(long = "name", value_name = "NAME", default_value = "localhost", value_parser = host)]
    names: Vec<String>,
}

/// Makes a certificate and its key.
///
/// # Errors
/// A file exists already, or can't be written.
pub(crate) fn run(args: &CertArgs) -> Result<()> {
    let (chain_file, key_file) = (args.dir.join(CHAIN_FILE), args.dir.join(KEY_FILE));
    for path in [&chain_file, &key_file] {
        if fs::symlink_metadata(path).is_ok() {
            return Err(exists(path));
        }
    }
    let (chain, key) = self_signed(&args.names)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.dir)
        .with_context(|| format!("can't make the folder {}", args.dir.display()))?;
    write_new(&key_file, &key, 0o600)?;
    write_new(&chain_file, &chain, 0o644)?;
    let name = &args.names[0];
    let host = if name.contains(':') { format!("[{name}]") } else { name.clone() };
    let (chain, key) = (chain_file.display(), key_file.display());
    stdout::print(|out| {
        writeln!(
            out,
            "{chain} and {key} are valid for {VALID_DAYS} days, for development alone\n"
        )?;
        writeln!(out, "in tidegate.toml:\n")?;
        writeln!(
            out,
            "  [tls.certificates.dev]\n  chain_file = \"{chain}\"\n  key_file = \"{key}\"\n"
        )?;
        writeln!(out, "  [listeners.tls]\n  listen = \"127.0.0.1:7443\"\n  wire = \"tls\"\n")?;
        writeln!(out, "  [listeners.web]\n  listen = \"127.0.0.1:7481\"\n  wire = \"wss\"\n")?;
        writeln!(out, "then, as a client:\n")?;
        writeln!(out, "  tide client --connect tls://{host}:7443 --ca {chain} --user 7")?;
        writeln!(out, "  tide client --connect wss://{host}:7481/ --ca {chain} --user 7")
    })
}

/// Parses a name or an IP address that a certificate can be for.
fn host(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("it takes a host's name or an IP address: gateway.example, 192.0.2.7".into()),
    }
}

/// A certificate for these names and for loopback, and its key, both in PEM.
fn self_signed(names: &[String]) -> Result<(String, String)> {
    let mut all: Vec<String> = names.to_vec();
    all.extend(LOOPBACK.map(str::to_owned));
    let mut seen = std::collections::HashSet::new();
    all.retain(|name| seen.insert(name.to_ascii_lowercase()));
    let mut params = CertificateParams::new(all).context("--name is no name of a host")?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("Tidegate development: {}", names[0]));
    params.distinguished_name = subject;
    let now = OffsetDateTime::now_utc();
    // Clocks of virtual machines differ.
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(VALID_DAYS - 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().context("can't make a key")?;
    let certificate = params.self_signed(&key).context("can't make a certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    match opened {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .with_context(|| format!("can't write {}", path.display())),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(path)),
        Err(error) => Err(error).with_context(|| format!("can't write {}", path.display())),
    }
}

fn exists(path: &Path) -> anyhow::Error {
    anyhow!(
        "{} exists, and is never overwritten: remove it first, or name another folder with --dir",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_private_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let args = CertArgs { dev: true, dir: dir.clone(), names: vec!["gateway.example".into()] };
        run(&args).unwrap();
        let mode = fs::metadata(dir.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = fs::read(dir.join(KEY_FILE)).unwrap();
        let said = run(&args).unwrap_err().to_string();
        assert!(said.contains("never overwritten"), "{said}");
        fs::remove_file(dir.join(CHAIN_FILE)).unwrap();
        assert!(run(&args).is_err(), "the key is still there");
        assert!(!dir.join(CHAIN_FILE).exists(), "half a pair is of no use");
        assert_eq!(fs::read(dir.join(KEY_FILE)).unwrap(), before);
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        assert!(self_signed(&["localhost".into(), "LOCALHOST".into()]).is_ok());
        assert!(self_signed(&["192.0.2.7".into(), "gateway.example".into()]).is_ok());
        for wrong in ["", "gr\u{fc}n", "a b", "[::1]", "x:1"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
