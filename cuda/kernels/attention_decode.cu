// Attention of rows of one token, or of a few, to the arena: Flash-Decoding (Dao et al., 2023) with
// all query heads of a kv head together.
//
// A unit of work is a split of a row, for up to 16 queries of a kv head: its query heads, times the
// tokens if the row has several. Each warp takes every fourth block of the arena into a ring of its
// own in shared memory, with an online softmax of its own, and waits for nobody; at the end the
// warps' sums are merged. The thread block that ends last of a row's splits combines them, always in
// their order: a kernel for that would cost a launch in every layer, some 2 % of a step of one stream.
//
// Bandwidth bounds it. An SM of an H200 (4.3 TB/s, 132 SMs) receives 33 bytes per ns, and must have
// 33 KiB on the way to hide 1 us. For head size 128 in bf16, a block of keys and values is 8 KiB and a
// ring two of them; three thread blocks fit into an SM (71 KiB, and 128 times 168 registers, each),
// so that 192 KiB can be on the way, and 128 KiB while one of three starts or ends a unit. In the
// 250 ns in which 8 KiB arrive, the four schedulers of an SM can issue some 1,700 instructions, of
// which they need about 300: 32 mma, 16 ldmatrix, 16 cp.async, 64 multiplications of the sums, and the
// softmax of 256 scores. A unit of 256 tokens reads 128 KiB, and by estimate takes 4 us: 1.3 until its
// first blocks are there, in which time the one before is counted as ended, 1.8 for four blocks
// per warp, and 0.8 to merge. Three at once could take 100 bytes per ns and SM, three times what arrives.
// Units of half as many tokens could take twice what arrives, and would be 0.8 us faster for a lone
// stream of 1,024 tokens; they would also leave twice as much to be combined, 3 % of what they read.

#include "attention.cuh"

struct Decode : Attention {
    // Of each unit of work of a row with several splits, [slots, HEAD_DIM] and [slots]: its results, and
    // the logarithms, to the base of two, of the sums of the exponentials of its scores.
    f32* partial;
    f32* log_sums;
    u32* ended;  // [rows, units of a split]: splits that have ended; all zero before and after
    i32 slots;   // queries of a unit of work, at most
    i32 reserved;
};

template <class E, i32 D> struct Layout {
    static constexpr i32 WARPS = D * sizeof(E) > 512 ? 2 : 4;
    static constexpr i32 THREADS = WARPS * WARP;
    // Blocks of a warp's ring.
    static constexpr i32 RING = D * sizeof(E) > 128 ? 2 : 4;
    // Whether queries are in registers: of larger heads there is no room beside the sums, and products in
    // f32 take them from shared memory.
    static constexpr bool HELD = sizeof(E) == 2 && D <= 128;
    // Elements of a block's keys, or values.
    static constexpr i32 TOKENS = BLOCK * Rows<E, D>::STRIDE;
    // Floats of a query's sums: with eight to spare, so that a fragment's rows lie in different banks.
    static constexpr i32 SUMS = D + 8;

    union {
        E ring[WARPS][RING][2][TOKENS];
        // In the place of the warp's own ring.
        float sums[WARPS][RING * 2 * TOKENS * sizeof(E) / sizeof(float)];
    };
    alignas(16) E queries[HELD ? VECTOR<E> : 16 * Rows<E, D>::STRIDE];
    float highest[WARPS][16];
    float totals[WARPS][16];
    alignas(16) bool last;

    static_assert(16 * SUMS * sizeof(float) <= RING * 2 * TOKENS * sizeof(E));
};

// What another thread block has written during this launch, past the cache of this SM.
DEVICE float load_fresh(const float* from) {
#ifdef __CUDACC_RTC__
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(from) : "memory");
    return x;
#else
    return *from;
#endif
}
DEVICE void load_fresh(const float* from, float (&to)[4]) {
#ifdef __CUDACC_RTC__
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3]) : "l"(from) : "memory");
#else
    load_vector(from, to);
#endif
}

DEVICE void store_elements(f32* to, const float (&from)[4]) { store_vector(to, from); }
template <class E> DEVICE void store_elements(E* to, const float (&from)[4]) {
    struct alignas(8) Four { u32 word[2]; };
    *reinterpret_cast<Four*>(to) = {{pack<E>(from[0], from[1]), pack<E>(from[2], from[3])}};
}

