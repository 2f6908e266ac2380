//! Rows in fp8.

use bytemuck::NoUninit;

use crate::catalogue::{Source, source};
use crate::launch::{Check, run};
use crate::{Element, Kernel, LaunchError, Launcher, Memory, Unit};

const SOURCE: Source = source!("quantize.cu");
const QUANTIZE_ROWS: &str = "quantize_rows";

/// For the only type that products of fp8 come out in.
const UNIT: Unit = Unit {
    source: SOURCE,
    element: Element::Bf16,
    head_dim: None,
};

pub(crate) fn kernels() -> Vec<Kernel> {
    vec![Kernel {
        unit: UNIT,
        name: QUANTIZE_ROWS,
    }]
}

/// `scale = max |x| / 448`, then `out = x / scale` as e4m3, row by row: the largest of a row becomes the largest that
/// there is. A row with an infinity, or with what is no number, stands for no numbers.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeRows {
    /// Rows.
    pub rows: usize,
    /// Numbers of a row: a multiple of 16.
    pub width: usize,
    /// `[rows, width]` of bf16.
    pub x: Memory,
    /// `[rows, width]` of e4m3, a byte each.
    pub out: Memory,
    /// `[rows]` of `f32`: what each row of `out` is to be multiplied by.
    pub scales: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    x: u64,
    out: u64,
    scales: u64,
    width: i32,
    reserved: i32,
}

impl QuantizeRows {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(QUANTIZE_ROWS);
        let shape = [self.rows, self.width];
        let params = Params {
            x: check.holds("x", self.x, &shape, UNIT.element.size(), 16)?,
            out: check.holds("out", self.out, &shape, 1, 16)?,
            scales: check.holds("scales", self.scales, &[self.rows], 4, 4)?,
            width: check.width("width", self.width, 16)?,
            reserved: 0,
        };
        let threads = (self.width / 16).next_multiple_of(32).min(512) as u32;
        let grid = [check.count("rows", self.rows)?, 1, 1];
        // SAFETY: the memory holds what the kernel accesses, as was checked.
        unsafe { run(on, UNIT, QUANTIZE_ROWS, grid, threads, 0, &params) }
    }
}
