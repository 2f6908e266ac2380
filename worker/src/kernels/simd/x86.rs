//! AVX-512 and AVX2.

use std::arch::x86_64::*;
use std::mem::transmute;
use std::sync::LazyLock;

use half::{bf16, f16};

use super::{Element, Kernel, LANES, Simd, dot_widened, power};

/// The upper sixteen of a lane's bits.
const HIGH_HALF: i32 = 0xffff_0000_u32 as i32;

/// Proof that the CPU has AVX-512 (foundation, byte/word, double/quad, vector length), as
/// every CPU since Skylake-SP that has any of it; and, if `DOTS`, that it has dot products of
/// `bf16` (AVX512-BF16) which are fast.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const DOTS: bool>(());

impl Avx512<false> {
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Avx512(()))
    }
}

impl Avx512<true> {
    /// AMD's processors do a dot product in the time of a multiply-add. Where others were
    /// measured it takes four times as long, so that widening is twice as fast as it. A rule, and
    /// not a measurement when the process starts: the same machine must compute the same bits.
    #[inline]
    pub(crate) fn detect() -> Option<Self> {
        static FOUND: LazyLock<bool> = LazyLock::new(|| {
            let vendor = __cpuid(0);
            let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
            Avx512::<false>::detect().is_some()
                && is_x86_feature_detected!("avx512bf16")
                && vendor.as_flattened() == b"AuthenticAMD"
        });
        FOUND.then_some(Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) fn run_avx512<K: Kernel>(kernel: K, s: Avx512<false>) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) fn run_avx512_bf16<K: Kernel>(kernel: K, s: Avx512<true>) -> K::Output {
    kernel.run(s)
}

// SAFETY of every block in this impl: the instructions exist, for `self` proves it; loads and
// stores are unaligned ones of exactly the 64 (32 for f16 and bf16) bytes of the array referred to.
impl<const DOTS: bool> Simd for Avx512<DOTS> {
    type V = __m512;
    const WIDE: bool = true;
    const FAST_DOTS: bool = DOTS;
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, into: &mut [f32; LANES]) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(into.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn store_past_caches(self, v: __m512, into: &mut [f32; LANES]) {
        let into = into.as_mut_ptr();
        if into.addr().is_multiple_of(align_of::<__m512>()) {
            // SAFETY: see the impl; it is aligned.
            unsafe { _mm512_stream_ps(into, v) }
        } else {
            // SAFETY: see the impl.
            unsafe { _mm512_storeu_ps(into, v) }
        }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: it only orders stores.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn scale(self, v: __m512, shifted: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let one = _mm512_set1_epi32(1.0f32.to_bits() as i32);
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_mul_ps(v, _mm512_castsi512_ps(_mm512_add_epi32(n, one)))
        }
    }
    #[inline(always)]
    fn zero_below(self, v: __m512, x: __m512, limit: f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(keep, v)
        }
    }
    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        // Low enough for 0, and no infinity, whose difference to itself is none.
        let x = self.max(x, self.splat(-200.0));
        // SAFETY: see the impl.
        unsafe {
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm512_scalef_ps(power(self, _mm512_sub_ps(x, n)), n)
        }
    }
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a hint, which reads nothing that the program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, line: *const u8) {
        // SAFETY: a hint, which reads nothing that the program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[inline(always)]
    fn low_bf16(self, v: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v))) }
    }
    #[inline(always)]
    fn high_bf16(self, v: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let high = _mm512_set1_epi32(HIGH_HALF);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), high))
        }
    }
    // Rounds to nearest even whatever the mode, and takes denormal numbers for zero, in all three
    // operands and in the result.
    #[inline(always)]
    fn dot_bf16(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if !DOTS {
            return dot_widened(self, a, b, c);
        }
        // SAFETY: see the impl; the types differ in what the bits are taken for alone.
        unsafe {
            _mm512_dpbf16_ps(
                c,
                transmute::<__m512, __m512bh>(a),
                transmute::<__m512, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    fn to_bf16(self, v: __m512) -> [bf16; LANES] {
        if !DOTS {
            return self.to_array(v).map(Element::from_f32);
        }
        // SAFETY: see the impl; both types are 32 bytes of `bf16`.
        unsafe { transmute::<__m256bh, [bf16; LANES]>(_mm512_cvtneps_pbh(v)) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_add_ps(v) }
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn any_above(self, v: __m512, limit: f32) -> bool {
        // SAFETY: see the impl.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, _mm512_set1_ps(limit)) != 0 }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
}

/// Proof that the CPU has AVX2, FMA and F16C, as every CPU since Haswell and Zen.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    #[inline]
    pub(crate) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn run_avx2<K: Kernel>(kernel: K, s: Avx2) -> K::Output {
    kernel.run(s)
}

// SAFETY of every block in this impl: the instructions exist, for `self` proves it; loads and
// stores are unaligned ones inside the array referred to.
impl Simd for Avx2 {
    type V = (__m256, __m256);
    const WIDE: bool = false;
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: see the impl.
        let x = unsafe { _mm256_set1_ps(x) };
        (x, x)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let (low, high) = from.split_at(LANES / 2);
        // SAFETY: see the impl; each half has eight values.
        unsafe {
            (
                _mm256_loadu_ps(low.as_ptr()),
                _mm256_loadu_ps(high.as_ptr()),
            )
        }
    }
    #[inline(always)]
    fn store(self, v: Self::V, into: &mut [f32; LANES]) {
        let (low, high) = into.split_at_mut(LANES / 2);
        // SAFETY: see the impl; each half has eight values.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), v.0);
            _mm256_storeu_ps(high.as_mut_ptr(), v.1);
        }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            (
                _mm256_fmadd_ps(a.0, b.0, c.0),
                _mm256_fmadd_ps(a.1, b.1, c.1),
            )
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn scale(self, v: Self::V, shifted: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            let one = _mm256_set1_epi32(1.0f32.to_bits() as i32);
            let half = |v, shifted| {
                let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
                _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_add_epi32(n, one)))
            };
            (half(v.0, shifted.0), half(v.1, shifted.1))
        }
    }
    #[inline(always)]
    fn zero_below(self, v: Self::V, x: Self::V, limit: f32) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            let half = |v, x| _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_NLT_UQ>(x, limit));
            (half(v.0, x.0), half(v.1, x.1))
        }
    }
    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: a hint, which reads nothing that the program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, line: *const u8) {
        // SAFETY: a hint, which reads nothing that the program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[inline(always)]
    fn low_bf16(self, v: Self::V) -> Self::V {
        // SAFETY: see the impl.
        let half =
            |v| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v))) };
        (half(v.0), half(v.1))
    }
    #[inline(always)]
    fn high_bf16(self, v: Self::V) -> Self::V {
        // SAFETY: see the impl.
        let half = |v| unsafe {
            let high = _mm256_set1_epi32(HIGH_HALF);
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(v), high))
        };
        (half(v.0), half(v.1))
    }
    #[inline(always)]
    fn any_above(self, v: Self::V, limit: f32) -> bool {
        // SAFETY: see the impl.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            let above = |v| _mm256_cmp_ps::<_CMP_GT_OQ>(v, limit);
            _mm256_movemask_ps(_mm256_or_ps(above(v.0), above(v.1))) != 0
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        let (low, high) = from.split_at(LANES / 2);
        // SAFETY: see the impl; each half has eight values of two bytes.
        unsafe {
            (
                _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
            )
        }
    }
}
