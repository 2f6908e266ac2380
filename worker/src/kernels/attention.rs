//! Attention over keys and values that lie in blocks of a paged arena.
//!
//! A block holds sixteen tokens. Of each kv head its keys are stored transposed, so that the scores of a whole
//! block against one query are one vector that is summed over the dimensions without shuffling; how exactly
//! keys and values lie there is the [element's](super::element) matter, and how they are multiplied that of an
//! [arithmetic]. Softmax runs online (Milakov and Gimelshein, 2018), group by group of them
//! in the order of positions, for every query on its own: a query's result is the same in a
//! prefill of any chunking and in a decode step.

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::element::Element;
use super::operand::Target;
use super::parallel::Threads;
use super::simd::{LANES, Simd, dispatch, has_fast_dots};
use super::tiles::Tiles;

pub(super) mod arithmetic;
mod tiled;
mod vectors;

use arithmetic::{Arithmetic, Widened};
use tiled::Tiled;
use vectors::By;

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

    /// What queries are multiplied with, so that the weight of a token is two to the power of its score.
    fn scale(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.head_dim as f32).sqrt()
    }

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

/// What the attention of a layer reads.
#[derive(Debug, Clone, Copy)]
pub struct Attended<'a, T> {
    /// Its shape.
    pub shape: &'a Attention,
    /// How many of the last tokens, itself included, a token sees; all of them if there is none.
    pub window: Option<usize>,
    /// The rows of the step.
    pub spans: &'a [Span<'a>],
    /// Queries are the first `heads * head_dim` values of each token's.
    pub qkv: &'a [f32],
    /// The keys of all tokens in the arena, with those of the step.
    pub keys: &'a [T],
    /// Their values.
    pub values: &'a [T],
}

/// Attention of every token to the tokens of its sequence up to itself that it sees: rows of `heads * head_dim` values.
///
/// Spans follow each other, so that no token is in two of them.
///
/// # Panics
/// If they do not, if one reaches beyond `qkv`, its block table or the arena, or `out` has no such rows.
pub fn attend<T: Element>(threads: &Threads, layer: &Attended<'_, T>, out: Target<'_>) {
    match T::tiles() {
        Some(tiles) if tiled::fits(layer.shape.head_dim) => {
            // The same type, for no other has units.
            let layer = Attended {
                shape: layer.shape,
                window: layer.window,
                spans: layer.spans,
                qkv: layer.qkv,
                keys: bytemuck::cast_slice(layer.keys),
                values: bytemuck::cast_slice(layer.values),
            };
            attend_on(tiles, threads, &layer, out);
        }
        _ if has_fast_dots() => attend_by::<T, T::Attended>(threads, layer, out),
        _ => attend_by::<T, Widened>(threads, layer, out),
    }
}

fn attend_on(tiles: Tiles, threads: &Threads, layer: &Attended<'_, bf16>, out: Target<'_>) {
    for_each_task(threads, layer, out, |task| dispatch(Tiled { task, tiles }));
}

fn attend_by<T: Element, A: Arithmetic<T>>(
    threads: &Threads,
    layer: &Attended<'_, T>,
    out: Target<'_>,
) {
    for_each_task(threads, layer, out, |task| {
        dispatch(By::<_, A>(task, PhantomData));
    });
}

fn for_each_task<T: Element>(
    threads: &Threads,
    layer: &Attended<'_, T>,
    out: Target<'_>,
    compute: impl Fn(Task<'_, T>) + Sync,
) {
    let Attention {
        heads,
        kv_heads,
        head_dim,
    } = *layer.shape;
    assert!(out.width() == heads * head_dim);
    // Else two threads could write one row.
    let follows = |a: &Span<'_>, b: &Span<'_>| a.first + a.len <= b.first;
    assert!(layer.spans.is_sorted_by(follows));
    let mut parts = Vec::new();
    for most in SPANS {
        parts.clear();
        parts.extend(layer.spans.iter().flat_map(|span| {
            (0..span.len).step_by(most).map(move |skip| Span {
                first: span.first + skip,
                len: most.min(span.len - skip),
                context: span.context + skip,
                blocks: span.blocks,
            })
        }));
        let long = parts.iter().filter(|part| part.len > 1).count();
        if long == 0 || long * kv_heads >= SOME * threads.count() as usize {
            break;
        }
    }
    // About as many long ones for every thread, which begins with them: one that is left to the end would be waited for.
    parts.sort_by_key(|part| std::cmp::Reverse(part.len * (part.context + part.len)));
    let count = threads.count() as usize;
    let of = |thread| parts.iter().skip(thread).step_by(count);
    let parts: Vec<_> = (0..count).flat_map(of).collect();
    threads.run(parts.len() * kv_heads, |task| {
        compute(Task {
            layer,
            span: *parts[task / kv_heads],
            kv_head: task % kv_heads,
            out: &out,
        });
    });
}

/// Some tokens of one row, for the query heads of one kv head.
struct Task<'a, T> {
    layer: &'a Attended<'a, T>,
    span: Span<'a>,
    kv_head: usize,
    out: &'a Target<'a>,
}

