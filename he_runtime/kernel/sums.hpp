// Sums of products for the vector paths. `Arithmetic` has the registers of a path:
//   Value, Sum, kWidth     registers of operands and of sums, and how many residues one holds
//   kProducts, kGroup      the most products before a reduction; how many to add before the next chunk of operands
//   kWideFactors           whether Leave::factors leaves more than residues
//   value(p), constant(w)  an operand from memory, or the same in all lanes
//   zero(), load(p), store(p, sum)
//   multiply_add(high, low, x, y)
//   finish(dst, high, low, count)  reduces the sum of count products and stores residues
//
// Included only by files compiled for one instruction set; everything is in an unnamed namespace for the reason given in
// modulus.hpp.
#pragma once

#include "kernel.hpp"

namespace secateur {
namespace {

// Sums advance by a few products over a chunk at a time, because the processor fetches only so many streams ahead: with
// all operands of a long sum in turn it keeps up with none. The sums of a chunk stay in the first-level cache. Measured
// with IFMA on 60 MB of keys against all operands at once: 1.5 times faster.
constexpr std::size_t kChunk = 256;

// The right operands: vectors, or one constant each. Vector stores may alias anything in memory, so loops take what they
// need from here, and from Chunk, into variables of their own.
template <class Arithmetic>
struct Vectors {
    struct Operand {
        const u64* p;
        typename Arithmetic::Value operator()(std::size_t i) const { return Arithmetic::value(p + i); }
    };
    const u64* const* b[2];
    Operand operand(int sum, std::size_t k) const { return {b[sum][k]}; }
};

template <class Arithmetic>
struct Constants {
    struct Operand {
        typename Arithmetic::Value w;
        typename Arithmetic::Value operator()(std::size_t) const { return w; }
    };
    const u64* w;
    Operand operand(int, std::size_t k) const { return {Arithmetic::constant(w[k])}; }
};

// One chunk of one or two sums that share their left operands.
template <class Arithmetic, int kSums, class Right>
struct Chunk {
    u64* dst[kSums];
    const u64* const* a;
    const Right& right;
    const Arithmetic& arithmetic;
    std::size_t start, length, count;
    bool accumulate;
    alignas(64) u64 high[kSums][kChunk];
    alignas(64) u64 low[kSums][kChunk];

    template <int kMany>
    void add(std::size_t k) {
        using Sum = typename Arithmetic::Sum;
        const bool first = k == 0;
        const bool last = k + kMany == count;
        const bool from_dst = first && accumulate;
        const Arithmetic local = arithmetic;
        const std::size_t end = length, products = count, offset = start;
        const u64* x[kMany + 1];
        typename Right::Operand y[kSums][kMany + 1];
        u64* out[kSums];
        for (int t = 0; t < kMany; ++t) x[t] = a[k + t] + offset;
        for (int s = 0; s < kSums; ++s) {
            out[s] = dst[s] + offset;
            for (int t = 0; t < kMany; ++t) y[s][t] = right.operand(s, k + t);
        }
        for (std::size_t j = 0; j < end; j += Arithmetic::kWidth) {
            Sum h[kSums], l[kSums];
            for (int s = 0; s < kSums; ++s) {
                h[s] = first ? Arithmetic::zero() : Arithmetic::load(high[s] + j);
                l[s] = !first ? Arithmetic::load(low[s] + j) : from_dst ? Arithmetic::load(out[s] + j) : Arithmetic::zero();
            }
            for (int t = 0; t < kMany; ++t) {
                const auto u = Arithmetic::value(x[t] + j);
                for (int s = 0; s < kSums; ++s) local.multiply_add(h[s], l[s], u, y[s][t](offset + j));
            }
            for (int s = 0; s < kSums; ++s) {
                if (last) {
                    local.finish(out[s] + j, h[s], l[s], products);
                } else {
                    Arithmetic::store(high[s] + j, h[s]);
                    Arithmetic::store(low[s] + j, l[s]);
                }
            }
        }
    }

    // The last 0 to kMany products.
    template <int kMany>
    void add_rest(std::size_t k) {
        if constexpr (kMany == 0) {
            add<0>(k);
        } else if (count - k == kMany) {
            add<kMany>(k);
        } else {
            add_rest<kMany - 1>(k);
        }
    }

