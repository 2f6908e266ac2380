//! Root-mean-square normalization.

use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// `out = weight * x / sqrt(mean(x²) + eps)` for every row of `weight.len()` values.
///
/// # Panics
/// If `x` and `out` are not equally many whole rows.
pub fn rms_norm(threads: &Threads, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width));
    let out = Disjoint::new(out);
    threads.run(x.len() / width, |row| {
        let range = row * width..(row + 1) * width;
        // SAFETY: each row is written by its own task.
        let out = unsafe { out.slice(range.clone()) };
        dispatch(Norm {
            x: &x[range],
            weight,
            eps,
            out,
        });
    });
}

/// `x += delta`, then `out = rms_norm(x)`.
///
/// # Panics
/// If `x`, `delta` and `out` are not equally many whole rows.
pub fn add_rms_norm(
    threads: &Threads,
    x: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len() == delta.len() && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    let (x, out) = (Disjoint::new(x), Disjoint::new(out));
    threads.run(rows, |row| {
        let range = row * width..(row + 1) * width;
        // SAFETY: each row is written by its own task.
        let (x, out) = unsafe { (x.slice(range.clone()), out.slice(range.clone())) };
        dispatch(Add {
            x,
            delta: &delta[range],
        });
        dispatch(Norm {
            x,
            weight,
            eps,
            out,
        });
    });
}

struct Add<'a> {
    x: &'a mut [f32],
    delta: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (x, d) in self.x.iter_mut().zip(self.delta) {
            *x += d;
        }
    }
}

/// One row.
pub(super) struct Norm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (chunks, rest) = self.x.as_chunks::<LANES>();
        let mut sums = s.splat(0.0);
        for chunk in chunks {
            let v = s.load(chunk);
            sums = s.mul_add(v, v, sums);
        }
        let mut sum = s.sum(sums);
        for x in rest {
            sum += x * x;
        }
        let scale = 1.0 / (sum / self.x.len() as f32 + self.eps).sqrt();
        for ((out, x), w) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * w;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalized_after_the_addition() {
        let threads = &Threads::new(1);
        let width = 19; // a whole vector and a rest
        let mut x: Vec<f32> = (0..3 * width).map(|i| (i as f32).sin()).collect();
        let delta: Vec<f32> = (0..3 * width).map(|i| (i as f32).cos()).collect();
        let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.1).collect();
        let expected: Vec<f32> = x.iter().zip(&delta).map(|(x, d)| x + d).collect();
        let mut out = vec![0.0; 3 * width];
        add_rms_norm(threads, &mut x, &delta, &weight, 1e-5, &mut out);
        assert_eq!(x, expected);
        for row in 0..3 {
            let x = &expected[row * width..][..width];
            let mean = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
            for i in 0..width {
                let want = x[i] / (mean + 1e-5).sqrt() * weight[i];
                assert!((out[row * width + i] - want).abs() < 1e-5);
            }
        }
        let mut plain = vec![0.0; 3 * width];
        rms_norm(threads, &x, &weight, 1e-5, &mut plain);
        assert_eq!(plain, out);
    }
}
