//! Where tenants' programs are kept, and what compiling one may take.

use std::path::PathBuf;

use clap::Args;
use realm_shared::control::{COMPILE_MEMORY, COMPILE_SECONDS};

use super::{ByteSize, ConfigError, within};
use crate::programs::CompileLimits;

/// Where programs of tenants are kept.
#[derive(Debug, Clone, Default, Args)]
pub struct ProgramSettings {
    /// Folder of tenants' programs, see `realm program` [default: none, so that there are no
    /// programs]
    #[arg(long, env = "REALM_PROGRAMS_DIR", value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// Longest component that may be stored, e.g. 16MiB [default: 16MiB]
    #[arg(long, env = "REALM_PROGRAM_BYTES", value_name = "SIZE")]
    pub program_bytes: Option<ByteSize>,
    /// Seconds of processor time that compiling a program may take, and half of what it may take of
    /// wall time [default: 30]
    #[arg(long, env = "REALM_COMPILE_SECONDS", value_name = "SECONDS")]
    pub compile_seconds: Option<u64>,
    /// Memory that it may take, at least 512MiB [default: 4GiB]
    #[arg(long, env = "REALM_COMPILE_MEMORY", value_name = "SIZE")]
    pub compile_memory: Option<ByteSize>,
    /// Have programs compiled by whoever listens at SOCKET, started with `realm-worker compile --socket
    /// SOCKET`, instead of by the realm-worker binary
    #[arg(long, env = "REALM_COMPILER", value_name = "SOCKET")]
    pub compiler: Option<PathBuf>,
}

/// Where programs are kept, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramFolder {
    /// The folder; made where it is not there.
    pub dir: PathBuf,
    /// Longest component in bytes.
    pub most_bytes: usize,
    /// What compiling one may take.
    pub limits: CompileLimits,
    /// Socket of the compiler, if it is not the worker's binary.
    pub compiler: Option<PathBuf>,
}

impl ProgramSettings {
    /// Flags and environment over the file over defaults. `None`: there are no programs.
    pub fn resolve(self, file: Self) -> Result<Option<ProgramFolder>, ConfigError> {
        let limits = self.compile_limits(&file)?;
        let Some(dir) = self.programs.or(file.programs) else {
            return Ok(None);
        };
        if dir.exists() && !dir.is_dir() {
            return Err(ConfigError::NoFolder(dir));
        }
        let most = self.program_bytes.or(file.program_bytes);
        let most = most.map_or(16 << 20, |size| size.0);
        Ok(Some(ProgramFolder {
            dir,
            most_bytes: usize::try_from(most).unwrap_or(usize::MAX),
            limits,
            compiler: self.compiler.or(file.compiler),
        }))
    }

    /// What compiling may take: flags and environment over the file over defaults.
    pub fn compile_limits(&self, file: &Self) -> Result<CompileLimits, ConfigError> {
        let usual = CompileLimits::default();
        let seconds = self.compile_seconds.or(file.compile_seconds);
        let memory = self.compile_memory.or(file.compile_memory);
        let seconds = within("compile_seconds", seconds, COMPILE_SECONDS, "1 and 3600")?;
        let memory = memory.map(|size| size.0);
        let memory = within(
            "compile_memory",
            memory,
            COMPILE_MEMORY,
            "512MiB and 1024GiB",
        )?;
        Ok(CompileLimits {
            seconds: seconds.unwrap_or(usual.seconds),
            memory: memory.unwrap_or(usual.memory),
        })
    }
}
