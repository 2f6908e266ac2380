//! The forward pass of a decoder, as launches and products on a device.

use std::collections::BTreeMap;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use half::{bf16, f16};
use realm_cuda::activation::SiluMultiply;
use realm_cuda::attention::{Decode, Layer, Plan, Prefill};
use realm_cuda::norm::AddRmsNorm;
use realm_cuda::quantize::QuantizeRows;
use realm_cuda::rotary::RotateAndStore;
use realm_cuda::rows::{Embed, GatherRows};
use realm_cuda::sample::Sampled;
use realm_cuda::{Device, DeviceError, Element, Memory, Product, Scales};
use realm_shared::wire::Sampling;

use super::draws::Draws;
use super::weights::{Matrix, part};
use super::work::{Arena, Work};
use crate::batch::Batch;
use crate::config::DecoderConfig;
use crate::decoder::{DeviceSampler, Draw, Forward, ForwardError};
use crate::parameters::{DecoderWeights, LayerWeights};

/// Steps that gateways keep under way: there is room for the results of as many from the beginning.
const UNDER_WAY: usize = 2;

/// A decoder on a device.
///
/// Steps in which every row has one token, whose hidden state is wanted, are filled up to one of a few sizes. Those are
/// captured before the first step, and replayed.
pub struct Decoder<D: Device> {
    device: D,
    config: DecoderConfig,
    element: Element,
    weights: DecoderWeights<Matrix, Memory>,
    work: Work,
    draws: Draws<D>,
    arena: Arena,
    /// By how many rows they have: one for each size that steps are filled up to.
    graphs: BTreeMap<usize, D::Graph>,
    /// How many hidden states the last step left in `work.normed`.
    wanted: usize,
    /// Which of them `work.logits` holds the logits of.
    headed: Range<usize>,
    /// What is read, as the device holds it.
    read: Vec<u8>,
    /// The hidden states of the last step, once one was asked for.
    states: Option<Vec<f32>>,
}

/// All that the launches of a step depend on; the rest is in memory.
#[derive(Debug, Clone, Copy)]
struct Size {
    tokens: usize,
    rows: usize,
    wanted: usize,
}

impl Size {
    /// Rows of one token each, which is wanted.
    fn repeating(rows: usize) -> Size {
        Size {
            tokens: rows,
            rows,
            wanted: rows,
        }
    }
}

impl<D: Device> Decoder<D> {
    /// A decoder of what was made for it on this device. By then the device has given all memory that steps take, and
    /// their graphs, but for an arena: there is one of a single block, in the place of what
    /// [`with_arena`](Self::with_arena) makes.
    ///
    /// # Errors
    /// If the device has no room for that, or fails, or its kernels cannot be compiled.
    pub fn new(
        device: D,
        config: DecoderConfig,
        element: Element,
        weights: DecoderWeights<Matrix, Memory>,
        work: Work,
    ) -> Result<Decoder<D>, DeviceError> {
        let draws = Draws::new(&device, element, config.vocab, work.room, work.head_rows)?;
        let arena = Arena::new(&device, &config, element, 1)?;
        let mut decoder = Decoder {
            device,
            config,
            element,
            weights,
            work,
            draws,
            arena,
            graphs: BTreeMap::new(),
            wanted: 0,
            headed: 0..0,
            read: Vec::new(),
            states: None,
        };
        decoder.warm_up()?;
        decoder.capture()?;
        Ok(decoder)
    }

    /// Bytes of the device that an arena could take.
    ///
    /// # Errors
    /// If the device fails.
    pub fn free(&self) -> Result<usize, DeviceError> {
        Ok(self.device.memory()?.0)
    }

    /// The same with an empty arena of so many blocks.
    ///
    /// # Errors
    /// If the device has no room for it, or fails.
    pub fn with_arena(mut self, blocks: usize) -> Result<Decoder<D>, DeviceError> {
        self.arena = Arena::new(&self.device, &self.config, self.element, blocks)?;
        self.capture()?;
        Ok(self)
    }

