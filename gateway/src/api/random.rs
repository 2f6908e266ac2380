//! Random numbers for ids and for requests without a seed, and the keys of sampling.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A number that nobody can foresee: a hash under a fresh key, which the standard library draws
/// from the operating system.
pub(crate) fn unpredictable() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// An id such as `cmpl-` and 32 hexadecimal digits.
pub(super) fn id(prefix: &str) -> String {
    format!("{prefix}-{:016x}{:016x}", unpredictable(), unpredictable())
}

/// The id of a call of a tool: `call_` and 24 hexadecimal digits.
pub(super) fn call_id() -> String {
    format!(
        "call_{:016x}{:08x}",
        unpredictable(),
        unpredictable() as u32
    )
}

/// The key of the random numbers of one choice: output number `index` (from 0) of the SplitMix64
/// generator (Steele, Lea and Flood, 2014) whose state starts at `seed`. So a choice draws the
/// same whatever `n` is.
pub(crate) fn key(seed: u64, index: usize) -> u64 {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = seed.wrapping_add(GAMMA.wrapping_mul((index as u64).wrapping_add(1)));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_splitmix64() {
        // The first outputs for state 1234567, as published with the generator.
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!([0, 1, 2].map(|i| key(1_234_567, i)), expected);
    }

    #[test]
    fn ids_differ() {
        let (a, b) = (id("cmpl"), id("cmpl"));
        assert_ne!(a, b);
        assert_eq!(a.len(), "cmpl-".len() + 32);
        let (a, b) = (call_id(), call_id());
        assert_ne!(a, b);
        assert_eq!(a.len(), "call_".len() + 24);
    }
}
