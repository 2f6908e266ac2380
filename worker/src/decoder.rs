//! The forward pass of a decoder of the Llama family, driven by its config.

use std::io;
use std::ops::Range;

use crate::arena::Arena;
use crate::batch::Batch;
use crate::config::DecoderConfig;
use crate::kernels::{
    Attention, Buffer, Place, Rotary, Span, Threads, add_rms_norm, attend, rms_norm,
    rotate_and_store, silu_multiply,
};
use crate::linear::Linear;
use crate::weights::{View, Weights, WeightsError};

/// A model that can be stepped, whatever type it computes in.
pub trait Forward: Send {
    /// Runs `tokens` (those of `batch`, with sampled ones filled in) through the model and into
    /// the arena, and keeps the last hidden states of the tokens whose numbers are in `wanted`,
    /// which ascend.
    fn forward(&mut self, batch: &Batch<'_>, tokens: &[u32], wanted: &[usize]);

    /// Logits `[rows, vocab]` of a range of what was `wanted`, at most [`HEAD_ROWS`] at once.
    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]);

    /// The hidden state, after the last norm, of one of what was `wanted`: what its logits follow from.
    fn hidden(&self, row: usize) -> &[f32];

    /// How many numbers a hidden state has.
    fn hidden_size(&self) -> usize;

    /// Empties the arena, whose memory goes back to the system.
    ///
    /// # Errors
    /// If there is no address space for a new one.
    fn forget(&mut self) -> io::Result<()>;
}

/// Most rows of logits that are computed at once: a large vocabulary takes half a megabyte each.
pub const HEAD_ROWS: usize = 32;

/// A decoder's weights, its KV arena, and the memory that a step works in.
pub struct Decoder<L: Linear> {
    config: DecoderConfig,
    shape: Attention,
    threads: Threads,
    weights: DecoderWeights<L>,
    rotary: Rotary,
    arena: Arena<L::Element>,
    work: Work,
}

/// All weights of a decoder.
pub struct DecoderWeights<L: Linear> {
    embedding: L,
    /// None if it is the embedding.
    head: Option<L>,
    layers: Vec<Layer<L>>,
    norm: Vec<f32>,
}

struct Layer<L> {
    attention_norm: Vec<f32>,
    /// Queries, keys and values in one matrix.
    qkv: L,
    query_key_norms: Option<(Vec<f32>, Vec<f32>)>,
    output: L,
    mlp_norm: Vec<f32>,
    /// Gates and ups in one matrix.
    gate_up: L,
    down: L,
}

/// Activations of a step.
struct Work {
    hidden: Buffer<f32>,
    normed: Buffer<f32>,
    qkv: Buffer<f32>,
    attended: Buffer<f32>,
    gate_up: Buffer<f32>,
    activated: Buffer<f32>,
    delta: Buffer<f32>,
    logits: Buffer<f32>,
}

impl<L: Linear> DecoderWeights<L> {
    /// Reads and converts all weights, calling `progress` with the bytes read so far.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than the config asks for, or would be ignored.
    pub fn load(
        config: &DecoderConfig,
        weights: &Weights,
        threads: &Threads,
        progress: &mut dyn FnMut(u64),
    ) -> Result<DecoderWeights<L>, WeightsError> {
        let mut loader = Loader {
            weights,
            threads,
            progress,
            done: 0,
            used: Vec::new(),
        };
        let c = config;
        let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let embedding = loader.linear(&["model.embed_tokens"], &[c.vocab], c.hidden, false)?;
        let mut layers = Vec::new();
        for i in 0..c.layers() {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let [q, k, v, o] = ["q", "k", "v", "o"].map(|x| at(&format!("self_attn.{x}_proj")));
            let [gate, up, down] = ["gate", "up", "down"].map(|x| at(&format!("mlp.{x}_proj")));
            let query_key_norms = if c.qk_norm {
                let query = loader.vector(&at("self_attn.q_norm.weight"), c.head_dim)?;
                Some((
                    query,
                    loader.vector(&at("self_attn.k_norm.weight"), c.head_dim)?,
                ))
            } else {
                None
            };
            layers.push(Layer {
                attention_norm: loader.vector(&at("input_layernorm.weight"), c.hidden)?,
                qkv: loader.linear(&[&q, &k, &v], &[query, key, key], c.hidden, c.qkv_bias)?,
                query_key_norms,
                output: loader.linear(&[&o], &[c.hidden], query, c.output_bias)?,
                mlp_norm: loader.vector(&at("post_attention_layernorm.weight"), c.hidden)?,
                gate_up: {
                    let widths = [c.intermediate, c.intermediate];
                    loader.linear(&[&gate, &up], &widths, c.hidden, c.mlp_bias)?
                },
                down: loader.linear(&[&down], &[c.hidden], c.intermediate, c.mlp_bias)?,
            });
        }
        let norm = loader.vector("model.norm.weight", c.hidden)?;
        let head = if c.tied {
            None
        } else {
            Some(loader.linear(&["lm_head"], &[c.vocab], c.hidden, false)?)
        };
        let used = loader.used;
        let ignorable = |name: &str| {
            // Old checkpoints hold the frequencies; tied ones may repeat the embedding.
            name.ends_with(".rotary_emb.inv_freq") || (c.tied && name == "lm_head.weight")
        };
        match weights
            .names()
            .find(|name| !used.iter().any(|u| u == name) && !ignorable(name))
        {
            Some(name) => Err(WeightsError::Unused(name.into())),
            None => Ok(DecoderWeights {
                embedding,
                head,
                layers,
                norm,
            }),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| {
                layer.qkv.bytes()
                    + layer.output.bytes()
                    + layer.gate_up.bytes()
                    + layer.down.bytes()
                    + size_of_val(layer.attention_norm.as_slice())
                    + size_of_val(layer.mlp_norm.as_slice())
            })
            .sum();
        let head = self.head.as_ref().map_or(0, Linear::bytes);
        self.embedding.bytes() + head + layers + size_of_val(self.norm.as_slice())
    }
}

