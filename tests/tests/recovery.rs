//! Starts, crashes, restarts, and refused starts.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::process::Signal;
use tidegate_tests::phone::{End, quiz};
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;
use tidegate_tests::{Code, Phone, Push, Setup};

#[test]
fn after_a_crash_the_gateway_starts_on_the_same_port_and_clients_resume() {
    let mut gateway = Setup::demo().on_a_reserved_port().shards(2).start();
    for round in 0..5 {
        let mut phones: Vec<_> = (1..=20).map(|user_id| gateway.login(user_id)).collect();
        phones.iter_mut().for_each(|phone| phone.join("quiz", 0));
        let mut unread = gateway.login(99);
        (0..10).for_each(|_| {
            unread.send(1, b"never read");
        });
        phones[0].say("quiz", "before the crash");
        let seen: Vec<_> = phones.iter_mut().map(|phone| phone.push().offset).collect();
        gateway.process.kill();
        phones.iter_mut().for_each(|phone| {
            phone.end();
        });
        gateway.restart();
        // They resume from the last offset they saw, and get all newer pushes.
        let mut phones: Vec<_> = (1..=20).map(|user_id| gateway.login(user_id)).collect();
        for (phone, seen) in phones.iter_mut().zip(&seen) {
            phone.join("quiz", *seen);
        }
        let text = format!("after crash {round}");
        phones[0].say("quiz", &text);
        for (phone, seen) in phones.iter_mut().zip(&seen) {
            let push: Push = phone.push();
            assert_eq!(push.text(), text);
            assert!(push.offset > *seen);
        }
    }
}

#[test]
fn a_third_signal_ends_the_gateway_at_once() {
    for signal in [Signal::INT, Signal::TERM, Signal::QUIT] {
        let mut gateway = Setup::demo().start();
        // This client neither reads its goodbye nor closes, so the gateway would linger.
        let mut phone = gateway.login(7);
        gateway.process.signal(signal);
        gateway
            .process
            .stdout
            .wait_for("the next signal hurries, and one more ends the gateway at once");
        phone.wait_for_goodbye();
        gateway.process.signal(signal);
        gateway.process.stdout.wait_for("send the signal again to end at once");
        gateway.process.signal(signal);
        assert_eq!(gateway.process.wait().code(), Some(130));
        assert!(!gateway.process.stdout.all().contains("stopped"));
    }
}

#[test]
fn one_signal_drains_the_gateway() {
    for signal in [Signal::INT, Signal::TERM, Signal::QUIT] {
        let mut gateway = Setup::demo().shards(3).start();
        let mut phones: Vec<_> = (1..=50).map(|user_id| gateway.login(user_id)).collect();
        gateway.process.signal(signal);
        phones.iter_mut().for_each(|phone| {
            phone.goodbye(Code::Draining);
        });
        drop(phones);
        assert_eq!(gateway.process.wait().code(), Some(0));
        assert!(gateway.process.stdout.all().contains("stopped"));
    }
}

#[test]
fn a_gateway_without_clients_ends_on_a_signal() {
    let mut gateway = Setup::demo().start();
    gateway.terminate();
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn a_draining_gateway_refuses_new_connections() {
    let mut gateway = Setup::quiz().quiz_times_out_after_ms(3000).on_a_reserved_port().start();
    let mut phone = gateway.login(7);
    let asked = phone.send(quiz::WAIT, b"");
    gateway.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 1.0);
    gateway.terminate();
    let refused = || std::net::TcpStream::connect(gateway.clients()).is_err();
    tidegate_tests::until("connections are refused", || refused().then_some(()));
    phone.fails(asked, Code::Timeout);
    phone.goodbye(Code::Draining);
    assert_eq!(gateway.process.wait().code(), Some(0));
    gateway.restart();
    gateway.login(7).assert_is_served();
}

#[test]
fn a_port_in_use_fails_the_start_with_advice() {
    let gateway = Setup::demo().start();
    let setup = Setup::demo().set("listen", gateway.clients());
    let (status, said, log) = setup.run();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains(&format!("can't listen for clients on {}", gateway.clients())), "{log}");
    assert!(log.contains("--listen"), "{log}");
    assert_eq!(log.matches("in use").count(), 1, "the cause is named once: {log}");
    assert!(!said.contains("listening"), "{said}");
    let setup = Setup::demo().set("admin.listen", gateway.operators());
    let (status, _, log) = setup.run();
    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains(&format!("can't listen for operators on {}", gateway.operators())),
        "{log}"
    );
    assert!(log.contains("--admin"), "{log}");
    assert_eq!(log.matches("in use").count(), 1, "{log}");
    gateway.login(7).assert_is_served();
}

