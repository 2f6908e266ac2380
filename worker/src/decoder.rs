//! The forward pass of a decoder of the Llama family, driven by its config.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::cast_slice;
use realm_cuda::DeviceError;
use realm_cuda::sample::Sampled;
use realm_shared::wire::Sampling;

use crate::arena::Arena;
use crate::batch::Batch;
use crate::config::DecoderConfig;
use crate::kernels::{
    Attended, Attention, Buffer, Operand, Order, Packable, Packed, Place, Rotary, Span, Target,
    Threads, attend, rms_norm, rotate_and_store,
};
use crate::parameters::{DecoderWeights, Hold, Stack};
use crate::weights::{View, Weights, WeightsError};

/// A model that can be stepped, whatever it computes in and on.
pub trait Forward: Send {
    /// Runs `tokens` (those of `batch`, with sampled ones filled in) through the model and into
    /// the arena, and keeps the last hidden states of the tokens whose numbers are in `wanted`,
    /// which ascend. -1 - s stands for the token that the [`sampler`](Self::sampler) drew last in slot s.
    ///
    /// # Errors
    /// If a device fails.
    fn forward(
        &mut self,
        batch: &Batch<'_>,
        tokens: &[i32],
        wanted: &[usize],
    ) -> Result<(), ForwardError>;

    /// Logits `[rows, vocab]` of a range of what was `wanted`, at most [`HEAD_ROWS`] at once.
    ///
    /// # Errors
    /// If a device fails.
    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<(), ForwardError>;

    /// The hidden state, after the last norm, of one of what was `wanted`: what its logits follow from.
    ///
    /// # Errors
    /// If a device fails.
    fn hidden(&mut self, row: usize) -> Result<&[f32], ForwardError>;

    /// How many numbers a hidden state has.
    fn hidden_size(&self) -> usize;

    /// What draws tokens where their logits are; None where those are in ordinary memory in any case.
    fn sampler(&mut self) -> Option<&mut dyn DeviceSampler> {
        None
    }

    /// Forgets what the arena holds. Where the system gave its memory page by page, that goes back.
    ///
    /// # Errors
    /// If there is no address space for a new one.
    fn forget(&mut self) -> Result<(), ForwardError>;
}

/// Draws tokens on the device that computes their logits, as [`Sampler`](crate::sampler::Sampler) does here. The
/// next step can begin before anybody here knows them.
pub trait DeviceSampler {
    /// Sets how the tokens of a slot are drawn, as [`Sampler::new`](crate::sampler::Sampler::new) has checked it.
    /// False if the device has no room for that.
    ///
    /// # Errors
    /// If the device fails.
    fn open(
        &mut self,
        slot: usize,
        sampling: &Sampling,
        bias: &[(i32, f32)],
        history: &[i32],
    ) -> Result<bool, ForwardError>;

    /// Begins to draw and score after the forward pass of a step, at each hidden state that was wanted; nothing
    /// where there is None.
    ///
    /// # Errors
    /// If the device fails.
    fn draw(&mut self, draws: &[Option<Draw>]) -> Result<(), ForwardError>;

    /// Whether the oldest step whose draws were begun and not asked for yet is over.
    ///
    /// # Errors
    /// If the device fails.
    fn has_drawn(&mut self) -> Result<bool, ForwardError>;

    /// What came of the oldest step whose draws were begun and not asked for yet: this waits for them.
    ///
    /// # Errors
    /// If the device fails.
    fn drawn(&mut self) -> Result<Vec<Sampled>, ForwardError>;
}

/// What to do with the logits of a hidden state.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Whose they are; it must be open.
    pub slot: usize,
    /// Number of the token to draw, if one is.
    pub index: Option<u32>,
    /// Token to score, if one is.
    pub target: Option<u32>,
    /// Alternatives to report; None where log-probabilities of drawn tokens are not asked for.
    pub top: Option<usize>,
}

/// Why a model cannot go on. It ends the worker.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The system refuses the address space of a new arena.
    #[error("cannot reserve a new KV arena: {0}")]
    Arena(#[from] io::Error),
    /// The device fails.
    #[error("the device failed in a forward pass: {0}")]
    Device(#[from] DeviceError),
}

/// Most rows of logits that are computed at once: a large vocabulary takes half a megabyte each.
pub const HEAD_ROWS: usize = 32;

/// A decoder's weights in ordinary memory.
pub type Held<T> = DecoderWeights<Packed<T>, Vec<f32>>;

/// A decoder's weights, its KV arena, and the memory that a step works in.
pub struct Decoder<T: Packable> {
    config: DecoderConfig,
    shape: Attention,
    threads: Threads,
    weights: Held<T>,
    rotary: Rotary,
    arena: Arena<T>,
    work: Work<T>,
}

/// Activations of a step.
struct Work<T> {
    hidden: Buffer,
    normed: Operand<T>,
    qkv: Buffer,
    attended: Operand<T>,
    activated: Operand<T>,
    /// Hidden states after the last norm, where they are wanted.
    states: Buffer,
    /// Those whose logits are being computed.
    head: Operand<T>,
}

/// Takes weights into ordinary memory, as `T`.
struct Pack<'a, T> {
    threads: &'a Threads,
    element: PhantomData<T>,
}

impl<T: Packable> Hold for Pack<'_, T> {
    type Matrix = Packed<T>;
    type Vector = Vec<f32>;
    type Error = WeightsError;

    fn matrix(&mut self, stack: &Stack<'_>) -> Result<Packed<T>, WeightsError> {
        Ok(self.pack(Order::Plain, stack))
    }

    fn gated(&mut self, stack: &Stack<'_>) -> Result<Packed<T>, WeightsError> {
        Ok(self.pack(Order::Gated, stack))
    }

    fn vector(&mut self, values: View<'_>) -> Result<Vec<f32>, WeightsError> {
        Ok(floats(&values))
    }
}

