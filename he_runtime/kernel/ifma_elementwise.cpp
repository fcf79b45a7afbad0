// Elementwise operations in eight 52-bit lanes.

#include "ifma_ntt.hpp"

namespace secateur {
namespace {

void add(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const Lanes q = splat(modulus.value);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, reduce_once(_mm512_add_epi64(load(a + i), load(b + i)), q));
}

// a - b, wrapped below zero where b > a; adding q then gives the smaller of the two.
inline Lanes subtract(Lanes a, Lanes b, Lanes q) {
    const Lanes difference = _mm512_sub_epi64(a, b);
    return _mm512_min_epu64(difference, _mm512_add_epi64(difference, q));
}

void sub(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const Lanes q = splat(modulus.value);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, subtract(load(a + i), load(b + i), q));
}

void negate(u64* dst, const u64* a, std::size_t n, const Modulus& modulus) {
    const Lanes q = splat(modulus.value);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, subtract(_mm512_setzero_si512(), load(a + i), q));
}

// Folds two accumulators of 52-bit halves, value = high * 2^52 + low, into [0, q). `wide` says that the high one may
// reach 2^52.
struct Fold {
    explicit Fold(const Modulus& modulus)
        : m(modulus.value), one(splat(modulus.one)), two52(splat(modulus.two52)), two104(splat(modulus.two104)) {}

    Lanes operator()(Lanes high, Lanes low, bool wide) const {
        high = _mm512_add_epi64(high, _mm512_srli_epi64(low, 52));
        Lanes sum = mul_lazy(low, one, m);  // the multiplier reads only the low 52 bits
        sum = _mm512_add_epi64(sum, mul_lazy(high, two52, m));
        if (!wide) return reduce_fully<4>(sum, m);
        sum = _mm512_add_epi64(sum, mul_lazy(_mm512_srli_epi64(high, 52), two104, m));
        return reduce_fully<6>(sum, m);
    }

    LaneModulus m;
    LaneFactor one, two52, two104;
};

void multiply(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const LaneModulus m(modulus.value);
    // With t = floor(product / 2^(bits - 2)) below 2^(bits + 2) <= 2^52 and c = floor(2^(50 + bits) / q) <= 2^51, the
    // high half of t * c is the quotient minus at most two.
    const __m128i down = _mm_cvtsi32_si128(modulus.bits - 2);
    const __m128i up = _mm_cvtsi32_si128(52 - (modulus.bits - 2));
    const Lanes barrett = splat(modulus.barrett52);
    for (std::size_t i = 0; i < n; i += 8) {
        const Lanes x = load(a + i);
        const Lanes y = load(b + i);
        const Lanes high = high52(x, y);
        const Lanes low = low52(x, y);
        const Lanes top = _mm512_or_si512(_mm512_sll_epi64(high, up), _mm512_srl_epi64(low, down));
        const Lanes estimate = high52(top, barrett);
        const Lanes rest = _mm512_and_si512(_mm512_madd52lo_epu64(low, estimate, m.minus_q), m.mask);
        store(dst + i, reduce_fully<4>(rest, m));
    }
}

void multiply_constant(u64* dst, const u64* a, Factor w, std::size_t n, const Modulus& modulus) {
    const LaneModulus m(modulus.value);
    const LaneFactor factor = splat(w);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, reduce_once(mul_lazy(load(a + i), factor, m), m.q));
}

void sub_multiply_constant(u64* dst, const u64* a, const u64* b, Factor w, std::size_t n, const Modulus& modulus) {
    const LaneModulus m(modulus.value);
    const LaneFactor factor = splat(w);
    for (std::size_t i = 0; i < n; i += 8) {
        const Lanes difference = _mm512_sub_epi64(_mm512_add_epi64(load(a + i), m.q), load(b + i));
        store(dst + i, reduce_once(mul_lazy(difference, factor, m), m.q));
    }
}

// The right operands of sums of products: vectors, or one constant each. Vector stores may alias anything in memory, so
// loops take what they need from here into variables of their own.
struct Vectors {
    struct Operand {
        const u64* p;
        Lanes operator()(std::size_t i) const { return load(p + i); }
    };
    const u64* const* b[2];
    Operand operand(int sum, std::size_t k) const { return {b[sum][k]}; }
};
struct Constants {
    struct Operand {
        Lanes w;
        Lanes operator()(std::size_t) const { return w; }
    };
    const u64* w;
    Operand operand(int, std::size_t k) const { return {splat(w[k])}; }
};

// Low halves are below 2^52, so this many of them and a residue fit 64 bits; high halves are smaller.
constexpr std::size_t kProducts = 4092;
constexpr std::size_t kFewProducts = 15;  // high halves are below 2^48: these and a carry stay below 2^52

// Sums advance by six products over a chunk at a time, because the processor fetches only so many streams ahead: with
// all operands of a long sum in turn it keeps up with none. The sums of a chunk stay in the first-level cache. Measured
// on 60 MB of keys against all operands at once: 1.5 times faster.
constexpr std::size_t kChunk = 256;
constexpr int kGroup = 6;

// Keeps a value that two products share in a register: the compiler would load it once for each.
inline Lanes in_register(Lanes x) {
    __asm__("" : "+v"(x));
    return x;
}

// One chunk of one or two sums that share their left operands.
template <int kSums, class Right>
struct Chunk {
    u64* dst[kSums];
    const u64* const* a;
    const Right& right;
    const Fold& fold;
    std::size_t start, length, count;
    bool accumulate;
    alignas(64) u64 high[kSums][kChunk];
    alignas(64) u64 low[kSums][kChunk];