    void run() {
        std::size_t k = 0;
        for (; k + Arithmetic::kGroup < count; k += Arithmetic::kGroup) add<Arithmetic::kGroup>(k);
        add_rest<Arithmetic::kGroup>(k);
    }
};

template <class Arithmetic, int kSums, class Right>
void sum_products(u64* const* dst, const u64* const* a, const Right& right, std::size_t count, bool accumulate,
                  std::size_t n, const Arithmetic& arithmetic) {
    for (std::size_t i = 0; i < n; i += kChunk) {
        Chunk<Arithmetic, kSums, Right> chunk{
            {}, a, right, arithmetic, i, n - i < kChunk ? n - i : kChunk, count, accumulate, {}, {}};
        for (int s = 0; s < kSums; ++s) chunk.dst[s] = dst[s];
        chunk.run();
    }
}

// The processor's own fetching reaches neither from one key to the next nor far enough within one: a sum over 300 MB of keys
// ran at half the rate of plain reading. Runs of a few dozen lines, well ahead and no nearer than the second level, recover
// half of the difference.
constexpr std::size_t kFetched = 16;  // residues whose words are asked for at a time

inline void fetch(const u64* words, std::size_t count) {
    for (std::size_t i = 0; i < count; i += 8) __builtin_prefetch(words + i, 0, 2);
}

// The routines of a Kernel.
template <class Arithmetic>
struct Sums {
    static void dot(u64* dst, const u64* const* a, const u64* const* b, std::size_t count, bool accumulate, std::size_t n,
                    const Modulus& modulus) {
        const Arithmetic arithmetic(modulus);
        constexpr std::size_t kMost = Arithmetic::kProducts;
        for (; count > kMost; count -= kMost, a += kMost, b += kMost, accumulate = true) {
            sum_products<Arithmetic, 1>(&dst, a, Vectors<Arithmetic>{{b, nullptr}}, kMost, accumulate, n, arithmetic);
        }
        sum_products<Arithmetic, 1>(&dst, a, Vectors<Arithmetic>{{b, nullptr}}, count, accumulate, n, arithmetic);
    }

    static void dot_pair(u64* dst0, u64* dst1, const u64* const* a, const u64* const* b0, const u64* const* b1,
                         std::size_t count, bool accumulate, std::size_t n, const Modulus& modulus) {
        if (count > Arithmetic::kProducts) {
            dot(dst0, a, b0, count, accumulate, n, modulus);
            return dot(dst1, a, b1, count, accumulate, n, modulus);
        }
        const Arithmetic arithmetic(modulus);
        u64* const dst[2] = {dst0, dst1};
        sum_products<Arithmetic, 2>(dst, a, Vectors<Arithmetic>{{b0, b1}}, count, accumulate, n, arithmetic);
    }

    static void gadget_pair(u64* dst0, u64* dst1, const u64* const* a, Leave a_left, const u64* key, const u64* ahead,
                            std::size_t stride, std::size_t count, bool accumulate, std::size_t n, const Modulus& modulus) {
        using Sum = typename Arithmetic::Sum;
        const Arithmetic arithmetic(modulus);
        // Wide factors make larger sums than as many residues.
        const bool wide = Arithmetic::kWideFactors && a_left == Leave::factors;
        const std::size_t products = wide ? Arithmetic::kProducts : count;
        const u64* left[64];
        for (std::size_t k = 0; k < count; ++k) left[k] = a[k];
        for (std::size_t j = 0; j < n; j += 8, key += stride) {
            if (ahead != nullptr && j % kFetched == 0) fetch(ahead + j / 8 * stride, kFetched / 8 * stride);
            for (std::size_t lane = 0; lane < 8; lane += Arithmetic::kWidth) {
                const std::size_t at = j + lane;
                Sum high[2] = {Arithmetic::zero(), Arithmetic::zero()};
                Sum low[2] = {accumulate ? Arithmetic::load(dst0 + at) : Arithmetic::zero(),
                              accumulate ? Arithmetic::load(dst1 + at) : Arithmetic::zero()};
                const u64* words = key + lane;
                for (std::size_t k = 0; k < count; ++k, words += 16) {
                    const auto x = Arithmetic::value(left[k] + at);
                    Arithmetic::multiply_add(high[0], low[0], x, Arithmetic::value(words));
                    Arithmetic::multiply_add(high[1], low[1], x, Arithmetic::value(words + 8));
                }
                arithmetic.finish(dst0 + at, high[0], low[0], products);
                arithmetic.finish(dst1 + at, high[1], low[1], products);
            }
        }
    }

    static void dot_constants(u64* dst, const u64* const* a, const u64* w, std::size_t count, bool accumulate,
                              std::size_t n, const Modulus& modulus) {
        const Arithmetic arithmetic(modulus);
        constexpr std::size_t kMost = Arithmetic::kProducts;
        for (; count > kMost; count -= kMost, a += kMost, w += kMost, accumulate = true) {
            sum_products<Arithmetic, 1>(&dst, a, Constants<Arithmetic>{w}, kMost, accumulate, n, arithmetic);
        }
        sum_products<Arithmetic, 1>(&dst, a, Constants<Arithmetic>{w}, count, accumulate, n, arithmetic);
    }
};

}  // namespace
}  // namespace secateur
