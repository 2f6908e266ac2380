//! Which models are served, and how their workers run.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use realm_shared::control::{GPU_MEMORY_FRACTION, INSTANCES, PROGRAM_STACK};
use realm_shared::cpus::Cpus;
use realm_shared::device::Device;
use serde::Deserialize;

use super::{
    Attach, ByteSize, ConfigError, Dtype, ModelSource, ModelSpec, Quantization, Surplus, within,
};

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
