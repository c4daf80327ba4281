//! The example clients of `PROTOCOL.md` in other languages, each with a real gateway.

use std::path::PathBuf;
use std::process::Command;

use tidegate_tests::Setup;

fn interop(program: &str) -> Command {
    Command::new(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../protocol/interop").join(program),
    )
}

#[test]
fn the_examples_in_other_languages_work_with_a_gateway() {
    assert!(
        interop("build").status().unwrap().success(),
        "the build of the examples failed: see above"
    );
    let gateway = Setup::demo().start();
    let port = gateway.clients().port().to_string();
    for language in ["java", "python", "node", "go"] {
        let output = interop("run")
            .args(["client", language, &port, "18446744073709551615"])
            .arg("token-18446744073709551615")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{language}: {errors}");
        let said = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let [first, between @ .., last] = &lines[..] else { panic!("{language}: {said}") };
        assert_eq!((*first, *last), ("authenticated", "end"), "{language}");
        // Answers of different routes, pongs and pushes may overtake each other.
        let mut between = between.to_vec();
        between.sort_unstable();
        assert_eq!(
            between,
            ["answer", "answer hello", "failed 105", "pong", "push hello"],
            "{language}"
        );
    }
}
