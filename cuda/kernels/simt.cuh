// What every kernel is written with: element types, loads and stores, reductions, asynchronous
// copies, and the few functions that are exact on the device and in the emulator alike.
//
// A kernel file is CUDA C++17 that includes this header alone (and `mma.cuh`), so that NVRTC needs
// no include path. It is compiled twice: by NVRTC for a device, and by a C++ compiler against the
// emulator (../emulator/emulator.h), where every thread of a block is a fiber.
//
//     #include "simt.cuh"
//     struct Scale { const ELEMENT* x; ELEMENT* out; float by; i32 count; };   // mirrored in Rust
//     KERNEL(scale, Scale, 256) {                                              // at most 256 threads
//         SHARED(float, part, 32);                                             // float part[32]
//         for (i32 i = blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += ...)
//             p.out[i] = from_float<ELEMENT>(to_float(p.x[i]) * p.by);
//     }
//
// A file is compiled once per variant: -DELEMENT=f32|bf16|f16, and -DHEAD_DIM=n where the file asks
// for it. Its kernels have one parameter `p`, a struct that in Rust is `#[repr(C)]` and free of
// padding, and are launched by name (`Kernel` and `Launcher` in Rust):
//
//     launcher.launch(Launch { kernel: Kernel { unit, name: "scale" }, grid: [n, 1, 1],
//                              threads: 256, shared: 0, params: bytes_of(&params) })
//
// Functions are DEVICE (inlined) or NOINLINE, whose parameters are best taken by value.
//
// Rules that the emulator relies on: blocks are one-dimensional and of whole warps; shared memory
// is declared by SHARED or taken from dynamic_shared(); warps meet with full masks or masks that
// name just those lanes that arrive; every thread of a block reaches every __syncthreads(). The names
// of CUDA keep their meaning: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp,
// __shfl_sync, __shfl_xor_sync, __shfl_up_sync, __shfl_down_sync, __ballot_sync, atomicAdd,
// atomicMax, atomicOr, fmaf, fma, sqrtf, log, exp, rint, ceil, __clzll, __popc, __ffs, __float_as_uint, __uint_as_float.
// Contraction of multiplications and additions is off: write fmaf where it is wanted.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using i32 = int;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

#ifdef __CUDACC_RTC__

// A kernel with parameters of type `Params` for blocks of at most `threads` threads.
#define KERNEL(name, Params, threads) \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)
// An array in the shared memory of the block.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define DEVICE __device__ __forceinline__
#define NOINLINE __device__ __noinline__

// The shared memory that the launch asked for.
DEVICE u8* dynamic_shared() {
    extern __shared__ __align__(128) u8 dynamic_shared_memory[];
    return dynamic_shared_memory;
}

#else

#define DEVICE inline
#define NOINLINE inline
#include "emulator.h"

#endif

constexpr u32 FULL_WARP = 0xffffffffu;
constexpr i32 WARP = 32;

DEVICE i32 lane() { return threadIdx.x % WARP; }
DEVICE i32 warp() { return threadIdx.x / WARP; }
DEVICE i32 warps() { return blockDim.x / WARP; }

// ---- Element types -----------------------------------------------------------------------------

using f32 = float;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };

