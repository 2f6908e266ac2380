//! Matrix products whose rows do not depend on each other.
//!
//! MKL and oneDNN pick their algorithm, and with it the order of their sums, by the shape of the
//! whole product, so that a token's logits change in the last bits with the number of tokens
//! beside it. Here every output is one chain of multiply-adds in `f32` over the inner dimension
//! from first to last, whatever the number of rows, the tile it falls into or the thread that
//! computes it. How a pair of inputs is taken in, and in which type, is one of two
//! [arithmetics](arithmetic), which the type of the weights and the CPU decide. Matrix units, where
//! there are any, have an order of their own, which depends on nothing else either ([tiled]).
//!
//! The weights are held once, in [panels], which are read from front to back. A tile of a few rows
//! by 64 outputs stays in registers, and a panel in the L2 cache while one such tile after the other
//! passes over it; meanwhile the next panel is brought in, so that neither memory waits for the
//! multiplier nor it for memory.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use super::activation::silu_multiply;
use super::operand::{Layout, Operand, Target};
use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, LANES, Simd, dispatch};

mod arithmetic;
mod panels;
mod tiled;

use arithmetic::{Arithmetic, Widened};
use panels::{GATES, Line, PANEL, PANEL_VECTORS};
pub use panels::{Order, Packable, Packed};

/// Lines of a slice of a panel: a quarter megabyte, to stay in the L2 cache over all rows, beside
/// the next one. Sums wait in the output between slices, which does not change them.
const DEPTH: usize = 4096;
/// Lines from the one that is multiplied to the one that is fetched when a slice is passed over for
/// the first time: 4 KiB, the distance to a page that the CPU does not fetch ahead by itself.
const AHEAD: usize = 64;
/// Rows of one task.
const ROWS: usize = 96;

thread_local! {
    /// Room for the gates of a task and what they are for.
    static ROOM: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Where the outputs of a product go.
enum Outputs<'a> {
    /// In place of what is there, row after row.
    Plain(Disjoint<'a, f32>),
    /// Onto what is there.
    Added(Disjoint<'a, f32>),
    /// Those that are gates, once activated, times those that they are for.
    Gated(Target<'a>),
}

impl<T: Packable> Packed<T> {
    /// `out[r, o] = bias[o] + sum over i of x[r, i] * weight[o, i]` for the first rows of `x`.
    ///
    /// # Panics
    /// If `out` is not of whole rows, `x` has not as many, or not as many values in each as the matrix; or if half of
    /// the outputs are gates.
    pub fn multiply(&self, threads: &Threads, x: &Operand<T>, out: &mut [f32]) {
        let rows = self.rows_in(out);
        self.compute(threads, x, rows, &Outputs::Plain(Disjoint::new(out)));
    }

    /// Adds to `out` what [`multiply`](Self::multiply) computes.
    ///
    /// # Panics
    /// As there.
    pub fn multiply_add(&self, threads: &Threads, x: &Operand<T>, out: &mut [f32]) {
        let rows = self.rows_in(out);
        self.compute(threads, x, rows, &Outputs::Added(Disjoint::new(out)));
    }

    fn rows_in(&self, out: &[f32]) -> usize {
        let rows = out.len() / self.outputs.max(1);
        assert!(!self.is_gated() && out.len() == rows * self.outputs);
        rows
    }

    /// `activated[r, i] = silu(gate[r, i]) * up[r, i]` for the first `rows` rows of `x`, where gates and ups are the first
    /// and the second half of what [`multiply`](Self::multiply) computes.
    ///
    /// # Panics
    /// As there, or if the matrix was not packed for this.
    pub fn multiply_gated(
        &self,
        threads: &Threads,
        x: &Operand<T>,
        rows: usize,
        activated: &mut Operand<T>,
    ) {
        assert!(self.is_gated() && activated.width() == self.outputs / 2);
        assert!(rows <= activated.capacity());
        self.compute(threads, x, rows, &Outputs::Gated(activated.target()));
    }

    fn compute(&self, threads: &Threads, x: &Operand<T>, rows: usize, out: &Outputs<'_>) {
        assert!(rows <= x.capacity() && x.width() == self.inputs);
        match x.layout() {
            Layout::Plain => self.multiply_by::<Widened>(threads, x, rows, out),
            Layout::Paired => self.multiply_by::<T::Dots>(threads, x, rows, out),
            Layout::Tiled(tiles) => self.multiply_on(tiles, threads, x, rows, out),
        }
    }

    fn multiply_by<A: Arithmetic<T>>(
        &self,
        threads: &Threads,
        x: &Operand<T>,
        rows: usize,
        out: &Outputs<'_>,
    ) {
        let panels = self.panels();
        threads.run(panels * rows.div_ceil(ROWS), |task| {
            let (chunk, panel) = (task / panels, task % panels);
            let rows = chunk * ROWS..rows.min((chunk + 1) * ROWS);
            let product = |sums| {
                dispatch(Product::<T, A> {
                    matrix: self,
                    x: x.words(),
                    panel,
                    next: (panel + 1) % panels,
                    rows: rows.clone(),
                    sums,
                    arithmetic: PhantomData,
                });
            };
            match out {
                Outputs::Plain(out) => product(Sums {
                    values: out,
                    origin: 0,
                    width: self.outputs,
                    first: panel * PANEL,
                }),
                Outputs::Added(_) | Outputs::Gated(_) => {
                    let mut room = ROOM.take();
                    room.resize(ROWS * PANEL, 0.0);
                    product(Sums {
                        values: &Disjoint::new(&mut room),
                        origin: rows.start,
                        width: PANEL,
                        first: 0,
                    });
                    dispatch(Finish {
                        sums: room.as_chunks().0,
                        outputs: self.outputs,
                        out,
                        rows,
                        panel,
                    });
                    ROOM.set(room);
                }
            }
        });
    }
}

/// Does with the sums of a panel what is to be done with them.
struct Finish<'a> {
    /// Those of each row.
    sums: &'a [[f32; PANEL]],
    outputs: usize,
    out: &'a Outputs<'a>,
    rows: Range<usize>,
    panel: usize,
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, sums) in self.rows.zip(self.sums) {
            match self.out {
                Outputs::Gated(target) => {
                    let (gates, ups) = sums.split_at(GATES);
                    activate(s, target, row, self.panel, gates, ups);
                }
                Outputs::Added(out) => {
                    let first = self.panel * PANEL;
                    add(out, row * self.outputs + first, self.outputs - first, sums);
                }
                Outputs::Plain(_) => unreachable!("these are where they belong at once"),
            }
        }
    }
}

