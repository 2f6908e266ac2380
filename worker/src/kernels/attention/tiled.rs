//! Attention on matrix units: sixteen queries at once against 64 tokens at once.
//!
//! Queries and weights are rounded to `bf16`, to nearest even, once each, as [dot products](super::arithmetic)
//! have them.

use std::ops::Range;

use half::bf16;

use super::{BLOCKS, GROUP, Softmax, Task, hide};
use crate::kernels::element::Element;
use crate::kernels::simd::{Kernel, LANES, Simd};
use crate::kernels::tiles::{Configured, DEPTH, Rows, Shapes, TILE, TILES, Tiles, Weighed};

const _: () = assert!(
    BLOCKS == TILES,
    "a block of a group for each tile of scores"
);

/// Dimensions of the values that are summed at once.
const DIMENSIONS: usize = TILES * LANES;

/// Whether heads of so many dimensions fill tiles.
pub(super) fn fits(head_dim: usize) -> bool {
    const { assert!(DIMENSIONS.is_multiple_of(DEPTH)) };
    head_dim.is_multiple_of(DIMENSIONS)
}

/// A task, computed on matrix units.
pub(super) struct Tiled<'a> {
    pub(super) task: Task<'a, bf16>,
    pub(super) tiles: Tiles,
}

/// What becomes of scores between the two products, of sixteen queries and a group of tokens.
struct Group {
    scores: [[[f32; LANES]; TILES]; TILE],
    /// The weights of each block.
    weights: [Weighed; TILES],
}

impl Kernel for Tiled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tiled { task, tiles } = self;
        let head_dim = task.layer.shape.head_dim;
        let count = task.count();
        let steps = head_dim / DEPTH;
        let queries = prepared(s, &task, count);
        let mut softmax = vec![Softmax::NOTHING; count];
        // Room for whole tiles: what is computed for queries that are not there is never read.
        let mut sums = vec![0.0; count.next_multiple_of(TILE) * head_dim];
        let mut group = Group {
            scores: [[[0.0; LANES]; TILES]; TILE],
            weights: [Weighed::ZERO; TILES],
        };
        let mut edges = Edges::new(task.layer.shape.value_width());
        let last = task.span.context + task.span.len - 1;
        let seen = task.visible(task.span.context).start..last + 1;
        let units = tiles.configure(&Shapes::ATTENTION);
        for first in (seen.start / GROUP * GROUP..seen.end).step_by(GROUP) {
            for start in (0..count).step_by(TILE) {
                let tile = start..count.min(start + TILE);
                // The first query sees the lowest positions, the last one the highest.
                let seen = task.visible(task.query(tile.start).1).start.max(first)
                    ..(task.query(tile.end - 1).1 + 1).min(first + GROUP);
                if seen.is_empty() {
                    continue;
                }
                let queries = &queries[start / TILE * steps..][..steps];
                task.score(&units, queries, first, &seen, &mut group);
                let sums = &mut sums[start * head_dim..][..TILE * head_dim];
                let softmax = &mut softmax[tile.clone()];
                task.weigh(s, tile.start, softmax, first, &mut group, sums);
                task.add(&units, &group, first, &seen, &mut edges, sums);
            }
        }
        drop(units);
        task.finish(s, &softmax, &mut sums);
    }
}

/// The queries of a task, scaled: for each sixteen a tile for every step.
#[inline(always)]
fn prepared<S: Simd>(s: S, task: &Task<'_, bf16>, count: usize) -> Vec<Rows> {
    let head_dim = task.layer.shape.head_dim;
    let scale = s.splat(task.layer.shape.scale());
    let steps = head_dim / DEPTH;
    let mut queries = vec![Rows::ZERO; count.div_ceil(TILE) * steps];
    for q in 0..count {
        let from = task.values_of(q);
        for (step, from) in from.as_chunks::<DEPTH>().0.iter().enumerate() {
            let to = &mut queries[q / TILE * steps + step].0[q % TILE];
            for (from, to) in from.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
                *to = s.to_bf16(s.mul(s.load(from), scale));
            }
        }
    }
    queries
}

