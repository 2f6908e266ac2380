// Attention of rows of many tokens to the arena, where their own keys and values are stored already:
// FlashAttention-2 (Dao, 2023), for tokens of any prefix and any number of sequences.
//
// A unit of work is a tile of queries of a row and a kv head: query heads, times tokens, so that few
// tokens fill a tile too and keys and values are read once for all heads. Four warps take TILES
// times 16 queries each, through the keys and values in shared memory that all of them need; the
// next are copied meanwhile.
//
// Shared memory and tensor cores bound it. For head size 128 in bf16, 32 keys take a warp with two tiles
// of queries 48 load_matrices of 512 bytes and 128 mma; the four warps keep an SM's shared memory busy
// for 768 cycles, and its tensor cores for 840 at the 62 % of their rate that mma.sync reaches on
// Hopper. With one tile per warp, as many products would take shared memory 1,280 cycles. Of the 255 registers
// of a thread 128 then hold sums and 32 scores, and two thread blocks are resident: one computes weights
// while the other multiplies.

#include "attention.cuh"

template <class E, i32 D> struct Layout {
    static constexpr i32 WARPS = 4;
    static constexpr i32 THREADS = WARPS * WARP;
    // Tiles of 16 queries of a warp: as registers allow.
    static constexpr i32 TILES = sizeof(E) == 2 && D <= 128 ? 2 : 1;
    static constexpr i32 QUERIES = WARPS * TILES * 16;
    // Keys that are in shared memory together, twice.
    static constexpr i32 KEYS = sizeof(E) == 4 ? 16 : D <= 128 ? 64 : 32;
    // Keys whose scores are in registers together: as many as leave room for the sums.
    static constexpr i32 AT_ONCE = sizeof(E) == 4 ? 16 : D <= 64 ? 64 : 32;
    static constexpr i32 STRIDE = Rows<E, D>::STRIDE;

    E queries[QUERIES * STRIDE];
    E tokens[2][2][KEYS * STRIDE];
};

