//! Rotary position embedding, and the storing of keys and values in the arena.

use super::attention::Attention;
use super::element::Element;
use super::norm::Norm;
use super::parallel::{Disjoint, Threads};
use super::simd::{Kernel, LANES, Simd, dispatch};

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
/// stores keys and values in a layer of the arena. Queries are rotated in place.
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
    let half = shape.head_dim / 2;
    threads.run(places.len(), |token| {
        let place = places[token];
        let position = place.position as usize;
        let (block, slot) = (place.block as usize, position % LANES);
        let cos = &rotary.cos[position * half..][..half];
        let sin = &rotary.sin[position * half..][..half];
        // SAFETY: each token's row is touched by its own task.
        let row = unsafe { qkv.slice(token * width..(token + 1) * width) };
        let (queries, rest) = row.split_at_mut(shape.heads * shape.head_dim);
        let (new_keys, new_values) = rest.split_at(shape.kv_heads * shape.head_dim);
        let mut head = vec![0.0; shape.head_dim];
        let mut key = vec![0.0; shape.head_dim];
        for query in queries.chunks_exact_mut(shape.head_dim) {
            head.copy_from_slice(query);
            let norm = norms.map(|(weight, _, eps)| (weight, eps));
            dispatch(Rotate {
                head: &mut head,
                cos,
                sin,
                norm,
                out: query,
            });
        }
        for h in 0..shape.kv_heads {
            let part = h * shape.head_dim..(h + 1) * shape.head_dim;
            head.copy_from_slice(&new_keys[part.clone()]);
            let norm = norms.map(|(_, weight, eps)| (weight, eps));
            dispatch(Rotate {
                head: &mut head,
                cos,
                sin,
                norm,
                out: &mut key,
            });
            let start = shape.key_tile(block, h);
            for (d, value) in key.iter().enumerate() {
                let at = start + T::key_place(d, slot);
                // SAFETY: a token's slot of a block is written by that token alone.
                let into = unsafe { keys.slice(at..at + 1) };
                into.fill(T::from_f32(*value));
            }
            let (start, width) = (shape.value_tile(block, h), shape.value_width());
            for (d, value) in new_values[part].iter().enumerate() {
                let at = start + T::value_place(width, slot, d);
                // SAFETY: as above.
                let into = unsafe { values.slice(at..at + 1) };
                into.fill(T::from_f32(*value));
            }
        }
    });
}

/// One head of one token.
struct Rotate<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    norm: Option<(&'a [f32], f32)>,
    out: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if let Some((weight, eps)) = self.norm {
            Norm {
                x: self.head,
                weight,
                eps,
                out: self.out,
            }
            .run(s);
            self.head.copy_from_slice(self.out);
        }
        // Dimension i is paired with i + half, as in the checkpoints of the hub.
        let (a, b) = self.head.split_at(self.cos.len());
        let (out_a, out_b) = self.out.split_at_mut(self.cos.len());
        for i in 0..self.cos.len() {
            let (x, y) = (a[i], b[i]);
            out_a[i] = x * self.cos[i] - y * self.sin[i];
            out_b[i] = y * self.cos[i] + x * self.sin[i];
        }
    }
}
