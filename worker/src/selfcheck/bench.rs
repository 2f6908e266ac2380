//! How quickly a device decodes and prefills, against what it can read and multiply at all.
//!
//! Both are measured first, on the same device: memory that a kernel only reads, and products of large matrices. What
//! they allow for a step is its roofline: weights are read once, while products are computed, and then each sequence's
//! keys and values. Where the device multiplies fp8, the same model is measured with weights in that, too.

use std::ops::Range;
use std::time::Instant;

use realm_cuda::check::{ReadAll, Scale};
use realm_cuda::compile::FP8;
use realm_cuda::{Device, DeviceError, Element, Memory, Product, Scales};
use realm_shared::causes::told;
use realm_shared::control::ModelInfo;
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use serde_json::json;

use super::fill::Fill;
use super::http::{Gateway, Streams};
use super::progress;
use super::report::{Bench, Measured};
use crate::batch::{Batch, Limits, Step};
use crate::config::{DType, DecoderConfig, Quantization};
use crate::cuda::{self, Matrix, Room, Work};
use crate::decoder::Forward;
use crate::engine::Engine;
use crate::kernels::{Attention, Threads, cores};
use crate::weights::random::Random;

/// Parts of the roofline that decoding should reach, for each number of streams.
const DECODE: [f64; 3] = [0.85, 0.75, 0.7];
/// The same of prefill.
const PREFILL: f64 = 0.6;
/// Both with weights in fp8, where what is neither weights nor products takes more of a step.
const FP8_DECODE: [f64; 2] = [0.75, 0.65];
const FP8_PREFILL: f64 = 0.5;
/// Part of a step of decoding in which the device may have nothing to do, or draws tokens.
const IDLE: f64 = 0.03;
/// Part of what an engine decodes alone that should arrive through HTTP.
const HTTP: f64 = 0.97;

/// What is measured.
struct Sizes {
    about: &'static str,
    config: serde_json::Value,
    /// Sequences that decode at once, ascending.
    streams: [usize; 3],
    /// Tokens of each before that.
    context: usize,
    /// Steps of decoding that are measured.
    steps: usize,
    /// What is measured through HTTP.
    served: Streams,
    /// Tokens of a step of prefill.
    prefill: usize,
    /// Rows and columns of the matrices that are multiplied.
    matrix: usize,
    /// Bytes that are read at once.
    read: usize,
}

impl Sizes {
    fn of(scale: Scale) -> Sizes {
        match scale {
            Scale::Small => Sizes {
                about: "a model too small to say anything, in bf16",
                config: json!({
                    "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64,
                    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 4096,
                }),
                streams: [1, 2, 5],
                context: 40,
                steps: 3,
                served: Streams {
                    count: 2,
                    prompt: 16,
                    output: 8,
                },
                prefill: 90,
                matrix: 64,
                read: 1 << 16,
            },
            Scale::Full => Sizes {
                about: "random weights of the shape of Llama 3.1 8B in bf16",
                config: json!({
                    "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256,
                    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                    "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
                }),
                streams: [1, 64, 256],
                context: 1024,
                steps: 40,
                served: Streams {
                    count: 64,
                    prompt: 64,
                    output: 256,
                },
                prefill: 8192,
                matrix: 8192,
                read: 8 << 30,
            },
        }
    }
}

/// Measures until `deadline`; what begins before is brought to its end.
pub(super) fn measure<D: Device + 'static>(
    open: &dyn Fn() -> Result<D, DeviceError>,
    gateway: Option<&Gateway>,
    scale: Scale,
    deadline: Instant,
) -> Bench {
    let sizes = Sizes::of(scale);
    let mut bench = Bench {
        about: format!(
            "{}; rooflines from the memory read and the products measured here",
            sizes.about
        ),
        ..Bench::default()
    };
    if let Err(error) = sizes.measure(open, gateway, deadline, &mut bench) {
        bench.fault = Some(told(error.as_ref()));
    }
    bench
}

/// What the device can do at all.
#[derive(Clone, Copy)]
struct Rooflines {
    /// Bytes read in a second.
    read: f64,
    /// Operations of products in a second.
    multiply: f64,
    /// The same with both factors in fp8, if it does that.
    multiply_fp8: Option<f64>,
}

/// What the model is held in, and what it should reach then.
#[derive(Clone, Copy)]
struct Held {
    quantization: Option<Quantization>,
    /// Bytes of a number of the matrices of layers.
    size: f64,
    /// Operations of products with them in a second.
    multiply: f64,
    /// See [`DECODE`].
    decode: &'static [f64],
    /// See [`PREFILL`].
    prefill: f64,
}

