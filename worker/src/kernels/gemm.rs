//! Matrix products whose rows do not depend on each other.
//!
//! MKL and oneDNN pick their algorithm, and with it the order of their sums, by the shape of the
//! whole product, so that a token's logits change in the last bits with the number of tokens
//! beside it. Here every output is one chain of multiply-adds in `f32` over the inner dimension
//! from first to last, whatever the number of rows, the tile it falls into or the thread that
//! computes it. Activations are `f32`; weights of a narrower type are widened in registers, which
//! is exact.
//!
//! The weights are held once, in panels of 64 outputs by all inputs, which are read from front
//! to back. A tile of up to 4 rows by 64 outputs stays in registers.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::mapping::zeros_in_huge_pages;
use super::parallel::{Disjoint, Threads};
use super::simd::{Element, Kernel, LANES, Simd, dispatch};

/// Outputs of a panel, in vectors and in values.
const PANEL_VECTORS: usize = 4;
const PANEL: usize = PANEL_VECTORS * LANES;
/// Lines that one pass over a tile takes: a quarter megabyte of panel, to stay in the L2 cache
/// over all rows. Sums wait in the output between passes, which does not change them.
const DEPTH: usize = 4096;
/// Lines from the one that is multiplied to the one that is fetched: 4 KiB, the distance to a page
/// that the CPU does not fetch ahead by itself.
const AHEAD: usize = 64;
/// Rows of one task.
const ROWS: usize = 96;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "halves of lanes are laid out so"
);

/// One cache line of weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([f32; LANES]);

/// A type of weights: how a *pair*, the weights of a panel's outputs for two inputs, lies in lines.
pub trait Packable: Element {
    /// Lines of a pair.
    const LINES: usize;
    /// Where in a pair the weight of an output (below 64) for the first or second (`half` 0 or 1)
    /// input is: the line, and the place in it counted in weights.
    #[doc(hidden)]
    fn place(output: usize, half: usize) -> (usize, usize);
    /// The weights of the `vector`-th sixteen outputs for the first or second input.
    #[doc(hidden)]
    #[allow(private_interfaces, private_bounds)]
    fn widen<S: Simd, const HALF: usize>(s: S, pair: &[Line], vector: usize) -> S::V;
}

#[allow(private_interfaces, private_bounds)]
impl Packable for f32 {
    const LINES: usize = 2 * PANEL_VECTORS;
    fn place(output: usize, half: usize) -> (usize, usize) {
        (half * PANEL_VECTORS + output / LANES, output % LANES)
    }
    #[inline(always)]
    fn widen<S: Simd, const HALF: usize>(s: S, pair: &[Line], vector: usize) -> S::V {
        s.load(&pair[HALF * PANEL_VECTORS + vector].0)
    }
}

#[allow(private_interfaces, private_bounds)]
impl Packable for bf16 {
    const LINES: usize = PANEL_VECTORS;
    // Both weights of an output are one lane of 32 bits, the first in its low half: to widen one
    // is a shift or a mask.
    fn place(output: usize, half: usize) -> (usize, usize) {
        (output / LANES, 2 * (output % LANES) + half)
    }
    #[inline(always)]
    fn widen<S: Simd, const HALF: usize>(s: S, pair: &[Line], vector: usize) -> S::V {
        let both = s.load(&pair[vector].0);
        match HALF {
            0 => s.low_bf16(both),
            _ => s.high_bf16(both),
        }
    }
}

#[allow(private_interfaces, private_bounds)]
impl Packable for f16 {
    const LINES: usize = PANEL_VECTORS;
    fn place(output: usize, half: usize) -> (usize, usize) {
        (output / LANES, half * LANES + output % LANES)
    }
    #[inline(always)]
    fn widen<S: Simd, const HALF: usize>(s: S, pair: &[Line], vector: usize) -> S::V {
        let halves: &[[f16; LANES]; 2] = bytemuck::cast_ref(&pair[vector].0);
        s.load_f16(&halves[HALF])
    }
}

/// A weight matrix `[outputs, inputs]` in panels, padded with zeros to whole panels and pairs.
pub struct Packed<T> {
    lines: Vec<Line>,
    outputs: usize,
    inputs: usize,
    element: PhantomData<T>,
}

