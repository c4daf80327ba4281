use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use toml::{Table, Value};

use super::typed::Typed;
use super::*;

const DOCUMENTED: &str = include_str!("../../../tidegate.toml");

fn load_from(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let arguments = ["tidegate"].iter().chain(arguments).map(OsString::from);
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    load(arguments, variables)
}

fn refusal(toml: &str) -> String {
    Config::from_toml(toml).expect_err(toml).to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// Takes the `# ` away from the lines that set something.
fn uncommented() -> String {
    let sets = |line: &str| {
        let (key, _) = line.split_once(" = ")?;
        key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(())
    };
    let line = |line: &'static str| match line.strip_prefix("# ") {
        Some(bare) if (bare.starts_with('[') && bare.ends_with(']')) || sets(bare).is_some() => {
            bare
        }
        _ => line,
    };
    DOCUMENTED.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// With the listener that what is set for HTTP needs.
fn uncommented_with_http() -> String {
    format!("{}\n[listeners.http]\nlisten = \"0.0.0.0:7490\"\nwire = \"http\"\n", uncommented())
}

fn leaves(above: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                leaves(&format!("{above}.{name}"), value, into);
            }
        }
        Value::Array(list) if list.first().is_some_and(Value::is_table) => {
            leaves(above, &list[0], into);
        }
        value => {
            into.insert(above.to_owned(), value.clone());
        }
    }
}

#[test]
fn the_documented_file_has_every_key_at_its_default() {
    let as_is = Config::from_toml(DOCUMENTED).unwrap();
    let everything = Config::from_toml(&uncommented_with_http()).unwrap();
    let default = Config::embedded_default();
    assert_eq!(format!("{as_is:?}"), format!("{default:?}"));
    let mut without_policy = everything;
    without_policy.rooms.policies.clear();
    // They have no default: the file gives examples.
    without_policy.listeners.clear();
    without_policy.tls.certificates.clear();
    without_policy.http.routes.clear();
    without_policy.http.listeners.clear();
    // What a listener with HTTP changes.
    without_policy.http.connections_max = default.http.connections_max;
    without_policy.limits.connections_max = default.limits.connections_max;
    assert_eq!(format!("{without_policy:?}"), format!("{default:?}"));

    let (mut stated, mut known) = (BTreeMap::new(), BTreeMap::new());
    let table: Table = toml::from_str(&uncommented()).unwrap();
    leaves("", &Value::Table(table), &mut stated);
    leaves("", &Value::Table(Table::try_from(Typed::sample()).unwrap()), &mut known);
    // A policy has no default prefix: the file gives an example.
    stated.remove(".room_policies.prefix");
    known.remove(".room_policies.prefix");
    assert_eq!(stated, known);
}

