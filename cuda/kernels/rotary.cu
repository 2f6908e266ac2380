// Rotary position embedding, and the storing of keys and values in the arena.
#include "simt.cuh"

constexpr i32 HALF = HEAD_DIM / 2;
constexpr i32 BLOCK = 16;                     // tokens of a block of the arena
constexpr i32 PARTS = (HALF + 63) / 64;       // a lane takes two neighbouring pairs of each 64
static_assert(HEAD_DIM % 16 == 0, "rows of a head are whole vectors");

struct RotateAndStore {
    ELEMENT* qkv;           // [tokens, (heads + 2 * kv_heads) * HEAD_DIM]: queries, keys, values
    ELEMENT* keys;          // [arena_blocks, kv_heads, BLOCK, HEAD_DIM]
    ELEMENT* values;        // the same
    const f32* frequencies; // [HALF]
    const f32* query_norm;  // [HEAD_DIM], or null
    const f32* key_norm;    // [HEAD_DIM], or null
    const i32* starts;      // [rows + 1]: the first token of each row
    const i32* context;     // [rows]: tokens before it; -1 for a row that stores nothing
    const i32* table;       // [rows, row_blocks]: blocks of the arena
    i32 rows;
    i32 row_blocks;
    i32 arena_blocks;
    i32 heads;
    i32 kv_heads;
    f32 eps;
};

struct alignas(2 * sizeof(ELEMENT)) Pair { ELEMENT a, b; };

// Cosine and sine of an angle up to 2^20, each rounded once: the polynomials are in double precision.
DEVICE void cos_sin(float angle, float& cosine, float& sine) {
    const double x = angle;
    const double quarters = rint(x * 0.63661977236758134308);
    double r = fma(-quarters, 1.57079632679489655800, x);
    r = fma(-quarters, 6.12323399573676603587e-17, r);
    const double s = r * r;
    double even = 1.0 / 20922789888000.0;
    even = fma(even, -s, 1.0 / 87178291200.0);
    even = fma(even, -s, 1.0 / 479001600.0);
    even = fma(even, -s, 1.0 / 3628800.0);
    even = fma(even, -s, 1.0 / 40320.0);
    even = fma(even, -s, 1.0 / 720.0);
    even = fma(even, -s, 1.0 / 24.0);
    even = fma(even, -s, 1.0 / 2.0);
    even = fma(even, -s, 1.0);
    double odd = 1.0 / 1307674368000.0;
    odd = fma(odd, -s, 1.0 / 6227020800.0);
    odd = fma(odd, -s, 1.0 / 39916800.0);
    odd = fma(odd, -s, 1.0 / 362880.0);
    odd = fma(odd, -s, 1.0 / 5040.0);
    odd = fma(odd, -s, 1.0 / 120.0);
    odd = fma(odd, -s, 1.0 / 6.0);
    odd = fma(odd, -s, 1.0) * r;
    const i32 quarter = i32(quarters) & 3;
    const double c = quarter & 1 ? odd : even, d = quarter & 1 ? even : odd;
    cosine = float(quarter == 1 || quarter == 2 ? -c : c);
    sine = float(quarter >= 2 ? -d : d);
}

// The row that has a token; in a step of single tokens the first guess is right.
DEVICE i32 row_of(i32 token, const i32* starts, i32 rows) {
    if (token < rows && starts[token] == token && starts[token + 1] == token + 1) return token;
    i32 low = 0, high = rows;  // starts[low] <= token < starts[high]
    while (high - low > 1) {
        const i32 middle = (low + high) / 2;
        if (starts[middle] <= token) low = middle;
        else high = middle;
    }
    return low;
}

