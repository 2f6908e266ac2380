//! Products on matrix units. Activations are rounded to `bf16`, to nearest even, once for each product, as dot
//! products have them; which rows share a tile changes nothing for any of them.

use std::cell::Cell;
use std::ops::Range;

use super::panels::{Line, PANEL, Packable, Packed};
use crate::kernels::element;
use crate::kernels::parallel::{Disjoint, Threads};
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch};
use crate::kernels::tiles::{Configured, DEPTH, Product, Rows, Shapes, TILE, Tiles};

/// Rows of one task, at most: weights are read as many times as rows are divided by this.
const ROWS: usize = 512;
/// Tasks that every thread gets where there are rows enough, so that all end together.
const TASKS: usize = 8;
/// Rows from which on outputs are written past the caches, which they would not stay in.
const MANY: usize = 64;
/// Lines of a panel for a step.
const STEP: usize = PANEL / LANES * TILE;
/// How far ahead a panel is brought in that is not multiplied with enough rows for that.
const AHEAD: usize = 16 << 10;

thread_local! {
    /// Room for rounded rows, kept from one product to the next.
    static ROOM: Cell<Vec<Rows>> = const { Cell::new(Vec::new()) };
}

impl<T: Packable> Packed<T> {
    /// What [`multiply`](Self::multiply) computes.
    pub(super) fn multiply_on(
        &self,
        tiles: Tiles,
        threads: &Threads,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let rows = x.len() / self.inputs.max(1);
        let mut rounded = ROOM.take();
        round(threads, x, self.inputs, &mut rounded);
        let panels = self.outputs.div_ceil(PANEL);
        let mut most = ROWS;
        while most > 2 * TILE && panels * rows.div_ceil(most) < TASKS * threads.count() as usize {
            most /= 2;
        }
        let out = Disjoint::new(out);
        threads.run(panels * rows.div_ceil(most), |task| {
            let (chunk, panel) = (task / panels, task % panels);
            dispatch(Part {
                tiles,
                matrix: self,
                rounded: &rounded,
                bias,
                out: &out,
                panel,
                next: panel + threads.count() as usize,
                rows: chunk * most..rows.min((chunk + 1) * most),
            });
        });
        ROOM.set(rounded);
    }
}

/// Rounds rows into tiles: of each sixteen rows one for every step. Rows that are missing in the last ones are
/// whatever they were, and nobody reads what is computed for them.
fn round(threads: &Threads, x: &[f32], inputs: usize, into: &mut Vec<Rows>) {
    let steps = inputs.div_ceil(DEPTH);
    let blocks = (x.len() / inputs.max(1)).div_ceil(TILE);
    if into.len() < blocks * steps {
        into.resize(blocks * steps, Rows::ZERO);
    }
    let mut blocks: Vec<_> = into
        .chunks_mut(steps.max(1))
        .zip(x.chunks(TILE * inputs))
        .collect();
    threads.for_each(&mut blocks, |(into, x)| {
        for (row, x) in x.chunks(inputs).enumerate() {
            dispatch(Round { x, row, into });
        }
    });
}

/// Rounds a row.
struct Round<'a> {
    x: &'a [f32],
    row: usize,
    into: &'a mut [Rows],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (steps, rest) = self.x.as_chunks::<DEPTH>();
        for (step, into) in steps.iter().zip(&mut *self.into) {
            element::round(s, step, &mut into.0[self.row]);
        }
        if !rest.is_empty() {
            let mut last = [0.0; DEPTH];
            last[..rest.len()].copy_from_slice(rest);
            element::round(s, &last, &mut self.into[steps.len()].0[self.row]);
        }
    }
}

/// The outputs of one panel for some rows.
struct Part<'a, T> {
    tiles: Tiles,
    matrix: &'a Packed<T>,
    rounded: &'a [Rows],
    bias: Option<&'a [f32]>,
    out: &'a Disjoint<'a, f32>,
    panel: usize,
    /// The panel that this thread is likely to take next; there may be none of that number.
    next: usize,
    rows: Range<usize>,
}

impl<T: Packable> Kernel for Part<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let units = self.tiles.configure(&Shapes::WHOLE);
        let mut ahead = self.ahead();
        for row in self.rows.clone().step_by(2 * TILE) {
            if self.rows.end - row > TILE {
                for half in 0..2 {
                    let columns = half * PANEL / 2..(half + 1) * PANEL / 2;
                    self.pass(s, &units, row, 2 * TILE, columns, &mut ahead);
                }
            } else {
                self.pass(s, &units, row, TILE, 0..PANEL, &mut ahead);
            }
        }
        drop(units);
        s.fence();
    }
}