#[test]
fn the_effective_configuration_has_every_key_and_no_value_that_is_left_open() {
    let config = Config::from_toml(&uncommented_with_http()).unwrap();
    let effective: Value = serde_json::from_value(config.effective()).unwrap();
    let (mut shown, mut known) = (BTreeMap::new(), BTreeMap::new());
    leaves("", &effective, &mut shown);
    shown.retain(|key, _| !key.starts_with(".listeners.http."));
    leaves("", &Value::Table(Table::try_from(Typed::sample()).unwrap()), &mut known);
    assert_eq!(shown.keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
    // What the login policy decides is shown as it holds.
    let per_user = |toml: &str| {
        let session = Config::from_toml(toml).unwrap().effective()["session"].clone();
        (session["login"].clone(), session["connections_per_user_max"].clone())
    };
    assert_eq!(per_user(""), ("newest-wins".into(), 1.into()));
    assert_eq!(per_user("[session]\nlogin = \"many\""), ("many".into(), 8.into()));
    let open =
        ["shards", "limits.connections_max", "session.idle_timeout_ms", "backends.demo.workers"];
    for key in open {
        let value = shown[&format!(".{key}")].as_integer();
        assert!(value > Some(0), "{key} = {value:?}");
    }
}

/// Each number's documented range is the one that is checked.
#[test]
fn the_documented_ranges_hold() {
    let (mut table, mut range, mut checked) = (String::new(), None, 0);
    let mut comment = String::new();
    for line in DOCUMENTED.lines() {
        let bare = line.trim_start_matches("# ");
        if bare.starts_with('[') && bare.ends_with(']') {
            table = bare.to_owned();
        } else if let Some((key, value)) = bare.split_once(" = ")
            && value.parse::<i64>().is_ok()
        {
            let (low, high): (i64, i64) = range.take().expect(line);
            let rest = match table.as_str() {
                "[[routes]]" => "types = [1, 1]\nbackend = \"demo\"",
                "[[room_policies]]" => "prefix = \"x\"",
                "[[http_routes]]" => "path = \"/x\"",
                _ => "",
            };
            for outside in [low - 1, high + 1] {
                let message = refusal(&format!("{table}\n{key} = {outside}\n{rest}"));
                let expected =
                    format!("= {outside} (from the TOML text): this must be from {low} to {high}");
                assert_says(&message, &[key, &expected]);
            }
            checked += 1;
        }
        comment = if line.starts_with('#') { format!("{comment} {bare}") } else { String::new() };
        if let Some((_, stated)) = comment.split_once("Range: ") {
            let mut numbers = stated.split(['.', ' ']).filter_map(|word| word.parse().ok());
            range = numbers.next().zip(numbers.next());
        }
    }
    let mut known = BTreeMap::new();
    leaves("", &Value::Table(Table::try_from(Typed::sample()).unwrap()), &mut known);
    assert_eq!(checked, known.values().filter(|value| value.is_integer()).count());
}

#[test]
fn layers_win_over_each_other_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.toml");
    std::fs::write(&file, "shards = 2\n[limits]\nframes_burst_max = 5\nfan_out_slice_members = 7")
        .unwrap();
    let path = file.to_str().unwrap();
    let environment = [
        ("TIDEGATE_CONFIG", path),
        ("TIDEGATE_SHARDS", "3"),
        ("TIDEGATE_LIMITS__FRAMES_BURST_MAX", "6"),
        ("TIDEGATE_BACKENDS__DEMO__WORKERS", "9"),
        ("HOME", "/"),
    ];
    let flags = ["--shards", "4", "--set", "log.filter=warn,tidegate=debug", "--check-config"];
    let loaded = load_from(&flags, &environment).unwrap();
    assert!(loaded.check_only);
    let config = loaded.config;
    assert_eq!((config.shards, config.limits.frames_burst_max), (4, 6));
    assert_eq!((config.limits.fan_out_slice_members, config.backends[0].workers), (7, 9));
    assert_eq!(config.log.filter, "warn,tidegate=debug");
    let config = load_from(&["--config", path], &[]).unwrap().config;
    assert_eq!((config.shards, config.limits.frames_burst_max), (2, 5));
}

#[test]
fn what_is_derived_is_derived() {
    let config = Config::from_toml(
        "[session]\nheartbeat_interval_ms = 1000\nlogin = \"many\"\n[limits]\nframes_per_second_max = 3",
    )
    .unwrap();
    assert_eq!(config.session.idle_timeout, Duration::from_millis(2500));
    assert_eq!(config.session.connections_per_user_max, 8);
    assert_eq!(config.limits.frames_per_second_max, Some(3));
    let default = Config::embedded_default();
    assert_eq!(default.session.connections_per_user_max, 1);
    assert_eq!(default.limits.frames_per_second_max, None);
    assert!(default.shards > 0 && default.limits.connections_max > 0);
    assert_eq!(default.routes.len(), 1);
}

#[test]
fn lists_and_backends_are_read_from_every_layer() {
    let toml = "[[routes]]\ntypes = [10, 19]\nbackend = \"mine\"\n\
                [[routes]]\ntypes = [1, 9]\nbackend = \"mine\"\ntimeout_ms = 7\n\
                [backends.mine]\n\
                [[room_policies]]\nprefix = \"a\"\n[[room_policies]]\nprefix = \"ab\"\nslow_member = \"close\"";
    let config = Config::from_toml(toml).unwrap();
    let firsts: Vec<_> = config.routes.iter().map(|route| route.first_type).collect();
    assert_eq!(firsts, [1, 10]);
    let names: Vec<_> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["mine"], "the demo backend is there only where it is used");
    assert_eq!(config.rooms.policies[0].0, "ab");
    assert_eq!(config.rooms.policies[0].1.slow_member, SlowMember::Close);
    assert_eq!(config.rooms.policies[1].1, config.rooms.default_policy);

    let routes = "[{ types = [5, 5], backend = \"demo\" }]";
    let config = load_from(&[], &[("TIDEGATE_ROUTES", routes)]).unwrap().config;
    assert_eq!((config.routes[0].first_type, config.routes[0].last_type), (5, 5));
}

