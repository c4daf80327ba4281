//! The container and the manifests of `deploy/`: their linters accept them, their parts fit each other, and the real gateway runs with
//! their configuration.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;
use tidegate_tests::deploy::{
    copy_folder, documents, hadolint, kustomize, project_file, read, validate_manifests,
};
use tidegate_tests::port::Port;
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;
use tidegate_tests::{Gateway, Operator, Setup, Wire, until, wire};

const OVERLAYS: [&str; 2] = ["development", "production"];

#[test]
fn hadolint_accepts_the_recipe_and_finds_a_wrong_one() {
    let recipe = read("deploy/container/Dockerfile");
    let (status, said, log) = Process::run(hadolint().arg("-"), &recipe);
    assert!(status.success() && said.is_empty(), "{said}{log}");
    let wrong = recipe.replace("USER 7400:7400", "USER root");
    let (status, said, _) = Process::run(hadolint().arg("-"), &wrong);
    assert!(!status.success() && said.contains("root"), "{said}");
}

/// What the build of the image leaves out: the patterns of Dockerfile.dockerignore, and those of what it takes all the same.
fn left_out(ignore: &str) -> (Vec<&str>, Vec<&str>) {
    let lines = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (taken, out): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('!'));
    (out, taken.iter().map(|line| &line[1..]).collect())
}

/// Whether one of these patterns is for a file, by the forms that Dockerfile.dockerignore uses: `folder`, `**/name`, `**/*.end` and
/// `folder/*.end`.
fn matches(patterns: &[&str], file: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.rsplit_once('*') {
        _ if pattern.starts_with("**/*.") => file.ends_with(&pattern[4..]),
        _ if pattern.starts_with("**/") => file.split('/').any(|part| part == &pattern[3..]),
        Some((folder, end)) => file.starts_with(folder) && file.ends_with(end),
        None => file == *pattern || file.starts_with(&format!("{pattern}/")),
    })
}