template <class E, i32 D> struct Unit {
    using Is = Layout<E, D>;
    const Attention& p;
    Item item;
    i32 kv_head;
    // The first of the row's queries, and how many.
    i32 skip, queries;

    // The warp's own queries.
    DEVICE E* rows(Is& shared) const { return shared.queries + warp() * Is::TILES * 16 * Is::STRIDE; }
    // The position of a query.
    DEVICE i32 position(i32 i) const { return item.context + (skip + i) / p.group; }

    DEVICE void copy_queries(Is& shared) const {
        constexpr i32 CHUNKS = Rows<E, D>::CHUNKS;
#pragma unroll 1
        for (i32 i = threadIdx.x; i < Is::QUERIES * CHUNKS; i += Is::THREADS) {
            const i32 row = i / CHUNKS, at = i % CHUNKS * VECTOR<E>;
            const bool valid = row < queries;
            const E* from = p.query(item, kv_head, skip + (valid ? row : 0));
            copy_async16(shared.queries + row * Is::STRIDE + at, from + at, valid);
        }
    }

    // Starts to copy the keys and values of KEYS tokens; those that nobody sees are zeros.
    DEVICE void copy_tokens(Is& shared, i32 stage, i32 begin) const {
        for (i32 i = warp(); i < Is::KEYS / BLOCK * 2; i += Is::WARPS) {
            i32 block = begin + i / 2, count = 0;
            i64 at = 0;
            if (block < item.end) at = p.place(item, block, kv_head, count);
            E* const to = shared.tokens[stage][i % 2] + i / 2 * BLOCK * Is::STRIDE;
            copy_block<E, D>(to, (i % 2 == 0 ? p.keys : p.values) + at, count);
        }
    }

    // Sums of the values, and the softmax, of the warp's queries.
    DEVICE void attend(Is& shared, float (&sums)[Is::TILES][D / 8][4], Softmax (&softmax)[Is::TILES]) const {
        constexpr i32 TILES = Is::TILES, STEP = Is::KEYS / BLOCK, AT_ONCE = Is::AT_ONCE;
        copy_queries(shared);
        copy_tokens(shared, 0, item.begin);
        copy_async_commit();

        const SharedQueries<E, D> own{rows(shared)};
        const i32 first_own = warp() * TILES * 16, last_own = min_of(first_own + TILES * 16, queries) - 1;
        // Positions of the warp's first and last query; a warp without queries sees nothing.
        const i32 first_position = position(first_own);
        const i32 last_position = first_own < queries ? position(last_own) : -1;
        i32 stage = 0;
        for (i32 begin = item.begin; begin < item.end; begin += STEP) {
            copy_async_wait<0>();
            __syncthreads();
            if (begin + STEP < item.end) {
                copy_tokens(shared, 1 - stage, begin + STEP);
                copy_async_commit();
            }
            const auto& tokens = shared.tokens[stage];
            stage = 1 - stage;
#pragma unroll 1
            for (i32 skipped = 0; skipped < Is::KEYS; skipped += AT_ONCE) {
                const i32 first = begin * BLOCK + skipped;
                if (first > last_position || first + AT_ONCE <= first_visible(first_position, p.window)) continue;
                float scores[TILES][AT_ONCE / 8][4] = {};
                add_scores<E, D, TILES, AT_ONCE>(scores, own, tokens[0] + skipped * Is::STRIDE);
                // Every query sees most keys.
                const bool all = first >= first_visible(last_position, p.window) && first + AT_ONCE <= first_position + 1;
#pragma unroll
                for (i32 tile = 0; tile < TILES; tile++) {
                    if (!all) {
                        const i32 query = first_own + tile * 16 + lane() / 4;
                        hide<AT_ONCE>(scores[tile], first, {position(query), position(query + 8)}, p.window);
                    }
                    softmax[tile].template add<AT_ONCE, D>(scores[tile], sums[tile], p.scale);
                }
                add_values<E, D, TILES, AT_ONCE>(sums, scores, tokens[1] + skipped * Is::STRIDE);
            }
        }
    }

    // Writes the results, by way of where the warp's own queries were: in whole rows.
    DEVICE void write(Is& shared, const float (&sums)[Is::TILES][D / 8][4], Softmax (&softmax)[Is::TILES]) const {
        E* const own = rows(shared);
        __syncwarp();
#pragma unroll
        for (i32 tile = 0; tile < Is::TILES; tile++) {
            softmax[tile].finish();
#pragma unroll
            for (i32 half = 0; half < 2; half++) {
                const float by = inverse(softmax[tile].totals[half]);
                E* const to = own + (tile * 16 + half * 8 + lane() / 4) * Is::STRIDE + lane() % 4 * 2;
#pragma unroll
                for (i32 n = 0; n < D / 8; n++) {
                    const float* of = &sums[tile][n][half * 2];
                    *reinterpret_cast<Pair<E>*>(to + n * 8) = {{from_float<E>(of[0] * by), from_float<E>(of[1] * by)}};
                }
            }
        }
        __syncwarp();
        constexpr i32 CHUNKS = Rows<E, D>::CHUNKS;
        const i32 first_own = warp() * Is::TILES * 16;
        for (i32 i = lane(); i < Is::TILES * 16 * CHUNKS; i += WARP) {
            const i32 row = i / CHUNKS, at = i % CHUNKS * VECTOR<E>;
            if (first_own + row >= queries) break;
            store16(p.result(item, kv_head, skip + first_own + row) + at, load16(own + row * Is::STRIDE + at));
        }
    }
};

template <class E, i32 D> DEVICE void prefill(const Attention& p) {
    using Is = Layout<E, D>;
    auto& shared = *reinterpret_cast<Is*>(dynamic_shared());
    const auto unit_of = [&](i32 number) {
        const Item item = p.items[number / p.kv_heads];
        const i32 skip = item.part * Is::QUERIES, queries = min_of(item.tokens * p.group - skip, Is::QUERIES);
        return Unit<E, D>{p, item, number % p.kv_heads, skip, queries};
    };
    const i32 units = *p.count * p.kv_heads;
    for (i32 number = blockIdx.x; number < units; number += gridDim.x) {
        float sums[Is::TILES][D / 8][4] = {};
        Softmax softmax[Is::TILES];
        unit_of(number).attend(shared, sums, softmax);
        // It is loaded again, for no register is free to keep it meanwhile.
        unit_of(number).write(shared, sums, softmax);
        // The next unit's queries and tokens go where those of this one are.
        __syncthreads();
    }
}

KERNEL(attention_prefill, Attention, (Layout<ELEMENT, HEAD_DIM>::THREADS)) { prefill<ELEMENT, HEAD_DIM>(p); }
