// Runs the blocks of a kernel on the CPU, one after the other: every thread of a block is a fiber,
// which runs until it meets others: at a barrier, in a shuffle, in a vote or in a matrix product.
//
// Found and reported: threads that wait at different barriers or end while others wait; lanes
// that a mask names and that do not arrive; misaligned accesses of 16 bytes; writes between shared
// arrays and beyond them. What was not written in shared memory reads as NaN (all bits set), also
// where a block before wrote it; what was copied asynchronously is there only once it was waited
// for. Fibers run in an order that the launch's seed shuffles, so that a missing barrier shows.
// Between two meetings a fiber runs alone: races within a statement are not found.
#pragma once

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

// ---- What the launcher gives (mirrored in src/lib.rs) ----------------------------------------------

struct Launch {
    u32 grid[3];
    u32 threads;
    u32 shared;
    u32 params_bytes;
    const void* params;
    u64 seed;
    char* error;
    u64 error_capacity;
};

// ---- Fibers ------------------------------------------------------------------------------------------

constexpr size_t STACK = 256 << 10;
constexpr size_t PAGE = 4096;

#ifdef __x86_64__
struct Context { void* stack_pointer = nullptr; };
// Saves where this fiber is in `from` and goes on where `to` was.
extern "C" void realm_emulator_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl realm_emulator_switch
.hidden realm_emulator_switch
.type realm_emulator_switch, @function
realm_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size realm_emulator_switch, . - realm_emulator_switch
)");
inline void prepare(Context& c, char* stack, void (*entry)()) {
    // As after a call of `entry`: a return address on top of an aligned stack.
    void** top = reinterpret_cast<void**>(stack + STACK);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    c.stack_pointer = top - 8;
}
inline void switch_to(Context& from, Context& to) {
    realm_emulator_switch(&from.stack_pointer, to.stack_pointer);
}
#else
struct Context { ucontext_t at; };
inline void prepare(Context& c, char* stack, void (*entry)()) {
    getcontext(&c.at);
    c.at.uc_stack.ss_sp = stack;
    c.at.uc_stack.ss_size = STACK;
    c.at.uc_link = nullptr;
    makecontext(&c.at, entry, 0);
}
inline void switch_to(Context& from, Context& to) { swapcontext(&from.at, &to.at); }
#endif

// ---- Threads and blocks --------------------------------------------------------------------------------

struct Index { u32 x = 0, y = 0, z = 0; };

// Where in a source file.
struct Site {
    const char* file = "";
    int line = 0;
    // As the default of a parameter: where the function is called.
    static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
    bool operator==(const Site& other) const { return line == other.line && !strcmp(file, other.file); }
};

// What lanes do when all are there: `operands[i]` is that of lane i, null unless the mask names it.
using Meeting = void (*)(void* const* operands);

enum class State { Ready, AtBarrier, InWarp, Ended };

struct Copy { void* to; const void* from; bool valid; };

struct Thread {
    Context context;
    State state = State::Ready;
    u32 number = 0;
    Site site;
    const char* what = "";
    u32 mask = 0;
    Meeting meeting = nullptr;
    void* operand = nullptr;
    // Groups of copies under way; the last is not committed yet.
    std::vector<std::vector<Copy>> copies{1};
};

constexpr size_t SHARED_LIMIT = 227 << 10;
constexpr size_t FENCE = 64;
constexpr u8 POISON = 0xff;
constexpr u8 FENCE_BYTE = 0xa5;

struct SharedArray { const void* key; size_t at; size_t bytes; };

struct Block {
    Index index, size, grid;
    std::vector<Thread> threads;
    std::vector<u32> order;
    u32 running = 0;
    Context scheduler;
    void (*kernel)(const void*) = nullptr;
    const void* params = nullptr;
    // Arrays from the front of `shared`, with fences between them; dynamic shared memory ends where a
    // page begins that cannot be touched.
    u8* shared = nullptr;
    u8* dynamic = nullptr;
    size_t dynamic_bytes = 0;
    std::vector<SharedArray> arrays;
    size_t arrays_end = 0;
    bool failed = false;
    char* error = nullptr;
    size_t error_capacity = 0;