/// Takes tensors out of a checkpoint by name.
struct Loader<'a> {
    weights: &'a Weights,
    threads: &'a Threads,
    progress: &'a mut dyn FnMut(u64),
    done: u64,
    used: Vec<String>,
}

impl<'a> Loader<'a> {
    fn view(&mut self, name: String, shape: &[usize]) -> Result<View<'a>, WeightsError> {
        let view = self.weights.tensor(&name, shape)?;
        self.done += view.bytes();
        self.used.push(name);
        Ok(view)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        let view = self.view(name.into(), &[len])?;
        let mut values = vec![0.0; len];
        view.read(0, &mut values);
        (self.progress)(self.done);
        Ok(values)
    }

    /// One matrix of the tensors `names` on top of each other, `outputs` rows each.
    fn linear<L: Linear>(
        &mut self,
        names: &[&str],
        outputs: &[usize],
        inputs: usize,
        with_bias: bool,
    ) -> Result<L, WeightsError> {
        let mut parts = Vec::new();
        let mut bias = Vec::new();
        let mut total = 0;
        for (name, outputs) in names.iter().zip(outputs) {
            parts.push((
                total,
                self.view(format!("{name}.weight"), &[*outputs, inputs])?,
            ));
            total += outputs;
            if with_bias {
                bias.extend(self.vector(&format!("{name}.bias"), *outputs)?);
            }
        }
        let bias = with_bias.then_some(bias);
        let linear = L::new(self.threads, total, inputs, bias, |row, column, into| {
            let part = parts.partition_point(|(first, _)| *first <= row) - 1;
            let (first, view) = &parts[part];
            view.read((row - first) * inputs + column, into);
        });
        (self.progress)(self.done);
        Ok(linear)
    }
}

impl<L: Linear> Decoder<L> {
    /// A decoder with an arena of `blocks` blocks, for steps of up to `max_step_tokens`.
    ///
    /// # Errors
    /// If there is no address space for the arena.
    pub fn new(
        config: DecoderConfig,
        weights: DecoderWeights<L>,
        threads: Threads,
        blocks: usize,
        max_step_tokens: usize,
    ) -> io::Result<Decoder<L>> {
        let shape = attention(&config);
        let rows = max_step_tokens;
        let query = config.heads * config.head_dim;
        let work = Work {
            hidden: Buffer::new(rows, config.hidden),
            normed: Buffer::new(rows, config.hidden),
            qkv: Buffer::new(rows, query + 2 * config.kv_heads * config.head_dim),
            attended: Buffer::new(rows, query),
            gate_up: Buffer::new(rows, 2 * config.intermediate),
            activated: Buffer::new(rows, config.intermediate),
            delta: Buffer::new(rows, config.hidden),
            logits: Buffer::new(HEAD_ROWS.min(rows), config.vocab),
        };
        let rotary = Rotary::new(config.rope_frequencies());
        let arena = Arena::new(config.layers(), &shape, blocks)?;
        Ok(Decoder {
            config,
            shape,
            threads,
            weights,
            rotary,
            arena,
            work,
        })
    }
}

/// The shape of every layer's attention.
pub fn attention(config: &DecoderConfig) -> Attention {
    let DecoderConfig {
        heads,
        kv_heads,
        head_dim,
        ..
    } = *config;
    Attention {
        heads,
        kv_heads,
        head_dim,
    }
}