impl Task<'_, bf16> {
    /// Scores of the tokens of a group against sixteen queries. Those of blocks that none of them sees are whatever.
    #[inline(always)]
    fn score(
        &self,
        units: &Configured,
        queries: &[Rows],
        first: usize,
        seen: &Range<usize>,
        group: &mut Group,
    ) {
        let shape = self.layer.shape;
        let keys = self.blocks(first, seen).map(|block| {
            let start = shape.key_tile(block, self.kv_head);
            &self.layer.keys[start..][..shape.head_dim * LANES]
        });
        // SAFETY: the units are configured for attention; queries and keys have all dimensions, as many tiles of them.
        unsafe {
            units.scores(
                queries,
                keys.map(|keys| keys.as_ptr().cast()),
                group.scores.as_flattened_mut().as_flattened_mut(),
            );
        }
    }

    /// Makes weights of the scores of each query, the first of which is the `number`-th.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        s: S,
        number: usize,
        softmax: &mut [Softmax],
        first: usize,
        group: &mut Group,
        sums: &mut [f32],
    ) {
        let head_dim = self.layer.shape.head_dim;
        for (q, softmax) in softmax.iter_mut().enumerate() {
            let seen = self.visible(self.query(number + q).1);
            let seen = seen.start.max(first)..seen.end.min(first + GROUP);
            if seen.is_empty() {
                for weights in &mut group.weights {
                    weights.0[q] = [bf16::ZERO; LANES];
                }
                continue;
            }
            let mut scores = group.scores[q].map(|lanes| s.load(&lanes));
            if seen.len() < GROUP {
                hide(s, &mut scores, seen.start - first..seen.end - first);
            }
            let sums = sums[q * head_dim..][..head_dim].as_chunks_mut().0;
            let weights = softmax.weigh(s, scores, sums);
            for (weight, weights) in weights.iter().zip(&mut group.weights) {
                weights.0[q] = s.to_bf16(*weight);
            }
        }
    }

    /// Adds the weighted values of a group to the sums of sixteen queries.
    #[inline(always)]
    fn add(
        &self,
        units: &Configured,
        group: &Group,
        first: usize,
        seen: &Range<usize>,
        edges: &mut Edges,
        sums: &mut [f32],
    ) {
        let blocks = seen.start / LANES..seen.end.div_ceil(LANES);
        let size = LANES * self.layer.shape.value_width();
        let mut values: [*const u8; TILES] = [std::ptr::null(); TILES];
        for (index, pointer) in blocks.clone().zip(&mut values) {
            let start = self
                .layer
                .shape
                .value_tile(self.span.blocks[index] as usize, self.kv_head);
            let all = &self.layer.values[start..][..size];
            let tokens = index * LANES..(index + 1) * LANES;
            let some = seen.start.max(tokens.start)..seen.end.min(tokens.end);
            // What is not seen is not even multiplied by zero: it may be NaN.
            *pointer = match some.len() {
                LANES => all.as_ptr(),
                _ => edges.copy(all, some.start - tokens.start..some.end - tokens.start),
            }
            .cast();
        }
        let weights = &group.weights[blocks.start - first / LANES..][..blocks.len()];
        // SAFETY: the units are configured for attention; there is a block of values, of all dimensions of all its
        // tokens, for each block of weights, and sixteen rows of sums.
        unsafe { units.add_values(weights, &values, self.layer.shape.value_width(), sums) };
        edges.used = 0;
    }
}

/// Copies of blocks of which not all tokens are seen. A group has two at most.
struct Edges {
    values: [Vec<bf16>; 2],
    used: usize,
}

impl Edges {
    fn new(width: usize) -> Edges {
        Edges {
            values: std::array::from_fn(|_| vec![bf16::ZERO; LANES * width]),
            used: 0,
        }
    }

    /// A copy of a block with only some of its tokens.
    fn copy(&mut self, values: &[bf16], tokens: Range<usize>) -> *const bf16 {
        let copy = &mut self.values[self.used];
        self.used += 1;
        let width = values.len() / LANES;
        for token in 0..LANES {
            for dimension in 0..width {
                let at = bf16::value_place(width, token, dimension);
                copy[at] = match tokens.contains(&token) {
                    true => values[at],
                    false => bf16::ZERO,
                };
            }
        }
        copy.as_ptr()
    }
}