impl<T: Packable> Part<'_, T> {
    /// What to bring in meanwhile: the rest of the panel where it is passed over once or twice, and the next one
    /// where it stays in a cache.
    fn ahead(&self) -> Ahead {
        match self.rows.len().div_ceil(2 * TILE) {
            ..=1 => Ahead {
                line: self.matrix.start(self.panel).wrapping_byte_add(AHEAD),
                lines: STEP,
                passes: 1,
            },
            pairs => Ahead {
                line: self.matrix.start(self.next),
                lines: STEP.div_ceil(2 * pairs),
                passes: 2 * pairs,
            },
        }
    }

    /// `rows` rows from `row` on by some columns of the panel: as many as units multiply at once.
    #[inline(always)]
    fn pass<S: Simd>(
        &self,
        s: S,
        units: &Configured,
        row: usize,
        rows: usize,
        columns: Range<usize>,
        ahead: &mut Ahead,
    ) {
        let steps = self.matrix.inputs.div_ceil(DEPTH);
        let block = |block: usize| self.rounded[block * steps..][..steps].as_ptr();
        let first = row / TILE;
        let panel = &self.matrix.panel(self.panel)[columns.start / LANES..];
        let (line, lines) = ahead.next(steps);
        let mut sums = Sums([0.0; 2 * TILE * PANEL / 2]);
        let sums = &mut sums.0[..rows * columns.len()];
        let product = Product {
            rows: [block(first), block(first + rows / TILE - 1)],
            panel: panel.as_ptr().cast(),
            steps,
            sums: sums.as_mut_ptr(),
            ahead: line.cast(),
            lines,
        };
        // SAFETY: the units are configured for whole tiles; rows and panel have all steps, and the sums are those of
        // all rows and columns.
        unsafe {
            match rows {
                TILE => units.by_panel(&product),
                _ => units.by_half_panel(&product),
            }
        }
        self.write(s, row, &columns, sums);
    }

    /// Writes sums to the output, but those of rows or columns that it does not have.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize, columns: &Range<usize>, sums: &[f32]) {
        let outputs = self.matrix.outputs;
        let first = self.panel * PANEL + columns.start;
        let width = columns.len().min(outputs.saturating_sub(first));
        let many = self.rows.len() >= MANY;
        for (r, sums) in sums.chunks_exact(columns.len()).enumerate() {
            if row + r == self.rows.end || width == 0 {
                return;
            }
            let start = (row + r) * outputs + first;
            // SAFETY: a task owns the outputs of its rows in its panel.
            let out = unsafe { self.out.slice(start..start + width) };
            let (vectors, rest) = out.as_chunks_mut::<LANES>();
            let (from, last) = sums[..width].as_chunks::<LANES>();
            for (i, (from, to)) in from.iter().zip(vectors).enumerate() {
                let mut sum = s.load(from);
                if let Some(bias) = self.bias {
                    let bias = bias[first + i * LANES..].first_chunk();
                    sum = bias.map_or(sum, |bias| s.add(sum, s.load(bias)));
                }
                match many {
                    true => s.store_past_caches(sum, to),
                    false => s.store(sum, to),
                }
            }
            for (i, (from, to)) in last.iter().zip(rest).enumerate() {
                let bias = self.bias.map(|bias| bias[first + width - last.len() + i]);
                *to = from + bias.unwrap_or(0.0);
            }
        }
    }
}

/// What a pass computes: a row after the other.
#[repr(align(64))]
struct Sums([f32; 2 * TILE * PANEL / 2]);

/// Memory to bring in.
struct Ahead {
    line: *const Line,
    /// Lines for each step.
    lines: usize,
    /// How many passes are to bring in some.
    passes: usize,
}

impl Ahead {
    /// Where a pass of so many steps begins, and how many lines it brings in for each.
    fn next(&mut self, steps: usize) -> (*const Line, usize) {
        let line = self.line;
        if self.passes == 0 {
            return (line, 0);
        }
        self.passes -= 1;
        self.line = line.wrapping_add(steps * self.lines);
        (line, self.lines)
    }
}
