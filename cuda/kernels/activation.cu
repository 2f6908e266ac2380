// The gated activation of the feed-forward part.
#include "simt.cuh"

constexpr i32 V = VECTOR<ELEMENT>;

struct SiluMultiply {
    const ELEMENT* gate_up;  // [rows, 2 * width]: gates, then ups
    ELEMENT* out;            // [rows, width]
    i32 width;               // a multiple of 8
    i32 reserved;
};

// out = silu(gate) * up. A thread takes V columns of the row blockIdx.y.
KERNEL(silu_multiply, SiluMultiply, 256) {
    const i32 i = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= p.width) return;
    const ELEMENT* const row = p.gate_up + u64(blockIdx.y) * 2 * p.width;
    float gate[V], up[V];
    load_vector(row + i, gate);
    load_vector(row + p.width + i, up);
#pragma unroll
    for (i32 j = 0; j < V; j++) up[j] = gate[j] / (1.0f + exp_exact(-gate[j])) * up[j];
    store_vector(p.out + u64(blockIdx.y) * p.width + i, up);
}
