//! Rotation of heads, and what is stored in the arena, beside double precision.

use super::agreement::Comparison;
use super::number::{Number, Random, for_all_types};
use super::{Fault, Outcome, Scale, Scratch};
use crate::rotary::RotateAndStore;
use crate::{Device, Element, HEAD_DIMS, KV_BLOCK};

/// A step of rows with tokens before and in it, one of them for padding.
struct Step {
    starts: Vec<i32>,
    context: Vec<i32>,
    table: Vec<i32>,
    row_blocks: usize,
    arena_blocks: usize,
    tokens: usize,
}

impl Step {
    fn new(scale: Scale) -> Step {
        let mut rows = vec![(3, 14), (1, 0), (1, -1), (0, 5), (1, 100_000), (20, 31)];
        if scale == Scale::Full {
            rows.extend((0..60).map(|i| (1, 97 * i)));
            rows.push((500, 4000));
        }
        let row_blocks = 6300;
        let mut table = vec![-7; rows.len() * row_blocks];
        let mut starts = vec![0];
        let mut blocks = 0;
        for (row, (len, context)) in rows.iter().copied().enumerate() {
            starts.push(starts[row] + len);
            if len == 0 || context < 0 {
                continue;
            }
            for block in context / 16..=(context + len - 1) / 16 {
                // Not in order.
                table[row * row_blocks + block as usize] = blocks ^ 1;
                blocks += 1;
            }
        }
        Step {
            tokens: starts[rows.len()] as usize,
            starts,
            context: rows.iter().map(|(_, context)| *context).collect(),
            table,
            row_blocks,
            arena_blocks: blocks as usize + 1,
        }
    }
}

/// Heads of a layer.
struct Heads {
    dim: usize,
    queries: usize,
    kv: usize,
    norms: bool,
}

pub(super) fn rotate_and_store<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let counts: &[_] = scale.pick(
            &[(false, 6, 2), (true, 9, 9)],
            &[(false, 6, 2), (true, 9, 9), (false, 32, 8), (true, 16, 8)],
        );
        for dim in HEAD_DIMS {
            for &(norms, queries, kv) in counts {
                let heads = Heads {
                    dim: dim as usize,
                    queries,
                    kv,
                    norms,
                };
                on.check_margins()?;
                heads.compare::<T, D>(on, &Step::new(scale), comparison)?;
            }
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}

impl Heads {
    fn compare<T: Number, D: Device>(
        &self,
        on: &Scratch<'_, D>,
        step: &Step,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let Heads {
            dim, queries, kv, ..
        } = *self;
        let mut random = Random(5);
        // Two tokens that only pad are not of any row.
        let padded = step.tokens + 2;
        let width = (queries + 2 * kv) * dim;
        let qkv: Vec<T> = random.numbers(padded * width);
        let frequencies: Vec<f32> = (0..dim / 2)
            .map(|i| 500_000f64.powf(-2.0 * i as f64 / dim as f64) as f32)
            .collect();
        let weights: [Vec<f32>; 2] = [random.numbers(dim), random.numbers(dim)];
        let eps = 1e-6f32;
        let arena = step.arena_blocks * kv * KV_BLOCK * dim;
        let untouched = -123.0;
        let device_qkv = on.array(&qkv)?;
        let keys = on.array(&vec![T::of(untouched); arena])?;
        let values = on.array(&vec![T::of(untouched); arena])?;
        let (query_norm, key_norm) = (on.array(&weights[0])?, on.array(&weights[1])?);
        let (f, s) = (on.array(&frequencies)?, on.array(&step.starts)?);
        let (c, t) = (on.array(&step.context)?, on.array(&step.table)?);
        let rotate = RotateAndStore {
            element: T::ELEMENT,
            head_dim: dim,
            heads: queries,
            kv_heads: kv,
            tokens: padded,
            rows: step.context.len(),
            row_blocks: step.row_blocks,
            arena_blocks: step.arena_blocks,
            qkv: device_qkv.memory(),
            keys: keys.memory(),
            values: values.memory(),
            frequencies: f.memory(),
            norms: self
                .norms
                .then(|| (query_norm.memory(), key_norm.memory(), eps)),
            starts: s.memory(),
            context: c.memory(),
            table: t.memory(),
        };
        rotate.launch(on.device)?;
        let mut expected_qkv: Vec<f64> = qkv.iter().map(|x| f64::from(x.value())).collect();
        let mut expected_keys = vec![f64::from(untouched); arena];
        let mut expected_values = expected_keys.clone();
        for (row, range) in step.starts.windows(2).enumerate() {
            let Ok(context) = usize::try_from(step.context[row]) else {
                continue;
            };
            for (i, token) in (range[0] as usize..range[1] as usize).enumerate() {
                let position = context + i;
                let turns: Vec<(f64, f64)> = frequencies
                    .iter()
                    .map(|f| f64::from(position as f32 * f).sin_cos())
                    .collect();
                let rotated = |head: &[f64], weight: &[f32]| {
                    let normalized = match self.norms {
                        true => normalized(head, weight, eps),
                        false => head.to_vec(),
                    };
                    turned(&normalized, &turns)
                };
                let block = step.table[row * step.row_blocks + position / KV_BLOCK] as usize;
                let slot = |h: usize| ((block * kv + h) * KV_BLOCK + position % KV_BLOCK) * dim;
                let of_token = &mut expected_qkv[token * width..][..width];
                for h in 0..kv {
                    let key = rotated(&of_token[(queries + h) * dim..][..dim], &weights[1]);
                    expected_keys[slot(h)..][..dim].copy_from_slice(&key);
                    let value = &of_token[(queries + kv + h) * dim..][..dim];
                    expected_values[slot(h)..][..dim].copy_from_slice(value);
                }
                for head in of_token[..queries * dim].chunks_exact_mut(dim) {
                    let query = rotated(head, &weights[0]);
                    head.copy_from_slice(&query);
                }
            }
        }
        for (name, got, exact) in [
            ("qkv", &device_qkv, expected_qkv),
            ("keys", &keys, expected_keys),
            ("values", &values, expected_values),
        ] {
            for (i, (got, exact)) in on.values(got)?.into_iter().zip(exact).enumerate() {
                // A sum of two products of numbers up to some twenty, of which little may be left.
                let bound = exact.abs() * (2e-5 + T::ROUNDING) + 4e-6 + T::STEP;
                comparison.within(f64::from(got.value()), exact, bound, || {
                    let element = T::ELEMENT.name();
                    format!("{element}, {queries}/{kv} heads of {dim}, {name}[{i}]")
                });
            }
        }
        Ok(())
    }
}

