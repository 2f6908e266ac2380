//! Matrix products whose rows do not depend on each other.
//!
//! MKL and oneDNN pick their algorithm, and with it the order of their sums, by the shape of the
//! whole product, so that a token's logits change in the last bits with the number of tokens
//! beside it. Here every output is one chain of multiply-adds in `f32` over the inner dimension
//! from first to last, whatever the number of rows, the tile it falls into or the thread that
//! computes it. How a pair of inputs is taken in, and in which type, is one of two
//! [arithmetics](arithmetic), which the type of the weights and the CPU decide.
//!
//! The weights are held once, in [panels], which are read from front to back. A tile of a few rows
//! by 64 outputs stays in registers, and a panel in the L2 cache while one such tile after the other
//! passes over it; meanwhile the next panel is brought in, so that neither memory waits for the
//! multiplier nor it for memory.

use std::marker::PhantomData;
use std::ops::Range;

use super::activation::{Gated, silu_multiply};
use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, LANES, Simd, dispatch, has_fast_dots};

mod arithmetic;
mod panels;
mod tiled;

use arithmetic::{Arithmetic, Widened};
use panels::{Line, PANEL, PANEL_VECTORS};
pub use panels::{Packable, Packed};

/// Lines of a slice of a panel: a quarter megabyte, to stay in the L2 cache over all rows, beside
/// the next one. Sums wait in the output between slices, which does not change them.
const DEPTH: usize = 4096;
/// Lines from the one that is multiplied to the one that is fetched when a slice is passed over for
/// the first time: 4 KiB, the distance to a page that the CPU does not fetch ahead by itself.
const AHEAD: usize = 64;
/// Rows of one task.
const ROWS: usize = 96;

impl<T: Packable> Packed<T> {
    /// `out[r, o] = bias[o] + sum over i of x[r, i] * weight[o, i]`.
    ///
    /// # Panics
    /// If the lengths of `x`, `bias` and `out` do not fit each other and the matrix.
    pub fn multiply(&self, threads: &Threads, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        self.check(x, bias, out);
        if let Some(tiles) = T::tiles() {
            self.multiply_on(tiles, threads, x, bias, out);
        } else if has_fast_dots() {
            self.multiply_by::<T::Dots>(threads, x, bias, out, None);
        } else {
            self.multiply_by::<Widened>(threads, x, bias, out, None);
        }
    }

    /// As [`multiply`](Self::multiply), where the first half of the outputs are gates and the second half what they
    /// are for; then `activated[r, o] = silu(gate[r, o]) * up[r, o]`.
    ///
    /// # Panics
    /// As there, or if the outputs have no halves, or `activated` is not half as long as `out`.
    pub fn multiply_gated(
        &self,
        threads: &Threads,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        activated: &mut [f32],
    ) {
        let half = self.outputs / 2;
        if T::tiles().is_some() || !half.is_multiple_of(PANEL) {
            self.multiply(threads, x, bias, out);
            silu_multiply(threads, out, half, activated);
            return;
        }
        self.check(x, bias, out);
        assert!(self.outputs.is_multiple_of(2) && out.len() == 2 * activated.len());
        let activated = Some(activated);
        if has_fast_dots() {
            self.multiply_by::<T::Dots>(threads, x, bias, out, activated);
        } else {
            self.multiply_by::<Widened>(threads, x, bias, out, activated);
        }
    }

    fn check(&self, x: &[f32], bias: Option<&[f32]>, out: &[f32]) {
        let rows = x.len() / self.inputs.max(1);
        assert!(x.len() == rows * self.inputs && out.len() == rows * self.outputs);
        assert!(bias.is_none_or(|b| b.len() == self.outputs));
    }