#[test]
fn the_recipe_copies_files_that_are_there_and_not_ignored_and_no_secrets() {
    let recipe = read("deploy/container/Dockerfile");
    let copied = recipe.lines().filter_map(|line| line.strip_prefix("COPY deploy/"));
    let files: Vec<_> = copied.map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(files, ["container/healthcheck"]);
    let healthcheck = project_file("deploy/container/healthcheck");
    assert_eq!(fs::metadata(healthcheck).unwrap().permissions().mode() & 0o111, 0o111);
    let ignore = read("deploy/container/Dockerfile.dockerignore");
    let (out, taken) = left_out(&ignore);
    let is_left_out = |file: &str| matches(&out, file) && !matches(&taken, file);
    for secret in ["key.pem", "admin.token", "deploy/ticket.key", ".tidegate/admin.token"] {
        assert!(is_left_out(secret), "{secret} would be in the builder's cache");
    }
    // The recipe builds from these.
    let mut command = Command::new("git");
    command.args(["ls-files", "--", "deploy/container", "Cargo.*", "gateway", "tools", "tls"]);
    let (status, files, log) = Process::run(command.current_dir(project_file("")), "");
    assert!(status.success() && files.contains("deploy/container/healthcheck\n"), "{log}");
    let missing: Vec<_> = files.lines().filter(|file| is_left_out(file)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Runs a program as a container's runtime does: with the container's seccomp profile.
fn in_a_container(program: &Path) -> Command {
    let mut command = Command::new(&programs().confine);
    if cfg!(target_arch = "x86_64") {
        command.arg(format!("--seccomp={}", project_file("sysctl/seccomp.json").display()));
    }
    command.arg(program);
    command
}

/// Runs the image's health check.
fn health_check(port: u16) -> (bool, String) {
    let mut command = in_a_container(&project_file("deploy/container/healthcheck"));
    let (status, _, log) = Process::run(command.arg(port.to_string()), "");
    (status.success(), log)
}

/// `docker exec NAME tide ...` and `docker exec NAME sh` have the container's profile, too.
#[test]
fn an_operator_uses_tide_and_a_shell_in_the_container() {
    let gateway = Setup::demo().start();
    let admin = gateway.operators().to_string();
    let run = |program: &Path, arguments: &[&str]| {
        let mut command = in_a_container(program);
        Process::run(command.args(arguments).current_dir(gateway.folder()), "")
    };
    let tide = &programs().tide;
    let (status, stats, log) = run(tide, &["stats", "--admin", &admin]);
    assert!(status.success() && stats.contains("connections"), "{stats}{log}");
    // It asks a child whether there is io_uring.
    let doctor = ["doctor", "--json", "--connections", "10"];
    let (confined, report, log) = run(tide, &doctor);
    let (free, expected, _) = gateway.tide(&doctor, "");
    let probe = |report: &str| {
        let report: Value = serde_json::from_str(report).unwrap();
        report["basis"].as_array().unwrap().clone()
    };
    assert_eq!(probe(&report), probe(&expected), "{log}");
    assert_eq!(confined.code(), free.code(), "{report}{log}");
    let child = format!("'{}' --version; echo \"ended with $?\"", tide.display());
    let (_, said, log) = run(Path::new("/bin/sh"), &["-c", &child]);
    assert!(said.contains("ended with 0"), "{said}{log}");
}

#[test]
fn the_containers_health_check_finds_a_gateway_and_no_gateway() {
    let gateway = Setup::demo().start();
    let (is_healthy, log) = health_check(gateway.operators().port());
    assert!(is_healthy, "{log}");
    let (is_healthy, log) = health_check(Port::reserve().number());
    assert!(!is_healthy && log.contains("Connection refused"), "{log}");
}

/// A gateway whose only shard is blocked: `/healthz` says 503.
#[test]
fn the_containers_health_check_finds_a_gateway_that_hangs() {
    // The demo's handler on a shard's thread never blocks; the example's does.
    let setup = Setup::blocking(60_000).set("backends.blocking.placement", "shard");
    let gateway = setup.start();
    let mut phone = gateway.login(7);
    phone.send(201, b"");
    until("the gateway is unhealthy", || {
        let (is_healthy, _) = health_check(gateway.operators().port());
        (!is_healthy).then_some(())
    });
}

#[test]
fn shellcheck_accepts_the_health_check() {
    let mut command = Command::new("shellcheck");
    let (status, said, _) =
        Process::run(command.arg(project_file("deploy/container/healthcheck")), "");
    assert!(status.success(), "{said}");
}

/// The longest time that a gateway's drain takes, in milliseconds.
fn drain_ms(gateway: &Gateway, token: &str) -> u64 {
    let stats = Operator::new(gateway.operators(), token).json("/stats");
    let shutdown = &stats["gateway"]["config"]["shutdown"];
    let parts = ["ready_grace_ms", "goodbye_window_ms", "drain_timeout_ms"];
    5000 + parts.map(|part| shutdown[part].as_u64().unwrap()).iter().sum::<u64>()
}

/// The longest time from a drain's first goodbye until its last client may come back, in milliseconds.
fn goodbyes_ms(gateway: &Gateway, token: &str) -> u64 {
    let stats = Operator::new(gateway.operators(), token).json("/stats");
    let shutdown = &stats["gateway"]["config"]["shutdown"];
    let [window, retry] =
        ["goodbye_window_ms", "retry_after_ms"].map(|key| shutdown[key].as_u64().unwrap());
    // A client is asked to wait for up to twice as long.
    if window == 0 { 0 } else { window + 2 * retry }
}

#[test]
fn docker_and_systemd_wait_for_a_drain_with_a_grace() {
    let gateway = Setup::demo().set("shutdown.ready_grace_ms", 10_000).start();
    let token = fs::read_to_string(gateway.folder().join(".tidegate/admin.token")).unwrap();
    let drain_ms = drain_ms(&gateway, token.trim());
    assert_eq!(drain_ms, 28_000, "the files say so");
    let compose = documents(&read("deploy/container/compose.yaml")).remove(0);
    let unit = read("sysctl/tidegate.service");
    let unit = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
    let compose = compose["services"]["tidegate"]["stop_grace_period"].as_str().unwrap();
    for seconds in [unit.unwrap(), compose.trim_end_matches('s')] {
        assert!(seconds.parse::<u64>().unwrap() * 1000 > drain_ms, "{seconds}");
    }
}

/// What the compose file mounts and names is there.
#[test]
fn the_compose_file_names_a_profile_that_is_there() {
    let compose = documents(&read("deploy/container/compose.yaml")).remove(0);
    let service = &compose["services"]["tidegate"];
    let options = service["security_opt"].as_array().unwrap();
    let profile = options.iter().find_map(|option| option.as_str()?.strip_prefix("seccomp="));
    assert!(project_file("deploy/container").join(profile.unwrap()).exists());
    assert_eq!(service["read_only"], true);
}

/// The overlays in a folder of their own.
struct Manifests {
    folder: TempDir,
}

impl Manifests {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder("deploy/kubernetes", folder.path());
        Self { folder }
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        let file = self.folder.path().join(file);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{} has no {from:?} any more", file.display());
        fs::write(file, text.replace(from, to)).unwrap();
    }

    /// With the component that allows io_uring.
    fn with_uring() -> Self {
        let manifests = Self::new();
        let comment = "# components:\n#   - ../io-uring\n";
        let file = "production/kustomization.yaml";
        manifests.replace(file, comment, "components:\n  - ../io-uring\n");
        manifests
    }

    /// Builds an overlay into a file.
    fn build(&self, overlay: &str) -> PathBuf {
        let mut command = kustomize();
        command.arg("build").arg(self.folder.path().join(overlay));
        let (status, built, log) = Process::run(&mut command, "");
        assert!(status.success() && log.is_empty(), "{overlay}: {log}");
        let file = self.folder.path().join(format!("{overlay}.yaml"));
        fs::write(&file, built).unwrap();
        file
    }

    fn documents(&self, overlay: &str) -> Overlay {
        Overlay { documents: documents(&fs::read_to_string(self.build(overlay)).unwrap()) }
    }
}

/// The overlays, as they are: built once for all tests.
static BUILT: LazyLock<[(&str, Overlay); 2]> = LazyLock::new(|| {
    let manifests = Manifests::new();
    OVERLAYS.map(|name| (name, manifests.documents(name)))
});

#[test]
fn kustomize_builds_the_overlays_and_versions_of_kubernetes_accept_them() {
    let (plain, with_uring) = (Manifests::new(), Manifests::with_uring());
    let mut files: Vec<_> = OVERLAYS.map(|overlay| plain.build(overlay)).into();
    files.push(with_uring.build("production"));
    for file in &files {
        // From the first one that has preStop.sleep on.
        validate_manifests(file, &["1.30", "1.33", "1.37"]).unwrap_or_else(|said| panic!("{said}"));
    }
    plain.replace("base/deployment.yaml", "minReadySeconds", "minReadySecond");
    let said = validate_manifests(&plain.build("development"), &["1.37"]).unwrap_err();
    assert!(said.contains("minReadySecond"), "{said}");
    let said = validate_manifests(&files[0], &["1.99"]).unwrap_err();
    assert!(said.contains("1.99"), "{said}");
}

/// The documents of an overlay.
struct Overlay {
    documents: Vec<Value>,
}

impl Overlay {
    fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.documents.iter().filter(move |document| document["kind"] == kind)
    }

    fn deployment(&self) -> &Value {
        self.of_kind("Deployment").next().unwrap()
    }

    fn pod(&self) -> &Value {
        &self.deployment()["spec"]["template"]["spec"]
    }

    fn container(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn ports(&self) -> Vec<(&str, u64)> {
        let ports = self.container()["ports"].as_array().unwrap();
        ports
            .iter()
            .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
            .collect()
    }

    fn has_port(&self, name: &Value) -> bool {
        self.ports().iter().any(|(port, _)| name == port)
    }

    /// Whether these labels are the pod's.
    fn selects_the_pod(&self, labels: &Value) -> bool {
        let pod = &self.deployment()["spec"]["template"]["metadata"]["labels"];
        let labels = labels.as_object().unwrap();
        !labels.is_empty() && labels.iter().all(|(name, value)| &pod[name] == value)
    }

    fn config(&self) -> &str {
        let map = self.of_kind("ConfigMap").next().unwrap();
        map["data"]["tidegate.toml"].as_str().unwrap()
    }
}

#[test]
fn the_parts_of_an_overlay_fit_each_other() {
    for (name, overlay) in &*BUILT {
        let is_selected = |labels: &Value| assert!(overlay.selects_the_pod(labels), "{name}");
        is_selected(&overlay.deployment()["spec"]["selector"]["matchLabels"]);
        for service in overlay.of_kind("Service") {
            is_selected(&service["spec"]["selector"]);
            for port in service["spec"]["ports"].as_array().unwrap() {
                assert!(overlay.has_port(&port["targetPort"]), "{name}: {port}");
            }
        }
        for budget in overlay.of_kind("PodDisruptionBudget") {
            is_selected(&budget["spec"]["selector"]["matchLabels"]);
        }
        for policy in overlay.of_kind("NetworkPolicy") {
            is_selected(&policy["spec"]["podSelector"]["matchLabels"]);
            let rules = policy["spec"]["ingress"].as_array().unwrap();
            let ports = rules.iter().flat_map(|rule| rule["ports"].as_array().unwrap());
            let ports: Vec<_> = ports.map(|port| &port["port"]).collect();
            assert!(ports.iter().all(|port| overlay.has_port(port)), "{ports:?}");
            assert_eq!(ports.len(), overlay.ports().len(), "each port has a rule");
        }
        for spread in overlay.pod()["topologySpreadConstraints"].as_array().into_iter().flatten() {
            is_selected(&spread["labelSelector"]["matchLabels"]);
            // A node that is dead, drained or for others does not count as one without a gateway.
            assert_eq!(spread["nodeTaintsPolicy"], "Honor", "{name}: {spread}");
        }
        let volumes = overlay.pod()["volumes"].as_array().unwrap();
        for mount in overlay.container()["volumeMounts"].as_array().unwrap() {
            assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]), "{mount}");
        }
        let map = &overlay.of_kind("ConfigMap").next().unwrap()["metadata"]["name"];
        assert!(volumes.iter().any(|volume| &volume["configMap"]["name"] == map), "{map}");
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert!(overlay.has_port(&overlay.container()[probe]["httpGet"]["port"]), "{probe}");
        }
    }
}

