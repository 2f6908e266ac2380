//! Rows of activations, between what computes them and the products that take them in.
//!
//! Products with `bf16` take activations rounded, in pairs or in tiles. They are rounded and put in place where
//! they are computed, so that they go through memory once and at half the size.

use std::io;
use std::marker::PhantomData;

use half::bf16;

use super::element::round;
use super::gemm::Packable;
use super::mapping::Zeroed;
use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, Simd, dispatch, has_fast_dots};
use super::tiles::{DEPTH, Rows, TILE, Tiles};

/// How rows lie in memory.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// `f32`, row after row.
    Plain,
    /// `bf16`, row after row, each padded to whole pairs by a zero.
    Paired,
    /// `bf16`, for each sixteen rows one [tile](Rows) after the other, the last one padded by zeros. Rows that the
    /// last tiles have too many are whatever they were, and nobody reads what is computed for them.
    Tiled(Tiles),
}

impl Layout {
    /// What products with `T` take on this CPU. It is the same for any number of rows, so that a row is computed the
    /// same in every company.
    fn of<T: Packable>() -> Layout {
        match T::tiles() {
            Some(tiles) => Layout::Tiled(tiles),
            None if has_fast_dots() => T::PREPARED,
            None => Layout::Plain,
        }
    }

    /// What a row consists of: how many runs, and of how many 32-bit words each.
    fn runs(self, width: usize) -> (usize, usize) {
        match self {
            Layout::Plain => (1, width),
            Layout::Paired => (1, width.div_ceil(2)),
            Layout::Tiled(_) => (width.div_ceil(DEPTH), DEPTH / 2),
        }
    }

    /// The word at which a run of a row begins, of rows of so many [runs](Self::runs).
    fn start(self, (runs, words): (usize, usize), row: usize, run: usize) -> usize {
        match self {
            Layout::Plain | Layout::Paired => row * words,
            Layout::Tiled(_) => ((row / TILE * runs + run) * TILE + row % TILE) * words,
        }
    }
}

/// Room for rows that are multiplied with weights of type `T`.
pub struct Operand<T> {
    /// Words: an `f32`, or two `bf16` of which the first is in the low half.
    words: Zeroed<f32>,
    layout: Layout,
    rows: usize,
    width: usize,
    element: PhantomData<T>,
}

impl<T: Packable> Operand<T> {
    /// Zeros, `[rows, width]`.
    ///
    /// # Errors
    /// If the system has no address space for them.
    pub fn new(rows: usize, width: usize) -> io::Result<Operand<T>> {
        Operand::laid_out(Layout::of::<T>(), rows, width)
    }

    /// The same in another layout.
    pub(super) fn laid_out(layout: Layout, rows: usize, width: usize) -> io::Result<Operand<T>> {
        let (runs, words) = layout.runs(width);
        let rows = rows.next_multiple_of(TILE);
        Ok(Operand {
            words: Zeroed::new(rows * runs * words)?,
            layout,
            rows,
            width,
            element: PhantomData,
        })
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// For how many rows there is room.
    pub(super) fn capacity(&self) -> usize {
        self.rows
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// All rows, of which each is one run.
    pub(super) fn words(&self) -> &[f32] {
        self.words.as_slice()
    }

    /// All tiles.
    ///
    /// # Panics
    /// In another layout there may be none.
    pub(super) fn tiles(&self) -> &[Rows] {
        bytemuck::cast_slice(self.words.as_slice())
    }

    /// Where rows are to be written.
    pub fn target(&mut self) -> Target<'_> {
        let words = self.words.as_mut_slice();
        Target {
            values: match self.layout {
                Layout::Plain => Values::Plain(Disjoint::new(words)),
                Layout::Paired => Values::Paired(Disjoint::new(bytemuck::cast_slice_mut(words))),
                Layout::Tiled(_) => Values::Tiled(Disjoint::new(bytemuck::cast_slice_mut(words))),
            },
            width: self.width,
        }
    }

    /// Takes in rows, one after the other.
    ///
    /// # Panics
    /// If they are no whole rows, or too many.
    pub fn fill(&mut self, threads: &Threads, rows: &[f32]) {
        let width = self.width.max(1);
        assert!(rows.len().is_multiple_of(width) && rows.len() <= self.rows * self.width);
        let target = &self.target();
        threads.run(rows.len() / width, |row| {
            let values = &rows[row * width..][..width];
            dispatch(Fill {
                target,
                row,
                values,
            });
        });
    }

    /// Moves the rows whose numbers are in `wanted`, which ascend, to the front.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn keep(&mut self, wanted: &[usize]) {
        let runs = self.layout.runs(self.width);
        let words = self.words.as_mut_slice();
        for (to, from) in wanted.iter().enumerate() {
            for run in 0..runs.0 {
                let [to, from] = [to, *from].map(|row| self.layout.start(runs, row, run));
                words.copy_within(from..from + runs.1, to);
            }
        }
    }
}