// A unit of work.
template <class E, i32 D> struct Unit {
    using Is = Layout<E, D>;
    const Decode& p;
    Item item;
    i32 number, kv_head;
    // The first of the row's queries, and how many.
    i32 skip, queries;

    // One that is not there is not read.
    DEVICE const E* query(i32 i) const { return p.query(item, kv_head, skip + (i < queries ? i : 0)); }
    DEVICE E* result(i32 i) const { return p.result(item, kv_head, skip + i); }
    DEVICE i32 position(i32 i) const { return item.context + (skip + i) / p.group; }
    // Units of each split of the row.
    DEVICE i32 per_split() const { return ceil_div(p.group, 16) * p.kv_heads; }

    // Starts to copy queries that are not held.
    DEVICE void copy_queries(Is& shared) const {
        constexpr i32 CHUNKS = Rows<E, D>::CHUNKS;
        for (i32 i = threadIdx.x; i < 16 * CHUNKS; i += Is::THREADS) {
            const i32 row = i / CHUNKS, at = i % CHUNKS * VECTOR<E>;
            copy_async16(shared.queries + row * Rows<E, D>::STRIDE + at, query(row) + at, row < queries);
        }
    }

    // Queries, once those copied before the ring are there.
    DEVICE auto load_queries(Is& shared) const {
        if constexpr (Is::HELD) {
            HeldQueries<D> held;
#pragma unroll
            for (i32 half = 0; half < 2; half++) {
                const i32 i = lane() / 4 + half * 8;
                const u32* from = reinterpret_cast<const u32*>(query(i)) + lane() % 4;
#pragma unroll
                for (i32 step = 0; step < D / 16; step++) {
                    held.steps[step].word[half] = i < queries ? from[step * 8] : 0;
                    held.steps[step].word[half + 2] = i < queries ? from[step * 8 + 4] : 0;
                }
            }
            return held;
        } else {
            copy_async_wait<Is::RING>();
            __syncthreads();
            return SharedQueries<E, D>{shared.queries};
        }
    }

    DEVICE void copy(Is& shared, i32 stage, i32 block) const {
        i32 count;
        const i64 at = p.place(item, block, kv_head, count);
        auto& to = shared.ring[warp()][stage];
        copy_block<E, D>(to[0], p.keys + at, count);
        copy_block<E, D>(to[1], p.values + at, count);
    }

    // Starts to copy what is needed first.
    DEVICE void start(Is& shared) const {
        if constexpr (!Is::HELD) {
            copy_queries(shared);
            copy_async_commit();
        }
#pragma unroll
        for (i32 stage = 0; stage < Is::RING; stage++) {
            const i32 block = item.begin + warp() + stage * Is::WARPS;
            if (block < item.end) copy(shared, stage, block);
            copy_async_commit();
        }
    }

    // The sums of every warp over its blocks, to shared memory.
    DEVICE void attend(Is& shared) const {
        const auto held = load_queries(shared);
        // Every query sees the tokens from the first that the last one sees to the row's first.
        const i32 low = first_visible(item.context + item.tokens - 1, p.window), high = item.context + 1;
        Softmax softmax;
        float sums[1][D / 8][4] = {};
        i32 stage = 0;
        for (i32 block = item.begin + warp(); block < item.end; block += Is::WARPS) {
            copy_async_wait<Is::RING - 1>();
            __syncwarp();
            const auto& tokens = shared.ring[warp()][stage];
            float scores[1][BLOCK / 8][4] = {};
            add_scores<E, D, 1, BLOCK>(scores, held, tokens[0]);
            const i32 first = block * BLOCK;
            if (first < low || first + BLOCK > high)
                hide<BLOCK>(scores[0], first, {position(lane() / 4), position(lane() / 4 + 8)}, p.window);
            softmax.template add<BLOCK, D>(scores[0], sums[0], p.scale);
            add_values<E, D, 1, BLOCK>(sums, scores, tokens[1]);
            __syncwarp();
            const i32 ahead = block + Is::RING * Is::WARPS;
            if (ahead < item.end) copy(shared, stage, ahead);
            copy_async_commit();
            stage = stage + 1 == Is::RING ? 0 : stage + 1;
        }
        copy_async_wait<0>();
        __syncwarp();
        softmax.finish();
#pragma unroll
        for (i32 half = 0; half < 2; half++) {
            const i32 i = lane() / 4 + half * 8;
            if (i >= queries) continue;
            if (lane() % 4 == 0) {
                shared.highest[warp()][i] = softmax.highest[half];
                shared.totals[warp()][i] = softmax.totals[half];
            }
            float* to = shared.sums[warp()] + i * Is::SUMS + lane() % 4 * 2;
#pragma unroll
            for (i32 n = 0; n < D / 8; n++)
                *reinterpret_cast<Pair<float>*>(to + n * 8) = {{sums[0][n][half * 2], sums[0][n][half * 2 + 1]}};
        }
    }

    // The warps' sums in one, to `out`, or if the row has several splits to `partial`.
    DEVICE void merge(const Is& shared) const {
        for (i32 i = threadIdx.x; i < queries * (D / 4); i += Is::THREADS) {
            const i32 query = i / (D / 4), d = i % (D / 4) * 4;
            float highest = minus_infinity();
            for (i32 w = 0; w < Is::WARPS; w++) highest = fmaxf(highest, shared.highest[w][query]);
            const float base = highest == minus_infinity() ? 0.0f : highest;
            float total = 0, sum[4] = {};
            for (i32 w = 0; w < Is::WARPS; w++) {
                const float weight = exp2_fast(shared.highest[w][query] - base);
                float of[4];
                load_vector(shared.sums[w] + query * Is::SUMS + d, of);
                total = fmaf(weight, shared.totals[w][query], total);
                for (i32 j = 0; j < 4; j++) sum[j] = fmaf(weight, of[j], sum[j]);
            }
            for (i32 j = 0; j < 4; j++) sum[j] *= inverse(total);
            if (item.parts == 1) {
                store_elements(result(query) + d, sum);
            } else {
                const i64 slot = i64(number) * p.slots + query;
                store_vector(p.partial + slot * D + d, sum);
                if (d == 0) p.log_sums[slot] = total == 0 ? minus_infinity() : base + log2_fast(total);
            }
        }
    }

    // Whether this is the last of the row's splits to end: it sees what the others wrote.
    DEVICE bool is_last(Is& shared) const {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            u32* ended = p.ended + i64(item.row) * per_split() + number % per_split();
            shared.last = atomicAdd(ended, 1u) + 1 == u32(item.parts);
            if (shared.last) *ended = 0;
            __threadfence();
        }
        __syncthreads();
        return shared.last;
    }

    DEVICE void combine() const {
        const i64 step = i64(per_split()) * p.slots;
        for (i32 i = threadIdx.x; i < queries * (D / 4); i += Is::THREADS) {
            const i32 query = i / (D / 4), d = i % (D / 4) * 4;
            const i64 slot = i64(number - item.part * per_split()) * p.slots + query;
            float highest = minus_infinity();
            for (i32 part = 0; part < item.parts; part++)
                highest = fmaxf(highest, load_fresh(p.log_sums + slot + part * step));
            float total = 0, sum[4] = {};
            for (i32 part = 0; part < item.parts; part++) {
                const float weight = exp2_fast(load_fresh(p.log_sums + slot + part * step) - highest);
                float of[4];
                load_fresh(p.partial + (slot + part * step) * D + d, of);
                total += weight;
                for (i32 j = 0; j < 4; j++) sum[j] = fmaf(weight, of[j], sum[j]);
            }
            for (i32 j = 0; j < 4; j++) sum[j] *= inverse(total);
            store_elements(result(query) + d, sum);
        }
    }
};

