//! Small models on a device beside the same ones on the CPU.

use std::path::Path;
use std::time::Instant;

use half::bf16;
use realm_cuda::check::{Agreement, Comparison, Scale};
use realm_cuda::{Device, DeviceError};
use realm_shared::causes::told;
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use serde_json::{Value, json};

use super::progress;
use super::random;
use super::report::Check;
use crate::batch::{Batch, Limits, Step};
use crate::config::{DType, DecoderConfig, Quantization};
use crate::cuda::{self, Room};
use crate::decoder::{Decoder, Forward, HEAD_ROWS, load_weights};
use crate::engine::{Engine, ModelSource, Options};
use crate::kernels::{Attention, Packable, Threads, cores};
use crate::weights::Weights;
use crate::weights::random::Random;

/// What logits may be off by in `f32`, as a part of the largest of a token's.
const EXACT: f64 = 1e-4;
/// Roundings in 16 bits that a layer's part of the logits goes through: of what it reads, adds, and computes between.
const ROUNDINGS: f64 = 20.0;
/// What one of them is off by at most, relatively.
const ROUNDING: f64 = 1.0 / 256.0;
/// What logits of a model of [`FP8_LAYERS`] may be off by with weights in fp8, by their root mean square as a part of
/// that of the logits: twice what `docs/performance.md` gives of four such models, for that is of many tokens, and here are a
/// few in a step.
const FP8: f64 = 0.2;
/// How many these have. Errors of layers do not know of each other, so their squares add up.
const FP8_LAYERS: f64 = 2.0;
/// Blocks that a sequence has.
const ROW_BLOCKS: usize = 14;

/// A family of models, and what of the decoder only it needs.
struct Model {
    name: &'static str,
    config: Value,
}

fn models(scale: Scale) -> Vec<Model> {
    let (hidden, intermediate, layers, vocab) = match scale {
        Scale::Small => (64, 96, 2, 96),
        Scale::Full => (512, 1536, 6, 8192),
    };
    let config = |architecture: &str, heads: usize, kv_heads: usize, more: Value| {
        let mut config = json!({
            "architectures": [architecture],
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 64,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        });
        if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
            config.extend(more);
        }
        config
    };
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    });
    vec![
        Model {
            name: "llama",
            config: config(
                "LlamaForCausalLM",
                4,
                1,
                json!({ "rope_theta": 500_000.0, "rope_scaling": scaling }),
            ),
        },
        Model {
            name: "mistral, a window",
            config: config("MistralForCausalLM", 4, 2, json!({ "sliding_window": 40 })),
        },
        Model {
            name: "qwen2, biases",
            config: config("Qwen2ForCausalLM", 2, 2, json!({})),
        },
        Model {
            name: "qwen3, norms of heads",
            config: config(
                "Qwen3ForCausalLM",
                4,
                2,
                json!({ "tie_word_embeddings": true, "head_dim": 128 }),
            ),
        },
    ]
}

/// Compares all models.
pub(super) fn check<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    name: &str,
    scale: Scale,
    fp8: bool,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |model: &Model, what: &str, compares, check: &dyn Fn() -> Compared| {
        let title = format!("{}, {what}", model.name);
        progress(&format!("models: {title}"));
        let start = Instant::now();
        let outcome = check().map_err(|error| told(error.as_ref()));
        let seconds = start.elapsed().as_secs_f64();
        checks.push(Check::new("models", title, compares, outcome, seconds));
    };
    for (model, seed) in models(scale).iter().zip(1..) {
        let exact = "logits of prefill and of decode with those of the CPU";
        add(model, "logits in f32", exact, &|| {
            logits_in_f32(open, model, seed)
        });
        let rounded = "logits with those of the CPU in f32, by their root mean square";
        add(model, "logits in bf16", rounded, &|| {
            logits_in_bf16(open, model, seed)
        });
        if fp8 {
            let quantized = "logits of weights in fp8 with those of the CPU in f32, likewise";
            add(model, "logits in fp8", quantized, &|| {
                logits_in_fp8(open, model, seed)
            });
        }
        let greedy = "the likeliest tokens, one after the other, with those of the CPU";
        add(model, "64 tokens in f32", greedy, &|| {
            tokens(open, name, model, seed)
        });
    }
    checks
}

