// Drawing tokens from logits, as the worker's sampler for CPUs does it.
//
// Order of operations: bias, stop ids masked while too few tokens are generated, penalties, allowed
// tokens, temperature, top-k, top-p, min-p, draw. A draw is an exponential race whose times are hashes
// of (key, index of the draw, token), so that it does not depend on batch, launch or order.
//
// A block takes a row. Nothing is sorted: the set of the best that top-k and top-p keep is found as the
// least that belongs to it, by histograms over ever narrower intervals of a rank that no two tokens
// share. Sums of probabilities are sums of integers, the same in every order.
#include "simt.cuh"

constexpr i32 THREADS = 1024;
constexpr i32 BUCKETS = 2048;
constexpr i32 STOP_IDS = 8;
constexpr i32 MOST_TOP = 20;
constexpr float MOST = 3.402823466e38f;
constexpr double UNIT = 8796093022208.0;  // 2^43: what a probability of 1 is as an integer
constexpr u32 IN_PROMPT = 1u << 31;

struct Bias {
    u32 token;
    f32 value;
};

// How a row is sampled.
struct Row {
    u64 key;             // of its random numbers
    u32* counts;         // [vocab]: IN_PROMPT, and how often it was generated; null without penalties
    const u32* allowed;  // [allowed_words]: a bit per token; null if all are
    const Bias* bias;    // [bias_count]
    u32 bias_count;
    u32 allowed_words;
    u32 index;           // number of the draw
    i32 slot;            // whose draw it is; -1 draws nothing
    i32 target;          // a token whose log-probability is wanted; -1 if none
    i32 top;             // alternatives wanted; -1 if not even the drawn token's log-probability is
    f32 scale;           // what logits are multiplied with; 0 takes the likeliest
    f32 top_p;
    f32 min_p_floor;     // ln(min_p), or -infinity
    u32 top_k;
    f32 presence;
    f32 frequency;
    f32 repetition;
    u32 stop_count;      // stop_ids that cannot be drawn
    u32 stop_ids[STOP_IDS];
};

// What became of it.
struct Sampled {
    i32 token;           // -1 if none was drawn
    i32 numbers;         // 0 if no logit is a number
    f32 logprob;         // of the token, if wanted
    f32 target_logprob;  // if wanted
    i32 top_count;
    u32 top_tokens[MOST_TOP];
    f32 top_logprobs[MOST_TOP];
};

struct Sample {
    const ELEMENT* logits;  // [rows, vocab]
    f32* adjusted;          // [rows, vocab]: room to work in
    const Row* rows;        // one per block
    Sampled* out;           // one per block
    i32* drawn;             // [slots]: the token drawn last; 0 where none could be
    i32 vocab;
    i32 slots;
};

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// NaN is the least likely, infinity the largest number.
DEVICE float clean(float x) { return x != x ? minus_infinity() : (x > MOST ? MOST : x); }

// Orders as IEEE 754's total order does, in integers.
DEVICE u32 order(float x) {
    const u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}
DEVICE float value_of(u32 order) { return __uint_as_float(order >> 31 ? order & ~(1u << 31) : ~order); }
// The likelier the higher; of equals, the lower token.
DEVICE u64 rank(float x, i32 token) { return u64(order(x)) << 32 | u32(~token); }

template <class T, class F> DEVICE void for_each(const T* from, i32 n, F f) {
    constexpr i32 V = VECTOR<T>;
    if (n % V == 0) {  // Every row is aligned.
        for (i32 i = threadIdx.x * V; i < n; i += THREADS * V) {
            float x[V];
            load_vector(from + i, x);
#pragma unroll
            for (i32 j = 0; j < V; j++) f(i + j, clean(x[j]));
        }
    } else {
        for (i32 i = threadIdx.x; i < n; i += THREADS) f(i, clean(to_float(from[i])));
    }
}

// The logits of a row: as the model gave them, or changed.
struct Logits {
    const ELEMENT* raw;
    const f32* adjusted;  // null if nothing changes
    i32 count;

    template <class F> DEVICE void each(F f) const {
        if (adjusted) for_each(adjusted, count, f);
        else for_each(raw, count, f);
    }
};

// The first of the largest.
NOINLINE u64 best_of(Logits logits) {
    u64 best = 0;
    // Both zeros are one.
    logits.each([&](i32 token, float x) { best = Max{}(best, rank(x + 0.0f, token)); });
    return block_reduce(best, u64(0), Max{});
}

// What candidates are compared by.
struct Scale {
    float best;
    float by;
    bool as_given;  // by the logit itself, not by what it is scaled to

    // Relative to the best, so that no scale overflows.
    DEVICE float operator()(float x) const { return x == best ? 0.0f : (x - best) * by; }
    DEVICE u64 rank_of(float x, i32 token) const { return rank(as_given ? x : (*this)(x), token); }
};