DEVICE float to_float(f32 x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
DEVICE float to_float(f16 x) {
#ifdef __CUDACC_RTC__
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    return emulator::half_to_float(x.bits);
#endif
}

// The nearest value of a type; of two as near, the even one.
template <class T> DEVICE T from_float(float x);
template <> DEVICE f32 from_float<f32>(float x) { return x; }
template <> DEVICE bf16 from_float<bf16>(float x) {
#ifdef __CUDACC_RTC__
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    u32 bits = __float_as_uint(x);
    return bf16{x != x ? u16(0x7fff) : u16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}
template <> DEVICE f16 from_float<f16>(float x) {
#ifdef __CUDACC_RTC__
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    return f16{emulator::float_to_half(x)};
#endif
}

// Two values in a register, `low` in the lower half: what mma takes.
template <class T> DEVICE u32 pack(float low, float high) {
    return u32(from_float<T>(low).bits) | u32(from_float<T>(high).bits) << 16;
}
#ifdef __CUDACC_RTC__
template <> DEVICE u32 pack<bf16>(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> DEVICE u32 pack<f16>(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#endif

// ---- Loads and stores of 16 bytes ---------------------------------------------------------------

struct alignas(16) Pack16 { u32 word[4]; };

// Addresses are multiples of 16.
DEVICE Pack16 load16(const void* from) {
#ifdef __CUDACC_RTC__
    const uint4 v = *static_cast<const uint4*>(from);
    return Pack16{{v.x, v.y, v.z, v.w}};
#else
    return emulator::load16<Pack16>(from);
#endif
}
DEVICE void store16(void* to, Pack16 v) {
#ifdef __CUDACC_RTC__
    *static_cast<uint4*>(to) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
#else
    emulator::store16(to, v);
#endif
}

// Elements in 16 bytes.
template <class T> constexpr i32 VECTOR = 16 / sizeof(T);

DEVICE void unpack(Pack16 v, float (&to)[4], f32) {
    for (i32 i = 0; i < 4; i++) to[i] = __uint_as_float(v.word[i]);
}
template <class T> DEVICE void unpack(Pack16 v, float (&to)[8], T) {
    for (i32 i = 0; i < 4; i++) {
        to[2 * i] = to_float(T{u16(v.word[i])});
        to[2 * i + 1] = to_float(T{u16(v.word[i] >> 16)});
    }
}
// VECTOR<T> elements as floats, and back.
template <class T> DEVICE void load_vector(const T* from, float (&to)[VECTOR<T>]) {
    unpack(load16(from), to, T{});
}
DEVICE void store_vector(f32* to, const float (&from)[4]) {
    Pack16 v;
    for (i32 i = 0; i < 4; i++) v.word[i] = __float_as_uint(from[i]);
    store16(to, v);
}
template <class T> DEVICE void store_vector(T* to, const float (&from)[8]) {
    Pack16 v;
    for (i32 i = 0; i < 4; i++) v.word[i] = pack<T>(from[2 * i], from[2 * i + 1]);
    store16(to, v);
}

// ---- Reductions ----------------------------------------------------------------------------------

struct Sum { template <class T> DEVICE T operator()(T a, T b) const { return a + b; } };
struct Max { template <class T> DEVICE T operator()(T a, T b) const { return b > a ? b : a; } };
struct Min { template <class T> DEVICE T operator()(T a, T b) const { return b < a ? b : a; } };

// Of all lanes, to all lanes, in the same order everywhere.
template <class T, class Op> DEVICE T warp_reduce(T v, Op op) {
#pragma unroll
    for (i32 distance = WARP / 2; distance > 0; distance /= 2)
        v = op(v, __shfl_xor_sync(FULL_WARP, v, distance));
    return v;
}
DEVICE float warp_sum(float v) { return warp_reduce(v, Sum{}); }
DEVICE float warp_max(float v) { return warp_reduce(v, Max{}); }

// Of all threads, to all threads. `identity` changes nothing: op(v, identity) == v.
template <class T, class Op> DEVICE T block_reduce(T v, T identity, Op op) {
    SHARED(T, parts, WARP);
    v = warp_reduce(v, op);
    __syncthreads();  // The parts of a reduction before this one are read.
    if (lane() == 0) parts[warp()] = v;
    __syncthreads();
    return warp_reduce(lane() < warps() ? parts[lane()] : identity, op);
}

// ---- Asynchronous copies from global to shared memory ----------------------------------------------

// Copies 16 bytes, or writes as many zeros unless `valid`; in shared memory once the group that is
// committed next was waited for, for other threads after a barrier too.
DEVICE void copy_async16(void* shared, const void* global, bool valid = true) {
#ifdef __CUDACC_RTC__
    const u32 to = u32(__cvta_generic_to_shared(shared));
    const i32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
    emulator::copy_async16(shared, global, valid);
#endif
}
DEVICE void copy_async_commit() {
#ifdef __CUDACC_RTC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::copy_async_commit();
#endif
}
// Until at most the `pending` groups that this thread committed last are under way.
template <i32 pending> DEVICE void copy_async_wait() {
#ifdef __CUDACC_RTC__
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
    emulator::copy_async_wait(pending);
#endif
}

// ---- Arithmetic -----------------------------------------------------------------------------------

// e^x within a few ulp, exactly 0 below -87 and capped above 88: the same bits on the device and in
// the emulator. x is split into a multiple of ln 2 and a rest, whose exponential is a polynomial.
DEVICE float exp_exact(float x) {
    constexpr float ROUND = 12582912.0f;
    const float clamped = x < 88.0f ? (x > -87.0f ? x : -87.0f) : 88.0f;
    const float shifted = fmaf(clamped, 1.44269504f, ROUND);
    const float n = shifted - ROUND;
    const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, clamped));
    float y = 1.0f / 5040.0f;
    y = fmaf(y, r, 1.0f / 720.0f);
    y = fmaf(y, r, 1.0f / 120.0f);
    y = fmaf(y, r, 1.0f / 24.0f);
    y = fmaf(y, r, 1.0f / 6.0f);
    y = fmaf(y, r, 0.5f);
    y = fmaf(y, r, 1.0f);
    y = fmaf(y, r, 1.0f);
    const float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? 0.0f : y * power;
}

// 2^x within 2 ulp by the special function unit; subnormal results are 0.
DEVICE float exp2_fast(float x) {
#ifdef __CUDACC_RTC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return emulator::exp2_flushed(x);
#endif
}
