//! Settings of `realm serve` and `realm run`: flags, then `REALM_*`, then `realm.toml`, then
//! defaults. One struct is both the command line and the file, so that the two cannot drift apart.

mod tenants;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use realm_shared::control::{
    COMPILE_MEMORY, COMPILE_SECONDS, GPU_MEMORY_FRACTION, INSTANCES, PROGRAM_STACK,
};
use realm_shared::cpus::Cpus;
use realm_shared::device::Device;
use serde::Deserialize;
use toml::Spanned;

use crate::programs::CompileLimits;

pub use tenants::{TenantSettings, TenantTable};
pub use values::{
    AdminAddr, Attach, ByteSize, Dtype, EMBEDDED, EMBEDDED_NAME, LogFormat, ModelSource, ModelSpec,
    Quantization, Surplus,
};

/// Where to listen and how to log. Absent values fall through to the next source.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", default)]
pub struct ListenSettings {
    /// Address to serve the API on [default: 127.0.0.1]
    #[arg(long, env = "REALM_HOST", value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Port to serve the API on; 0 picks a free one [default: 8080]
    #[arg(long, env = "REALM_PORT")]
    pub port: Option<u16>,
    /// Address of /health, /ready, /metrics and the admin API, or `off` [default: 127.0.0.1:9090]
    #[arg(long, env = "REALM_ADMIN_ADDR", value_name = "HOST:PORT")]
    pub admin_addr: Option<AdminAddr>,
    /// Serve on addresses other than loopback although nobody has to show a key
    #[arg(
        long,
        env = "REALM_ALLOW_UNAUTHENTICATED",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub allow_unauthenticated: Option<bool>,
    /// Largest request body in bytes [default: 16777216]
    #[arg(long, env = "REALM_MAX_BODY_BYTES", value_name = "BYTES")]
    pub max_body_bytes: Option<usize>,
    /// Seconds that running requests may take to finish after SIGTERM [default: 30]
    #[arg(long, env = "REALM_DRAIN_TIMEOUT", value_name = "SECONDS")]
    pub drain_timeout: Option<u64>,
}

