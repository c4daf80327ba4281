//! Secrets on a read-only mount, as orchestrators provide them: the errors, and whether their advice works.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::geteuid;
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;

/// Runs `--check-config` with secrets on a file system of 16 KiB, which `script` fills; `None` where a mount is not
/// permitted.
fn check_in_a_mount(script: &str) -> Option<(i32, String)> {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=16k none \"$0\" || exit 77\nset -e\ncd \"$0\"\n{script}\n\
         exec \"$GATEWAY\" --set admin.token_file=token --set rooms.ticket_key_file=ticket \
         --set auth.mode=demo \
         --listen 127.0.0.1:0 --admin 127.0.0.1:0 $FLAGS"
    );
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "bash", "-c", &script]).arg(folder.path());
    command.env("GATEWAY", &programs().tidegate);
    let (status, said, log) = Process::run(&mut command, "");
    if status.code() == Some(77) || log.contains("unshare failed") {
        println!("skipped: mounting is not permitted here: {log}");
        return None;
    }
    Some((status.code().unwrap(), said + &log))
}

/// Makes a secret in this file.
fn make(file: &str) -> String {
    format!("echo 0123456789abcdef0123456789abcdef >{file}\n")
}

#[test]
fn the_advice_for_a_secret_depends_on_whether_its_mode_can_be_changed() {
    let mounted = |mode: &str| {
        let mode = format!(
            "chmod {mode} token ticket; mount -o remount,ro .; cd \"$0\"; FLAGS=--check-config"
        );
        check_in_a_mount(&(make("token") + &make("ticket") + &mode))
    };
    let Some((code, said)) = mounted("644") else { return };
    assert_eq!(code, 1, "{said}");
    for hint in ["mode 644", "read-only", "defaultMode: 0400", "fsGroup", "0440"] {
        assert!(said.contains(hint), "{hint}: {said}");
    }
    assert!(!said.contains("chmod"), "{said}");
    // The advice works.
    for mode in ["400", "440"] {
        let (code, said) = mounted(mode).unwrap();
        assert_eq!(code, 0, "{mode}: {said}");
    }
}

#[test]
fn a_secret_that_cannot_be_made_fails_start_and_check_with_advice() {
    let secrets = [("admin.token_file", "ticket"), ("rooms.ticket_key_file", "token")];
    for (missing, present) in secrets {
        let present = make(present) + "chmod 600 token ticket 2>/dev/null || true\n";
        let fill = "head -c 16k /dev/zero >full 2>/dev/null || true\n";
        let Some((code, said)) = check_in_a_mount(&format!("{present}{fill}FLAGS=")) else {
            return;
        };
        assert_eq!(code, 1, "{said}");
        for hint in [missing, "No space left", "openssl rand -hex 32 >"] {
            assert!(said.contains(hint), "{hint}: {said}");
        }
        for flags in ["", "--check-config"] {
            let script = format!("{present}mount -o remount,ro .; cd \"$0\"; FLAGS={flags}");
            let (code, said) = check_in_a_mount(&script).unwrap();
            assert_eq!(code, 1, "{said}");
            for hint in [missing, "Read-only file system", "openssl rand -hex 32 >"] {
                assert!(said.contains(hint), "{hint}: {said}");
            }
        }
    }
}

#[test]
fn an_unreadable_secret_is_reported_with_its_owner_and_the_gateways_user() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    // Root can read every file, so the test becomes another user. Any other user removes its own permission.
    let mut command = if geteuid().is_root() {
        fs::set_permissions(&token, fs::Permissions::from_mode(0o400)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        // Only root may have access to the folders above the binary.
        let copy = folder.path().join("tidegate");
        fs::copy(&programs().tidegate, &copy).unwrap();
        command.arg(copy);
        command
    } else {
        fs::set_permissions(&token, fs::Permissions::from_mode(0o000)).unwrap();
        Command::new(&programs().tidegate)
    };
    command.args(["--check-config", "--auth", "demo", "--set"]);
    command.arg(format!("admin.token_file={}", token.display())).current_dir(folder.path());
    let (status, _, log) = Process::run(&mut command, "");
    if log.contains("setpriv:") {
        return println!("skipped: it can't become another user here: {log}");
    }
    assert_eq!(status.code(), Some(1), "{log}");
    for hint in
        ["Permission denied", "it belongs to user", "this process runs as user", "chmod 440"]
    {
        assert!(log.contains(hint), "{hint}: {log}");
    }
}
