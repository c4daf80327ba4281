//! What an operator reads when a gateway can't use its Redis, and connections with TLS.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use tidegate_tests::port::Port;
use tidegate_tests::{Gateway, Redis, RedisSetup, Setup, until};

/// A gateway with this Redis URL.
fn start(url: &str) -> Gateway {
    Setup::demo().shards(1).set("redis.url", format!("\"{url}\"")).start()
}

/// Why the connection for pushes failed last, as operators see it.
fn last_error(gateway: &Gateway) -> String {
    let operator = gateway.operator();
    until("an attempt has failed", || {
        let cluster = operator.json("/cluster");
        cluster["redis"][0]["last_error"].as_str().map(str::to_owned)
    })
}

/// A server that speaks HTTP.
fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    port
}

#[test]
fn the_error_of_a_redis_that_can_not_be_used_says_what_to_do() {
    let plain = Redis::single();
    let locked = RedisSetup::default().password("right").line("user less on >pw ~* &* +@all -role");
    let locked = locked.line("user none on >pw ~* &* +@all -function -fcall").start();
    let (plain, locked, web) = (plain.port(), locked.port(), web_server());
    let cases = [
        (format!("rediss://127.0.0.1:{plain}"), "may not speak TLS"),
        (format!("redis://127.0.0.1:{locked}"), "Set redis.password_file"),
        (format!("redis-cluster://127.0.0.1:{locked}"), "Set redis.password_file"),
        (format!("redis-sentinel://127.0.0.1:{locked}/show"), "the Sentinels must have none"),
        (format!("redis://:wrong@127.0.0.1:{locked}"), "check the user in the URL"),
        (format!("redis://less:pw@127.0.0.1:{locked}"), "'role' command: the user's access rules"),
        (format!("redis://none:pw@127.0.0.1:{locked}"), "the user's access rules"),
        (format!("redis://127.0.0.1:{web}"), "what answers is not Redis"),
        (format!("redis-cluster://127.0.0.1:{web}"), "what answers is not Redis"),
        (format!("rediss://127.0.0.1:{web}"), "may not speak TLS"),
        (format!("redis-cluster://127.0.0.1:{plain}"), "Use redis:// instead of redis-cluster://"),
        (format!("redis-sentinel://127.0.0.1:{plain}/show"), "what answers is not a Sentinel"),
    ];
    let starts =
        cases.map(|(url, said)| thread::spawn(move || (last_error(&start(&url)), url, said)));
    for start in starts {
        let (error, url, said) = start.join().unwrap();
        assert!(error.contains(said) && !error.contains('\n'), "{url}: {error}");
    }
}

#[test]
fn a_password_for_a_redis_without_one_is_warned_about() {
    let redis = Redis::single();
    let gateway = start(&format!("redis://:pw@127.0.0.1:{}", redis.port()));
    gateway.operator().wait_for_metric("tidegate_redis_up", "", |up| up == 1.0);
    gateway.process.stderr.find("the warning", |log| {
        log.contains("Redis has no password, though one is configured").then_some(())
    });
}

/// Makes a certificate authority, and a certificate of it for 127.0.0.1.
fn make_certificates(folder: &Path, authority: &str) {
    let openssl = |line: &str| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN={authority}"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=redis"));
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    );
}

#[test]
fn a_redis_with_tls_is_used_if_its_certificate_is_of_the_configured_authority() {
    // The last one has the name of the first.
    let [own, other, same_name] = ["one", "another", "one"].map(|authority| {
        let folder = tempfile::tempdir().unwrap();
        make_certificates(folder.path(), authority);
        folder
    });
    let file = |name: &str| own.path().join(name).display().to_string();
    let port = Port::reserve();
    let redis = RedisSetup::default()
        .line(&format!("tls-port {}", port.number()))
        .line(&format!("tls-cert-file {}", file("server.pem")))
        .line(&format!("tls-key-file {}", file("server.key")))
        .line("tls-auth-clients no")
        .start();
    let url = format!("rediss://127.0.0.1:{}", port.number());
    let setup = |ca: &Path| {
        let ca = ca.join("ca.pem");
        let setup = Setup::demo().shards(1).set("redis.url", format!("\"{url}\""));
        setup.set("redis.ca_file", format!("\"{}\"", ca.display()))
    };
    // Commands and channels.
    let gateway = setup(own.path()).start();
    gateway.operator().wait_for_metric("tidegate_redis_up", "", |up| up == 1.0);
    gateway.operator().wait_for_metric("tidegate_shared_rooms_behind", "", |behind| behind == 0.0);
    let mut phone = gateway.login(7);
    let said = redis.cli(&["FCALL", "tidegate_publish", "1", "tg1:room:{r*}", "10", "hello"]);
    assert!(said.starts_with("ok"), "{said}");
    assert_eq!(&phone.push().biz_data[..], b"hello");
    // Another authority's certificate, and none that this machine trusts.
    for folder in [&other, &same_name] {
        let error = last_error(&setup(folder.path()).start());
        assert!(error.contains("no certificate in redis.ca_file has signed"), "{error}");
    }
    let error = last_error(&start(&url));
    assert!(error.contains("Set redis.ca_file"), "{error}");
    let error = last_error(&start(&format!("redis://127.0.0.1:{}", port.number())));
    assert!(error.contains("rediss:// instead of redis://"), "{error}");
}