/// A gateway that hangs can't drain: it is ended at once.
#[test]
fn a_gateway_that_hangs_does_not_get_the_time_of_a_drain() {
    for (name, overlay) in &*BUILT {
        let probe = &overlay.container()["livenessProbe"];
        let seconds = |key: &str| probe[key].as_u64().unwrap();
        assert!(seconds("terminationGracePeriodSeconds") <= 5, "{name}");
        // 5 s until /healthz says so.
        let in_all = 5
            + seconds("periodSeconds") * seconds("failureThreshold")
            + seconds("terminationGracePeriodSeconds");
        assert!(in_all <= 40, "{name}: deploy/README.md and RUNBOOK.md say 40 s, this is {in_all}");
    }
}

/// What is deleted with an overlay can be made again: the secrets are in the namespace.
#[test]
fn production_leaves_its_namespace_to_the_operator() {
    let kinds = |name: &str| {
        let (_, overlay) = BUILT.iter().find(|(other, _)| *other == name).unwrap();
        overlay.of_kind("Namespace").count()
    };
    assert_eq!((kinds("production"), kinds("development")), (0, 1));
    let namespace = documents(&read("deploy/kubernetes/production/namespace.yaml")).remove(0);
    let overlay = documents(&read("deploy/kubernetes/production/kustomization.yaml")).remove(0);
    assert_eq!(namespace["metadata"]["name"], overlay["namespace"]);
}

