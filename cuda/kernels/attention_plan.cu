// Shares out the work of a step's attention, once for all of its layers with the same window.
//
// What follows from lengths is worked out on the device, and nothing of a launch depends on them: a
// graph that was captured once serves any lengths. How a row is split follows from its own length
// alone, so that its result does not depend on what else is in the step.

#include "attention_plan.cuh"

// Blocks of a split, at least: enough that what a split costs besides is a few hundredths.
constexpr i32 SPLIT_BLOCKS = 16;
// Splits of a row, at most.
constexpr i32 SPLITS = 32;
constexpr i32 THREADS = 256;

struct Plan {
    const i32* starts;   // [rows + 1]: the first token of each row
    const i32* context;  // [rows]: tokens of the sequence before this step; -1 for a row that fills up the batch
    Item* decode;        // [rows * SPLITS] at most
    Item* prefill;       // [room]
    i32* counts;         // how many items of decode and of prefill there are
    i32 rows;
    i32 tokens;
    i32 row_blocks;      // blocks of a row of the block table
    i32 window;          // tokens that a query sees, the last of them its own
    i32 group;           // query heads that a kv head serves
    i32 most;            // tokens of a row that is decoded, at most
    i32 tile;            // queries of an item of prefill: tokens, times `group`
    i32 room;            // tokens * group / tile + rows
};

// The sum of `mine` over the threads before this one; `total` over all.
DEVICE i32 sum_before(i32 mine, i32* sums, i32& total) {
    const i32 thread = threadIdx.x;
    sums[thread] = mine;
    __syncthreads();
    for (i32 distance = 1; distance < THREADS; distance *= 2) {
        const i32 other = thread < distance ? 0 : sums[thread - distance];
        __syncthreads();
        sums[thread] += other;
        __syncthreads();
    }
    total = sums[THREADS - 1];
    const i32 before = sums[thread] - mine;
    __syncthreads();
    return before;
}

// One block of THREADS threads. Rows of up to `most` tokens are decoded, each in as many items as it
// has splits; others are prefilled.
KERNEL(attention_plan, Plan, THREADS) {
    SHARED(i32, sums, THREADS);
    i32 decoded = 0, prefilled = 0;
    for (i32 base = 0; base < p.rows; base += THREADS) {
        Item item = {};
        i32 splits = 0, tiles = 0, begin = 0, blocks = 0;
        if (base + i32(threadIdx.x) < p.rows) {
            item.row = base + threadIdx.x;
            item.first = p.starts[item.row];
            item.tokens = p.starts[item.row + 1] - item.first;
            item.context = p.context[item.row];
            // A row that cannot be is left out.
            const bool inside = item.first >= 0 && item.tokens >= 0 && item.tokens <= p.tokens - item.first;
            const i32 lowest = item.tokens == 1 ? -1 : 0, highest = p.row_blocks * BLOCK - item.tokens;
            if (!inside || item.context < lowest || item.context > highest) item.tokens = 0;
        }
        if (item.tokens > p.most) {
            tiles = ceil_div(item.tokens * p.group, p.tile);
        } else if (item.tokens > 0) {
            begin = first_visible(item.context, p.window) / BLOCK;
            blocks = ceil_div(item.context + item.tokens, BLOCK) - begin;
            splits = min_of(max_of(ceil_div(blocks, SPLIT_BLOCKS), 1), SPLITS);
        }
        i32 total;
        Item* to = p.decode + decoded + sum_before(splits, sums, total);
        decoded += total;
        for (i32 split = 0; split < splits; split++) {
            item.part = split;
            item.parts = splits;
            item.begin = begin + blocks * split / splits;
            item.end = begin + blocks * (split + 1) / splits;
            to[split] = item;
        }
        const i32 at = prefilled + sum_before(tiles, sums, total);
        prefilled += total;
        // The last tile sees most and goes first: what is left to the end is waited for.
        for (i32 tile = 0; tile < tiles && at + tile < p.room; tile++) {
            item.part = tiles - 1 - tile;
            item.parts = tiles;
            const i32 query = item.part * p.tile;
            const i32 last = min_of(query + p.tile, item.tokens * p.group) - 1;
            item.begin = first_visible(item.context + query / p.group, p.window) / BLOCK;
            item.end = (item.context + last / p.group) / BLOCK + 1;
            p.prefill[at + tile] = item;
        }
    }
    if (threadIdx.x == 0) {
        p.counts[0] = decoded;
        p.counts[1] = min_of(prefilled, p.room);
    }
}
