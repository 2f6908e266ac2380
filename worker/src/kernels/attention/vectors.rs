//! Attention by vectors: a few queries at once against a group of tokens at once.
//!
//! Scores of the queries, and then sums of as many of their dimensions, stay in registers: each key and each value that
//! is loaded is multiplied by all queries, and each value of a query by all keys. What computes with vectors is in loops
//! here, not in closures: only what is inlined is compiled for the instruction set, and closures are not always.

use std::array::{from_fn, from_ref};
use std::marker::PhantomData;
use std::ops::Range;

use super::arithmetic::{Arithmetic, Weights, Widened};
use super::{BLOCKS, GROUP, Softmax, Task, hide};
use crate::kernels::element::Element;
use crate::kernels::simd::{Kernel, LANES, Simd};

/// Pairs of tokens of a block.
const PAIRS: usize = LANES / 2;

/// Queries that are computed together, at most: with four vectors for each they leave room in the registers for what
/// they are multiplied with.
const TILE: usize = 6;

/// A task, computed by an arithmetic.
pub(super) struct By<'a, T, A>(pub(super) Task<'a, T>, pub(super) PhantomData<A>);

/// What a task keeps of its queries from group to group. Queries are in the order of positions:
/// all heads of a token, then the next token.
struct Queries {
    /// Tile after tile of `[value, query]`, prepared for an arithmetic.
    prepared: Vec<f32>,
    /// Values of each.
    width: usize,
    /// The positions that each sees.
    seen: Vec<Range<usize>>,
    softmax: Vec<Softmax>,
    /// Room for the weights that a tile gives to a group.
    weights: Weights<TILE>,
    /// `[query, dimension]`: weighted sums of the values so far.
    sums: Vec<f32>,
}

/// Keys and values of a group, of one kv head.
struct Group<'a, E> {
    /// Position of the first token.
    first: usize,
    /// Of each block; of one that no query sees, those of another.
    keys: [&'a [E]; BLOCKS],
    values: [&'a [E]; BLOCKS],
}

/// What is brought in while a tile is computed. Where that is nothing, it is what is read at the same time: to ask for
/// what is there takes less than to ask whether.
#[derive(Clone, Copy)]
struct Ahead<'a, E> {
    /// While scores are computed: the values of the group.
    values: &'a [&'a [E]; BLOCKS],
    /// While values are added: the keys of the next group.
    keys: &'a [&'a [E]; BLOCKS],
}

impl<T: Element, A: Arithmetic<T>> Kernel for By<'_, T, A> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let By(task, _) = self;
        let span = task.span;
        let last = span.context + span.len - 1;
        let seen = task.visible(span.context).start..last + 1;
        let mut group = task.group(seen.start / GROUP * GROUP, &seen);
        for keys in group.keys {
            for pair in 0..keys.len() / (2 * LANES) {
                bring_in::<S, T, 1>(s, keys, pair);
            }
        }
        let mut queries = task.queries::<S, A>(s);
        // Several tiles read the same keys and values: those are widened once for all of them.
        let many = A::WIDENS && queries.softmax.len() > TILE;
        let room = group.keys[0].len() + group.values[0].len();
        let mut wide = vec![0.0; if many { BLOCKS * room } else { 0 }];
        loop {
            let next = group.first + GROUP;
            let following = (next < seen.end).then(|| task.group(next, &seen));
            if many {
                let group = group.widened(s, &mut wide);
                task.attend::<S, f32, Widened>(s, &group, None, &mut queries);
            } else {
                task.attend::<S, T, A>(s, &group, following.as_ref(), &mut queries);
            }
            match following {
                Some(following) => group = following,
                None => break,
            }
        }
        task.finish(s, &queries.softmax, &mut queries.sums);
    }
}

impl<E: Element> Group<'_, E> {
    /// The same in `f32`, in `room` for all of it.
    #[inline(always)]
    fn widened<'r, S: Simd>(&self, s: S, room: &'r mut [f32]) -> Group<'r, f32> {
        let (keys, values) = (self.keys[0].len(), self.values[0].len());
        let (wide_keys, wide_values) = room.split_at_mut(BLOCKS * keys);
        for (from, to) in self.keys.iter().zip(wide_keys.chunks_exact_mut(keys)) {
            widen_keys(s, from, to);
        }
        for (from, to) in self.values.iter().zip(wide_values.chunks_exact_mut(values)) {
            widen_values(s, from, to);
        }
        let (wide_keys, wide_values) = (&*wide_keys, &*wide_values);
        Group {
            first: self.first,
            keys: from_fn(|block| &wide_keys[block * keys..][..keys]),
            values: from_fn(|block| &wide_values[block * values..][..values]),
        }
    }
}

