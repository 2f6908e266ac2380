//! Attention over keys and values that lie in blocks of a paged arena.
//!
//! A block holds sixteen tokens. Its keys are stored transposed, `[kv head, dimension, token]`,
//! so that the scores of a whole block against one query are one vector that is summed over the
//! dimensions without shuffling; its values lie as `[kv head, token, dimension]`, each token
//! padded to whole vectors. Softmax runs online (Milakov and Gimelshein, 2018), block by block
//! in the order of positions, for every query on its own: a query's result is the same in a
//! prefill of any chunking and in a decode step.

use std::ops::Range;

use super::parallel::{Disjoint, Threads};
use super::simd::{Element, Kernel, LANES, Simd, dispatch, exp};

/// Tokens of a row that one task takes, at most: the largest of these of which every thread gets
/// some tasks, so that all end together. A task that takes fewer reads keys and values as often.
const SPANS: [usize; 3] = [16, 8, 4];

/// How many tasks are some.
const SOME: usize = 4;

/// The shape of a layer's attention.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

impl Attention {
    /// Tokens of a KV block.
    pub const BLOCK: usize = LANES;

    /// Elements of one token's value in the arena.
    pub(super) fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of all keys of a block.
    pub fn key_block(&self) -> usize {
        self.kv_heads * self.head_dim * LANES
    }

    /// Elements of all values of a block.
    pub fn value_block(&self) -> usize {
        self.kv_heads * LANES * self.value_width()
    }

    pub(super) fn key_tile(&self, block: usize, kv_head: usize) -> usize {
        block * self.key_block() + kv_head * self.head_dim * LANES
    }

    pub(super) fn value_tile(&self, block: usize, kv_head: usize) -> usize {
        block * self.value_block() + kv_head * LANES * self.value_width()
    }
}

/// One row of a step: consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// First of its tokens in the step.
    pub first: usize,
    /// How many they are.
    pub len: usize,
    /// Position of the first of them.
    pub context: usize,
    /// KV blocks of the sequence, in order.
    pub blocks: &'a [i32],
}

/// Attention of every token to the tokens of its sequence up to itself, or to the `window` last
/// of them. Queries are the first `heads * head_dim` values of each row of `qkv`; the keys and
/// values of all these tokens are in the arena already.
///
/// # Panics
/// If a span reaches beyond `qkv`, its block table or the arena.
#[allow(clippy::too_many_arguments)]
pub fn attend<T: Element>(
    threads: &Threads,
    shape: &Attention,
    window: Option<usize>,
    spans: &[Span<'_>],
    qkv: &[f32],
    keys: &[T],
    values: &[T],
    out: &mut [f32],
) {
    let mut parts = Vec::new();
    for most in SPANS {
        parts.clear();
        parts.extend(spans.iter().flat_map(|span| {
            (0..span.len).step_by(most).map(move |skip| Span {
                first: span.first + skip,
                len: most.min(span.len - skip),
                context: span.context + skip,
                blocks: span.blocks,
            })
        }));
        let long = parts.iter().filter(|part| part.len > 1).count();
        if long == 0 || long * shape.kv_heads >= SOME * threads.count() as usize {
            break;
        }
    }
    // The longest first: one that is left to the end would be waited for.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len * (part.context + part.len)));
    let out = Disjoint::new(out);
    threads.run(parts.len() * shape.kv_heads, |task| {
        dispatch(Task {
            shape,
            window,
            span: parts[task / shape.kv_heads],
            kv_head: task % shape.kv_heads,
            qkv,
            keys,
            values,
            out: &out,
        });
    });
}

/// Some tokens of one row, for the query heads of one kv head.
struct Task<'a, T> {
    shape: &'a Attention,
    window: Option<usize>,
    span: Span<'a>,
    kv_head: usize,
    qkv: &'a [f32],
    keys: &'a [T],
    values: &'a [T],
    out: &'a Disjoint<'a, f32>,
}

/// Queries that are computed together: as many as leave their sums in registers.
const TILE: usize = 8;

/// What a task keeps of its queries from block to block. Queries are in the order of positions:
/// all heads of a token, then the next token.
struct Queries {
    /// Tile after tile of `[dimension, query]`, scaled.
    scaled: Vec<f32>,
    softmax: Vec<Softmax>,
    /// `[query, dimension]`: weighted sums of the values so far.
    sums: Vec<f32>,
}

/// A softmax over the scores so far.
#[derive(Clone, Copy)]
struct Softmax {
    /// The highest score, to which all weights are relative.
    highest: f32,
    /// Sums of weights, each of the tokens in one lane.
    totals: [f32; LANES],
}