#[test]
fn the_component_names_the_profile_of_io_uring() {
    let overlay = Manifests::with_uring().documents("production");
    let profile = &overlay.pod()["securityContext"]["seccompProfile"];
    assert_eq!(profile["type"], "Localhost");
    let name = profile["localhostProfile"].as_str().unwrap();
    assert!(read("deploy/README.md").contains(&format!("/var/lib/kubelet/seccomp/{name}")));
}

/// Writes a secret as Kubernetes does: the pod's group may read it.
fn write_secret(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o440)).unwrap();
}

/// The names of the files in a folder that a configuration names.
fn files_in<'a>(config: &'a str, folder: &str) -> Vec<&'a str> {
    let values = config.lines().filter_map(|line| line.split('"').nth(1));
    values.filter_map(|value| value.strip_prefix(folder)).collect()
}

/// A gateway with the configuration of an overlay, on free ports of this machine and without Redis. The secrets are those that
/// deploy/README.md makes.
fn setup(overlay: &Overlay) -> Setup {
    let (config, instructions) = (overlay.config(), read("deploy/README.md"));
    let mut setup = Setup::jwt();
    let folder = setup.folder().to_owned();
    for name in files_in(config, "/etc/tidegate-keys/") {
        assert!(instructions.contains(&format!("--from-file=\"$keys/{name}\"")), "{name}");
        write_secret(&folder, name, &format!("{name:-<64}\n"));
    }
    if config.contains("/etc/tidegate-tls/") {
        wire::write_certificate(&folder);
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        // The names that secrets of the type kubernetes.io/tls have.
        write_secret(&folder, "tls.crt", &text(wire::CHAIN_FILE));
        write_secret(&folder, "tls.key", &text(wire::KEY_FILE));
    }
    let mut text = config.replace("/etc/tidegate-keys/", "").replace("/etc/tidegate-tls/", "");
    text = text.replace("redis://redis:6379", "redis://127.0.0.1:1");
    for (_, port) in overlay.ports() {
        let everywhere = format!("\"0.0.0.0:{port}\"");
        assert_eq!(text.matches(&everywhere).count(), 1, "a listener for each port");
        text = text.replace(&everywhere, "\"127.0.0.1:0\"");
    }
    assert!(!text.contains("0.0.0.0"), "a port for each listener");
    if text.contains("listen = \"\"") {
        setup = setup.set("listen", "");
    }
    setup.toml(&text)
}