type Compared = anyhow::Result<Agreement>;

fn logits_in_f32<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    model: &Model,
    seed: u64,
) -> Compared {
    let folder = tempfile::tempdir()?;
    random::write(folder.path(), &model.config, DType::F32, seed)?;
    let cpu = Bare::on_cpu::<f32>(folder.path())?.run()?;
    let device = Bare::on_device(open()?, DType::F32, None, folder.path())?.run()?;
    let mut comparison = Comparison::default();
    for (exact, got) in cpu.iter().zip(&device) {
        let largest = exact.values.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (token, (exact_value, value)) in exact.values.iter().zip(&got.values).enumerate() {
            let (exact_value, value) = (f64::from(*exact_value), f64::from(*value));
            let bound = EXACT * f64::from(largest);
            comparison.within(value, exact_value, bound, || {
                format!("{}, logit of token {token}", exact.at)
            });
        }
    }
    comparison.same(device.len(), cpu.len(), || "tokens with logits".into());
    Ok(comparison.outcome()?)
}

fn logits_in_bf16<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    model: &Model,
    seed: u64,
) -> Compared {
    let folder = tempfile::tempdir()?;
    random::write(folder.path(), &model.config, DType::BF16, seed)?;
    let exact = Bare::on_cpu::<f32>(folder.path())?.run()?;
    let cpu = Bare::on_cpu::<bf16>(folder.path())?.run()?;
    let device = Bare::on_device(open()?, DType::BF16, None, folder.path())?.run()?;
    let config = DecoderConfig::parse(&model.config.to_string())?;
    let allowed = ROUNDING * (ROUNDINGS * config.layers() as f64).sqrt();
    let mut comparison = Comparison::default();
    // That the bound is no more than rounding shows where another device keeps to it.
    for (who, logits) in [("the CPU", &cpu), ("the device", &device)] {
        comparison.same(logits.len(), exact.len(), || "tokens with logits".into());
        for (exact, got) in exact.iter().zip(logits) {
            let zeros = vec![0.0; exact.values.len()];
            let size = distance(&exact.values, &zeros);
            let error = distance(&got.values, &exact.values);
            comparison.within(error, 0.0, allowed * size, || {
                format!("{who}, {}, difference of the logits", exact.at)
            });
        }
    }
    Ok(comparison.outcome()?)
}

fn logits_in_fp8<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    model: &Model,
    seed: u64,
) -> Compared {
    let folder = tempfile::tempdir()?;
    random::write(folder.path(), &model.config, DType::BF16, seed)?;
    let exact = Bare::on_cpu::<f32>(folder.path())?.run()?;
    let fp8 = Some(Quantization::Fp8);
    let device = Bare::on_device(open()?, DType::BF16, fp8, folder.path())?.run()?;
    let config = DecoderConfig::parse(&model.config.to_string())?;
    let allowed = FP8 * (config.layers() as f64 / FP8_LAYERS).sqrt();
    let mut comparison = Comparison::default();
    comparison.same(device.len(), exact.len(), || "tokens with logits".into());
    let steps = |logits: &[Logits]| -> Vec<Vec<f32>> {
        let steps = logits.chunk_by(|a, b| a.step == b.step);
        let values = |step: &[Logits]| step.iter().flat_map(|token| token.values.clone()).collect();
        steps.map(values).collect()
    };
    let (exact, device) = (steps(&exact), steps(&device));
    for (step, (exact, got)) in exact.iter().zip(&device).enumerate() {
        let size = distance(exact, &vec![0.0; exact.len()]);
        comparison.within(distance(got, exact), 0.0, allowed * size, || {
            format!("step {step}, difference of the logits")
        });
    }
    Ok(comparison.outcome()?)
}

/// Root of the mean square of what two lists differ by.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

/// Logits of a token of a step.
struct Logits {
    step: usize,
    at: String,
    values: Vec<f32>,
}

