//! What is wrong with the settings.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the config file {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, key, and what is wrong with it.
        message: String,
    },
    /// A file where programs should be kept.
    #[error("the programs cannot be kept in `{0}`, which is no folder")]
    NoFolder(PathBuf),
    /// A model that is not there.
    #[error("there is no model directory `{0}`")]
    NoDirectory(PathBuf),
    /// A number that is too small or too large.
    #[error("`{key}` must be between {between}")]
    Range {
        /// Its key.
        key: &'static str,
        /// In words.
        between: &'static str,
    },
    /// Two models under one name.
    #[error("two models are named `{0}`: give one another name with --model NAME=DIR")]
    DuplicateModel(String),
    /// A worker for a model that is not served.
    #[error("--attach names the model `{0}`, which is not served: give it with --model {0}=DIR")]
    AttachUnknown(String),
    /// Two workers for one model.
    #[error("--attach gives two sockets for the model `{0}`: a model has one worker")]
    AttachTwice(String),
    /// Everyone could reach the server, and nobody has to show a key.
    #[error(
        "{0} can be reached from other machines and no API keys are configured: listen on 127.0.0.1, \
         give --api-keys, or pass --allow-unauthenticated if something in front of Realm checks who \
         calls"
    )]
    Unauthenticated(IpAddr),
    /// The same of the admin listener, which never asks for a key.
    #[error(
        "the admin listener's {0} can be reached from other machines, and asks nobody for a key: \
         listen on 127.0.0.1, or pass --allow-unauthenticated if something in front of Realm checks \
         who calls"
    )]
    UnauthenticatedAdmin(IpAddr),
}

impl ConfigError {
    /// The key of a `realm.toml` that it is about.
    pub(super) fn key(&self) -> Option<&'static str> {
        Some(match self {
            ConfigError::Read { .. } | ConfigError::Parse { .. } => return None,
            ConfigError::NoFolder(_) => "programs",
            ConfigError::Range { key, .. } => key,
            ConfigError::NoDirectory(_) | ConfigError::DuplicateModel(_) => "model",
            ConfigError::AttachUnknown(_) | ConfigError::AttachTwice(_) => "attach",
            ConfigError::Unauthenticated(_) => "host",
            ConfigError::UnauthenticatedAdmin(_) => "admin_addr",
        })
    }
}

/// A number that is in its range, which `between` spells.
pub(super) fn within<T: PartialOrd>(
    key: &'static str,
    value: Option<T>,
    range: RangeInclusive<T>,
    between: &'static str,
) -> Result<Option<T>, ConfigError> {
    match value {
        Some(value) if !range.contains(&value) => Err(ConfigError::Range { key, between }),
        value => Ok(value),
    }
}
