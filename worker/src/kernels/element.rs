//! The types that weights, keys and values are held in, and how keys and values of each lie in a block of
//! the arena.
//!
//! The keys of a block and kv head are `[dimension, token]` and its values `[token, dimension]`, each token
//! padded to whole vectors. `bf16` has them in pairs, as [dot products](Simd::dot_bf16) take them: of two
//! dimensions for keys, `[dimension / 2, token, 2]`, and of two tokens for values, `[token / 2, dimension, 2]`.

use bytemuck::Pod;
use half::{bf16, f16};

use super::attention::arithmetic::{Arithmetic, Rounded, Widened};
use super::simd::{LANES, Simd};
use super::tiles::Tiles;

/// A type that weights and activations are held in.
pub trait Element: Pod + Send + Sync + 'static {
    /// The units that multiply it, where the CPU has such.
    #[doc(hidden)]
    #[allow(private_interfaces)]
    fn tiles() -> Option<Tiles> {
        None
    }
    /// How attention computes with it where the CPU has fast dot products.
    #[doc(hidden)]
    #[allow(private_bounds)]
    type Attended: Arithmetic<Self>;
    /// Its value, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value.
    fn from_f32(value: f32) -> Self;
    /// Sixteen values as lanes.
    #[doc(hidden)]
    #[allow(private_interfaces, private_bounds)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::V;

    /// Where a dimension of a token's key is in the keys of a block.
    #[inline(always)]
    fn key_place(dimension: usize, token: usize) -> usize {
        dimension * LANES + token
    }
    /// Where a dimension of a token's value is in the values of a block, of `width` dimensions.
    #[inline(always)]
    fn value_place(width: usize, token: usize, dimension: usize) -> usize {
        token * width + dimension
    }
    /// The nearest values.
    #[doc(hidden)]
    #[inline(always)]
    #[allow(private_bounds)]
    fn round<S: Simd>(_: S, from: &[f32], into: &mut [Self]) {
        for (to, from) in into.iter_mut().zip(from) {
            *to = Self::from_f32(*from);
        }
    }
    /// Two dimensions of the keys of a block, from their place on: a lane for each token.
    #[doc(hidden)]
    #[inline(always)]
    #[allow(private_interfaces, private_bounds)]
    fn keys<S: Simd>(s: S, keys: &[[Self; LANES]; 2]) -> [S::V; 2] {
        [Self::load(s, &keys[0]), Self::load(s, &keys[1])]
    }
    /// Sixteen dimensions, the `vector`-th, of the values of two tokens, which are all of `values`.
    #[doc(hidden)]
    #[inline(always)]
    #[allow(private_interfaces, private_bounds)]
    fn values<S: Simd>(s: S, values: &[[Self; LANES]], vector: usize) -> [S::V; 2] {
        let second = values.len() / 2 + vector;
        [
            Self::load(s, &values[vector]),
            Self::load(s, &values[second]),
        ]
    }
}

#[allow(private_interfaces, private_bounds)]
impl Element for f32 {
    type Attended = Widened;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f32; LANES]) -> S::V {
        s.load(from)
    }
}

#[allow(private_interfaces, private_bounds)]
impl Element for bf16 {
    type Attended = Rounded;
    fn tiles() -> Option<Tiles> {
        Tiles::detect()
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        // Round to nearest even on the bits; a NaN must not round up into an infinity.
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        bf16::from_bits(if value.is_nan() { 0x7fc0 } else { rounded })
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[bf16; LANES]) -> S::V {
        s.load(&from.map(Element::to_f32))
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, from: &[f32], into: &mut [bf16]) {
        round(s, from, into);
    }
    #[inline(always)]
    fn key_place(dimension: usize, token: usize) -> usize {
        (dimension / 2 * LANES + token) * 2 + dimension % 2
    }
    #[inline(always)]
    fn value_place(width: usize, token: usize, dimension: usize) -> usize {
        (token / 2 * width + dimension) * 2 + token % 2
    }
    #[inline(always)]
    fn keys<S: Simd>(s: S, keys: &[[bf16; LANES]; 2]) -> [S::V; 2] {
        halves(s, paired(s, keys))
    }
    #[inline(always)]
    fn values<S: Simd>(s: S, values: &[[bf16; LANES]], vector: usize) -> [S::V; 2] {
        halves(s, paired(s, &values.as_chunks().0[vector]))
    }
}

/// Rounds values to the nearest `bf16`, to even. Those that do not fill a vector at the end keep numbers below the least
/// normal one, which the instructions that others are rounded by may not.
#[inline(always)]
pub(super) fn round<S: Simd>(s: S, from: &[f32], into: &mut [bf16]) {
    let (vectors, rest) = from.as_chunks::<LANES>();
    let (into, last) = into.as_chunks_mut::<LANES>();
    for (to, from) in into.iter_mut().zip(vectors) {
        *to = s.to_bf16(s.load(from));
    }
    for (to, from) in last.iter_mut().zip(rest) {
        *to = Element::from_f32(*from);
    }
}

/// Sixteen pairs of `bf16`, each in the bits of a lane, the first in its low half.
#[inline(always)]
pub(super) fn paired<S: Simd>(s: S, pairs: &[[bf16; LANES]; 2]) -> S::V {
    // By value: a reference would have to be aligned, which each load would check.
    s.load(&bytemuck::cast(*pairs))
}

/// The firsts and the seconds of pairs.
#[inline(always)]
fn halves<S: Simd>(s: S, pairs: S::V) -> [S::V; 2] {
    [s.low_bf16(pairs), s.high_bf16(pairs)]
}

#[allow(private_interfaces, private_bounds)]
impl Element for f16 {
    type Attended = Widened;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[f16; LANES]) -> S::V {
        s.load_f16(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for x in [
            0.0,
            -0.0,
            1.0,
            1.003_906_2,
            1.011_718_8,
            -3.2415,
            3.4e38,
            f32::INFINITY,
            1e-40,
        ] {
            assert_eq!(<bf16 as Element>::from_f32(x), bf16::from_f32(x), "{x}");
        }
        assert!(<bf16 as Element>::from_f32(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