/// A model without what draws tokens.
struct Bare {
    model: Box<dyn Forward>,
    limits: Limits,
}

/// A row of a step: its sequence, the position of its first token, and how many tokens it has.
type Part = (usize, usize, usize);

/// Prompts in pieces beside others, then tokens of all sequences at once, whose steps are captured, and of some.
const STEPS: [&[Part]; 7] = [
    &[(0, 0, 5), (1, 0, 20), (2, 0, 130)],
    &[(0, 5, 1), (1, 20, 17), (3, 0, 70)],
    &[(0, 6, 1), (1, 37, 1), (2, 130, 1), (3, 70, 1)],
    &[(3, 71, 1), (0, 7, 1), (2, 131, 1), (1, 38, 1)],
    &[(2, 132, 1), (0, 8, 1), (1, 39, 1)],
    &[(2, 133, 1)],
    &[(1, 40, 30), (2, 134, 64)],
];

impl Bare {
    fn limits(config: &DecoderConfig) -> Limits {
        Limits {
            vocab: config.vocab,
            max_context: ROW_BLOCKS * Attention::BLOCK,
            block_count: 64,
            max_sequences: 4,
            max_step_tokens: 256,
        }
    }

    fn open(folder: &Path) -> anyhow::Result<(DecoderConfig, Weights, Limits)> {
        let config = std::fs::read_to_string(folder.join("config.json"))?;
        let config = DecoderConfig::parse(&config)?;
        let limits = Bare::limits(&config);
        Ok((config, Weights::open(folder)?, limits))
    }

    fn on_cpu<T: Packable>(folder: &Path) -> anyhow::Result<Bare> {
        let (config, weights, limits) = Bare::open(folder)?;
        let threads = Threads::new(cores());
        let weights = load_weights::<T>(&config, &weights, &threads, &mut |_| {})?;
        let (blocks, tokens) = (limits.block_count, limits.max_step_tokens);
        let model = Box::new(Decoder::new(config, weights, threads, blocks, tokens)?);
        Ok(Bare { model, limits })
    }

    fn on_device<D: Device + 'static>(
        device: D,
        dtype: DType,
        quantization: Option<Quantization>,
        folder: &Path,
    ) -> anyhow::Result<Bare> {
        let (config, weights, limits) = Bare::open(folder)?;
        let element = cuda::element(dtype);
        let weights = cuda::upload(&device, dtype, quantization, &config, &weights, &mut |_| {})?;
        let room = Room {
            rows: limits.max_sequences,
            tokens: limits.max_step_tokens,
            row_blocks: ROW_BLOCKS,
        };
        let work = cuda::Work::new(&device, &config, element, quantization, room)?;
        let model = cuda::Decoder::new(device, config, element, weights, work)?;
        let model = Box::new(model.with_arena(limits.block_count)?);
        Ok(Bare { model, limits })
    }

    /// Logits of all tokens of all steps.
    fn run(&mut self) -> anyhow::Result<Vec<Logits>> {
        let mut all = Vec::new();
        for (step, parts) in STEPS.iter().enumerate() {
            let logits = self.step(parts)?;
            let tokens = parts.iter().flat_map(|(sequence, first, count)| {
                (*first..first + count).map(move |position| (sequence, position))
            });
            let rows = logits.chunks_exact(self.limits.vocab);
            all.extend(
                tokens
                    .zip(rows)
                    .map(|((sequence, position), values)| Logits {
                        step,
                        at: format!("step {step}, sequence {sequence}, position {position}"),
                        values: values.to_vec(),
                    }),
            );
        }
        Ok(all)
    }

    fn step(&mut self, parts: &[Part]) -> anyhow::Result<Vec<f32>> {
        let vocab = self.limits.vocab;
        let mut tokens = Vec::new();
        let mut starts = vec![0];
        let mut blocks = Vec::new();
        for (sequence, first, count) in parts {
            let token = |at| prompt_token(*sequence, at, vocab);
            tokens.extend((*first..first + count).map(token));
            starts.push(tokens.len() as i32);
            // In no order, and those of one sequence between those of others.
            let block = |i| (i * 4 + sequence) * 5 % self.limits.block_count;
            blocks.extend((0..ROW_BLOCKS).map(|i| block(i) as i32));
        }
        let zeros = vec![0; parts.len()];
        let step = Step {
            slots: &parts.iter().map(|part| part.0 as i32).collect::<Vec<_>>(),
            starts: &starts,
            context: &parts.iter().map(|part| part.1 as i32).collect::<Vec<_>>(),
            flags: &zeros,
            index: &zeros,
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        let batch = Batch::new(step, &self.limits)?;
        let wanted: Vec<usize> = (0..tokens.len()).collect();
        tch::no_grad(|| self.model.forward(&batch, &tokens, &wanted))?;
        let mut logits = vec![0.0; tokens.len() * vocab];
        for first in (0..tokens.len()).step_by(HEAD_ROWS) {
            let end = tokens.len().min(first + HEAD_ROWS);
            let into = &mut logits[first * vocab..end * vocab];
            tch::no_grad(|| self.model.logits(first..end, into))?;
        }
        Ok(logits)
    }
}

