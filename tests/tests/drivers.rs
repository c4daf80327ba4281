//! The choice of the driver, kernels that forbid io_uring, and more connections than descriptors.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, Rlimit, prlimit};
use tidegate_tests::phone::demo;
use tidegate_tests::{Code, Gateway, Phone, Setup};

/// Descriptors of a confined gateway.
const DESCRIPTORS: u64 = 256;

/// More connections than those.
const CONNECTIONS: u64 = 400;

/// The driver and the number of rings of each shard, from `/stats`.
fn drivers(gateway: &Gateway) -> Vec<(String, u64)> {
    let stats = gateway.operator().json("/stats");
    let shards = stats["shards"].as_array().unwrap();
    let driver = |shard: &serde_json::Value| {
        (shard["driver"].as_str().unwrap().to_owned(), shard["rings"].as_u64().unwrap())
    };
    shards.iter().map(driver).collect()
}

/// Lets one test at a time have many connections. The other ends are descriptors of this process, which may have
/// 1,024.
fn lock_descriptors() -> MutexGuard<'static, ()> {
    static CROWD: Mutex<()> = Mutex::new(());
    // A failed test poisons the lock; the others still run.
    CROWD.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_gateway_uses_the_configured_driver() {
    let gateway = Setup::demo().shards(2).start();
    let (epoll, uring) = (("epoll".to_owned(), 0), ("uring".to_owned(), 1));
    match std::env::var("TIDEGATE_DRIVER").as_deref() {
        Ok("epoll") => assert_eq!(drivers(&gateway), [epoll.clone(), epoll.clone()]),
        Ok("uring") => assert_eq!(drivers(&gateway), [uring.clone(), uring.clone()]),
        _ if gateway.process.stderr.so_far().contains("io_uring can't be") => {
            assert_eq!(drivers(&gateway), [epoll.clone(), epoll.clone()]);
        }
        _ => assert_eq!(drivers(&gateway), [uring.clone(), uring.clone()]),
    }
    let gateway = Setup::demo().flag("--driver").flag("epoll").start();
    assert_eq!(drivers(&gateway), [epoll], "a flag overrides the environment");
    let gateway = Setup::demo().flag("--driver").flag("uring").start();
    assert_eq!(drivers(&gateway), [uring], "a flag overrides the environment");
}

#[test]
fn without_io_uring_epoll_is_used_and_the_log_says_why() {
    let gateway = Setup::demo().without_uring().set("driver", "auto").start();
    gateway.process.stderr.wait_for("seccomp");
    let log = gateway.process.stderr.so_far();
    assert!(log.contains("epoll is used, since io_uring can't be"), "{log}");
    assert_eq!(drivers(&gateway), [("epoll".to_owned(), 0)]);
    gateway.login(7).assert_is_served();
}

#[test]
fn a_configured_but_forbidden_io_uring_fails_the_start_with_advice() {
    let setup = Setup::demo().without_uring().flag("--driver").flag("uring");
    let (status, said, log) = setup.run();
    assert_eq!((status.code(), &*said), (Some(2), ""), "{log}");
    for hint in ["--driver", "seccomp", "io_uring_setup", "\"auto\" or \"epoll\""] {
        assert!(log.contains(hint), "{hint}: {log}");
    }
}

/// Each connection is served, gets a push to everybody, and a goodbye at the end.
fn serves_many_connections(setup: Setup) -> Vec<(String, u64)> {
    let _lock = lock_descriptors();
    let setup = setup.set("limits.connections_max", CONNECTIONS).on_a_reserved_port();
    let mut gateway = setup.start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=CONNECTIONS).map(|user_id| gateway.login(user_id)).collect();
    operator.wait_for_total("connections", CONNECTIONS);
    let drivers = drivers(&gateway);
    phones.iter_mut().for_each(Phone::assert_is_served);
    assert_eq!(operator.push_all(5, b"to all"), CONNECTIONS);
    assert!(phones.iter_mut().all(|phone| phone.push().biz_data == b"to all"[..]));
    gateway.terminate();
    phones.iter_mut().for_each(|phone| {
        phone.goodbye(Code::Draining);
    });
    assert!(TcpStream::connect(gateway.clients()).is_err(), "the port is still open");
    drop(phones);
    assert_eq!(gateway.process.wait().code(), Some(0));
    drivers
}

