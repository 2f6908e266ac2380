// Root-mean-square normalization of the residual stream.
#include "simt.cuh"

constexpr i32 V = VECTOR<ELEMENT>;

struct AddRmsNorm {
    f32* hidden;           // [rows, width]
    const ELEMENT* delta;  // [rows, width], or null
    const f32* weight;     // [width]
    ELEMENT* out;          // [rows, width]
    i32 width;             // a multiple of 8
    f32 eps;
};

// hidden += delta, then out = weight * hidden / sqrt(mean(hidden^2) + eps). A block takes a row, which
// it keeps in `width` floats of shared memory; each thread reads there what it wrote itself.
KERNEL(add_rms_norm, AddRmsNorm, 1024) {
    f32* const kept = reinterpret_cast<f32*>(dynamic_shared());
    const u64 row = u64(blockIdx.x) * p.width;
    const i32 stride = blockDim.x * V;
    float sum = 0.0f;
    for (i32 i = threadIdx.x * V; i < p.width; i += stride) {
        float x[V];
#pragma unroll
        for (i32 part = 0; part < V; part += 4) load_vector(p.hidden + row + i + part, *reinterpret_cast<float(*)[4]>(x + part));
        if (p.delta) {
            float d[V];
            load_vector(p.delta + row + i, d);
#pragma unroll
            for (i32 j = 0; j < V; j++) x[j] += d[j];
#pragma unroll
            for (i32 part = 0; part < V; part += 4) store_vector(p.hidden + row + i + part, *reinterpret_cast<float(*)[4]>(x + part));
        }
#pragma unroll
        for (i32 j = 0; j < V; j++) {
            sum = fmaf(x[j], x[j], sum);
            kept[i + j] = x[j];
        }
    }
    sum = block_reduce(sum, 0.0f, Sum{});
    const float scale = 1.0f / sqrtf(sum / float(p.width) + p.eps);
    for (i32 i = threadIdx.x * V; i < p.width; i += stride) {
        float x[V];
#pragma unroll
        for (i32 j = 0; j < V; j++) x[j] = kept[i + j] * scale * p.weight[i + j];
        store_vector(p.out + row + i, x);
    }
}
