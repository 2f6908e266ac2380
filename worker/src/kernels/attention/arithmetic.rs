//! How attention multiplies queries with keys, and weights with values: in `f32`, or rounded to `bf16` where
//! that is twice as fast.
//!
//! Which of them it is depends on the type of the arena and on the CPU, and on nothing else: not on the number
//! of queries, so that a query is computed the same in every company.

use std::ops::Range;

use half::bf16;

use crate::kernels::element::{Element, paired};
use crate::kernels::simd::{LANES, Simd};

/// What happens between queries and the keys and values of type `T` of a block.
pub(in crate::kernels) trait Arithmetic<T>: 'static {
    /// Whether keys and values that several tiles of queries read are better widened once.
    const WIDENS: bool;

    /// Values that a query of so many dimensions is prepared into.
    fn width(head_dim: usize) -> usize;

    /// Prepares a query: its values go to every `step`-th of `tile` from the first on.
    fn prepare(query: &[f32], scale: f32, tile: &mut [f32], step: usize);

    /// Scores of the tokens of a block against `Q` queries, of which each has a value in each of `queries`.
    fn scores<S: Simd, const Q: usize>(s: S, queries: &[[f32; Q]], keys: &[T]) -> [S::V; Q];

    /// The weights of the tokens of a block, as [`add_values`](Self::add_values) takes them.
    fn weights<S: Simd>(s: S, weights: S::V) -> [f32; LANES];

    /// Adds the weighted values of some tokens of a block to the sums of `Q` queries. Tokens outside
    /// of `tokens` are not even multiplied by zero: what an earlier sequence left there may be NaN.
    #[inline(always)]
    fn add_values<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        tokens: Range<usize>,
        values: &[T],
        sums: &mut [f32],
    ) {
        /// Pairs of tokens of which one round takes the values: enough to hide what a round costs.
        const ROUND: usize = 2;
        let (values, _) = values.as_chunks::<LANES>();
        let (sums, _) = sums.as_chunks_mut::<LANES>();
        let vectors = sums.len() / Q;
        if tokens.len() < LANES {
            return Self::add_some::<S, Q>(s, weights, tokens, values, sums);
        }
        for vector in 0..vectors {
            let mut sum: [S::V; Q] = std::array::from_fn(|q| s.load(&sums[q * vectors + vector]));
            for (round, values) in values.chunks_exact(ROUND * 2 * vectors).enumerate() {
                for i in 0..ROUND {
                    let pair = &values[i * 2 * vectors..][..2 * vectors];
                    Self::add_pair::<S, Q>(s, weights, round * ROUND + i, pair, vector, &mut sum);
                }
            }
            for q in 0..Q {
                s.store(sum[q], &mut sums[q * vectors + vector]);
            }
        }
    }

    /// Adds sixteen dimensions, the `vector`-th, of the weighted values of two tokens, the `number`-th, which are
    /// all of `values`.
    fn add_pair<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        number: usize,
        values: &[[T; LANES]],
        vector: usize,
        sums: &mut [S::V; Q],
    );

    /// What [`add_values`](Self::add_values) does where not all tokens of a block are to be seen.
    fn add_some<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        tokens: Range<usize>,
        values: &[[T; LANES]],
        sums: &mut [[f32; LANES]],
    );
}

/// Everything stays in `f32`; keys and values are widened in registers, which is exact.
#[derive(Clone)]
pub struct Widened;

impl<T: Element> Arithmetic<T> for Widened {
    const WIDENS: bool = true;

    fn width(head_dim: usize) -> usize {
        head_dim
    }

    #[inline(always)]
    fn prepare(query: &[f32], scale: f32, tile: &mut [f32], step: usize) {
        for (to, x) in tile.iter_mut().step_by(step).zip(query) {
            *to = x * scale;
        }
    }

    #[inline(always)]
    fn scores<S: Simd, const Q: usize>(s: S, queries: &[[f32; Q]], keys: &[T]) -> [S::V; Q] {
        // Two chains of sums, so that a lone query does not wait for each addition.
        let mut even = [s.splat(0.0); Q];
        let mut odd = [s.splat(0.0); Q];
        let (pairs, _) = keys.as_chunks::<LANES>().0.as_chunks::<2>();
        let (query_pairs, _) = queries.as_chunks::<2>();
        for (keys, query) in pairs.iter().zip(query_pairs) {
            let [a, b] = T::keys(s, keys);
            for q in 0..Q {
                even[q] = s.mul_add(s.splat(query[0][q]), a, even[q]);
                odd[q] = s.mul_add(s.splat(query[1][q]), b, odd[q]);
            }
        }
        std::array::from_fn(|q| s.add(even[q], odd[q]))
    }

    #[inline(always)]
    fn weights<S: Simd>(s: S, weights: S::V) -> [f32; LANES] {
        s.to_array(weights)
    }

