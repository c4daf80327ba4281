//! The log, the recorder of metrics, and lines on the standard output.
//!
//! No call here waits for a reader: see [`output`].

pub mod output;
pub(crate) mod panics;

use std::io;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use metrics::counter;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};
use output::{Dropped, Lines};

/// How often dropped lines are exported and the samples of histograms are folded together. Without the latter, samples
/// would take ever more memory while nobody requests the metrics.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Why telemetry can't be installed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter can't be parsed. That of a checked configuration can.
    #[error("log.filter")]
    Filter(#[from] ParseError),
    /// The process logs already.
    #[error("a logger is installed already")]
    Logger(#[from] tracing_subscriber::util::TryInitError),
    /// The process records metrics already.
    #[error("a recorder of metrics is installed already")]
    Recorder(#[from] BuildError),
    /// The system gives no thread.
    #[error("can't start the metrics' upkeep")]
    Thread(#[from] io::Error),
}

/// Installs the log and the recorder, for the whole process and until it ends. Call it once.
///
/// # Errors
/// [`TelemetryError`], for example when they are installed already.
pub fn install(config: &LogConfig) -> Result<PrometheusHandle, TelemetryError> {
    install_log(config)?;
    install_recorder()
}

/// Installs the log alone. It goes to the standard error, in colours on a terminal. It installs a panic hook too, which
/// logs panics.
///
/// Logging never waits: a line that finds no room is dropped and counted. Call [`output::flush`] before the process
/// ends, or the last lines may be missing.
///
/// # Errors
/// [`TelemetryError`] when the process logs already.
pub fn install_log(config: &LogConfig) -> Result<(), TelemetryError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.filter)?)
        // It would write its own errors with `eprintln!`, which may block or panic.
        .log_internal_errors(false)
        .with_writer(|| Lines(output::stderr()));
    let set: SetFilter = match config.format {
        LogFormat::Text => {
            let log = log.with_ansi(output::stderr().takes_colours()).with_filter_reloading();
            let handle = log.reload_handle();
            log.finish().try_init()?;
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
        LogFormat::Json => {
            let log = log.json().flatten_event(true).with_filter_reloading();
            let handle = log.reload_handle();
            log.finish().try_init()?;
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
    };
    // The log was not installed before, or this line would not be reached.
    drop(FILTER.set(set));
    panics::install();
    Ok(())
}

/// Replaces the filter of the log.
type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// That of the log that [`install_log`] has installed, for the whole process as the log is.
static FILTER: OnceLock<SetFilter> = OnceLock::new();

/// A filter for [`Self::apply`], parsed.
pub(crate) struct NewFilter(EnvFilter);

impl NewFilter {
    /// Parses a filter.
    ///
    /// # Errors
    /// It can't be parsed. That of a checked configuration can.
    pub(crate) fn parse(configured: &str) -> Result<Self, ParseError> {
        filter(configured).map(Self)
    }

    /// Filters the log with it from now on. Without effect where the program has a log of its own.
    pub(crate) fn apply(self) {
        if let Some(set) = FILTER.get()
            && !set(self.0)
        {
            tracing::error!("the log keeps its filter: the subscriber is gone");
        }
    }
}

/// The filter that is configured. rustls warns of what peers send, with a line for each: a peer could fill the log before it
/// has authenticated. So rustls logs errors alone, unless the filter names it.
fn filter(configured: &str) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::try_new(configured)?;
    if configured.contains("rustls") {
        return Ok(filter);
    }
    Ok(filter.add_directive("rustls=error".parse()?))
}

/// Installs the recorder alone.
///
/// # Errors
/// [`TelemetryError`] when the process records metrics already.
pub fn install_recorder() -> Result<PrometheusHandle, TelemetryError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    let kept = handle.clone();
    thread::Builder::new().name("metrics-upkeep".into()).spawn(move || {
        loop {
            export_dropped_lines();
            thread::sleep(UPKEEP_INTERVAL);
            kept.run_upkeep();
        }
    })?;
    Ok(handle)
}

fn export_dropped_lines() {
    for output in [output::stdout(), output::stderr()] {
        let Dropped { queue_full, write_failed } = output.dropped();
        for (reason, lines) in [("queue_full", queue_full), ("write_failed", write_failed)] {
            let stream = output.label();
            counter!("tidegate_log_lines_dropped_total", "stream" => stream, "reason" => reason)
                .absolute(lines);
        }
    }
}
