//! Steps of attention for a device, and what they give by the definition.

use std::num::NonZero;
use std::ops::Range;
use std::thread;

use bytemuck::Pod;
use half::{bf16, f16};

use super::agreement::Comparison;
use super::scratch::Array;
use super::{Fault, Scratch};
use crate::attention::{Decode, Layer, Plan, Prefill, Shape};
use crate::{Device, DeviceError, Element, KV_BLOCK};

/// A row of a step: its sequence's number, tokens before the step (-1: it fills up the batch), and tokens in it.
pub(super) type Row = (u64, i32, usize);

/// A layer, and steps for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    pub(super) element: Element,
    pub(super) head_dim: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) window: Option<usize>,
    pub(super) decode_tokens: usize,
}

/// What a number of a sequence is for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Query,
    Key,
    Value,
}

/// A number between -2 and 2 that seems random.
fn noise(parts: [u64; 5]) -> f32 {
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    for part in parts {
        x = (x ^ part).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 29;
    }
    (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}

/// Query positions of a row that are compared, of as many tokens: a few of each part where they are many.
fn compared(tokens: usize) -> impl Iterator<Item = usize> {
    (0..tokens).filter(move |t| tokens <= 64 || *t < 2 || *t + 2 >= tokens || t % 61 == 0)
}

impl Model {
    pub(super) fn new(element: Element, head_dim: usize, heads: usize, kv_heads: usize) -> Model {
        Model {
            element,
            head_dim,
            heads,
            kv_heads,
            window: None,
            decode_tokens: 1,
        }
    }

    fn encode(&self, values: &[f32]) -> Vec<u8> {
        fn bytes<T: Pod>(values: &[f32], of: fn(f32) -> T) -> Vec<u8> {
            let encoded: Vec<T> = values.iter().map(|x| of(*x)).collect();
            bytemuck::cast_slice(&encoded).to_vec()
        }
        match self.element {
            Element::F32 => bytes(values, |x| x),
            Element::Bf16 => bytes(values, bf16::from_f32),
            Element::F16 => bytes(values, f16::from_f32),
        }
    }

    fn decode(&self, bytes: &[u8]) -> Vec<f32> {
        fn values<T: Pod>(bytes: &[u8], of: fn(T) -> f32) -> Vec<f32> {
            let encoded = bytes.chunks_exact(size_of::<T>());
            encoded
                .map(|x| of(bytemuck::pod_read_unaligned(x)))
                .collect()
        }
        match self.element {
            Element::F32 => values(bytes, |x| x),
            Element::Bf16 => values(bytes, bf16::to_f32),
            Element::F16 => values(bytes, f16::to_f32),
        }
    }

    /// A head of a token, as the element type holds it.
    fn head(&self, sequence: u64, kind: Kind, position: usize, head: usize) -> Vec<f32> {
        let at = |d| {
            noise([
                sequence,
                kind as u64,
                position as u64,
                head as u64,
                d as u64,
            ])
        };
        let values: Vec<f32> = (0..self.head_dim).map(at).collect();
        self.decode(&self.encode(&values))
    }

    /// Results of a row's tokens by the definition of attention, of those that are compared.
    fn expected(&self, (sequence, context, tokens): Row) -> Vec<(usize, Vec<f64>)> {
        let Ok(context) = usize::try_from(context) else {
            return vec![(0, vec![0.0; self.heads * self.head_dim])];
        };
        let of_kv_heads = |kind| -> Vec<Vec<Vec<f32>>> {
            let of = |h| (0..context + tokens).map(move |p| self.head(sequence, kind, p, h));
            (0..self.kv_heads).map(|h| of(h).collect()).collect()
        };
        let (keys, values) = (of_kv_heads(Kind::Key), of_kv_heads(Kind::Value));
        let of_token = |token: usize| {
            let position = context + token;
            let low = (position + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
            let of_head = |h| {
                let query = self.head(sequence, Kind::Query, position, h);
                let kv = h * self.kv_heads / self.heads;
                definition(
                    &query,
                    &keys[kv][low..=position],
                    &values[kv][low..=position],
                )
            };
            (token, (0..self.heads).flat_map(of_head).collect())
        };
        compared(tokens).map(of_token).collect()
    }

    /// A step of these rows.
    pub(super) fn step(&self, rows: &[Row]) -> Step {
        let last = |row: &Row| (row.1 + row.2 as i32) as usize;
        let row_blocks = rows.iter().map(|row| last(row).div_ceil(KV_BLOCK)).max();
        let row_blocks = row_blocks.unwrap_or(0) + 2;
        let shape = Shape {
            element: self.element,
            head_dim: self.head_dim,
            heads: self.heads,
            kv_heads: self.kv_heads,
            window: self.window,
            tokens: rows.iter().map(|row| row.2).sum(),
            rows: rows.len(),
            row_blocks,
            decode_tokens: self.decode_tokens,
        };
        // Blocks lie in no order, and blocks and rows of the table hold what must not be read.
        let arena_blocks = (rows.len() * row_blocks).next_power_of_two();
        let block = |row: usize, i: usize| (row * row_blocks + i) * 5 % arena_blocks;
        let width = self.head_dim * self.element.size();
        let mut step = Step {
            shape,
            arena_blocks,
            starts: vec![0],
            context: rows.iter().map(|row| row.1).collect(),
            table: vec![-7; rows.len() * row_blocks],
            qkv: Vec::new(),
            keys: vec![0xff; arena_blocks * self.kv_heads * KV_BLOCK * width],
            values: vec![0xff; arena_blocks * self.kv_heads * KV_BLOCK * width],
        };
        for (r, row) in rows.iter().enumerate() {
            let (sequence, context, tokens) = *row;
            step.starts.push(step.starts[r] + tokens as i32);
            let first = (context + 1).max(0) as usize;
            // Blocks before those that some query sees may serve others by now.
            let low = first.saturating_sub(self.window.unwrap_or(usize::MAX)) / KV_BLOCK * KV_BLOCK;
            for p in low..last(row) {
                let block = block(r, p / KV_BLOCK);
                step.table[r * row_blocks + p / KV_BLOCK] = block as i32;
                for h in 0..self.kv_heads {
                    let at = ((block * self.kv_heads + h) * KV_BLOCK + p % KV_BLOCK) * width;
                    let encoded = |kind| self.encode(&self.head(sequence, kind, p, h));
                    step.keys[at..at + width].copy_from_slice(&encoded(Kind::Key));
                    step.values[at..at + width].copy_from_slice(&encoded(Kind::Value));
                }
            }
            for t in 0..tokens {
                for h in 0..self.heads {
                    let position = (context.max(0) as usize) + t;
                    let head = self.head(sequence, Kind::Query, position, h);
                    step.qkv.extend(self.encode(&head));
                }
                step.qkv.extend(vec![0xff; 2 * self.kv_heads * width]);
            }
        }
        step
    }

    /// Results of each row of a step, with grids as for so many multiprocessors.
    pub(super) fn attend<D: Device>(
        &self,
        on: &Scratch<'_, D>,
        rows: &[Row],
        multiprocessors: usize,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        on.check_margins()?;
        let step = self.step(rows);
        let placed = Placed::new(on, &step)?;
        placed.launch(on.device, multiprocessors)?;
        placed.results(on, &step)
    }

    /// Compares results of rows with the definition.
    pub(super) fn compare(&self, rows: &[Row], results: &[Vec<u8>], comparison: &mut Comparison) {
        let within = match self.element {
            Element::F32 => 1e-5,
            Element::F16 => 2e-3,
            Element::Bf16 => 1.5e-2,
        };
        let width = self.heads * self.head_dim;
        for ((row, result), expected) in rows.iter().zip(results).zip(self.all_expected(rows)) {
            let result = self.decode(result);
            comparison.same(result.len(), row.2 * width, || format!("row {row:?}"));
            for (token, exact) in expected {
                let Some(ours) = result.get(token * width..(token + 1) * width) else {
                    continue;
                };
                for (i, (ours, exact)) in ours.iter().zip(exact).enumerate() {
                    comparison.within(f64::from(*ours), exact, within, || {
                        format!("{self}, row {row:?}, token {token}, number {i}")
                    });
                }
            }
        }
    }

    /// What is expected of each row, computed on all processors.
    fn all_expected(&self, rows: &[Row]) -> Vec<Vec<(usize, Vec<f64>)>> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            let mut expected = Vec::new();
            for rows in rows.chunks(threads) {
                let of_row = |row: &Row| {
                    let row = *row;
                    scope.spawn(move || self.expected(row))
                };
                let computing: Vec<_> = rows.iter().map(of_row).collect();
                let computed = computing.into_iter().map(|row| row.join());
                // A row that is missing is one that nothing agrees with.
                expected.extend(computed.map(Result::unwrap_or_default));
            }
            expected
        })
    }

    /// Compares a step of rows with the definition.
    pub(super) fn check<D: Device>(
        &self,
        on: &Scratch<'_, D>,
        rows: &[Row],
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let results = self.attend(on, rows, on.device.multiprocessors())?;
        self.compare(rows, &results, comparison);
        Ok(())
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let element = self.element.name();
        write!(
            f,
            "{element}, {}/{} heads of {}",
            self.heads, self.kv_heads, self.head_dim
        )?;
        self.window
            .map_or(Ok(()), |window| write!(f, ", window of {window}"))
    }
}

