//! A gateway that runs: what `/proc` shows of how it was told to, and of what it does.

use super::files::{Files, Reading, Unread};

/// What is known of a process that may be a gateway.
#[derive(Clone, Debug)]
pub(in crate::doctor) struct Running {
    /// Threads that are shards: a gateway names them so. None: it is no gateway, or one that starts.
    pub(in crate::doctor) shards: Reading<u64>,
    told: Reading<Told>,
}

/// What its command line and its environment say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    arguments: Vec<String>,
    variables: Vec<String>,
}

/// Where a key's value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::doctor) enum Setting {
    /// A flag or the environment sets it.
    Set(String),
    /// Neither does, and no file is named that could: the default holds.
    Default,
    /// Neither does; this file may.
    File(String),
    /// It could not be read, and why.
    Unknown(Unread),
}

impl Running {
    pub(super) fn read(files: &Files, process: &str) -> Self {
        Self { shards: count_shards(files, process), told: read_told(files, process) }
    }

    /// What a key is set to. `flag` is the one that sets it, where there is one beside `--set`.
    pub(in crate::doctor) fn setting(&self, key: &str, flag: Option<&str>) -> Setting {
        let told = match &self.told {
            Ok(told) => told,
            Err(unread) => return Setting::Unknown(unread.clone()),
        };
        let variable = format!("TIDEGATE_{}", key.replace('.', "__").to_uppercase());
        // The gateway lays flags over the environment, and that over a file.
        let set = told.by_flag(key, flag).or_else(|| told.variable(&variable));
        let file = || told.option("--config").or_else(|| told.variable("TIDEGATE_CONFIG"));
        match (set, file()) {
            (Some(value), _) => Setting::Set(value.trim_matches('"').to_owned()),
            (None, Some(file)) if !file.is_empty() => Setting::File(file),
            (None, _) => Setting::Default,
        }
    }
}

impl Told {
    /// The last value of an option, as `--name value` or `--name=value`.
    fn option(&self, name: &str) -> Option<String> {
        self.options(name).pop()
    }

    fn options(&self, name: &str) -> Vec<String> {
        let value = |(at, argument): (usize, &String)| match argument.strip_prefix(name)? {
            "" => self.arguments.get(at + 1).cloned(),
            rest => rest.strip_prefix('=').map(str::to_owned),
        };
        self.arguments.iter().enumerate().filter_map(value).collect()
    }

    /// `--set` wins over a key's own flag, as the gateway has it.
    fn by_flag(&self, key: &str, flag: Option<&str>) -> Option<String> {
        let value = |setting: String| {
            let (name, value) = setting.split_once('=')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        };
        let by_set = self.options("--set").into_iter().filter_map(value).next_back();
        by_set.or_else(|| self.option(flag?))
    }

    fn variable(&self, name: &str) -> Option<String> {
        let value =
            |variable: &String| variable.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        self.variables.iter().find_map(value)
    }
}

fn read_told(files: &Files, process: &str) -> Reading<Told> {
    let parts = |file: &str| -> Reading<Vec<String>> {
        let text = files.text(&format!("/proc/{process}/{file}"))?;
        Ok(text.split('\0').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    };
    Ok(Told { arguments: parts("cmdline")?, variables: parts("environ")? })
}

fn count_shards(files: &Files, process: &str) -> Reading<u64> {
    let folder = format!("/proc/{process}/task");
    let is_shard = |thread: &&String| {
        // A thread may end between the listing and the look.
        let name = files.text(&format!("{folder}/{thread}/comm")).unwrap_or_default();
        name.strip_prefix("shard-").is_some_and(|number| number.parse::<u16>().is_ok())
    };
    Ok(files.names(&folder)?.iter().filter(is_shard).count() as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn running(cmdline: &str, environ: &str) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join("proc/7").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cmdline", &cmdline.replace(' ', "\0"));
        write("environ", &environ.replace(' ', "\0"));
        let threads = [("7", "tidegate"), ("8", "shard-0"), ("9", "shard-1"), ("10", "shard-x")];
        for (thread, name) in threads {
            write(&format!("task/{thread}/comm"), &format!("{name}\n"));
        }
        Running::read(&Files::new(folder.path()), "7")
    }

    fn set(value: &str) -> Setting {
        Setting::Set(value.to_owned())
    }

    #[test]
    fn shards_are_threads_by_name() {
        assert_eq!(running("tidegate", "").shards, Ok(2));
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_a_file() {
        const KEY: &str = "limits.connections_max";
        let of = |cmdline, environ| running(cmdline, environ).setting(KEY, None);
        assert_eq!(of("tidegate", "HOME=/root"), Setting::Default);
        let variable = "A=b TIDEGATE_LIMITS__CONNECTIONS_MAX=5";
        assert_eq!(of("tidegate", variable), set("5"));
        assert_eq!(of("tidegate --set limits.connections_max=6", variable), set("6"));
        let twice = "tidegate --set=limits.connections_max=6 --set limits.connections_max=7";
        assert_eq!(of(twice, variable), set("7"));
        assert_eq!(of("tidegate --config a.toml", ""), Setting::File("a.toml".into()));
        assert_eq!(of("tidegate", "TIDEGATE_CONFIG=b.toml"), Setting::File("b.toml".into()));
        assert_eq!(of("tidegate --config a.toml", variable), set("5"));
    }

    #[test]
    fn a_key_with_a_flag_is_read_by_either() {
        let of = |cmdline| {
            running(cmdline, "TIDEGATE_LISTEN=[::]:1").setting("listen", Some("--listen"))
        };
        assert_eq!(of("tidegate"), set("[::]:1"));
        assert_eq!(of("tidegate --listen 0.0.0.0:7500"), set("0.0.0.0:7500"));
        assert_eq!(of("tidegate --listen=0.0.0.0:7501"), set("0.0.0.0:7501"));
        assert_eq!(of("tidegate --set listen=0.0.0.0:2 --listen 0.0.0.0:3"), set("0.0.0.0:2"));
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let running = Running::read(&Files::new(folder.path()), "7");
        assert!(running.shards.is_err());
        assert!(matches!(running.setting("listen", None), Setting::Unknown(_)));
    }
}