    Thread& here() { return threads[running]; }

    // Notes the first error; never returns to the fiber that calls it.
    void fail(const char* format, ...) __attribute__((format(printf, 2, 3))) {
        if (!failed && error_capacity > 0) {
            int n = snprintf(error, error_capacity, "block (%u, %u, %u): ", index.x, index.y, index.z);
            va_list list;
            va_start(list, format);
            if (n >= 0 && size_t(n) < error_capacity) vsnprintf(error + n, error_capacity - n, format, list);
            va_end(list);
        }
        failed = true;
        if (in_fiber) leave();
    }
    bool in_fiber = false;
    void leave() { switch_to(here().context, scheduler); }

    void describe(const Thread& t, char* into, size_t capacity) const {
        switch (t.state) {
            case State::Ready: snprintf(into, capacity, "thread %u can run", t.number); break;
            case State::AtBarrier:
                snprintf(into, capacity, "thread %u waits at the barrier in %s:%d", t.number, t.site.file, t.site.line);
                break;
            case State::InWarp:
                snprintf(into, capacity, "thread %u waits in %s in %s:%d for lanes %08x", t.number, t.what, t.site.file,
                         t.site.line, t.mask);
                break;
            case State::Ended: snprintf(into, capacity, "thread %u has ended", t.number); break;
        }
    }
    bool alike(const Thread& a, const Thread& b) const {
        return a.state == b.state && (a.state == State::Ended || (a.site == b.site && a.mask == b.mask));
    }

    // Nobody can run: either all are done or at one barrier, or they will never meet.
    bool release() {
        const Thread& first = threads[0];
        for (const Thread& t : threads) {
            if (alike(first, t) && t.state != State::InWarp) continue;
            const Thread& other = t.state == State::InWarp ? missing_from(t) : first;
            char one[400], two[400];
            describe(t, one, sizeof one);
            describe(other, two, sizeof two);
            fail("threads do not meet: %s, but %s", one, two);
            return false;
        }
        if (first.state == State::Ended) return false;
        for (Thread& t : threads) t.state = State::Ready;
        return true;
    }
    // A lane that `t` waits for in vain.
    const Thread& missing_from(const Thread& t) const {
        const u32 base = t.number / 32 * 32;
        for (u32 i = 0; i < 32; i++) {
            const Thread& other = threads[base + i];
            if ((t.mask >> i & 1) && (!alike(t, other) || t.meeting != other.meeting)) return other;
        }
        return t;
    }

    void run() {
        for (;;) {
            bool ran = false;
            for (u32 number : order) {
                if (threads[number].state != State::Ready) continue;
                ran = true;
                running = number;
                in_fiber = true;
                switch_to(scheduler, threads[number].context);
                in_fiber = false;
                if (failed) return;
            }
            if (!ran && !release()) return;
        }
    }

    void check_fences() {
        for (const SharedArray& a : arrays)
            for (size_t i = 0; i < FENCE; i++)
                if (shared[a.at + a.bytes + i] != FENCE_BYTE) {
                    fail("something was written %zu bytes beyond a shared array of %zu bytes", i, a.bytes);
                    return;
                }
    }
};

inline thread_local Block* block = nullptr;

inline void entry() {
    block->kernel(block->params);
    block->here().state = State::Ended;
    block->leave();
    __builtin_unreachable();
}

