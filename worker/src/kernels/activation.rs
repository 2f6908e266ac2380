//! The gated activation of the feed-forward part.

use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, Simd, dispatch, exp};

/// `out = silu(gate) * up` for rows of `gate_up`, each `width` gates followed by `width` ups.
///
/// # Panics
/// If `gate_up` and `out` are not equally many whole rows.
pub(super) fn silu_multiply(threads: &Threads, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width));
    let rows = out.len() / width;
    let out = Disjoint::new(out);
    threads.run(rows, |row| {
        // SAFETY: each row is written by its own task.
        let out = unsafe { out.slice(row * width..(row + 1) * width) };
        let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
        dispatch(Gated { gate, up, out });
    });
}

/// Some gates, what they are for, and where that goes.
pub(super) struct Gated<'a> {
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_multiply_ups() {
        let gate_up = [
            -100.0f32, 0.0, 2.0, 3.0, 5.0, 7.0, 100.0, -1.0, 1.0, 0.5, 0.5, 0.5,
        ];
        let mut out = [0.0; 6];
        silu_multiply(&Threads::new(1), &gate_up, 3, &mut out);
        for row in 0..2 {
            for i in 0..3 {
                let (x, up) = (gate_up[row * 6 + i], gate_up[row * 6 + 3 + i]);
                let want = x / (1.0 + (-x).exp()) * up;
                assert!(
                    (out[row * 3 + i] - want).abs() < 1e-5,
                    "{} {want}",
                    out[row * 3 + i]
                );
            }
        }
    }
}
