//! Root-mean-square normalization.

use bytemuck::NoUninit;

use crate::catalogue::{Source, source};
use crate::launch::{Check, address, run};
use crate::{Element, Kernel, LaunchError, Launcher, Memory, Unit};

const SOURCE: Source = source!("norm.cu");
const ADD_RMS_NORM: &str = "add_rms_norm";

pub(crate) fn kernels() -> Vec<Kernel> {
    Kernel::of_all(SOURCE, &[ADD_RMS_NORM])
}

/// `hidden += delta`, then `out = weight * hidden / sqrt(mean(hidden²) + eps)`, row by row.
#[derive(Debug, Clone, Copy)]
pub struct AddRmsNorm {
    /// Type of `delta` and `out`.
    pub element: Element,
    /// Rows.
    pub rows: usize,
    /// Numbers of a row: a multiple of 8.
    pub width: usize,
    /// The residual stream, `[rows, width]` of `f32`.
    pub hidden: Memory,
    /// What is added to it, `[rows, width]`.
    pub delta: Option<Memory>,
    /// `[width]` of `f32`.
    pub weight: Memory,
    /// Added to the mean.
    pub eps: f32,
    /// `[rows, width]`.
    pub out: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Params {
    hidden: u64,
    delta: u64,
    weight: u64,
    out: u64,
    width: i32,
    eps: f32,
}

impl AddRmsNorm {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(ADD_RMS_NORM);
        let size = self.element.size();
        let shape = [self.rows, self.width];
        let width = check.width("width", self.width, 8)?;
        let params = Params {
            hidden: check.holds("hidden", self.hidden, &shape, 4, 16)?,
            delta: address(
                self.delta
                    .map(|delta| check.holds("delta", delta, &shape, size, 16)),
            )?,
            weight: check.holds("weight", self.weight, &[self.width], 4, 16)?,
            out: check.holds("out", self.out, &shape, size, 16)?,
            width,
            eps: self.eps,
        };
        let vectors = self.width / (16 / size);
        let unit = Unit::new(SOURCE, self.element);
        let threads = vectors.next_multiple_of(32).min(1024) as u32;
        let grid = [check.count("rows", self.rows)?, 1, 1];
        // SAFETY: the memory holds what the kernel accesses, as was checked.
        unsafe {
            run(
                on,
                unit,
                ADD_RMS_NORM,
                grid,
                threads,
                self.width * 4,
                &params,
            )
        }
    }
}
