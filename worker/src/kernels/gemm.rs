//! Matrix products in `f32` whose rows do not depend on each other.
//!
//! MKL picks its algorithm, and with it the order of its sums, by the shape of the whole product,
//! so that a token's logits change in the last bits with the number of tokens beside it. Here
//! every output is one chain of multiply-adds over the inner dimension from first to last,
//! whatever the number of rows, the tile it falls into or the thread that computes it.
//!
//! The weights are held once, in panels of 64 outputs by all inputs, which are read from front
//! to back. A tile of up to 6 rows by 64 outputs stays in registers.

use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Outputs of a panel, in vectors and in values.
const PANEL_VECTORS: usize = 4;
const PANEL: usize = PANEL_VECTORS * LANES;
/// Inputs that one pass over a tile takes: a quarter megabyte of panel, to stay in the L2 cache
/// over all rows. Sums wait in the output between passes, which does not change them.
const DEPTH: usize = 1024;
/// Rows of one task.
const ROWS: usize = 96;

/// One cache line of weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A weight matrix `[outputs, inputs]` in panels, padded with zeros to whole panels.
pub struct Packed {
    lines: Vec<Line>,
    outputs: usize,
    inputs: usize,
}

impl Packed {
    /// Packs a matrix. `read(row, column, into)` fills `into` with the values of `row` from
    /// `column` on; it is called for every part of the matrix once, on any thread.
    pub fn new(
        threads: &Threads,
        outputs: usize,
        inputs: usize,
        read: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Packed {
        let panels = outputs.div_ceil(PANEL);
        let mut lines = vec![Line([0.0; LANES]); panels * inputs * PANEL_VECTORS];
        let mut by_panel: Vec<_> = lines.chunks_mut((inputs * PANEL_VECTORS).max(1)).collect();
        let mut numbered: Vec<_> = by_panel.iter_mut().enumerate().collect();
        threads.for_each(&mut numbered, |(panel, lines)| {
            // In squares, so that both sides of the transposition stay in the L1 cache.
            let mut square = [0.0; PANEL];
            for column in (0..inputs).step_by(PANEL) {
                let columns = PANEL.min(inputs - column);
                for lane in 0..PANEL.min(outputs - *panel * PANEL) {
                    read(*panel * PANEL + lane, column, &mut square[..columns]);
                    for (i, value) in square[..columns].iter().enumerate() {
                        let line = (column + i) * PANEL_VECTORS + lane / LANES;
                        lines[line].0[lane % LANES] = *value;
                    }
                }
            }
        });
        Packed {
            lines,
            outputs,
            inputs,
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

    /// Copies row `row` of the matrix, which is how tied embeddings are looked up.
    ///
    /// # Panics
    /// If there is no such row, or `into` is not as long as one.
    pub fn row(&self, row: usize, into: &mut [f32]) {
        assert!(row < self.outputs && into.len() == self.inputs);
        let (panel, lane) = (row / PANEL, row % PANEL);
        let first = panel * self.inputs * PANEL_VECTORS + lane / LANES;
        for (i, to) in into.iter_mut().enumerate() {
            *to = self.lines[first + i * PANEL_VECTORS].0[lane % LANES];
        }
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
struct Product<'a> {
    matrix: &'a Packed,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a Disjoint<'a, f32>,
    panel: usize,
    rows: std::ops::Range<usize>,
}

impl Kernel for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.matrix.inputs;
        let mut first = 0;
        loop {
            let depth = first..inputs.min(first + DEPTH);
            let last = depth.end == inputs;
            let mut row = self.rows.start;
            while row < self.rows.end {
                match self.rows.end - row {
                    1 => self.rows_of::<S, 1>(s, row, &depth, last),
                    2 => self.rows_of::<S, 2>(s, row, &depth, last),
                    3 => self.rows_of::<S, 3>(s, row, &depth, last),
                    4 => self.rows_of::<S, 4>(s, row, &depth, last),
                    5 => self.rows_of::<S, 5>(s, row, &depth, last),
                    _ => self.rows_of::<S, 6>(s, row, &depth, last),
                }
                row += 6;
            }
            if last {
                return;
            }
            first = depth.end;
        }
    }
}

impl Product<'_> {
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
        let panel = &self.matrix.lines[self.panel * inputs * PANEL_VECTORS..];
        let panel = &panel[depth.start * PANEL_VECTORS..depth.end * PANEL_VECTORS];
        let mut sums = [[s.splat(0.0); V]; R];
        if depth.start > 0 {
            self.each_part::<R, V>(row, vector, outputs, |r, v, part| {
                let mut lanes = [0.0; LANES];
                lanes[..part.len()].copy_from_slice(part);
                sums[r][v] = s.load(&lanes);
            });
        }
        for (i, lines) in panel.as_chunks::<PANEL_VECTORS>().0.iter().enumerate() {
            let weights: [S::V; V] = std::array::from_fn(|v| s.load(&lines[vector + v].0));
            for r in 0..R {
                // SAFETY: `x[r]` has `depth.len()` values, as many as `panel` has chunks.
                let x = s.splat(unsafe { *x[r].get_unchecked(i) });
                for v in 0..V {
                    sums[r][v] = s.mul_add(x, weights[v], sums[r][v]);
                }
            }
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

    fn packed(outputs: usize, inputs: usize, weight: &[f32]) -> Packed {
        Packed::new(&Threads::own(1), outputs, inputs, |row, column, into| {
            let start = row * inputs + column;
            into.copy_from_slice(&weight[start..start + into.len()]);
        })
    }

    #[test]
    fn products_are_right_for_any_shape() {
        for (rows, outputs, inputs) in [(1, 1, 1), (7, 65, 33), (13, 64, 1500), (100, 130, 70)] {
            let (x, w) = (noise(rows * inputs, 1), noise(outputs * inputs, 2));
            let bias = noise(outputs, 3);
            let matrix = packed(outputs, inputs, &w);
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
            let mut row = vec![0.0; inputs];
            matrix.row(outputs - 1, &mut row);
            assert_eq!(row, w[(outputs - 1) * inputs..]);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours_or_threads() {
        let (outputs, inputs) = (200, 1100);
        let (x, w) = (noise(300 * inputs, 4), noise(outputs * inputs, 5));
        let matrix = packed(outputs, inputs, &w);
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
    fn instruction_sets_agree() {
        let (rows, outputs, inputs) = (8, 70, 90);
        let (x, w) = (noise(rows * inputs, 6), noise(outputs * inputs, 7));
        let matrix = packed(outputs, inputs, &w);
        #[derive(Clone)]
        struct Whole<'a>(&'a Packed, &'a [f32], usize);
        impl Kernel for Whole<'_> {
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
        let all = on_each(Whole(&matrix, &x, rows));
        for other in &all[1..] {
            for (a, b) in all[0].iter().zip(other) {
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
        }
    }
}
