// Forward and inverse transforms in eight 52-bit lanes.
//
// A pass does two or three stages on a block in registers (radix 4 or 8); blocks are finished depth first, so that
// everything below the first pass stays in the first-level cache. The last tile of 64 residues does six stages in eight
// registers: three between registers, three inside them.

#include "ifma_ntt.hpp"

namespace secateur {
namespace {

// How far values may grow before a reduction: they stay below kLimit * q, which must not exceed 2^52. Smaller primes
// leave room for stages that need none. A stage adds 2 to the bound of its sums and differences.
template <int kLimit, int kBound>
struct Stage {
    static constexpr bool kReduce = kBound + 2 > kLimit;
    static constexpr int kNext = kReduce ? kLimit / 2 + 2 : kBound + 2;
};

// kCount independent butterflies, step by step across all of them: a chain of two products takes some ten cycles, and
// the processor looks ahead only so far for others to fill them.
template <int kLimit, int kBound, int kCount>
inline void butterflies(Lanes* const* x, Lanes* const* y, const LaneFactor* w, const LaneModulus& m, Lanes half_limit) {
    Lanes estimate[kCount], t[kCount];
    for (int k = 0; k < kCount; ++k) estimate[k] = high52(*y[k], w[k].quotient);
    for (int k = 0; k < kCount; ++k) t[k] = low52(*y[k], w[k].value);
    if (Stage<kLimit, kBound>::kReduce) {
        for (int k = 0; k < kCount; ++k) *x[k] = reduce_once(*x[k], half_limit);
    }
    for (int k = 0; k < kCount; ++k) t[k] = _mm512_madd52lo_epu64(t[k], estimate[k], m.minus_q);
    for (int k = 0; k < kCount; ++k) *y[k] = _mm512_add_epi64(*x[k], m.twice);
    for (int k = 0; k < kCount; ++k) t[k] = _mm512_and_si512(t[k], m.mask);
    for (int k = 0; k < kCount; ++k) *x[k] = _mm512_add_epi64(*x[k], t[k]);
    for (int k = 0; k < kCount; ++k) *y[k] = _mm512_sub_epi64(*y[k], t[k]);
}

template <int kLimit, int kBound>
struct Forward {
    static constexpr int kSecond = Stage<kLimit, kBound>::kNext;
    static constexpr int kThird = Stage<kLimit, kSecond>::kNext;
    static constexpr int kAfter4 = kThird;
    static constexpr int kAfter8 = Stage<kLimit, kThird>::kNext;

    // Three stages on eight registers; w[k] is the root of tree entry k, entry 1 the block itself.
    static inline void radix8(Lanes* v, const LaneFactor* w, const LaneModulus& m, Lanes half_limit) {
        stage8<kBound>(v, {0, 1, 2, 3}, 4, {w[1], w[1], w[1], w[1]}, m, half_limit);
        stage8<kSecond>(v, {0, 1, 4, 5}, 2, {w[2], w[2], w[3], w[3]}, m, half_limit);
        stage8<kThird>(v, {0, 2, 4, 6}, 1, {w[4], w[5], w[6], w[7]}, m, half_limit);
    }

    struct Four { int at[4]; };
    struct Roots { LaneFactor w[4]; };
    template <int kB>
    static inline void stage8(Lanes* v, Four upper, int distance, Roots w, const LaneModulus& m, Lanes half_limit) {
        Lanes* x[4] = {v + upper.at[0], v + upper.at[1], v + upper.at[2], v + upper.at[3]};
        Lanes* y[4] = {x[0] + distance, x[1] + distance, x[2] + distance, x[3] + distance};
        butterflies<kLimit, kB, 4>(x, y, w.w, m, half_limit);
    }

