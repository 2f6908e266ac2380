//! Root-mean-square normalization.

use super::operand::Target;
use super::parallel::Threads;
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Rows of a task, at most.
const ROWS: usize = 16;

/// `out = weight * x / sqrt(mean(x²) + eps)` for every row of `weight.len()` values.
///
/// # Panics
/// If `x` is not of whole rows, or `out` has not as many of as many values.
pub fn rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: Target<'_>) {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width) && out.width() == width);
    threads.run_in_ranges(x.len() / width, ROWS, |rows| {
        for row in rows {
            dispatch(Norm {
                x: &x[row * width..][..width],
                weight,
                eps,
                out: &out,
                row,
            });
        }
    });
}

/// One row.
struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a Target<'a>,
    row: usize,
}

/// Values that are normalized before they are put in place, so that they are still in registers or the nearest cache.
const SOME: usize = 4 * LANES;

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = scale(s, self.x, self.eps);
        let parts = self.x.chunks(SOME).zip(self.weight.chunks(SOME));
        for (part, (x, weight)) in parts.enumerate() {
            let mut out = [0.0; SOME];
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
            // SAFETY: each row is written by its own task.
            unsafe { self.out.put(s, self.row, part * SOME, &out[..x.len()]) };
        }
    }
}

/// What normalizes values: one divided by the root of the mean of their squares.
#[inline(always)]
pub(super) fn scale<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = s.splat(0.0);
    for chunk in chunks {
        let v = s.load(chunk);
        sums = s.mul_add(v, v, sums);
    }
    let mut sum = s.sum(sums);
    for x in rest {
        sum += x * x;
    }
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalized() {
        let threads = &Threads::new(2);
        // Parts that are whole, and a rest of a vector and less.
        let (rows, width) = (37, 64 + 19);
        let x: Vec<f32> = (0..rows * width).map(|i| (i as f32).sin()).collect();
        let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.1).collect();
        let mut out = vec![0.0; rows * width];
        let target = Target::plain(&mut out, width);
        rms_norm(threads, &x, &weight, 1e-5, target);
        for (x, out) in x.chunks(width).zip(out.chunks(width)) {
            let mean = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
            for i in 0..width {
                let want = x[i] / (mean + 1e-5).sqrt() * weight[i];
                assert!((out[i] - want).abs() < 1e-5);
            }
        }
    }
}
