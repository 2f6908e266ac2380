// Rows as e4m3 (four bits of exponent, three of mantissa, no infinity), with a scale for each.
#include "simt.cuh"

constexpr i32 V = VECTOR<ELEMENT>;
constexpr float LARGEST = 448.0f;

// The nearest e4m3; of two as near, the even one. What is larger than the largest becomes that.
DEVICE u32 e4m3(float x) {
    const u32 bits = __float_as_uint(x), size = bits & 0x7fffffff;
    u32 code;
    if (size > 0x7f800000) {
        code = 0x7f;
    } else if (size < 0x3c800000) {
        // Below 2^-6 numbers are 2^-9 apart, as those of a float from 2^14 on.
        code = __float_as_uint(__uint_as_float(size) + 16384.0f) - 0x46800000;
    } else {
        const u32 rounded = (size + 0x7ffff + (size >> 20 & 1)) >> 20;
        code = Min{}(rounded - ((127 - 7) << 3), 0x7eu);
    }
    return code | bits >> 31 << 7;
}

struct QuantizeRows {
    const ELEMENT* x;  // [rows, width]
    u8* out;           // [rows, width]
    f32* scales;       // [rows]
    i32 width;         // a multiple of 16
    i32 reserved;
};

// scale = max |x| / 448, then out = x / scale. A block takes a row. One with an infinity or what is no number has
// no number as its scale or in `out`.
KERNEL(quantize_rows, QuantizeRows, 512) {
    const ELEMENT* const row = p.x + u64(blockIdx.x) * p.width;
    u8* const out = p.out + u64(blockIdx.x) * p.width;
    // As bits, of which those of no number are the largest.
    u32 most = 0;
    for (i32 i = threadIdx.x * V; i < p.width; i += blockDim.x * V) {
        float x[V];
        load_vector(row + i, x);
#pragma unroll
        for (i32 j = 0; j < V; j++) most = Max{}(most, __float_as_uint(x[j]) & 0x7fffffff);
    }
    most = block_reduce(most, 0u, Max{});
    // Normal, so that its inverse is finite.
    const float least = __uint_as_float(0x00800000);
    const float wanted = __uint_as_float(most) / LARGEST;
    const float scale = wanted < least ? least : wanted;
    const float inverse = 1.0f / scale;
    if (threadIdx.x == 0) p.scales[blockIdx.x] = scale;
    for (i32 i = threadIdx.x * 16; i < p.width; i += blockDim.x * 16) {
        Pack16 codes = {};
#pragma unroll
        for (i32 part = 0; part < 16; part += V) {
            float x[V];
            load_vector(row + i + part, x);
#pragma unroll
            for (i32 j = 0; j < V; j++) codes.word[(part + j) / 4] |= e4m3(x[j] * inverse) << (part + j) % 4 * 8;
        }
        store16(out + i, codes);
    }
}