impl<T: Packable> Packed<T> {
    /// Packs a matrix. `read(row, column, into)` fills `into` with the values of `row` from
    /// `column` on; it is called for every part of the matrix once, on any thread.
    pub fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        read: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Self {
        let (panels, panel_lines) = (outputs.div_ceil(PANEL), inputs.div_ceil(2) * T::LINES);
        let mut lines = zeros_in_huge_pages(panels * panel_lines, Line([0.0; LANES]));
        let mut by_panel: Vec<_> = lines.chunks_mut(panel_lines.max(1)).enumerate().collect();
        threads.for_each(&mut by_panel, |(panel, lines)| {
            // In squares, so that both sides of the transposition stay in the L1 cache.
            let mut square = [T::zeroed(); PANEL];
            for column in (0..inputs).step_by(PANEL) {
                let columns = PANEL.min(inputs - column);
                for output in 0..PANEL.min(outputs - *panel * PANEL) {
                    read(*panel * PANEL + output, column, &mut square[..columns]);
                    for (i, value) in square[..columns].iter().enumerate() {
                        let (line, place) = T::place(output, i % 2);
                        let line = &mut lines[(column + i) / 2 * T::LINES + line].0;
                        bytemuck::cast_slice_mut(line)[place] = *value;
                    }
                }
            }
        });
        Packed {
            lines,
            outputs,
            inputs,
            element: PhantomData,
        }
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// The lines of a panel.
    fn panel(&self, panel: usize) -> &[Line] {
        let lines = self.inputs.div_ceil(2) * T::LINES;
        &self.lines[panel * lines..][..lines]
    }

    /// Copies rows of the matrix one after the other, which is how tied embeddings are looked up.
    ///
    /// # Panics
    /// If there is no such row, or `into` has not room for exactly these rows.
    pub fn gather(&self, threads: &Threads, rows: &[u32], into: &mut [f32]) {
        assert!(into.len() == rows.len() * self.inputs);
        let into = into.chunks_exact_mut(self.inputs.max(1));
        let mut jobs: Vec<_> = rows.iter().map(|row| *row as usize).zip(into).collect();
        threads.for_each(&mut jobs, |(row, into)| {
            assert!(*row < self.outputs);
            let panel = self.panel(*row / PANEL);
            for (i, to) in into.iter_mut().enumerate() {
                let (line, place) = T::place(*row % PANEL, i % 2);
                let line: &[T] = bytemuck::cast_slice(&panel[i / 2 * T::LINES + line].0);
                *to = line[place].to_f32();
            }
        });
    }

    /// `out[r, o] = bias[o] + sum over i of x[r, i] * weight[o, i]`.
    ///
    /// # Panics
    /// If the lengths of `x`, `bias` and `out` do not fit each other and the matrix.
    pub fn multiply(&self, threads: &Threads, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        let rows = x.len() / self.inputs.max(1);
        assert!(x.len() == rows * self.inputs && out.len() == rows * self.outputs);
        assert!(bias.is_none_or(|b| b.len() == self.outputs));
        let panels = self.outputs.div_ceil(PANEL);
        let out = Disjoint::new(out);
        threads.run(panels * rows.div_ceil(ROWS), |task| {
            let (chunk, panel) = (task / panels, task % panels);
            let rows = chunk * ROWS..rows.min((chunk + 1) * ROWS);
            dispatch(Product {
                matrix: self,
                x,
                bias,
                out: &out,
                panel,
                rows,
            });
        });
    }
}

/// The outputs of one panel for some rows.
struct Product<'a, T> {
    matrix: &'a Packed<T>,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a Disjoint<'a, f32>,
    panel: usize,
    rows: std::ops::Range<usize>,
}

impl<T: Packable> Kernel for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.matrix.inputs;
        let mut first = 0;
        loop {
            let depth = first..inputs.min(first + DEPTH / T::LINES * 2);
            let last = depth.end == inputs;
            let mut row = self.rows.start;
            while row < self.rows.end {
                match self.rows.end - row {
                    1 => self.rows_of::<S, 1>(s, row, &depth, last),
                    2 => self.rows_of::<S, 2>(s, row, &depth, last),
                    3 => self.rows_of::<S, 3>(s, row, &depth, last),
                    _ => self.rows_of::<S, 4>(s, row, &depth, last),
                }
                row += 4;
            }
            if last {
                return;
            }
            first = depth.end;
        }
    }
}