// Those that are kept: as likely as `floor`, and ranked no lower than `least`.
struct Kept {
    float floor;
    u64 least;
};

DEVICE u64 mass(float z) { return u64(exp(double(z)) * UNIT); }
DEVICE u64 mass_roughly(float z) { return u64(exp_exact(z) * float(UNIT)); }

// Of buckets with the best first, the one with which the sum reaches `goal`, and the sum before it.
// False if all together do not.
DEVICE bool crossing(const u64* weights, u64 goal, i32& bucket, u64& before) {
    SHARED(u64, sums, WARP);
    SHARED(u64, found, 2);
    constexpr i32 OWN = BUCKETS / THREADS;
    const i32 first = threadIdx.x * OWN;
    u64 own = 0;
    for (i32 i = 0; i < OWN; i++) own += weights[first + i];
    u64 upto = own;
    for (i32 distance = 1; distance < WARP; distance *= 2) {
        const u64 other = __shfl_up_sync(FULL_WARP, upto, distance);
        if (lane() >= distance) upto += other;
    }
    if (lane() == WARP - 1) sums[warp()] = upto;
    if (threadIdx.x == 0) found[0] = BUCKETS;
    __syncthreads();
    u64 sum = upto - own;
    for (i32 i = 0; i < warp(); i++) sum += sums[i];
    for (i32 i = 0; i < OWN; i++) {
        const u64 weight = weights[first + i];
        if (sum < goal && sum + weight >= goal) {
            found[0] = first + i;
            found[1] = sum;
        }
        sum += weight;
    }
    __syncthreads();
    bucket = i32(found[0]);
    before = found[1];
    __syncthreads();
    return bucket < BUCKETS;
}

// The least rank of the fewest of the best candidates that together reach `goal`; that of `kept` if
// all do not. A candidate counts 1, or its probability.
NOINLINE u64 reach(Logits logits, Scale scale, Kept kept, bool count_each, u64 goal) {
    SHARED(u64, weights, BUCKETS);
    SHARED(u32, counts, BUCKETS);
    const auto clear = [&] {
        __syncthreads();
        for (i32 i = threadIdx.x; i < BUCKETS; i += THREADS) {
            weights[i] = 0;
            counts[i] = 0;
        }
        __syncthreads();
    };
    const auto candidate = [&](float x, float z, u64 rank) {
        return x > minus_infinity() && z >= kept.floor && z > minus_infinity() && rank >= kept.least;
    };
    const auto weight = [&](float z) { return count_each ? u64(1) : mass(z); };
    // Buckets of equal width first: logits crowd in few floating-point exponents. The last takes
    // what is so unlikely that it is most of the vocabulary, and is summed apart.
    const auto coarse = [](float z) { return z > -31.5f ? i32(z * -64.0f) : BUCKETS - 1; };
    clear();
    u64 last = 0;
    u32 last_count = 0;
    logits.each([&](i32 token, float x) {
        const float z = scale(x);
        if (!candidate(x, z, scale.rank_of(x, token))) return;
        const i32 bucket = coarse(z);
        if (bucket == BUCKETS - 1) {
            last += weight(z);
            last_count++;
        } else {
            atomicAdd(&weights[bucket], weight(z));
            atomicAdd(&counts[bucket], 1u);
        }
    });
    last = block_reduce(last, u64(0), Sum{});
    last_count = block_reduce(last_count, 0u, Sum{});
    if (threadIdx.x == 0) {
        weights[BUCKETS - 1] = last;
        counts[BUCKETS - 1] = last_count;
    }
    __syncthreads();
    i32 bucket;
    u64 before;
    if (goal == 0) goal = 1;  // At least one.
    if (!crossing(weights, goal, bucket, before)) return kept.least;
    u64 low = ~u64(0), high = 0;
    logits.each([&](i32 token, float x) {
        const float z = scale(x);
        const u64 rank = scale.rank_of(x, token);
        if (!candidate(x, z, rank) || coarse(z) != bucket) return;
        low = Min{}(low, rank);
        high = Max{}(high, rank);
    });
    low = block_reduce(low, ~u64(0), Min{});
    high = block_reduce(high, u64(0), Max{});
    // The least is in [low, high], and `before` is the sum of what is above.
    for (;;) {
        // All in a bucket are taken if there is one, or if all are needed.
        const bool taken = counts[bucket] == 1 || (count_each && before + weights[bucket] == goal);
        if (taken || low == high) return low;
        goal -= before;
        const i32 bits = 64 - __clzll(high - low);
        const i32 shift = bits > 11 ? bits - 11 : 0;
        clear();
        logits.each([&](i32 token, float x) {
            const float z = scale(x);
            const u64 rank = scale.rank_of(x, token);
            if (!candidate(x, z, rank) || rank < low || rank > high) return;
            const i32 at = i32((high - rank) >> shift);
            atomicAdd(&weights[at], weight(z));
            atomicAdd(&counts[at], 1u);
        });
        __syncthreads();
        if (!crossing(weights, goal, bucket, before)) return low;
        const u64 skipped = u64(bucket) << shift, through = u64(bucket + 1) << shift;
        if (high - low >= through) low = high - through + 1;
        high -= skipped;
    }
}

// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), and its steps.
constexpr u64 GOLDEN = 0x9e3779b97f4a7c15;
DEVICE u64 mix(u64 x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

// When a token with 64 random bits and a log-probability arrives, turned so that the first has the
// highest.
NOINLINE double arrival(u64 bits, float z) {
    const double u = (double(bits >> 11) + 0.5) / 9007199254740992.0;
    return double(z) - log(-log(u));
}

// The token drawn of those that are kept; `best` is one of them.
NOINLINE i32 race(Logits logits, Scale scale, Kept kept, u64 key, u32 index, i32 best) {
    const u64 stream = mix(mix(key + GOLDEN) + GOLDEN * (u64(index) + 1));
    const auto bits_of = [&](i32 token) { return mix(stream + GOLDEN * (u64(u32(token)) + 1)); };
    i32 winner = best;
    double first = arrival(bits_of(best), 0.0f);
    logits.each([&](i32 token, float x) {
        const float z = scale(x);
        if (!(z >= kept.floor) || rank(z, token) < kept.least) return;
        const u64 bits = bits_of(token);
        // With u = bits / 2^64, -ln u > 1 - u >= 2^-(leading ones + 1): few come this far.
        const double bound = (double(__clzll(~bits)) + 1.0) * 0.693147180559945309417;
        if (!(double(z) + bound > first)) return;
        const double time = arrival(bits, z);
        if (time > first || (time == first && token < winner)) {
            first = time;
            winner = token;
        }
    });
    const double earliest = block_reduce(first, first, Max{});
    return block_reduce(first == earliest ? winner : 0x7fffffff, 0x7fffffff, Min{});
}

// A logit after everything that changes it; `listed` if bias or stop ids may name its token.
DEVICE float adjust(const Row& row, i32 token, float x, bool listed) {
    if (listed) {
        for (u32 i = 0; i < row.bias_count; i++)
            if (row.bias[i].token == u32(token)) x += row.bias[i].value;
        for (u32 i = 0; i < row.stop_count; i++)
            if (row.stop_ids[i] == u32(token)) x = minus_infinity();
    }
    const u32 count = row.counts ? row.counts[token] : 0;
    if (count != 0) {
        const u32 generated = count & ~IN_PROMPT;
        x = x > 0.0f ? x / row.repetition : x * row.repetition;
        x -= row.frequency * float(generated);
        x -= generated > 0 ? row.presence : 0.0f;
    }
    if (row.allowed) {
        const u32 word = u32(token) / 32;
        if (word >= row.allowed_words || !(row.allowed[word] >> (token % 32) & 1)) x = minus_infinity();
    }
    return x != x ? minus_infinity() : x;
}

// Writes the logits of a row with all changes to `to`.
DEVICE void adjust_all(const Row& row, const Logits& logits, f32* to) {
    logits.each([&](i32 token, float x) { to[token] = adjust(row, token, x, false); });
    __syncthreads();
    // Those that a list names may be named more than once, and get the same each time.
    const auto listed = [&](u32 token) {
        if (token < u32(logits.count)) to[token] = adjust(row, i32(token), clean(to_float(logits.raw[token])), true);
    };
    for (u32 i = threadIdx.x; i < row.bias_count; i += THREADS) listed(row.bias[i].token);
    if (threadIdx.x < row.stop_count) listed(row.stop_ids[threadIdx.x]);
    __syncthreads();
}

DEVICE i32 draw(const Row& row, Logits logits, u64 best, f32* adjusted) {
    if (row.bias_count > 0 || row.stop_count > 0 || row.counts || row.allowed) {
        adjust_all(row, logits, adjusted);
        logits.adjusted = adjusted;
        best = best_of(logits);
    }
    const i32 likeliest = i32(~u32(best));
    const float most = value_of(u32(best >> 32));
    if (most == minus_infinity()) return -1;
    if (row.scale == 0.0f) return likeliest;
    const Scale scale{most, row.scale, false};
    Kept kept{minus_infinity(), 0};
    const bool all_ranks = row.top_k == 0 || row.top_k >= u32(logits.count);
    if (!all_ranks) kept.least = reach(logits, scale, kept, true, row.top_k);
    if (row.top_p < 1.0f) {
        u64 total = 0;
        if (all_ranks) {
            logits.each([&](i32, float x) { total += mass_roughly(scale(x)); });
        } else {
            logits.each([&](i32 token, float x) {
                if (scale.rank_of(x, token) >= kept.least) total += mass(scale(x));
            });
        }
        total = block_reduce(total, u64(0), Sum{});
        if (all_ranks) {
            // What is less likely than an equal share of the tail cannot be in the nucleus.
            const double share = double(1.0f - row.top_p) / double(logits.count);
            kept.floor = float(log(share * (double(total) / UNIT))) - 1e-3f;
        }
        kept.least = reach(logits, scale, kept, false, u64(ceil(double(row.top_p) * double(total))));
    }
    if (row.min_p_floor > kept.floor) kept.floor = row.min_p_floor;
    return race(logits, scale, kept, row.key, row.index, likeliest);
}

// ln of the sum of e^x.
DEVICE float log_sum_exp(const Logits& logits, float most) {
    u64 total = 0;
    logits.each([&](i32, float x) { total += mass_roughly(x - most); });
    total = block_reduce(total, u64(0), Sum{});
    return float(double(most) + log(double(total) / UNIT));
}

// The `n` likeliest, best first, with their log-probabilities.
DEVICE void likeliest(const Logits& logits, float most, float log_total, i32 n, Sampled& out) {
    SHARED(u32, count, 1);
    SHARED(u64, ranks, MOST_TOP);
    const Scale scale{most, 1.0f, true};
    const u64 least = reach(logits, scale, Kept{minus_infinity(), 0}, true, n);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    logits.each([&](i32 token, float x) {
        const u64 own = rank(x, token);
        if (x == minus_infinity() || own < least) return;
        const u32 at = atomicAdd(&count[0], 1u);
        if (at < MOST_TOP) ranks[at] = own;
    });
    __syncthreads();
    const i32 found = Min{}(i32(count[0]), n);
    if (i32(threadIdx.x) < found) {
        const u64 own = ranks[threadIdx.x];
        i32 at = 0;
        for (i32 i = 0; i < found; i++) at += ranks[i] > own;
        out.top_tokens[at] = ~u32(own);
        out.top_logprobs[at] = Max{}(-MOST, value_of(u32(own >> 32)) - log_total);
    }
    if (threadIdx.x == 0) out.top_count = found;
}

// Samples a row per block.
KERNEL(sample, Sample, THREADS) {
    SHARED(Row, shared_row, 1);
    constexpr i32 WORDS = sizeof(Row) / 4;
    if (threadIdx.x < WORDS)
        reinterpret_cast<u32*>(shared_row)[threadIdx.x] = reinterpret_cast<const u32*>(p.rows + blockIdx.x)[threadIdx.x];
    __syncthreads();
    const Row& row = *shared_row;
    const u64 at = u64(blockIdx.x) * p.vocab;
    const Logits logits{p.logits + at, nullptr, p.vocab};
    Sampled& out = p.out[blockIdx.x];
    const bool draws = row.slot >= 0 && row.slot < p.slots;
    const bool scores = row.target >= 0 || row.top >= 0;
    i32 token = -1;
    bool numbers = true;
    float logprob = 0.0f, target_logprob = 0.0f;
    if (threadIdx.x == 0) out.top_count = 0;
    if (draws || scores) {
        const u64 best = best_of(logits);
        const float most = value_of(u32(best >> 32));
        numbers = most > minus_infinity();
        if (draws && numbers) token = draw(row, logits, best, p.adjusted + at);
        if (scores && numbers) {
            const float log_total = log_sum_exp(logits, most);
            const auto of = [&](i32 token) { return Max{}(-MOST, clean(to_float(logits.raw[token])) - log_total); };
            if (token >= 0 && row.top >= 0) logprob = of(token);
            if (row.target >= 0 && row.target < p.vocab) target_logprob = of(row.target);
            if (row.top > 0) likeliest(logits, most, log_total, Min{}(row.top, MOST_TOP), out);
        }
    }
    if (threadIdx.x != 0) return;
    out.token = token;
    out.numbers = numbers;
    out.logprob = logprob;
    out.target_logprob = target_logprob;
    if (!draws) return;
    p.drawn[row.slot] = token < 0 ? 0 : token;
    if (row.counts && token >= 0) row.counts[token] += 1;
}

struct CountTokens {
    u32* counts;          // [vocab]
    const i32* tokens;    // [length]
    i32 length;
    i32 prompt;           // how many of them are the prompt's
    i32 vocab;
    i32 reserved;
};

// Adds tokens to the counts that penalties follow from.
KERNEL(count_tokens, CountTokens, 256) {
    const i32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.length) return;
    const i32 token = p.tokens[i];
    if (token < 0 || token >= p.vocab) return;
    if (i < p.prompt) atomicOr(&p.counts[token], IN_PROMPT);
    else atomicAdd(&p.counts[token], 1u);
}