fn normalized(head: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let mean = head.iter().map(|x| x * x).sum::<f64>() / head.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    let weighted = head.iter().zip(weight);
    weighted.map(|(x, w)| x * scale * f64::from(*w)).collect()
}

/// A head whose pairs are rotated by angles of these sines and cosines.
fn turned(head: &[f64], turns: &[(f64, f64)]) -> Vec<f64> {
    let (first, second) = head.split_at(head.len() / 2);
    let pairs = || first.iter().zip(second).zip(turns);
    let left = pairs().map(|((a, b), (sin, cos))| a * cos - b * sin);
    let right = pairs().map(|((a, b), (sin, cos))| b * cos + a * sin);
    left.chain(right).collect()
}

pub(super) fn angles<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    // Heads of ones, then zeros: what is rotated is the cosine, then the sine.
    let (tokens, first, half) = (scale.pick(256, 4096), 130_000, 128);
    let qkv: Vec<f32> = (0..tokens * 6 * half)
        .map(|i| if i / half % 2 == 0 { 1.0 } else { 0.0 })
        .collect();
    let frequencies: Vec<f32> = (0..half)
        .map(|i| 10_000f64.powf(-(i as f64) / half as f64) as f32)
        .collect();
    let device_qkv = on.array(&qkv)?;
    let arena = on.unwritten::<f32>(KV_BLOCK * 2 * half)?;
    let (f, s) = (on.array(&frequencies)?, on.array(&[0, tokens as i32])?);
    let (c, t) = (on.array(&[first])?, on.array(&[-1])?);
    let rotate = RotateAndStore {
        element: Element::F32,
        head_dim: 2 * half,
        heads: 1,
        kv_heads: 1,
        tokens,
        rows: 1,
        row_blocks: 1,
        arena_blocks: 1,
        qkv: device_qkv.memory(),
        keys: arena.memory(),
        values: arena.memory(),
        frequencies: f.memory(),
        norms: None,
        starts: s.memory(),
        context: c.memory(),
        table: t.memory(),
    };
    rotate.launch(on.device)?;
    let mut comparison = Comparison::default();
    let qkv = on.values(&device_qkv)?;
    for (token, row) in qkv.chunks_exact(6 * half).enumerate() {
        let position = (first as usize + token) as f32;
        for i in 0..half {
            let angle = f64::from(position * frequencies[i]);
            let expected = (angle.cos() as f32, angle.sin() as f32);
            comparison.same((row[i], row[half + i]), expected, || {
                format!("cosine and sine of position {position}, pair {i}")
            });
        }
    }
    let nothing = on.values(&arena)?.iter().all(|x| x.is_nan());
    comparison.fact(nothing, || "what has no block is stored".into());
    comparison.outcome()
}
