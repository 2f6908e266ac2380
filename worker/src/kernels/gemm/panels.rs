//! Weights as products read them: in panels of 64 outputs by all inputs, from front to back.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::arithmetic::{Arithmetic, Rounded, Widened};
use crate::kernels::element::Element;
use crate::kernels::mapping::zeros_in_huge_pages;
use crate::kernels::operand::Layout;
use crate::kernels::parallel::Threads;
use crate::kernels::simd::{LANES, Simd};
use crate::kernels::tiles;

/// Outputs of a panel, in vectors and in values.
pub(super) const PANEL_VECTORS: usize = 4;
pub(super) const PANEL: usize = PANEL_VECTORS * LANES;
/// Gates of a panel, where half of its outputs are.
pub(super) const GATES: usize = PANEL / 2;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "halves of lanes are laid out so"
);

/// One cache line of weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub(super) [f32; LANES]);

/// A type of weights: how a *pair*, the weights of a panel's outputs for two inputs, lies in lines.
pub trait Packable: Element {
    /// Lines of a pair.
    const LINES: usize;
    /// Panels are padded to a multiple of so many pairs.
    const PAIRS: usize = 1;
    /// How pairs are multiplied where the CPU has fast dot products of them.
    #[doc(hidden)]
    #[allow(private_bounds)]
    type Dots: Arithmetic<Self>;
    /// How activations lie for these.
    #[doc(hidden)]
    #[allow(private_interfaces)]
    const PREPARED: Layout = Layout::Plain;
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
    type Dots = Widened;
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
    const PAIRS: usize = tiles::DEPTH / 2;
    type Dots = Rounded;
    const PREPARED: Layout = Layout::Paired;
    // Both weights of an output are one lane of 32 bits, the first in its low half: to widen one
    // is a shift or a mask, and dot products take pairs so.
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
    type Dots = Widened;
    fn place(output: usize, half: usize) -> (usize, usize) {
        (output / LANES, half * LANES + output % LANES)
    }
    #[inline(always)]
    fn widen<S: Simd, const HALF: usize>(s: S, pair: &[Line], vector: usize) -> S::V {
        let halves: &[[f16; LANES]; 2] = bytemuck::cast_ref(&pair[vector].0);
        s.load_f16(&halves[HALF])
    }
}

/// Which outputs a panel has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    /// The next 64.
    Plain,
    /// The next 32 of the first half of the matrix, and those of the second half that belong to them.
    Gated,
}

/// A weight matrix `[outputs, inputs]` with its bias, if any, in panels, padded with zeros to whole panels, and to
/// whole pairs or, where units take in more, as many.
pub struct Packed<T> {
    lines: Vec<Line>,
    /// In the order of panels.
    pub(super) bias: Option<Vec<[f32; PANEL]>>,
    order: Order,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    element: PhantomData<T>,
}

impl<T: Packable> Packed<T> {
    /// Packs a matrix. `read(row, column, into)` fills `into` with the values of `row` from
    /// `column` on; it is called for every part of the matrix once, on any thread.
    ///
    /// # Panics
    /// If there are not as many biases as outputs, or gated outputs have no halves.
    pub fn new(
        threads: &Threads,
        order: Order,
        outputs: usize,
        inputs: usize,
        bias: Option<&[f32]>,
        read: impl Fn(usize, usize, &mut [T]) + Sync,
    ) -> Self {
        assert!(order == Order::Plain || outputs.is_multiple_of(2));
        let panel_lines = Self::panel_lines(inputs);
        let mut packed = Packed {
            lines: Vec::new(),
            bias: None,
            order,
            outputs,
            inputs,
            element: PhantomData,
        };
        let panels = packed.panels();
        packed.bias = bias.map(|bias| {
            assert!(bias.len() == outputs);
            let of = |panel, place| {
                packed
                    .output(panel, place)
                    .map_or(0.0, |output| bias[output])
            };
            let of = |panel| std::array::from_fn(|place| of(panel, place));
            (0..panels).map(of).collect()
        });
        let mut lines = zeros_in_huge_pages(panels * panel_lines, Line([0.0; LANES]));
        let mut by_panel: Vec<_> = lines.chunks_mut(panel_lines.max(1)).enumerate().collect();
        threads.for_each(&mut by_panel, |(panel, lines)| {
            // In squares, so that both sides of the transposition stay in the L1 cache.
            let mut square = [T::zeroed(); PANEL];
            for column in (0..inputs).step_by(PANEL) {
                let columns = PANEL.min(inputs - column);
                for place in 0..PANEL {
                    let Some(output) = packed.output(*panel, place) else {
                        continue;
                    };
                    read(output, column, &mut square[..columns]);
                    for (i, value) in square[..columns].iter().enumerate() {
                        let (line, place) = T::place(place, i % 2);
                        let line = &mut lines[(column + i) / 2 * T::LINES + line].0;
                        bytemuck::cast_slice_mut(line)[place] = *value;
                    }
                }
            }
        });
        packed.lines = lines;
        packed
    }

    /// Which output has a place in a panel, if one has.
    fn output(&self, panel: usize, place: usize) -> Option<usize> {
        match self.order {
            Order::Plain => Some(panel * PANEL + place).filter(|output| *output < self.outputs),
            Order::Gated => {
                let (half, gate) = (self.outputs / 2, panel * GATES + place % GATES);
                (gate < half).then_some(gate + place / GATES * half)
            }
        }
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Whether half of the outputs are gates.
    pub(super) fn is_gated(&self) -> bool {
        self.order == Order::Gated
    }

    /// How many panels there are.
    pub(super) fn panels(&self) -> usize {
        match self.order {
            Order::Plain => self.outputs.div_ceil(PANEL),
            Order::Gated => (self.outputs / 2).div_ceil(GATES),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice()) + self.bias.as_deref().map_or(0, size_of_val)
    }

    fn panel_lines(inputs: usize) -> usize {
        inputs.div_ceil(2).next_multiple_of(T::PAIRS) * T::LINES
    }

    /// The lines of a panel.
    pub(super) fn panel(&self, panel: usize) -> &[Line] {
        let lines = Self::panel_lines(self.inputs);
        &self.lines[panel * lines..][..lines]
    }

    /// Copies rows of the matrix one after the other, which is how tied embeddings are looked up.
    ///
    /// # Panics
    /// If there is no such row, `into` has not room for exactly these rows, or half of the outputs are gates.
    pub fn gather(&self, threads: &Threads, rows: &[u32], into: &mut [f32]) {
        assert!(into.len() == rows.len() * self.inputs && self.order == Order::Plain);
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
}