#[test]
fn rooms_windows_and_urgent_types_are_checked() {
    let toml = "[rooms]\nmerge_window_ms = 100\nurgent_types = [7, 9]\n\
                [[room_policies]]\nprefix = \"*\"\nmerge_window_ms = 0\n\
                [[room_policies]]\nprefix = \"quiz-\"\nurgent_types = []";
    let rooms = Config::from_toml(toml).unwrap().rooms;
    let policy = rooms.default_policy;
    assert_eq!(
        (policy.merge_window, policy.urgent_types),
        (Duration::from_millis(100), Some((7, 9)))
    );
    assert_eq!([6, 7, 9, 10].map(|kind| policy.is_urgent(kind)), [false, true, true, false]);
    let policies: BTreeMap<_, _> = rooms.policies.into_iter().collect();
    assert_eq!(policies["*"], RoomPolicy { merge_window: Duration::ZERO, ..policy });
    assert_eq!(policies["quiz-"], RoomPolicy { urgent_types: None, ..policy });
    let refused = |types: &str| {
        refusal(&format!("[[room_policies]]\nprefix = \"x\"\nurgent_types = {types}"))
    };
    assert_says(
        &refused("[7]"),
        &["room_policies[0].urgent_types = [7]", "as in urgent_types = [1, 99]"],
    );
    assert_says(&refused("[0, 7]"), &["from 1 to 2147483647"]);
    assert_says(&refused("7"), &["it takes a list of whole numbers, as in [1, 99]"]);
    let listener =
        "[listeners.a]\nlisten = \"127.0.0.1:1\"\nwire = \"tcp\"\nproxy_from = \"10.0.0.0/8\"";
    assert_says(&refusal(listener), &["proxy_from", "it takes a list of texts, as in"]);
    assert_says(&refused("[\"a\"]"), &["it takes a whole number"]);
    assert_says(&refused("[9, 7]"), &["the last type is below the first"]);
}

#[test]
fn what_is_no_regular_file_is_not_read_again() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, "shards = 1").unwrap();
    let loaded = load_from(&["--config", file.to_str().unwrap()], &[]).unwrap();
    loaded.sources.load_again().unwrap();
    std::fs::remove_file(&file).unwrap();
    mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    // To open it would wait for a writer.
    let error = loaded.sources.load_again().unwrap_err().to_string();
    assert_says(&error, &["tidegate.toml", "no regular file", "restart"]);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, "[limits]\nfram_bytes_max = 1").unwrap();
    let path = file.to_str().unwrap();
    let message = load_from(&["--config", path], &[]).unwrap_err().to_string();
    let expected = format!(
        "unknown key \"limits.fram_bytes_max\" in {path}: did you mean \"limits.frame_bytes_max\"?"
    );
    assert_eq!(message, expected);

    assert_says(&refusal("frame_bytes_max = 1"), &["did you mean \"limits.frame_bytes_max\"?"]);
    assert_says(&refusal("[limit]\nx = 1"), &["unknown key \"limit\"", "mean \"limits\"?"]);
    assert_says(&refusal("[log]\nxyzzy = 1"), &["known here: ", "log.filter", "log.format"]);
    let message = refusal("[[routes]]\ntypes = [1, 2]\nbackned = \"demo\"");
    assert_says(&message, &["\"routes[0].backned\"", "did you mean \"routes.backend\"?"]);
    let message = load_from(&["--set", "shard=1"], &[]).unwrap_err().to_string();
    assert_says(&message, &["unknown key \"shard\" in the flag --set", "mean \"shards\"?"]);
}

