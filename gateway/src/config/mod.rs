//! Settings of `realm serve` and `realm run`: flags, then `REALM_*`, then `realm.toml`, then
//! defaults. One struct is both the command line and the file, so that the two cannot drift apart.

mod error;
mod file;
mod listen;
mod programs;
mod tenants;
#[cfg(test)]
mod tests;
mod values;
mod workers;

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use error::within;

pub use error::ConfigError;
pub use file::File;
pub use listen::{Listen, ListenSettings};
pub use programs::{ProgramFolder, ProgramSettings};
pub use tenants::{TenantSettings, TenantTable};
pub use values::{
    AdminAddr, Attach, ByteSize, Dtype, EMBEDDED, EMBEDDED_NAME, LogFormat, ModelSource, ModelSpec,
    Quantization, Surplus,
};
pub use workers::{WorkerSettings, Workers};

/// Who may call.
#[derive(Debug, Clone, Default, Args)]
pub struct AccessSettings {
    /// File of the API keys that requests must show one of, see `realm api-key` [default: none, so
    /// that anybody may call]
    #[arg(long, env = "REALM_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// File that gets a line of JSON for each request that is over, with what it used [default:
    /// none]
    #[arg(long, env = "REALM_USAGE_LOG", value_name = "FILE")]
    pub usage_log: Option<PathBuf>,
}

/// How to log.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", default)]
pub struct LogSettings {
    /// Log filter, e.g. `info` or `realm_gateway=debug` [default: info]
    #[arg(long, env = "REALM_LOG", global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Log lines for people or for machines [default: text]
    #[arg(long, env = "REALM_LOG_FORMAT", global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}