/// Blocks of a group: tokens are taken in groups that begin at the same positions for every query, and a query that
/// does not see a group is not changed by it as long as values are finite, so that which queries are computed together changes nothing for any of
/// them.
const BLOCKS: usize = 4;

/// Tokens of a group.
const GROUP: usize = BLOCKS * LANES;

/// By how much a score may exceed what weights are relative to before that is raised, and what was summed shrunk: a
/// weight is two to the power of this at most, which sums of floats do not mind.
const SLACK: f32 = 11.0;

/// A softmax over the scores so far, which are powers of two: queries are [scaled](Attention::scale) so.
#[derive(Clone, Copy)]
struct Softmax {
    /// The score to which all weights are relative: none is higher by more than [`SLACK`].
    base: f32,
    /// Sums of weights, each of the tokens in one lane.
    totals: [f32; LANES],
}

impl Softmax {
    /// Of no scores.
    const NOTHING: Softmax = Softmax {
        base: f32::NEG_INFINITY,
        totals: [0.0; LANES],
    };

    /// The weights of the tokens of a group. `sums`, of the weighted values so far, may be made relative to another
    /// score by it.
    #[inline(always)]
    fn weigh<S: Simd>(
        &mut self,
        s: S,
        scores: [S::V; BLOCKS],
        sums: &mut [[f32; LANES]],
    ) -> [S::V; BLOCKS] {
        let [a, b, c, d] = scores;
        let most = s.max(s.max(a, b), s.max(c, d));
        if s.any_above(most, self.base + SLACK) {
            let base = s.largest(most);
            let shrink = s.exp2(s.splat(self.base - base));
            self.base = base;
            s.store(s.mul(s.load(&self.totals), shrink), &mut self.totals);
            for sums in sums {
                s.store(s.mul(s.load(sums), shrink), sums);
            }
        }
        let base = s.splat(-self.base);
        let mut weights = scores;
        for weights in &mut weights {
            *weights = s.exp2(s.add(*weights, base));
        }
        let [a, b, c, d] = weights;
        let total = s.add(s.add(a, b), s.add(c, d));
        s.store(s.add(s.load(&self.totals), total), &mut self.totals);
        weights
    }
}

/// Makes all scores but those of some tokens of a group as low as can be, whatever they are.
#[inline(always)]
fn hide<S: Simd>(s: S, scores: &mut [S::V; BLOCKS], seen: Range<usize>) {
    /// Lanes before, within and behind what is seen.
    static PENALTIES: [f32; 3 * GROUP] = {
        let mut penalties = [f32::NEG_INFINITY; 3 * GROUP];
        let mut i = GROUP;
        while i < 2 * GROUP {
            penalties[i] = 0.0;
            i += 1;
        }
        penalties
    };
    for (i, scores) in scores.iter_mut().enumerate() {
        for start in [GROUP - seen.start, 2 * GROUP - seen.end] {
            let penalties = PENALTIES[start + i * LANES..].first_chunk();
            let penalty = penalties.map_or(s.splat(0.0), |lanes| s.load(lanes));
            // A score may be NaN, which an addition would leave.
            *scores = s.add(s.zero_below(*scores, penalty, -1.0), penalty);
        }
    }
}

