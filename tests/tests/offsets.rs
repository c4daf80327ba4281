//! The offset file: offsets of pushes continue above those of earlier runs, whatever the wall clock says.
//!
//! A test can't set the wall clock back. A file that is an hour ahead has the same effect.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_tests::{Gateway, Setup};

const HOUR_US: u64 = 3_600_000_000;

/// The wall clock, in microseconds since the Unix epoch.
fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// A gateway whose last run was at least an hour ahead of the wall clock, and the offset which that run came to.
fn gateway_behind(setup: Setup) -> (Gateway, u64) {
    let reached = wall_us() + HOUR_US;
    let path = setup.folder().join(".tidegate/offset");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("{reached}\n")).unwrap();
    (setup.start(), reached)
}

/// The lowest and the highest offset of some pushes to a room.
fn offsets(gateway: &Gateway) -> (u64, u64) {
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    (0..50).for_each(|n| phone.say("quiz", &format!("{n}")));
    let pushes = phone.pushes(50);
    (pushes[0].offset, pushes[49].offset)
}

#[test]
fn offsets_continue_above_the_file_though_the_wall_clock_is_behind() {
    let (gateway, reached) = gateway_behind(Setup::demo().shards(2));
    gateway.process.stderr.wait_for("offsets of pushes begin ahead of the wall clock");
    let (first, _) = offsets(&gateway);
    assert!(first >= reached, "{first} is below {reached}");
    assert!(first < reached + HOUR_US, "{first} is far above {reached}");
}

#[test]
fn a_run_after_a_kill_gives_offsets_above_all_earlier_ones_though_the_wall_clock_is_behind() {
    let (mut gateway, reached) = gateway_behind(Setup::demo().on_a_reserved_port());
    let mut last = reached - 1;
    for _ in 0..3 {
        let (first_of_run, last_of_run) = offsets(&gateway);
        assert!(first_of_run > last, "{first_of_run} is not above {last}");
        last = last_of_run;
        gateway.crash_and_restart();
    }
}

#[test]
fn a_run_after_a_drain_continues_close_above_the_last_one() {
    let (mut gateway, _) = gateway_behind(Setup::demo().on_a_reserved_port());
    let (_, last) = offsets(&gateway);
    gateway.terminate();
    assert!(gateway.process.wait().success());
    let left: u64 = fs::read_to_string(gateway.folder().join(".tidegate/offset"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(left > last, "{left} is not above {last}");
    gateway.restart();
    let (first, _) = offsets(&gateway);
    assert!(first >= left && first < left + HOUR_US, "{first} after {left}");
}

#[test]
fn a_file_without_an_offset_fails_the_start_with_the_key_and_the_path() {
    for text in ["garbage", "", "17 18", &"9".repeat(40)] {
        let setup = Setup::demo().set("rooms.offset_file", "offset");
        fs::write(setup.folder().join("offset"), text).unwrap();
        let (status, stdout, stderr) = setup.run();
        assert_eq!(status.code(), Some(1), "{text:?}: {stdout}{stderr}");
        assert!(stderr.contains("rooms.offset_file: offset does not hold an offset"), "{stderr}");
        assert!(!stdout.contains("listening for clients"), "{stdout}");
        let kept = fs::read_to_string(setup.folder().join("offset")).unwrap();
        assert_eq!(kept, text, "the file is left as it was");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_a_warning_and_a_metric() {
    // Nobody makes a folder there, root neither.
    let gateway = Setup::demo().set("rooms.offset_file", "/proc/tidegate/offset").start();
    gateway.process.stderr.wait_for("rooms.offset_file can't be written");
    let (first, last) = offsets(&gateway);
    assert_eq!(last, first + 49);
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_offset_file_errors_total", "", |n| n >= 1.0);
}

#[test]
fn without_an_offset_file_nothing_is_written() {
    let gateway = Setup::demo().set("rooms.offset_file", "").start();
    let (first, _) = offsets(&gateway);
    assert!(first > wall_us() - HOUR_US);
    assert!(!gateway.folder().join(".tidegate/offset").exists());
}
