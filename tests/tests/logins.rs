//! Logins whose tokens have signatures that take long to check, beside clients that show wrong ones.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tidegate_tests::http::{ROUTES, closed, with_http};
use tidegate_tests::phone::demo;
use tidegate_tests::web::{Raw, Web};
use tidegate_tests::{Code, Gateway, Operator, Phone, Setup, until};

const CHECKS: &str = "tidegate_signature_checks_total";

/// Where the hostile clients are.
const HOSTILE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../gateway/testdata").join(name)
}

/// The keys of a gateway's tokens. To sign with RS256 takes a second where nothing is optimised, and with EdDSA a moment.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Rs256,
    EdDsa,
}

impl Keys {
    /// A gateway that takes their tokens.
    fn setup(self) -> Setup {
        let (name, file) = match self {
            Self::Rs256 => ("RS256", "rs256.public.pem"),
            Self::EdDsa => ("EdDSA", "eddsa.public.pem"),
        };
        Setup::jwt()
            .shards(1)
            .set("auth.algorithm", name)
            .set("auth.key_file", fixture(file).display())
            // However slow the machine is, no login ends before its signature was checked.
            .set("auth.timeout_ms", 120_000)
    }

    /// A valid token. Two with different ids are different tokens.
    fn token(self, user_id: u64, id: u64) -> String {
        let pem = |name: &str| fs::read(fixture(name)).unwrap();
        let (algorithm, key) = match self {
            Self::Rs256 => (Algorithm::RS256, EncodingKey::from_rsa_pem(&pem("rs256.private.pem"))),
            Self::EdDsa => (Algorithm::EdDSA, EncodingKey::from_ed_pem(&pem("eddsa.private.pem"))),
        };
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims =
            json!({ "sub": user_id.to_string(), "exp": now_s + 3600, "jti": id.to_string() });
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &key.unwrap()).unwrap()
    }

    /// A token with a signature that the key did not make, and that takes as long to check as a valid one: RS256's number has to
    /// be less than the modulus, and EdDSA's second half less than the order of the group.
    fn forged(self, user_id: u64) -> String {
        let token = self.token(user_id, 0);
        let (message, signature) = token.rsplit_once('.').unwrap();
        let first = if signature.starts_with('A') { "B" } else { "A" };
        format!("{message}.{first}{}", &signature[1..])
    }
}

fn checks(operator: &Operator, result: &str) -> f64 {
    operator.metric(CHECKS, &format!("\"{result}\"")).unwrap()
}

/// The codes that a client gets which shows a wrong token three times.
fn show_wrong_token(gateway: &Gateway, from: IpAddr, token: &str) -> usize {
    let mut phone = Phone::connect_tcp_from(gateway.clients(), from);
    let mut code = || phone.try_login(7, token).unwrap_err().code.unwrap();
    let codes = [code(), code(), code()];
    assert!(codes.iter().all(|code| [Code::Unauthenticated, Code::Overloaded].contains(code)));
    codes.iter().filter(|code| **code == Code::Unauthenticated).count()
}

/// Runs `attack` on a number of threads while `honest` runs. Returns what the attacks returned, added up.
fn beside<T>(
    threads: usize,
    attack: impl Fn() -> usize + Sync,
    honest: impl FnOnce() -> T,
) -> (usize, T) {
    let (is_over, sum) = (AtomicBool::new(false), AtomicUsize::new(0));
    let out = thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    sum.fetch_add(attack(), Ordering::Relaxed);
                }
            });
        }
        until("the attack has begun", || (sum.load(Ordering::Relaxed) >= threads).then_some(()));
        let out = honest();
        is_over.store(true, Ordering::Relaxed);
        out
    });
    (sum.into_inner(), out)
}

