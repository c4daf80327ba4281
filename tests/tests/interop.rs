//! The example clients of `PROTOCOL.md` in other languages, each with a real gateway.

use std::path::PathBuf;
use std::process::Command;

use tidegate_tests::Setup;

fn interop(program: &str) -> Command {
    Command::new(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../protocol/interop").join(program),
    )
}

fn build() {
    let status = interop("build").status().expect("the script can be run");
    assert!(status.success(), "the build of the examples failed: see above");
}

#[test]
fn a_client_in_python_resumes_and_gets_what_it_missed() {
    build();
    let gateway = Setup::demo().start();
    let port = gateway.clients().port().to_string();
    let arguments = ["resume", "python", &port, "7", "token-7"];
    let output = interop("run").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let said = String::from_utf8(output.stdout).unwrap();
    let wanted = [
        "* RECOVERY_NOT_ASKED",
        "joined quiz",
        "deliver quiz one",
        // Another device of the user.
        "* RECOVERY_NOT_ASKED",
        "* RECOVERY_COMPLETE",
        "quiz RECOVERY_COMPLETE",
        "deliver quiz missed 1",
        "deliver quiz missed 2",
        "deliver quiz newer",
        "end",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), wanted, "{errors}");
    let resumes = "tidegate_resumes_total";
    gateway.operator().wait_for_metric(resumes, "", |n| n == 1.0);
}

#[test]
fn the_examples_in_other_languages_work_with_a_gateway() {
    build();
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