#[test]
fn check_config_starts_nothing() {
    let setup = Setup::demo().flag("--check-config");
    let (status, said, log) = setup.run();
    assert_eq!((status.code(), said.trim()), (Some(0), "the configuration is valid"), "{log}");
    assert!(!setup.folder().join(".tidegate").exists(), "a check makes no secret");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tidegate.toml");
    let (status, _, log) = Setup::jwt().flag("--config").flag(file).flag("--check-config").run();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_wrong_configuration_is_reported_with_its_place_and_advice() {
    let wrong = [
        (Setup::demo().set("limits.frame_byte_max", 1), "\"limits.frame_bytes_max\""),
        (Setup::demo().toml("[limts]\nframe_bytes_max = 100"), "did you mean \"limits\""),
        (Setup::demo().set("limits.frame_bytes_max", 1), "64"),
        (Setup::demo().toml("shards = \"two\""), "whole number"),
        (Setup::demo().toml("shards = = 2"), "tidegate.toml"),
        (Setup::demo().set("auth.mode", "none"), "\"demo\""),
        (Setup::demo().set("routes", r#"[{types=[1,9],backend="dmo"}]"#), "\"demo\""),
        (Setup::demo().flag("--config").flag("nowhere.toml"), "nowhere.toml"),
    ];
    for (setup, hint) in wrong {
        let (status, said, log) = setup.run();
        assert_eq!((status.code(), &*said), (Some(2), ""), "{hint}: {log}");
        assert!(log.contains(hint), "{hint}: {log}");
        assert!(log.lines().count() < 10, "{log}");
    }
}

#[test]
fn check_config_fails_where_a_start_would_fail() {
    let public = concat!(env!("CARGO_MANIFEST_DIR"), "/../gateway/testdata/rs256.public.pem");
    let key = |algorithm: &str, file: &str| {
        Setup::jwt().set("auth.algorithm", algorithm).set("auth.key_file", file)
    };
    let no_handler = || Setup::demo().toml("[backends.quiz]\n");
    let no_file = || key("EdDSA", "nowhere.pem");
    let other_key = || key("EdDSA", public);
    type Wrong<'a> = (&'a dyn Fn() -> Setup, i32, [&'a str; 2]);
    let wrong: [Wrong<'_>; 3] = [
        (&no_handler, 2, ["Remove [backends.quiz]", "it has \"demo\""]),
        (&no_file, 1, ["nowhere.pem", "No such file"]),
        (&other_key, 1, ["rs256.public.pem", "EdDSA"]),
    ];
    for (setup, code, hints) in wrong {
        for setup in [setup(), setup().flag("--check-config")] {
            let (status, said, log) = setup.run();
            assert_eq!((status.code(), &*said), (Some(code), ""), "{log}");
            assert!(hints.iter().all(|hint| log.contains(hint)), "{hints:?}: {log}");
            assert!(!setup.folder().join(".tidegate").exists(), "a failed check makes no secret");
        }
    }
    let (status, _, log) = key("RS256", public).flag("--check-config").run();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.toml");
    std::fs::write(&file, "limits.frame_bytes_max = 1\n").unwrap();
    let check = |flags: &[&str]| {
        let mut command = Command::new(&programs().tidegate);
        command.arg("--check-config").args(flags).current_dir(folder.path());
        command.env("TIDEGATE_CONFIG", &file).env("TIDEGATE_LIMITS__FRAME_BYTES_MAX", "2");
        Process::run(&mut command, "")
    };
    let (status, _, log) = check(&[]);
    assert_eq!(status.code(), Some(2));
    assert!(log.contains("= 2") && log.contains("TIDEGATE_LIMITS__FRAME_BYTES_MAX"), "{log}");
    let (_, _, log) = check(&["--frame-bytes-max", "3"]);
    assert!(log.contains("= 3") && log.contains("--frame-bytes-max"), "{log}");
    let (status, _, log) = check(&["--frame-bytes-max", "4096"]);
    assert!(status.success(), "{log}");
}

#[test]
fn help_and_version_are_printed() {
    for program in [&programs().tidegate, &programs().tide] {
        let (status, help, _) = Process::run(Command::new(program).arg("--help"), "");
        assert!(status.success() && help.contains("Usage:"), "{help}");
        let (status, version, _) = Process::run(Command::new(program).arg("--version"), "");
        assert!(status.success() && version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        let (status, _, log) = Process::run(Command::new(program).arg("--helpp"), "");
        assert!(status.code() == Some(2) && log.contains("--help"), "{log}");
    }
}

#[test]
fn a_secret_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut gateway = Setup::jwt().start();
    gateway.terminate();
    gateway.process.wait();
    let secret = gateway.folder().join(".tidegate/jwt-hs256.key");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (status, _, log) = gateway.setup().run();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("jwt-hs256.key") && log.contains("chmod"), "{log}");
}

#[test]
fn a_killed_gateway_resets_or_ends_its_connections() {
    let mut gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    gateway.process.signal(Signal::KILL);
    assert_eq!(gateway.process.wait().signal(), Some(9));
    // The kernel closes the sockets.
    assert!(matches!(phone.end(), End::Closed | End::Reset));
}

#[test]
fn a_client_that_does_not_read_does_not_delay_the_end() {
    let mut gateway = Setup::demo().set("socket.send_buffer_bytes", 4096).start();
    let mut deaf = Phone::connect_narrow(gateway.clients());
    deaf.login(7);
    let operator = gateway.operator();
    assert_eq!(operator.push_user(7, 5, &[b'x'; 500_000]), 1);
    gateway.terminate();
    assert_eq!(gateway.process.wait().code(), Some(0));
    // The data may end within a frame. The connection ends, and no goodbye is cut.
    deaf.end();
}

#[test]
fn clients_that_vanish_do_not_delay_a_drain() {
    let mut gateway = Setup::quiz().quiz_times_out_after_ms(3000).start();
    let mut phones: Vec<Phone> = (1..=10).map(|user_id| gateway.login(user_id)).collect();
    phones.iter_mut().for_each(|phone| {
        phone.send(quiz::WAIT, b"");
    });
    gateway.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 10.0);
    gateway.terminate();
    phones.into_iter().for_each(Phone::reset);
    assert_eq!(gateway.process.wait().code(), Some(0));
}
