//! The sources that are compiled in, and every variant of them.

use crate::{Kernel, Unit, activation, attention, norm, quantize, rotary, rows, sample};

/// A kernel file, or a header that kernel files include, by the name that `#include` knows it by.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its name in `kernels/`.
    pub name: &'static str,
    /// What it holds.
    pub text: &'static str,
}

/// The source of a name in `kernels/`.
macro_rules! source {
    ($name:literal) => {
        $crate::catalogue::Source {
            name: $name,
            text: include_str!(concat!("../kernels/", $name)),
        }
    };
}
pub(crate) use source;

/// Headers of all kernel files.
pub const HEADERS: [Source; 4] = [
    source!("simt.cuh"),
    source!("mma.cuh"),
    source!("attention_plan.cuh"),
    source!("attention.cuh"),
];

/// Every kernel in every variant that the worker may launch, those of a unit next to each other.
pub fn kernels() -> Vec<Kernel> {
    let files = [
        rows::kernels(),
        norm::kernels(),
        rotary::kernels(),
        attention::kernels(),
        activation::kernels(),
        quantize::kernels(),
        sample::kernels(),
    ];
    files.concat()
}

/// Every unit of [`kernels`], once.
pub fn units() -> Vec<Unit> {
    let mut units: Vec<Unit> = kernels().into_iter().map(|kernel| kernel.unit).collect();
    units.dedup();
    units
}