    static inline void radix4(Lanes* v, const LaneFactor* w, const LaneModulus& m, Lanes half_limit) {
        {
        Lanes* x[2] = {v, v + 1};
        Lanes* y[2] = {v + 2, v + 3};
        LaneFactor r[2] = {w[1], w[1]};
        butterflies<kLimit, kBound, 2>(x, y, r, m, half_limit);
        }
        {
        Lanes* x[2] = {v, v + 2};
        Lanes* y[2] = {v + 1, v + 3};
        LaneFactor r[2] = {w[2], w[3]};
        butterflies<kLimit, kSecond, 2>(x, y, r, m, half_limit);
        }
    }
};

template <int kRadix, int kLimit, int kBound>
void forward_pass(u64* dst, const u64* src, std::size_t length, const u64* roots, std::size_t node,
                  const LaneModulus& m, Lanes half_limit) {
    LaneFactor w[kRadix];
    load_tree<kRadix>(w, roots, node);
    const std::size_t stride = length / kRadix;
    for (std::size_t j = 0; j < stride; j += 8) {
        Lanes v[kRadix];
        for (int k = 0; k < kRadix; ++k) v[k] = load(src + j + k * stride);
        if constexpr (kRadix == 8) {
            Forward<kLimit, kBound>::radix8(v, w, m, half_limit);
        } else {
            Forward<kLimit, kBound>::radix4(v, w, m, half_limit);
        }
        for (int k = 0; k < kRadix; ++k) store(dst + j + k * stride, v[k]);
    }
}

// Six stages on 64 residues, and the final reduction.
template <int kLimit, int kBound>
inline void forward_tile(u64* x, const u64* roots, std::size_t node, const u64* tail, const LaneModulus& m,
                         Lanes half_limit) {
    constexpr int kFourth = Forward<kLimit, kBound>::kAfter8;
    constexpr int kFifth = Stage<kLimit, kFourth>::kNext;
    constexpr int kSixth = Stage<kLimit, kFifth>::kNext;
    constexpr int kLast = Stage<kLimit, kSixth>::kNext;
    const Lanes low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const Lanes high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    const Lanes first = _mm512_set_epi64(13, 5, 9, 1, 12, 4, 8, 0);
    const Lanes second = _mm512_set_epi64(15, 7, 11, 3, 14, 6, 10, 2);
    LaneFactor w[8];
    load_tree<8>(w, roots, node);
    Lanes v[8];
    for (int k = 0; k < 8; ++k) v[k] = load(x + 8 * k);
    Forward<kLimit, kBound>::radix8(v, w, m, half_limit);
    Lanes a[4], b[4];
    Lanes* const x4[4] = {a, a + 1, a + 2, a + 3};
    Lanes* const y4[4] = {b, b + 1, b + 2, b + 3};
    LaneFactor r[4];
    for (int p = 0; p < 4; ++p) {
        a[p] = _mm512_permutex2var_epi64(v[2 * p], low, v[2 * p + 1]);
        b[p] = _mm512_permutex2var_epi64(v[2 * p], high, v[2 * p + 1]);
        r[p] = tail_pair(tail, p);
    }
    butterflies<kLimit, kFourth, 4>(x4, y4, r, m, half_limit);
    for (int p = 0; p < 4; ++p) {
        const Lanes c = _mm512_permutex2var_epi64(a[p], low, b[p]);
        b[p] = _mm512_permutex2var_epi64(a[p], high, b[p]);
        a[p] = c;
        r[p] = tail_quad(tail, p);
    }
    butterflies<kLimit, kFifth, 4>(x4, y4, r, m, half_limit);
    for (int p = 0; p < 4; ++p) {
        const Lanes c = _mm512_shuffle_i64x2(a[p], b[p], 0x44);
        b[p] = _mm512_shuffle_i64x2(a[p], b[p], 0xee);
        a[p] = c;
        r[p] = tail_octet(tail, p);
    }
    butterflies<kLimit, kSixth, 4>(x4, y4, r, m, half_limit);
    for (int p = 0; p < 4; ++p) {
        a[p] = reduce_fully<kLast>(a[p], m);
        b[p] = reduce_fully<kLast>(b[p], m);
    }
    for (int p = 0; p < 4; ++p) {
        store(x + 16 * p, _mm512_permutex2var_epi64(a[p], first, b[p]));
        store(x + 16 * p + 8, _mm512_permutex2var_epi64(a[p], second, b[p]));
    }
}

// Blocks between the first pass and the tiles. kBound is what the pass before leaves.
template <int kLimit, int kBound>
void forward_block(u64* x, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m,
                   Lanes half_limit) {
    if (length == kTile) {
        const std::size_t tile = node - table.n / kTile;
        forward_tile<kLimit, kBound>(x, table.roots, node, table.tail + tile * kTailWords, m, half_limit);
    } else if (radix_for(length) == 8) {
        forward_pass<8, kLimit, kBound>(x, x, length, table.roots, node, m, half_limit);
        for (std::size_t c = 0; c < 8; ++c) {
            forward_block<kLimit, kLimit>(x + c * (length / 8), length / 8, 8 * node + c, table, m, half_limit);
        }
    } else {
        forward_pass<4, kLimit, kBound>(x, x, length, table.roots, node, m, half_limit);
        for (std::size_t c = 0; c < 4; ++c) {
            forward_block<kLimit, kLimit>(x + c * (length / 4), length / 4, 4 * node + c, table, m, half_limit);
        }
    }
}

template <int kLimit>
void forward_within(u64* dst, const u64* src, const NttTable& table) {
    const LaneModulus m(table.modulus->value);
    const Lanes half_limit = splat(kLimit / 2 * table.modulus->value);
    const std::size_t radix = radix_for(table.n);
    if (radix == 8) {
        forward_pass<8, kLimit, 1>(dst, src, table.n, table.roots, 1, m, half_limit);
    } else {
        forward_pass<4, kLimit, 1>(dst, src, table.n, table.roots, 1, m, half_limit);
    }
    const std::size_t length = table.n / radix;
    for (std::size_t c = 0; c < radix; ++c) {
        forward_block<kLimit, kLimit>(dst + c * length, length, radix + c, table, m, half_limit);
    }
}

// The inverse works on mirrored blocks: the root of block i of m is minus that of block m - 1 - i, so it reads the same
// tables from the other end and turns its differences round. Values stay in [0, 2q).
inline void join(Lanes& x, Lanes& y, LaneFactor mirrored, const LaneModulus& m) {
    const Lanes difference = _mm512_add_epi64(y, _mm512_sub_epi64(m.twice, x));
    x = reduce_once(_mm512_add_epi64(x, y), m.twice);
    y = mul_lazy(difference, mirrored, m);
}

inline void inverse8(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 4; ++k) join(v[2 * k], v[2 * k + 1], w[7 - k], m);
    for (int k = 0; k < 2; ++k) join(v[k], v[k + 2], w[3], m);
    for (int k = 4; k < 6; ++k) join(v[k], v[k + 2], w[2], m);
}

template <int kRadix, bool kFinal>
void inverse_pass(u64* x, std::size_t length, const NttTable& table, std::size_t node, const LaneModulus& m) {
    LaneFactor w[kRadix];
    load_tree<kRadix>(w, table.roots, node);
    const LaneFactor scale = splat(table.scale);
    if (kFinal) w[1] = splat(table.scale_root);
    constexpr int kHalf = kRadix / 2;
    const std::size_t stride = length / kRadix;
    for (std::size_t j = 0; j < stride; j += 8) {
        Lanes v[kRadix];
        for (int k = 0; k < kRadix; ++k) v[k] = load(x + j + k * stride);
        if constexpr (kRadix == 8) {
            inverse8(v, w, m);
        } else {
            join(v[0], v[1], w[3], m);
            join(v[2], v[3], w[2], m);
        }
        for (int k = 0; k < kHalf; ++k) {
            if constexpr (kFinal) {
                const Lanes difference = _mm512_add_epi64(v[k + kHalf], _mm512_sub_epi64(m.twice, v[k]));
                const Lanes sum = _mm512_add_epi64(v[k], v[k + kHalf]);
                v[k] = reduce_once(mul_lazy(sum, scale, m), m.q);
                v[k + kHalf] = reduce_once(mul_lazy(difference, w[1], m), m.q);
            } else {
                join(v[k], v[k + kHalf], w[1], m);
            }
        }
        for (int k = 0; k < kRadix; ++k) store(x + j + k * stride, v[k]);
    }
}

inline void inverse_tile(u64* dst, const u64* src, const u64* roots, std::size_t node, const u64* tail,
                         const LaneModulus& m) {
    const Lanes odd = _mm512_set_epi64(1, 5, 9, 13, 3, 7, 11, 15);
    const Lanes even = _mm512_set_epi64(0, 4, 8, 12, 2, 6, 10, 14);
    const Lanes low = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
    const Lanes high = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
    const Lanes first = _mm512_set_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    const Lanes second = _mm512_set_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    Lanes v[8];
    for (int p = 0; p < 4; ++p) {
        const Lanes e = load(src + 16 * p);
        const Lanes f = load(src + 16 * p + 8);
        // Sixteen residues in reverse order: the upper element of a pair is the one at the even mirrored place.
        Lanes b = _mm512_permutex2var_epi64(e, odd, f);
        Lanes a = _mm512_permutex2var_epi64(e, even, f);
        join(a, b, tail_octet(tail, 3 - p), m);
        Lanes d = _mm512_shuffle_i64x2(b, a, 0x44);
        Lanes c = _mm512_shuffle_i64x2(b, a, 0xee);
        join(c, d, tail_quad(tail, 3 - p), m);
        b = _mm512_permutex2var_epi64(d, low, c);
        a = _mm512_permutex2var_epi64(d, high, c);
        join(a, b, tail_pair(tail, 3 - p), m);
        v[2 * p] = _mm512_permutex2var_epi64(b, first, a);
        v[2 * p + 1] = _mm512_permutex2var_epi64(b, second, a);
    }
    LaneFactor w[8];
    load_tree<8>(w, roots, node);
    inverse8(v, w, m);
    for (int k = 0; k < 4; ++k) join(v[k], v[k + 4], w[1], m);
    for (int k = 0; k < 8; ++k) store(dst + 8 * k, v[k]);
}

void inverse_block(u64* dst, const u64* src, std::size_t length, std::size_t node, const NttTable& table,
                   const LaneModulus& m) {
    if (length == kTile) {
        const std::size_t tile = node - table.n / kTile;
        inverse_tile(dst, src, table.roots, node, table.tail + tile * kTailWords, m);
        return;
    }
    const std::size_t radix = radix_for(length);
    const std::size_t part = length / radix;
    for (std::size_t c = 0; c < radix; ++c) {
        inverse_block(dst + c * part, src + c * part, part, radix * node + (radix - 1 - c), table, m);
    }
    if (node == 1) return;
    if (radix == 8) {
        inverse_pass<8, false>(dst, length, table, node, m);
    } else {
        inverse_pass<4, false>(dst, length, table, node, m);
    }
}

}  // namespace

void ifma_forward(u64* dst, const u64* src, const NttTable& table) {
    switch (table.modulus->bits) {
        case 50: return forward_within<4>(dst, src, table);
        case 49: return forward_within<8>(dst, src, table);
        default: return forward_within<16>(dst, src, table);
    }
}

void ifma_inverse(u64* dst, const u64* src, const NttTable& table) {
    const LaneModulus m(table.modulus->value);
    inverse_block(dst, src, table.n, 1, table, m);
    if (radix_for(table.n) == 8) {
        inverse_pass<8, true>(dst, table.n, table, 1, m);
    } else {
        inverse_pass<4, true>(dst, table.n, table, 1, m);
    }
}

}  // namespace secateur