// Lanes named by `mask` meet; the last to arrive does what they meet for.
inline void meet(const char* what, u32 mask, void* operand, Meeting meeting, Site site) {
    Block& b = *block;
    Thread& me = b.here();
    const u32 base = me.number / 32 * 32, own = 1u << me.number % 32;
    if (!(mask & own)) b.fail("thread %u calls %s in %s:%d with a mask that does not name it", me.number, what, site.file, site.line);
    me.state = State::InWarp;
    me.what = what;
    me.mask = mask;
    me.operand = operand;
    me.meeting = meeting;
    me.site = site;
    void* operands[32] = {};
    for (u32 i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Thread& other = b.threads[base + i];
        if (!b.alike(me, other) || other.meeting != meeting) return b.leave();
        operands[i] = other.operand;
    }
    meeting(operands);
    for (u32 i = 0; i < 32; i++)
        if (mask >> i & 1) b.threads[base + i].state = State::Ready;
}

// The address of an array of the block, the same for all its threads.
inline void* shared_array(const void* key, size_t bytes) {
    Block& b = *block;
    for (const SharedArray& a : b.arrays)
        if (a.key == key) return b.shared + a.at;
    const size_t at = b.arrays_end, end = (at + bytes + FENCE + 127) / 128 * 128;
    if (end + b.dynamic_bytes > SHARED_LIMIT) b.fail("shared arrays and dynamic shared memory exceed %zu bytes", SHARED_LIMIT);
    memset(b.shared + at + bytes, FENCE_BYTE, FENCE);
    b.arrays.push_back({key, at, bytes});
    b.arrays_end = end;
    return b.shared + at;
}

inline int run(const Launch* launch, size_t params_bytes, u32 most_threads, void (*kernel)(const void*)) {
    Block b;
    b.error = launch->error;
    b.error_capacity = launch->error_capacity;
    b.grid = {launch->grid[0], launch->grid[1], launch->grid[2]};
    b.size = {launch->threads, 1, 1};
    b.kernel = kernel;
    b.params = launch->params;
    b.dynamic_bytes = launch->shared;
    const u32 n = launch->threads;
    if (launch->params_bytes != params_bytes) {
        b.fail("the kernel's parameters are %zu bytes, not %u", params_bytes, launch->params_bytes);
        return 1;
    }
    if (n == 0 || n % 32 != 0 || n > most_threads || n > 1024) {
        b.fail("%u threads: not a multiple of 32 up to %u", n, most_threads);
        return 1;
    }
    if (launch->grid[0] == 0 || launch->grid[1] == 0 || launch->grid[2] == 0 || launch->grid[1] > 65535 || launch->grid[2] > 65535) {
        b.fail("a grid of %u x %u x %u blocks", launch->grid[0], launch->grid[1], launch->grid[2]);
        return 1;
    }
    if (launch->shared > SHARED_LIMIT) {
        b.fail("%u bytes of dynamic shared memory", launch->shared);
        return 1;
    }
    const size_t shared_bytes = (SHARED_LIMIT + PAGE - 1) / PAGE * PAGE;
    const size_t total = 2 * shared_bytes + PAGE + n * STACK;
    u8* memory = static_cast<u8*>(mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) {
        b.fail("no memory for %zu bytes of stacks", total);
        return 1;
    }
    b.shared = memory;
    u8* guard = memory + 2 * shared_bytes;
    mprotect(guard, PAGE, PROT_NONE);
    b.dynamic = guard - (launch->shared + 127) / 128 * 128;
    b.threads.resize(n);
    b.order.resize(n);
    // The first block finds poison in all that its arrays may take, later ones in what those before took.
    b.arrays_end = shared_bytes;
    u64 random = launch->seed;
    Block* outer = block;
    block = &b;
    for (u32 z = 0; z < b.grid.z && !b.failed; z++)
        for (u32 y = 0; y < b.grid.y && !b.failed; y++)
            for (u32 x = 0; x < b.grid.x && !b.failed; x++) {
                b.index = {x, y, z};
                memset(b.shared, POISON, b.arrays_end);
                memset(b.dynamic, POISON, guard - b.dynamic);
                b.arrays.clear();
                b.arrays_end = 0;
                for (u32 i = 0; i < n; i++) b.order[i] = i;
                for (u32 i = n; launch->seed != 0 && i > 1; i--) {
                    random = random * 6364136223846793005u + 1442695040888963407u;
                    std::swap(b.order[i - 1], b.order[(random >> 33) % i]);
                }
                for (u32 i = 0; i < n; i++) {
                    Thread& t = b.threads[i];
                    t.number = i;
                    t.state = State::Ready;
                    t.copies.assign(1, {});
                    prepare(t.context, reinterpret_cast<char*>(guard + PAGE + i * STACK), entry);
                }
                b.run();
                if (!b.failed) b.check_fences();
            }
    block = outer;
    munmap(memory, total);
    return b.failed ? 1 : 0;
}