struct Fill<'a> {
    target: &'a Target<'a>,
    row: usize,
    values: &'a [f32],
}

impl Kernel for Fill<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: each row is written by its own task.
        unsafe { self.target.put(s, self.row, 0, self.values) };
    }
}

/// Rows that tasks write, each its own parts.
pub struct Target<'a> {
    values: Values<'a>,
    width: usize,
}

enum Values<'a> {
    Plain(Disjoint<'a, f32>),
    Paired(Disjoint<'a, bf16>),
    Tiled(Disjoint<'a, bf16>),
}

impl<'a> Target<'a> {
    /// Rows of `width` values, one after the other.
    pub fn plain(rows: &'a mut [f32], width: usize) -> Target<'a> {
        let values = Values::Plain(Disjoint::new(rows));
        Target { values, width }
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Writes the values of a row from a column on.
    ///
    /// # Safety
    /// No two tasks may write the same value at once.
    ///
    /// # Panics
    /// If there is no such row, or it has not as many.
    #[inline(always)]
    pub(super) unsafe fn put<S: Simd>(&self, s: S, row: usize, column: usize, values: &[f32]) {
        let (width, len) = (self.width, values.len());
        assert!(column + len <= width);
        // Columns of a row have places of their own in every layout.
        match &self.values {
            Values::Plain(rows) => {
                let start = row * width + column;
                // SAFETY: the caller's promise.
                unsafe { rows.slice(start..start + len) }.copy_from_slice(values);
            }
            Values::Paired(rows) => {
                let start = row * width.next_multiple_of(2) + column;
                // SAFETY: the caller's promise.
                round(s, values, unsafe { rows.slice(start..start + len) });
            }
            Values::Tiled(rows) => {
                let steps = width.div_ceil(DEPTH);
                let mut rest = values;
                while !rest.is_empty() {
                    let column = column + len - rest.len();
                    let (some, others) = rest.split_at(rest.len().min(DEPTH - column % DEPTH));
                    let tile = row / TILE * steps + column / DEPTH;
                    let start = (tile * TILE + row % TILE) * DEPTH + column % DEPTH;
                    // SAFETY: the caller's promise.
                    round(s, some, unsafe { rows.slice(start..start + some.len()) });
                    rest = others;
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::element::Element;
    use super::*;

    /// Every layout that some CPU has for `bf16`, where this one can run it.
    pub(crate) fn layouts() -> Vec<Layout> {
        let tiles = Tiles::of_any_cpu().map(Layout::Tiled);
        [Layout::Plain, Layout::Paired]
            .into_iter()
            .chain(tiles)
            .collect()
    }

    /// A row, read back.
    fn row(operand: &Operand<bf16>, row: usize) -> Vec<f32> {
        let runs = operand.layout.runs(operand.width);
        let words = (0..runs.0)
            .flat_map(|run| &operand.words()[operand.layout.start(runs, row, run)..][..runs.1]);
        match operand.layout {
            Layout::Plain => words.copied().collect(),
            _ => words
                .flat_map(|word| {
                    let halves: [bf16; 2] = bytemuck::cast(*word);
                    halves.map(Element::to_f32)
                })
                .collect(),
        }
    }

    #[test]
    fn rows_are_where_they_are_looked_for() {
        let threads = &Threads::new(2);
        for layout in layouts() {
            for width in [1, 31, 64, 75] {
                let mut operand = Operand::<bf16>::laid_out(layout, 35, width).unwrap();
                // Whole numbers that are exact in `bf16`.
                let value = |row: usize, column: usize| ((row * 7 + column) % 251) as f32;
                let rows: Vec<f32> = (0..35 * width)
                    .map(|i| value(i / width, i % width))
                    .collect();
                operand.fill(threads, &rows);
                let check = |operand: &Operand<bf16>, at: usize, number: usize| {
                    let found = row(operand, at);
                    assert_eq!(found[..width], rows[number * width..][..width]);
                    assert!(found[width..].iter().all(|padding| *padding == 0.0));
                };
                (0..35).for_each(|number| check(&operand, number, number));
                let wanted = [0, 2, 15, 16, 34];
                operand.keep(&wanted);
                for (at, number) in wanted.iter().enumerate() {
                    check(&operand, at, *number);
                }
                // A part of a row that begins and ends within a tile.
                let target = operand.target();
                if width > 40 {
                    let part = [1.0; 11];
                    // SAFETY: one task.
                    unsafe { target.put(super::super::simd::Portable, 17, 29, &part) };
                    let found = row(&operand, 17);
                    assert_eq!(found[29..40], part);
                    assert_eq!(found[..29], rows[17 * width..][..29]);
                    assert_eq!(found[40..width], rows[17 * width..][40..width]);
                }
            }
        }
    }
}
