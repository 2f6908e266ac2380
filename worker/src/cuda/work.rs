//! The memory of a device that steps work in. All of it is allocated once, so that what is captured stays valid.

use bytemuck::cast_slice;
use realm_cuda::attention::Shape;
use realm_cuda::{Device, DeviceError, Element, KV_BLOCK, Memory};

use super::weights::part;
use crate::batch::Batch;
use crate::config::{DecoderConfig, Quantization};
use crate::decoder::HEAD_ROWS;

/// What steps there can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Rows of a step.
    pub rows: usize,
    /// Tokens of a step; no fewer than its rows.
    pub tokens: usize,
    /// KV blocks of a row.
    pub row_blocks: usize,
}

impl Room {
    /// The shape of attention with a window, in steps of some tokens of some rows.
    pub(super) fn shape(
        &self,
        config: &DecoderConfig,
        element: Element,
        window: Option<usize>,
        (tokens, rows): (usize, usize),
    ) -> Shape {
        Shape {
            element,
            head_dim: config.head_dim,
            heads: config.heads,
            kv_heads: config.kv_heads,
            window,
            tokens,
            rows,
            // The same in all steps: graphs have it, and so has the table.
            row_blocks: self.row_blocks,
            decode_tokens: 1,
        }
    }
}

/// What a step reads and writes, but for weights, keys and values.
pub struct Work {
    pub(super) room: Room,
    pub(super) inputs: Inputs,
    /// Angle per position of each pair of a head's dimensions, in `f32`.
    pub(super) frequencies: Memory,
    /// The residual stream, in `f32`.
    pub(super) hidden: Memory,
    /// The rows of it that are wanted, in the last layer.
    pub(super) wanted_hidden: Memory,
    pub(super) normed: Memory,
    pub(super) qkv: Memory,
    pub(super) attended: Memory,
    pub(super) gate_up: Memory,
    pub(super) activated: Memory,
    pub(super) delta: Memory,
    /// What is multiplied with a quantized matrix.
    pub(super) quantized: Option<Quantized>,
    /// Of so many rows at most.
    pub(super) head_rows: usize,
    pub(super) logits: Memory,
    /// The work of attention, for each window that layers have.
    pub(super) plans: Vec<(Option<usize>, Memory)>,
    pub(super) partial: Memory,
    pub(super) ended: Memory,
}

/// Rows of a step in e4m3.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantized {
    /// Of whatever width a matrix takes.
    pub(super) rows: Memory,
    /// `[tokens]` of `f32`.
    pub(super) scales: Memory,
}

impl Work {
    /// Allocates it.
    ///
    /// # Errors
    /// If the device has no room for it, or fails.
    pub fn new<D: Device>(
        device: &D,
        config: &DecoderConfig,
        element: Element,
        quantization: Option<Quantization>,
        room: Room,
    ) -> Result<Work, DeviceError> {
        let c = config;
        let query = c.heads * c.head_dim;
        let rows = |count: usize, width: usize| device.allocate(count * width * element.size());
        let stream = || device.allocate(room.tokens * c.hidden * size_of::<f32>());
        let shape = |window| room.shape(c, element, window, (room.tokens, room.rows));
        let mut plans: Vec<(Option<usize>, Memory)> = Vec::new();
        for window in &c.windows {
            if !plans.iter().any(|(planned, _)| planned == window) {
                let items = device.allocate(shape(*window).items_bytes())?;
                plans.push((*window, items));
            }
        }
        let quantized = quantization.map(|Quantization::Fp8| {
            let widest = c.hidden.max(query).max(c.intermediate);
            Ok::<_, DeviceError>(Quantized {
                rows: device.allocate(room.tokens * widest)?,
                scales: device.allocate(room.tokens * size_of::<f32>())?,
            })
        });
        // What comes of a step that decodes, and what is read at once.
        let head_rows = room.rows.max(HEAD_ROWS);
        // They do not depend on the window.
        let ended = device.allocate(shape(None).ended_bytes())?;
        device.write(ended, &vec![0; ended.bytes()])?;
        let angles = c.rope_frequencies();
        let frequencies = device.allocate(size_of_val(angles.as_slice()))?;
        device.write(frequencies, cast_slice(&angles))?;
        Ok(Work {
            room,
            frequencies,
            inputs: Inputs::new(device, room)?,
            hidden: stream()?,
            wanted_hidden: stream()?,
            normed: rows(room.tokens, c.hidden)?,
            qkv: rows(room.tokens, query + 2 * c.kv_heads * c.head_dim)?,
            attended: rows(room.tokens, query)?,
            gate_up: rows(room.tokens, 2 * c.intermediate)?,
            activated: rows(room.tokens, c.intermediate)?,
            delta: rows(room.tokens, c.hidden)?,
            quantized: quantized.transpose()?,
            head_rows,
            logits: rows(head_rows, c.vocab)?,
            plans,
            partial: device.allocate(shape(None).partial_bytes())?,
            ended,
        })
    }
}