    /// Runs every size that is captured, a step that reads a prompt, and draws, for rows that stand for nothing. Later,
    /// when the process is confined, kernels cannot be compiled and libraries not be loaded any more, and a capture can
    /// do neither.
    fn warm_up(&mut self) -> Result<(), DeviceError> {
        let prompt = Size {
            tokens: 2,
            rows: 1,
            wanted: 1,
        };
        let repeating = sizes(self.work.room.rows).into_iter().map(Size::repeating);
        for size in std::iter::once(prompt).chain(repeating) {
            let starts: Vec<i32> = (0..size.rows as i32).chain([size.tokens as i32]).collect();
            let (device, inputs) = (&self.device, &self.work.inputs);
            let write = |to, words: &[i32]| device.write(to, cast_slice(words));
            write(inputs.context, &vec![-1; size.rows])?;
            write(inputs.starts, &starts)?;
            write(inputs.tokens, &vec![0; size.tokens])?;
            write(inputs.wanted, &[0])?;
            self.pass(size)?;
        }
        let Decoder { device, draws, .. } = self;
        let penalties = Sampling {
            presence_penalty: 1.0,
            ..Sampling::default()
        };
        draws.open(device, 0, &penalties, &[], &[0])?;
        for _ in 0..UNDER_WAY {
            draws.begin(device)?;
            draws.draw(device, self.work.logits, &[None])?;
        }
        for _ in 0..UNDER_WAY {
            draws.results(device)?;
        }
        Ok(())
    }

    /// Captures all sizes that repeat, with the arena that there is.
    fn capture(&mut self) -> Result<(), DeviceError> {
        // What those before held is free for these.
        self.graphs.clear();
        for rows in sizes(self.work.room.rows) {
            let size = Size::repeating(rows);
            let graph = self.device.capture(&mut || self.pass(size))?;
            self.graphs.insert(rows, graph);
        }
        Ok(())
    }

    /// Asks for all that a step of some size computes, up to its logits.
    fn pass(&self, size: Size) -> Result<(), DeviceError> {
        let Decoder {
            device,
            config,
            weights,
            work,
            ..
        } = self;
        let embed = Embed {
            element: self.element,
            tokens_len: size.tokens,
            vocab: config.vocab,
            width: config.hidden,
            slots: self.draws.slots(),
            table: weights.embedding.weight,
            tokens: work.inputs.tokens,
            drawn: self.draws.drawn,
            hidden: work.hidden,
        };
        embed.launch(device)?;
        for (window, items) in &work.plans {
            let plan = Plan {
                shape: self.shape(*window, size),
                starts: work.inputs.starts,
                context: work.inputs.context,
                items: *items,
            };
            plan.launch(device)?;
        }
        let (mut rows, mut hidden) = (size.tokens, work.hidden);
        self.norm(rows, hidden, None, self.norm_before(0))?;
        for (i, layer) in weights.layers.iter().enumerate() {
            self.multiply(rows, work.normed, &layer.qkv, work.qkv)?;
            self.rotate_and_store(i, layer, size)?;
            let last = i + 1 == weights.layers.len();
            if last && size.wanted == 0 {
                return Ok(());
            }
            self.attend(i, size)?;
            let mut attended = work.attended;
            if last && size.wanted < size.tokens {
                // What follows is only needed where logits are. Nothing reads `qkv` any more.
                let width = config.heads * config.head_dim;
                self.gather(size, self.element, width, attended, work.qkv)?;
                self.gather(
                    size,
                    Element::F32,
                    config.hidden,
                    hidden,
                    work.wanted_hidden,
                )?;
                (rows, attended, hidden) = (size.wanted, work.qkv, work.wanted_hidden);
            }
            self.multiply(rows, attended, &layer.output, work.delta)?;
            self.norm(rows, hidden, Some(work.delta), layer.mlp_norm)?;
            self.multiply(rows, work.normed, &layer.gate_up, work.gate_up)?;
            let activation = SiluMultiply {
                element: self.element,
                rows,
                width: config.intermediate,
                gate_up: work.gate_up,
                out: work.activated,
            };
            activation.launch(device)?;
            self.multiply(rows, work.activated, &layer.down, work.delta)?;
            self.norm(rows, hidden, Some(work.delta), self.norm_before(i + 1))?;
        }
        self.head(self.headed_with(0, size.wanted))
    }

    /// The weights of the norm before a layer, or before the head.
    fn norm_before(&self, layer: usize) -> Memory {
        let layer = self.weights.layers.get(layer);
        layer.map_or(self.weights.norm, |layer| layer.attention_norm)
    }

    fn shape(&self, window: Option<usize>, size: Size) -> realm_cuda::attention::Shape {
        let step = (size.tokens, size.rows);
        self.work
            .room
            .shape(&self.config, self.element, window, step)
    }

    fn norm(
        &self,
        rows: usize,
        hidden: Memory,
        delta: Option<Memory>,
        weight: Memory,
    ) -> Result<(), DeviceError> {
        let norm = AddRmsNorm {
            element: self.element,
            rows,
            width: self.config.hidden,
            hidden,
            delta,
            weight,
            eps: self.config.norm_eps,
            out: self.work.normed,
        };
        Ok(norm.launch(&self.device)?)
    }

