//! Sixteen `f32` lanes on whatever the CPU has.
//!
//! A kernel is a [`Kernel`] whose `run` is generic over [`Simd`]; [`dispatch`] picks the
//! instruction set once per call. A value of an instruction set's type is the proof that the CPU
//! has it, which is what makes the operations themselves safe to call.

use half::{bf16, f16};

use super::element::Element;

#[cfg(target_arch = "x86_64")]
mod x86;

/// Lanes of a vector; also the tokens of a KV block, so that a block's scores fill one vector.
pub(super) const LANES: usize = 16;

/// Operations on sixteen lanes. Implementations differ in speed; within one, results are a
/// function of the operands alone.
pub(super) trait Simd: Copy + Send + Sync {
    /// Sixteen lanes.
    type V: Copy;
    /// Whether tiles of up to six rows by four vectors fit the registers.
    const WIDE: bool;
    /// Whether [`dot_bf16`](Self::dot_bf16) takes no longer than [`mul_add`](Self::mul_add).
    const FAST_DOTS: bool = false;
    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, into: &mut [f32; LANES]);
    /// Stores what will not be read soon, without bringing in what it replaces. Others see it after a
    /// [`fence`](Self::fence).
    #[inline(always)]
    fn store_past_caches(self, v: Self::V, into: &mut [f32; LANES]) {
        self.store(v, into);
    }
    /// Ends what was stored past caches.
    #[inline(always)]
    fn fence(self) {}
    /// `a * b + c`
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each lane; `b` where `a` is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        self.load(&from.map(f16::to_f32))
    }
    /// The nearest `bf16` of each lane, to even, but zero for numbers below the least normal one where the
    /// instruction set takes them for that.
    #[inline(always)]
    fn to_bf16(self, v: Self::V) -> [bf16; LANES] {
        self.to_array(v).map(Element::from_f32)
    }
    /// Has a cache line brought in that will be needed soon. Any address will do.
    #[inline(always)]
    fn prefetch(self, _line: *const u8) {}
    /// The same for a line that will be needed later, which the nearest cache does not keep meanwhile.
    #[inline(always)]
    fn prefetch_far(self, _line: *const u8) {}
    /// The value of the `bf16` in the low half of each lane's bits.
    fn low_bf16(self, v: Self::V) -> Self::V;
    /// The same of the high half.
    fn high_bf16(self, v: Self::V) -> Self::V;
    /// `c` plus, in each lane, both products of the `bf16` in the halves of `a` with those of `b`.
    ///
    /// The products are exact. In which order the three are added, how often that rounds, and
    /// whether numbers below the least normal one count as zero, depends on the instruction set.
    #[inline(always)]
    fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        dot_widened(self, a, b, c)
    }
    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        self.store(v, &mut out);
        out
    }
    /// Sum of the lanes, in a fixed order.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        fold(self.to_array(v), |a, b| a + b)
    }
    /// The largest lane.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        fold(self.to_array(v), |a, b| if b > a { b } else { a })
    }
    /// Whether any lane is above `limit`.
    #[inline(always)]
    fn any_above(self, v: Self::V, limit: f32) -> bool {
        self.to_array(v).iter().any(|lane| *lane > limit)
    }
    /// `v * 2^n`, where adding `n` to [`ROUND`] gave `shifted`.
    fn scale(self, v: Self::V, shifted: Self::V) -> Self::V;
    /// `v`, but 0 where `x` is below `limit`.
    fn zero_below(self, v: Self::V, x: Self::V, limit: f32) -> Self::V;
    /// What [`exp`] computes, for lanes up to 88.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let clamped = self.max(x, self.splat(LOWEST));
        let shifted = self.mul_add(
            clamped,
            self.splat(std::f32::consts::LOG2_E),
            self.splat(ROUND),
        );
        let n = self.add(shifted, self.splat(-ROUND));
        let r = self.mul_add(n, self.splat(-LN_2_HIGH), clamped);
        let r = self.mul_add(n, self.splat(-LN_2_LOW), r);
        let mut p = self.splat(TAYLOR[0]);
        for term in &TAYLOR[1..] {
            p = self.mul_add(p, r, self.splat(*term));
        }
        self.zero_below(self.scale(p, shifted), x, LOWEST)
    }
    /// Two to the power of each lane within a few ulp, for lanes up to 127; 0 for those below -126, or far below where the
    /// instruction set has such numbers.
    #[inline(always)]
    fn exp2(self, x: Self::V) -> Self::V {
        let clamped = self.max(x, self.splat(LOWEST_OF_TWO));
        let shifted = self.add(clamped, self.splat(ROUND));
        let n = self.add(shifted, self.splat(-ROUND));
        let r = self.mul_add(n, self.splat(-1.0), clamped);
        self.zero_below(self.scale(power(self, r), shifted), x, LOWEST_OF_TWO)
    }
}