/// Attention of one query, in double precision.
fn definition(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
    let dot = |key: &Vec<f32>| -> f64 {
        let products = query.iter().zip(key);
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let scale = (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|key| dot(key) / scale).collect();
    let highest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sums = vec![0.0; query.len()];
    for (value, weight) in values.iter().zip(&weights) {
        for (sum, v) in sums.iter_mut().zip(value) {
            *sum += f64::from(*v) * weight;
        }
    }
    sums.iter().map(|sum| sum / total).collect()
}

/// What a step is given, on the host.
pub(super) struct Step {
    shape: Shape,
    arena_blocks: usize,
    starts: Vec<i32>,
    context: Vec<i32>,
    table: Vec<i32>,
    qkv: Vec<u8>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Step {
    /// Bytes of each row's results.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let width = self.shape.heads * self.shape.head_dim * self.shape.element.size();
        let pairs = self.starts.windows(2);
        pairs.map(move |pair| pair[0] as usize * width..pair[1] as usize * width)
    }
}

/// It, on a device.
pub(super) struct Placed {
    shape: Shape,
    arena_blocks: usize,
    starts: Array<i32>,
    context: Array<i32>,
    table: Array<i32>,
    qkv: Array<u8>,
    keys: Array<u8>,
    values: Array<u8>,
    items: Array<u8>,
    partial: Array<u8>,
    ended: Array<u8>,
    out: Array<u8>,
}

impl Placed {
    pub(super) fn new<D: Device>(on: &Scratch<'_, D>, step: &Step) -> Result<Placed, Fault> {
        let shape = step.shape;
        let results = step.ranges().last().map_or(0, |range| range.end);
        Ok(Placed {
            shape,
            arena_blocks: step.arena_blocks,
            starts: on.array(&step.starts)?,
            context: on.array(&step.context)?,
            table: on.array(&step.table)?,
            qkv: on.array(&step.qkv)?,
            keys: on.array(&step.keys)?,
            values: on.array(&step.values)?,
            items: on.unwritten(shape.items_bytes())?,
            partial: on.unwritten(shape.partial_bytes())?,
            ended: on.array(&vec![0; shape.ended_bytes()])?,
            out: on.unwritten(results)?,
        })
    }

    /// Puts another step of the same shape in its place.
    pub(super) fn replace<D: Device>(&self, on: &Scratch<'_, D>, step: &Step) -> Result<(), Fault> {
        on.set(&self.starts, &step.starts)?;
        on.set(&self.context, &step.context)?;
        on.set(&self.table, &step.table)?;
        on.set(&self.qkv, &step.qkv)?;
        on.set(&self.keys, &step.keys)?;
        on.set(&self.values, &step.values)
    }

    pub(super) fn launch<D: Device>(
        &self,
        device: &D,
        multiprocessors: usize,
    ) -> Result<(), DeviceError> {
        let Placed { shape, .. } = *self;
        let layer = Layer {
            qkv: self.qkv.memory(),
            keys: self.keys.memory(),
            values: self.values.memory(),
            arena_blocks: self.arena_blocks,
            table: self.table.memory(),
            items: self.items.memory(),
            out: self.out.memory(),
        };
        let plan = Plan {
            shape,
            starts: self.starts.memory(),
            context: self.context.memory(),
            items: self.items.memory(),
        };
        plan.launch(device)?;
        let decode = Decode {
            shape,
            layer,
            partial: self.partial.memory(),
            ended: self.ended.memory(),
            multiprocessors,
        };
        decode.launch(device)?;
        let prefill = Prefill {
            shape,
            layer,
            multiprocessors,
        };
        Ok(prefill.launch(device)?)
    }

    /// Results of each row of the step that was launched.
    pub(super) fn results<D: Device>(
        &self,
        on: &Scratch<'_, D>,
        step: &Step,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        if on.values(&self.ended)?.iter().any(|n| *n != 0) {
            let what = "decode leaves counts that the next launch would find";
            return Err(Fault::Differs(what.into()));
        }
        let out = on.values(&self.out)?;
        Ok(step.ranges().map(|range| out[range].to_vec()).collect())
    }
}