/// A token of a sequence's prompt.
fn prompt_token(sequence: usize, position: usize, vocab: usize) -> i32 {
    Random((sequence * 1000 + position) as u64).below(vocab) as i32
}

/// The tokens that an engine on the device draws, and one on the CPU.
fn tokens<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    name: &str,
    model: &Model,
    seed: u64,
) -> Compared {
    let folder = tempfile::tempdir()?;
    random::write(folder.path(), &model.config, DType::F32, seed)?;
    let source = ModelSource::Directory(folder.path().to_owned());
    let options = Options {
        dtype: Some(DType::F32),
        kv_memory: Some(32 << 20),
        max_context: Some(ROW_BLOCKS * Attention::BLOCK),
        max_sequences: Some(4),
        ..Options::default()
    };
    let cpu = Engine::load(&source, &options, &mut |_, _| {})?;
    let device = Engine::load_on(&source, &options, open()?, name, &mut |_, _| {})?;
    let (expected, got) = (draw(cpu)?, draw(device)?);
    let mut comparison = Comparison::default();
    for (sequence, (got, expected)) in got.iter().zip(&expected).enumerate() {
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            comparison.same(*got, *expected, || {
                format!("sequence {sequence}, token {i}")
            });
        }
    }
    Ok(comparison.outcome()?)
}

/// The likeliest tokens after three prompts, 64 of each, drawn together.
fn draw(mut engine: Engine) -> anyhow::Result<Vec<Vec<i32>>> {
    const PROMPTS: [usize; 3] = [3, 50, 17];
    const TOKENS: usize = 64;
    let vocab = engine.limits().vocab;
    let mut drawn = vec![Vec::new(); PROMPTS.len()];
    for slot in 0..PROMPTS.len() {
        let sampling = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        engine.open(slot as u64, sampling, std::iter::empty(), &[], None)?;
    }
    let slots: Vec<i32> = (0..PROMPTS.len() as i32).collect();
    let blocks: Vec<i32> = (0..(PROMPTS.len() * ROW_BLOCKS) as i32).collect();
    for turn in 0..TOKENS {
        let mut tokens = Vec::new();
        let mut starts = vec![0];
        for (sequence, length) in PROMPTS.into_iter().enumerate() {
            match turn {
                0 => tokens.extend((0..length).map(|at| prompt_token(sequence, at, vocab))),
                _ => tokens.push(-1),
            }
            starts.push(tokens.len() as i32);
        }
        let (context, flags) = match turn {
            0 => ([0; 3], SAMPLE),
            _ => (
                PROMPTS.map(|length| (length + turn - 1) as i32),
                SAMPLE | INPUT_SAMPLED,
            ),
        };
        let step = Step {
            slots: &slots,
            starts: &starts,
            context: &context,
            flags: &[flags; 3],
            index: &[turn as i32; 3],
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        let outcome = engine.step(step)?;
        for (drawn, token) in drawn.iter_mut().zip(&outcome.tokens) {
            drawn.push(*token);
        }
    }
    Ok(drawn)
}
