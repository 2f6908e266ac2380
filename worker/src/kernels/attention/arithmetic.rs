//! How attention multiplies queries with keys, and weights with values: in `f32`, or rounded to `bf16` where
//! that is twice as fast.
//!
//! Which of them it is depends on the type of the arena and on the CPU, and on nothing else: not on the number
//! of queries, so that a query is computed the same in every company.

use half::bf16;

use super::BLOCKS;
use crate::kernels::element::{Element, paired};
use crate::kernels::simd::{LANES, Simd};

/// A value for each token of a group, for each of some queries. Those of a block may need less than its room.
pub(in crate::kernels) type Weights<const Q: usize> = [[[f32; LANES]; BLOCKS]; Q];

/// What happens between queries and the keys and values of type `T` of some blocks.
///
/// Sums are taken and given by value, so that they stay in registers.
pub(in crate::kernels) trait Arithmetic<T>: 'static {
    /// Whether keys and values that several tiles of queries read are better widened once.
    const WIDENS: bool;

    /// Values of a prepared query that stand for two dimensions.
    const VALUES: usize;

    /// Values that a query of so many dimensions is prepared into.
    fn width(head_dim: usize) -> usize {
        head_dim / 2 * Self::VALUES
    }

    /// Prepares a query, one of `step`: its values go to every `step`-th place of `tile` from the first on.
    fn prepare<S: Simd>(s: S, query: &[f32], scale: f32, tile: &mut [f32], step: usize);

    /// `sums` plus, for the tokens of `B` blocks and `Q` queries, what a pair of dimensions, the `number`-th,
    /// adds to scores. `query` is what stands for those dimensions.
    ///
    /// # Safety
    /// Keys must have that pair, and `query` all [values](Self::VALUES) of it.
    unsafe fn add_scores<S: Simd, const Q: usize, const B: usize>(
        s: S,
        sums: [[S::V; B]; Q],
        query: &[[f32; Q]],
        keys: &[&[[[T; LANES]; 2]]; B],
        number: usize,
    ) -> [[S::V; B]; Q];

    /// The weights of the tokens of a block, as sums of values take them.
    fn weights<S: Simd>(s: S, weights: S::V, into: &mut [f32; LANES]);

    /// `sums` plus, of `V` vectors of dimensions from the `vector`-th on, the weighted values of a pair of tokens, the
    /// `number`-th of a block. Both tokens are all of `pair`.
    ///
    /// # Safety
    /// A group must have that block, a block that pair, and a token those dimensions.
    unsafe fn add_pair<S: Simd, const Q: usize, const V: usize>(
        s: S,
        sums: [[S::V; V]; Q],
        weights: &Weights<Q>,
        block: usize,
        number: usize,
        pair: &[[T; LANES]],
        vector: usize,
    ) -> [[S::V; V]; Q];

    /// Adds all dimensions of the weighted value of one token of a block, whose pair is `pair`, without looking at the
    /// other one.
    fn add_token<S: Simd, const Q: usize>(
        s: S,
        weights: &Weights<Q>,
        block: usize,
        token: usize,
        pair: &[[T; LANES]],
        sums: &mut [[f32; LANES]],
    );
}

/// Everything stays in `f32`; keys and values are widened in registers, which is exact.
#[derive(Clone)]
pub struct Widened;

impl<T: Element> Arithmetic<T> for Widened {
    const WIDENS: bool = true;

    const VALUES: usize = 2;

    #[inline(always)]
    fn prepare<S: Simd>(_: S, query: &[f32], scale: f32, tile: &mut [f32], step: usize) {
        for (to, x) in tile.iter_mut().step_by(step).zip(query) {
            *to = x * scale;
        }
    }