/// Adds sums to what is at `start`, but those beyond a `width`.
#[inline(always)]
fn add(out: &Disjoint<'_, f32>, start: usize, width: usize, sums: &[f32]) {
    // SAFETY: a task owns the outputs of its rows in its panel.
    let out = unsafe { out.slice(start..start + width.min(sums.len())) };
    for (out, sum) in out.iter_mut().zip(sums) {
        *out += sum;
    }
}

/// Activates the gates that a row has in a panel.
#[inline(always)]
fn activate<S: Simd>(
    s: S,
    target: &Target<'_>,
    row: usize,
    panel: usize,
    gate: &[f32],
    up: &[f32],
) {
    let mut out = [0.0; GATES];
    let vectors = gate.as_chunks().0.iter().zip(up.as_chunks().0);
    for ((gate, up), out) in vectors.zip(out.as_chunks_mut().0) {
        s.store(silu_multiply(s, s.load(gate), s.load(up)), out);
    }
    let first = panel * GATES;
    let len = GATES.min(target.width() - first);
    // SAFETY: a task owns what comes of its rows in its panel.
    unsafe { target.put(s, row, first, &out[..len]) };
}

/// Where the sums of a panel go.
struct Sums<'a> {
    values: &'a Disjoint<'a, f32>,
    /// The row that is the first one there.
    origin: usize,
    /// Values of a row there, and which of them is the panel's first.
    width: usize,
    first: usize,
}

