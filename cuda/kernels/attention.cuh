// What the kernels of attention share: tiles of keys and values in shared memory, their products with
// the queries of a warp, and the online softmax.
//
// A warp holds scores and sums as the C fragments of mma.cuh: also in f32, whose products are plain
// multiplications and additions, for tensor cores would round its inputs to 10 bits.
#pragma once

#include "attention_plan.cuh"
#include "mma.cuh"

// A layer's attention, and what it reads and writes.
struct Attention {
    const ELEMENT* qkv;     // [tokens, (group + 2) * kv_heads * HEAD_DIM]: queries, keys, values
    const ELEMENT* keys;    // [arena_blocks, kv_heads, BLOCK, HEAD_DIM]
    const ELEMENT* values;  // the same
    const i32* table;       // [rows, row_blocks]: blocks of the arena
    const Item* items;      // of the plan
    const i32* count;       // how many
    ELEMENT* out;           // [tokens, group * kv_heads * HEAD_DIM]
    i32 row_blocks;
    i32 arena_blocks;
    i32 kv_heads;
    i32 group;              // query heads that a kv head serves
    i32 window;             // tokens that a query sees, the last of them its own
    f32 scale;              // of the scores, times log2(e): the softmax is to the base of two

    // A query of a kv head of a row, and its result. They go by tokens, and within a token by heads.
    DEVICE const ELEMENT* query(const Item& item, i32 kv_head, i32 i) const {
        const i64 token = i64(item.first + i / group) * (group + 2) * kv_heads;
        return qkv + (token + kv_head * group + i % group) * HEAD_DIM;
    }
    DEVICE ELEMENT* result(const Item& item, i32 kv_head, i32 i) const {
        const i64 token = i64(item.first + i / group) * group * kv_heads;
        return out + (token + kv_head * group + i % group) * HEAD_DIM;
    }

    // Elements before the keys, or the values, of a kv head in a block of a row, and how many of its
    // tokens there are: none if the table names no block of the arena.
    DEVICE i64 place(const Item& item, i32 block, i32 kv_head, i32& count) const {
        const u32 number = table[i64(item.row) * row_blocks + block];
        const bool exists = number < u32(arena_blocks);
        count = exists ? item.context + item.tokens - block * BLOCK : 0;
        return (i64(exists ? number : 0) * kv_heads + kv_head) * BLOCK * HEAD_DIM;
    }
};

// Rows of D elements in shared memory, each followed by 16 free bytes. A row is then an odd number
// of chunks of 16 bytes, and the same chunk of eight rows in sequence lies in eight different groups
// of banks: load_matrices and loads of 16 bytes have no conflicts. Unlike a swizzle this serves head
// size 96, and offsets within a tile are constants.
template <class E, i32 D> struct Rows {
    static constexpr i32 CHUNKS = D / VECTOR<E>;
    static constexpr i32 STRIDE = D + VECTOR<E>;
    static_assert(CHUNKS % 2 == 0);
};

// Two neighbours, the first at an even place.
template <class E> struct alignas(2 * sizeof(E)) Pair { E at[2]; };
template <class E> DEVICE Pair<E> load_pair(const E* from) { return *reinterpret_cast<const Pair<E>*>(from); }

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// log2(x), off by 2^-22 at most.
DEVICE float log2_fast(float x) {
#ifdef __CUDACC_RTC__
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return log2f(x);
#endif
}

// Starts to copy the keys, or the values, of the first `count` tokens of a block; a warp does it
// together. After them come zeros, whatever lies there: a weight of zero would not hide a NaN.
template <class E, i32 D> DEVICE void copy_block(E* to, const E* from, i32 count) {
    constexpr i32 CHUNKS = Rows<E, D>::CHUNKS;
#pragma unroll
    for (i32 i = 0; i < BLOCK * CHUNKS / WARP; i++) {
        const i32 chunk = i * WARP + lane(), token = chunk / CHUNKS;
        E* const at = to + token * Rows<E, D>::STRIDE + chunk % CHUNKS * VECTOR<E>;
        copy_async16(at, from + chunk * VECTOR<E>, token < count);
    }
}

