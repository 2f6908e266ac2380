//! Numbers for the tests of kernels.
// Each test file uses some of it.
#![allow(dead_code)]

use bytemuck::Pod;
use half::{bf16, f16};
use realm_cuda::Element;

/// A type that kernels are compiled for.
pub(crate) trait Number: Pod {
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

/// Calls a generic test with every type.
macro_rules! for_all_types {
    ($test:ident) => {{
        $test::<f32>();
        $test::<half::bf16>();
        $test::<half::f16>();
    }};
}
pub(crate) use for_all_types;

/// The same numbers for the same seed (Steele, Lea and Flood's SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Between 0 and 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normally distributed.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    pub(crate) fn numbers<T: Number>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::of(self.normal())).collect()
    }
}

/// That a result is an exact one but for `relative` of it, of `scale`, and for its rounding.
pub(crate) fn assert_close<T: Number>(
    got: T,
    exact: f64,
    relative: f64,
    what: impl Fn() -> String,
) {
    let got = f64::from(got.value());
    let margin = exact.abs() * (relative + T::ROUNDING) + relative * 1e-2 + T::STEP;
    assert!(
        (got - exact).abs() <= margin,
        "{}: {got}, not {exact}",
        what()
    );
}