    #[inline(always)]
    fn add_pair<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        number: usize,
        values: &[[T; LANES]],
        vector: usize,
        sums: &mut [S::V; Q],
    ) {
        let [first, second] = T::values(s, values, vector);
        add_value(s, weights, 2 * number, first, sums);
        add_value(s, weights, 2 * number + 1, second, sums);
    }

    #[inline(always)]
    fn add_some<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        tokens: Range<usize>,
        values: &[[T; LANES]],
        sums: &mut [[f32; LANES]],
    ) {
        let vectors = sums.len() / Q;
        for vector in 0..vectors {
            let mut sum: [S::V; Q] = std::array::from_fn(|q| s.load(&sums[q * vectors + vector]));
            for token in tokens.clone() {
                let pair = &values[token / 2 * 2 * vectors..][..2 * vectors];
                let value = T::values(s, pair, vector)[token % 2];
                add_value(s, weights, token, value, &mut sum);
            }
            for q in 0..Q {
                s.store(sum[q], &mut sums[q * vectors + vector]);
            }
        }
    }
}

/// Adds one token's weighted value.
#[inline(always)]
fn add_value<S: Simd, const Q: usize>(
    s: S,
    weights: &[[f32; LANES]; Q],
    token: usize,
    value: S::V,
    sums: &mut [S::V; Q],
) {
    for q in 0..Q {
        sums[q] = s.mul_add(s.splat(weights[q][token]), value, sums[q]);
    }
}

/// Queries and weights are rounded to `bf16`, to nearest even, once each, and multiplied by
/// [`Simd::dot_bf16`]. Sums are in `f32`, and so is what softmax divides by.
///
/// A prepared query has two dimensions in the bits of a value, as keys have them, and weights have two
/// tokens.
#[derive(Clone)]
pub struct Rounded;

impl Arithmetic<bf16> for Rounded {
    const WIDENS: bool = false;

    fn width(head_dim: usize) -> usize {
        head_dim / 2
    }

    #[inline(always)]
    fn prepare(query: &[f32], scale: f32, tile: &mut [f32], step: usize) {
        for (to, [a, b]) in tile.iter_mut().step_by(step).zip(query.as_chunks().0) {
            *to = pack([a, b].map(|x| Element::from_f32(x * scale)));
        }
    }

    #[inline(always)]
    fn scores<S: Simd, const Q: usize>(s: S, queries: &[[f32; Q]], keys: &[bf16]) -> [S::V; Q] {
        // Two chains, as above.
        let mut even = [s.splat(0.0); Q];
        let mut odd = [s.splat(0.0); Q];
        let (pairs, _) = keys.as_chunks::<LANES>().0.as_chunks::<2>();
        let (twos, last) = pairs.as_chunks::<2>();
        let (query_twos, last_query) = queries.as_chunks::<2>();
        for (keys, query) in twos.iter().zip(query_twos) {
            let (a, b) = (paired(s, &keys[0]), paired(s, &keys[1]));
            for q in 0..Q {
                even[q] = s.dot_bf16(s.splat(query[0][q]), a, even[q]);
                odd[q] = s.dot_bf16(s.splat(query[1][q]), b, odd[q]);
            }
        }
        for (keys, query) in last.iter().zip(last_query) {
            let keys = paired(s, keys);
            for q in 0..Q {
                even[q] = s.dot_bf16(s.splat(query[q]), keys, even[q]);
            }
        }
        std::array::from_fn(|q| s.add(even[q], odd[q]))
    }

    #[inline(always)]
    fn weights<S: Simd>(s: S, weights: S::V) -> [f32; LANES] {
        let mut pairs = [0.0; LANES];
        let (first, _) = pairs.split_at_mut(LANES / 2);
        bytemuck::cast_slice_mut(first).copy_from_slice(&s.to_bf16(weights));
        pairs
    }

    #[inline(always)]
    fn add_pair<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        number: usize,
        values: &[[bf16; LANES]],
        vector: usize,
        sums: &mut [S::V; Q],
    ) {
        let values = paired(s, &values.as_chunks().0[vector]);
        for q in 0..Q {
            sums[q] = s.dot_bf16(s.splat(weights[q][number]), values, sums[q]);
        }
    }

    /// Of the pairs at either end it may be one token alone.
    #[inline(always)]
    fn add_some<S: Simd, const Q: usize>(
        s: S,
        weights: &[[f32; LANES]; Q],
        tokens: Range<usize>,
        values: &[[bf16; LANES]],
        sums: &mut [[f32; LANES]],
    ) {
        let (values, _) = values.as_chunks::<2>();
        let vectors = sums.len() / Q;
        for pair in tokens.start / 2..tokens.end.div_ceil(2) {
            let first = if tokens.contains(&(2 * pair)) { LOW } else { 0 };
            let second = if tokens.contains(&(2 * pair + 1)) {
                HIGH
            } else {
                0
            };
            for vector in 0..vectors {
                let values = masked(&values[pair * vectors + vector], first | second);
                let values = s.load(&values);
                for q in 0..Q {
                    let sum = &mut sums[q * vectors + vector];
                    s.store(
                        s.dot_bf16(s.splat(weights[q][pair]), values, s.load(sum)),
                        sum,
                    );
                }
            }
        }
    }
}

/// Pairs of values of which only some bits are seen.
fn masked(pairs: &[[bf16; LANES]; 2], seen: u32) -> [f32; LANES] {
    let lanes: &[u32; LANES] = bytemuck::cast_ref(pairs);
    lanes.map(|lane| f32::from_bits(lane & seen))
}

/// The first and the second of a pair, in the bits of a value.
const LOW: u32 = 0xffff;
const HIGH: u32 = 0xffff_0000;

/// Both in the bits of one value, the first in the low half.
#[inline(always)]
fn pack([first, second]: [bf16; 2]) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}