/// Keys and values of a block, of one kv head.
#[derive(Clone, Copy)]
struct Tokens<'a, E> {
    /// Position of the first.
    first: usize,
    /// `[dimension, token]`
    keys: &'a [E],
    /// `[token, dimension]`, in whole vectors.
    values: &'a [E],
}

impl<T: Element> Kernel for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task {
            shape,
            span,
            kv_head,
            ..
        } = self;
        let (keys, values) = (shape.head_dim * LANES, LANES * shape.value_width());
        let mut queries = self.queries();
        let many = queries.softmax.len() > TILE;
        // Several tiles read the same keys and values: those are widened once for all of them.
        let mut wide = vec![0.0; if many { keys + values } else { 0 }];
        let last = span.context + span.len - 1;
        let seen = self.visible(span.context).start..last + 1;
        for index in seen.start / LANES..seen.end.div_ceil(LANES) {
            let block = span.blocks[index] as usize;
            let tokens = Tokens {
                first: index * LANES,
                keys: &self.keys[shape.key_tile(block, kv_head)..][..keys],
                values: &self.values[shape.value_tile(block, kv_head)..][..values],
            };
            if many {
                let (wide_keys, wide_values) = wide.split_at_mut(keys);
                widen(s, tokens.keys, wide_keys);
                widen(s, tokens.values, wide_values);
                let tokens = Tokens {
                    first: tokens.first,
                    keys: &*wide_keys,
                    values: &*wide_values,
                };
                self.attend(s, tokens, &mut queries);
            } else {
                self.attend(s, tokens, &mut queries);
            }
        }
        self.finish(s, &queries);
    }
}

impl<T: Element> Task<'_, T> {
    /// Token (within the step), position and head of query `i`.
    #[inline(always)]
    fn query(&self, i: usize) -> (usize, usize, usize) {
        let group = self.shape.heads / self.shape.kv_heads;
        let (token, head) = (i / group, self.kv_head * group + i % group);
        (self.span.first + token, self.span.context + token, head)
    }

    /// Positions that a query at `position` sees.
    #[inline(always)]
    fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// The queries of all tokens, which have seen nothing yet.
    #[inline(always)]
    fn queries(&self) -> Queries {
        let head_dim = self.shape.head_dim;
        let row = (self.shape.heads + 2 * self.shape.kv_heads) * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let count = self.span.len * (self.shape.heads / self.shape.kv_heads);
        let mut scaled = vec![0.0; count * head_dim];
        let mut first = 0;
        while first < count {
            let width = tile_of(count - first);
            let tile = &mut scaled[first * head_dim..][..width * head_dim];
            for q in 0..width {
                let (token, _, head) = self.query(first + q);
                let from = &self.qkv[token * row + head * head_dim..][..head_dim];
                for (to, x) in tile.iter_mut().skip(q).step_by(width).zip(from) {
                    *to = x * scale;
                }
            }
            first += width;
        }
        let nothing = Softmax {
            highest: f32::NEG_INFINITY,
            totals: [0.0; LANES],
        };
        Queries {
            scaled,
            softmax: vec![nothing; count],
            sums: vec![0.0; count * self.shape.value_width()],
        }
    }

    /// Adds the tokens of a block to what every query has seen.
    #[inline(always)]
    fn attend<S: Simd, E: Element>(&self, s: S, tokens: Tokens<'_, E>, queries: &mut Queries) {
        let count = queries.softmax.len();
        let mut first = 0;
        while first < count {
            let width = tile_of(count - first);
            match width {
                1 => self.tile::<S, E, 1>(s, tokens, first, queries),
                2 => self.tile::<S, E, 2>(s, tokens, first, queries),
                4 => self.tile::<S, E, 4>(s, tokens, first, queries),
                _ => self.tile::<S, E, TILE>(s, tokens, first, queries),
            }
            first += width;
        }
    }

    /// The same for the `Q` queries from `first` on, which read each key and value together.
    #[inline(always)]
    fn tile<S: Simd, E: Element, const Q: usize>(
        &self,
        s: S,
        tokens: Tokens<'_, E>,
        first: usize,
        queries: &mut Queries,
    ) {
        let (head_dim, value_width) = (self.shape.head_dim, self.shape.value_width());
        let base = tokens.first;
        let seen: [Range<usize>; Q] = std::array::from_fn(|q| {
            let seen = self.visible(self.query(first + q).1);
            seen.start.max(base)..seen.end.min(base + LANES)
        });
        // The first query sees the lowest positions, the last one the highest.
        let seen_by_any = seen[0].start..seen[Q - 1].end;
        if seen_by_any.is_empty() {
            return;
        }
        let scaled = &queries.scaled[first * head_dim..][..Q * head_dim];
        let scores = scores::<S, E, Q>(s, scaled.as_chunks().0, tokens.keys.as_chunks().0);
        let sums = &mut queries.sums[first * value_width..][..Q * value_width];
        let mut weights = [[0.0; LANES]; Q];
        for (q, softmax) in queries.softmax[first..][..Q].iter_mut().enumerate() {
            if seen[q].is_empty() {
                continue;
            }
            let mut scores = scores[q];
            if seen[q].len() < LANES {
                let mut lanes = s.to_array(scores);
                for (lane, score) in lanes.iter_mut().enumerate() {
                    if !seen[q].contains(&(base + lane)) {
                        *score = f32::NEG_INFINITY;
                    }
                }
                scores = s.load(&lanes);
            }
            if s.any_above(scores, softmax.highest) {
                // What was summed so far was relative to a lower maximum.
                let highest = s.largest(scores);
                let shrink = exp(softmax.highest - highest);
                softmax.highest = highest;
                for sum in &mut softmax.totals {
                    *sum *= shrink;
                }
                for sum in &mut sums[q * value_width..][..value_width] {
                    *sum *= shrink;
                }
            }
            let weight = s.exp(s.add(scores, s.splat(-softmax.highest)));
            s.store(s.add(s.load(&softmax.totals), weight), &mut softmax.totals);
            s.store(weight, &mut weights[q]);
        }
        let lanes = seen_by_any.start - base..seen_by_any.end - base;
        add_values::<S, E, Q>(s, &weights, lanes, tokens.values, value_width, sums);
    }

    /// Writes the results of all queries.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, queries: &Queries) {
        let (head_dim, value_width) = (self.shape.head_dim, self.shape.value_width());
        for (q, softmax) in queries.softmax.iter().enumerate() {
            let (token, _, head) = self.query(q);
            let scale = 1.0 / s.sum(s.load(&softmax.totals));
            let start = (token * self.shape.heads + head) * head_dim;
            // SAFETY: a token's head is computed by one task.
            let out = unsafe { self.out.slice(start..start + head_dim) };
            for (out, sum) in out.iter_mut().zip(&queries.sums[q * value_width..]) {
                *out = sum * scale;
            }
        }
    }
}