    /// With what is `activated`, a task computes gates and what they are for together, while both are in a cache.
    fn multiply_by<A: Arithmetic<T>>(
        &self,
        threads: &Threads,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
        activated: Option<&mut [f32]>,
    ) {
        let rows = x.len() / self.inputs.max(1);
        let parts = if activated.is_some() { 2 } else { 1 };
        let panels = self.outputs.div_ceil(PANEL) / parts;
        let out = Disjoint::new(out);
        let activated = activated.map(Disjoint::new);
        let count = threads.count() as usize;
        A::prepare(threads, x, self.inputs, |x| {
            threads.run(panels * rows.div_ceil(ROWS), |task| {
                let (chunk, panel) = (task / panels, task % panels);
                let rows = chunk * ROWS..rows.min((chunk + 1) * ROWS);
                for part in 0..parts {
                    // After the last part the first one of another panel.
                    let next = if part + 1 == parts {
                        panel + count
                    } else {
                        panel + panels
                    };
                    dispatch(Product::<T, A> {
                        matrix: self,
                        x,
                        bias,
                        out: &out,
                        panel: panel + part * panels,
                        next,
                        rows: rows.clone(),
                        arithmetic: PhantomData,
                    });
                }
                if let Some(activated) = &activated {
                    activate(&out, activated, panels * PANEL, rows, panel * PANEL);
                }
            });
        });
    }
}

/// Activates a panel of gates, those from `first` on of `width`, for some rows of a task.
fn activate(
    out: &Disjoint<'_, f32>,
    activated: &Disjoint<'_, f32>,
    width: usize,
    rows: Range<usize>,
    first: usize,
) {
    for row in rows {
        let (gate, into) = (2 * row * width + first, row * width + first);
        let up = gate + width;
        // SAFETY: a task owns the outputs of its rows in its panels, and what they come to; a row has `2 * width` of
        // them, as halves are whole panels.
        let [gate, up, out] = unsafe {
            [
                out.slice(gate..gate + PANEL),
                out.slice(up..up + PANEL),
                activated.slice(into..into + PANEL),
            ]
        };
        dispatch(Gated { gate, up, out });
    }
}

/// The outputs of one panel for some rows.
struct Product<'a, T, A> {
    matrix: &'a Packed<T>,
    /// Rows as the arithmetic takes them.
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a Disjoint<'a, f32>,
    panel: usize,
    /// The panel that this thread is likely to take next; there may be none of that number.
    next: usize,
    rows: Range<usize>,
    arithmetic: PhantomData<A>,
}

/// Some rows on their way over a slice of a panel.
struct Pass<'a> {
    /// First of the rows.
    row: usize,
    /// Pairs of the slice.
    depth: &'a Range<usize>,
    /// Whether the sums are complete behind this slice.
    last: bool,
    /// Whether others have not passed over it before.
    first: bool,
    /// Lines to bring in meanwhile: as many as the slice has, divided by `passes`.
    ahead: *const Line,
    passes: usize,
}

impl<T: Packable, A: Arithmetic<T>> Kernel for Product<'_, T, A> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pairs = self.matrix.inputs.div_ceil(2);
        // Of as equal a number of rows as can be: few rows leave the multiplier waiting for sums.
        let (rows, passes) = (self.rows.len(), self.rows.len().div_ceil(A::ROWS));
        let mut start = 0;
        loop {
            let depth = start..pairs.min(start + DEPTH / T::LINES);
            let last = depth.end == pairs;
            let next = match last {
                true => self.matrix.start(self.next),
                false => self.slice(depth.end..pairs).as_ptr(),
            };
            for number in 0..passes {
                let [row, end] = [number, number + 1].map(|n| self.rows.start + n * rows / passes);
                let pass = Pass {
                    row,
                    depth: &depth,
                    last,
                    first: number == 0,
                    ahead: next.wrapping_add(number * depth.len() * T::LINES / passes),
                    passes,
                };
                match end - row {
                    1 => self.rows_of::<S, 1>(s, &pass),
                    2 => self.rows_of::<S, 2>(s, &pass),
                    3 => self.rows_of::<S, 3>(s, &pass),
                    4 => self.rows_of::<S, 4>(s, &pass),
                    5 if A::ROWS >= 5 => self.rows_of::<S, 5>(s, &pass),
                    _ if A::ROWS >= 6 => self.rows_of::<S, 6>(s, &pass),
                    _ => unreachable!("a pass has at most {} rows", A::ROWS),
                }
            }
            if last {
                return;
            }
            start = depth.end;
        }
    }
}