    template <int kMany>
    void add(std::size_t k) {
        const bool first = k == 0;
        const bool last = k + kMany == count;
        const bool wide = count > kFewProducts;
        const bool from_dst = first && accumulate;
        const Fold reduced = fold;
        const std::size_t end = length;
        const u64* x[kMany + 1];
        typename Right::Operand y[kSums][kMany + 1];
        u64* out[kSums];
        for (int t = 0; t < kMany; ++t) x[t] = a[k + t] + start;
        for (int s = 0; s < kSums; ++s) {
            out[s] = dst[s] + start;
            for (int t = 0; t < kMany; ++t) y[s][t] = right.operand(s, k + t);
        }
        for (std::size_t j = 0; j < end; j += 8) {
            Lanes h[kSums], l[kSums];
            for (int s = 0; s < kSums; ++s) {
                h[s] = first ? _mm512_setzero_si512() : load(high[s] + j);
                l[s] = !first ? load(low[s] + j) : from_dst ? load(out[s] + j) : _mm512_setzero_si512();
            }
            for (int t = 0; t < kMany; ++t) {
                const Lanes u = in_register(load(x[t] + j));
                for (int s = 0; s < kSums; ++s) {
                    const Lanes v = in_register(y[s][t](start + j));
                    h[s] = _mm512_madd52hi_epu64(h[s], u, v);
                    l[s] = _mm512_madd52lo_epu64(l[s], u, v);
                }
            }
            for (int s = 0; s < kSums; ++s) {
                if (last) {
                    store(out[s] + j, reduced(h[s], l[s], wide));
                } else {
                    store(high[s] + j, h[s]);
                    store(low[s] + j, l[s]);
                }
            }
        }
    }

    void run() {
        std::size_t k = 0;
        for (; k + kGroup < count; k += kGroup) add<kGroup>(k);
        switch (count - k) {
            case 0: return add<0>(k);
            case 1: return add<1>(k);
            case 2: return add<2>(k);
            case 3: return add<3>(k);
            case 4: return add<4>(k);
            case 5: return add<5>(k);
            default: return add<kGroup>(k);
        }
    }
};

template <int kSums, class Right>
void sum_products(u64* const* dst, const u64* const* a, const Right& right, std::size_t count, bool accumulate,
                  std::size_t n, const Modulus& modulus) {
    const Fold fold(modulus);
    for (std::size_t i = 0; i < n; i += kChunk) {
        Chunk<kSums, Right> chunk{{}, a, right, fold, i, n - i < kChunk ? n - i : kChunk, count, accumulate, {}, {}};
        for (int s = 0; s < kSums; ++s) chunk.dst[s] = dst[s];
        chunk.run();
    }
}

void dot(u64* dst, const u64* const* a, const u64* const* b, std::size_t count, bool accumulate, std::size_t n,
         const Modulus& modulus) {
    for (; count > kProducts; count -= kProducts, a += kProducts, b += kProducts, accumulate = true) {
        sum_products<1>(&dst, a, Vectors{{b, nullptr}}, kProducts, accumulate, n, modulus);
    }
    sum_products<1>(&dst, a, Vectors{{b, nullptr}}, count, accumulate, n, modulus);
}

void dot_pair(u64* dst0, u64* dst1, const u64* const* a, const u64* const* b0, const u64* const* b1, std::size_t count,
              bool accumulate, std::size_t n, const Modulus& modulus) {
    if (count > kProducts) {
        dot(dst0, a, b0, count, accumulate, n, modulus);
        return dot(dst1, a, b1, count, accumulate, n, modulus);
    }
    u64* const dst[2] = {dst0, dst1};
    sum_products<2>(dst, a, Vectors{{b0, b1}}, count, accumulate, n, modulus);
}

void dot_constants(u64* dst, const u64* const* a, const u64* w, std::size_t count, bool accumulate, std::size_t n,
                   const Modulus& modulus) {
    for (; count > kProducts; count -= kProducts, a += kProducts, w += kProducts, accumulate = true) {
        sum_products<1>(&dst, a, Constants{w}, kProducts, accumulate, n, modulus);
    }
    sum_products<1>(&dst, a, Constants{w}, count, accumulate, n, modulus);
}

void convert(u64* dst, const u64* a, std::size_t n, const Modulus& from, const Modulus& to) {
    if (from.bits > 52) return portable_kernel.convert(dst, a, n, from, to);
    const LaneModulus m(to.value);
    const LaneFactor one = splat(to.one);
    for (std::size_t i = 0; i < n; i += 8) store(dst + i, reduce_once(mul_lazy(load(a + i), one, m), m.q));
}

bool all_below(const u64* a, std::size_t n, u64 q) {
    Lanes greatest = _mm512_setzero_si512();
    for (std::size_t i = 0; i < n; i += 8) greatest = _mm512_max_epu64(greatest, load(a + i));
    return _mm512_cmpge_epu64_mask(greatest, splat(q)) == 0;
}

void permute(u64* dst, const u64* src, const GaloisTable& table) {
    for (std::size_t i = 0; i < table.n / 8; ++i) {
        const Lanes block = load(src + (table.source[i] & ~std::uint32_t{7}));
        store(dst + 8 * i, _mm512_permutexvar_epi64(load(table.lanes[table.source[i] & 7]), block));
    }
}

}  // namespace

const Kernel ifma_kernel = {
    "ifma",            ifma_forward,  ifma_inverse,
    add,               sub,           negate,
    multiply,          multiply_constant, sub_multiply_constant,
    dot,               dot_pair,      dot_constants,
    convert,           all_below,     permute,
};

}  // namespace secateur