/// How many of so many queries the next tile takes.
#[inline(always)]
fn tile_of(queries: usize) -> usize {
    match queries {
        1 => 1,
        2..4 => 2,
        4..TILE => 4,
        _ => TILE,
    }
}

/// The same values as `f32`.
#[inline(always)]
fn widen<S: Simd, T: Element>(s: S, from: &[T], to: &mut [f32]) {
    let (from, to) = (from.as_chunks().0, to.as_chunks_mut().0);
    for (from, to) in from.iter().zip(to) {
        s.store(T::load(s, from), to);
    }
}

/// Scores of the tokens of a block against `Q` queries.
#[inline(always)]
fn scores<S: Simd, T: Element, const Q: usize>(
    s: S,
    queries: &[[f32; Q]],
    keys: &[[T; LANES]],
) -> [S::V; Q] {
    // Two chains of sums, so that a lone query does not wait for each addition.
    let mut even = [s.splat(0.0); Q];
    let mut odd = [s.splat(0.0); Q];
    let (pairs, _) = keys.as_chunks::<2>();
    let (query_pairs, _) = queries.as_chunks::<2>();
    for (key, query) in pairs.iter().zip(query_pairs) {
        let (a, b) = (T::load(s, &key[0]), T::load(s, &key[1]));
        for q in 0..Q {
            even[q] = s.mul_add(s.splat(query[0][q]), a, even[q]);
            odd[q] = s.mul_add(s.splat(query[1][q]), b, odd[q]);
        }
    }
    std::array::from_fn(|q| s.add(even[q], odd[q]))
}

/// Adds the weighted values of some tokens of a block to the sums of `Q` queries. Tokens outside
/// of `lanes` are not even multiplied by zero: what an earlier sequence left there may be NaN.
#[inline(always)]
fn add_values<S: Simd, T: Element, const Q: usize>(
    s: S,
    weights: &[[f32; LANES]; Q],
    lanes: Range<usize>,
    values: &[T],
    width: usize,
    sums: &mut [f32],
) {
    /// Tokens of which one round takes the values: enough to hide what a round costs.
    const ROUND: usize = 4;
    let (values, _) = values.as_chunks::<LANES>();
    let vectors = width / LANES;
    let (sums, _) = sums.as_chunks_mut::<LANES>();
    for vector in 0..vectors {
        let mut sum: [S::V; Q] = std::array::from_fn(|q| s.load(&sums[q * vectors + vector]));
        if lanes.len() == LANES {
            for (round, values) in values.chunks_exact(ROUND * vectors).enumerate() {
                for i in 0..ROUND {
                    let value = T::load(s, &values[i * vectors + vector]);
                    add_value(s, weights, round * ROUND + i, value, &mut sum);
                }
            }
        } else {
            for lane in lanes.clone() {
                let value = T::load(s, &values[lane * vectors + vector]);
                add_value(s, weights, lane, value, &mut sum);
            }
        }
        for q in 0..Q {
            s.store(sum[q], &mut sums[q * vectors + vector]);
        }
    }
}