// Rotates a head, normalized before if there are weights for that. A warp takes it.
DEVICE void rotate(const ELEMENT* head, const f32* norm, float eps, const f32* cosines, const f32* sines, ELEMENT* out) {
    float x[PARTS][2], y[PARTS][2];
    float sum = 0.0f;
#pragma unroll
    for (i32 part = 0; part < PARTS; part++) {
        const i32 i = part * 64 + lane() * 2;
        const bool inside = i < HALF;
        const Pair a = inside ? *reinterpret_cast<const Pair*>(head + i) : Pair{};
        const Pair b = inside ? *reinterpret_cast<const Pair*>(head + HALF + i) : Pair{};
        x[part][0] = to_float(a.a);
        x[part][1] = to_float(a.b);
        y[part][0] = to_float(b.a);
        y[part][1] = to_float(b.b);
#pragma unroll
        for (i32 j = 0; j < 2; j++) sum = fmaf(x[part][j], x[part][j], fmaf(y[part][j], y[part][j], sum));
    }
    float scale = 1.0f;
    if (norm) scale = 1.0f / sqrtf(warp_sum(sum) / float(HEAD_DIM) + eps);
#pragma unroll
    for (i32 part = 0; part < PARTS; part++) {
        const i32 i = part * 64 + lane() * 2;
        if (i >= HALF) continue;
        float u[2], v[2];
#pragma unroll
        for (i32 j = 0; j < 2; j++) {
            float a = x[part][j], b = y[part][j];
            if (norm) {
                a = a * scale * norm[i + j];
                b = b * scale * norm[HALF + i + j];
            }
            // Dimension i is paired with i + HALF, as in the checkpoints of the hub.
            u[j] = a * cosines[i + j] - b * sines[i + j];
            v[j] = b * cosines[i + j] + a * sines[i + j];
        }
        *reinterpret_cast<Pair*>(out + i) = Pair{from_float<ELEMENT>(u[0]), from_float<ELEMENT>(u[1])};
        *reinterpret_cast<Pair*>(out + HALF + i) = Pair{from_float<ELEMENT>(v[0]), from_float<ELEMENT>(v[1])};
    }
}

// Rotates the queries of a token in place, and its keys into the arena, where its values go too. A
// block takes a token. No two tokens may have the same block and the same position in it.
KERNEL(rotate_and_store, RotateAndStore, 256) {
    SHARED(f32, cosines, HALF);
    SHARED(f32, sines, HALF);
    const i32 token = blockIdx.x;
    if (token >= p.starts[p.rows]) return;
    const i32 row = row_of(token, p.starts, p.rows);
    const i32 context = p.context[row];
    if (context < 0) return;
    const i32 position = context + token - p.starts[row];
    const i32 in_row = position / BLOCK;
    const i32 block = in_row < p.row_blocks ? p.table[u64(row) * p.row_blocks + in_row] : -1;
    const bool stored = block >= 0 && block < p.arena_blocks;
    for (i32 i = threadIdx.x; i < HALF; i += blockDim.x) cos_sin(float(position) * p.frequencies[i], cosines[i], sines[i]);
    __syncthreads();
    ELEMENT* const qkv = p.qkv + u64(token) * (p.heads + 2 * p.kv_heads) * HEAD_DIM;
    // Of the first kv head; that of the next is BLOCK * HEAD_DIM further.
    const u64 place = (u64(block) * p.kv_heads * BLOCK + position % BLOCK) * HEAD_DIM;
    for (i32 h = warp(); h < p.heads + p.kv_heads; h += warps()) {
        ELEMENT* const head = qkv + h * HEAD_DIM;
        if (h < p.heads) rotate(head, p.query_norm, p.eps, cosines, sines, head);
        else if (stored) rotate(head, p.key_norm, p.eps, cosines, sines, p.keys + place + u64(h - p.heads) * BLOCK * HEAD_DIM);
    }
    if (!stored) return;
    constexpr i32 VECTORS = HEAD_DIM / VECTOR<ELEMENT>;
    const ELEMENT* const values = qkv + (p.heads + p.kv_heads) * HEAD_DIM;
    for (i32 i = threadIdx.x; i < p.kv_heads * VECTORS; i += blockDim.x) {
        const i32 h = i / VECTORS, at = i % VECTORS * VECTOR<ELEMENT>;
        store16(p.values + place + u64(h) * BLOCK * HEAD_DIM + at, load16(values + h * HEAD_DIM + at));
    }
}