impl<T: Packable, A: Arithmetic<T>> Product<'_, T, A> {
    /// Some pairs of the panel.
    fn slice(&self, pairs: Range<usize>) -> &[Line] {
        &self.matrix.panel(self.panel)[pairs.start * T::LINES..pairs.end * T::LINES]
    }

    #[inline(always)]
    fn rows_of<S: Simd, const R: usize>(&self, s: S, pass: &Pass<'_>) {
        if S::WIDE {
            self.tile::<S, R, PANEL_VECTORS>(s, pass, 0);
        } else {
            // Half the registers of half the width: a vector of outputs at a time.
            for vector in 0..PANEL_VECTORS {
                self.tile::<S, R, 1>(s, pass, vector);
            }
        }
    }

    /// `R` rows by `V` vectors of outputs, held in registers over a slice.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&self, s: S, pass: &Pass<'_>, vector: usize) {
        let Pass {
            row,
            depth,
            last,
            first,
            passes,
            ..
        } = *pass;
        let outputs = self.matrix.outputs;
        let width = A::width(self.matrix.inputs);
        let values = depth.start * A::VALUES..width.min(depth.end * A::VALUES);
        let x: [&[f32]; R] =
            std::array::from_fn(|r| &self.x[(row + r) * width..][..width][values.clone()]);
        let mut sums = [[s.splat(0.0); V]; R];
        if depth.start > 0 {
            self.each_part::<R, V>(row, vector, outputs, |r, v, part| {
                let mut lanes = [0.0; LANES];
                lanes[..part.len()].copy_from_slice(part);
                sums[r][v] = s.load(&lanes);
            });
        }
        let (mut ahead, mut due) = (pass.ahead, 0);
        for (i, pair) in self.slice(depth.clone()).chunks_exact(T::LINES).enumerate() {
            if first {
                for line in 0..T::LINES {
                    s.prefetch(pair.as_ptr().wrapping_add(AHEAD + line).cast());
                }
            }
            // A single pass takes no longer than what it multiplies takes to arrive.
            if passes > 1 && vector == 0 {
                due += T::LINES;
                while due >= passes {
                    s.prefetch_far(ahead.cast());
                    ahead = ahead.wrapping_add(1);
                    due -= passes;
                }
            }
            // SAFETY: the rows go as far as the pairs do: both are those of `depth`.
            sums = unsafe { A::add(s, sums, pair, vector, &x, i) };
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
    use half::{bf16, f16};

    use super::super::element::Element;
    use super::super::simd::tests::on_each;
    use super::arithmetic::Rounded;
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
        Packed::new(&Threads::new(1), outputs, inputs, |row, column, into| {
            let start = row * inputs + column;
            for (to, from) in into.iter_mut().zip(&weight[start..]) {
                *to = T::from_f32(*from);
            }
        })
    }

    /// Noise that is exact in a type.
    fn exact_noise<T: Element>(n: usize, seed: u32) -> Vec<f32> {
        let noise = noise(n, seed).into_iter();
        noise.map(|x| T::from_f32(x).to_f32()).collect()
    }

    fn check_products<T: Packable>() {
        for (rows, outputs, inputs) in [(1, 1, 1), (7, 65, 33), (13, 64, 4100), (100, 130, 70)] {
            let (x, w) = (
                exact_noise::<T>(rows * inputs, 1),
                exact_noise::<T>(outputs * inputs, 2),
            );
            let bias = noise(outputs, 3);
            let matrix = packed::<T>(outputs, inputs, &w);
            let mut out = vec![0.0; rows * outputs];
            matrix.multiply(&Threads::new(2), &x, Some(&bias), &mut out);
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
            matrix.gather(&Threads::new(2), &[outputs as u32 - 1, 0], &mut ends);
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

    /// By dot products, which are put together from what the CPU has where it has none, and on matrix units if
    /// it has them.
    #[test]
    fn activations_are_rounded_to_nearest_even_and_nothing_else() {
        type Multiply = fn(&Packed<bf16>, &Threads, &[f32], &mut [f32]);
        let exact: Multiply =
            |w, threads, x, out| w.multiply_by::<Widened>(threads, x, None, out, None);
        let mut ways: Vec<Multiply> =
            vec![|w, threads, x, out| w.multiply_by::<Rounded>(threads, x, None, out, None)];
        if bf16::tiles().is_some() {
            ways.push(|w, threads, x, out| w.multiply(threads, x, None, out));
        }
        for (rows, outputs, inputs) in [(1, 1, 1), (7, 65, 33), (40, 64, 70), (50, 130, 2100)] {
            let (x, w) = (noise(rows * inputs, 8), noise(outputs * inputs, 9));
            let matrix = packed::<bf16>(outputs, inputs, &w);
            let rounded = exact_noise::<bf16>(rows * inputs, 8);
            let product = |multiply: Multiply, x: &[f32]| {
                let mut out = vec![0.0; rows * outputs];
                multiply(&matrix, &Threads::new(2), x, &mut out);
                out
            };
            for way in &ways {
                let ours = product(*way, &x);
                assert_eq!(ours, product(*way, &rounded));
                for (ours, exact) in ours.iter().zip(product(exact, &rounded)) {
                    assert!((ours - exact).abs() < 1e-4, "{ours} and {exact}");
                }
            }
        }
    }

    fn check_rows<T: Packable>() {
        let (outputs, inputs) = (200, 2300);
        let (x, w) = (noise(300 * inputs, 4), noise(outputs * inputs, 5));
        let matrix = packed::<T>(outputs, inputs, &w);
        let mut all = vec![0.0; 300 * outputs];
        matrix.multiply(&Threads::new(1), &x, None, &mut all);
        for rows in [1, 2, 3, 5, 6, 7, 97, 299] {
            for threads in [1, 3] {
                let mut some = vec![0.0; rows * outputs];
                matrix.multiply(&Threads::new(threads), &x[..rows * inputs], None, &mut some);
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
    struct Whole<'a, T, A>(&'a Packed<T>, &'a [f32], usize, PhantomData<A>);

    impl<T: Packable, A: Arithmetic<T>> Kernel for Whole<'_, T, A> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = vec![0.0; self.2 * self.0.outputs];
            let shared = Disjoint::new(&mut out);
            for panel in 0..2 {
                let (matrix, x, rows) = (self.0, self.1, 0..self.2);
                Product::<T, A> {
                    matrix,
                    x,
                    bias: None,
                    out: &shared,
                    panel,
                    next: panel + 1,
                    rows,
                    arithmetic: PhantomData,
                }
                .run(s);
            }
            out
        }
    }

    fn check_instruction_sets<T: Packable + Clone, A: Arithmetic<T> + Clone>() {
        let (rows, outputs, inputs) = (8, 70, 91);
        let (x, w) = (noise(rows * inputs, 6), noise(outputs * inputs, 7));
        let matrix = packed::<T>(outputs, inputs, &w);
        A::prepare(&Threads::new(1), &x, inputs, |x| {
            let all = on_each(Whole::<T, A>(&matrix, x, rows, PhantomData));
            for other in &all[1..] {
                for (a, b) in all[0].iter().zip(other) {
                    assert!((a - b).abs() < 1e-5, "{a} and {b}");
                }
            }
        });
    }

    fn check_gates<T: Packable>() {
        // Halves that are whole panels, and some that are not.
        for (rows, half, inputs) in [(1, 64, 33), (100, 128, 70), (7, 65, 33)] {
            let (x, w) = (noise(rows * inputs, 10), noise(2 * half * inputs, 11));
            let bias = noise(2 * half, 12);
            let matrix = packed::<T>(2 * half, inputs, &w);
            let threads = &Threads::new(3);
            let (mut plain, mut out) = (vec![0.0; rows * 2 * half], vec![0.0; rows * 2 * half]);
            let (mut expected, mut activated) = (vec![0.0; rows * half], vec![0.0; rows * half]);
            matrix.multiply(threads, &x, Some(&bias), &mut plain);
            silu_multiply(threads, &plain, half, &mut expected);
            matrix.multiply_gated(threads, &x, Some(&bias), &mut out, &mut activated);
            assert_eq!(activated, expected);
        }
    }

    #[test]
    fn gates_are_activated_as_by_themselves() {
        check_gates::<f32>();
        check_gates::<bf16>();
        check_gates::<f16>();
    }

    #[test]
    fn instruction_sets_agree() {
        check_instruction_sets::<f32, Widened>();
        check_instruction_sets::<bf16, Widened>();
        check_instruction_sets::<bf16, Rounded>();
        check_instruction_sets::<f16, Widened>();
    }
}
