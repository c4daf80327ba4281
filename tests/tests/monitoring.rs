//! The board and the rules of `deploy/`: promtool and Grafana's own types accept them, and a real Prometheus that scrapes a real
//! gateway finds something for each of their expressions.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tidegate_tests::deploy::{board, copy_folder, documents, project_file, read};
use tidegate_tests::http::{ROUTES, with_http};
use tidegate_tests::port::Port;
use tidegate_tests::process::Process;
use tidegate_tests::{Gateway, Redis, Setup, TIMEOUT, until};

const BOARD: &str = "deploy/grafana/tidegate.json";

fn promtool(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("promtool");
    let (status, said, log) = Process::run(command.args(arguments).current_dir(folder), "");
    (status.success(), said + &log)
}

/// The files for Prometheus, in a folder of their own.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder("deploy/prometheus", folder.path());
    folder
}

fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{} has no {from:?} any more", file.display());
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn promtool_accepts_the_rules_and_their_unit_tests() {
    let folder = copy();
    let (is_good, said) = promtool(folder.path(), &["check", "rules", "alerts.yml"]);
    assert!(is_good, "{said}");
    let (is_good, said) = promtool(folder.path(), &["test", "rules", "alerts_test.yml"]);
    assert!(is_good, "{said}");
    // The unit tests find a wrong rule.
    replace(&folder.path().join("alerts.yml"), "> 0.9\n", "> 0.96\n");
    let (is_good, said) = promtool(folder.path(), &["test", "rules", "alerts_test.yml"]);
    assert!(!is_good && said.contains("TidegateAlmostFull"), "{said}");
}

fn rules() -> Vec<Value> {
    let rules = documents(&read("deploy/prometheus/alerts.yml")).remove(0);
    rules["groups"][0]["rules"].as_array().unwrap().clone()
}

#[test]
fn each_alert_has_a_unit_test_and_a_chapter_of_the_runbook() {
    let (tests, runbook) = (read("deploy/prometheus/alerts_test.yml"), read("deploy/RUNBOOK.md"));
    let mut chapters: BTreeSet<_> =
        runbook.lines().filter_map(|line| line.strip_prefix("## Tidegate")).collect();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let evaluations = tests.matches(&format!("alertname: {name}\n")).count();
        assert!(evaluations >= 2, "{name}: one before it fires, and one that fires");
        assert!(chapters.remove(name.strip_prefix("Tidegate").unwrap()), "{name}");
        let link = rule["annotations"]["runbook_url"].as_str().unwrap();
        let chapter = format!("/deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert!(link.starts_with("https://") && link.ends_with(&chapter), "{link}");
    }
    assert!(chapters.is_empty(), "no alert has these names: {chapters:?}");
}

/// The configuration for Kubernetes names what deploy/kubernetes/production has.
#[test]
fn prometheus_in_kubernetes_looks_for_the_service_of_production() {
    let job = &documents(&read("deploy/prometheus/kubernetes.yml")).remove(0)["scrape_configs"][0];
    assert_eq!(job["job_name"], "tidegate");
    let document = |file: &str| documents(&read(&format!("deploy/kubernetes/{file}"))).remove(0);
    let namespace = &document("production/kustomization.yaml")["namespace"];
    assert_eq!(&job["kubernetes_sd_configs"][0]["namespaces"]["names"][0], namespace);
    let service = document("base/operators.yaml");
    let names = [&service["metadata"]["name"], &service["spec"]["ports"][0]["name"]];
    let kept = &job["relabel_configs"][0];
    assert_eq!(kept["action"], "keep");
    assert_eq!(kept["regex"], names.map(|name| name.as_str().unwrap()).join(";"));
}

#[test]
fn the_board_is_one_that_grafana_reads() {
    let (status, _, log) = Process::run(board().arg(project_file(BOARD)), "");
    assert!(status.success(), "{log}");
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("board.json");
    for (right, mistake) in [
        ("\"fillOpacity\"", "\"opacity\""),
        ("\"legendFormat\"", "\"legend\""),
        ("\"h\": 8", "\"h\": \"8\""),
    ] {
        fs::write(&wrong, read(BOARD).replace(right, mistake)).unwrap();
        let (status, _, log) = Process::run(board().arg(&wrong), "");
        assert!(!status.success() && log.contains("panels"), "{right}: {log}");
    }
}

/// A board whose panels hide each other is valid, too.
#[test]
fn no_panel_of_the_board_covers_another() {
    let board: Value = serde_json::from_str(&read(BOARD)).unwrap();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|of| panel["gridPos"][of].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{}", panel["title"]);
        }
    }
}

