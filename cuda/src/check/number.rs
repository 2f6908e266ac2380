//! Numbers for cases.

use bytemuck::Pod;
use half::{bf16, f16};

use super::sampler::{GOLDEN, mix};
use crate::Element;

/// A type that kernels are compiled for.
pub(super) trait Number: Pod {
    const ELEMENT: Element;
    /// Half the distance between 1 and the next number: what rounding changes at most, relatively.
    const ROUNDING: f64;
    /// Half the distance between the smallest numbers.
    const STEP: f64;
    fn of(value: f32) -> Self;
    fn value(self) -> f32;
}

impl Number for f32 {
    const ELEMENT: Element = Element::F32;
    const ROUNDING: f64 = 6e-8;
    const STEP: f64 = 0.0;
    fn of(value: f32) -> f32 {
        value
    }
    fn value(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    const ELEMENT: Element = Element::Bf16;
    const ROUNDING: f64 = 1.0 / 256.0;
    const STEP: f64 = 0.0;
    fn of(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}

impl Number for f16 {
    const ELEMENT: Element = Element::F16;
    const ROUNDING: f64 = 1.0 / 2048.0;
    const STEP: f64 = 3e-8;
    fn of(value: f32) -> f16 {
        f16::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}

/// Calls a generic part of a case with every type, the arguments after it.
macro_rules! for_all_types {
    ($part:ident($($argument:expr),*)) => {{
        $part::<f32, _>($($argument),*)?;
        $part::<half::bf16, _>($($argument),*)?;
        $part::<half::f16, _>($($argument),*)?;
    }};
}
pub(super) use for_all_types;

/// The same numbers for the same seed (Steele, Lea and Flood's SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Between 0 and 1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of them.
    pub(super) fn pick<T: Copy, const N: usize>(&mut self, values: [T; N]) -> T {
        values[self.below(N)]
    }

    /// Roughly normally distributed.
    pub(super) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    pub(super) fn numbers<T: Number>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::of(self.normal())).collect()
    }
}