#[test]
fn rings_serve_more_connections_than_there_are_descriptors() {
    let setup = Setup::demo().descriptors(DESCRIPTORS).set("driver", "uring");
    let drivers = serves_many_connections(setup);
    let [(name, rings)] = &drivers[..] else { panic!("{drivers:?}") };
    assert!(name == "uring" && (2..=3).contains(rings), "{drivers:?}");
}

#[test]
fn each_epoll_shard_has_its_own_descriptor_limit() {
    let setup = Setup::demo().descriptors(DESCRIPTORS).set("driver", "epoll").shards(8);
    assert_eq!(serves_many_connections(setup), vec![("epoll".to_owned(), 0); 8]);
}

#[test]
fn a_connections_max_beyond_the_descriptors_of_epoll_fails_the_start_with_the_numbers() {
    let setup = Setup::demo().descriptors(DESCRIPTORS).set("driver", "epoll").shards(2);
    let (status, said, log) = setup.set("limits.connections_max", 100_000).run();
    assert_eq!((status.code(), &*said), (Some(2), ""), "{log}");
    for hint in ["100000", "(256)", "uring", "ulimit -n", "LimitNOFILE", "184 a shard, 368 in all"]
    {
        assert!(log.contains(hint), "{hint}: {log}");
    }
}

/// With io_uring the descriptor table may be full, so that no descriptor is left for another ring.
#[test]
fn accepting_pauses_while_no_ring_can_be_added() {
    let _lock = lock_descriptors();
    let setup = Setup::demo().descriptors(DESCRIPTORS).set("driver", "uring");
    let gateway = setup.set("limits.connections_max", CONNECTIONS).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=200).map(|user_id| gateway.login(user_id)).collect();
    assert_eq!(drivers(&gateway), [("uring".to_owned(), 1)]);
    let pid = gateway.process.pid();
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count() as u64;
    let limit = |current| Rlimit { current: Some(current), maximum: Some(DESCRIPTORS) };
    prlimit(Some(pid), Resource::Nofile, limit(open)).unwrap();
    phones.extend((201..=DESCRIPTORS).map(|user_id| gateway.login(user_id)));
    let mut waiting = gateway.connect();
    let login = waiting.send_login(9999, "token-9999");
    gateway.process.stderr.wait_for("accepting is paused");
    phones.iter_mut().for_each(Phone::assert_is_served);
    // When a connection ends, the waiting one is accepted.
    drop(phones.pop());
    waiting.wait_for(|event| match event {
        tidegate_protocol::client::Event::Authenticated { sequence, .. } if *sequence == login => {
            Some(())
        }
        _ => None,
    });
    gateway.process.stderr.wait_for("accepting again");
    prlimit(Some(pid), Resource::Nofile, limit(DESCRIPTORS)).unwrap();
    // Only now: the operators' connection needs a descriptor too.
    operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
    let mut more: Vec<_> = (301..=320).map(|user_id| gateway.login(user_id)).collect();
    more.iter_mut().chain(&mut phones).for_each(Phone::assert_is_served);
    assert_eq!(more[0].ask(demo::ECHO, b"hello").unwrap(), b"hello"[..]);
    assert_eq!(drivers(&gateway), [("uring".to_owned(), 2)]);
}

/// Older kernels have a shorter `struct tcp_info`: 104 bytes in Linux 2.6 and 232 in 5.4.
#[test]
fn a_drain_works_with_the_shorter_tcp_info_of_older_kernels() {
    for bytes in [104, 232] {
        let setup = Setup::demo();
        let (source, library) = (setup.folder().join("less.c"), setup.folder().join("less.so"));
        let code = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <netinet/in.h>\n#include <netinet/tcp.h>\n#include <sys/socket.h>\n\
            int getsockopt(int fd, int level, int name, void *value, socklen_t *length) {\n\
            int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, \"getsockopt\");\n\
            if (level == IPPROTO_TCP && name == TCP_INFO && *length > BYTES) *length = BYTES;\n\
            return real(fd, level, name, value, length); }\n";
        fs::write(&source, code).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DBYTES={bytes}"), "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .status();
        assert!(built.unwrap().success());
        let mut gateway = setup.variable("LD_PRELOAD", &library).start();
        let mut phone = gateway.login(7);
        gateway.terminate();
        phone.goodbye(Code::Draining);
        drop(phone);
        assert_eq!(gateway.process.wait().code(), Some(0));
    }
}
