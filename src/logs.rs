//! Where logs go and how they look: standard error, text on a terminal, JSON in a pipe.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::fault::Fault;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON in a pipe.
    Auto,
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Starts logging for the whole process.
pub(crate) fn init(format: LogFormat, filter: &str) -> Result<(), Fault> {
    let filter =
        EnvFilter::builder().parse(filter).map_err(|error| Fault::bad_input(format!("--log-level: {error}")))?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    let started = match (format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => builder.json().flatten_event(true).try_init(),
        (LogFormat::Text, _) | (LogFormat::Auto, true) => builder.try_init(),
    };
    started.map_err(|error| Fault::failed(format!("cannot start logging: {error}")))
}
