// Rows by their numbers: of the embedding, and of activations.
#include "simt.cuh"

constexpr i32 V = VECTOR<ELEMENT>;

struct Embed {
    const ELEMENT* table;  // [vocab, width]
    const i32* tokens;     // one per block; -1 - s is the one that was drawn last in slot s
    const i32* drawn;      // [slots]
    f32* hidden;           // [tokens, width]
    i32 vocab;
    i32 slots;
    i32 width;             // a multiple of 8
    i32 reserved;
};

// hidden = table[token]; zeros for what is no token.
KERNEL(embed, Embed, 256) {
    i32 token = p.tokens[blockIdx.x];
    if (token < 0) {
        const i32 slot = -1 - token;
        token = slot < p.slots ? p.drawn[slot] : -1;
    }
    const bool valid = token >= 0 && token < p.vocab;
    const ELEMENT* const from = p.table + (valid ? u64(token) * p.width : 0);
    f32* const to = p.hidden + u64(blockIdx.x) * p.width;
    for (i32 i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
        float x[V];
        load_vector(from + i, x);
#pragma unroll
        for (i32 j = 0; j < V; j++) x[j] = valid ? x[j] : 0.0f;
#pragma unroll
        for (i32 part = 0; part < V; part += 4) store_vector(to + i + part, *reinterpret_cast<float(*)[4]>(x + part));
    }
}

struct GatherRows {
    const u8* from;   // [., bytes]
    u8* to;           // [wanted, bytes]
    const i32* rows;  // one per block
    i32 count;        // rows of `from`
    i32 bytes;        // of a row: a multiple of 16
};

// to[i] = from[rows[i]]; zeros for what is no row.
KERNEL(gather_rows, GatherRows, 256) {
    const i32 row = p.rows[blockIdx.x];
    const bool valid = row >= 0 && row < p.count;
    const u8* const from = p.from + (valid ? u64(row) * p.bytes : 0);
    u8* const to = p.to + u64(blockIdx.x) * p.bytes;
    for (i32 i = threadIdx.x * 16; i < p.bytes; i += blockDim.x * 16)
        store16(to + i, valid ? load16(from + i) : Pack16{});
}