// Queries of a warp in shared memory.
template <class E, i32 D> struct SharedQueries {
    const E* rows;
    DEVICE MatrixA fragment(i32 tile, i32 step) const {
        const E* row = rows + (tile * 16 + lane() % 16) * Rows<E, D>::STRIDE;
        MatrixA a;
        load_matrices<false>(a.word, row + step * 16 + lane() / 16 * 8);
        return a;
    }
};

// 16 queries in registers, the same in every warp that holds them.
template <i32 D> struct HeldQueries {
    MatrixA steps[D / 16];
    DEVICE MatrixA fragment(i32, i32 step) const { return steps[step]; }
};

// Adds the products of TILES * 16 queries and KEYS keys.
template <class E, i32 D, i32 TILES, i32 KEYS, class Queries>
DEVICE void add_scores(float (&scores)[TILES][KEYS / 8][4], const Queries& queries, const E* keys) {
    constexpr i32 STRIDE = Rows<E, D>::STRIDE;
    if constexpr (sizeof(E) == 2) {
        // Four matrices are B operands of 16 keys: keys 0 to 7 and then 8 to 15, of each dimensions
        // 0 to 7 and 8 to 15.
        const E* row = keys + (lane() % 8 + lane() / 16 * 8) * STRIDE + lane() / 8 % 2 * 8;
#pragma unroll
        for (i32 step = 0; step < D / 16; step++) {
            MatrixA a[TILES];
#pragma unroll
            for (i32 tile = 0; tile < TILES; tile++) a[tile] = queries.fragment(tile, step);
#pragma unroll
            for (i32 pair = 0; pair < KEYS / 16; pair++) {
                u32 b[4];
                load_matrices<false>(b, row + pair * 16 * STRIDE + step * 16);
#pragma unroll
                for (i32 tile = 0; tile < TILES; tile++) {
                    multiply_add<E>(scores[tile][pair * 2], a[tile], b[0], b[1]);
                    multiply_add<E>(scores[tile][pair * 2 + 1], a[tile], b[2], b[3]);
                }
            }
        }
    } else {
        static_assert(TILES == 1);
        const E* query = queries.rows + lane() / 4 * STRIDE;
        const E* key = keys + lane() % 4 * 2 * STRIDE;
#pragma unroll 2
        for (i32 d = 0; d < D; d += 4) {
            float q[2][4];
            load_vector(query + d, q[0]);
            load_vector(query + 8 * STRIDE + d, q[1]);
#pragma unroll
            for (i32 n = 0; n < KEYS / 8; n++) {
                float k[2][4];
                load_vector(key + n * 8 * STRIDE + d, k[0]);
                load_vector(key + (n * 8 + 1) * STRIDE + d, k[1]);
#pragma unroll
                for (i32 i = 0; i < 4; i++)
#pragma unroll
                    for (i32 j = 0; j < 4; j++)
                        scores[0][n][i] = fmaf(q[i / 2][j], k[i % 2][j], scores[0][n][i]);
            }
        }
    }
}

// Adds the weighted values of KEYS tokens.
template <class E, i32 D, i32 TILES, i32 KEYS>
DEVICE void add_values(float (&sums)[TILES][D / 8][4], const float (&weights)[TILES][KEYS / 8][4],
                       const E* values) {
    constexpr i32 STRIDE = Rows<E, D>::STRIDE;
    if constexpr (sizeof(E) == 2) {
        const E* row = values + lane() % 16 * STRIDE + lane() / 16 * 8;
#pragma unroll
        for (i32 pair = 0; pair < KEYS / 16; pair++) {
            // C fragments of twice 8 keys are the A fragment of 16.
            MatrixA a[TILES];
#pragma unroll
            for (i32 tile = 0; tile < TILES; tile++)
#pragma unroll
                for (i32 word = 0; word < 4; word++) {
                    const float* of = &weights[tile][pair * 2 + word / 2][word % 2 * 2];
                    a[tile].word[word] = pack<E>(of[0], of[1]);
                }
#pragma unroll
            for (i32 step = 0; step < D / 16; step++) {
                u32 b[4];
                load_matrices<true>(b, row + pair * 16 * STRIDE + step * 16);
#pragma unroll
                for (i32 tile = 0; tile < TILES; tile++) {
                    multiply_add<E>(sums[tile][step * 2], a[tile], b[0], b[1]);
                    multiply_add<E>(sums[tile][step * 2 + 1], a[tile], b[2], b[3]);
                }
            }
        }
    } else {
        static_assert(TILES == 1);
#pragma unroll
        for (i32 n = 0; n < KEYS / 8; n++)
#pragma unroll 1
            for (i32 owner = 0; owner < 4; owner++)
#pragma unroll
                for (i32 i = 0; i < 2; i++) {
                    // Lane `owner` of each four has the weights of this key.
                    const i32 from = lane() / 4 * 4 + owner;
                    const float low = __shfl_sync(FULL_WARP, weights[0][n][i], from);
                    const float high = __shfl_sync(FULL_WARP, weights[0][n][i + 2], from);
                    const E* value = values + (n * 8 + owner * 2 + i) * STRIDE + lane() % 4 * 2;
#pragma unroll
                    for (i32 m = 0; m < D / 8; m++) {
                        const Pair<E> v = load_pair(value + m * 8);
#pragma unroll
                        for (i32 j = 0; j < 2; j++) {
                            sums[0][m][j] = fmaf(low, v.at[j], sums[0][m][j]);
                            sums[0][m][j + 2] = fmaf(high, v.at[j], sums[0][m][j + 2]);
                        }
                    }
                }
    }
}

