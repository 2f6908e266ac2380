//! From a model's files to an engine.

use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use realm_cuda::compile::{Capability, FP8};
use realm_cuda::{Device, DeviceError};
use realm_shared::control::ModelInfo;

use super::{Engine, ModelSource, Options};
use crate::arena::Arena;
use crate::batch::Limits;
use crate::config::{ConfigError, DType, DecoderConfig, Quantization};
use crate::cuda::{self, Room, UploadError, Work};
use crate::decoder::{Decoder, Forward, attention, load_weights};
use crate::kernels::{Attention, Packable, Packed, Threads, cores};
use crate::weights::{Weights, WeightsError};
use crate::{embedded, memory};

/// Tokens of a step on the CPU. More would delay decoding sequences without filling it any better.
const CPU_STEP_TOKENS: usize = 512;
/// The same on a device, which has done with them as soon.
const DEVICE_STEP_TOKENS: usize = 8192;
/// Part of what is free on a device that the arena takes, by default.
const DEVICE_MEMORY: f64 = 0.9;
/// Bytes of a device that are left in any case: for what libraries load for products of other shapes.
const DEVICE_RESERVE: u64 = 512 << 20;

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory or a file in it cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The config is wrong or unsupported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// So are the weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No type to run in.
    #[error("the weights are in no type that a model can run in; choose one with --dtype")]
    NoDType,
    /// The arena is too small.
    #[error(
        "KV memory of {given} bytes holds {tokens} tokens ({per_token} bytes each), fewer than {}",
        match .wanted {
            Some(n) => format!("--max-context {n}; raise --kv-memory or lower --max-context"),
            None => "one block; raise --kv-memory".to_string(),
        }
    )]
    KvMemory {
        /// Bytes given.
        given: u64,
        /// Tokens that fit.
        tokens: usize,
        /// Bytes of a token.
        per_token: usize,
        /// Tokens that should fit.
        wanted: Option<usize>,
    },
    /// More context than the model has positions.
    #[error("--max-context {wanted} is not between 1 and the {positions} positions of the model")]
    MaxContext {
        /// As asked for.
        wanted: usize,
        /// What the model has.
        positions: usize,
    },
    /// The system refuses the address space of the arena.
    #[error("cannot reserve {bytes} bytes for the KV arena: {source}; lower --kv-memory")]
    Arena {
        /// How much.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
    /// What only a GPU does.
    #[error("--quantization {0} is for GPUs; leave it out, or choose one with --device")]
    QuantizationOnCpu(Quantization),
    /// And not every GPU.
    #[error(
        "{device} is of {capability}, and --quantization {quantization} needs {FP8} or later; leave it out"
    )]
    QuantizationOn {
        /// Its name.
        device: String,
        /// What it is.
        capability: Capability,
        /// What was asked for.
        quantization: Quantization,
    },
    /// Products come out in another type.
    #[error("--quantization {quantization} runs in bf16, not in {dtype}; add --dtype bf16")]
    QuantizationOf {
        /// Type of the forward pass.
        dtype: DType,
        /// What was asked for.
        quantization: Quantization,
    },
    /// A device does not take the model.
    #[error("{device} cannot {what}: {source}{}", remedy(.source, .hint))]
    Device {
        /// Its name.
        device: String,
        /// What it cannot do.
        what: &'static str,
        /// Why not.
        source: Box<DeviceError>,
        /// What to do where there is no room.
        hint: &'static str,
    },
}

fn remedy(error: &DeviceError, hint: &str) -> String {
    match error {
        DeviceError::Full { .. } => format!("; {hint}"),
        _ => String::new(),
    }
}

impl Engine {
    /// Loads a model to run on the CPU. `progress` is called with bytes read and bytes to read.
    ///
    /// # Errors
    /// If the model is broken, unsupported, or does not fit.
    pub fn load(
        source: &ModelSource,
        options: &Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine, LoadError> {
        if let Some(quantization) = options.quantization {
            return Err(LoadError::QuantizationOnCpu(quantization));
        }
        let load = Load::open(source, options)?;
        match load.dtype {
            DType::F32 => load.on_cpu::<f32>(progress),
            DType::BF16 => load.on_cpu::<bf16>(progress),
            DType::F16 => load.on_cpu::<f16>(progress),
        }
    }

    /// Loads a model to run on a device that is called `name`.
    ///
    /// # Errors
    /// If the model is broken, unsupported, or does not fit, or the device fails.
    pub fn load_on<D: Device + 'static>(
        source: &ModelSource,
        options: &Options,
        device: D,
        name: &str,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine, LoadError> {
        Load::open(source, options)?.on_device(device, name, progress)
    }
}

/// A model whose files are open.
struct Load<'a> {
    config: DecoderConfig,
    weights: Weights,
    dtype: DType,
    options: &'a Options,
}

