//! The settings of a `realm.toml`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{
    AccessSettings, ByteSize, ConfigError, ListenSettings, LogSettings, ProgramSettings,
    TenantSettings, TenantTable, WorkerSettings,
};

/// A `realm.toml`: the flags by their long names, with `_` for `-`, in three sections; the file of
/// API keys and the folder of programs; and the tenants, for which there are no flags.
#[derive(Debug, Clone, Default)]
pub struct File {
    /// `api_keys`, a path from the folder of this file on.
    pub access: AccessSettings,
    /// `programs` and `compiler`, paths from the folder of this file on, `program_bytes`,
    /// `compile_seconds` and `compile_memory`.
    pub programs: ProgramSettings,
    /// `[server]`
    pub server: ListenSettings,
    /// `[worker]`
    pub worker: WorkerSettings,
    /// `[log]`
    pub log: LogSettings,
    /// `[tenant_defaults]` and each `[[tenant]]`.
    pub tenants: TenantTable,
    /// Where it was read, and its text.
    source: Option<(PathBuf, String)>,
}

/// The same as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    api_keys: Option<PathBuf>,
    usage_log: Option<PathBuf>,
    programs: Option<PathBuf>,
    program_bytes: Option<ByteSize>,
    compile_seconds: Option<u64>,
    compile_memory: Option<ByteSize>,
    compiler: Option<PathBuf>,
    #[serde(default)]
    server: ListenSettings,
    #[serde(default)]
    worker: WorkerSettings,
    #[serde(default)]
    log: LogSettings,
    tenant_defaults: Option<Spanned<TenantSettings>>,
    #[serde(default)]
    tenant: Vec<Spanned<TenantSettings>>,
}

impl File {
    /// Reads a file; no path is an empty file.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(File::default());
        };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let parse = |message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        };
        let sections: Sections = toml::from_str(&text).map_err(|e| parse(e.to_string()))?;
        let tenants = TenantTable::new(sections.tenant_defaults, sections.tenant);
        let tenants = tenants.map_err(|(offset, message)| {
            let before = text.get(..offset).unwrap_or_default();
            parse(format!(
                "line {}: {message}",
                1 + before.matches('\n').count()
            ))
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(File {
            access: AccessSettings {
                api_keys: sections.api_keys.map(|keys| folder.join(keys)),
                usage_log: sections.usage_log.map(|log| folder.join(log)),
            },
            programs: ProgramSettings {
                programs: sections.programs.map(|dir| folder.join(dir)),
                program_bytes: sections.program_bytes,
                compile_seconds: sections.compile_seconds,
                compile_memory: sections.compile_memory,
                compiler: sections.compiler.map(|socket| folder.join(socket)),
            },
            server: sections.server,
            worker: sections.worker,
            log: sections.log,
            tenants,
            source: Some((path.to_owned(), text)),
        })
    }

    /// What `resolve` makes of flags over a `section` of this file.
    ///
    /// # Errors
    /// With the place in this file where it comes from, if it comes from there: if the same is wrong without
    /// any flags.
    pub fn under<S: Clone + Default, T>(
        &self,
        flags: S,
        section: &S,
        resolve: impl Fn(S, S) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        resolve(flags, section.clone())
            .map_err(|error| self.locate(error, resolve(S::default(), section.clone())))
    }

    fn locate<T>(&self, error: ConfigError, alone: Result<T, ConfigError>) -> ConfigError {
        let same = alone.is_err_and(|alone| alone.to_string() == error.to_string());
        let (Some((path, text)), Some(key), true) = (&self.source, error.key(), same) else {
            return error;
        };
        let sets = |line: &str| {
            let rest = line.trim_start().strip_prefix(key);
            rest.is_some_and(|rest| rest.trim_start().starts_with('='))
        };
        match text.lines().position(sets) {
            Some(before) => ConfigError::Parse {
                path: path.clone(),
                message: format!("line {}: `{key}`: {error}", before + 1),
            },
            None => error,
        }
    }
}
