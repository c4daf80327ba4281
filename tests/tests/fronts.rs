//! nginx and HAProxy in front of gateways, with the examples of `deploy/`: clients come through them on each wire, the gateway sees
//! who they are, and nobody can lie about it.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConfig;
use tidegate_tests::front::{Balancer, Site, has_ipv6};
use tidegate_tests::phone::End;
use tidegate_tests::process::Process;
use tidegate_tests::wire::client_config;
use tidegate_tests::{Code, Gateway, Phone, Setup, Wire, until};

/// An address that nobody here has.
const LIE: &str = "198.18.0.1";

/// A header of the PROXY protocol that says that the client is [`LIE`].
const LYING_HEADER: &str = "PROXY TCP4 198.18.0.1 198.51.100.1 5000 7400\r\n";

/// The ports where a balancer takes clients with sessions, their wire, and whether the gateway sees who they are.
fn session_ports(balancer: Balancer) -> &'static [(u16, Wire, bool)] {
    match balancer {
        Balancer::Nginx => &[
            (7443, Wire::Tls, true),
            (7444, Wire::Tls, true),
            (7481, Wire::Wss, true),
            (8443, Wire::Wss, false),
        ],
        Balancer::Haproxy => {
            &[(7443, Wire::Tls, true), (7444, Wire::Tls, true), (8443, Wire::Wss, true)]
        }
    }
}

fn trusting(site: &Site) -> impl Fn(&str) -> Arc<ClientConfig> {
    let certificate = site.certificate();
    move |alpn| client_config(&[&certificate], alpn)
}

/// Sends a request of HTTP over TLS, and returns all of the answer.
fn ask(site: &Site, source: Ipv4Addr, request: &str) -> String {
    let config = |_: &str| trusting(site)("http/1.1");
    let mut client = Phone::connect_from(source, site.address(8443), Wire::Tls, config).unwrap();
    client.send_bytes(request.as_bytes());
    String::from_utf8(client.read_bytes().unwrap()).unwrap()
}