/// Two to the power of lanes of half at most, up or down.
#[inline(always)]
fn power<S: Simd>(s: S, x: S::V) -> S::V {
    let mut p = s.splat(TAYLOR_OF_TWO[0]);
    for term in &TAYLOR_OF_TWO[1..] {
        p = s.mul_add(p, x, s.splat(*term));
    }
    p
}

/// [`Simd::dot_bf16`] where there is no such instruction.
#[inline(always)]
fn dot_widened<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    let low = s.mul_add(s.low_bf16(a), s.low_bf16(b), c);
    s.mul_add(s.high_bf16(a), s.high_bf16(b), low)
}

#[inline(always)]
fn fold(mut v: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            v[i] = f(v[i], v[i + n]);
        }
        n /= 2;
    }
    v[0]
}

/// Adding this rounds to an integer that sits in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// Upper part of ln 2 with 9 trailing zero bits, so that its products with small integers are
/// exact, and the rest.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// 1/n! from n = 7 down.
const TAYLOR: [f32; 8] = [
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];
/// Below this the exponential counts as 0.
const LOWEST: f32 = -87.0;
/// The same of powers of two.
const LOWEST_OF_TWO: f32 = -126.0;
/// (ln 2)^n / n! from n = 6 down.
const TAYLOR_OF_TWO: [f32; 7] = [
    1.540_353e-4,
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    2.402_265e-1,
    std::f32::consts::LN_2,
    1.0,
];

/// `e` to the power of `x` within a few ulp, exactly 0 below -87 and capped above 88. Free of
/// branches, so that loops over it become vector code. Splits `x` into a multiple of ln 2 and a
/// rest (Cody and Waite), whose exponential is a Taylor polynomial.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(LOWEST, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = TAYLOR[0];
    for term in &TAYLOR[1..] {
        p = p * r + term;
    }
    if x < LOWEST {
        0.0
    } else {
        p * power_of_two(shifted)
    }
}

/// `2^n`, where adding `n` to [`ROUND`] gave `shifted`.
#[inline(always)]
fn power_of_two(shifted: f32) -> f32 {
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// One computation, written once for every instruction set. `run` must be `#[inline(always)]`:
/// only then is it compiled with the instructions that its argument stands for.
pub(super) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `kernel` on the best instruction set of this CPU.
#[inline]
pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(s) = x86::Avx512::<true>::detect() {
            // SAFETY: `detect` found the features that the function is compiled for.
            return unsafe { x86::run_avx512_bf16(kernel, s) };
        }
        if let Some(s) = x86::Avx512::<false>::detect() {
            // SAFETY: as above.
            return unsafe { x86::run_avx512(kernel, s) };
        }
        if let Some(s) = x86::Avx2::detect() {
            // SAFETY: as above.
            return unsafe { x86::run_avx2(kernel, s) };
        }
    }
    kernel.run(Portable)
}

/// The instruction set that the kernels use on this CPU.
pub fn capability() -> &'static str {
    struct Name;
    impl Kernel for Name {
        type Output = &'static str;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> &'static str {
            let name = std::any::type_name::<S>();
            match name.rsplit("::").next() {
                Some("Avx512<true>") => "AVX-512-BF16",
                Some("Avx512<false>") => "AVX-512",
                Some("Avx2") => "AVX2",
                _ => "portable",
            }
        }
    }
    dispatch(Name)
}

/// Whether dot products of `bf16` are worth rounding for on this CPU.
pub(super) fn has_fast_dots() -> bool {
    struct Ask;
    impl Kernel for Ask {
        type Output = bool;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> bool {
            S::FAST_DOTS
        }
    }
    dispatch(Ask)
}