#[test]
fn every_signature_is_checked_apart_from_the_shards_and_none_twice() {
    let keys = Keys::Rs256;
    let gateway = keys.setup().set("auth.verify_threads", 1).set("session.login", "many");
    let gateway = gateway.set("session.connections_per_user_max", 20).start();
    let operator = gateway.operator();
    // Sessions that repeat the token that they came with. The first one's is checked.
    let known = keys.token(1, 0);
    let mut repeating: Vec<_> = (0..20)
        .map(|_| {
            let mut phone = gateway.connect();
            phone.login_with(1, &known);
            phone
        })
        .collect();
    let wrong = keys.forged(7);
    let attack = || show_wrong_token(&gateway, HOSTILE, &wrong);
    let (refused, ()) = beside(20, attack, || {
        for phone in &mut repeating {
            (0..10).for_each(|_| drop(phone.login_with(1, &known)));
        }
        // Clients that come for the first time, and then come back.
        for user_id in 101..=103 {
            let token = keys.token(user_id, 0);
            gateway.connect().login_with(user_id, &token);
            gateway.connect().login_with(user_id, &token);
        }
    });
    repeating.iter_mut().for_each(Phone::assert_is_served);
    // Each answer to an authentication has its check, or was known.
    assert_eq!(checks(&operator, "valid"), 4.0);
    assert_eq!(checks(&operator, "known"), 222.0);
    assert_eq!(checks(&operator, "invalid"), refused as f64);
    assert_eq!((checks(&operator, "refused"), checks(&operator, "abandoned")), (0.0, 0.0));
    let waits = operator.metric("tidegate_signature_wait_seconds_count", "");
    assert_eq!(waits, Some(4.0 + refused as f64));
    let names = thread_names(&gateway);
    let verify: Vec<_> = names.iter().filter(|name| name.starts_with("verify-")).collect();
    assert_eq!(verify, ["verify-0"], "{names:?}");
}

fn thread_names(gateway: &Gateway) -> Vec<String> {
    let tasks = format!("/proc/{}/task", gateway.process.pid().as_raw_nonzero());
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap();
    let names = fs::read_dir(tasks).unwrap().map(|task| name(task.unwrap()).trim().to_owned());
    names.collect()
}

#[test]
fn wrong_signatures_keep_no_honest_client_out() {
    // Far fewer may wait than hostile clients try to log in at once.
    let gateway = Keys::EdDsa.setup().set("auth.verifications_max", 4).start();
    let wrong = Keys::EdDsa.forged(7);
    let attack = || show_wrong_token(&gateway, HOSTILE, &wrong);
    let honest = || {
        let mut refused = 0;
        for user_id in 1..=60_u64 {
            let from = Ipv4Addr::new(127, 0, 0, 10 + u8::try_from(user_id % 3).unwrap());
            let mut phone = Phone::connect_tcp_from(gateway.clients(), from.into());
            match phone.try_login(user_id, &Keys::EdDsa.token(user_id, 0)) {
                Ok(_) => phone.assert_is_served(),
                Err(failure) => {
                    assert_eq!(failure.code, Some(Code::Overloaded));
                    refused += 1;
                }
            }
        }
        refused
    };
    let (_, refused) = beside(40, attack, honest);
    assert!(checks(&gateway.operator(), "refused") > 0.0, "more came than may wait");
    // With a chance of 1 in 1,024 one of the three addresses shares the hostile one's bucket.
    assert!(refused <= 20, "{refused} of 60 honest clients were refused");
}

/// Clients whose tokens have wrong signatures. At least `waiting` of these have not been checked yet.
fn send_wrong_tokens(gateway: &Gateway, clients: usize, waiting: f64) -> Vec<Phone> {
    let wrong = Keys::Rs256.forged(7);
    let send = |_| {
        let mut phone = gateway.connect();
        phone.send_login(7, &wrong);
        phone
    };
    let phones = (0..clients).map(send).collect();
    gateway.operator().wait_for_metric("tidegate_signatures_waiting", "", |n| n >= waiting);
    phones
}

#[test]
fn a_drain_ends_while_signatures_wait() {
    let mut gateway = Keys::Rs256.setup().set("auth.verify_threads", 1).start();
    let phones = send_wrong_tokens(&gateway, 300, 200.0);
    gateway.terminate();
    assert_eq!(gateway.process.wait().code(), Some(0));
    drop(phones);
}

