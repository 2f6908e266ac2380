//! What commands about components have in common: the file, and the compiler.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::Bytes;

use crate::config::{ConfigError, File, ProgramSettings};
use crate::programs::Compiler;
use crate::workers::default_binary;

#[derive(Debug, clap::Args)]
pub(super) struct CompilerArgs {
    /// The realm-worker binary, which compiles [default: beside this one]
    #[arg(long, env = "REALM_WORKER", value_name = "PATH")]
    pub(super) worker: Option<PathBuf>,
    /// Compile nothing where the system cannot confine the compiler
    #[arg(
        long,
        env = "REALM_REQUIRE_SANDBOX",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub(super) require_sandbox: Option<bool>,
}

impl CompilerArgs {
    pub(super) fn find(&self, file: &File) -> Result<Compiler, ConfigError> {
        let limits = ProgramSettings::default().compile_limits(&file.programs)?;
        if let (None, Some(socket)) = (&self.worker, &file.programs.compiler) {
            return Ok(Compiler::listening(socket.clone(), limits));
        }
        let binary = self.worker.clone().or_else(|| file.worker.worker.clone());
        let require_sandbox = self.require_sandbox.or(file.worker.require_sandbox);
        Ok(Compiler::new(
            binary.unwrap_or_else(default_binary),
            limits,
            require_sandbox.unwrap_or(false),
        ))
    }
}

/// Reads a component.
pub(super) fn read(file: &Path) -> anyhow::Result<Bytes> {
    let component = std::fs::read(file);
    let component = component.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(component.into())
}