#[test]
fn a_key_without_its_unit_or_with_a_word_too_many_is_found() {
    let variable = |name: &str| load_from(&[], &[(name, "1")]).unwrap_err().to_string();
    for (wrong, right) in [
        ("coalesce", "coalesce_us"),
        ("listen_address", "listen"),
        ("limits.connections", "limits.connections_max"),
        ("rooms.merge_window", "rooms.merge_window_ms"),
        ("merge_window", "rooms.merge_window_ms"),
    ] {
        assert_says(&refusal(&format!("{wrong} = 1")), &[&format!("did you mean \"{right}\"?")]);
        let [wrong, right] =
            [wrong, right].map(|key| format!("TIDEGATE_{}", key.replace('.', "__").to_uppercase()));
        assert_says(&variable(&wrong), &[&format!("did you mean {right}?")]);
    }
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest() {
    let refused = |name, value| load_from(&[], &[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        refused("TIDEGATE_LIMITS__FRAM_BYTES_MAX", "1"),
        "unknown environment variable TIDEGATE_LIMITS__FRAM_BYTES_MAX: did you mean \
         TIDEGATE_LIMITS__FRAME_BYTES_MAX?"
    );
    let top = ["known here: ", "TIDEGATE_COALESCE_US, ", "TIDEGATE_LIMITS__..."];
    assert_says(&refused("TIDEGATE_XYZZY", "1"), &top);
    assert_says(&refused("TIDEGATE_NOWHERE__XYZZY", "1"), &top);
    // Two letters of three are another word.
    assert_says(&refused("TIDEGATE_FOO", "1"), &top);
    let log = refused("TIDEGATE_LOG__XYZZY", "1");
    assert_says(&log, &["known here: TIDEGATE_LOG__FILTER, TIDEGATE_LOG__FORMAT"]);
    assert_says(&refused("TIDEGATE_LIMIT", "1"), &["did you mean TIDEGATE_LIMITS__...?"]);
    assert_says(&refused("TIDEGATE_listen", "1"), &["did you mean TIDEGATE_LISTEN?"]);
    // Kubernetes sets these where a service is called "tidegate".
    let links = [
        ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
        ("TIDEGATE_SERVICE_PORT", "7400"),
        ("TIDEGATE_PORT", "tcp://10.0.0.1:7400"),
        ("TIDEGATE_PORT_7400_TCP_ADDR", "10.0.0.1"),
    ];
    load_from(&[], &links).unwrap();
}

#[test]
fn a_wrong_value_is_refused_with_its_place_and_how_to_fix_it() {
    let wrong_in_environment = [("TIDEGATE_SHARDS", "many")];
    let message = load_from(&[], &wrong_in_environment).unwrap_err().to_string();
    let variable = "the environment variable TIDEGATE_SHARDS";
    assert_says(&message, &["shards = \"many\"", variable, "whole number"]);
    let message = load_from(&["--frame-bytes-max", "1"], &[]).unwrap_err().to_string();
    assert_eq!(
        message,
        "limits.frame_bytes_max = 1 (from the flag --frame-bytes-max): this must be from 64 to 16777216"
    );
    assert_says(&refusal("driver = \"kqueue\""), &["\"auto\" or \"epoll\" or \"uring\""]);
    assert_says(&refusal("listen = \"localhost\""), &["listen = \"localhost\"", "127.0.0.1:7400"]);
    assert_says(&refusal("listen = 7"), &["listen = 7", "a text"]);
    assert_says(&refusal("limits = 7"), &["limits = 7", "a table"]);
    assert_says(&refusal("shards ="), &["not valid TOML", "line 1, column 9"]);
    let text = "shards = 1\n[redis]\nurl = \"redis://user:hush@10.0.0.1/\npush_wait_ms = 1\n";
    let error = Config::from_toml(text).unwrap_err();
    assert_says(&error.to_string(), &["not valid TOML: line 3, column "]);
    assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    assert_says(&refusal("[log]\nfilter = \"a=b=c\""), &["log.filter", "warn,tidegate=debug"]);
    assert_says(
        &refusal("[log]\nfilter = \"warn,debgu\""),
        &["\"debgu\" is no level", "off, error"],
    );
    assert_says(&refusal("[auth]\nalgorithm = \"EdDSA\""), &["set auth.key_file"]);
    assert_says(&refusal("[auth]\nalgorithm = \"EdDSA\""), &["auth.jwks_file", "auth.jwks_url"]);
    assert_says(&refusal("[session]\nidle_timeout_ms = 30000"), &["heartbeat_interval_ms (30000)"]);
    // Some containers are given a limit beyond any range.
    if descriptors::limit().is_some_and(|limit| limit < 1 << 20) {
        let text = "driver = \"epoll\"\nshards = 2\n[limits]\nconnections_max = 67108864";
        assert_says(&refusal(text), &["LimitNOFILE", "uring", "in all"]);
    }
    assert_says(&refusal("[limits]\ncommands_bytes_max = 100"), &["frame_to_client_bytes_max"]);
    assert_says(&refusal("[backends.\"Big One\"]"), &["a-z"]);
    assert_says(&refusal("[[room_policies]]\nslow_member = \"skip\""), &["prefix", "missing"]);
    assert_says(&load_from(&["--set", "x"], &[]).unwrap_err().to_string(), &["no `=`"]);
    let message = load_from(&["--config", "/nowhere/t.toml"], &[]).unwrap_err().to_string();
    assert_says(&message, &["/nowhere/t.toml", "No such file"]);
    let help = load_from(&["--help"], &[]).unwrap_err();
    assert!(matches!(help, ConfigError::Flags(help) if help.exit_code() == 0));
}

#[test]
fn the_keys_of_tokens_come_from_one_place() {
    let file = KeySetSource::File("keys.json".into());
    let url = |url: &str| KeySetSource::Url(url.into());
    let source = |toml: &str| match Config::from_toml(&format!("[auth]\n{toml}")).unwrap().auth.mode
    {
        AuthMode::Jwt { keys: JwtKeys::Set(source), .. } => source,
        other => panic!("{toml}: {other:?}"),
    };
    assert_eq!(source("jwks_file = \"keys.json\""), file);
    assert_eq!(source("jwks_file = \"keys.json\"\njwks_url = \"\""), file);
    for good in [
        "https://id.example/keys?x=1",
        "http://127.0.0.1:8/k",
        "HTTP://[::1]/k",
        "http://localhost/",
    ] {
        assert_eq!(source(&format!("jwks_url = \"{good}\"")), url(good));
    }
    let both =
        |one: &str, other: &str| refusal(&format!("[auth]\n{one} = \"https://x/\"\n{other}"));
    for (message, keys) in [
        (both("jwks_url", "jwks_file = \"x\""), ["auth.jwks_url", "auth.jwks_file"]),
        (both("jwks_url", "key_file = \"x\""), ["auth.key_file", "auth.jwks_url"]),
        (both("jwks_file", "key_file = \"x\""), ["auth.key_file", "auth.jwks_file"]),
        (both("jwks_file", "algorithm = \"RS256\""), ["auth.algorithm", "auth.jwks_file"]),
    ] {
        assert_says(&message, &keys);
    }
    for (bad, hint) in [
        ("http://id.example/keys", "https"),
        ("http://127.0.0.1.example/", "https"),
        ("http://localhost.example/", "https"),
        ("ftp://127.0.0.1/", "https://"),
        ("id.example/keys", "URL"),
        ("/keys", "whole URL"),
        ("https:///keys", "URL"),
        ("no url", "URL"),
        ("https://user:secret@id.example/", "user or a password"),
    ] {
        let message = refusal(&format!("[auth]\njwks_url = \"{bad}\""));
        assert_says(&message, &["auth.jwks_url", hint]);
        assert!(!message.contains("secret"), "{message}");
    }
    let demo = "[auth]\nmode = \"demo\"\nkey_file = \"x\"\njwks_file = \"y\"";
    assert_eq!(Config::from_toml(demo).unwrap().auth.mode, AuthMode::Demo, "it has no keys");
}

#[test]
fn a_program_with_its_own_backends_has_its_own_defaults() {
    let defaults =
        "[backends.mine]\nworkers = 3\n[[routes]]\ntypes = [100, 199]\nbackend = \"mine\"";
    let load = |arguments: &[&str]| {
        let arguments = ["tidegate"].iter().chain(arguments).map(OsString::from);
        load_over(defaults, arguments, []).map(|loaded| loaded.config)
    };
    let names = |config: &Config| {
        config.backends.iter().map(|backend| backend.name.clone()).collect::<Vec<_>>()
    };
    let config = load(&[]).unwrap();
    assert_eq!(names(&config), ["mine"], "nothing leads to the demo backend");
    assert_eq!((config.backends[0].workers, config.routes[0].first_type), (3, 100));
    let routes = "routes=[{types=[1,9],backend=\"demo\"},{types=[10,19],backend=\"mine\"}]";
    let config = load(&["--set", "backends.mine.workers=4", "--set", routes]).unwrap();
    assert_eq!(names(&config), ["demo", "mine"]);
    assert_eq!((config.backends[1].workers, config.routes.len()), (4, 2));
    let wrong = load_over("shards = -1", ["tidegate".into()], []).unwrap_err().to_string();
    assert_says(&wrong, &["shards = -1", "the program's defaults"]);
}

#[test]
fn clients_and_operators_have_ports_of_their_own() {
    let load = |clients: &str, operators: &str| {
        load_from(&["--listen", clients, "--admin", operators], &[]).map_err(|e| e.to_string())
    };
    for (clients, operators) in [
        ("127.0.0.1:7400", "127.0.0.1:7400"),
        ("0.0.0.0:7400", "127.0.0.1:7400"),
        ("127.0.0.1:7400", "0.0.0.0:7400"),
        ("[::]:7400", "127.0.0.1:7400"),
        ("0.0.0.0:7400", "[::]:7400"),
        ("[::]:7400", "[::1]:7400"),
        ("[::1]:7400", "[::1]:7400"),
        ("[::ffff:127.0.0.1]:7400", "127.0.0.1:7400"),
        ("[::ffff:0.0.0.0]:7400", "127.0.0.1:7400"),
    ] {
        let refused = load(clients, operators).unwrap_err();
        let listen = format!("(at {clients})");
        assert_says(&refused, &["admin.listen = ", "the flag --admin", &listen, "another port"]);
    }
    for (clients, operators) in [
        ("127.0.0.1:7400", "127.0.0.1:7401"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("0.0.0.0:0", "127.0.0.1:7400"),
        ("127.0.0.1:7400", "127.0.0.2:7400"),
        ("127.0.0.1:7400", "[::1]:7400"),
        ("0.0.0.0:7400", "[::1]:7400"),
    ] {
        load(clients, operators).unwrap_or_else(|e| panic!("{clients} {operators}: {e}"));
    }
    // One alone may be moved onto the other's default.
    assert_says(
        &load_from(&["--listen", "127.0.0.1:7401"], &[]).unwrap_err().to_string(),
        &["7401"],
    );
}

#[test]
fn demo_tokens_are_for_loopback_alone() {
    let message = load_from(&["--auth", "demo", "--listen", "0.0.0.0:7400"], &[]).unwrap_err();
    assert_says(&message.to_string(), &["the flag --auth", "0.0.0.0:7400", "\"127.0.0.1:7400\""]);
    let config = load_from(&["--auth", "demo", "--listen", "[::1]:7400"], &[]).unwrap().config;
    assert_eq!(config.auth.mode, AuthMode::Demo);
}

#[test]
fn routes_are_refused_that_overlap_or_lead_nowhere() {
    let routes = |first: &str, second: &str| {
        format!(
            "[[routes]]\ntypes = {first}\nbackend = \"demo\"\n[[routes]]\ntypes = {second}\nbackend = \"demo\""
        )
    };
    let message = refusal(&routes("[50, 60]", "[1, 50]"));
    assert_says(&message, &["routes[0].types = [50, 60]", "routes[1].types = [1, 50]", "overlaps"]);
    assert_says(&refusal(&routes("[0, 60]", "[61, 61]")), &["[0, 60]", "from 1 to 2147483647"]);
    assert_says(&refusal(&routes("[1, 2147483648]", "[1, 1]")), &["from 1 to 2147483647"]);
    assert_says(&refusal(&routes("[2, 1]", "[61, 61]")), &["the last type is below the first"]);
    assert_says(&refusal(&routes("[2]", "[61, 61]")), &["types = [1, 99]"]);
    let message = refusal("[[routes]]\ntypes = [1, 1]\nbackend = \"dmeo\"\n[backends.mine]");
    assert_says(&message, &["\"dmeo\"", "mean \"demo\"?", "known are \"demo\", \"mine\""]);
}

/// Each flag with values that are wrong in different ways, some of which begin like a flag.
#[test]
fn a_wrong_value_of_a_flag_is_refused_with_the_flag_the_value_and_what_is_taken() {
    let address = "as in 127.0.0.1:7400";
    let cases: [(&str, &str, &[&str]); 16] = [
        ("--listen", "x", &[address]),
        ("--listen", "-1", &[address]),
        ("--admin", "127.0.0.1", &[address]),
        ("--admin", "-1", &[address]),
        ("--shards", "x", &["a whole number"]),
        ("--shards", "-1", &["from 0 to 256"]),
        ("--shards", "257", &["from 0 to 256"]),
        ("--shards", "99999999999999999999", &["larger than any"]),
        ("--driver", "-1", &["\"auto\" or \"epoll\" or \"uring\""]),
        ("--auth", "-1", &["\"jwt\" or \"demo\""]),
        ("--frame-bytes-max", "-1", &["from 64 to 16777216"]),
        ("--frame-bytes-max", "1.5", &["a whole number"]),
        ("--log", "inof", &["is no level", "info"]),
        ("--log-format", "-1", &["\"text\" or \"json\""]),
        ("--set", "-1", &["no `=`", "limits.frame_bytes_max=65536"]),
        ("--config", "-1", &["No such file", "TIDEGATE_CONFIG"]),
    ];
    for (flag, value, taken) in cases {
        let message = load_from(&[flag, value], &[]).unwrap_err().to_string();
        assert_says(&message, &[flag, value]);
        assert_says(&message, taken);
    }
    for filter in
        ["off", "INFO", "warn,tidegate=debug", "tidegate::shard=trace,info", "[span]=debug"]
    {
        load_from(&["--log", filter], &[]).unwrap();
    }
}

#[test]
fn tokens_in_redis_need_a_redis() {
    let mode = "[auth]\nmode = \"redis\"\n";
    let said = refusal(mode);
    assert!(said.contains("auth.mode") && said.contains("redis.url is not set"), "{said}");
    // Anybody's token is checked, so it may listen anywhere.
    let whole = format!("listen = \"0.0.0.0:7400\"\n{mode}[redis]\nurl = \"redis://127.0.0.1/\"\n");
    let config = Config::from_toml(&whole).unwrap();
    assert_eq!((&config.auth.mode, config.auth.lookups_max), (&AuthMode::Redis, 50_000));
    assert_eq!(config.auth.recheck, Duration::from_secs(300));
    for wrong in ["lookups_max = 0", "lookups_max = 1000001", "recheck_ms = 999"] {
        let said = refusal(&format!("[auth]\n{wrong}\n"));
        assert!(said.contains("this must be from"), "{said}");
    }
}

#[test]
fn the_threads_for_signatures_and_their_queue_have_bounds() {
    let auth = Config::embedded_default().auth;
    let quarter = (thread::available_parallelism().unwrap().get() / 4).max(1);
    assert_eq!(auth.verify_threads, quarter);
    assert_eq!((auth.verifications_max, auth.verified_tokens_max), (4_096, 262_144));
    let text = "[auth]\nverify_threads = 3\nverifications_max = 1\nverified_tokens_max = 0\n";
    let auth = Config::from_toml(text).unwrap().auth;
    assert_eq!((auth.verify_threads, auth.verifications_max, auth.verified_tokens_max), (3, 1, 0));
    for wrong in ["verify_threads = 257", "verifications_max = 0", "verified_tokens_max = 16777217"]
    {
        let said = refusal(&format!("[auth]\n{wrong}\n"));
        assert!(said.contains("this must be from"), "{said}");
    }
}

#[test]
fn what_no_listener_uses_is_refused() {
    let rest = "[listeners.rest]\nlisten = \"127.0.0.1:7490\"\nwire = \"http\"\n";
    let tls = "[listeners.tls]\nlisten = \"127.0.0.1:7443\"\nwire = \"tls\"\n";
    let certificate = "[tls.certificates.main]\nchain_file = \"a\"\nkey_file = \"b\"\n";
    let missing = "no listener has HTTP";
    for http in ["[http]\nopenapi = true\n", "[[http_routes]]\npath = \"/a\"\ntype = 1\n"] {
        assert_says(&refusal(http), &["http", missing, "listeners.rest"]);
        assert_says(&refusal(&format!("{http}{tls}{certificate}")), &[missing]);
        Config::from_toml(&format!("{http}{rest}")).unwrap();
    }
    for tls_keys in [certificate, "[tls]\nversion_min = \"1.2\"\n"] {
        assert_says(&refusal(tls_keys), &["tls.", "no listener has TLS", "listeners.tls"]);
        assert_says(&refusal(&format!("{tls_keys}{rest}")), &["no listener has TLS"]);
    }
    Config::from_toml(&format!("{tls}{certificate}")).unwrap();
    // Headings alone set nothing.
    Config::from_toml("[http]\n[tls]\n").unwrap();
}

#[test]
fn an_origin_is_written_as_browsers_send_it() {
    let load = |wire: &str, origin: &str| {
        let text = format!(
            "[listeners.web]\nlisten = \"127.0.0.1:7490\"\nwire = \"{wire}\"\norigins = [\"{origin}\"]\n"
        );
        Config::from_toml(&text).map_err(|error| error.to_string())
    };
    for wire in ["http", "ws"] {
        for good in ["https://app.example", "http://app.example:8080", "https://[::1]:8443"] {
            load(wire, good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, right) in [
            ("https://App.Example", "https://app.example"),
            ("HTTPS://app.example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("https://app.example:08443", "https://app.example:8443"),
            ("https://[::1]:443", "https://[::1]"),
        ] {
            let expected = format!("a browser sends it as {right}");
            assert!(load(wire, bad).unwrap_err().ends_with(&expected), "{bad}");
        }
        for bad in [
            "app.example",
            "ftp://app.example",
            "https://",
            "https://app.example/",
            "https://app.example/x",
            "https://app.example?x",
            "https://user@app.example",
            "https://app.example:x",
            "https://app.example:70000",
            "https://[::1",
            "https://*.example",
            "https://caf\u{00e9}.example",
        ] {
            assert_says(&load(wire, bad).unwrap_err(), &["as a browser sends it"]);
        }
    }
}

#[test]
fn a_listener_can_be_written_as_one_inline_table() {
    let table = r#"listeners.web = { listen = "127.0.0.1:7480", wire = "ws", path = "/chat" }"#;
    let of_flag = load_from(&["--set", table], &[]).unwrap().config;
    let value = table.split_once(" = ").unwrap().1;
    let of_variable = load_from(&[], &[("TIDEGATE_LISTENERS__WEB", value)]).unwrap().config;
    let of_file = Config::from_toml(table).unwrap();
    assert_eq!(of_file.listeners.len(), 1);
    for config in [of_flag, of_variable] {
        assert_eq!(format!("{:?}", config.listeners), format!("{:?}", of_file.listeners));
    }
    // One key of it can be replaced behind it, and what is wrong in it is refused as anywhere.
    let more = ["--set", table, "--set", "listeners.web.path=/other"];
    let listener = &load_from(&more, &[]).unwrap().config.listeners[0];
    assert_eq!(listener.upgrade.as_ref().unwrap().path, "/other");
    let refused = |text: &str| load_from(&["--set", text], &[]).unwrap_err().to_string();
    assert_says(&refused("listeners.web={lisen=\"127.0.0.1:1\"}"), &["unknown key", "lisen"]);
    assert_says(&refused("listeners.web={listen=1}"), &["listeners.web.listen", "the flag --set"]);
    // A shell has taken the quotes away.
    let said = refused("listeners.web={ listen = 127.0.0.1:7480, wire = ws }");
    assert_says(&said, &["this is a table", "the quotes are for the shell"]);
}

#[test]
fn the_names_that_other_programs_have_for_a_certificate_lead_to_chain_file() {
    for name in ["cert_file", "cert", "certificate_file", "fullchain_file"] {
        let said = refusal(&format!("[tls.certificates.main]\n{name} = \"a.pem\"\n"));
        assert_says(&said, &["did you mean \"tls.certificates.main.chain_file\"?"]);
    }
    let said = load_from(&[], &[("TIDEGATE_TLS__CERTIFICATES__MAIN__CERT_FILE", "a.pem")]);
    let variable = "did you mean TIDEGATE_TLS__CERTIFICATES__MAIN__CHAIN_FILE?";
    assert_says(&said.unwrap_err().to_string(), &[variable]);
    // Its own keys are still found by their letters.
    let said = refusal("[tls.certificates.main]\nkeyfile = \"a.pem\"\n");
    assert_says(&said, &["key_file"]);
}

#[test]
fn a_star_is_no_origin_and_an_empty_list_means_all() {
    for wire in ["ws", "http"] {
        let listener = format!("[listeners.web]\nlisten = \"127.0.0.1:7490\"\nwire = \"{wire}\"\n");
        let said = refusal(&format!("{listener}origins = [\"*\"]\n"));
        assert_says(&said, &["listeners.web.origins", "origins = []", "all origins"]);
        Config::from_toml(&format!("{listener}origins = []\n")).unwrap();
    }
}