/// The board's queries, as Grafana sends them for all gateways.
fn queries() -> Vec<String> {
    let board: Value = serde_json::from_str(&read(BOARD)).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    let filled = |query: &str| {
        let query = query.replace("$__rate_interval", "30s").replace("$instance", ".*");
        assert!(!query.contains('$'), "{query}");
        query
    };
    queries.map(filled).collect()
}

/// The metrics of an expression.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = expression.split(|character| !is_part(character));
    let metrics =
        words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_"));
    metrics.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect()
}

/// The labels that an expression compares with: of which metric, the label and its values.
fn labels_of(expression: &str) -> Vec<(String, String, String)> {
    let mut labels = Vec::new();
    for (before, rest) in expression.match_indices('{').map(|(at, _)| expression.split_at(at)) {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let metric = before.rsplit(|character| !is_part(character)).next().unwrap();
        let selector = rest[1..].split('}').next().unwrap();
        // A comma is in no value.
        for matcher in selector.split(',').filter(|_| metric.starts_with("tidegate_")) {
            let (label, values) = matcher.trim().split_once(['=', '!']).unwrap();
            let values = values.trim_start_matches(['=', '~']).trim_matches('"');
            if !["job", "instance"].contains(&label) {
                let of_one = |value: &str| (metric.to_owned(), label.to_owned(), value.to_owned());
                labels.extend(values.split('|').map(of_one));
            }
        }
    }
    labels
}

#[test]
fn the_labels_of_an_expression_are_found() {
    let found = labels_of(
        r#"sum(tidegate_a_total{job="tidegate", code=~"1|2"}) / tidegate_b{x!~"y"} + other{z="0"}"#,
    );
    let expected = [("tidegate_a_total", "code", "1"), ("tidegate_a_total", "code", "2")];
    let expected = expected.into_iter().chain([("tidegate_b", "x", "y")]);
    let owned = |(metric, label, value): (&str, &str, &str)| {
        (metric.to_owned(), label.to_owned(), value.to_owned())
    };
    assert_eq!(found, expected.map(owned).collect::<Vec<_>>());
}

/// A gateway that has all metrics.
fn gateway(redis: &Redis) -> Gateway {
    let setup = with_http(Setup::demo().wires(), ROUTES).set("redis.url", redis.url());
    setup.set("shards", 2).start()
}

/// Prometheus with the configuration of `deploy/`, which scrapes one gateway.
struct Prometheus {
    _folder: TempDir,
    port: Port,
    _process: Process,
}

impl Prometheus {
    fn start(gateway: &Gateway) -> Self {
        let folder = copy();
        let config = folder.path().join("prometheus.yml");
        let token = gateway.folder().join(".tidegate/admin.token");
        replace(&config, "/etc/prometheus/tidegate.token", token.to_str().unwrap());
        replace(&config, "10.0.0.11:7401", &gateway.operators().to_string());
        replace(&config, "          - 10.0.0.12:7401\n", "");
        Self::run(folder, "prometheus.yml")
    }

    fn run(folder: TempDir, config: &str) -> Self {
        let (is_good, said) = promtool(folder.path(), &["check", "config", config]);
        assert!(is_good, "{said}");
        let (config, port) = (folder.path().join(config), Port::reserve());
        replace(&config, "interval: 15s", "interval: 200ms");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
        let process = Process::start(&mut command, "");
        process.stderr.wait_for("Server is ready to receive web requests");
        Self { _folder: folder, port, _process: process }
    }

    fn get(&self, path: &str, query: &str) -> Value {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .build()
            .into();
        let url = format!("http://127.0.0.1:{}/api/v1/{path}", self.port.number());
        let request =
            if query.is_empty() { agent.get(url) } else { agent.get(url).query("query", query) };
        let text = request.call().unwrap().body_mut().read_to_string().unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"].clone()
    }

    /// The series that a query finds now.
    fn series(&self, query: &str) -> Vec<Value> {
        self.get("query", query)["result"].as_array().unwrap().clone()
    }

    /// The alerts, as Prometheus evaluates them.
    fn alerts(&self) -> Vec<Value> {
        self.get("rules", "")["groups"][0]["rules"].as_array().unwrap().clone()
    }

    fn state(&self, alert: &str) -> Value {
        let alerts = self.alerts();
        alerts.iter().find(|rule| rule["name"] == alert).unwrap()["state"].clone()
    }
}