    #[inline(always)]
    unsafe fn add_scores<S: Simd, const Q: usize, const B: usize>(
        s: S,
        mut sums: [[S::V; B]; Q],
        query: &[[f32; Q]],
        keys: &[&[[[T; LANES]; 2]]; B],
        number: usize,
    ) -> [[S::V; B]; Q] {
        let (mut firsts, mut seconds) = ([s.splat(0.0); B], [s.splat(0.0); B]);
        for (keys, (first, second)) in keys.iter().zip(firsts.iter_mut().zip(&mut seconds)) {
            // SAFETY: the caller's promise.
            [*first, *second] = T::keys(s, unsafe { keys.get_unchecked(number) });
        }
        for (half, keys) in [firsts, seconds].iter().enumerate() {
            // SAFETY: the caller's promise.
            let query = unsafe { query.get_unchecked(half) };
            for q in 0..Q {
                let x = s.splat(query[q]);
                for block in 0..B {
                    sums[q][block] = s.mul_add(x, keys[block], sums[q][block]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn weights<S: Simd>(s: S, weights: S::V, into: &mut [f32; LANES]) {
        s.store(weights, into);
    }

    #[inline(always)]
    unsafe fn add_pair<S: Simd, const Q: usize, const V: usize>(
        s: S,
        mut sums: [[S::V; V]; Q],
        weights: &Weights<Q>,
        block: usize,
        number: usize,
        pair: &[[T; LANES]],
        vector: usize,
    ) -> [[S::V; V]; Q] {
        let (mut firsts, mut seconds) = ([s.splat(0.0); V], [s.splat(0.0); V]);
        for (v, (first, second)) in firsts.iter_mut().zip(&mut seconds).enumerate() {
            [*first, *second] = T::values(s, pair, vector + v);
        }
        for (half, values) in [firsts, seconds].iter().enumerate() {
            for q in 0..Q {
                // SAFETY: the caller's promise.
                let weight = unsafe {
                    *weights[q]
                        .get_unchecked(block)
                        .get_unchecked(2 * number + half)
                };
                let weight = s.splat(weight);
                for v in 0..V {
                    sums[q][v] = s.mul_add(weight, values[v], sums[q][v]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn add_token<S: Simd, const Q: usize>(
        s: S,
        weights: &Weights<Q>,
        block: usize,
        token: usize,
        pair: &[[T; LANES]],
        sums: &mut [[f32; LANES]],
    ) {
        let vectors = sums.len() / Q;
        for vector in 0..vectors {
            let value = T::values(s, pair, vector)[token % 2];
            for q in 0..Q {
                let sum = &mut sums[q * vectors + vector];
                let weight = s.splat(weights[q][block][token]);
                s.store(s.mul_add(weight, value, s.load(sum)), sum);
            }
        }
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

    const VALUES: usize = 1;

    #[inline(always)]
    fn prepare<S: Simd>(s: S, query: &[f32], scale: f32, tile: &mut [f32], step: usize) {
        let mut places = tile.iter_mut().step_by(step);
        let mut rounded = [bf16::ZERO; LANES];
        for query in query.chunks(LANES) {
            let mut scaled = [0.0; LANES];
            for (to, x) in scaled.iter_mut().zip(query) {
                *to = x * scale;
            }
            bf16::round(s, &scaled, &mut rounded);
            let words: [f32; LANES / 2] = bytemuck::cast(rounded);
            for (to, word) in places.by_ref().take(query.len() / 2).zip(words) {
                *to = word;
            }
        }
    }

    #[inline(always)]
    unsafe fn add_scores<S: Simd, const Q: usize, const B: usize>(
        s: S,
        mut sums: [[S::V; B]; Q],
        query: &[[f32; Q]],
        keys: &[&[[[bf16; LANES]; 2]]; B],
        number: usize,
    ) -> [[S::V; B]; Q] {
        let mut pairs = [s.splat(0.0); B];
        for (pairs, keys) in pairs.iter_mut().zip(keys) {
            // SAFETY: the caller's promise.
            *pairs = paired(s, unsafe { keys.get_unchecked(number) });
        }
        // SAFETY: the caller's promise.
        let query = unsafe { query.get_unchecked(0) };
        for q in 0..Q {
            let x = s.splat(query[q]);
            for block in 0..B {
                sums[q][block] = s.dot_bf16(x, pairs[block], sums[q][block]);
            }
        }
        sums
    }

    #[inline(always)]
    fn weights<S: Simd>(s: S, weights: S::V, into: &mut [f32; LANES]) {
        let (pairs, _) = into.split_at_mut(LANES / 2);
        bytemuck::cast_slice_mut(pairs).copy_from_slice(&s.to_bf16(weights));
    }

    #[inline(always)]
    unsafe fn add_pair<S: Simd, const Q: usize, const V: usize>(
        s: S,
        mut sums: [[S::V; V]; Q],
        weights: &Weights<Q>,
        block: usize,
        number: usize,
        pair: &[[bf16; LANES]],
        vector: usize,
    ) -> [[S::V; V]; Q] {
        let (pair, _) = pair.as_chunks::<2>();
        let mut values = [s.splat(0.0); V];
        for (v, values) in values.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *values = paired(s, unsafe { pair.get_unchecked(vector + v) });
        }
        for q in 0..Q {
            // SAFETY: the caller's promise.
            let weight = s.splat(unsafe { *weights[q].get_unchecked(block).get_unchecked(number) });
            for v in 0..V {
                sums[q][v] = s.dot_bf16(weight, values[v], sums[q][v]);
            }
        }
        sums
    }

    #[inline(always)]
    fn add_token<S: Simd, const Q: usize>(
        s: S,
        weights: &Weights<Q>,
        block: usize,
        token: usize,
        pair: &[[bf16; LANES]],
        sums: &mut [[f32; LANES]],
    ) {
        let vectors = sums.len() / Q;
        let seen = if token.is_multiple_of(2) { LOW } else { HIGH };
        for (vector, pairs) in pair.as_chunks().0.iter().enumerate() {
            let value = s.load(&masked(pairs, seen));
            for q in 0..Q {
                let sum = &mut sums[q * vectors + vector];
                let weight = s.splat(weights[q][block][token / 2]);
                s.store(s.dot_bf16(weight, value, s.load(sum)), sum);
            }
        }
    }
}

/// Pairs of values of which only some bits are seen.
#[inline(always)]
fn masked(pairs: &[[bf16; LANES]; 2], seen: u32) -> [f32; LANES] {
    let lanes: [u32; LANES] = bytemuck::cast(*pairs);
    lanes.map(|lane| f32::from_bits(lane & seen))
}

/// The first and the second of a pair, in the bits of a value.
const LOW: u32 = 0xffff;
const HIGH: u32 = 0xffff_0000;