/// Has the cache bring in some of what will be needed soon: `N` pairs of vectors from the `first`-th on.
#[inline(always)]
fn bring_in<S: Simd, E, const N: usize>(s: S, values: &[E], first: usize) {
    const LINE: usize = 64;
    let pairs = values.as_ptr().cast::<[E; 2 * LANES]>().wrapping_add(first);
    for line in 0..N * size_of::<[E; 2 * LANES]>() / LINE {
        s.prefetch(pairs.cast::<u8>().wrapping_add(line * LINE));
    }
}

impl<T: Element> Task<'_, T> {
    /// The group that begins at position `first`, of which some tokens are `seen`.
    #[inline(always)]
    fn group(&self, first: usize, seen: &Range<usize>) -> Group<'_, T> {
        let shape = self.layer.shape;
        let blocks = self.blocks(first, seen);
        let (keys, values) = (shape.head_dim * LANES, LANES * shape.value_width());
        Group {
            first,
            keys: blocks.map(|i| &self.layer.keys[shape.key_tile(i, self.kv_head)..][..keys]),
            values: blocks
                .map(|i| &self.layer.values[shape.value_tile(i, self.kv_head)..][..values]),
        }
    }

    /// The queries of all tokens, which have seen nothing yet.
    #[inline(always)]
    fn queries<S: Simd, A: Arithmetic<T>>(&self, s: S) -> Queries {
        let head_dim = self.layer.shape.head_dim;
        let scale = self.layer.shape.scale();
        let count = self.count();
        let width = A::width(head_dim);
        let mut prepared = vec![0.0; count * width];
        let mut first = 0;
        while first < count {
            let queries = tile_of(count - first);
            let tile = &mut prepared[first * width..][..queries * width];
            for q in 0..queries {
                A::prepare(s, self.values_of(first + q), scale, &mut tile[q..], queries);
            }
            first += queries;
        }
        Queries {
            prepared,
            width,
            seen: (0..count).map(|q| self.visible(self.query(q).1)).collect(),
            softmax: vec![Softmax::NOTHING; count],
            weights: [[[0.0; LANES]; BLOCKS]; TILE],
            sums: vec![0.0; count * self.layer.shape.value_width()],
        }
    }

    /// Adds the tokens of a group to what every query has seen. The keys of the `following` one are brought in
    /// meanwhile.
    #[inline(always)]
    fn attend<S: Simd, E: Element, A: Arithmetic<E>>(
        &self,
        s: S,
        group: &Group<'_, E>,
        following: Option<&Group<'_, E>>,
        queries: &mut Queries,
    ) {
        let count = queries.softmax.len();
        let mut first = 0;
        let nothing = Ahead {
            values: &group.keys,
            keys: &group.values,
        };
        let mut ahead = Ahead {
            values: &group.values,
            keys: following.map_or(nothing.keys, |group| &group.keys),
        };
        while first < count {
            let number = tile_of(count - first);
            match number {
                1 => self.tile::<S, E, A, 1>(s, group, &ahead, first, queries),
                2 => self.tile::<S, E, A, 2>(s, group, &ahead, first, queries),
                3 => self.tile::<S, E, A, 3>(s, group, &ahead, first, queries),
                4 => self.tile::<S, E, A, 4>(s, group, &ahead, first, queries),
                _ => self.tile::<S, E, A, TILE>(s, group, &ahead, first, queries),
            }
            first += number;
            ahead = nothing;
        }
    }

    /// The same for the `Q` queries from `first` on, which read each key and value together.
    #[inline(always)]
    fn tile<S: Simd, E: Element, A: Arithmetic<E>, const Q: usize>(
        &self,
        s: S,
        group: &Group<'_, E>,
        ahead: &Ahead<'_, E>,
        first: usize,
        queries: &mut Queries,
    ) {
        let Queries {
            prepared,
            width,
            seen,
            softmax,
            weights,
            sums,
        } = queries;
        let seen = &seen[first..][..Q];
        let end = group.first + GROUP;
        // The first query sees the lowest positions, the last one the highest.
        let tokens = seen[0].start.max(group.first)..seen[Q - 1].end.min(end);
        if tokens.is_empty() {
            return;
        }
        let prepared = prepared[first * *width..][..Q * *width].as_chunks().0;
        let scores = scores::<S, E, A, Q>(s, prepared, &group.keys, ahead.values);
        let width = self.layer.shape.value_width() / LANES;
        let sums = &mut sums.as_chunks_mut::<LANES>().0[first * width..][..Q * width];
        let Some(weights) = weights.first_chunk_mut::<Q>() else {
            unreachable!("a tile has at most {TILE} queries");
        };
        for (q, softmax) in softmax[first..][..Q].iter_mut().enumerate() {
            let seen = seen[q].start.max(group.first)..seen[q].end.min(end);
            if seen.is_empty() {
                weights[q] = [[0.0; LANES]; BLOCKS];
                continue;
            }
            let mut scores = scores[q];
            if seen.len() < GROUP {
                let seen = seen.start - group.first..seen.end - group.first;
                hide(s, &mut scores, seen);
            }
            let weighed = softmax.weigh(s, scores, &mut sums[q * width..][..width]);
            for (weighed, weights) in weighed.into_iter().zip(&mut weights[q]) {
                A::weights(s, weighed, weights);
            }
        }
        let tokens = tokens.start - group.first..tokens.end - group.first;
        add_values::<S, E, A, Q>(s, weights, tokens, &group.values, ahead.keys, sums);
    }
}