    fn multiply(
        &self,
        rows: usize,
        x: Memory,
        matrix: &Matrix,
        out: Memory,
    ) -> Result<(), DeviceError> {
        let (mut x, mut scales) = (x, None);
        if let (Some(weight), Some(quantized)) = (matrix.scales, self.work.quantized) {
            let quantize = QuantizeRows {
                rows,
                width: matrix.inputs,
                x,
                out: quantized.rows,
                scales: quantized.scales,
            };
            quantize.launch(&self.device)?;
            x = quantized.rows;
            scales = Some(Scales {
                x: quantized.scales,
                weight,
            });
        }
        self.device.multiply(&Product {
            element: self.element,
            rows,
            inputs: matrix.inputs,
            outputs: matrix.outputs,
            x,
            weight: matrix.weight,
            scales,
            bias: matrix.bias,
            out,
        })
    }

    fn rotate_and_store(
        &self,
        i: usize,
        layer: &LayerWeights<Matrix, Memory>,
        size: Size,
    ) -> Result<(), DeviceError> {
        let (c, work) = (&self.config, &self.work);
        let (keys, values) = self.arena.layers[i];
        let norms = layer.query_key_norms;
        let rotate = RotateAndStore {
            element: self.element,
            head_dim: c.head_dim,
            heads: c.heads,
            kv_heads: c.kv_heads,
            tokens: size.tokens,
            rows: size.rows,
            row_blocks: work.room.row_blocks,
            arena_blocks: self.arena.blocks,
            qkv: work.qkv,
            keys,
            values,
            frequencies: work.frequencies,
            norms: norms.map(|(query, key)| (query, key, c.norm_eps)),
            starts: work.inputs.starts,
            context: work.inputs.context,
            table: work.inputs.table,
        };
        Ok(rotate.launch(&self.device)?)
    }

    fn attend(&self, i: usize, size: Size) -> Result<(), DeviceError> {
        let work = &self.work;
        let window = self.config.windows[i];
        let (keys, values) = self.arena.layers[i];
        let shape = self.shape(window, size);
        let multiprocessors = self.device.multiprocessors();
        for (_, items) in work.plans.iter().filter(|(planned, _)| *planned == window) {
            let layer = Layer {
                qkv: work.qkv,
                keys,
                values,
                arena_blocks: self.arena.blocks,
                table: work.inputs.table,
                items: *items,
                out: work.attended,
            };
            // Where there are as many tokens as rows, no row is prefilled; a single row of several is not decoded.
            if size.rows > 1 || size.tokens == 1 {
                let decode = Decode {
                    shape,
                    layer,
                    partial: work.partial,
                    ended: work.ended,
                    multiprocessors,
                };
                decode.launch(&self.device)?;
            }
            if size.tokens > size.rows {
                let prefill = Prefill {
                    shape,
                    layer,
                    multiprocessors,
                };
                prefill.launch(&self.device)?;
            }
        }
        Ok(())
    }

    /// Copies the rows of the tokens that are wanted.
    fn gather(
        &self,
        size: Size,
        element: Element,
        width: usize,
        from: Memory,
        to: Memory,
    ) -> Result<(), DeviceError> {
        let gather = GatherRows {
            element,
            wanted: size.wanted,
            count: size.tokens,
            width,
            from,
            rows: self.work.inputs.wanted,
            to,
        };
        Ok(gather.launch(&self.device)?)
    }

    /// The hidden states that the head takes at once, from one on, where so many are wanted.
    fn headed_with(&self, first: usize, wanted: usize) -> Range<usize> {
        first..wanted.min(first + self.work.head_rows)
    }

    /// Computes the logits of some hidden states.
    fn head(&self, states: Range<usize>) -> Result<(), DeviceError> {
        let row = self.config.hidden * self.element.size();
        let x = part(self.work.normed, states.start * row, states.len() * row)?;
        let head = self.weights.head.as_ref();
        let head = head.unwrap_or(&self.weights.embedding);
        self.multiply(states.len(), x, head, self.work.logits)
    }

    /// Computes the logits of the hidden states that were wanted, from one on and as many as fit.
    fn head_from(&mut self, first: usize) -> Result<(), DeviceError> {
        let states = self.headed_with(first, self.wanted);
        self.head(states.clone())?;
        self.headed = states;
        Ok(())
    }

    /// Runs a step whose inputs are written.
    fn run(&self, size: Size) -> Result<(), DeviceError> {
        let repeats = size.tokens == size.rows && size.wanted == size.rows;
        match self.graphs.get(&size.rows).filter(|_| repeats) {
            Some(graph) => self.device.replay(graph),
            None => self.pass(size),
        }
    }
}

/// All sizes that steps are filled up to, where there can be `most` rows.
fn sizes(most: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (1..=most).map(|rows| filled_up(rows, most)).collect();
    sizes.dedup();
    sizes
}