/// Which models to serve, and how their workers run.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", default)]
pub struct WorkerSettings {
    /// Model directory as on the Hugging Face hub, or NAME=DIR, or `embedded`; repeatable
    /// [default: embedded]
    #[arg(
        long = "model",
        env = "REALM_MODEL",
        value_name = "[NAME=]DIR",
        value_delimiter = ','
    )]
    pub model: Vec<ModelSpec>,
    /// Attach to the worker that listens at SOCKET instead of spawning one for model NAME;
    /// repeatable. It was started with `realm-worker serve --socket SOCKET`
    #[arg(
        long,
        env = "REALM_ATTACH",
        value_name = "NAME=SOCKET",
        value_delimiter = ','
    )]
    pub attach: Vec<Attach>,
    /// Compute with random numbers instead of weights, of which a model directory need have none: to
    /// measure a shape
    #[arg(
        long,
        env = "REALM_RANDOM_WEIGHTS",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub random_weights: Option<bool>,
    /// Device of the workers: cpu, or an NVIDIA GPU: cuda, or cuda:N by the driver's number
    /// [default: cpu]
    #[arg(long, env = "REALM_DEVICE")]
    pub device: Option<Device>,
    /// Part of what is free of a GPU's memory, once the model is loaded, that KV blocks get unless kv_memory
    /// says how much; from 0.05 to 0.98 [default: 0.9]
    #[arg(long, env = "REALM_GPU_MEMORY_FRACTION", value_name = "PART")]
    pub gpu_memory_fraction: Option<f64>,
    /// Data type of the forward pass: auto (the checkpoint's), f32, bf16 or f16 [default: auto]
    #[arg(long, env = "REALM_DTYPE")]
    pub dtype: Option<Dtype>,
    /// What matrices are held in on a GPU of compute capability 8.9 or later: fp8, for models in bf16 [default: as
    /// dtype says]
    #[arg(long, env = "REALM_QUANTIZATION")]
    pub quantization: Option<Quantization>,
    /// Compute threads of each worker [default: one per core]
    #[arg(long, env = "REALM_THREADS")]
    pub threads: Option<u32>,
    /// CPUs that the workers compute on, e.g. 0-3,8 [default: all that the system allows]
    #[arg(long, env = "REALM_CPUS", value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Bytes for KV blocks, e.g. 2GiB [default: a quarter of the free memory at most, or of a GPU's
    /// what gpu_memory_fraction says]
    #[arg(long, env = "REALM_KV_MEMORY", value_name = "SIZE")]
    pub kv_memory: Option<ByteSize>,
    /// Longest sequence in tokens [default: the model's]
    #[arg(long, env = "REALM_MAX_CONTEXT", value_name = "TOKENS")]
    pub max_context: Option<u32>,
    /// Most sequences running or waiting per model; more are refused with 429 [default: 1024]
    #[arg(long, env = "REALM_MAX_QUEUE", value_name = "N")]
    pub max_queue: Option<usize>,
    /// How much longer, as a part, a step may take than one for a single sequence so that tenants
    /// get more than their shares while others are at work [default: 0.1]
    #[arg(long, env = "REALM_SURPLUS", value_name = "PART")]
    pub surplus: Option<Surplus>,
    /// Seconds that one step may take before its worker counts as hung [default: 60]
    #[arg(long, env = "REALM_STEP_TIMEOUT", value_name = "SECONDS")]
    pub step_timeout: Option<u64>,
    /// Instances of tenants' programs that one worker runs at once; some 200 MiB of address space,
    /// not of memory, for each [default: 1000]
    #[arg(long, env = "REALM_INSTANCES", value_name = "N")]
    pub instances: Option<u32>,
    /// Stack of each of them, from 64KiB to 4MiB [default: 256KiB]
    #[arg(long, env = "REALM_PROGRAM_STACK", value_name = "SIZE")]
    pub program_stack: Option<ByteSize>,
    /// Refuse to start workers where the system cannot confine them by Landlock and seccomp, instead
    /// of a warning in the log. A worker that is attached has a flag of this name itself
    #[arg(
        long,
        env = "REALM_REQUIRE_SANDBOX",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub require_sandbox: Option<bool>,
    /// The realm-worker binary [default: beside this one]
    #[arg(long, env = "REALM_WORKER", value_name = "PATH")]
    pub worker: Option<PathBuf>,
}

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
    fn key(&self) -> Option<&'static str> {
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
}

