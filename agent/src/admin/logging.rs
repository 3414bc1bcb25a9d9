//! The log: set-up, its two formats, and its level, which an administrator changes while the agent runs.
//!
//! ```text
//!  tracing event ─▶ level filter (reloadable) ─▶ one line of text ─▶ bounded queue ─▶ writer thread
//! ```
//! A full queue makes the writing thread wait: an access log with holes would be worth little.

mod format;
mod level;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

use tracing::Subscriber;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Registry, fmt, reload};

pub use format::LogFormat;
pub use level::{InvalidLevel, LevelRequest, LogControl};
pub use writer::LogGuard;

use format::{Line, PlainFields};

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogSetupError {
    /// The level does not parse.
    #[error("the log level cannot be used")]
    Level(#[source] InvalidLevel),
    /// The writer thread could not be started.
    #[error("the log's writer thread cannot be started")]
    Thread(#[source] io::Error),
    /// The process has a log already.
    #[error("the log is set up already")]
    Twice(#[source] SetGlobalDefaultError),
}

/// Makes `output` the process's log, at the level that `directives` say: `info`, or
/// `info,access=debug`. Keep the guard until the end: dropping it writes what is still queued.
///
/// # Errors
/// [`LogSetupError`] if the directives do not parse, no thread can be had, or there is a log already.
pub fn install(
    format: LogFormat,
    directives: &str,
    output: impl io::Write + Send + 'static,
) -> Result<(LogControl, LogGuard), LogSetupError> {
    let (subscriber, control, guard) = build(format, directives, output)?;
    tracing::subscriber::set_global_default(subscriber).map_err(LogSetupError::Twice)?;
    Ok((control, guard))
}

fn build(
    format: LogFormat,
    directives: &str,
    output: impl io::Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync, LogControl, LogGuard), LogSetupError> {
    let initial = level::parse(directives).map_err(LogSetupError::Level)?;
    let (sender, guard) = writer::start(output).map_err(LogSetupError::Thread)?;
    let (filter, handle) = reload::Layer::new(initial.clone());
    let lines = fmt::layer()
        .with_ansi(false)
        .fmt_fields(PlainFields)
        .event_format(Line(format))
        .with_writer(sender);
    let subscriber = Registry::default().with(filter).with(lines);
    Ok((subscriber, LogControl::new(initial, handle), guard))
}
