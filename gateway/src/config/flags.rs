//! The command line.

use std::path::PathBuf;

use clap::Parser;
use clap::error::ErrorKind;

/// A TCP gateway between phones and backends.
///
/// Every key of the configuration can be set in a TOML file, in the environment (TIDEGATE_LISTEN,
/// TIDEGATE_LIMITS__FRAME_BYTES_MAX) and by flags; a flag wins over the environment, the environment
/// over the file. tidegate.toml, in the source tree, documents every key.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
pub(super) struct Flags {
    // A negative number is taken for a value, so that the error names the flag and the range.
    /// The TOML file to read [env: TIDEGATE_CONFIG]. Without one the defaults hold; no file is read
    /// unless it is named.
    #[arg(long, value_name = "FILE", allow_negative_numbers = true)]
    pub(super) config: Option<PathBuf>,

    /// Where clients connect [default: 127.0.0.1:7400].
    #[arg(long, value_name = "IP:PORT", allow_negative_numbers = true)]
    listen: Option<String>,

    /// Where the operators' HTTP server listens [default: 127.0.0.1:7401].
    #[arg(long, value_name = "IP:PORT", allow_negative_numbers = true)]
    admin: Option<String>,

    /// Shards, each a thread; 0: one per core [default: 0].
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    shards: Option<String>,

    /// How shards talk to the kernel: auto, epoll or uring [default: auto].
    #[arg(long, value_name = "DRIVER", allow_negative_numbers = true)]
    driver: Option<String>,

    /// How a token proves a user: jwt, redis, or demo, which works only on loopback [default: jwt].
    #[arg(long, value_name = "MODE", allow_negative_numbers = true)]
    auth: Option<String>,

    /// Longest frame that a client may send, in bytes [default: 65536].
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    frame_bytes_max: Option<String>,

    /// What to log: info, or warn,tidegate=debug [default: info].
    #[arg(long, value_name = "FILTER", allow_negative_numbers = true)]
    log: Option<String>,

    /// The format of the log: text or json [default: text].
    #[arg(long, value_name = "FORMAT", allow_negative_numbers = true)]
    log_format: Option<String>,

    /// Sets any key of the configuration, as in --set limits.frames_per_second_max=50. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", allow_negative_numbers = true)]
    set: Vec<String>,

    /// Checks the configuration and the keys that it names, says what is wrong, and ends.
    #[arg(long)]
    pub(super) check_config: bool,
}

impl Flags {
    /// The settings of the flags: flag, key and the value as text. Later ones win.
    pub(super) fn settings(&self) -> Result<Vec<(&'static str, String, String)>, clap::Error> {
        let named = [
            ("--listen", "listen", &self.listen),
            ("--admin", "admin.listen", &self.admin),
            ("--shards", "shards", &self.shards),
            ("--driver", "driver", &self.driver),
            ("--auth", "auth.mode", &self.auth),
            ("--frame-bytes-max", "limits.frame_bytes_max", &self.frame_bytes_max),
            ("--log", "log.filter", &self.log),
            ("--log-format", "log.format", &self.log_format),
        ];
        let mut settings: Vec<_> = named
            .into_iter()
            .filter_map(|(flag, key, value)| Some((flag, key.to_owned(), value.clone()?)))
            .collect();
        for setting in &self.set {
            let Some((key, value)) = setting.split_once('=') else {
                let message = format!(
                    "--set {setting}: there is no `=` in it; write --set limits.frame_bytes_max=65536\n"
                );
                return Err(clap::Error::raw(ErrorKind::ValueValidation, message));
            };
            settings.push(("--set", key.trim().to_owned(), value.trim().to_owned()));
        }
        Ok(settings)
    }
}