/// Moves the rows whose numbers are in `wanted`, which ascend, to the front.
fn compact(buffer: &mut Buffer<f32>, rows: usize, wanted: &[usize]) {
    let width = buffer.width();
    let values = buffer.rows_mut(rows);
    for (to, from) in wanted.iter().enumerate() {
        values.copy_within(from * width..(from + 1) * width, to * width);
    }
}

impl<L: Linear> Forward for Decoder<L> {
    fn forward(&mut self, batch: &Batch<'_>, tokens: &[u32], wanted: &[usize]) {
        let Decoder {
            config,
            shape,
            threads,
            weights,
            rotary,
            arena,
            work,
        } = self;
        let eps = config.norm_eps;
        let mut places = Vec::with_capacity(tokens.len());
        let mut spans = Vec::with_capacity(batch.rows().len());
        for row in batch.rows() {
            for position in row.context..row.context + row.len {
                let block = row.blocks[position / Attention::BLOCK] as u32;
                places.push(Place {
                    position: position as u32,
                    block,
                });
            }
            rotary.extend_to(row.context + row.len);
            let (first, len, context, blocks) = (row.first, row.len, row.context, row.blocks);
            spans.push(Span {
                first,
                len,
                context,
                blocks,
            });
        }
        let mut rows = tokens.len();
        let hidden = work.hidden.rows_mut(rows);
        weights.embedding.gather(threads, tokens, hidden);
        let mut next_norm = weights
            .layers
            .first()
            .map_or(&weights.norm, |l| &l.attention_norm);
        let normed = work.normed.rows_mut(rows);
        rms_norm(threads, work.hidden.rows(rows), next_norm, eps, normed);
        for (i, layer) in weights.layers.iter().enumerate() {
            let (keys, values) = arena.layer(i);
            layer
                .qkv
                .multiply(threads, rows, &work.normed, &mut work.qkv);
            let norms = layer.query_key_norms.as_ref();
            let norms = norms.map(|(query, key)| (query.as_slice(), key.as_slice(), eps));
            let qkv = work.qkv.rows_mut(rows);
            rotate_and_store(threads, shape, rotary, norms, &places, qkv, (keys, values));
            let last = i + 1 == weights.layers.len();
            if last && wanted.is_empty() {
                return;
            }
            let (qkv, attended) = (work.qkv.rows(rows), work.attended.rows_mut(rows));
            attend(
                threads,
                shape,
                config.windows[i],
                &spans,
                qkv,
                keys,
                values,
                attended,
            );
            if last {
                // What follows is only needed where logits are.
                compact(&mut work.attended, rows, wanted);
                compact(&mut work.hidden, rows, wanted);
                rows = wanted.len();
            }
            layer
                .output
                .multiply(threads, rows, &work.attended, &mut work.delta);
            let (delta, normed) = (work.delta.rows(rows), work.normed.rows_mut(rows));
            let hidden = work.hidden.rows_mut(rows);
            add_rms_norm(threads, hidden, delta, &layer.mlp_norm, eps, normed);
            layer
                .gate_up
                .multiply(threads, rows, &work.normed, &mut work.gate_up);
            let gate_up = work.gate_up.rows(rows);
            silu_multiply(
                threads,
                gate_up,
                config.intermediate,
                work.activated.rows_mut(rows),
            );
            layer
                .down
                .multiply(threads, rows, &work.activated, &mut work.delta);
            next_norm = weights
                .layers
                .get(i + 1)
                .map_or(&weights.norm, |l| &l.attention_norm);
            let (delta, normed) = (work.delta.rows(rows), work.normed.rows_mut(rows));
            add_rms_norm(
                threads,
                work.hidden.rows_mut(rows),
                delta,
                next_norm,
                eps,
                normed,
            );
        }
    }

    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]) {
        let width = self.config.hidden;
        let count = rows.len();
        let Decoder {
            weights,
            work,
            threads,
            ..
        } = self;
        // The head reads rows from the front of a buffer; `delta` is free after the pass.
        let states = &work.normed.rows(rows.end)[rows.start * width..];
        work.delta.rows_mut(count).copy_from_slice(states);
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        head.multiply(threads, count, &work.delta, &mut work.logits);
        out.copy_from_slice(work.logits.rows(count));
    }

    fn hidden(&self, row: usize) -> &[f32] {
        let width = self.config.hidden;
        &self.work.normed.rows(row + 1)[row * width..]
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden
    }

    fn forget(&mut self) -> io::Result<()> {
        self.arena.clear()
    }
}