#[test]
fn http_requests_with_wrong_signatures_keep_nobody_out() {
    let setup = with_http(Keys::Rs256.setup(), ROUTES).set("http.connections_max", 3);
    let gateway = setup.set("auth.verify_threads", 1).start();
    // Their address is that of the requests, whose signatures wait behind theirs.
    let phones = send_wrong_tokens(&gateway, 400, 300.0);
    let head = |token: &str| {
        format!("GET /echo?a=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
    };
    let wrong = head(&Keys::Rs256.forged(8));
    let mut hostile: Vec<_> = (0..3).map(|_| Raw::with(&gateway, &wrong)).collect();
    let mut newcomer = Raw::with(&gateway, "OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(newcomer.answer().unwrap().status, 204);
    closed(&gateway, "evicted", 1.0);
    assert!(hostile[0].answer().is_none(), "it kept its slot until its signature was checked");
    drop(phones);
}

#[test]
fn http_requests_have_their_signatures_checked_there_too() {
    let gateway = with_http(Keys::EdDsa.setup(), ROUTES).start();
    let (web, operator) = (Web::new(&gateway), gateway.operator());
    let ask = |token: &str| {
        web.ask(
            "POST",
            "/echo",
            &[("Authorization", &format!("Bearer {token}")), ("Content-Type", "application/json")],
            b"[1]",
        )
    };
    let good = Keys::EdDsa.token(7, 0);
    for _ in 0..2 {
        assert_eq!(ask(&good).ok(), "[1]");
    }
    // A session and a request have the same token.
    gateway.connect().login_with(7, &good);
    let wrong = ask(&Keys::EdDsa.forged(7));
    assert_eq!(wrong.code(401), 100);
    assert_eq!((checks(&operator, "valid"), checks(&operator, "known")), (1.0, 2.0));
    assert_eq!(checks(&operator, "invalid"), 1.0);
    let refused = operator.metric("tidegate_auth_failures_total", "\"signature\"");
    assert_eq!(refused, Some(1.0));
}

/// Prints how long honest clients' echoes take beside hostile logins:
///
/// ```sh
/// TIDEGATE_MEASURED=target/release/tidegate cargo test -p tidegate-tests --test logins -- --ignored --nocapture
/// ```
#[test]
#[ignore = "a measurement"]
fn measure_honest_clients_beside_hostile_logins() {
    let program = std::env::var_os("TIDEGATE_MEASURED").expect("TIDEGATE_MEASURED is a program");
    let keys = Keys::Rs256;
    let gateway = keys.setup().set("session.login", "many").program(Path::new(&program)).start();
    let log_in = |token: &str, user_id: u64| {
        let mut phone = gateway.connect();
        phone.login_with(user_id, token);
        phone
    };
    let mut honest: Vec<_> =
        (1..=5_u64).map(|user_id| log_in(&keys.token(user_id, 0), user_id)).collect();
    let repeated: Vec<_> = (11..=15_u64).map(|user_id| (user_id, keys.token(user_id, 0))).collect();
    let mut newcomers: Vec<_> =
        (101..=160).map(|user_id| (user_id, keys.token(user_id, 0))).collect();
    let wrong = keys.forged(7);
    println!(
        "echoes of 5 sessions, about one in a millisecond, for 5 s, and 20 first logins meanwhile"
    );
    println!("{:<36} {:>9} {:>9} {:>9}  logins", "beside", "p50 ms", "p99 ms", "max ms");
    report("nothing", &gateway, &mut honest, newcomers.split_off(40));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (user_id, token) in repeated.iter().cycle().take(20) {
            let mut phone = log_in(token, *user_id);
            let is_over = &is_over;
            // Sixteen are under way at a time.
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let asked: Vec<_> =
                        (0..16).map(|_| phone.send_login(*user_id, token)).collect();
                    asked.into_iter().for_each(|sequence| drop(phone.login_outcome(sequence)));
                }
            });
        }
        report(
            "20 sessions that repeat their token",
            &gateway,
            &mut honest,
            newcomers.split_off(20),
        );
        is_over.store(true, Ordering::Relaxed);
    });
    let attack = || show_wrong_token(&gateway, HOSTILE, &wrong);
    beside(100, attack, || {
        report("100 clients with wrong signatures", &gateway, &mut honest, newcomers);
    });
}

fn report(beside: &str, gateway: &Gateway, honest: &mut [Phone], newcomers: Vec<(u64, String)>) {
    let mut took = Vec::new();
    let mut logins = thread::scope(|scope| {
        let logins = scope.spawn(|| {
            let log_in = |(user_id, token): (u64, String)| {
                let mut phone = gateway.connect();
                let began = Instant::now();
                phone.login_with(user_id, &token);
                let took = began.elapsed();
                thread::sleep(Duration::from_millis(200));
                took
            };
            newcomers.into_iter().map(log_in).collect::<Vec<_>>()
        });
        let ends = Instant::now() + Duration::from_secs(5);
        let phones = honest.len();
        for turn in 0.. {
            let began = Instant::now();
            if began >= ends {
                break;
            }
            honest[turn % phones].ask(demo::ECHO, b"honest").unwrap();
            took.push(began.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        logins.join().unwrap()
    });
    let ms = |took: &mut [Duration], part: usize| {
        took.sort();
        took[(took.len() - 1) * part / 100].as_secs_f64() * 1e3
    };
    let [p50, p99, max] = [50, 99, 100].map(|part| ms(&mut took, part));
    let [login_p50, login_max] = [50, 100].map(|part| ms(&mut logins, part));
    println!(
        "{beside:<36} {p50:>9.3} {p99:>9.3} {max:>9.3}  p50 {login_p50:.1} ms, max {login_max:.1} ms"
    );
}
