// Kernels for the tests of the emulator; some of them are wrong on purpose.
#include "simt.cuh"

struct Params { const u32* input; u32* out; };

KERNEL(shuffles, Params, 64) {
    const i32 i = threadIdx.x;
    const u32 v = p.input[i];
    u32* const out = p.out + 4 * i;
    const u32 a = __shfl_xor_sync(FULL_WARP, v, 5);
    const u64 b = __shfl_sync(FULL_WARP, u64(v), lane() + 3);
    const u32 c = __shfl_up_sync(FULL_WARP, v, 4);
    const u32 d = __shfl_down_sync(FULL_WARP, v, 4);
    out[0] = a;
    out[1] = u32(b);
    out[2] = c;
    out[3] = d;
}

KERNEL(halves, Params, 32) {
    u32 v = p.input[threadIdx.x];
    if (lane() < 16) {
        for (i32 distance = 8; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffu, v, distance);
    } else {
        v = __ballot_sync(0xffff0000u, v % 2 == 1);
    }
    p.out[threadIdx.x] = v;
}

KERNEL(reductions, Params, 256) {
    SHARED(u32, count, 1);
    const u32 v = p.input[threadIdx.x];
    if (threadIdx.x == 0) count[0] = 0;
    const u32 sum = block_reduce(v, 0u, Sum{});
    const u32 most = block_reduce(v, 0u, Max{});
    atomicAdd(&count[0], 1u);
    __syncthreads();
    if (threadIdx.x == blockDim.x - 1) {
        p.out[0] = sum;
        p.out[1] = most;
        p.out[2] = count[0];
    }
}

KERNEL(reverse, Params, 64) {
    SHARED(u32, values, 64);
    values[threadIdx.x] = p.input[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = values[63 - threadIdx.x];
}

KERNEL(reverse_of_32, Params, 32) { p.out[threadIdx.x] = p.input[31 - threadIdx.x]; }

KERNEL(copies, Params, 32) {
    u32* const to = reinterpret_cast<u32*>(dynamic_shared());
    if (threadIdx.x == 0) {
        copy_async16(to, p.input);
        copy_async_commit();
        copy_async16(to + 4, p.input + 4);
        copy_async16(to + 8, p.input, false);
        copy_async_commit();
        for (i32 i = 0; i < 4; i++) p.out[i] = to[i];
        copy_async_wait<1>();
        for (i32 i = 0; i < 8; i++) p.out[4 + i] = to[i];
        copy_async_wait<0>();
        for (i32 i = 0; i < 8; i++) p.out[12 + i] = to[4 + i];
    }
}

KERNEL(unwritten, Params, 32) {
    SHARED(u32, values, 4);
    u32* const dynamic = reinterpret_cast<u32*>(dynamic_shared());
    if (threadIdx.x != 0) return;
    p.out[0] = values[0];
    p.out[1] = values[3];
    p.out[2] = dynamic[0];
    p.out[3] = dynamic[63];
    values[0] = values[3] = dynamic[0] = dynamic[63] = 1;  // For the next block to find.
}

KERNEL(conversions, Params, 32) {
    const float values[6] = {1.0f, 1.00390625f, 65520.0f, -1e-7f, 3.0e38f, 0.333f};
    const i32 i = threadIdx.x;
    if (i >= 6) return;
    p.out[4 * i] = __float_as_uint(to_float(from_float<bf16>(values[i])));
    p.out[4 * i + 1] = __float_as_uint(to_float(from_float<f16>(values[i])));
    p.out[4 * i + 2] = pack<bf16>(values[i], -values[i]);
    p.out[4 * i + 3] = __float_as_uint(exp_exact(values[i]));
}

KERNEL(no_barrier, Params, 64) {
    SHARED(u32, values, 64);
    values[threadIdx.x] = p.input[threadIdx.x];
    p.out[threadIdx.x] = values[63 - threadIdx.x];
}

KERNEL(divergent_barrier, Params, 64) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        p.out[0] = 1;
        __syncthreads();
    }
}

KERNEL(early_exit, Params, 64) {
    if (threadIdx.x == 40) return;
    __syncthreads();
}

KERNEL(missing_lane, Params, 64) {
    if (threadIdx.x % 32 != 3) p.out[threadIdx.x] = __shfl_xor_sync(FULL_WARP, p.input[0], 1);
    __syncthreads();
}

KERNEL(foreign_mask, Params, 64) { __syncwarp(0xfffffffeu); }

KERNEL(misaligned, Params, 64) {
    if (threadIdx.x == 0) store16(p.out, load16(p.input + 1));
}

KERNEL(beyond_shared, Params, 64) {
    SHARED(u32, values, 64);
    values[threadIdx.x + 1] = 1;
}