/// How many of so many queries the next tile takes: as many as there are tiles for, and leave no small rest.
#[inline(always)]
fn tile_of(queries: usize) -> usize {
    match queries {
        1..=4 => queries,
        5 => 3,
        7 | 8 => 4,
        _ => TILE,
    }
}

/// Scores of the tokens of a group against `Q` queries. Of what is `ahead` as much is brought in.
#[inline(always)]
fn scores<S: Simd, E: Element, A: Arithmetic<E>, const Q: usize>(
    s: S,
    queries: &[[f32; Q]],
    keys: &[&[E]; BLOCKS],
    ahead: &[&[E]; BLOCKS],
) -> [[S::V; BLOCKS]; Q] {
    if S::WIDE {
        return scores_of::<S, E, A, Q, BLOCKS>(s, queries, keys, ahead);
    }
    let mut scores = [[s.splat(0.0); BLOCKS]; Q];
    for block in 0..BLOCKS {
        let (keys, ahead) = (from_ref(&keys[block]), from_ref(&ahead[block]));
        let some = scores_of::<S, E, A, Q, 1>(s, queries, keys, ahead);
        for q in 0..Q {
            scores[q][block] = some[q][0];
        }
    }
    scores
}

/// The same of `B` blocks.
#[inline(always)]
fn scores_of<S: Simd, E: Element, A: Arithmetic<E>, const Q: usize, const B: usize>(
    s: S,
    queries: &[[f32; Q]],
    keys: &[&[E]; B],
    ahead: &[&[E]; B],
) -> [[S::V; B]; Q] {
    let pairs = queries.len() / A::VALUES;
    let mut some: [&[[[E; LANES]; 2]]; B] = [&[]; B];
    for (some, keys) in some.iter_mut().zip(keys) {
        *some = &keys.as_chunks().0.as_chunks().0[..pairs];
    }
    let mut sums = [[s.splat(0.0); B]; Q];
    for (pair, query) in queries.chunks_exact(A::VALUES).enumerate() {
        for ahead in ahead {
            bring_in::<S, E, 1>(s, ahead, pair);
        }
        // SAFETY: keys have as many pairs as queries, and this is all of one.
        sums = unsafe { A::add_scores(s, sums, query, &some, pair) };
    }
    sums
}