impl Held {
    /// All that the device can multiply.
    fn all(rooflines: Rooflines) -> Vec<Held> {
        let plain = Held {
            quantization: None,
            size: Element::Bf16.size() as f64,
            multiply: rooflines.multiply,
            decode: &DECODE,
            prefill: PREFILL,
        };
        let fp8 = rooflines.multiply_fp8.map(|multiply| Held {
            quantization: Some(Quantization::Fp8),
            size: 1.0,
            multiply,
            decode: &FP8_DECODE,
            prefill: FP8_PREFILL,
        });
        [plain].into_iter().chain(fp8).collect()
    }

    /// The name of something that is measured.
    fn name(&self, what: &str) -> String {
        match self.quantization {
            None => what.into(),
            Some(quantization) => format!("{quantization}, {what}"),
        }
    }
}

impl Sizes {
    fn measure<D: Device + 'static>(
        &self,
        open: &dyn Fn() -> Result<D, DeviceError>,
        gateway: Option<&Gateway>,
        deadline: Instant,
        bench: &mut Bench,
    ) -> anyhow::Result<()> {
        progress("bench: memory and products");
        let rooflines = self.rooflines(&open()?, bench)?;
        let mut outcome = Ok(());
        for held in Held::all(rooflines) {
            let plain = held.quantization.is_none();
            let served = plain && gateway.is_some();
            let alone = self.measure_model(open, deadline, held, served, rooflines, bench)?;
            if plain {
                // If that fails, what needs no gateway is measured all the same.
                outcome = self.measure_served(gateway, deadline, alone, bench);
            }
        }
        outcome
    }

    /// Measures a model that is held so. What its engine decodes in a second of the streams that are `served` through
    /// HTTP, too, if they are, and if there is time for that.
    fn measure_model<D: Device + 'static>(
        &self,
        open: &dyn Fn() -> Result<D, DeviceError>,
        deadline: Instant,
        held: Held,
        served: bool,
        rooflines: Rooflines,
        bench: &mut Bench,
    ) -> anyhow::Result<Option<f64>> {
        let late = || Instant::now() >= deadline;
        if late() {
            bench.left_out.push(held.name("prefill and decode"));
            return Ok(None);
        }
        // Each number of streams has its target.
        let streams = &self.streams[..held.decode.len()];
        progress(&format!("bench: {}", held.name("making weights")));
        let mut model = Model::new(self, open()?, held.quantization, streams)?;
        let config = model.config.clone();
        let name = held.name(&format!("prefill, {} tokens a step", self.prefill));
        progress(&format!("bench: {name}"));
        let (tokens, seconds) = model.prefill()?;
        bench.rows.push(Measured::rate(
            name,
            tokens as f64 / seconds,
            self.prefill_roofline(&config, held, rooflines),
            held.prefill,
        ));
        let decoded = |name, n: usize, target, seconds| {
            let best = self.decode_roofline(&config, n, held, rooflines);
            let n = n as f64;
            Measured::rate(name, n / seconds, n / best, target)
        };
        let mut passes = Vec::new();
        for (n, target) in streams.iter().copied().zip(held.decode.iter().copied()) {
            let name = held.name(&self.decode_name(n, "forward pass"));
            if late() {
                bench.left_out.push(name);
                continue;
            }
            progress(&format!("bench: {name}"));
            let seconds = model.passes(n)?;
            passes.push((n, target, seconds));
            bench.rows.push(decoded(name, n, target, seconds));
        }
        let mut engine = model.engine();
        for (n, target, pass) in passes {
            let name = held.name(&self.decode_name(n, "whole step"));
            if late() {
                bench.left_out.push(name);
                continue;
            }
            progress(&format!("bench: {name}"));
            let seconds = self.steps(&mut engine, n, self.context, self.steps)?;
            bench.rows.push(decoded(name, n, target, seconds));
            let idle = (1.0 - pass / seconds).max(0.0);
            let name = held.name(&self.decode_name(n, "idle, or drawing"));
            bench.rows.push(Measured::part(name, idle, IDLE));
        }
        let Streams {
            count,
            prompt,
            output,
        } = self.served;
        if !served || late() {
            return Ok(None);
        }
        let seconds = self.steps(&mut engine, count, prompt, output)?;
        Ok(Some(count as f64 / seconds))
    }

    /// Holds what arrives through HTTP against what the engine does `alone`, whose device is free again.
    fn measure_served(
        &self,
        gateway: Option<&Gateway>,
        deadline: Instant,
        alone: Option<f64>,
        bench: &mut Bench,
    ) -> anyhow::Result<()> {
        let Streams { count, prompt, .. } = self.served;
        let name = |what| format!("decode, {count} from context {prompt}: {what}");
        let through = name("through HTTP");
        let (Some(gateway), Some(alone)) = (gateway, alone) else {
            bench.left_out.push(through);
            return Ok(());
        };
        let engine = name("engine alone");
        bench.rows.push(Measured::plain(engine, alone, "tokens/s"));
        if Instant::now() >= deadline {
            bench.left_out.push(through);
            return Ok(());
        }
        progress(&format!("bench: {through}"));
        let rate = gateway.decode_rate(&self.config, self.served)?;
        bench.rows.push(Measured::rate(through, rate, alone, HTTP));
        Ok(())
    }

    fn decode_name(&self, streams: usize, what: &str) -> String {
        let context = self.context;
        format!("decode, {streams} at context {context}: {what}")
    }

    /// Measures what the device can read, and multiply.
    fn rooflines<D: Device>(
        &self,
        device: &D,
        bench: &mut Bench,
    ) -> Result<Rooflines, DeviceError> {
        let blocks = ReadAll::blocks_for(device.multiprocessors());
        let read = ReadAll {
            from: device.allocate(self.read)?,
            blocks,
            out: device.allocate(ReadAll::out_bytes(blocks))?,
        };
        let seconds = fastest(device, read.out, || Ok(read.launch(device)?))?;
        let bytes = self.read as f64 / seconds;
        bench
            .rows
            .push(Measured::plain("memory read", bytes / 1e9, "GB/s"));
        let n = self.matrix;
        let mut fill = Fill::new(device, n)?;
        let product = Product {
            element: Element::Bf16,
            rows: n,
            inputs: n,
            outputs: n,
            x: fill.matrix(n, n)?,
            weight: fill.matrix(n, n)?,
            scales: None,
            bias: None,
            out: device.allocate(n * n * Element::Bf16.size())?,
        };
        let mut multiply = |product: Product, of: &str| {
            let seconds = fastest(device, product.out, || device.multiply(&product))?;
            let operations = 2.0 * (n as f64).powi(3) / seconds;
            let name = format!("product of matrices of {n}, {of}");
            let measured = Measured::plain(name, operations / 1e12, "TFLOP/s");
            bench.rows.push(measured);
            Ok::<_, DeviceError>(operations)
        };
        let plain = multiply(product, "bf16")?;
        let mut fp8 = None;
        if device.capability() >= FP8 {
            let (x, x_scales) = fill.quantized(n, n)?;
            let (weight, weight_scales) = fill.quantized(n, n)?;
            let scales = Scales {
                x: x_scales,
                weight: weight_scales,
            };
            let product = Product {
                x,
                weight,
                scales: Some(scales),
                ..product
            };
            fp8 = Some(multiply(product, "fp8")?);
        }
        Ok(Rooflines {
            read: bytes,
            multiply: plain,
            multiply_fp8: fp8,
        })
    }

    /// Seconds of a step of decoding that nothing can be below: weights are read while products are computed, then
    /// keys and values.
    fn decode_roofline(
        &self,
        c: &DecoderConfig,
        streams: usize,
        held: Held,
        rooflines: Rooflines,
    ) -> f64 {
        let streams = streams as f64;
        let (layers, head) = (layers(c) as f64, (c.vocab * c.hidden) as f64);
        let size = Element::Bf16.size() as f64;
        let token = (2 * c.layers() * c.kv_heads * c.head_dim) as f64 * size;
        let reading = (layers * held.size + head * size) / rooflines.read;
        let multiplying = layers / held.multiply + head / rooflines.multiply;
        let multiplying = 2.0 * streams * multiplying;
        let attending = streams * (self.context + self.steps / 2) as f64 * token / rooflines.read;
        reading.max(multiplying) + attending
    }

    /// Tokens a second that prefill cannot exceed: products with all weights but the head, and attention to half of
    /// the context.
    fn prefill_roofline(&self, c: &DecoderConfig, held: Held, rooflines: Rooflines) -> f64 {
        let attention = 2 * c.layers() * c.heads * c.head_dim * self.context;
        let products = 2 * layers(c);
        1.0 / (products as f64 / held.multiply + attention as f64 / rooflines.multiply)
    }

    /// Seconds of a step of an engine that draws a token for each of `n` sequences, whose contexts are there: the mean of
    /// so many `steps`. As with a gateway, a step is launched before the one before it is over.
    fn steps(
        &self,
        engine: &mut Engine,
        n: usize,
        context: usize,
        steps: usize,
    ) -> anyhow::Result<f64> {
        for slot in 0..n as u64 {
            let sampling = Sampling {
                temperature: 0.0,
                ..Sampling::default()
            };
            engine.open(slot, sampling, std::iter::empty(), &[], None)?;
        }
        let rows = Rows::new(self, n);
        let mut start = Instant::now();
        for step in 0..WARM_UP + steps {
            if step == WARM_UP {
                // One step is under way here, and one at the end.
                start = Instant::now();
            }
            let (flags, token) = match step {
                0 => (SAMPLE, 1),
                _ => (SAMPLE | INPUT_SAMPLED, -1),
            };
            engine.launch(rows.step(
                &vec![(context + step) as i32; n],
                &vec![flags; n],
                &vec![step as i32; n],
                &vec![token; n],
            ))?;
            if step > 0 {
                engine.finish()?;
            }
        }
        let seconds = start.elapsed().as_secs_f64() / steps as f64;
        engine.finish()?;
        Ok(seconds)
    }

    /// KV blocks of a sequence.
    fn row_blocks(&self) -> usize {
        (self.context + WARM_UP + self.steps).div_ceil(Attention::BLOCK)
    }
}