// ---- Conversions -----------------------------------------------------------------------------------------

inline u32 bits_of(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float half_to_float(u16 h) {
    const u32 sign = u32(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
    if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline u16 float_to_half(float x) {
    u32 bits = bits_of(x);
    const u16 sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return 0x7fff;
    if (bits >= 0x47800000) return sign | 0x7c00;
    // Below 2^-14 the addition rounds to a multiple of 2^-24.
    if (bits < 0x38800000) return sign | u16(bits_of(float_of(bits) + 0.5f) - 0x3f000000);
    return sign | u16((bits + 0xc8000fff + (bits >> 13 & 1)) >> 13);
}
inline float exp2_flushed(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

// ---- Memory ----------------------------------------------------------------------------------------------

inline void check_aligned(const void* address) {
    if (reinterpret_cast<size_t>(address) % 16 != 0) block->fail("16 bytes at the misaligned address %p", address);
}
template <class Pack> Pack load16(const void* from) {
    check_aligned(from);
    Pack v;
    memcpy(&v, from, 16);
    return v;
}
template <class Pack> void store16(void* to, const Pack& v) {
    check_aligned(to);
    memcpy(to, &v, 16);
}
inline void copy_async16(void* to, const void* from, bool valid) {
    check_aligned(to);
    if (valid) check_aligned(from);
    block->here().copies.back().push_back({to, from, valid});
}
inline void copy_async_commit() { block->here().copies.emplace_back(); }
inline void copy_async_wait(size_t pending) {
    auto& groups = block->here().copies;
    while (groups.size() > pending + 1) {
        for (const Copy& c : groups.front()) {
            if (c.valid) memcpy(c.to, c.from, 16);
            else memset(c.to, 0, 16);
        }
        groups.erase(groups.begin());
    }
}

// ---- Shuffles and votes ------------------------------------------------------------------------------------

// A lane's value, and the lane whose value it takes.
template <class T> struct Exchange {
    T value;
    i32 source;
    T taken;
    static void all(void* const* operands) {
        for (i32 i = 0; i < 32; i++) {
            if (!operands[i]) continue;
            auto& own = *static_cast<Exchange*>(operands[i]);
            auto* from = static_cast<Exchange*>(operands[own.source]);
            if (!from) return block->fail("a shuffle takes from lane %d, which the mask does not name", own.source);
            own.taken = from->value;
        }
    }
};
template <class T> T exchange(const char* what, u32 mask, T value, i32 source, Site site) {
    Exchange<T> operand{value, source & 31, value};
    meet(what, mask, &operand, Exchange<T>::all, site);
    return operand.taken;
}
struct Vote {
    bool yes;
    u32 ballot;
    static void all(void* const* operands) {
        u32 ballot = 0;
        for (i32 i = 0; i < 32; i++)
            if (operands[i] && static_cast<Vote*>(operands[i])->yes) ballot |= 1u << i;
        for (i32 i = 0; i < 32; i++)
            if (operands[i]) static_cast<Vote*>(operands[i])->ballot = ballot;
    }
};
inline i32 own_lane() { return i32(block->here().number % 32); }
inline Index own_thread() { return {block->running, 0, 0}; }

}  // namespace emulator

// ---- The names of CUDA -----------------------------------------------------------------------------------------

#define threadIdx (emulator::own_thread())
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->size)
#define gridDim (emulator::block->grid)

#define KERNEL(name, Params, threads_)                                                                     \
    static void name(const Params& p);                                                                     \
    extern "C" __attribute__((visibility("default"))) int name##_emulated(const emulator::Launch* launch) { \
        return emulator::run(launch, sizeof(Params), threads_,                                             \
                             [](const void* p) { name(*static_cast<const Params*>(p)); });                 \
    }                                                                                                      \
    static void name(const Params& p)

#define SHARED(type, name, count)                                                    \
    type* const name = static_cast<type*>(emulator::shared_array(                    \
        []() -> const void* { static char key; return &key; }(), sizeof(type) * (count)))

inline u8* dynamic_shared() { return emulator::block->dynamic; }

inline void __syncthreads(emulator::Site site = emulator::Site::here()) {
    emulator::Thread& me = emulator::block->here();
    me.state = emulator::State::AtBarrier;
    me.site = site;
    me.mask = 0;
    emulator::block->leave();
}
inline void __syncwarp(u32 mask = 0xffffffffu, emulator::Site site = emulator::Site::here()) {
    emulator::meet("__syncwarp", mask, &mask, [](void* const*) {}, site);
}
template <class T> T __shfl_sync(u32 mask, T v, i32 from, emulator::Site site = emulator::Site::here()) {
    return emulator::exchange("__shfl_sync", mask, v, from, site);
}
template <class T> T __shfl_xor_sync(u32 mask, T v, i32 distance, emulator::Site site = emulator::Site::here()) {
    return emulator::exchange("__shfl_xor_sync", mask, v, emulator::own_lane() ^ distance, site);
}
template <class T> T __shfl_up_sync(u32 mask, T v, i32 distance, emulator::Site site = emulator::Site::here()) {
    const i32 own = emulator::own_lane();
    return emulator::exchange("__shfl_up_sync", mask, v, own < distance ? own : own - distance, site);
}
template <class T> T __shfl_down_sync(u32 mask, T v, i32 distance, emulator::Site site = emulator::Site::here()) {
    const i32 own = emulator::own_lane();
    return emulator::exchange("__shfl_down_sync", mask, v, own + distance > 31 ? own : own + distance, site);
}
inline u32 __ballot_sync(u32 mask, bool yes, emulator::Site site = emulator::Site::here()) {
    emulator::Vote vote{yes, 0};
    emulator::meet("__ballot_sync", mask, &vote, emulator::Vote::all, site);
    return vote.ballot;
}
inline bool __any_sync(u32 mask, bool yes, emulator::Site site = emulator::Site::here()) { return __ballot_sync(mask, yes, site) != 0; }
inline bool __all_sync(u32 mask, bool yes, emulator::Site site = emulator::Site::here()) { return __ballot_sync(mask, !yes, site) == 0; }
inline void __threadfence() {}

template <class T> T atomicAdd(T* at, T v) {
    const T old = *at;
    *at = old + v;
    return old;
}
template <class T> T atomicMax(T* at, T v) {
    const T old = *at;
    if (v > old) *at = v;
    return old;
}

template <class T> T atomicOr(T* at, T v) {
    const T old = *at;
    *at = old | v;
    return old;
}

inline u32 __float_as_uint(float x) { return emulator::bits_of(x); }
inline float __uint_as_float(u32 bits) { return emulator::float_of(bits); }
inline i32 __clzll(u64 x) { return x == 0 ? 64 : __builtin_clzll(x); }
inline i32 __popc(u32 x) { return __builtin_popcount(x); }
inline i32 __ffs(u32 x) { return __builtin_ffs(i32(x)); }