/// The size that steps of so many rows are filled up to, where there can be `most`: few enough to capture them all,
/// and close enough that filling up costs little.
fn filled_up(rows: usize, most: usize) -> usize {
    let size = match rows {
        0..=8 => rows.next_power_of_two(),
        9..=32 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(16),
    };
    size.min(most)
}

impl<D: Device> Forward for Decoder<D> {
    fn forward(
        &mut self,
        batch: &Batch<'_>,
        tokens: &[i32],
        wanted: &[usize],
    ) -> Result<(), ForwardError> {
        let rows = batch.rows().iter().filter(|row| row.len > 0).count();
        let mut size = Size {
            tokens: tokens.len(),
            rows,
            wanted: wanted.len(),
        };
        if size.tokens == rows && size.wanted == rows {
            size = Size::repeating(filled_up(rows, self.work.room.rows));
        }
        let inputs = &mut self.work.inputs;
        inputs.write(&self.device, batch, tokens, wanted, size.rows)?;
        self.run(size)?;
        self.wanted = wanted.len();
        self.headed = self.headed_with(0, self.wanted);
        self.states = None;
        Ok(())
    }

    fn logits(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<(), ForwardError> {
        if rows.start < self.headed.start || rows.end > self.headed.end {
            self.head_from(rows.start)?;
        }
        let row = self.config.vocab * self.element.size();
        let at = (rows.start - self.headed.start) * row;
        let from = part(self.work.logits, at, rows.len() * row)?;
        Ok(read(&self.device, self.element, from, &mut self.read, out)?)
    }

    fn hidden(&mut self, row: usize) -> Result<&[f32], ForwardError> {
        let width = self.config.hidden;
        let states = match self.states.take() {
            Some(states) => states,
            None => {
                let mut states = vec![0.0; self.wanted * width];
                let from = self.work.normed;
                read(
                    &self.device,
                    self.element,
                    from,
                    &mut self.read,
                    &mut states,
                )?;
                states
            }
        };
        Ok(&self.states.insert(states)[row * width..][..width])
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden
    }

    fn sampler(&mut self) -> Option<&mut dyn DeviceSampler> {
        Some(self)
    }

    /// What the arena holds stays there, and is not read: a sequence sees what it has written, or what its gateway
    /// knows to be written. But whoever comes next needs a device that has not failed.
    fn forget(&mut self) -> Result<(), ForwardError> {
        Ok(self.device.read(self.work.inputs.tokens, &mut [0; 4])?)
    }
}

impl<D: Device> DeviceSampler for Decoder<D> {
    fn open(
        &mut self,
        slot: usize,
        sampling: &Sampling,
        bias: &[(i32, f32)],
        history: &[i32],
    ) -> Result<bool, ForwardError> {
        let Decoder { device, draws, .. } = self;
        Ok(draws.open(device, slot, sampling, bias, history)?)
    }

    fn draw(&mut self, draws: &[Option<Draw>]) -> Result<(), ForwardError> {
        self.draws.begin(&self.device)?;
        let mut first = 0;
        while first < draws.len() {
            if self.headed.start != first {
                self.head_from(first)?;
            }
            let end = draws.len().min(self.headed.end);
            let (device, logits) = (&self.device, self.work.logits);
            self.draws.draw(device, logits, &draws[first..end])?;
            first = end;
        }
        Ok(())
    }

    fn has_drawn(&mut self) -> Result<bool, ForwardError> {
        Ok(self.draws.have_come(&self.device)?)
    }

    fn drawn(&mut self) -> Result<Vec<Sampled>, ForwardError> {
        Ok(self.draws.results(&self.device)?)
    }
}

/// Reads the beginning of some memory as `f32`, through `bytes`.
fn read<D: Device>(
    device: &D,
    element: Element,
    from: Memory,
    bytes: &mut Vec<u8>,
    into: &mut [f32],
) -> Result<(), DeviceError> {
    if element == Element::F32 {
        return device.read(from, cast_slice_mut(into));
    }
    let count = into.len() * element.size();
    bytes.resize(bytes.len().max(count), 0);
    let bytes = &mut bytes[..count];
    device.read(from, bytes)?;
    for (to, value) in into.iter_mut().zip(bytes.as_chunks().0) {
        *to = match element {
            Element::F16 => f16::from_le_bytes(*value).to_f32(),
            _ => bf16::from_le_bytes(*value).to_f32(),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_filled_up_to_few_sizes() {
        assert!((1..=256).all(|rows| rows <= filled_up(rows, 256)));
        let sizes = sizes(256);
        assert_eq!(sizes[..9], [1, 2, 4, 8, 16, 24, 32, 48, 64]);
        assert_eq!((sizes.len(), sizes.last()), (21, Some(&256)));
        assert_eq!(filled_up(37, 40), 40);
    }
}