/// Adds one token's weighted value.
#[inline(always)]
fn add_value<S: Simd, const Q: usize>(
    s: S,
    weights: &[[f32; LANES]; Q],
    lane: usize,
    value: S::V,
    sums: &mut [S::V; Q],
) {
    for q in 0..Q {
        sums[q] = s.mul_add(s.splat(weights[q][lane]), value, sums[q]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rotary::{Place, Rotary, rotate_and_store};
    use super::*;

    /// Attention by its definition, in f64, over a sequence of `n` tokens laid out plainly.
    fn reference(shape: &Attention, window: Option<usize>, qkv: &[f32], n: usize) -> Vec<f64> {
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let row = (shape.heads + 2 * shape.kv_heads) * d;
        let at = |t: usize, head: usize| &qkv[t * row + head * d..][..d];
        let mut out = Vec::new();
        for t in 0..n {
            for h in 0..shape.heads {
                let low = (t + 1).saturating_sub(window.unwrap_or(n));
                let scores: Vec<f64> = (low..=t)
                    .map(|j| {
                        let key = at(j, shape.heads + h / group);
                        let dot: f64 = at(t, h)
                            .iter()
                            .zip(key)
                            .map(|(a, b)| f64::from(a * b))
                            .sum();
                        (dot / (d as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                for i in 0..d {
                    let sum: f64 = (low..=t)
                        .zip(&scores)
                        .map(|(j, w)| {
                            w * f64::from(at(j, shape.heads + shape.kv_heads + h / group)[i])
                        })
                        .sum();
                    out.push(sum / total);
                }
            }
        }
        out
    }

    #[test]
    fn any_chunking_gives_the_definition_bit_by_bit_the_same() {
        for (heads, kv_heads, head_dim, window) in [
            (4, 2, 16, None),
            (3, 3, 10, Some(7)),
            (8, 1, 24, Some(20)),
            (5, 5, 6, None),
        ] {
            let shape = Attention {
                heads,
                kv_heads,
                head_dim,
            };
            let n = 53;
            let row = (heads + 2 * kv_heads) * head_dim;
            let qkv: Vec<f32> = (0..n * row)
                .map(|i| (i as f32 * 0.731).sin() * 2.0)
                .collect();
            // No rotation: every angle is zero.
            let mut rotary = Rotary::new(vec![0.0; head_dim / 2]);
            rotary.extend_to(n);
            let blocks = [5, 0, 3, 1];
            let expected = reference(&shape, window, &qkv, n);
            let mut results: Vec<Vec<f32>> = Vec::new();
            for (chunk, threads) in [(n, 1), (1, 1), (7, 2), (20, 3)] {
                // What others left behind must not matter.
                let mut keys = vec![f32::NAN; 6 * shape.key_block()];
                let mut values = vec![f32::NAN; 6 * shape.value_block()];
                let mut out = vec![0.0; n * heads * head_dim];
                for first in (0..n).step_by(chunk) {
                    let len = chunk.min(n - first);
                    let places: Vec<Place> = (first..first + len)
                        .map(|p| Place {
                            position: p as u32,
                            block: blocks[p / LANES] as u32,
                        })
                        .collect();
                    let mut part = qkv[first * row..(first + len) * row].to_vec();
                    let threads = &Threads::own(threads);
                    rotate_and_store(
                        threads,
                        &shape,
                        &rotary,
                        None,
                        &places,
                        &mut part,
                        (&mut keys, &mut values),
                    );
                    let span = Span {
                        first: 0,
                        len,
                        context: first,
                        blocks: &blocks,
                    };
                    let width = heads * head_dim;
                    let out = &mut out[first * width..(first + len) * width];
                    attend(threads, &shape, window, &[span], &part, &keys, &values, out);
                }
                for (ours, exact) in out.iter().zip(&expected) {
                    assert!((f64::from(*ours) - exact).abs() < 1e-5, "{ours} {exact}");
                }
                results.push(out);
            }
            for other in &results[1..] {
                assert_eq!(other, &results[0]);
            }
        }
    }
}
