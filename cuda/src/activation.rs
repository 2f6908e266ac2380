//! The gated activation of the feed-forward part.

use bytemuck::NoUninit;

use crate::catalogue::{Source, source};
use crate::launch::{Check, run};
use crate::{Element, Kernel, LaunchError, Launcher, Memory, Unit};

const SOURCE: Source = source!("activation.cu");
const SILU_MULTIPLY: &str = "silu_multiply";
const THREADS: usize = 256;

pub(crate) fn kernels() -> Vec<Kernel> {
    Kernel::of_all(SOURCE, &[SILU_MULTIPLY])
}

/// `out = silu(gate) * up`.
#[derive(Debug, Clone, Copy)]
pub struct SiluMultiply {
    /// Type of both.
    pub element: Element,
    /// Rows, at most 65,535.
    pub rows: usize,
    /// Gates of a row, and ups: a multiple of 8.
    pub width: usize,
    /// `[rows, 2 * width]`: the gates of a row, then its ups.
    pub gate_up: Memory,
    /// `[rows, width]`.
    pub out: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    gate_up: u64,
    out: u64,
    width: i32,
    reserved: i32,
}

impl SiluMultiply {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(SILU_MULTIPLY);
        let size = self.element.size();
        let params = Params {
            gate_up: check.holds(
                "gate_up",
                self.gate_up,
                &[self.rows, 2, self.width],
                size,
                16,
            )?,
            out: check.holds("out", self.out, &[self.rows, self.width], size, 16)?,
            width: check.width("width", self.width, 8)?,
            reserved: 0,
        };
        check.that(self.rows <= 65_535, || format!("{} rows", self.rows))?;
        let columns = check.count("width", self.width.div_ceil(THREADS * 16 / size))?;
        let grid = [columns, check.count("rows", self.rows)?, 1];
        let unit = Unit::new(SOURCE, self.element);
        // SAFETY: the memory holds what the kernel accesses, as was checked.
        unsafe { run(on, unit, SILU_MULTIPLY, grid, THREADS as u32, 0, &params) }
    }
}
