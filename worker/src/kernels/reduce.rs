//! Reductions over the logits of one token.

use super::simd::{Kernel, LANES, Simd, dispatch, exp};

/// The largest value, ignoring what is not a number; negative infinity if there is none.
pub fn max(values: &[f32]) -> f32 {
    dispatch(Max(values))
}

/// `ln(sum of exp(x))` of values without a NaN or positive infinity; negative infinity if all are.
pub fn log_sum_exp(values: &[f32]) -> f32 {
    let max = max(values);
    if max == f32::NEG_INFINITY {
        return max;
    }
    (f64::from(max) + sum_exp(values, max, 1.0).ln()) as f32
}

/// Sum of `exp((x - max) * scale)`.
pub fn sum_exp(values: &[f32], max: f32, scale: f32) -> f64 {
    // In parts whose sums of up to 4096 terms lose little in `f32`.
    values
        .chunks(4096)
        .map(|part| f64::from(dispatch(SumExp { part, max, scale })))
        .sum()
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut best = s.splat(f32::NEG_INFINITY);
        for chunk in chunks {
            best = s.max(s.load(chunk), best);
        }
        rest.iter()
            .fold(s.largest(best), |best, x| if *x > best { *x } else { best })
    }
}

struct SumExp<'a> {
    part: &'a [f32],
    max: f32,
    scale: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (chunks, rest) = self.part.as_chunks::<LANES>();
        let mut sums = s.splat(0.0);
        let (minus, scale) = (s.splat(-self.max), s.splat(self.scale));
        for chunk in chunks {
            sums = s.add(sums, s.exp(s.mul(s.add(s.load(chunk), minus), scale)));
        }
        let rest = rest.iter().map(|x| exp((x - self.max) * self.scale));
        s.sum(sums) + rest.sum::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_are_right_for_any_length() {
        for n in [1, 15, 16, 17, 5000] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * 20.0).collect();
            assert_eq!(max(&x), x.iter().copied().fold(f32::MIN, f32::max));
            let exact = x.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            assert!((f64::from(log_sum_exp(&x)) - exact).abs() < 2e-6);
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[f32::NAN; 20]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
    }
}
