//! Log output: to standard error, for people or for machines.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Installs the log subscriber of the process.
pub(super) fn init(
    flags: LogSettings,
    file: LogSettings,
    default_level: &str,
) -> anyhow::Result<()> {
    let filter = flags
        .log
        .or(file.log)
        .unwrap_or_else(|| default_level.to_owned());
    let filter = EnvFilter::try_new(&filter).with_context(|| {
        format!("the log filter `{filter}` is not one (try `info` or `realm_gateway=debug`)")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match flags.log_format.or(file.log_format).unwrap_or_default() {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