/// The operators' token of an overlay's gateway.
fn admin_token(gateway: &Gateway) -> String {
    let own = fs::read_to_string(gateway.folder().join(".tidegate/admin.token"));
    let token = own.or_else(|_| fs::read_to_string(gateway.folder().join("admin.token"))).unwrap();
    token.trim().to_owned()
}

#[test]
fn the_gateway_accepts_the_configuration_of_each_overlay() {
    for (name, overlay) in &*BUILT {
        assert_eq!(overlay.container()["args"][0], "--config");
        let (status, said, log) = setup(overlay).flag("--check-config").run();
        assert!(status.success() && !log.contains("WARN"), "{name}: {said}{log}");
        assert!(overlay.pod()["securityContext"]["runAsNonRoot"] == true, "{name}");
        assert!(overlay.container()["securityContext"]["readOnlyRootFilesystem"] == true, "{name}");
    }
}

#[test]
fn the_gateway_runs_with_each_overlay_its_probes_are_answered_and_its_drain_has_time() {
    for (name, overlay) in &*BUILT {
        let mut gateway = setup(overlay).start();
        // Without a token.
        let anybody = Operator::new(gateway.operators(), "");
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let path = overlay.container()[probe]["httpGet"]["path"].as_str().unwrap();
            let (status, text) = anybody.get(path);
            assert_eq!(status, 200, "{name} {probe}: {text}");
        }
        let (wire, key) = match *name {
            "production" => (Wire::Tls, "jwt-hs256.key"),
            _ => (Wire::Tcp, ".tidegate/jwt-hs256.key"),
        };
        let (_, token, _) = gateway.tide(&["token", "--user", "7", "--key-file", key], "");
        let mut phone =
            if wire == Wire::Tls { gateway.connect_over(wire) } else { gateway.connect() };
        phone.login_with(7, token.trim());
        phone.assert_is_served();
        let token = admin_token(&gateway);
        let stats = Operator::new(gateway.operators(), &token).json("/stats");
        let connections = stats["gateway"]["connections_max"].as_u64().unwrap();
        assert!(memory_bytes(overlay) / connections > 10_000, "{name}: {connections}");
        let sleep = &overlay.container()["lifecycle"]["preStop"]["sleep"]["seconds"];
        let grace = &overlay.pod()["terminationGracePeriodSeconds"];
        let grace_ms = (grace.as_u64().unwrap() - sleep.as_u64().unwrap()) * 1000;
        assert!(grace_ms > drain_ms(&gateway, &token), "{name}");
        assert!(between_drains_ms(overlay) >= goodbyes_ms(&gateway, &token), "{name}");
        gateway.terminate();
        phone.wait_for_goodbye();
        drop(phone);
        assert!(gateway.process.wait().success(), "{name}");
    }
}