impl<T: Element> Task<'_, T> {
    /// Token (within the step), position and head of query `i`.
    #[inline(always)]
    fn query(&self, i: usize) -> (usize, usize, usize) {
        let group = self.layer.shape.heads / self.layer.shape.kv_heads;
        let (token, head) = (i / group, self.kv_head * group + i % group);
        (self.span.first + token, self.span.context + token, head)
    }

    /// How many queries there are.
    #[inline(always)]
    fn count(&self) -> usize {
        self.span.len * (self.layer.shape.heads / self.layer.shape.kv_heads)
    }

    /// The values of query `i`.
    #[inline(always)]
    fn values_of(&self, i: usize) -> &[f32] {
        let Attention {
            heads,
            kv_heads,
            head_dim,
        } = *self.layer.shape;
        let (token, _, head) = self.query(i);
        &self.layer.qkv[(token * (heads + 2 * kv_heads) + head) * head_dim..][..head_dim]
    }

    /// The blocks of the group that begins at position `first`, of which some tokens are `seen`; for one that has none
    /// of them another.
    #[inline(always)]
    fn blocks(&self, first: usize, seen: &Range<usize>) -> [usize; BLOCKS] {
        let blocks = seen.start.max(first) / LANES..seen.end.min(first + GROUP).div_ceil(LANES);
        std::array::from_fn(|i| {
            let index = (first / LANES + i).clamp(blocks.start, blocks.end - 1);
            self.span.blocks[index] as usize
        })
    }

    /// Positions that a query at `position` sees.
    #[inline(always)]
    fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        end.saturating_sub(self.layer.window.unwrap_or(end))..end
    }

    /// Makes the results of all queries of their sums, and puts them in place.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, softmax: &[Softmax], sums: &mut [f32]) {
        let (head_dim, value_width) = (self.layer.shape.head_dim, self.layer.shape.value_width());
        for (q, (softmax, sums)) in softmax.iter().zip(sums.chunks_mut(value_width)).enumerate() {
            let (token, _, head) = self.query(q);
            let scale = 1.0 / s.sum(s.load(&softmax.totals));
            for sums in sums.as_chunks_mut().0 {
                s.store(s.mul(s.load(sums), s.splat(scale)), sums);
            }
            // SAFETY: a token's head is computed by one task.
            unsafe {
                self.out.put(s, token, head * head_dim, &sums[..head_dim]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::rotary::{Place, Rotary, rotate_and_store};
    use super::arithmetic::Rounded;
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

    /// Queries, keys and values up to `most`, for results that are off by less than `error`.
    fn check<T: Element>(
        shapes: &[(usize, usize, usize, Option<usize>)],
        most: f32,
        error: f64,
        attend: impl Fn(&Threads, &Attended<'_, T>, Target<'_>),
    ) {
        for &(heads, kv_heads, head_dim, window) in shapes {
            let shape = Attention {
                heads,
                kv_heads,
                head_dim,
            };
            let n = 153;
            let row = (heads + 2 * kv_heads) * head_dim;
            let qkv: Vec<f32> = (0..n * row)
                .map(|i| (i as f32 * 0.731).sin() * most)
                .collect();
            // No rotation: every angle is zero.
            let mut rotary = Rotary::new(vec![0.0; head_dim / 2]);
            rotary.extend_to(n);
            let blocks = [5, 0, 3, 1, 7, 2, 9, 4, 6, 8];
            let expected = reference(&shape, window, &qkv, n);
            let mut results: Vec<Vec<f32>> = Vec::new();
            for (chunk, threads) in [(n, 1), (1, 1), (7, 2), (20, 3)] {
                // What others left behind must not matter.
                let nan = T::from_f32(f32::NAN);
                let mut keys = vec![nan; 10 * shape.key_block()];
                let mut values = vec![nan; 10 * shape.value_block()];
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
                    let threads = &Threads::new(threads);
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
                    let spans = &[span];
                    let layer = Attended {
                        shape: &shape,
                        window,
                        spans,
                        qkv: &part,
                        keys: &keys,
                        values: &values,
                    };
                    attend(threads, &layer, Target::plain(out, width));
                }
                for (ours, exact) in out.iter().zip(&expected) {
                    assert!((f64::from(*ours) - exact).abs() < error, "{ours} {exact}");
                }
                results.push(out);
            }
            for other in &results[1..] {
                assert_eq!(other, &results[0]);
            }
        }
    }

    #[test]
    fn any_chunking_gives_the_definition_bit_by_bit_the_same() {
        let shapes = [
            (4, 2, 16, None),
            (3, 3, 10, Some(7)),
            (8, 1, 24, Some(20)),
            (5, 5, 6, None),
        ];
        check::<f32>(&shapes, 2.0, 1e-5, attend_by::<_, Widened>);
        // Scores that differ by more than weights may grow.
        check::<f32>(&shapes, 6.0, 1e-4, attend_by::<_, Widened>);
        check::<f16>(&shapes, 1.0, 1e-3, attend_by::<_, Widened>);
        check::<bf16>(&shapes, 1.0, 1e-2, attend_by::<_, Widened>);
        // Where the CPU has no dot products, they are put together from what it has.
        check::<bf16>(&shapes, 1.0, 1e-2, attend_by::<_, Rounded>);
    }

    #[test]
    fn heads_that_fill_tiles_are_the_same_on_matrix_units() {
        // Queries of less and of more than a tile, and windows that begin within a group and a block.
        let shapes = [
            (6, 2, 64, None),
            (3, 3, 128, Some(7)),
            (8, 1, 64, Some(20)),
            (4, 1, 256, Some(39)),
        ];
        check::<bf16>(&shapes, 1.0, 1e-2, attend_by::<_, Rounded>);
        if let Some(tiles) = Tiles::of_any_cpu() {
            check::<bf16>(&shapes, 1.0, 1e-2, |threads, layer, out| {
                attend_on(tiles, threads, layer, out);
            });
        }
    }
}