fn get(headers: &str) -> String {
    format!(
        "GET /quiz/activity/list?page=2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    )
}

/// How the log names a client behind a balancer.
fn named(client: &str) -> String {
    format!("client={client}:")
}

fn log_of(gateway: &Gateway) -> String {
    gateway.process.stderr.so_far()
}

fn closed(gateway: &Gateway, cause: &str, count: f64) {
    let (name, label) = ("tidegate_connections_closed_total", format!("\"{cause}\""));
    gateway.operator().wait_for_metric(name, &label, |value| value == count);
}

#[test]
fn the_balancers_accept_the_examples_and_find_a_wrong_one() {
    for balancer in Balancer::ALL {
        let site = Site::new(balancer);
        let text = site.config();
        let said = site.check(&text).unwrap_or_else(|said| panic!("{said}"));
        assert!(!said.to_lowercase().contains("warn"), "{said}");
        let wrong = text.replace(&site.gateway_address(1, 7400).to_string(), "127.0.0.11:99999");
        site.check(&wrong).unwrap_err();
    }
}

/// What a file sets for these names, in seconds.
fn seconds(text: &str, names: &[&str]) -> Vec<u64> {
    let lines = text.lines().map(|line| line.trim().trim_end_matches(';'));
    let set = lines.filter_map(|line| {
        let value = names.iter().find_map(|name| line.strip_prefix(name))?;
        value.trim().strip_suffix('s')?.parse().ok()
    });
    set.collect()
}

#[test]
fn a_balancer_waits_longer_for_a_silent_client_than_the_gateway() {
    let gateway = Setup::demo().start();
    let stats = gateway.operator().json("/stats");
    let idle_ms = stats["gateway"]["config"]["session"]["idle_timeout_ms"].as_u64().unwrap();
    let timeouts = [
        (Balancer::Nginx, &["proxy_timeout ", "proxy_send_timeout "][..], 2),
        (Balancer::Haproxy, &["timeout client ", "timeout tunnel "], 2),
    ];
    for (balancer, names, count) in timeouts {
        let seconds = seconds(&balancer.example(), names);
        assert_eq!(seconds.len(), count, "{balancer:?}");
        assert!(
            seconds.iter().all(|seconds| seconds * 1000 > idle_ms),
            "{balancer:?}: {seconds:?}"
        );
    }
    // Those that are shorter in one place: for requests over HTTP.
    for (balancer, name) in
        [(Balancer::Nginx, "proxy_read_timeout "), (Balancer::Haproxy, "timeout server ")]
    {
        let mut seconds = seconds(&balancer.example(), &[name]);
        seconds.sort_unstable();
        assert!(matches!(seconds[..], [10, long] if long * 1000 > idle_ms), "{seconds:?}");
    }
}

#[test]
fn clients_come_through_each_balancer_on_each_wire_and_the_gateway_sees_who_they_are() {
    for balancer in Balancer::ALL {
        let site = Site::new(balancer);
        // The other gateway of the example is not there: the balancer connects everybody to this one.
        let gateway = site.gateway(1).start();
        let _balancer = site.start();
        for (user_id, (port, wire, is_seen)) in (7_u64..).zip(session_ports(balancer)) {
            let source = Ipv4Addr::new(127, 0, 7, u8::try_from(user_id).unwrap());
            let address = site.address(*port);
            let phone = Phone::connect_from(source, address, *wire, trusting(&site));
            let mut phone = phone.unwrap_or_else(|error| panic!("{balancer:?} {port}: {error}"));
            phone.login(user_id);
            phone.assert_is_served();
            phone.heartbeat();
            let large = vec![7; 50_000];
            assert_eq!(phone.ask(1, &large), Ok(large.into()), "{balancer:?} {port}");
            // It is in the log's line of the login.
            let name = named(&source.to_string());
            if *is_seen {
                gateway.process.stderr.wait_for(&name);
            } else {
                gateway.process.stderr.wait_for(&format!("user_id={user_id}"));
                assert!(!log_of(&gateway).contains(&name), "deploy/README.md says otherwise");
            }
            assert_eq!(gateway.operator().kick(user_id), 1);
            phone.goodbye(Code::Kicked);
            let code = (*wire == Wire::Wss).then_some(1000);
            assert_eq!(phone.close_code(), code, "{balancer:?} {port}");
        }
        let source = Ipv4Addr::new(127, 0, 7, 99);
        let answer = ask(&site, source, &get("Authorization: Bearer token-7\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{balancer:?}: {answer}");
        assert!(answer.contains(r#"{"page":"2"}"#), "{balancer:?}: {answer}");
        let client = if balancer == Balancer::Haproxy { "127.0.7.99" } else { "127.0.0.1" };
        gateway.process.stderr.find("the request", |log| {
            let line = log.lines().find(|line| line.contains("an HTTP request was answered"))?;
            assert!(line.contains(&named(client)), "{line}");
            Some(())
        });
    }
}

#[test]
fn clients_come_through_each_balancer_over_ipv6() {
    if !has_ipv6() {
        return;
    }
    for balancer in Balancer::ALL {
        let site = Site::new(balancer);
        let gateway = site.gateway(1).start();
        let _balancer = site.start();
        for (user_id, (port, wire, is_seen)) in (7_u64..).zip(session_ports(balancer)) {
            let phone = Phone::connect_over(site.address_v6(*port), *wire, trusting(&site));
            let mut phone = phone.unwrap_or_else(|error| panic!("{balancer:?} {port}: {error}"));
            phone.login(user_id);
            phone.assert_is_served();
            if *is_seen {
                let user = format!("user_id={user_id}");
                gateway.process.stderr.find("the client's address", |log| {
                    log.lines()
                        .find(|line| line.contains(&user) && line.contains("client=[::1]:"))
                        .map(drop)
                });
            }
        }
    }
}

#[test]
fn the_example_of_a_gateway_listens_for_the_balancer_alone() {
    let site = Site::new(Balancer::Haproxy);
    let gateway = site.gateway(1).start();
    for port in [7482, 7492] {
        let refused = TcpStream::connect(site.gateway_address(1, port)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{port}");
    }
    gateway.process.stdout.wait_for("Ctrl-C ends the gateway.");
    let said = gateway.process.stdout.so_far();
    assert!(!said.contains("listening for clients on "), "without a PROXY header: {said}");
}

#[test]
fn nobody_can_say_that_a_client_is_another() {
    for balancer in Balancer::ALL {
        let site = Site::new(balancer);
        let gateway = site.gateway(1).start();
        let _balancer = site.start();
        // Past the balancer, from an address that is not its own.
        let source = Ipv4Addr::new(127, 0, 7, 66);
        for port in [7400, 7480] {
            let address = site.gateway_address(1, port);
            let plain = |_: &str| unreachable!("no TLS");
            let mut phone = Phone::connect_from(source, address, Wire::Tcp, plain).unwrap();
            // It may be closed already.
            drop(phone.try_send_bytes(LYING_HEADER.as_bytes()));
            phone.end();
        }
        closed(&gateway, "untrusted", 2.0);
        // Through it: its own header comes first, and this one is no frame.
        let address = site.address(7443);
        let mut phone = Phone::connect_from(source, address, Wire::Tls, trusting(&site)).unwrap();
        phone.send_bytes(LYING_HEADER.as_bytes());
        drop(phone.try_send_bytes(&[b'x'; 80]));
        assert!(matches!(phone.end(), End::Closed | End::Reset));
        closed(&gateway, "malformed", 1.0);
        gateway.process.stderr.wait_for(&named("127.0.7.66"));
        // With the headers of HTTP, which the gateway does not read.
        let token = "Authorization: Bearer token-7\r\n";
        let request = get(&format!("{token}X-Forwarded-For: {LIE}\r\nForwarded: for={LIE}\r\n"));
        assert!(ask(&site, source, &request).starts_with("HTTP/1.1 200 "));
        gateway.process.stderr.wait_for("an HTTP request was answered");
        assert!(!log_of(&gateway).contains(&named(LIE)), "{balancer:?}: a lie is believed");
    }
}

fn has_session(gateway: &Gateway) -> bool {
    gateway.operator().json("/stats")["totals"]["sessions"] == 1
}

/// What HAProxy last said of a gateway in each of its backends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Up,
    /// It answers /readyz with 503.
    Draining,
    /// For this or another reason.
    Down,
}

/// Waits until HAProxy finds this health of a gateway, in each backend.
fn wait_for_health(haproxy: &Process, number: u8, health: Health) {
    let backends = ["gateways_tcp", "gateways_tls", "gateways_ws", "gateways_http"];
    let is_so = |log: &str, backend: &str| {
        let server = format!("Server {backend}/gateway{number} is ");
        let last = log.lines().filter_map(|line| line.split_once(&server)).next_back();
        let last = last.map(|(_, state)| state);
        match health {
            // The balancer begins so.
            Health::Up => last.is_none_or(|state| state.starts_with("UP")),
            Health::Draining => {
                last.is_some_and(|state| state.starts_with("DOWN") && state.contains("code: 503"))
            }
            Health::Down => last.is_some_and(|state| state.starts_with("DOWN")),
        }
    };
    haproxy.stdout.find("the health of a gateway", |log| {
        backends.iter().all(|backend| is_so(log, backend)).then_some(())
    });
}

#[test]
fn a_client_of_a_gateway_that_drains_comes_back_to_the_other() {
    for balancer in Balancer::ALL {
        let site = Site::new(balancer);
        let mut gateways: Vec<_> = [1, 2].map(|number| site.gateway(number).start()).into();
        let front = site.start();
        let wait_for = |number: u8, health: Health| {
            if balancer == Balancer::Haproxy {
                wait_for_health(&front, number, health);
            }
        };
        for (port, wire, _) in session_ports(balancer) {
            [1, 2].into_iter().for_each(|number| wait_for(number, Health::Up));
            let connect = || Phone::connect_over(site.address(*port), *wire, trusting(&site));
            let mut phone = connect().unwrap();
            phone.login(7);
            let index =
                until("a gateway has the session", || gateways.iter().position(has_session));
            let mut drained = gateways.remove(index);
            drained.terminate();
            phone.goodbye(Code::Draining);
            assert_eq!(drained.process.wait().code(), Some(0));
            let mut phone = connect().unwrap();
            phone.login(7);
            phone.assert_is_served();
            until("the other gateway has the session", || has_session(&gateways[0]).then_some(()));
            drop(phone);
            gateways[0].operator().wait_for_total("sessions", 0);
            // The next client finds two gateways again. Otherwise the balancer might find out later that this one had ended.
            let number = if drained.operators() == site.gateway_address(1, 7401) { 1 } else { 2 };
            wait_for(number, Health::Down);
            gateways.push(site.gateway(number).start());
        }
    }
}

/// Without these checks HAProxy would still find the other gateway, but only when this one refuses a connection.
#[test]
fn haproxy_asks_the_gateways_whether_they_drain() {
    let site = Site::new(Balancer::Haproxy);
    let gateway = |number: u8| {
        let setup = site.gateway(number).set("shutdown.drain_timeout_ms", 60_000);
        setup.set("limits.open_timeout_ms", 60_000)
    };
    let (mut first, second) = (gateway(1).start(), gateway(2).start());
    let haproxy = site.start();
    [1, 2].into_iter().for_each(|number| wait_for_health(&haproxy, number, Health::Up));
    // A client that does not continue its TLS handshake holds the drain open.
    let plain = |_: &str| unreachable!("no TLS");
    let mut slow = Phone::connect_over(site.gateway_address(1, 7444), Wire::Tcp, plain).unwrap();
    slow.send_bytes(b"PROXY TCP4 127.0.7.1 198.51.100.1 5000 7444\r\n");
    first.terminate();
    wait_for_health(&haproxy, 1, Health::Draining);
    assert!(first.process.is_running(), "it drains");
    let connect = || Phone::connect_over(site.address(7443), Wire::Tls, trusting(&site)).unwrap();
    let mut phones: Vec<_> = (1..=4).map(|user_id| (user_id, connect())).collect();
    for (user_id, phone) in &mut phones {
        phone.login(*user_id);
    }
    second.operator().wait_for_total("sessions", 4);
    drop(slow);
    assert_eq!(first.process.wait().code(), Some(0));
    let _first = gateway(1).start();
    wait_for_health(&haproxy, 1, Health::Up);
    // The gateway with the fewest connections is the one that was restarted.
    connect().login(5);
    assert_eq!(second.operator().json("/stats")["totals"]["sessions"], 4);
}

/// The address of a socket without a balancer's header is nothing to rely on: this is what the listener for it says.
#[test]
fn a_listener_without_proxy_headers_takes_none() {
    let site = Site::new(Balancer::Nginx);
    let gateway = site.gateway(1).start();
    let address: SocketAddr = site.gateway_address(1, 7482);
    let mut phone = Phone::connect_over(address, Wire::Tcp, |_| unreachable!("no TLS")).unwrap();
    phone.send_bytes(LYING_HEADER.as_bytes());
    let answer = phone.read_bytes().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    assert!(!log_of(&gateway).contains(LIE), "a lie is in the log");
}