impl ProgramSettings {
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

/// A number that is in its range, which `between` spells.
fn within<T: PartialOrd>(
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

/// Where and how to listen, with every default filled in.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the admin listener.
    pub admin: Option<SocketAddr>,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// How long running requests may take to finish after SIGTERM.
    pub drain_timeout: Duration,
}

impl ListenSettings {
    /// Flags and environment over the file over defaults. `keys`: whether requests must show one.
    pub fn resolve(self, file: Self, keys: bool) -> Result<Listen, ConfigError> {
        let host = self
            .host
            .or(file.host)
            .unwrap_or(Ipv4Addr::LOCALHOST.into());
        let unauthenticated = self
            .allow_unauthenticated
            .or(file.allow_unauthenticated)
            .unwrap_or(false);
        let admin = self.admin_addr.or(file.admin_addr);
        let admin = admin.unwrap_or_default().addr();
        if !unauthenticated && !keys && !host.is_loopback() {
            return Err(ConfigError::Unauthenticated(host));
        }
        if let Some(ip) = admin.map(|addr| addr.ip())
            && !unauthenticated
            && !ip.is_loopback()
        {
            return Err(ConfigError::UnauthenticatedAdmin(ip));
        }
        Ok(Listen {
            api: SocketAddr::new(host, self.port.or(file.port).unwrap_or(8080)),
            admin,
            max_body_bytes: self
                .max_body_bytes
                .or(file.max_body_bytes)
                .unwrap_or(16 << 20),
            drain_timeout: Duration::from_secs(
                self.drain_timeout.or(file.drain_timeout).unwrap_or(30),
            ),
        })
    }
}

/// Models and their workers, with every default filled in that is the gateway's to choose.
#[derive(Debug, Clone)]
pub struct Workers {
    /// Models to serve, the default one first; no two of one name.
    pub models: Vec<ModelSpec>,
    /// Whether they compute with random numbers instead of weights.
    pub random_weights: bool,
    /// Device of the workers.
    pub device: Device,
    /// Part of what is free of a GPU's memory for KV blocks; the worker chooses if absent.
    pub gpu_memory_fraction: Option<f64>,
    /// Data type of the forward pass.
    pub dtype: Dtype,
    /// What matrices are held in instead, if that is another type.
    pub quantization: Option<Quantization>,
    /// Compute threads; the worker chooses if absent.
    pub threads: Option<u32>,
    /// CPUs that they compute on; the worker chooses if absent.
    pub cpus: Option<Cpus>,
    /// Bytes for KV blocks; the worker chooses if absent.
    pub kv_memory: Option<ByteSize>,
    /// Longest sequence; the worker chooses if absent.
    pub max_context: Option<u32>,
    /// Most sequences running or waiting per model.
    pub max_queue: usize,
    /// How much longer than the shortest a step may take for what tenants get beyond their shares.
    pub surplus: Surplus,
    /// How long one step may take.
    pub step_timeout: Duration,
    /// Instances of programs at once in a worker; the worker chooses if absent.
    pub instances: Option<u32>,
    /// Stack of each; the worker chooses if absent.
    pub program_stack: Option<ByteSize>,
    /// Whether workers that the system cannot confine are refused.
    pub require_sandbox: bool,
    /// The worker's binary, if not beside this one.
    pub binary: Option<PathBuf>,
}

impl WorkerSettings {
    /// Flags and environment over the file over defaults.
    pub fn resolve(self, file: Self) -> Result<Workers, ConfigError> {
        let mut models = if self.model.is_empty() {
            file.model
        } else {
            self.model
        };
        if models.is_empty() {
            models.push(ModelSpec::embedded());
        }
        for (i, m) in models.iter().enumerate() {
            if models[..i].iter().any(|other| other.name == m.name) {
                return Err(ConfigError::DuplicateModel(m.name.clone()));
            }
            if let ModelSource::Directory(dir) = &m.source
                && !dir.is_dir()
            {
                return Err(ConfigError::NoDirectory(dir.clone()));
            }
        }
        let attach = if self.attach.is_empty() {
            file.attach
        } else {
            self.attach
        };
        for Attach { model, socket } in attach {
            let Some(spec) = models.iter_mut().find(|spec| spec.name == model) else {
                return Err(ConfigError::AttachUnknown(model));
            };
            if spec.attach.replace(socket).is_some() {
                return Err(ConfigError::AttachTwice(model));
            }
        }
        Ok(Workers {
            models,
            random_weights: self.random_weights.or(file.random_weights).unwrap_or(false),
            device: self.device.or(file.device).unwrap_or_default(),
            gpu_memory_fraction: within(
                "gpu_memory_fraction",
                self.gpu_memory_fraction.or(file.gpu_memory_fraction),
                GPU_MEMORY_FRACTION,
                "0.05 and 0.98",
            )?,
            dtype: self.dtype.or(file.dtype).unwrap_or_default(),
            quantization: self.quantization.or(file.quantization),
            threads: self.threads.or(file.threads),
            cpus: self.cpus.or(file.cpus),
            kv_memory: self.kv_memory.or(file.kv_memory),
            max_context: self.max_context.or(file.max_context),
            max_queue: self.max_queue.or(file.max_queue).unwrap_or(1024).max(1),
            surplus: self.surplus.or(file.surplus).unwrap_or_default(),
            step_timeout: Duration::from_secs(
                self.step_timeout.or(file.step_timeout).unwrap_or(60).max(1),
            ),
            instances: within(
                "instances",
                self.instances.or(file.instances),
                INSTANCES,
                "1 and 10000",
            )?,
            program_stack: within(
                "program_stack",
                self.program_stack.or(file.program_stack),
                ByteSize(*PROGRAM_STACK.start())..=ByteSize(*PROGRAM_STACK.end()),
                "64KiB and 4MiB",
            )?,
            require_sandbox: self
                .require_sandbox
                .or(file.require_sandbox)
                .unwrap_or(false),
            binary: self.worker.or(file.worker),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use realm_shared::wire::Allotment;

    use super::*;

    fn file(text: &str) -> Result<File, String> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("realm.toml");
        std::fs::write(&path, text).expect("writes");
        File::read(Some(&path)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let f = file("[server]\nport = 1\nmax_body_bytes = 7\n[worker]\nkv_memory = \"2GiB\"")
            .expect("valid");
        let flags = ListenSettings {
            port: Some(2),
            ..Default::default()
        };
        let listen = flags.resolve(f.server, false).expect("valid");
        assert_eq!((listen.api.port(), listen.max_body_bytes), (2, 7));
        assert_eq!(listen.api.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
        let workers = WorkerSettings::default().resolve(f.worker).expect("valid");
        assert_eq!(workers.kv_memory, Some(ByteSize(2 << 30)));
        assert_eq!(workers.models, [ModelSpec::embedded()]);
    }

    #[test]
    fn the_example_holds_the_defaults() {
        let example = file(include_str!("../../../realm.example.toml")).expect("valid");
        let [listen, default] = [example.server, ListenSettings::default()]
            .map(|s| format!("{:?}", s.resolve(Default::default(), false)));
        assert_eq!(listen, default);
        let [workers, default] = [example.worker, WorkerSettings::default()]
            .map(|s| format!("{:?}", s.resolve(Default::default())));
        assert_eq!(workers, default);
    }

    #[test]
    fn programs_are_kept_in_a_folder_that_is_named() {
        let off = ProgramSettings::default().resolve(ProgramSettings::default());
        assert_eq!(off.expect("valid"), None);
        let text = "programs = \"programs\"\nprogram_bytes = \"1MiB\"\ncompiler = \"sock\"";
        let file = file(text).expect("valid");
        let resolve = |flags: ProgramSettings| flags.resolve(file.programs.clone());
        let folder = resolve(ProgramSettings::default());
        let folder = folder.expect("valid").expect("given");
        assert!(folder.dir.is_absolute() && folder.dir.ends_with("programs"));
        assert_eq!(folder.most_bytes, 1 << 20);
        let compiler = folder.compiler.expect("given");
        assert!(compiler.is_absolute() && compiler.ends_with("sock"));
        let flags = ProgramSettings {
            programs: Some("/dev/null".into()),
            ..ProgramSettings::default()
        };
        assert!(matches!(resolve(flags), Err(ConfigError::NoFolder(_))));
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_its_line_unless_a_flag_is_to_blame() {
        let text = "[server]\nhost = \"0.0.0.0\"\n[worker]\nmodel = [\"/no/such\"]\n";
        let file = file(text).expect("reads");
        let workers = |flags: WorkerSettings| {
            let resolved = file.under(flags, &file.worker, WorkerSettings::resolve);
            resolved.expect_err("is not there").to_string()
        };
        let said = workers(WorkerSettings::default());
        assert!(said.contains("realm.toml: line 4: `model`: "), "{said}");
        let low = "compile_memory = \"1MiB\"\n[worker]\nprogram_stack = \"1KiB\"\ninstances = 0\n";
        let low = super::tests::file(low).expect("reads");
        let stack = low.under(
            WorkerSettings::default(),
            &low.worker,
            WorkerSettings::resolve,
        );
        let stack = stack.expect_err("too small").to_string();
        assert!(stack.contains("line 4: `instances`: "), "{stack}");
        let memory = ProgramSettings::default().compile_limits(&low.programs);
        let memory = memory.expect_err("too little").to_string();
        assert!(memory.contains("512MiB and 1024GiB"), "{memory}");
        let said = workers(WorkerSettings {
            model: vec!["other=/nor/this".parse().expect("a model")],
            ..WorkerSettings::default()
        });
        assert!(
            !said.contains("line") && said.contains("/nor/this"),
            "{said}"
        );
        let said = file.under(ListenSettings::default(), &file.server, |flags, file| {
            flags.resolve(file, false)
        });
        let said = said.expect_err("open to all");
        assert!(
            said.to_string().contains("line 2: `host`: 0.0.0.0"),
            "{said}"
        );
    }

    #[test]
    fn devices_are_checked_before_a_worker_is_started() {
        let device = |text: &str| file(&format!("[worker]\ndevice = \"{text}\"\n"));
        let workers = |settings: WorkerSettings| settings.resolve(WorkerSettings::default());
        let second = workers(device("cuda:1").expect("reads").worker);
        assert_eq!(second.expect("valid").device, Device::Cuda(1));
        let held = |text: &str| file(&format!("[worker]\nquantization = \"{text}\"\n"));
        let fp8 = workers(held("fp8").expect("reads").worker).expect("valid");
        assert_eq!(fp8.quantization, Some(Quantization::Fp8));
        let said = held("int4").expect_err("no such type");
        assert!(said.contains("line 2") && said.contains("fp8"), "{said}");
        let said = device("gpu").expect_err("no device");
        assert!(said.contains("line 2") && said.contains("cuda:N"), "{said}");
        let fraction = |part| WorkerSettings {
            gpu_memory_fraction: Some(part),
            ..WorkerSettings::default()
        };
        assert_eq!(
            workers(fraction(0.5)).expect("valid").gpu_memory_fraction,
            Some(0.5)
        );
        for bad in [0.0, 0.99, f64::NAN] {
            let said = workers(fraction(bad))
                .expect_err("out of range")
                .to_string();
            assert!(said.contains("0.05 and 0.98"), "{said}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let e = file("[server]\nport = 1\nprot = 2").expect_err("unknown key");
        assert!(e.contains("prot") && e.contains("line 3"), "{e}");
    }

    #[test]
    fn tenants_are_read_over_their_defaults() {
        let file = file(
            "api_keys = \"keys.json\"\n\
             [tenant_defaults]\nrequests_per_minute = 60\nmax_context = 2\n\
             [[tenant]]\nid = \"acme\"\nmax_context = 5\nmodels = [\"a\"]\nweight = 2\n\
             program_memory = \"1MiB\"\nprogram_call_ms = 5\nprograms = 0\nprocessor = \"guard\"\n\
             program_seconds = 9\nprogram_saved_tokens = 7\nprogram_call_seconds = 2\n\
             program_host_call = \"64KiB\"\nprogram_handles = 3\n\
             [[tenant]]\nid = \"other\"\n",
        )
        .expect("valid");
        let [acme, other, unnamed] = ["acme", "other", "x"].map(|name| file.tenants.of(name));
        assert_eq!(acme.max_context, NonZeroU32::new(5));
        assert_eq!(acme.requests_per_minute, other.requests_per_minute);
        let weights = [acme, other].map(|tenant| tenant.allowance().weight);
        assert_eq!(weights, [2.0, 1.0]);
        assert!(acme.allows("a") && !acme.allows("b") && other.allows("b"));
        assert_eq!(unnamed.max_context, NonZeroU32::new(2));
        assert_eq!(unnamed.id, None);
        let usual = Allotment::default();
        assert_eq!(unnamed.allotment(), usual);
        let own = Allotment {
            memory: 1 << 20,
            call_micros: 5000,
            patience_millis: 2000,
            handed: 64 << 10,
            handles: 3,
            ..usual
        };
        assert_eq!((acme.allotment(), acme.most_programs()), (own, 0));
        let kept = (acme.program_wall(), acme.saved_tokens());
        assert_eq!(kept, (Duration::from_secs(9), 7));
        let processors = [acme, other].map(|tenant| tenant.processor.as_ref().map(|p| p.as_str()));
        assert_eq!(processors, [Some("guard"), None]);
        assert_eq!(file.tenants.processors().count(), 1);
        let keys = file.access.api_keys.expect("given");
        assert!(
            keys.is_absolute() && keys.ends_with("keys.json"),
            "{keys:?}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_tenant_is_named_with_its_line() {
        for (text, line, what) in [
            ("[[tenant]]\nid = \"a\"\n\n[[tenant]]\nid = \"a\"", 4, "`a`"),
            ("\n[[tenant]]\nmax_context = 1", 2, "id"),
            ("[[tenant]]\nid = \"a\"\nmax_contxet = 1", 3, "max_contxet"),
            ("[[tenant]]\nid = \"a\"\ntokens_per_minute = 0", 3, "zero"),
            ("[[tenant]]\nid = \"a\"\nmodels = \"a\"", 3, "sequence"),
            ("[tenant_defaults]\nid = \"a\"", 1, "id"),
            ("[[tenant]]\nid = \"a\"\nweight = 0", 3, "0.001 and 1000"),
            ("[[tenant]]\nid = \"a\"\nkv_share = 1.5", 3, "at most 1"),
            ("[[tenant]]\nid = \"a\"\npriority = \"top\"", 3, "normal"),
            ("[tenant_defaults]\nprogram_memory = \"1KiB\"", 2, "64KiB"),
            ("[tenant_defaults]\nprogram_call_ms = 0", 2, "1 and 10000"),
            ("[tenant_defaults]\nprogram_instances = 0", 2, "zero"),
            ("[tenant_defaults]\nprogram_seconds = 0", 2, "1 and 86400"),
            (
                "[tenant_defaults]\nprogram_host_call = \"1KiB\"",
                2,
                "64KiB and 64MiB",
            ),
            ("[tenant_defaults]\nprogram_handles = 0", 2, "1 and 65536"),
            (
                "[tenant_defaults]\nprogram_call_seconds = 0",
                2,
                "1 and 3600",
            ),
            (
                "[tenant_defaults]\nprogram_saved_tokens = 17000000",
                2,
                "16777216",
            ),
            ("[[tenant]]\nid = \"a\"\nprocessor = \"a b\"", 3, "name"),
        ] {
            let e = file(text).expect_err(text);
            assert!(
                e.contains(&format!("line {line}")) && e.contains(what),
                "{text}: {e}"
            );
        }
    }

    #[test]
    fn the_open_network_needs_a_word() {
        let open = ListenSettings {
            host: Some([0, 0, 0, 0].into()),
            ..Default::default()
        };
        let resolve = |settings: &ListenSettings, keys| {
            let settings = settings.clone();
            settings.resolve(Default::default(), keys)
        };
        assert!(resolve(&open, false).is_err());
        assert!(resolve(&open, true).is_ok());
        let admin = ListenSettings {
            admin_addr: Some("0.0.0.0:9090".parse().expect("valid")),
            ..Default::default()
        };
        assert!(resolve(&admin, false).is_err());
        assert!(resolve(&admin, true).is_err());
        let said = ListenSettings {
            allow_unauthenticated: Some(true),
            ..open
        };
        assert!(resolve(&said, false).is_ok());
    }

    #[test]
    fn models_are_named_once() {
        let twice = WorkerSettings {
            model: vec![ModelSpec::embedded(); 2],
            ..Default::default()
        };
        assert!(matches!(
            twice.resolve(Default::default()),
            Err(ConfigError::DuplicateModel(_))
        ));
        let named: ModelSpec = "small=embedded".parse().expect("valid");
        assert_eq!(
            named,
            ModelSpec {
                name: "small".into(),
                source: ModelSource::Embedded,
                attach: None
            }
        );
        assert!("=x".parse::<ModelSpec>().is_err());
        let nowhere = WorkerSettings {
            model: vec!["/no/such/place".parse().expect("it has a name")],
            ..Default::default()
        };
        assert!(matches!(
            nowhere.resolve(Default::default()),
            Err(ConfigError::NoDirectory(_))
        ));
    }

    #[test]
    fn a_worker_is_attached_to_a_model_that_is_served() {
        let resolve = |attach: &[&str]| {
            let attach = attach.iter().map(|a| a.parse().expect("valid")).collect();
            let settings = WorkerSettings {
                attach,
                ..Default::default()
            };
            settings.resolve(Default::default())
        };
        let workers = resolve(&["realm-tiny=/run/a.sock"]).expect("valid");
        assert_eq!(workers.models[0].attach, Some("/run/a.sock".into()));
        assert!(matches!(
            resolve(&["other=/run/a.sock"]),
            Err(ConfigError::AttachUnknown(_))
        ));
        assert!(matches!(
            resolve(&["realm-tiny=/run/a.sock", "realm-tiny=/run/b.sock"]),
            Err(ConfigError::AttachTwice(_))
        ));
        for bad in ["/run/a.sock", "=/run/a.sock", "realm-tiny="] {
            assert!(bad.parse::<Attach>().is_err(), "{bad}");
        }
        let f = file("[worker]\nattach = [\"realm-tiny=/run/a.sock\"]").expect("valid");
        let workers = WorkerSettings::default().resolve(f.worker).expect("valid");
        assert_eq!(workers.models[0].attach, Some("/run/a.sock".into()));
    }
}