#[test]
fn the_gateway_runs_with_the_example_for_one_machine() {
    let setup = || {
        let setup = Setup::jwt().set("listen", "");
        let folder = setup.folder();
        wire::write_certificate(folder);
        let only_the_group = fs::Permissions::from_mode(0o640);
        fs::set_permissions(folder.join(wire::KEY_FILE), only_the_group).unwrap();
        let mut text = read("deploy/one-machine.toml");
        for (from, to) in [
            ("/etc/tidegate/fullchain.pem", wire::CHAIN_FILE),
            ("/etc/tidegate/key.pem", wire::KEY_FILE),
            ("0.0.0.0:7443", "127.0.0.1:0"),
            ("0.0.0.0:7481", "127.0.0.1:0"),
        ] {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        setup.toml(&text)
    };
    let (status, said, log) = setup().flag("--check-config").run();
    assert!(status.success() && !log.contains("WARN"), "{said}{log}");
    let gateway = setup().start();
    let (_, token, _) = gateway.tide(&["token", "--user", "7"], "");
    let mut phone = gateway.connect_over(Wire::Tls);
    phone.login_with(7, token.trim());
    phone.assert_is_served();
}

/// Commands that people copy, and links.
#[test]
fn the_instructions_name_files_that_are_there() {
    for page in ["README.md", "deploy/README.md", "deploy/RUNBOOK.md"] {
        let text = read(page);
        let words = text.split(|character: char| {
            character.is_whitespace() || "`()[]'\"#,;|".contains(character)
        });
        let words = words.map(|word| word.trim_end_matches(['.', ':']));
        let is_ours = |word: &&str| {
            ["deploy/", "sysctl/", "scripts/"].iter().any(|ours| word.starts_with(ours))
        };
        for path in words.filter(is_ours) {
            assert!(project_file(path).exists(), "{page} names {path}");
        }
        let links = text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap());
        let is_local = |link: &&str| !link.is_empty() && !link.contains("://");
        for link in links.filter(is_local) {
            let there = project_file(page).with_file_name("").join(link).exists();
            assert!(there, "{page} has a link to {link}");
        }
    }
}

/// How long after the first goodbye of a gateway the next one begins with its own, in an update.
fn between_drains_ms(overlay: &Overlay) -> u64 {
    overlay.deployment()["spec"]["minReadySeconds"].as_u64().unwrap() * 1000
}

/// The memory that the gateway's container may have.
fn memory_bytes(overlay: &Overlay) -> u64 {
    let resources = &overlay.container()["resources"];
    assert_eq!(resources["requests"]["memory"], resources["limits"]["memory"]);
    let memory = resources["limits"]["memory"].as_str().unwrap();
    let (number, unit) = memory.split_at(memory.len() - 2);
    let unit = match unit {
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => panic!("{memory}"),
    };
    number.parse::<u64>().unwrap() * unit
}
