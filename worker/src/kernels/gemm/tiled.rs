//! Products on matrix units, of activations in tiles; which rows share a tile changes nothing for any of them.

use std::ops::Range;

use super::panels::{GATES, Line, PANEL, Packable, Packed};
use super::{Outputs, activate, add};
use crate::kernels::operand::Operand;
use crate::kernels::parallel::Threads;
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
/// Outputs of half a panel.
const HALF: usize = PANEL / 2;

const _: () = assert!(GATES == HALF, "gates are a half of a panel");

impl<T: Packable> Packed<T> {
    /// What products compute.
    pub(super) fn multiply_on(
        &self,
        tiles: Tiles,
        threads: &Threads,
        x: &Operand<T>,
        rows: usize,
        out: &Outputs<'_>,
    ) {
        let panels = self.panels();
        let mut most = ROWS;
        while most > 2 * TILE && panels * rows.div_ceil(most) < TASKS * threads.count() as usize {
            most /= 2;
        }
        threads.run(panels * rows.div_ceil(most), |task| {
            let (chunk, panel) = (task / panels, task % panels);
            dispatch(Part {
                tiles,
                matrix: self,
                x: x.tiles(),
                out,
                panel,
                next: (panel + 1) % panels,
                rows: chunk * most..rows.min((chunk + 1) * most),
            });
        });
    }
}

/// The outputs of one panel for some rows.
struct Part<'a, T> {
    tiles: Tiles,
    matrix: &'a Packed<T>,
    x: &'a [Rows],
    out: &'a Outputs<'a>,
    panel: usize,
    /// The panel that this thread is likely to take next.
    next: usize,
    rows: Range<usize>,
}

impl<T: Packable> Kernel for Part<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let units = self.tiles.configure(&Shapes::WHOLE);
        let mut ahead = self.ahead();
        let mut sums = Sums([[0.0; HALF]; 4 * TILE]);
        for row in self.rows.clone().step_by(2 * TILE) {
            let rows = row..self.rows.end.min(row + 2 * TILE);
            if rows.len() > TILE {
                for half in 0..2 {
                    self.pass(&units, row, 2 * TILE, half, &mut ahead, &mut sums);
                }
                for (r, row) in rows.enumerate() {
                    self.write(s, row, [&sums.0[r], &sums.0[2 * TILE + r]]);
                }
            } else {
                self.pass(&units, row, TILE, 0, &mut ahead, &mut sums);
                for (r, row) in rows.enumerate() {
                    self.write(s, row, [&sums.0[2 * r], &sums.0[2 * r + 1]]);
                }
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
        let panel = |panel| self.matrix.panel(panel).as_ptr();
        match self.rows.len().div_ceil(2 * TILE) {
            ..=1 => Ahead {
                line: panel(self.panel).wrapping_byte_add(AHEAD),
                lines: STEP,
                passes: 1,
            },
            pairs => Ahead {
                line: panel(self.next),
                lines: STEP.div_ceil(2 * pairs),
                passes: 2 * pairs,
            },
        }
    }

    /// As many rows from `row` on as units multiply at once: two tiles of rows by one `half` of the panel, whose sums go
    /// to one half of `sums`, or one tile by all of it.
    #[inline(always)]
    fn pass(
        &self,
        units: &Configured,
        row: usize,
        rows: usize,
        half: usize,
        ahead: &mut Ahead,
        sums: &mut Sums,
    ) {
        let steps = self.matrix.inputs.div_ceil(DEPTH);
        assert!(steps > 0, "a product over nothing");
        let tiles = |tile: usize| self.x[tile * steps..][..steps].as_ptr();
        let first = row / TILE;
        let panel = &self.matrix.panel(self.panel)[half * HALF / LANES..];
        let (line, lines) = ahead.next(steps);
        let sums = &mut sums.0[half * 2 * TILE..][..2 * TILE];
        let product = Product {
            rows: [tiles(first), tiles(first + rows / TILE - 1)],
            panel: panel.as_ptr().cast(),
            steps,
            sums: sums.as_flattened_mut().as_mut_ptr(),
            ahead: line.cast(),
            lines,
        };
        // SAFETY: the units are configured for whole tiles; rows and panel have all steps, and there is room for 32 rows
        // of half a panel, or half as many of a whole one.
        unsafe {
            match rows {
                TILE => units.by_panel(&product),
                _ => units.by_half_panel(&product),
            }
        }
    }

    /// Writes the sums of a row, of both halves of the panel, to where they go.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize, sums: [&[f32; HALF]; 2]) {
        let Some(bias) = &self.matrix.bias else {
            return self.write_whole(s, row, sums);
        };
        let (bias, _) = bias[self.panel].as_chunks::<HALF>();
        let mut whole = [*sums[0], *sums[1]];
        for (sums, bias) in whole.iter_mut().zip(bias) {
            for (sum, bias) in sums.iter_mut().zip(bias) {
                *sum += bias;
            }
        }
        self.write_whole(s, row, [&whole[0], &whole[1]]);
    }

    #[inline(always)]
    fn write_whole<S: Simd>(&self, s: S, row: usize, sums: [&[f32; HALF]; 2]) {
        let outputs = self.matrix.outputs;
        let out = match self.out {
            Outputs::Plain(out) => out,
            Outputs::Added(out) => {
                for (half, sums) in sums.into_iter().enumerate() {
                    let first = self.panel * PANEL + half * HALF;
                    if first < outputs {
                        add(out, row * outputs + first, outputs - first, sums);
                    }
                }
                return;
            }
            Outputs::Gated(target) => {
                return activate(s, target, row, self.panel, sums[0], sums[1]);
            }
        };
        let many = self.rows.len() >= MANY;
        for (half, sums) in sums.into_iter().enumerate() {
            let first = self.panel * PANEL + half * HALF;
            if first >= outputs {
                return;
            }
            let width = HALF.min(outputs - first);
            let start = row * outputs + first;
            // SAFETY: a task owns the outputs of its rows in its panel.
            let out = unsafe { out.slice(start..start + width) };
            let (vectors, rest) = out.as_chunks_mut::<LANES>();
            let (from, last) = sums[..width].as_chunks::<LANES>();
            for (from, to) in from.iter().zip(vectors) {
                match many {
                    true => s.store_past_caches(s.load(from), to),
                    false => s.store(s.load(from), to),
                }
            }
            rest.copy_from_slice(last);
        }
    }
}

/// What passes compute.
#[repr(align(64))]
struct Sums([[f32; HALF]; 4 * TILE]);

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
