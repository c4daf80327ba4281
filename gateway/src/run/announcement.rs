//! What the gateway prints once it listens: its addresses, and commands to try.

use std::fs;
use std::path::Path;

use crate::server::Server;
use crate::telemetry::output;

/// Prints where the gateway listens and which commands to try.
pub(super) fn announce(server: &Server, demo_tokens: bool) {
    let client = server.client_address();
    let demo = if demo_tokens { " --demo-token" } else { "" };
    let in_checkout = std::env::current_dir().is_ok_and(|folder| is_in_checkout(&folder));
    let built_here = std::env::current_exe().is_ok_and(|executable| is_built_here(&executable));
    let tide =
        if in_checkout && built_here { "cargo run --release -p tidegate-tools --" } else { "tide" };
    let stdout = output::stdout();
    stdout.line(format!("listening for clients on {client}"));
    stdout.line(format!("listening for operators on http://{}/", server.admin_address()));
    stdout.line("");
    stdout.line("next, in another terminal:");
    stdout.line(format!("  {tide} client --connect {client} --user 7{demo}"));
    stdout.line("Ctrl-C ends the gateway.");
}

/// Whether a folder lies in a checkout of Tidegate, where cargo can build `tide`.
fn is_in_checkout(folder: &Path) -> bool {
    folder.ancestors().any(|folder| {
        let manifest = fs::read_to_string(folder.join("tools/Cargo.toml")).unwrap_or_default();
        manifest.contains("name = \"tidegate-tools\"")
    })
}

/// Whether cargo built an executable. Cargo marks its target folder, which may have any name
/// (`CARGO_TARGET_DIR`) and is up to two levels further up with `--target` or for an example.
fn is_built_here(executable: &Path) -> bool {
    let is_cargos = |folder: &Path| {
        let mark = fs::read_to_string(folder.join("CACHEDIR.TAG")).unwrap_or_default();
        mark.contains("created by cargo")
    };
    executable.ancestors().skip(2).take(3).any(is_cargos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_builds_tide_in_a_checkout_alone() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(is_in_checkout(here) && is_in_checkout(&here.join("src")));
        assert!(!is_in_checkout(tempfile::tempdir().unwrap().path()));
    }

    #[test]
    fn an_executable_is_cargos_where_cargo_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let is_built_here = |path: &str| is_built_here(&folder.path().join(path));
        assert!(!is_built_here("out/release/tidegate"));
        fs::create_dir(folder.path().join("out")).unwrap();
        let mark = "Signature: 8a477f597d28d172789f06886806bc55\n# ... created by cargo.\n";
        fs::write(folder.path().join("out/CACHEDIR.TAG"), mark).unwrap();
        assert!(is_built_here("out/release/tidegate"));
        assert!(is_built_here("out/release/examples/quiz"));
        assert!(is_built_here("out/x86_64-unknown-linux-musl/release/examples/quiz"));
        assert!(!is_built_here("bin/tidegate"));
        // Deeper it is a test's, which announces nothing.
        assert!(!is_built_here("out/a/b/c/d/tidegate"));
    }
}