/// No particular instructions.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    const WIDE: bool = false;
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn store(self, v: Self::V, into: &mut [f32; LANES]) {
        *into = v;
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `f32::mul_add`, which is a slow library call where there is no such instruction.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn low_bf16(self, v: Self::V) -> Self::V {
        v.map(|lane| f32::from_bits(lane.to_bits() << 16))
    }
    #[inline(always)]
    fn high_bf16(self, v: Self::V) -> Self::V {
        v.map(|lane| f32::from_bits(lane.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn scale(self, v: Self::V, shifted: Self::V) -> Self::V {
        std::array::from_fn(|i| v[i] * power_of_two(shifted[i]))
    }
    #[inline(always)]
    fn zero_below(self, v: Self::V, x: Self::V, limit: f32) -> Self::V {
        std::array::from_fn(|i| if x[i] < limit { 0.0 } else { v[i] })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs a kernel on every instruction set that this CPU has.
    pub(crate) fn on_each<K: Kernel + Clone>(kernel: K) -> Vec<K::Output> {
        let mut out = vec![kernel.clone().run(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(s) = x86::Avx2::detect() {
                // SAFETY: detected.
                out.push(unsafe { x86::run_avx2(kernel.clone(), s) });
            }
            if let Some(s) = x86::Avx512::<false>::detect() {
                // SAFETY: detected.
                out.push(unsafe { x86::run_avx512(kernel.clone(), s) });
            }
            if let Some(s) = x86::Avx512::<true>::detect() {
                // SAFETY: detected.
                out.push(unsafe { x86::run_avx512_bf16(kernel, s) });
            }
        }
        out
    }

    #[test]
    fn exp_is_close_to_the_library() {
        let mut x = -86.9f32;
        while x < 88.0 {
            let (ours, theirs) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours / theirs - 1.0).abs() < 3e-7,
                "exp({x}) = {ours}, not {theirs}"
            );
            x += 0.013;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(1000.0).is_finite());
        for lanes in on_each(Exp) {
            for (x, ours) in EXP_ARGUMENTS.iter().zip(lanes) {
                let theirs = f64::from(*x).exp();
                let theirs = if *x < LOWEST { 0.0 } else { theirs };
                assert!(
                    (f64::from(ours) - theirs).abs() <= 3e-7 * theirs,
                    "exp({x}) = {ours}"
                );
            }
        }
    }

    const EXP_ARGUMENTS: [f32; LANES] = [
        0.0,
        -0.3,
        -1.0,
        -2.5,
        -10.0,
        -30.7,
        -86.9,
        -87.1,
        -1e30,
        f32::NEG_INFINITY,
        1.0,
        5.5,
        20.0,
        60.0,
        87.0,
        0.1,
    ];

    #[derive(Clone)]
    struct Exp;
    impl Kernel for Exp {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            s.to_array(s.exp(s.load(&EXP_ARGUMENTS)))
        }
    }

    #[test]
    fn powers_of_two_are_close_to_the_library() {
        for (x, lanes) in on_each(PowersOfTwo).into_iter().flatten() {
            for (x, ours) in x.iter().zip(lanes) {
                let theirs = f64::from(*x).exp2();
                let theirs = if *x < LOWEST_OF_TWO { 0.0 } else { theirs };
                assert!(
                    (f64::from(ours) - theirs).abs() <= 4e-7 * theirs + 1e-37,
                    "2^{x} = {ours}"
                );
            }
        }
    }

    #[derive(Clone)]
    struct PowersOfTwo;
    impl Kernel for PowersOfTwo {
        type Output = Vec<([f32; LANES], [f32; LANES])>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = Vec::new();
            for i in 0..2000 {
                let mut x = [0.0; LANES];
                for (lane, x) in x.iter_mut().enumerate() {
                    *x = -130.0 + 0.0637 * i as f32 + 0.113 * lane as f32;
                }
                [x[0], x[1]] = [f32::NEG_INFINITY, -1e30];
                out.push((x, s.to_array(s.exp2(s.load(&x)))));
            }
            out
        }
    }

    #[derive(Clone)]
    struct Everything;
    impl Kernel for Everything {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let a: [f32; LANES] = std::array::from_fn(|i| i as f32 * 0.5 - 3.0);
            let h: [f16; LANES] = a.map(f16::from_f32);
            let b: [bf16; LANES] = a.map(<bf16 as Element>::from_f32);
            let v = s.load(&a);
            let mut out = Vec::new();
            out.extend(s.to_array(s.mul_add(v, s.splat(2.0), s.splat(1.0))));
            out.extend(s.to_array(s.add(s.mul(v, v), s.max(v, s.splat(0.0)))));
            out.extend(s.to_array(s.div(v, s.splat(3.0))));
            out.extend(s.to_array(f16::load(s, &h)));
            out.extend(s.to_array(bf16::load(s, &b)));
            let pairs = s.load(&std::array::from_fn(|i| {
                f32::from_bits(0x3f80_4049 + (i as u32 * 0x0001_0003))
            }));
            out.extend(s.to_array(s.low_bf16(pairs)));
            out.extend(s.to_array(s.high_bf16(pairs)));
            // Exact in every order.
            let twos = s.splat(f32::from_bits(0x4000_c000));
            out.extend(s.to_array(s.dot_bf16(pairs, twos, s.splat(0.5))));
            out.extend(s.to_bf16(pairs).map(Element::to_f32));
            out.extend([s.sum(v), s.largest(v)]);
            let above = [-3.0, 4.0, 4.5, f32::NAN].map(|limit| s.any_above(v, limit));
            out.extend(above.map(|above| f32::from(u8::from(above))));
            out.extend(s.to_array(s.max(s.splat(f32::NAN), v)));
            out
        }
    }

    #[test]
    fn instruction_sets_agree() {
        let all = on_each(Everything);
        for other in &all[1..] {
            assert_eq!(other, &all[0]);
        }
    }
}
