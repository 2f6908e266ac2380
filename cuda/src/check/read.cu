// Reads memory, and does as little as possible besides: as quickly as that goes, nothing else reads any.
#include "simt.cuh"

struct ReadAll {
    const Pack16* from;
    u32* out;   // a word of each thread
    i64 count;  // of Pack16
};

constexpr i32 AT_ONCE = 8;

// The exclusive or of all words that a thread reads: of every vector whose number, modulo the threads of the grid, is
// its own.
KERNEL(read_all, ReadAll, 512) {
    const i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    const i64 threads = i64(gridDim.x) * blockDim.x;
    u32 bits = 0;
    i64 i = thread;
    for (; i + (AT_ONCE - 1) * threads < p.count; i += AT_ONCE * threads) {
        Pack16 v[AT_ONCE];
#pragma unroll
        for (i32 j = 0; j < AT_ONCE; j++) v[j] = load16(p.from + i + j * threads);
#pragma unroll
        for (i32 j = 0; j < AT_ONCE; j++) bits ^= v[j].word[0] ^ v[j].word[1] ^ v[j].word[2] ^ v[j].word[3];
    }
    for (; i < p.count; i += threads) {
        const Pack16 v = load16(p.from + i);
        bits ^= v.word[0] ^ v.word[1] ^ v.word[2] ^ v.word[3];
    }
    p.out[thread] = bits;
}