template <class E, i32 D> DEVICE void decode(const Decode& p) {
    auto& shared = *reinterpret_cast<Layout<E, D>*>(dynamic_shared());
    const i32 group = p.group, tiles = ceil_div(group, 16), per_split = tiles * p.kv_heads;
    const auto unit_of = [&](i32 number) {
        const Item item = p.items[number / per_split];
        const i32 skip = number % tiles * 16, queries = min_of(item.tokens * group - skip, 16);
        return Unit<E, D>{p, item, number, number % per_split / tiles, skip, queries};
    };
    const i32 units = *p.count * per_split;
    i32 number = blockIdx.x;
    if (number >= units) return;
    unit_of(number).start(shared);
    for (bool more = true; more;) {
        unit_of(number).attend(shared);
        __syncthreads();
        // It is loaded again, for registers are few meanwhile.
        const auto unit = unit_of(number);
        number += gridDim.x;
        more = number < units;
        const auto next = unit_of(more ? number : unit.number);
        unit.merge(shared);
        __syncthreads();
        // The next unit's blocks, where the sums were, are on their way while this one is counted as ended.
        if (more) next.start(shared);
        if (unit.item.parts > 1 && unit.is_last(shared)) unit.combine();
    }
}

KERNEL(attention_decode, Decode, (Layout<ELEMENT, HEAD_DIM>::THREADS)) { decode<ELEMENT, HEAD_DIM>(p); }
