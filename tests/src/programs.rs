//! The binaries under test. Cargo builds them before the first start, and returns their paths.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The paths of the binaries.
#[derive(Debug)]
pub struct Programs {
    /// The gateway.
    pub tidegate: PathBuf,
    /// The tool.
    pub tide: PathBuf,
    /// The example of a gateway with another backend.
    pub quiz: PathBuf,
    /// The example of a gateway whose backend blocks its workers.
    pub blocking: PathBuf,
    /// The program that confines another one.
    pub confine: PathBuf,
}

/// The binaries, built from the sources as they are now.
#[must_use]
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Option<Programs>> = OnceLock::new();
    // After a failed build the other tests do not build again.
    let programs = PROGRAMS.get_or_init(build).as_ref();
    programs.expect("the build of the programs under test failed: see above")
}

fn build() -> Option<Programs> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    // The whole workspace is selected, so that dependencies have the features that they also have
    // in `cargo test --workspace`, and are not built twice.
    let output = Command::new(cargo)
        .args(["build", "--workspace", "--bins", "--examples", "--quiet", "--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be run");
    if !output.status.success() {
        return None;
    }
    let messages = String::from_utf8(output.stdout).expect("cargo writes JSON");
    let built: Vec<(String, PathBuf)> = messages.lines().filter_map(executable).collect();
    let find = |name: &str| {
        let found = built.iter().find(|(built, _)| built == name);
        found.unwrap_or_else(|| panic!("cargo built no {name}: {built:?}")).1.clone()
    };
    let [tidegate, tide, quiz, blocking, confine] =
        ["tidegate", "tide", "quiz", "blocking", "confine"].map(find);
    Some(Programs { tidegate, tide, quiz, blocking, confine })
}

/// The name and the path of the executable in a message of cargo's.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}