// Hides of KEYS keys, the first of which is at position `first`, those that the queries of rows g
// and g + 8, at `positions`, do not see.
template <i32 KEYS>
DEVICE void hide(float (&scores)[KEYS / 8][4], i32 first, const i32 (&positions)[2], i32 window) {
#pragma unroll
    for (i32 half = 0; half < 2; half++) {
        const i32 low = first_visible(positions[half], window);
#pragma unroll
        for (i32 n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (i32 i = 0; i < 2; i++) {
                const i32 key = first + n * 8 + lane() % 4 * 2 + i;
                if (key < low || key > positions[half]) scores[n][half * 2 + i] = minus_infinity();
            }
    }
}

// The softmax over the scores so far, of rows g and g + 8 (Milakov and Gimelshein, 2018).
struct Softmax {
    // The highest score, times the scale, to which all weights are relative.
    float highest[2] = {minus_infinity(), minus_infinity()};
    // Sums of the weights in this lane's columns; after `finish`, in all.
    float totals[2] = {0, 0};

    // Turns scores into weights, and what was summed relative to lower scores into what it is
    // relative to the highest. A row that sees none of the keys stays as it was, to the bit.
    template <i32 KEYS, i32 D>
    DEVICE void add(float (&scores)[KEYS / 8][4], float (&sums)[D / 8][4], float scale) {
#pragma unroll
        for (i32 half = 0; half < 2; half++) {
            float above = minus_infinity();
#pragma unroll
            for (i32 n = 0; n < KEYS / 8; n++)
                above = fmaxf(above, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
            above = fmaxf(above, __shfl_xor_sync(FULL_WARP, above, 1));
            above = fmaxf(above, __shfl_xor_sync(FULL_WARP, above, 2));
            above = fmaxf(above * scale, highest[half]);
            // As long as nothing was seen, all weights are zero.
            const float base = above == minus_infinity() ? 0.0f : above;
            const float shrink = exp2_fast(highest[half] - base);
            float total = 0;
#pragma unroll
            for (i32 n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (i32 i = half * 2; i < half * 2 + 2; i++) {
                    scores[n][i] = exp2_fast(fmaf(scores[n][i], scale, -base));
                    total += scores[n][i];
                }
            highest[half] = above;
            totals[half] = fmaf(totals[half], shrink, total);
#pragma unroll
            for (i32 n = 0; n < D / 8; n++) {
                sums[n][half * 2] *= shrink;
                sums[n][half * 2 + 1] *= shrink;
            }
        }
    }

    DEVICE void finish() {
#pragma unroll
        for (i32 half = 0; half < 2; half++) {
            totals[half] += __shfl_xor_sync(FULL_WARP, totals[half], 1);
            totals[half] += __shfl_xor_sync(FULL_WARP, totals[half], 2);
        }
    }
};

// What sums are multiplied by at the end: one over the total, off by an ulp at most, and zero if nothing
// was seen, as by what fills up a batch. In full precision it would be a call.
DEVICE float inverse(float total) {
#ifdef __CUDACC_RTC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(total));
#else
    const float y = 1 / total;
#endif
    return total == 0 ? 0 : y;
}
