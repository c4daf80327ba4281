//! Starting, crashing, starting again, and refusing to start.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use rustix::process::Signal;
use tidegate_tests::phone::{End, quiz};
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;
use tidegate_tests::{Code, Phone, Push, Setup};

#[test]
fn after_a_crash_it_starts_on_the_same_port_at_once_and_clients_come_back() {
    let mut gateway = Setup::demo().on_a_port_of_its_own().shards(2).start();
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
        // They say what they saw last, and get all that is new.
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
fn a_second_signal_ends_it_at_once() {
    for signal in [Signal::INT, Signal::TERM, Signal::QUIT] {
        let mut gateway = Setup::demo().start();
        // This one neither reads its goodbye nor closes: the gateway would linger for it.
        let mut phone = gateway.login(7);
        gateway.process.signal(signal);
        gateway.process.stdout.wait_for("once more to end at once");
        phone.is_told_to_go();
        gateway.process.signal(signal);
        assert_eq!(gateway.process.wait().code(), Some(130));
        assert!(!gateway.process.stdout.all().contains("gone"));
    }
}

#[test]
fn one_signal_ends_it_in_order() {
    for signal in [Signal::INT, Signal::TERM, Signal::QUIT] {
        let mut gateway = Setup::demo().shards(3).start();
        let mut phones: Vec<_> = (1..=50).map(|user_id| gateway.login(user_id)).collect();
        gateway.process.signal(signal);
        phones.iter_mut().for_each(|phone| {
            phone.goodbye(Code::Draining);
        });
        drop(phones);
        assert_eq!(gateway.process.wait().code(), Some(0));
        assert!(gateway.process.stdout.all().contains("gone"));
    }
}

#[test]
fn a_gateway_without_clients_ends_when_it_is_told_to() {
    let mut gateway = Setup::demo().start();
    gateway.terminate();
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn a_draining_gateway_takes_nobody_in() {
    let mut gateway = Setup::quiz().quiz_times_out_after_ms(3000).on_a_port_of_its_own().start();
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
    gateway.login(7).is_served();
}

#[test]
fn a_port_that_is_taken_is_refused_with_the_way_out() {
    let gateway = Setup::demo().start();
    let setup = Setup::demo().set("listen", gateway.clients());
    let (status, said, log) = setup.run();
    assert_eq!(status.code(), Some(1));
    assert!(log.contains(&format!("can't listen for clients on {}", gateway.clients())), "{log}");
    assert!(log.contains("--listen"), "{log}");
    assert_eq!(log.matches("in use").count(), 1, "the cause is said once: {log}");
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
    gateway.login(7).is_served();
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let setup = Setup::demo().flag("--check-config");
    let (status, said, log) = setup.run();
    assert_eq!((status.code(), said.trim()), (Some(0), "the configuration is valid"), "{log}");
    assert!(!setup.folder().join(".tidegate").exists(), "a check makes no secrets");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tidegate.toml");
    let (status, _, log) = Setup::jwt().flag("--config").flag(file).flag("--check-config").run();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn what_is_wrong_with_the_configuration_is_said_with_its_place_and_the_way_out() {
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
fn what_keeps_a_gateway_from_starting_fails_its_check_too() {
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
            assert!(!setup.folder().join(".tidegate").exists(), "no secret is made for it");
        }
    }
    let (status, _, log) = key("RS256", public).flag("--check-config").run();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
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
fn a_crash_shows_as_one() {
    let mut gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    gateway.process.signal(Signal::KILL);
    assert_eq!(gateway.process.wait().signal(), Some(9));
    // The kernel closes for it.
    assert!(matches!(phone.end(), End::Closed | End::Reset));
}

#[test]
fn a_phone_that_does_not_read_does_not_hold_up_the_end() {
    let mut gateway = Setup::demo().set("socket.send_buffer_bytes", 4096).start();
    let mut deaf = Phone::connect_narrow(gateway.clients());
    deaf.login(7);
    let operator = gateway.operator();
    assert_eq!(operator.push_user(7, 5, &[b'x'; 500_000]), 1);
    gateway.terminate();
    assert_eq!(gateway.process.wait().code(), Some(0));
    // What was on its way ends cut or whole; there is an end, and no goodbye that is cut.
    deaf.end();
}

#[test]
fn phones_that_vanish_while_it_drains_do_not_hold_it_up() {
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