/// `sums` plus the products of one input, `x[..][input]`, for `R` rows by `V` vectors of outputs.
///
/// By value, and without closures: so the sums stay in registers, and everything is compiled for
/// the instruction set.
///
/// # Safety
/// Every `x` must have a value at `input`.
#[inline(always)]
unsafe fn add<S: Simd, T: Packable, const R: usize, const V: usize, const HALF: usize>(
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

impl<T: Packable> Product<'_, T> {
    #[inline(always)]
    fn rows_of<S: Simd, const R: usize>(
        &self,
        s: S,
        row: usize,
        depth: &std::ops::Range<usize>,
        last: bool,
    ) {
        if S::WIDE {
            self.tile::<S, R, PANEL_VECTORS>(s, row, 0, depth, last);
        } else {
            // Half the registers of half the width: a vector of outputs at a time.
            for vector in 0..PANEL_VECTORS {
                self.tile::<S, R, 1>(s, row, vector, depth, last);
            }
        }
    }

    /// `R` rows by `V` vectors of outputs, held in registers over `depth`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        row: usize,
        vector: usize,
        depth: &std::ops::Range<usize>,
        last: bool,
    ) {
        let (inputs, outputs) = (self.matrix.inputs, self.matrix.outputs);
        let x: [&[f32]; R] =
            std::array::from_fn(|r| &self.x[(row + r) * inputs..][..inputs][depth.clone()]);
        let panel = self.matrix.panel(self.panel);
        let panel = &panel[depth.start / 2 * T::LINES..depth.end.div_ceil(2) * T::LINES];
        let mut sums = [[s.splat(0.0); V]; R];
        if depth.start > 0 {
            self.each_part::<R, V>(row, vector, outputs, |r, v, part| {
                let mut lanes = [0.0; LANES];
                lanes[..part.len()].copy_from_slice(part);
                sums[r][v] = s.load(&lanes);
            });
        }
        for (i, pair) in panel.chunks_exact(T::LINES).enumerate() {
            for line in 0..T::LINES {
                s.prefetch(pair.as_ptr().wrapping_add(AHEAD + line).cast());
            }
            // SAFETY: `x[r]` has `depth.len()` values: two for each pair, or one for the last.
            sums = unsafe { add::<S, T, R, V, 0>(s, sums, pair, vector, &x, 2 * i) };
            // The second half of the last pair is padding where the inputs are odd in number.
            if 2 * i + 1 == depth.len() {
                break;
            }
            // SAFETY: as above, and this is not the end.
            sums = unsafe { add::<S, T, R, V, 1>(s, sums, pair, vector, &x, 2 * i + 1) };
        }
        let bias = self.bias.filter(|_| last);
        self.each_part::<R, V>(row, vector, outputs, |r, v, part| {
            let mut sum = sums[r][v];
            let first = self.panel * PANEL + (vector + v) * LANES;
            if let Some(bias) = bias {
                let mut lanes = [0.0; LANES];
                lanes[..part.len()].copy_from_slice(&bias[first..][..part.len()]);
                sum = s.add(sum, s.load(&lanes));
            }
            if let Some(whole) = part.first_chunk_mut() {
                s.store(sum, whole);
            } else {
                part.copy_from_slice(&s.to_array(sum)[..part.len()]);
            }
        });
    }

    /// Calls `f` with the part of the output of each row and vector of a tile; parts at the right
    /// edge of the matrix are shorter than a vector, those beyond it are left out.
    #[inline(always)]
    fn each_part<const R: usize, const V: usize>(
        &self,
        row: usize,
        vector: usize,
        outputs: usize,
        mut f: impl FnMut(usize, usize, &mut [f32]),
    ) {
        for r in 0..R {
            for v in 0..V {
                let first = self.panel * PANEL + (vector + v) * LANES;
                if first < outputs {
                    let len = LANES.min(outputs - first);
                    let start = (row + r) * outputs + first;
                    // SAFETY: a task owns the outputs of its rows in its panel.
                    f(r, v, unsafe { self.out.slice(start..start + len) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::on_each;
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    fn packed<T: Packable>(outputs: usize, inputs: usize, weight: &[f32]) -> Packed<T> {
        Packed::new(&Threads::own(1), outputs, inputs, |row, column, into| {
            let start = row * inputs + column;
            for (to, from) in into.iter_mut().zip(&weight[start..]) {
                *to = T::from_f32(*from);
            }
        })
    }

    fn check_products<T: Packable>() {
        for (rows, outputs, inputs) in [(1, 1, 1), (7, 65, 33), (13, 64, 4100), (100, 130, 70)] {
            let (x, w) = (noise(rows * inputs, 1), noise(outputs * inputs, 2));
            let w: Vec<f32> = w.into_iter().map(|w| T::from_f32(w).to_f32()).collect();
            let bias = noise(outputs, 3);
            let matrix = packed::<T>(outputs, inputs, &w);
            let mut out = vec![0.0; rows * outputs];
            matrix.multiply(&Threads::own(2), &x, Some(&bias), &mut out);
            for r in 0..rows {
                for o in 0..outputs {
                    let exact: f64 = (0..inputs)
                        .map(|i| f64::from(x[r * inputs + i]) * f64::from(w[o * inputs + i]))
                        .sum::<f64>()
                        + f64::from(bias[o]);
                    let error = (f64::from(out[r * outputs + o]) - exact).abs();
                    assert!(
                        error < 1e-5 * inputs as f64,
                        "row {r} output {o}: off by {error}"
                    );
                }
            }
            let mut ends = vec![0.0; 2 * inputs];
            matrix.gather(&Threads::own(2), &[outputs as u32 - 1, 0], &mut ends);
            let [last, first] = [&w[(outputs - 1) * inputs..], &w[..inputs]];
            assert_eq!(ends, [last, first].concat());
        }
    }

    #[test]
    fn products_are_right_for_any_shape() {
        check_products::<f32>();
        check_products::<bf16>();
        check_products::<f16>();
    }

    fn check_rows<T: Packable>() {
        let (outputs, inputs) = (200, 2300);
        let (x, w) = (noise(300 * inputs, 4), noise(outputs * inputs, 5));
        let matrix = packed::<T>(outputs, inputs, &w);
        let mut all = vec![0.0; 300 * outputs];
        matrix.multiply(&Threads::own(1), &x, None, &mut all);
        for rows in [1, 2, 3, 5, 6, 7, 97, 299] {
            for threads in [1, 3] {
                let mut some = vec![0.0; rows * outputs];
                matrix.multiply(&Threads::own(threads), &x[..rows * inputs], None, &mut some);
                assert_eq!(
                    some,
                    all[..rows * outputs],
                    "{rows} rows on {threads} threads"
                );
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours_or_threads() {
        check_rows::<f32>();
        check_rows::<bf16>();
        check_rows::<f16>();
    }

    #[derive(Clone)]
    struct Whole<'a, T>(&'a Packed<T>, &'a [f32], usize);

    impl<T: Packable> Kernel for Whole<'_, T> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.2 * self.0.outputs];
            let shared = Disjoint::new(&mut out);
            for panel in 0..2 {
                let (matrix, x, rows) = (self.0, self.1, 0..self.2);
                Product {
                    matrix,
                    x,
                    bias: None,
                    out: &shared,
                    panel,
                    rows,
                }
                .run(s);
            }
            out
        }
    }

    fn check_instruction_sets<T: Packable + Clone>() {
        let (rows, outputs, inputs) = (8, 70, 91);
        let (x, w) = (noise(rows * inputs, 6), noise(outputs * inputs, 7));
        let matrix = packed::<T>(outputs, inputs, &w);
        let all = on_each(Whole(&matrix, &x, rows));
        for other in &all[1..] {
            for (a, b) in all[0].iter().zip(other) {
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
        }
    }

    #[test]
    fn instruction_sets_agree() {
        check_instruction_sets::<f32>();
        check_instruction_sets::<bf16>();
        check_instruction_sets::<f16>();
    }
}