impl<T: Packable> Pack<'_, T> {
    fn pack(&self, order: Order, stack: &Stack<'_>) -> Packed<T> {
        let bias: Option<Vec<_>> = (!stack.bias.is_empty()).then(|| {
            stack
                .bias
                .iter()
                .flat_map(|(_, part)| floats(part))
                .collect()
        });
        let (outputs, inputs, bias) = (stack.outputs, stack.inputs, bias.as_deref());
        Packed::new(
            self.threads,
            order,
            outputs,
            inputs,
            bias,
            |row, column, into| {
                stack.read(row, column, into);
            },
        )
    }
}

fn floats(view: &View<'_>) -> Vec<f32> {
    let mut values = vec![0.0; view.count()];
    view.read(0, &mut values);
    values
}

/// Reads and converts all weights, calling `progress` with the bytes read so far.
///
/// # Errors
/// If a tensor is missing, has another shape than the config asks for, or would be ignored.
pub fn load_weights<T: Packable>(
    config: &DecoderConfig,
    checkpoint: &Weights,
    threads: &Threads,
    progress: &mut dyn FnMut(u64),
) -> Result<Held<T>, WeightsError> {
    let mut pack = Pack {
        threads,
        element: PhantomData,
    };
    DecoderWeights::load(config, checkpoint, &mut pack, progress)
}

impl<T: Packable> Decoder<T> {
    /// A decoder with an arena of `blocks` blocks, for steps of up to `max_step_tokens`.
    ///
    /// # Errors
    /// If there is no address space for the arena, or for what steps compute in.
    pub fn new(
        config: DecoderConfig,
        weights: Held<T>,
        threads: Threads,
        blocks: usize,
        max_step_tokens: usize,
    ) -> io::Result<Decoder<T>> {
        let shape = attention(&config);
        let rows = max_step_tokens;
        let query = config.heads * config.head_dim;
        let work = Work {
            hidden: Buffer::new(rows, config.hidden)?,
            normed: Operand::new(rows, config.hidden)?,
            qkv: Buffer::new(rows, query + 2 * config.kv_heads * config.head_dim)?,
            attended: Operand::new(rows, query)?,
            activated: Operand::new(rows, config.intermediate)?,
            states: Buffer::new(rows, config.hidden)?,
            head: Operand::new(HEAD_ROWS.min(rows), config.hidden)?,
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
fn compact(buffer: &mut Buffer, rows: usize, wanted: &[usize]) {
    let width = buffer.width();
    let values = buffer.rows_mut(rows);
    for (to, from) in wanted.iter().enumerate() {
        values.copy_within(from * width..(from + 1) * width, to * width);
    }
}

impl<T: Packable> Forward for Decoder<T> {
    fn forward(
        &mut self,
        batch: &Batch<'_>,
        tokens: &[i32],
        wanted: &[usize],
    ) -> Result<(), ForwardError> {
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
        // All of them are known here, where nothing else draws them.
        let tokens: &[u32] = cast_slice(tokens);
        weights.embedding.gather(threads, tokens, hidden);
        if let Some(first) = weights.layers.first() {
            let (hidden, normed) = (work.hidden.rows(rows), work.normed.target());
            rms_norm(threads, hidden, &first.attention_norm, eps, normed);
        }
        for (i, layer) in weights.layers.iter().enumerate() {
            let (keys, values) = arena.layer(i);
            let qkv = work.qkv.rows_mut(rows);
            layer.qkv.multiply(threads, &work.normed, qkv);
            let norms = layer.query_key_norms.as_ref();
            let norms = norms.map(|(query, key)| (query.as_slice(), key.as_slice(), eps));
            rotate_and_store(threads, shape, rotary, norms, &places, qkv, (keys, values));
            let last = i + 1 == weights.layers.len();
            if last && wanted.is_empty() {
                return Ok(());
            }
            let attention = Attended {
                shape,
                window: config.windows[i],
                spans: &spans,
                qkv,
                keys,
                values,
            };
            attend(threads, &attention, work.attended.target());
            if last {
                // What follows is only needed where logits are.
                work.attended.keep(wanted);
                compact(&mut work.hidden, rows, wanted);
                rows = wanted.len();
            }
            let hidden = work.hidden.rows_mut(rows);
            layer.output.multiply_add(threads, &work.attended, hidden);
            rms_norm(threads, hidden, &layer.mlp_norm, eps, work.normed.target());
            let gate_up = &layer.gate_up;
            gate_up.multiply_gated(threads, &work.normed, rows, &mut work.activated);
            layer.down.multiply_add(threads, &work.activated, hidden);
            let (norm, out) = match weights.layers.get(i + 1) {
                Some(next) => (&next.attention_norm, work.normed.target()),
                None => {
                    let states = work.states.rows_mut(rows);
                    (&weights.norm, Target::plain(states, config.hidden))
                }
            };
            rms_norm(threads, hidden, norm, eps, out);
        }
        Ok(())
    }

    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<(), ForwardError> {
        let width = self.config.hidden;
        let Decoder {
            weights,
            work,
            threads,
            ..
        } = self;
        let states = &work.states.rows(rows.end)[rows.start * width..];
        work.head.fill(threads, states);
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        assert!(out.len() == rows.len() * head.outputs());
        head.multiply(threads, &work.head, out);
        Ok(())
    }

    fn hidden(&mut self, row: usize) -> Result<&[f32], ForwardError> {
        let width = self.config.hidden;
        Ok(&self.work.states.rows(row + 1)[row * width..])
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden
    }

    fn forget(&mut self) -> Result<(), ForwardError> {
        Ok(self.arena.clear()?)
    }
}
