//! Rotary position embedding, and the storing of keys and values in the arena.

use super::attention::Attention;
use super::element::Element;
use super::norm::scale;
use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Tokens of a task, at most.
const TOKENS: usize = 16;

/// Cosines and sines of every position seen so far.
pub struct Rotary {
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// For the angle per position of each pair of a head's dimensions.
    pub fn new(frequencies: Vec<f32>) -> Rotary {
        Rotary {
            frequencies,
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Fills the tables up to `positions`. They grow with the longest sequence seen, for a
    /// context of 131072 would cost a third of a second and 64 MiB at start-up.
    pub fn extend_to(&mut self, positions: usize) {
        let done = self.cos.len() / self.frequencies.len().max(1);
        if positions <= done {
            return;
        }
        for position in done..positions.next_multiple_of(256) {
            for frequency in &self.frequencies {
                let angle = f64::from(position as f32 * frequency);
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }
}

/// Where one token of a step goes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Its position in its sequence.
    pub position: u32,
    /// The KV block of that position.
    pub block: u32,
}

/// Rotates the queries and keys of `qkv` (rows of all query heads, key heads, value heads) by
/// their position, each head first normalized by the weights in `norms` if there are any, and
/// stores keys and values in a layer of the arena. Queries and keys are rotated in place.
///
/// No two tokens may have the same block and the same position within it.
///
/// # Panics
/// If `qkv` is not a row per place, a block is outside of the arena, or a position outside of
/// the tables.
pub fn rotate_and_store<T: Element>(
    threads: &Threads,
    shape: &Attention,
    rotary: &Rotary,
    norms: Option<(&[f32], &[f32], f32)>,
    places: &[Place],
    qkv: &mut [f32],
    (keys, values): (&mut [T], &mut [T]),
) {
    let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    assert!(qkv.len() == places.len() * width);
    let (qkv, keys, values) = (
        Disjoint::new(qkv),
        Disjoint::new(keys),
        Disjoint::new(values),
    );
    let (half, rotated) = (shape.head_dim / 2, shape.heads + shape.kv_heads);
    let one = |token: usize| {
        let place = places[token];
        let position = place.position as usize;
        let (block, slot) = (place.block as usize, position % LANES);
        // SAFETY: each token's row is touched by its own task.
        let row = unsafe { qkv.slice(token * width..(token + 1) * width) };
        let (heads, new_values) = row.split_at_mut(rotated * shape.head_dim);
        dispatch(Rotate {
            heads,
            shape,
            norms,
            cos: &rotary.cos[position * half..][..half],
            sin: &rotary.sin[position * half..][..half],
        });
        dispatch(Store {
            shape,
            new_keys: &heads[shape.heads * shape.head_dim..],
            new_values,
            block,
            slot,
            keys: &keys,
            values: &values,
        });
    };
    threads.run_in_ranges(places.len(), TOKENS, |tokens| tokens.for_each(&one));
}

/// The keys and values of one token on their way to the arena.
struct Store<'a, T> {
    shape: &'a Attention,
    new_keys: &'a [f32],
    new_values: &'a [f32],
    block: usize,
    slot: usize,
    keys: &'a Disjoint<'a, T>,
    values: &'a Disjoint<'a, T>,
}

impl<T: Element> Kernel for Store<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, slot) = (self.shape, self.slot);
        let new_keys = self.new_keys.chunks_exact(shape.head_dim);
        let new_values = self.new_values.chunks_exact(shape.head_dim);
        let width = shape.value_width();
        let mut rounded = [T::zeroed(); LANES];
        for (h, (key, value)) in new_keys.zip(new_values).enumerate() {
            let keys = shape.key_tile(self.block, h);
            let values = shape.value_tile(self.block, h);
            for (part, (key, value)) in key.chunks(LANES).zip(value.chunks(LANES)).enumerate() {
                let first = part * LANES;
                let some = &mut rounded[..key.len()];
                T::round(s, key, some);
                for (i, x) in some.iter().enumerate() {
                    // SAFETY: a token's slot of a block is written by that token alone.
                    unsafe { self.keys.put(keys + T::key_place(first + i, slot), *x) };
                }
                T::round(s, value, some);
                for (i, x) in some.iter().enumerate() {
                    let place = T::value_place(width, slot, first + i);
                    // SAFETY: as above.
                    unsafe { self.values.put(values + place, *x) };
                }
            }
        }
    }
}

/// The query heads of one token and its key heads, in place.
struct Rotate<'a> {
    heads: &'a mut [f32],
    shape: &'a Attention,
    norms: Option<(&'a [f32], &'a [f32], f32)>,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attention {
            heads, head_dim, ..
        } = *self.shape;
        for (number, head) in self.heads.chunks_exact_mut(head_dim).enumerate() {
            if let Some((queries, keys, eps)) = self.norms {
                let weight = if number < heads { queries } else { keys };
                let scale = scale(s, head, eps);
                for (x, w) in head.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
            // Dimension i is paired with i + half, as in the checkpoints of the hub.
            let (a, b) = head.split_at_mut(self.cos.len());
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(self.cos).zip(self.sin) {
                let (x, y) = (*a, *b);
                *a = x * cos - y * sin;
                *b = y * cos + x * sin;
            }
        }
    }
}