/// Steps before those that are measured: what they need comes into caches.
const WARM_UP: usize = 3;

/// Numbers of all matrices of all layers.
fn layers(c: &DecoderConfig) -> usize {
    let attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim;
    c.layers() * c.hidden * (attention + 3 * c.intermediate)
}

/// Seconds of some work: the fewest of a few times that it is asked for again and again. `written` is what it writes.
fn fastest<D: Device>(
    device: &D,
    written: Memory,
    work: impl Fn() -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    const TIMES: usize = 5;
    const REPEATS: u32 = 10;
    let wait = || device.read(written, &mut [0; 4]);
    work()?;
    wait()?;
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let start = Instant::now();
        for _ in 0..REPEATS {
            work()?;
        }
        wait()?;
        best = best.min(start.elapsed().as_secs_f64() / f64::from(REPEATS));
    }
    Ok(best)
}

/// Sequences that each have a row of a step.
struct Rows {
    slots: Vec<i32>,
    starts: Vec<i32>,
    blocks: Vec<i32>,
}

impl Rows {
    /// One token of each of `n` sequences.
    fn new(sizes: &Sizes, n: usize) -> Rows {
        Rows::of(sizes, 0..n, 1)
    }

    /// `tokens` tokens of each of some sequences.
    fn of(sizes: &Sizes, sequences: Range<usize>, tokens: usize) -> Rows {
        let per_row = sizes.row_blocks();
        let blocks = sequences.start * per_row..sequences.end * per_row;
        Rows {
            slots: sequences.clone().map(|s| s as i32).collect(),
            starts: (0..=sequences.len()).map(|r| (r * tokens) as i32).collect(),
            blocks: blocks.map(|b| b as i32).collect(),
        }
    }