/// Adds the weighted values of some tokens of a group to the sums of `Q` queries. Tokens outside of `tokens` are not even
/// multiplied by zero: what an earlier sequence left there may be NaN. Of what is `ahead` as much is brought in.
#[inline(always)]
fn add_values<S: Simd, E: Element, A: Arithmetic<E>, const Q: usize>(
    s: S,
    weights: &Weights<Q>,
    tokens: Range<usize>,
    values: &[&[E]; BLOCKS],
    ahead: &[&[E]; BLOCKS],
    sums: &mut [[f32; LANES]],
) {
    let width = sums.len() / Q;
    // In the order of positions, also where one of a pair is not seen: another query may see both.
    if tokens.start % 2 == 1 {
        add_alone::<S, E, A, Q>(s, weights, tokens.start, values, sums);
    }
    let mut part = Part {
        weights,
        pairs: tokens.start.div_ceil(2)..tokens.end / 2,
        values,
        ahead,
        vector: 0,
    };
    while part.vector < width {
        // Half the registers of half the width: a vector at a time.
        match width - part.vector {
            4.. if S::WIDE => part.add::<S, A, 4>(s, sums),
            2.. if S::WIDE => part.add::<S, A, 2>(s, sums),
            _ => part.add::<S, A, 1>(s, sums),
        }
    }
    if tokens.end % 2 == 1 {
        add_alone::<S, E, A, Q>(s, weights, tokens.end - 1, values, sums);
    }
}

/// The same of one token, whose other of the pair is not seen.
#[inline(always)]
fn add_alone<S: Simd, E: Element, A: Arithmetic<E>, const Q: usize>(
    s: S,
    weights: &Weights<Q>,
    token: usize,
    values: &[&[E]; BLOCKS],
    sums: &mut [[f32; LANES]],
) {
    let width = sums.len() / Q;
    let (block, token) = (token / LANES, token % LANES);
    let pair = &values[block].as_chunks().0[token / 2 * 2 * width..][..2 * width];
    A::add_token::<S, Q>(s, weights, block, token, pair, sums);
}

/// Whole pairs of tokens, and the vectors of dimensions from one on.
struct Part<'a, E, const Q: usize> {
    weights: &'a Weights<Q>,
    pairs: Range<usize>,
    values: &'a [&'a [E]; BLOCKS],
    ahead: &'a [&'a [E]; BLOCKS],
    vector: usize,
}

impl<E: Element, const Q: usize> Part<'_, E, Q> {
    /// Adds `V` vectors of the weighted values, and goes on behind them.
    #[inline(always)]
    fn add<S: Simd, A: Arithmetic<E>, const V: usize>(&mut self, s: S, sums: &mut [[f32; LANES]]) {
        let (width, vector) = (sums.len() / Q, self.vector);
        let mut sum = [[s.splat(0.0); V]; Q];
        for q in 0..Q {
            for v in 0..V {
                sum[q][v] = s.load(&sums[q * width + vector + v]);
            }
        }
        for block in self.pairs.start / PAIRS..self.pairs.end.div_ceil(PAIRS) {
            let first = block * PAIRS;
            let start = self.pairs.start.max(first) - first;
            let end = self.pairs.end.min(first + PAIRS) - first;
            let pairs = &self.values[block].as_chunks().0[start * 2 * width..end * 2 * width];
            for (number, pair) in (start..end).zip(pairs.chunks_exact(2 * width)) {
                bring_in::<S, E, V>(s, self.ahead[block], number * width + vector);
                // SAFETY: a group has that block, a block that pair, and there are as many vectors.
                sum = unsafe { A::add_pair(s, sum, self.weights, block, number, pair, vector) };
            }
        }
        for q in 0..Q {
            for v in 0..V {
                s.store(sum[q][v], &mut sums[q * width + vector + v]);
            }
        }
        self.vector += V;
    }
}

/// The keys of a block as `f32`.
#[inline(always)]
fn widen_keys<S: Simd, T: Element>(s: S, from: &[T], to: &mut [f32]) {
    let (from, _) = from.as_chunks::<LANES>().0.as_chunks::<2>();
    let (to, _) = to.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>();
    for (from, to) in from.iter().zip(to) {
        let [first, second] = T::keys(s, from);
        s.store(first, &mut to[0]);
        s.store(second, &mut to[1]);
    }
}

/// The same of the values.
#[inline(always)]
fn widen_values<S: Simd, T: Element>(s: S, from: &[T], to: &mut [f32]) {
    let ((from, _), (to, _)) = (from.as_chunks::<LANES>(), to.as_chunks_mut::<LANES>());
    let pair = from.len() / PAIRS;
    for (from, to) in from.chunks_exact(pair).zip(to.chunks_exact_mut(pair)) {
        for vector in 0..pair / 2 {
            let [first, second] = T::values(s, from, vector);
            s.store(first, &mut to[vector]);
            s.store(second, &mut to[pair / 2 + vector]);
        }
    }
}
