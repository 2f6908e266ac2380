// What the plan of a step's attention tells the kernels that carry it out.
#pragma once

#include "simt.cuh"

// Tokens of a block of the arena.
constexpr i32 BLOCK = 16;

// A piece of work: some queries of a row, and the blocks with the keys that they see.
struct alignas(16) Item {
    i32 row;
    // The row's first token in the step, how many it has, and the position of the first.
    i32 first, tokens, context;
    // Decode: which of how many splits of the keys. Prefill: which of how many tiles of queries.
    i32 part, parts;
    // Range of numbers in the row's block table.
    i32 begin, end;
};

DEVICE constexpr i32 min_of(i32 a, i32 b) { return a < b ? a : b; }
DEVICE constexpr i32 max_of(i32 a, i32 b) { return a > b ? a : b; }
DEVICE constexpr i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }

// The first position that a query sees.
DEVICE i32 first_visible(i32 position, i32 window) { return max_of(position + 1 - window, 0); }