/// The outputs of one panel for some rows.
struct Product<'a, T, A> {
    matrix: &'a Packed<T>,
    /// Rows as the arithmetic takes them.
    x: &'a [f32],
    panel: usize,
    /// The panel that this thread is likely to take next.
    next: usize,
    rows: Range<usize>,
    sums: Sums<'a>,
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
                true => self.matrix.panel(self.next).as_ptr(),
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
        let words = (self.matrix.inputs * A::WORDS).div_ceil(2);
        let some = depth.start * A::WORDS..words.min(depth.end * A::WORDS);
        let x: [&[f32]; R] =
            std::array::from_fn(|r| &self.x[(row + r) * words..][..words][some.clone()]);
        let mut sums = match depth.start {
            0 => [[s.splat(0.0); V]; R],
            _ => self.begun::<S, R, V>(s, row, vector),
        };
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
        if last && let Some(bias) = &self.matrix.bias {
            let bias = &bias[self.panel].as_chunks::<LANES>().0[vector..];
            for sums in &mut sums {
                for (sum, bias) in sums.iter_mut().zip(bias) {
                    *sum = s.add(*sum, s.load(bias));
                }
            }
        }
        if self.sums.first + (vector + V) * LANES > self.sums.width {
            return self.put_edge(s, sums, row, vector);
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: this row's, of this task.
            let (out, _) = unsafe { self.part(row + r, vector, V) }.as_chunks_mut::<LANES>();
            for (sum, out) in sums.iter().zip(out) {
                s.store(*sum, out);
            }
        }
    }

    /// Where the sums of a row go, of some vectors from one on; those beyond the right edge of the matrix are left out.
    ///
    /// # Safety
    /// No two that are alive at once may overlap; a task owns those of its rows in its panel.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, row: usize, vector: usize, vectors: usize) -> &mut [f32] {
        let Sums {
            values,
            origin,
            width,
            first,
        } = self.sums;
        let [first, end] = [vector, vector + vectors].map(|v| width.min(first + v * LANES));
        let start = (row - origin) * width;
        // SAFETY: the caller's promise.
        unsafe { values.slice(start + first..start + end) }
    }

    /// The sums of a tile so far.
    #[inline(always)]
    fn begun<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        row: usize,
        vector: usize,
    ) -> [[S::V; V]; R] {
        let mut sums = [[s.splat(0.0); V]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let mut lanes = [[0.0; LANES]; V];
            // SAFETY: this row's, of this task.
            let part = unsafe { self.part(row + r, vector, V) };
            lanes.as_flattened_mut()[..part.len()].copy_from_slice(part);
            for (sum, lanes) in sums.iter_mut().zip(&lanes) {
                *sum = s.load(lanes);
            }
        }
        sums
    }

    /// Writes the sums of a tile at the right edge of the matrix.
    #[inline(always)]
    fn put_edge<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        sums: [[S::V; V]; R],
        row: usize,
        vector: usize,
    ) {
        for (r, sums) in sums.iter().enumerate() {
            let mut lanes = [[0.0; LANES]; V];
            for (lanes, sum) in lanes.iter_mut().zip(sums) {
                s.store(*sum, lanes);
            }
            // SAFETY: this row's, of this task.
            let part = unsafe { self.part(row + r, vector, V) };
            part.copy_from_slice(&lanes.as_flattened()[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::element::Element;
    use super::super::operand::tests::layouts;
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

    /// Reads a matrix that lies row after row.
    fn reader<T: Packable>(inputs: usize, weight: &[f32]) -> impl Fn(usize, usize, &mut [T]) {
        move |row, column, into| {
            let start = row * inputs + column;
            for (to, from) in into.iter_mut().zip(&weight[start..]) {
                *to = T::from_f32(*from);
            }
        }
    }

    fn packed<T: Packable>(
        outputs: usize,
        inputs: usize,
        bias: Option<&[f32]>,
        weight: &[f32],
    ) -> Packed<T> {
        let read = reader(inputs, weight);
        let threads = &Threads::new(1);
        Packed::new(threads, Order::Plain, outputs, inputs, bias, read)
    }

    fn operand<T: Packable>(layout: Layout, width: usize, rows: &[f32]) -> Operand<T> {
        let mut operand = Operand::laid_out(layout, rows.len() / width, width).unwrap();
        operand.fill(&Threads::new(1), rows);
        operand
    }

    /// Noise that is exact in a type.
    fn exact_noise<T: Element>(n: usize, seed: u32) -> Vec<f32> {
        let noise = noise(n, seed).into_iter();
        noise.map(|x| T::from_f32(x).to_f32()).collect()
    }

    fn check_products<T: Packable>(layouts: &[Layout]) {
        for (rows, outputs, inputs) in [(1, 1, 1), (7, 65, 33), (13, 64, 4100), (100, 130, 70)] {
            let (x, w) = (
                exact_noise::<T>(rows * inputs, 1),
                exact_noise::<T>(outputs * inputs, 2),
            );
            let bias = noise(outputs, 3);
            let matrix = packed::<T>(outputs, inputs, Some(&bias), &w);
            for layout in layouts {
                let x_laid_out = operand(*layout, inputs, &x);
                let mut out = vec![0.0; rows * outputs];
                matrix.multiply(&Threads::new(2), &x_laid_out, &mut out);
                let mut twice = out.clone();
                matrix.multiply_add(&Threads::new(2), &x_laid_out, &mut twice);
                assert!(out.iter().zip(twice).all(|(one, two)| 2.0 * one == two));
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
            }
            let mut ends = vec![0.0; 2 * inputs];
            matrix.gather(&Threads::new(2), &[outputs as u32 - 1, 0], &mut ends);
            let [last, first] = [&w[(outputs - 1) * inputs..], &w[..inputs]];
            assert_eq!(ends, [last, first].concat());
        }
    }

    #[test]
    fn products_are_right_for_any_shape() {
        check_products::<f32>(&[Layout::Plain]);
        check_products::<f16>(&[Layout::Plain]);
        check_products::<bf16>(&layouts());
    }

    /// By dot products, which are put together from what the CPU has where it has none, and on matrix units.
    #[test]
    fn activations_are_rounded_to_nearest_even_and_nothing_else() {
        for (rows, outputs, inputs) in [(1, 1, 1), (7, 65, 33), (40, 64, 70), (50, 130, 2100)] {
            let (x, w) = (noise(rows * inputs, 8), noise(outputs * inputs, 9));
            let matrix = packed::<bf16>(outputs, inputs, None, &w);
            let rounded = exact_noise::<bf16>(rows * inputs, 8);
            let product = |layout: Layout, x: &[f32]| {
                let mut out = vec![0.0; rows * outputs];
                matrix.multiply(&Threads::new(2), &operand(layout, inputs, x), &mut out);
                out
            };
            let exact = product(Layout::Plain, &rounded);
            for layout in &layouts()[1..] {
                let ours = product(*layout, &x);
                assert_eq!(ours, product(*layout, &rounded));
                for (ours, exact) in ours.iter().zip(&exact) {
                    assert!((ours - exact).abs() < 1e-4, "{ours} and {exact}");
                }
            }
        }
    }

    fn check_rows<T: Packable>(layouts: &[Layout]) {
        let (outputs, inputs) = (200, 2300);
        let (x, w) = (noise(300 * inputs, 4), noise(outputs * inputs, 5));
        let matrix = packed::<T>(outputs, inputs, None, &w);
        for layout in layouts {
            let x = operand(*layout, inputs, &x);
            let mut all = vec![0.0; 300 * outputs];
            matrix.multiply(&Threads::new(1), &x, &mut all);
            for rows in [1, 2, 3, 5, 6, 7, 17, 97, 299] {
                for threads in [1, 3] {
                    let mut some = vec![0.0; rows * outputs];
                    matrix.multiply(&Threads::new(threads), &x, &mut some);
                    assert_eq!(
                        some,
                        all[..rows * outputs],
                        "{rows} rows on {threads} threads"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours_or_threads() {
        check_rows::<f32>(&[Layout::Plain]);
        check_rows::<f16>(&[Layout::Plain]);
        check_rows::<bf16>(&layouts());
    }

    #[derive(Clone)]
    struct Whole<'a, T, A>(&'a Packed<T>, &'a Operand<T>, usize, PhantomData<A>);

    impl<T: Packable, A: Arithmetic<T>> Kernel for Whole<'_, T, A> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let Whole(matrix, x, rows, _) = self;
            let mut out = vec![0.0; rows * matrix.outputs];
            let shared = Disjoint::new(&mut out);
            for panel in 0..2 {
                Product::<T, A> {
                    matrix,
                    x: x.words(),
                    panel,
                    next: 0,
                    rows: 0..rows,
                    sums: Sums {
                        values: &shared,
                        origin: 0,
                        width: matrix.outputs,
                        first: panel * PANEL,
                    },
                    arithmetic: PhantomData,
                }
                .run(s);
            }
            out
        }
    }

    fn check_instruction_sets<T: Packable, A: Arithmetic<T> + Clone>(layout: Layout) {
        let (rows, outputs, inputs) = (8, 70, 91);
        let (x, w) = (noise(rows * inputs, 6), noise(outputs * inputs, 7));
        let matrix = packed::<T>(outputs, inputs, None, &w);
        let x = operand(layout, inputs, &x);
        let all = on_each(Whole::<T, A>(&matrix, &x, rows, PhantomData));
        for other in &all[1..] {
            for (a, b) in all[0].iter().zip(other) {
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
        }
    }

    #[test]
    fn instruction_sets_agree() {
        check_instruction_sets::<f32, Widened>(Layout::Plain);
        check_instruction_sets::<f16, Widened>(Layout::Plain);
        check_instruction_sets::<bf16, Widened>(Layout::Plain);
        check_instruction_sets::<bf16, Rounded>(Layout::Paired);
    }

    /// What products take in, as they would compute it with the unit matrix.
    fn read_back<T: Packable>(operand: &Operand<T>, rows: usize) -> Vec<f32> {
        let width = operand.width();
        let mut unit = vec![0.0; width * width];
        (0..width).for_each(|i| unit[i * width + i] = 1.0);
        let mut out = vec![0.0; rows * width];
        let unit = packed::<T>(width, width, None, &unit);
        unit.multiply(&Threads::new(1), operand, &mut out);
        out
    }

    /// Gates of a row, what they are for, and what comes of them.
    struct Gated<'a> {
        gate: &'a [f32],
        up: &'a [f32],
        out: &'a mut [f32],
    }

    impl Kernel for Gated<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let parts = self.gate.chunks(LANES).zip(self.up.chunks(LANES));
            for ((gate, up), out) in parts.zip(self.out.chunks_mut(LANES)) {
                let (mut gates, mut ups) = ([0.0; LANES], [0.0; LANES]);
                gates[..gate.len()].copy_from_slice(gate);
                ups[..up.len()].copy_from_slice(up);
                let lanes = s.to_array(silu_multiply(s, s.load(&gates), s.load(&ups)));
                out.copy_from_slice(&lanes[..out.len()]);
            }
        }
    }

    fn check_gates<T: Packable>(layouts: &[Layout]) {
        // Halves that are whole panels of gates, and some that are not.
        for (rows, half, inputs) in [(1, 32, 33), (100, 128, 70), (7, 65, 33), (40, 3, 2)] {
            let (x, w) = (noise(rows * inputs, 10), noise(2 * half * inputs, 11));
            let bias = noise(2 * half, 12);
            let threads = &Threads::new(3);
            for bias in [None, Some(bias.as_slice())] {
                let plain = packed::<T>(2 * half, inputs, bias, &w);
                let read = reader(inputs, &w);
                let gated = Packed::<T>::new(threads, Order::Gated, 2 * half, inputs, bias, read);
                for layout in layouts {
                    let x = operand(*layout, inputs, &x);
                    let mut sums = vec![0.0; rows * 2 * half];
                    plain.multiply(threads, &x, &mut sums);
                    let mut expected = vec![0.0; rows * half];
                    for (sums, out) in sums.chunks(2 * half).zip(expected.chunks_mut(half)) {
                        let (gate, up) = sums.split_at(half);
                        dispatch(Gated { gate, up, out });
                    }
                    let expected = operand::<T>(*layout, half, &expected);
                    let mut activated = Operand::laid_out(*layout, rows, half).unwrap();
                    gated.multiply_gated(threads, &x, rows, &mut activated);
                    assert_eq!(read_back(&activated, rows), read_back(&expected, rows));
                }
            }
        }
    }

    #[test]
    fn gates_are_activated_as_by_themselves() {
        check_gates::<f32>(&[Layout::Plain]);
        check_gates::<f16>(&[Layout::Plain]);
        check_gates::<bf16>(&layouts());
    }
}