#[test]
fn prometheus_finds_something_for_each_expression_of_board_and_rules() {
    let redis = Redis::single();
    let mut gateway = gateway(&redis);
    gateway.login(7).join("quiz", 0);
    let exported = until("the registry of gateways was read", || {
        let (_, text) = gateway.operator().get("/metrics");
        text.contains("\n# TYPE tidegate_gateways_gone ").then_some(text)
    });
    let rules = rules();
    let expressions = rules.iter().map(|rule| rule["expr"].as_str().unwrap().to_owned());
    let expressions: Vec<_> = expressions.chain(queries()).collect();
    let metrics: BTreeSet<_> =
        expressions.iter().flat_map(|expression| metrics_of(expression)).collect();
    let labels: BTreeSet<_> =
        expressions.iter().flat_map(|expression| labels_of(expression)).collect();
    let is_shown = |(metric, label, value): &&(String, String, String)| {
        let (metric, label) = (format!("{metric}{{"), format!("{label}=\"{value}\""));
        exported.lines().any(|line| line.starts_with(&metric) && line.contains(&label))
    };
    let unknown: Vec<_> = labels.iter().filter(|label| !is_shown(label)).collect();
    assert!(unknown.is_empty(), "no gateway has {unknown:?}");
    let is_exported = |metric: &String| exported.contains(&format!("\n# TYPE {metric} "));
    let missing: Vec<_> = metrics.iter().filter(|metric| !is_exported(metric)).collect();
    assert!(missing.is_empty(), "no gateway has {missing:?}");
    let prometheus = Prometheus::start(&gateway);
    // A rate needs two scrapes.
    until("a rate", || prometheus.series("rate(tidegate_calls_total[30s])").pop());
    let finds_nothing = |query: &String| prometheus.series(query).is_empty();
    let empty: Vec<_> = queries().into_iter().filter(finds_nothing).collect();
    assert!(empty.is_empty(), "nothing for {empty:#?}");
    // Not at once: the connections to Redis are made one after the other.
    until("each rule is evaluated, and finds nothing wrong", || {
        let alerts = prometheus.alerts();
        assert_eq!(alerts.len(), rules.len());
        let is_good = |rule: &Value| rule["health"] == "ok" && rule["state"] == "inactive";
        alerts.iter().all(is_good).then_some(())
    });
    gateway.process.kill();
    until("the alert", || (prometheus.state("TidegateDown") == "pending").then_some(()));
}

/// Debian's Prometheus can't ask Kubernetes, so the targets are given with the labels that they have there.
#[test]
fn prometheus_in_kubernetes_scrapes_the_operators_port_of_each_pod_alone() {
    let folder = copy();
    let config = folder.path().join("kubernetes.yml");
    let token = folder.path().join("tidegate.token");
    fs::write(&token, "secret").unwrap();
    let mounted = "/etc/prometheus/secrets/tidegate-token/tidegate.token";
    replace(&config, mounted, token.to_str().unwrap());
    let discovery = "    kubernetes_sd_configs:\n      - role: endpoints\n        namespaces:\n          names: [tidegate]\n";
    let target = |address: &str, service: &str, port: &str| {
        let labels = [
            ("namespace", "tidegate"),
            ("service_name", service),
            ("endpoint_port_name", port),
            ("pod_name", "tidegate-5b4-x"),
        ];
        let labels = labels.map(|(name, value)| format!("__meta_kubernetes_{name}: {value}"));
        format!("      - targets: [\"{address}\"]\n        labels: {{ {} }}\n", labels.join(", "))
    };
    let targets = [
        target("127.0.0.1:1", "tidegate-operators", "operators"),
        target("127.0.0.1:2", "tidegate", "tls"),
        target("127.0.0.1:3", "tidegate", "wss"),
    ];
    replace(&config, discovery, &format!("    static_configs:\n{}", targets.concat()));
    let prometheus = Prometheus::run(folder, "kubernetes.yml");
    let found = until("targets", || {
        let found = prometheus.get("targets", "")["activeTargets"].as_array().unwrap().clone();
        (!found.is_empty()).then_some(found)
    });
    let [target] = &found[..] else { panic!("{found:?}") };
    assert_eq!(target["scrapeUrl"], "http://127.0.0.1:1/metrics");
    let labels = &target["labels"];
    let labels = ["job", "instance", "namespace"].map(|name| labels[name].as_str().unwrap());
    assert_eq!(labels, ["tidegate", "tidegate-5b4-x", "tidegate"]);
}

/// What the rules assume of labels: an alert whose condition is met becomes pending.
#[test]
fn an_alert_begins_when_redis_goes_away() {
    let mut redis = Redis::single();
    let gateway = gateway(&redis);
    let prometheus = Prometheus::start(&gateway);
    let links = "tidegate_redis_up == 1 and on (instance) tidegate_presence_up == 1";
    until("both connections", || prometheus.series(links).pop());
    until("no alert", || (prometheus.state("TidegateRedisAway") == "inactive").then_some(()));
    redis.kill();
    until("the alert", || (prometheus.state("TidegateRedisAway") == "pending").then_some(()));
}