/// What holds a model.
struct Holder {
    model: Box<dyn Forward>,
    device: String,
    threads: Threads,
    weight_bytes: usize,
    block_bytes: usize,
    block_count: usize,
    max_context: usize,
    max_step_tokens: usize,
}

impl<'a> Load<'a> {
    fn open(source: &ModelSource, options: &'a Options) -> Result<Load<'a>, LoadError> {
        let config = match source {
            ModelSource::Embedded => DecoderConfig::parse(embedded::CONFIG)?,
            ModelSource::Directory(directory) => DecoderConfig::parse(&read_config(directory)?)?,
        };
        let weights = match source {
            _ if options.random_weights => {
                let dtype = options.dtype.or(config.dtype);
                Weights::random(&config, dtype.unwrap_or(DType::BF16))
            }
            ModelSource::Embedded => Weights::embedded(embedded::WEIGHTS)?,
            ModelSource::Directory(directory) => Weights::open(directory)?,
        };
        let dtype = options
            .dtype
            .or(config.dtype)
            .or(weights.dtype())
            .ok_or(LoadError::NoDType)?;
        Ok(Load {
            config,
            weights,
            dtype,
            options,
        })
    }

    fn on_cpu<T: Packable>(self, progress: &mut dyn FnMut(u64, u64)) -> Result<Engine, LoadError> {
        let config = &self.config;
        let threads = Threads::new(self.options.threads.unwrap_or_else(cores));
        let weights = self.reporting(progress, |on_bytes| {
            load_weights::<T>(config, &self.weights, &threads, on_bytes)
        })?;
        let weight_bytes = weights.bytes(Packed::bytes, |vector| size_of_val(vector.as_slice()));
        let block_bytes = Arena::<T>::block_bytes(config.layers(), &attention(config));
        let given = self.options.kv_memory.unwrap_or_else(|| {
            // Where the system does not say what it has, a gibibyte is a cautious guess.
            memory::available().map_or(1 << 30, |bytes| bytes / 4)
        });
        let (block_count, max_context) = arena_size(config, block_bytes, given, self.options)?;
        let bytes = block_count as u64 * block_bytes as u64;
        let model = Decoder::new(
            config.clone(),
            weights,
            threads.clone(),
            block_count,
            CPU_STEP_TOKENS,
        )
        .map_err(|source| LoadError::Arena { bytes, source })?;
        Ok(self.engine(Holder {
            model: Box::new(model),
            device: "cpu".into(),
            threads,
            weight_bytes,
            block_bytes,
            block_count,
            max_context,
            max_step_tokens: CPU_STEP_TOKENS,
        }))
    }

    fn on_device<D: Device + 'static>(
        self,
        device: D,
        name: &str,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Engine, LoadError> {
        let quantization = self.options.quantization;
        if let Some(quantization) = quantization {
            let (dtype, capability) = (self.dtype, device.capability());
            if capability < FP8 {
                return Err(LoadError::QuantizationOn {
                    device: name.to_owned(),
                    capability,
                    quantization,
                });
            }
            if dtype != DType::BF16 {
                return Err(LoadError::QuantizationOf {
                    dtype,
                    quantization,
                });
            }
        }
        let config = &self.config;
        let longest = longest(config, self.options)?;
        cuda::check(config, quantization, longest)?;
        let failed = |what, hint| {
            move |source| LoadError::Device {
                device: name.to_owned(),
                what,
                source: Box::new(source),
                hint,
            }
        };
        let smaller = "a smaller model, or a smaller --dtype, takes less";
        let weights = self
            .reporting(progress, |on_bytes| {
                let (dtype, checkpoint) = (self.dtype, &self.weights);
                cuda::upload(&device, dtype, quantization, config, checkpoint, on_bytes)
            })
            .map_err(|error| match error {
                UploadError::Weights(error) => error.into(),
                UploadError::Device(error) => failed("hold the weights", smaller)(error),
            })?;
        let room = Room {
            rows: self.options.max_sequences(),
            tokens: DEVICE_STEP_TOKENS,
            row_blocks: longest.div_ceil(Attention::BLOCK),
        };
        let element = cuda::element(self.dtype);
        let shorter = "a smaller model, or a lower --max-context, takes less";
        let work = Work::new(&device, config, element, quantization, room)
            .map_err(failed("hold what steps work in", shorter))?;
        let weight_bytes = weights.bytes(cuda::Matrix::bytes, |vector| vector.bytes());
        let decoder = cuda::Decoder::new(device, config.clone(), element, weights, work)
            .map_err(failed("run a step", shorter))?;
        let free = decoder.free();
        let free = free.map_err(failed("hold the KV arena", shorter))?;
        let given = self.options.kv_memory.unwrap_or_else(|| {
            let fraction = self.options.gpu_memory_fraction.unwrap_or(DEVICE_MEMORY);
            let part = (free as f64 * fraction) as u64;
            part.min((free as u64).saturating_sub(DEVICE_RESERVE))
        });
        let block_bytes = cuda::Arena::block_bytes(config, element);
        let (block_count, max_context) = arena_size(config, block_bytes, given, self.options)?;
        let decoder = decoder.with_arena(block_count);
        let decoder = decoder.map_err(failed("hold the KV arena", "lower --kv-memory"))?;
        // They draw tokens.
        let threads = Threads::new(self.options.threads.unwrap_or_else(cores));
        Ok(self.engine(Holder {
            model: Box::new(decoder),
            device: name.to_owned(),
            threads,
            weight_bytes,
            block_bytes,
            block_count,
            max_context,
            max_step_tokens: DEVICE_STEP_TOKENS,
        }))
    }

    /// Calls `load` with what turns bytes read into progress.
    fn reporting<T>(
        &self,
        progress: &mut dyn FnMut(u64, u64),
        load: impl FnOnce(&mut dyn FnMut(u64)) -> T,
    ) -> T {
        let total = self.weights.bytes();
        progress(0, total);
        load(&mut |done| progress(done.min(total), total))
    }

    fn engine(self, holder: Holder) -> Engine {
        let Holder {
            model,
            device,
            threads,
            weight_bytes,
            block_bytes,
            block_count,
            max_context,
            max_step_tokens,
        } = holder;
        let vocab = self.config.vocab;
        let max_sequences = self.options.max_sequences();
        let limits = Limits {
            vocab,
            max_context,
            block_count,
            max_sequences,
            max_step_tokens,
        };
        let info = ModelInfo {
            architecture: self.config.architecture,
            device,
            dtype: match self.options.quantization {
                None => self.dtype.to_string(),
                Some(quantization) => format!("{}, {quantization} weights", self.dtype),
            },
            vocab_size: vocab as u32,
            max_context: max_context as u32,
            block_size: Attention::BLOCK as u32,
            block_count: block_count as u32,
            max_sequences: max_sequences as u32,
            max_step_tokens: max_step_tokens as u32,
            parameters: self.weights.parameters(),
            weight_bytes: weight_bytes as u64,
            kv_bytes_per_token: (block_bytes / Attention::BLOCK) as u64,
            threads: threads.count(),
        };
        Engine::new(model, info, limits, threads)
    }
}

fn read_config(directory: &Path) -> Result<String, LoadError> {
    let path = directory.join("config.json");
    std::fs::read_to_string(&path).map_err(|source| LoadError::Unreadable { path, source })
}

/// The longest context, if the arena can hold it.
fn longest(config: &DecoderConfig, options: &Options) -> Result<usize, LoadError> {
    let positions = config.max_context;
    match options.max_context {
        Some(wanted) if !(1..=positions).contains(&wanted) => {
            Err(LoadError::MaxContext { wanted, positions })
        }
        wanted => Ok(wanted.unwrap_or(positions)),
    }
}

/// Number of blocks and longest context, where `given` bytes are for the arena.
pub(super) fn arena_size(
    config: &DecoderConfig,
    block_bytes: usize,
    given: u64,
    options: &Options,
) -> Result<(usize, usize), LoadError> {
    let longest = longest(config, options)?;
    // More blocks than all slots can fill would never be used.
    let useful = longest.div_ceil(Attention::BLOCK);
    let useful = useful.saturating_mul(options.max_sequences());
    let fitting = usize::try_from(given / block_bytes as u64).unwrap_or(usize::MAX);
    let blocks = fitting.min(useful).min(i32::MAX as usize);
    let tokens = blocks * Attention::BLOCK;
    let too_small = match options.max_context {
        Some(wanted) => tokens < wanted,
        None => blocks == 0,
    };
    if too_small {
        return Err(LoadError::KvMemory {
            given,
            tokens,
            per_token: block_bytes / Attention::BLOCK,
            wanted: options.max_context,
        });
    }
    Ok((blocks, longest.min(tokens)))
}