    fn step<'a>(
        &'a self,
        context: &'a [i32],
        flags: &'a [i32],
        index: &'a [i32],
        tokens: &'a [i32],
    ) -> Step<'a> {
        Step {
            slots: &self.slots,
            starts: &self.starts,
            context,
            flags,
            index,
            tokens,
            blocks: &self.blocks,
            targets: &[],
            top: 0,
        }
    }
}

/// The model that is measured, on its device.
struct Model<'a, D: Device> {
    sizes: &'a Sizes,
    config: DecoderConfig,
    limits: Limits,
    decoder: cuda::Decoder<D>,
    weight_bytes: usize,
    /// Sequences at most.
    streams: usize,
    random: Random,
}

impl<'a, D: Device + 'static> Model<'a, D> {
    fn new(
        sizes: &'a Sizes,
        device: D,
        quantization: Option<Quantization>,
        streams: &[usize],
    ) -> anyhow::Result<Model<'a, D>> {
        let config = DecoderConfig::parse(&sizes.config.to_string())?;
        let element = Element::Bf16;
        let qkv = (config.heads + 2 * config.kv_heads) * config.head_dim;
        let rows = [config.vocab, 2 * config.intermediate, config.hidden, qkv];
        let rows = rows.into_iter().max().unwrap_or(0);
        let weights = Fill::new(&device, rows)?.weights(&config, quantization)?;
        let weight_bytes = weights.bytes(Matrix::bytes, |vector| vector.bytes());
        let streams = streams.iter().copied().max().unwrap_or(1);
        let row_blocks = sizes.row_blocks();
        let room = Room {
            rows: streams,
            tokens: sizes.prefill.max(streams),
            row_blocks,
        };
        let limits = Limits {
            vocab: config.vocab,
            max_context: row_blocks * Attention::BLOCK,
            block_count: streams * row_blocks,
            max_sequences: streams,
            max_step_tokens: room.tokens,
        };
        let work = Work::new(&device, &config, element, quantization, room)?;
        let decoder = cuda::Decoder::new(device, config.clone(), element, weights, work)?;
        let decoder = decoder.with_arena(limits.block_count)?;
        Ok(Model {
            sizes,
            config,
            limits,
            decoder,
            weight_bytes,
            streams,
            random: Random(2),
        })
    }

    /// Fills the contexts of all sequences. Tokens and seconds, but for those of the first step.
    fn prefill(&mut self) -> anyhow::Result<(usize, f64)> {
        let Sizes {
            context, prefill, ..
        } = *self.sizes;
        let most = self.streams;
        let at_once = (prefill / context).clamp(1, most);
        let mut start = Instant::now();
        let mut tokens = 0;
        for first in (0..most).step_by(at_once) {
            if first == at_once {
                self.wait()?;
                (start, tokens) = (Instant::now(), 0);
            }
            let sequences = first..most.min(first + at_once);
            let rows = Rows::of(self.sizes, sequences.clone(), context);
            let n = sequences.len();
            let last: Vec<usize> = (1..=n).map(|r| r * context - 1).collect();
            self.pass(&rows, &vec![0; n], n * context, &last)?;
            tokens += n * context;
        }
        self.wait()?;
        Ok((tokens, start.elapsed().as_secs_f64()))
    }

    /// Seconds of a forward pass of one token of `n` sequences, of passes that follow each other without a wait.
    fn passes(&mut self, n: usize) -> anyhow::Result<f64> {
        let Sizes { context, steps, .. } = *self.sizes;
        let rows = Rows::new(self.sizes, n);
        let all: Vec<usize> = (0..n).collect();
        let mut start = Instant::now();
        for step in 0..WARM_UP + steps {
            if step == WARM_UP {
                self.wait()?;
                start = Instant::now();
            }
            self.pass(&rows, &vec![(context + step) as i32; n], n, &all)?;
        }
        self.wait()?;
        Ok(start.elapsed().as_secs_f64() / steps as f64)
    }

    fn pass(
        &mut self,
        rows: &Rows,
        context: &[i32],
        tokens: usize,
        wanted: &[usize],
    ) -> anyhow::Result<()> {
        let vocab = self.limits.vocab;
        let tokens = (0..tokens).map(|_| self.random.below(vocab) as i32);
        let tokens: Vec<i32> = tokens.collect();
        let zeros = vec![0; context.len()];
        let step = rows.step(context, &zeros, &zeros, &tokens);
        let batch = Batch::new(step, &self.limits)?;
        Ok(self.decoder.forward(&batch, &tokens, wanted)?)
    }

    /// Waits for what was asked for.
    fn wait(&mut self) -> anyhow::Result<()> {
        let mut logits = vec![0.0; self.limits.vocab];
        Ok(self.decoder.logits(0..1, &mut logits)?)
    }

    /// An engine of it, in whose arena everything stays.
    fn engine(self) -> Engine {
        let Model { config, limits, .. } = self;
        let threads = Threads::new(cores());
        let parameters = layers(&config) + 2 * config.vocab * config.hidden;
        let token = 2 * config.layers() * config.kv_heads * config.head_dim * Element::Bf16.size();
        let info = ModelInfo {
            architecture: config.architecture,
            device: "the device".into(),
            dtype: DType::BF16.to_string(),
            vocab_size: limits.vocab as u32,
            max_context: limits.max_context as u32,
            block_size: Attention::BLOCK as u32,
            block_count: limits.block_count as u32,
            max_sequences: limits.max_sequences as u32,
            max_step_tokens: limits.max_step_tokens as u32,
            parameters: parameters as u64,
            weight_bytes: self.weight_bytes as u64,
            kv_bytes_per_token: token as u64,
            threads: threads.count(),
        };
        Engine::new(Box::new(self.decoder), info, limits, threads)
    }
}
