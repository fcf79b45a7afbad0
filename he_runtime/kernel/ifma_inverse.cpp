// Inverse transform in eight 52-bit lanes: values stay in [0, 2q), q < 2^50.
//
// The inverse root of block i of m is minus the root of block m - 1 - i, so the forward tables serve here too, read from
// the other end: every block carries the tree entry of its mirror image, and differences are taken the other way round.

#include "ifma_ntt.hpp"

namespace secateur {
namespace {

// kReduced says that both are in [0, q), so that their sum needs no reduction.
template <bool kReduced = false>
inline void join(Lanes& x, Lanes& y, LaneFactor mirrored, const LaneModulus& m) {
    const Lanes difference = _mm512_sub_epi64(_mm512_add_epi64(y, m.twice), x);
    x = _mm512_add_epi64(x, y);
    if constexpr (!kReduced) x = reduce_once(x, m.twice);
    y = mul_lazy(difference, mirrored, m);
}

// The last stage, with the division by n: to [0, q).
inline void join_scaled(Lanes& x, Lanes& y, LaneFactor scale, LaneFactor scale_root, const LaneModulus& m) {
    const Lanes difference = _mm512_sub_epi64(_mm512_add_epi64(y, m.twice), x);
    x = reduce_once(mul_lazy(_mm512_add_epi64(x, y), scale, m), m.q);
    y = reduce_once(mul_lazy(difference, scale_root, m), m.q);
}

// The three stages on eight registers, in the order of the inverse.
inline void stage3(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 4; ++k) join(v[2 * k], v[2 * k + 1], w[7 - k], m);
}
inline void stage2(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 2; ++k) join(v[k], v[k + 2], w[3], m);
    for (int k = 4; k < 6; ++k) join(v[k], v[k + 2], w[2], m);
}
inline void stage1(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 4; ++k) join(v[k], v[k + 4], w[1], m);
}

template <int kRadix, bool kLast>
void pass(u64* x, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m) {
    constexpr int kHalf = kRadix / 2;
    LaneFactor w[kRadix];
    load_tree<kRadix>(w, table.roots, node);
    const LaneFactor scale = splat(table.scale);
    const LaneFactor scale_root = splat(table.scale_root);
    const std::size_t stride = length / kRadix;
    for (std::size_t j = 0; j < stride; j += 8) {
        Lanes v[kRadix];
        for (int k = 0; k < kRadix; ++k) v[k] = load(x + j + k * stride);
        if constexpr (kRadix == 8) {
            stage3(v, w, m);
            stage2(v, w, m);
        } else {
            for (int k = 0; k < 2; ++k) join(v[2 * k], v[2 * k + 1], w[3 - k], m);
        }
        for (int k = 0; k < kHalf; ++k) {
            if constexpr (kLast) {
                join_scaled(v[k], v[k + kHalf], scale, scale_root, m);
            } else {
                join(v[k], v[k + kHalf], w[1], m);
            }
        }
        for (int k = 0; k < kRadix; ++k) store(x + j + k * stride, v[k]);
    }
}

template <bool kLast>
void pass(u64* x, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m) {
    if (radix_for(length) == 8) {
        pass<8, kLast>(x, length, node, table, m);
    } else {
        pass<4, kLast>(x, length, node, table, m);
    }
}

inline void shuffle(Lanes& a, Lanes& b, Lanes first, Lanes second) {
    const Lanes x = _mm512_permutex2var_epi64(a, first, b);
    b = _mm512_permutex2var_epi64(a, second, b);
    a = x;
}

// Two tiles in turn, as in the forward direction. `node` is the mirror image of the second. The lanes run backwards, so
// that they meet the mirrored roots in the order of the table: even registers hold the lower places of the pairs.
void tiles(u64* dst, const u64* src, std::size_t node, const NttTable& table, const LaneModulus& m) {
    const Lanes even = _mm512_set_epi64(0, 4, 8, 12, 2, 6, 10, 14);
    const Lanes odd = _mm512_set_epi64(1, 5, 9, 13, 3, 7, 11, 15);
    const Lanes lower = _mm512_set_epi64(7, 5, 3, 1, 15, 13, 11, 9);
    const Lanes upper = _mm512_set_epi64(6, 4, 2, 0, 14, 12, 10, 8);
    const Lanes front = _mm512_set_epi64(9, 11, 13, 15, 1, 3, 5, 7);
    const Lanes back = _mm512_set_epi64(8, 10, 12, 14, 0, 2, 4, 6);
    const u64* tails[2] = {tail_of(table, node + 1), tail_of(table, node)};
    LaneFactor w[2][8];
    Lanes v[2][8];
    for (int i = 0; i < 2; ++i) {
        load_tree<8>(w[i], table.roots, node + 1 - i);
        for (int k = 0; k < 8; ++k) v[i][k] = load(src + kTile * i + 8 * k);
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {
            shuffle(v[i][2 * p], v[i][2 * p + 1], even, odd);
            join<true>(v[i][2 * p], v[i][2 * p + 1], tail_octet(tails[i], 3 - p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {
            const Lanes a = v[i][2 * p];
            const Lanes b = v[i][2 * p + 1];
            v[i][2 * p] = _mm512_shuffle_i64x2(b, a, 0xee);
            v[i][2 * p + 1] = _mm512_shuffle_i64x2(b, a, 0x44);
            join(v[i][2 * p], v[i][2 * p + 1], tail_quad(tails[i], 3 - p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {
            shuffle(v[i][2 * p], v[i][2 * p + 1], lower, upper);
            join(v[i][2 * p], v[i][2 * p + 1], tail_pair(tails[i], 3 - p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) shuffle(v[i][2 * p], v[i][2 * p + 1], front, back);
    }
    for (int i = 0; i < 2; ++i) stage3(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) stage2(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) {
        stage1(v[i], w[i], m);
        for (int k = 0; k < 8; ++k) store(dst + kTile * i + 8 * k, v[i][k]);
    }
}

void block(u64* dst, const u64* src, std::size_t length, std::size_t node, const NttTable& table,
           const LaneModulus& m) {
    const std::size_t radix = radix_for(length);
    const std::size_t part = length / radix;
    const std::size_t mirrored = radix * node + radix - 1;
    if (part == kTile) {
        for (std::size_t c = 0; c < radix; c += 2) {
            tiles(dst + c * part, src + c * part, mirrored - c - 1, table, m);
        }
    } else {
        for (std::size_t c = 0; c < radix; ++c) {
            block(dst + c * part, src + c * part, part, mirrored - c, table, m);
        }
    }
    if (node == 1) {
        pass<true>(dst, length, node, table, m);
    } else {
        pass<false>(dst, length, node, table, m);
    }
}

}  // namespace

void ifma_inverse(u64* dst, const u64* src, const NttTable& table) {
    block(dst, src, table.n, 1, table, LaneModulus(table.modulus->value));
}

}  // namespace secateur