/// What is written before a step runs.
pub(super) struct Inputs {
    /// Tokens of each row's sequence before the step, `[rows]`; -1 for one that fills up the batch.
    pub(super) context: Memory,
    /// First token of each row and the end of the last, `[rows + 1]`.
    pub(super) starts: Memory,
    /// `[tokens]`
    pub(super) tokens: Memory,
    /// Numbers of the tokens whose hidden states are wanted, `[tokens]`.
    pub(super) wanted: Memory,
    /// Blocks of each row's sequence, `[rows, row_blocks]`. What lies behind those of a row is not read.
    pub(super) table: Memory,
    room: Room,
    /// `context`, `starts` and `tokens`, which lie in this order: one copy takes them all.
    first: Memory,
    staged: Vec<i32>,
    /// What `table` holds; -1 where nothing was written yet. Hardly any of it changes from step to step.
    written: Vec<i32>,
}

impl Inputs {
    fn new<D: Device>(device: &D, room: Room) -> Result<Inputs, DeviceError> {
        let word = size_of::<i32>();
        let count = 2 * room.rows + 1 + room.tokens;
        let first = device.allocate(count * word)?;
        let words = |at: usize, count: usize| part(first, at * word, count * word);
        Ok(Inputs {
            context: words(0, room.rows)?,
            starts: words(room.rows, room.rows + 1)?,
            tokens: words(2 * room.rows + 1, room.tokens)?,
            wanted: device.allocate(room.tokens * word)?,
            table: device.allocate(room.rows * room.row_blocks * word)?,
            room,
            first,
            staged: vec![0; count],
            written: vec![-1; room.rows * room.row_blocks],
        })
    }

    /// Writes a step, filled up to `rows` rows by some of one token that stand for nothing.
    pub(super) fn write<D: Device>(
        &mut self,
        device: &D,
        batch: &Batch<'_>,
        tokens: &[i32],
        wanted: &[usize],
        rows: usize,
    ) -> Result<(), DeviceError> {
        let Room {
            rows: most_rows,
            row_blocks,
            ..
        } = self.room;
        let (context, rest) = self.staged.split_at_mut(most_rows);
        let (starts, input) = rest.split_at_mut(most_rows + 1);
        let mut filled = 0;
        starts[0] = 0;
        for row in batch.rows().iter().filter(|row| row.len > 0) {
            context[filled] = row.context as i32;
            starts[filled + 1] = (row.first + row.len) as i32;
            let written = &mut self.written[filled * row_blocks..][..row.blocks.len()];
            let same = written.iter().zip(row.blocks).take_while(|(a, b)| a == b);
            let same = same.count();
            if same < row.blocks.len() {
                written[same..].copy_from_slice(&row.blocks[same..]);
                let bytes: &[u8] = cast_slice(&row.blocks[same..]);
                let at = (filled * row_blocks + same) * size_of::<i32>();
                device.write(part(self.table, at, bytes.len())?, bytes)?;
            }
            filled += 1;
        }
        input[..tokens.len()].copy_from_slice(tokens);
        let mut count = tokens.len();
        for row in filled..rows {
            context[row] = -1;
            input[count] = 0;
            count += 1;
            starts[row + 1] = count as i32;
        }
        let words = 2 * most_rows + 1 + count;
        device.write(self.first, cast_slice(&self.staged[..words]))?;
        if wanted.len() < tokens.len() {
            for (to, token) in self.staged.iter_mut().zip(wanted) {
                *to = *token as i32;
            }
            device.write(self.wanted, cast_slice(&self.staged[..wanted.len()]))?;
        }
        Ok(())
    }
}

/// Keys and values of all layers.
pub struct Arena {
    pub(super) blocks: usize,
    /// Those of each layer, `[blocks, kv_heads, KV_BLOCK, head_dim]`.
    pub(super) layers: Vec<(Memory, Memory)>,
}

impl Arena {
    /// Allocates one of so many blocks.
    ///
    /// # Errors
    /// If the device has no room for it, or fails.
    pub fn new<D: Device>(
        device: &D,
        config: &DecoderConfig,
        element: Element,
        blocks: usize,
    ) -> Result<Arena, DeviceError> {
        let wanted = blocks.saturating_mul(Arena::block_bytes(config, element));
        let (free, total) = device.memory()?;
        if wanted > free {
            return Err(DeviceError::Full {
                wanted,
                free,
                total,
            });
        }
        let half = blocks * Arena::block_bytes(config, element) / (2 * config.layers());
        let layer = |_| Ok((device.allocate(half)?, device.allocate(half)?));
        Ok(Arena {
            blocks,
            layers: (0..config.layers())
                .map(layer)
                .collect::<Result<_, DeviceError>>()?,
        })
    }

    /// Bytes that one block takes in all layers.
    pub fn block_bytes(config: &DecoderConfig, element: Element) -> usize {
        let layer = 2 * config.kv_heads * KV_BLOCK * config.head_dim * element.size();
        config.layers() * layer
    }
}
