//! The files of `deploy/`, and the programs that check and run them: `scripts/install-test-deps` brings these.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::Process;

/// A file of this project.
#[must_use]
pub fn project_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// The text of a file of this project.
#[must_use]
pub fn read(path: &str) -> String {
    fs::read_to_string(project_file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Copies a folder of this project, with all that is in it.
pub fn copy_folder(path: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(project_file(path)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&format!("{path}/{name}"), &to.join(name));
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

fn tool(path: &str) -> Command {
    let file = project_file("target").join(path);
    assert!(file.exists(), "no {}: run scripts/install-test-deps", file.display());
    Command::new(file)
}

/// The linter of container recipes.
#[must_use]
pub fn hadolint() -> Command {
    tool("hadolint/bin/hadolint")
}

/// Builds manifests of Kubernetes.
#[must_use]
pub fn kustomize() -> Command {
    tool("kustomize/kustomize")
}

/// Checks a dashboard of Grafana.
#[must_use]
pub fn board() -> Command {
    tool("board/board")
}

/// Python, with the package that checks manifests.
fn python() -> Command {
    let packages = project_file("target/kubernetes-validate");
    assert!(packages.exists(), "no kubernetes-validate: run scripts/install-test-deps");
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages);
    command
}

/// Checks manifests against the schemas of versions of Kubernetes, such as `1.37`.
///
/// # Errors
/// What it finds: also that it does not know a version or a kind.
pub fn validate_manifests(file: &Path, versions: &[&str]) -> Result<(), String> {
    // One process for all versions: Python and its packages take longer to start than to check.
    let script = "import sys, yaml, kubernetes_validate as check
documents = list(yaml.safe_load_all(open(sys.argv[1])))
for version in sys.argv[2:]:
    for document in documents:
        try:
            check.validate(document, version, strict=True)
        except Exception as error:
            sys.exit(f'{version}: {document[\"kind\"]}: {error}')
";
    let mut command = python();
    command.args(["-c", script]).arg(file).args(versions);
    let (status, said, log) = Process::run(&mut command, "");
    if status.success() { Ok(()) } else { Err(said + &log) }
}

/// The documents of a YAML file.
#[must_use]
pub fn documents(yaml: &str) -> Vec<Value> {
    let script =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let (status, said, log) = Process::run(python().args(["-c", script]), yaml);
    assert!(status.success(), "{log}");
    serde_json::from_str(&said).unwrap()
}
