//! The gated activation of the feed-forward part.

use super::simd::Simd;

/// `silu(gate) * up` in each lane.
#[inline(always)]
pub(super) fn silu_multiply<S: Simd>(s: S, gate: S::V, up: S::V) -> S::V {
    // Of the largest negative gates what is left are numbers too small to matter.
    let exponent = s.max(
        s.mul(gate, s.splat(std::f32::consts::LOG2_E)),
        s.splat(-126.0),
    );
    let power = s.exp2(s.mul(exponent, s.splat(-1.0)));
    s.mul(s.div(gate, s.add(power, s.splat(1.0))), up)
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::on_each;
    use super::super::simd::{Kernel, LANES};
    use super::*;

    const GATES: [f32; LANES] = [
        -1e30, -200.0, -100.0, -87.0, -20.0, -3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0, 30.0, 87.0,
        100.0, 1e30,
    ];

    #[derive(Clone)]
    struct Activate;
    impl Kernel for Activate {
        type Output = [[f32; LANES]; 2];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [[f32; LANES]; 2] {
            let up = s.splat(3.0);
            let nan = s.splat(f32::NAN);
            [s.load(&GATES), nan].map(|gate| s.to_array(silu_multiply(s, gate, up)))
        }
    }

    #[test]
    fn gates_multiply_ups() {
        for [lanes, nan] in on_each(Activate) {
            for (x, ours) in GATES.iter().zip(lanes) {
                let want = f64::from(*x) / (1.0 + (-f64::from(*x)).exp()) * 3.0;
                let error = (f64::from(ours) - want).abs();
                assert!(error <= 1e-6 * want.abs() + 1e-5, "{ours} {want}");
            }
            assert!(nan[0].is_nan());
        }
    }
}
