// The reference routines: 64-bit integers, any prime below 2^60, any CPU.

#include "blake2xb.hpp"
#include "kernel.hpp"

namespace secateur {
namespace {

// Butterflies in [0, 4q) (Harvey 2014): the sum and difference go on unreduced, the product comes out below 2q.
void forward(u64* dst, const u64* src, const NttTable& table) {
    const u64 q = table.modulus->value;
    const u64 twice = 2 * q;
    const std::size_t n = table.n;
    const u64* from = src;
    for (std::size_t blocks = 1, half = n / 2; half > 1; blocks *= 2, half /= 2) {
        for (std::size_t i = 0; i < blocks; ++i) {
            const Factor w{table.roots[2 * (blocks + i)], table.roots[2 * (blocks + i) + 1]};
            const std::size_t base = 2 * half * i;
            for (std::size_t j = base; j < base + half; ++j) {
                const u64 x = reduce_once(from[j], twice);
                const u64 t = mul_lazy(from[j + half], w, q);
                dst[j] = x + t;
                dst[j + half] = x + twice - t;
            }
        }
        from = dst;
    }
    for (std::size_t i = 0; i < n / 2; ++i) {
        const Factor w{table.roots[n + 2 * i], table.roots[n + 2 * i + 1]};
        const u64 x = reduce_once(dst[2 * i], twice);
        const u64 t = mul_lazy(dst[2 * i + 1], w, q);
        dst[2 * i] = reduce_once(reduce_once(x + t, twice), q);
        dst[2 * i + 1] = reduce_once(reduce_once(x + twice - t, twice), q);
    }
}

// The inverse root of block i is minus the root of the mirrored block: (x - y) / root_i = (y - x) * root_mirrored. One
// table serves both directions.
void inverse(u64* dst, const u64* src, const NttTable& table) {
    const u64 q = table.modulus->value;
    const u64 twice = 2 * q;
    const std::size_t n = table.n;
    const u64* from = src;
    for (std::size_t blocks = n / 2, half = 1; blocks > 1; blocks /= 2, half *= 2) {
        for (std::size_t i = 0; i < blocks; ++i) {
            const std::size_t mirrored = 2 * blocks - 1 - i;
            const Factor w{table.roots[2 * mirrored], table.roots[2 * mirrored + 1]};
            const std::size_t base = 2 * half * i;
            for (std::size_t j = base; j < base + half; ++j) {
                const u64 x = from[j];
                const u64 y = from[j + half];
                dst[j] = reduce_once(x + y, twice);
                dst[j + half] = mul_lazy(y + twice - x, w, q);
            }
        }
        from = dst;
    }
    for (std::size_t j = 0; j < n / 2; ++j) {
        const u64 x = dst[j];
        const u64 y = dst[j + n / 2];
        dst[j] = mul(x + y, table.scale, q);
        dst[j + n / 2] = mul(y + twice - x, table.scale_root, q);
    }
}

void add(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = reduce_once(a[i] + b[i], m.value);
}

void sub(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = reduce_once(a[i] + m.value - b[i], m.value);
}

void negate(u64* dst, const u64* a, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = reduce_once(m.value - a[i], m.value);
}

void multiply(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = mul(a[i], b[i], m);
}

void multiply_constant(u64* dst, const u64* a, Factor w, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = mul(a[i], w, m.value);
}

void sub_multiply_constant(u64* dst, const u64* a, const u64* b, Factor w, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = mul(a[i] + m.value - b[i], w, m.value);
}

// The right operands of a sum of products: vectors, or one constant each.
struct Vectors {
    const u64* const* b;
    u64 operator()(std::size_t k, std::size_t i) const { return b[k][i]; }
};
struct Constants {
    const u64* w;
    u64 operator()(std::size_t k, std::size_t) const { return w[k]; }
};

template <class Right>
void sum_products(u64* dst, const u64* const* a, Right right, std::size_t count, bool accumulate, std::size_t n,
                  const Modulus& m) {
    // 255 products below 2^120 and what was there before fit 128 bits.
    constexpr std::size_t kProducts = 255;
    constexpr std::size_t kBlock = 8;
    for (std::size_t i = 0; i < n; i += kBlock) {
        u128 sums[kBlock];
        for (std::size_t j = 0; j < kBlock; ++j) sums[j] = accumulate ? dst[i + j] : 0;
        for (std::size_t first = 0; first < count; first += kProducts) {
            const std::size_t last = first + kProducts < count ? first + kProducts : count;
            for (std::size_t k = first; k < last; ++k) {
                for (std::size_t j = 0; j < kBlock; ++j) sums[j] += static_cast<u128>(a[k][i + j]) * right(k, i + j);
            }
            for (std::size_t j = 0; j < kBlock; ++j) sums[j] = reduce(sums[j], m);
        }
        for (std::size_t j = 0; j < kBlock; ++j) dst[i + j] = static_cast<u64>(sums[j]);
    }
}

void dot(u64* dst, const u64* const* a, const u64* const* b, std::size_t count, bool accumulate, std::size_t n,
         const Modulus& m) {
    sum_products(dst, a, Vectors{b}, count, accumulate, n, m);
}

void dot_pair(u64* dst0, u64* dst1, const u64* const* a, const u64* const* b0, const u64* const* b1, std::size_t count,
              bool accumulate, std::size_t n, const Modulus& m) {
    dot(dst0, a, b0, count, accumulate, n, m);
    dot(dst1, a, b1, count, accumulate, n, m);
}

void gadget_pair(u64* dst0, u64* dst1, const u64* const* a, Leave, const u64* key, const u64*, std::size_t stride, std::size_t count, bool accumulate, std::size_t n, const Modulus& m) {
    for (std::size_t i = 0; i < n; ++i) {
        const u64* words = key + i / 8 * stride + i % 8;
        u128 sums[2] = {accumulate ? dst0[i] : 0, accumulate ? dst1[i] : 0};
        for (std::size_t k = 0; k < count; ++k, words += 16) {
            sums[0] += static_cast<u128>(a[k][i]) * words[0];
            sums[1] += static_cast<u128>(a[k][i]) * words[8];
        }
        dst0[i] = reduce(sums[0], m);
        dst1[i] = reduce(sums[1], m);
    }
}

void dot_constants(u64* dst, const u64* const* a, const u64* w, std::size_t count, bool accumulate, std::size_t n,
                   const Modulus& m) {
    sum_products(dst, a, Constants{w}, count, accumulate, n, m);
}

void convert(u64* dst, const u64* a, std::size_t n, const Modulus&, const Modulus& to) {
    for (std::size_t i = 0; i < n; ++i) dst[i] = mul(a[i], to.one, to.value);
}

bool all_below(const u64* a, std::size_t n, u64 q) {
    bool below = true;
    for (std::size_t i = 0; i < n; ++i) below &= a[i] < q;
    return below;
}

void lift(u64* dst, const u64* src, const Lift& lift, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        const bool negative = lift.signs == nullptr ? src[i] > lift.half : src[i] != 0 && (lift.signs[i / 8] >> i % 8 & 1) != 0;
        dst[i] = src[i] + (negative ? lift.wrap : 0);
    }
}

std::size_t block(std::size_t n) { return n; }

void forward_begin(u64* dst, const u64* src, const Lift* how, const NttTable& table) {
    if (how == nullptr) return forward(dst, src, table);
    lift(dst, src, *how, table.n);
    forward(dst, dst, table);
}

void forward_end(u64*, std::size_t, Leave, const NttTable&, const Ahead&) {}

void round_quotient(u64* dst, const u64* const* v, const double* inverse, std::size_t count, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        double sum = 0.5;
        for (std::size_t k = 0; k < count; ++k) sum += static_cast<double>(v[k][i]) * inverse[k];
        dst[i] = static_cast<u64>(sum);
    }
}

void permute(u64* dst, const u64* src, std::size_t from, const GaloisTable& table, std::size_t begin, std::size_t count) {
    const std::uint32_t* source = table.source + begin / 8;
    for (std::size_t i = 0; i < count / 8; ++i) {
        const u64* block = src + (source[i] & ~std::uint32_t{7}) - from;
        const u64* lane = table.lanes[source[i] & 7];
        for (std::size_t j = 0; j < 8; ++j) dst[8 * i + j] = block[lane[j]];
    }
}

// Two nodes in a register of any x86-64 or AArch64.
struct Pairs {
    typedef u64 Words __attribute__((vector_size(16)));
    static constexpr std::size_t kCount = 2;
    template <int bits>
    static Words rotate_right(Words x) { return (x >> bits) | (x << (64 - bits)); }
};

}  // namespace

const Kernel portable_kernel = {
    "portable",        forward,       inverse,
    block,             forward_begin, forward_end,
    add,               sub,           negate,
    multiply,          multiply_constant, sub_multiply_constant,
    dot,               dot_pair,      gadget_pair,
    dot_constants,
    convert,           all_below,     lift,
    round_quotient,    permute,       Blake2xb<Pairs>::nodes,
};

}  // namespace secateur
