//! How a product takes in a pair of inputs: in `f32`, or rounded where that is twice as fast.
//!
//! Which of them it is depends on the type of the weights and on the CPU, and on nothing else:
//! not on the number of rows, so that a row is computed the same in every company.

use half::bf16;

use super::panels::{Line, Packable};
use crate::kernels::simd::Simd;

/// What happens between a row of activations and the weights of type `T`.
pub(super) trait Arithmetic<T> {
    /// Rows whose sums are held in registers, at most 6: what is left of thirty-two must do for the rest.
    const ROWS: usize;

    /// Words of a row that stand for a pair of inputs.
    const WORDS: usize;

    /// `sums` plus the products of a pair of inputs, for `R` rows by `V` vectors of outputs. The
    /// rows `x` lie as this arithmetic takes them, and the pair is their `number`-th.
    ///
    /// By value, and without closures: so the sums stay in registers, and everything is compiled
    /// for the instruction set.
    ///
    /// # Safety
    /// Every `x` must have a word at `number * WORDS`, and all must be equally long.
    unsafe fn add<S: Simd, const R: usize, const V: usize>(
        s: S,
        sums: [[S::V; V]; R],
        pair: &[Line],
        vector: usize,
        x: &[&[f32]; R],
        number: usize,
    ) -> [[S::V; V]; R];
}

/// Activations stay in `f32`, and weights are widened in registers, which is exact.
#[derive(Clone)]
pub struct Widened;

impl<T: Packable> Arithmetic<T> for Widened {
    // With 6, half of the sums go through memory.
    const ROWS: usize = 4;

    const WORDS: usize = 2;

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const V: usize>(
        s: S,
        sums: [[S::V; V]; R],
        pair: &[Line],
        vector: usize,
        x: &[&[f32]; R],
        number: usize,
    ) -> [[S::V; V]; R] {
        let first = 2 * number;
        // SAFETY: the caller's promise.
        let sums = unsafe { add_half::<S, T, R, V, 0>(s, sums, pair, vector, x, first) };
        // The second half of the last pair is padding where the inputs are odd in number.
        if first + 1 == x[0].len() {
            return sums;
        }
        // SAFETY: the caller's promise, and this is not the end.
        unsafe { add_half::<S, T, R, V, 1>(s, sums, pair, vector, x, first + 1) }
    }
}

/// `sums` plus the products of one input of a pair.
///
/// # Safety
/// Every `x` must have a value at `input`.
#[inline(always)]
unsafe fn add_half<S: Simd, T: Packable, const R: usize, const V: usize, const HALF: usize>(
    s: S,
    mut sums: [[S::V; V]; R],
    pair: &[Line],
    vector: usize,
    x: &[&[f32]; R],
    input: usize,
) -> [[S::V; V]; R] {
    let mut weights = [s.splat(0.0); V];
    for (v, weights) in weights.iter_mut().enumerate() {
        *weights = T::widen::<S, HALF>(s, pair, vector + v);
    }
    for r in 0..R {
        // SAFETY: the caller's promise.
        let x = s.splat(unsafe { *x[r].get_unchecked(input) });
        for v in 0..V {
            sums[r][v] = s.mul_add(x, weights[v], sums[r][v]);
        }
    }
    sums
}

/// Activations are rounded to `bf16`, to nearest even, once, and multiplied by [`Simd::dot_bf16`], which says what
/// that does to the sums.
///
/// A row has both inputs of a pair in the bits of a word, as lines have weights, with zero for an input that is
/// missing.
#[derive(Clone)]
pub struct Rounded;

impl Arithmetic<bf16> for Rounded {
    const ROWS: usize = 6;

    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn add<S: Simd, const R: usize, const V: usize>(
        s: S,
        mut sums: [[S::V; V]; R],
        pair: &[Line],
        vector: usize,
        x: &[&[f32]; R],
        number: usize,
    ) -> [[S::V; V]; R] {
        let mut weights = [s.splat(0.0); V];
        for (v, weights) in weights.iter_mut().enumerate() {
            *weights = s.load(&pair[vector + v].0);
        }
        for r in 0..R {
            // SAFETY: the caller's promise.
            let x = s.splat(unsafe { *x[r].get_unchecked(number) });
            for v in 0..V {
                sums[r][v] = s.dot_bf16(x, weights[v], sums[r][v]);
            }
        }
        sums
    }
}
