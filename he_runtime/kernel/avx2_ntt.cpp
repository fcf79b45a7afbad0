// Forward and inverse transforms in doubles, four lanes (AVX2 and FMA).
//
// Between the first pass and the last the array holds signed doubles. A product needs |x| <= 4q: its quotient is at most
// 2q <= 2^51 then, which the rounding constant can hold. Passes do two stages in registers, depth first; a tile of 16
// residues does the last four in four registers.

#include "avx2_ntt.hpp"

#include "lanes4.hpp"

namespace secateur {
namespace {

constexpr std::size_t kTile = 16;
constexpr std::size_t kTailWords = 24;

// Bounds in the forward direction, in units of q: a stage adds 1/2 + B/16 to B. From a reduced x (1/2) and any y (4),
// five stages reach 1.25, 1.83, 2.45, 3.10 and 3.80. The age of values is how many stages ago they were reduced.
constexpr int kMaxAge = 5;

inline void split(Doubles& x, Doubles& y, WaveFactor w, const WaveModulus& m) {
    const Doubles t = mul_lazy(y, w, m);
    y = sub(x, t);
    x = add(x, t);
}

inline WaveFactor broadcast(const NttTable& table, std::size_t node) {
    return {splat(table.waves[2 * node]), splat(table.waves[2 * node + 1])};
}

// Lanes a, b, a, b and four different roots.
inline WaveFactor tail_pair(const double* tail, int pair) {
    const auto* p = reinterpret_cast<const __m128d*>(tail + 16 + 4 * pair);
    return {_mm256_broadcast_pd(p), _mm256_broadcast_pd(p + 1)};
}
inline WaveFactor tail_quad(const double* tail, int pair) { return {load(tail + 8 * pair), load(tail + 8 * pair + 4)}; }

inline void forward4(Doubles* v, const WaveFactor* w, const WaveModulus& m) {
    split(v[0], v[2], w[1], m);
    split(v[1], v[3], w[1], m);
    split(v[0], v[1], w[2], m);
    split(v[2], v[3], w[3], m);
}

template <bool kFirst, bool kReduce>
void forward_pass4(u64* dst, const u64* src, std::size_t length, std::size_t node, const NttTable& table,
                   const WaveModulus& m) {
    const WaveFactor w[4] = {{}, broadcast(table, node), broadcast(table, 2 * node), broadcast(table, 2 * node + 1)};
    const std::size_t stride = length / 4;
    for (std::size_t j = 0; j < stride; j += kLanes) {
        Doubles v[4];
        for (int k = 0; k < 4; ++k) v[k] = kFirst ? from_words(src + j + k * stride) : load_bits(src + j + k * stride);
        for (int k = 0; kReduce && k < 2; ++k) v[k] = reduce(v[k], m);
        forward4(v, w, m);
        for (int k = 0; k < 4; ++k) store_bits(dst + j + k * stride, v[k]);
    }
}

// One stage, when their number is odd.
void forward_pass2(u64* dst, const u64* src, std::size_t length, const NttTable& table, const WaveModulus& m) {
    const WaveFactor w = broadcast(table, 1);
    const std::size_t stride = length / 2;
    for (std::size_t j = 0; j < stride; j += kLanes) {
        Doubles x = reduce(from_words(src + j), m);
        Doubles y = from_words(src + j + stride);
        split(x, y, w, m);
        store_bits(dst + j, x);
        store_bits(dst + j + stride, y);
    }
}

// Two neighbouring tiles, stage by stage in turn: the stages of one are a chain of a hundred cycles.
inline void forward_tiles(u64* x, std::size_t node, const NttTable& table, const WaveModulus& m) {
    Doubles v[2][4];
    const double* tail[2];
    for (int i = 0; i < 2; ++i) {
        tail[i] = table.wave_tail + (node + i - table.n / kTile) * kTailWords;
        for (int k = 0; k < 4; ++k) v[i][k] = load_bits(x + kTile * i + kLanes * k);
    }
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 2; ++k) v[i][k] = reduce(v[i][k], m);
    }
    for (int i = 0; i < 2; ++i) {
        const WaveFactor w = broadcast(table, node + i);
        for (int k = 0; k < 2; ++k) split(v[i][k], v[i][k + 2], w, m);
    }
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 2; ++k) split(v[i][2 * k], v[i][2 * k + 1], broadcast(table, 2 * (node + i) + k), m);
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 2; ++p) {
            const Doubles even = _mm256_unpacklo_pd(v[i][2 * p], v[i][2 * p + 1]);
            const Doubles odd = _mm256_unpackhi_pd(v[i][2 * p], v[i][2 * p + 1]);
            v[i][2 * p] = _mm256_permute2f128_pd(even, odd, 0x20);
            v[i][2 * p + 1] = _mm256_permute2f128_pd(even, odd, 0x31);
            split(v[i][2 * p], v[i][2 * p + 1], tail_pair(tail[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 2; ++p) {
            const Doubles a = v[i][2 * p];
            const Doubles b = v[i][2 * p + 1];
            v[i][2 * p] = _mm256_permute2f128_pd(a, b, 0x20);
            v[i][2 * p + 1] = _mm256_permute2f128_pd(a, b, 0x31);
            split(v[i][2 * p], v[i][2 * p + 1], tail_quad(tail[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 4; ++k) v[i][k] = wrap(reduce(v[i][k], m), m);
        for (int p = 0; p < 2; ++p) {
            to_words(x + kTile * i + 8 * p, _mm256_unpacklo_pd(v[i][2 * p], v[i][2 * p + 1]));
            to_words(x + kTile * i + 8 * p + 4, _mm256_unpackhi_pd(v[i][2 * p], v[i][2 * p + 1]));
        }
    }
}

void forward_block(u64* x, std::size_t length, std::size_t node, int age, const NttTable& table, const WaveModulus& m) {
    if (age + 2 > kMaxAge) {
        forward_pass4<false, true>(x, x, length, node, table, m);
        age = 2;
    } else {
        forward_pass4<false, false>(x, x, length, node, table, m);
        age += 2;
    }
    const std::size_t part = length / 4;
    if (part == kTile) {
        for (std::size_t c = 0; c < 4; c += 2) forward_tiles(x + c * part, 4 * node + c, table, m);
    } else {
        for (std::size_t c = 0; c < 4; ++c) forward_block(x + c * part, part, 4 * node + c, age, table, m);
    }
}

// In the inverse direction sums double: from |x| <= q a first stage reaches 2q, a second reduces its sums, and products
// of differences up to 4q stay within 3q/4, so pairs of stages preserve |x| <= q. Mirrored blocks as in the other paths.
inline void join(Doubles& x, Doubles& y, WaveFactor w, const WaveModulus& m) {
    const Doubles difference = sub(y, x);
    x = add(x, y);
    y = mul_lazy(difference, w, m);
}

inline void join_reduced(Doubles& x, Doubles& y, WaveFactor w, const WaveModulus& m) {
    join(x, y, w, m);
    x = reduce(x, m);
}

inline void inverse4(Doubles* v, const WaveFactor* w, const WaveModulus& m) {
    join(v[0], v[1], w[3], m);
    join(v[2], v[3], w[2], m);
    join_reduced(v[0], v[2], w[1], m);
    join_reduced(v[1], v[3], w[1], m);
}

// Two tiles in turn; `node` is the mirror image of the second. Eight residues e run backwards, to meet the mirrored roots
// in the order of the table: odd registers hold the upper places of the pairs.
inline void inverse_tiles(u64* dst, const u64* src, std::size_t node, const NttTable& table, const WaveModulus& m) {
    Doubles v[2][4];
    const double* tail[2];
    for (int i = 0; i < 2; ++i) {
        tail[i] = table.wave_tail + (node + 1 - i - table.n / kTile) * kTailWords;
        for (int k = 0; k < 4; ++k) v[i][k] = from_words(src + kTile * i + kLanes * k);
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 2; ++p) {
            const Doubles even = _mm256_unpacklo_pd(v[i][2 * p], v[i][2 * p + 1]);  // 0 4 2 6
            const Doubles odd = _mm256_unpackhi_pd(v[i][2 * p], v[i][2 * p + 1]);   // 1 5 3 7
            v[i][2 * p] = _mm256_permute4x64_pd(even, 0x1b);                        // 6 2 4 0
            v[i][2 * p + 1] = _mm256_permute4x64_pd(odd, 0x1b);                     // 7 3 5 1
            join(v[i][2 * p], v[i][2 * p + 1], tail_quad(tail[i], 1 - p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 2; ++p) {
            const Doubles even = v[i][2 * p];
            const Doubles odd = v[i][2 * p + 1];
            v[i][2 * p] = _mm256_permute2f128_pd(odd, even, 0x31);                  // 5 1 4 0
            v[i][2 * p + 1] = _mm256_permute2f128_pd(odd, even, 0x20);              // 7 3 6 2
            join_reduced(v[i][2 * p], v[i][2 * p + 1], tail_pair(tail[i], 1 - p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 2; ++p) {
            const Doubles high = _mm256_unpacklo_pd(v[i][2 * p], v[i][2 * p + 1]);  // 5 7 4 6
            const Doubles low = _mm256_unpackhi_pd(v[i][2 * p], v[i][2 * p + 1]);   // 1 3 0 2
            v[i][2 * p] = _mm256_permute4x64_pd(low, 0x72);
            v[i][2 * p + 1] = _mm256_permute4x64_pd(high, 0x72);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 2; ++k) join(v[i][2 * k], v[i][2 * k + 1], broadcast(table, 2 * (node + 1 - i) + 1 - k), m);
    }
    for (int i = 0; i < 2; ++i) {
        const WaveFactor w = broadcast(table, node + 1 - i);
        for (int k = 0; k < 2; ++k) join_reduced(v[i][k], v[i][k + 2], w, m);
        for (int k = 0; k < 4; ++k) store_bits(dst + kTile * i + kLanes * k, v[i][k]);
    }
}

template <bool kFinal>
void inverse_pass4(u64* x, std::size_t length, std::size_t node, const NttTable& table, const WaveModulus& m) {
    WaveFactor w[4] = {{}, broadcast(table, node), broadcast(table, 2 * node), broadcast(table, 2 * node + 1)};
    const WaveFactor scale = wave_factor(table.scale, *table.modulus);
    if (kFinal) w[1] = wave_factor(table.scale_root, *table.modulus);
    const std::size_t stride = length / 4;
    for (std::size_t j = 0; j < stride; j += kLanes) {
        Doubles v[4];
        for (int k = 0; k < 4; ++k) v[k] = load_bits(x + j + k * stride);
        if constexpr (kFinal) {
            join(v[0], v[1], w[3], m);
            join(v[2], v[3], w[2], m);
            join(v[0], v[2], w[1], m);
            join(v[1], v[3], w[1], m);
            for (int k = 0; k < 2; ++k) v[k] = mul_lazy(v[k], scale, m);
            for (int k = 0; k < 4; ++k) to_words(x + j + k * stride, wrap(v[k], m));
        } else {
            inverse4(v, w, m);
            for (int k = 0; k < 4; ++k) store_bits(x + j + k * stride, v[k]);
        }
    }
}

void inverse_final2(u64* x, std::size_t length, const NttTable& table, const WaveModulus& m) {
    const WaveFactor scale = wave_factor(table.scale, *table.modulus);
    const WaveFactor scale_root = wave_factor(table.scale_root, *table.modulus);
    const std::size_t stride = length / 2;
    for (std::size_t j = 0; j < stride; j += kLanes) {
        Doubles a = load_bits(x + j);
        Doubles b = load_bits(x + j + stride);
        join(a, b, scale_root, m);
        to_words(x + j, wrap(mul_lazy(a, scale, m), m));
        to_words(x + j + stride, wrap(b, m));
    }
}

void inverse_block(u64* dst, const u64* src, std::size_t length, std::size_t node, const NttTable& table,
                   const WaveModulus& m) {
    const std::size_t part = length / 4;
    const std::size_t mirrored = 4 * node + 3;
    if (part == kTile) {
        for (std::size_t c = 0; c < 4; c += 2) inverse_tiles(dst + c * part, src + c * part, mirrored - c - 1, table, m);
    } else {
        for (std::size_t c = 0; c < 4; ++c) inverse_block(dst + c * part, src + c * part, part, mirrored - c, table, m);
    }
    if (node == 1) {
        inverse_pass4<true>(dst, length, node, table, m);
    } else {
        inverse_pass4<false>(dst, length, node, table, m);
    }
}

// Whether the stages are even in number: n is a power of four.
inline bool is_power_of_four(std::size_t n) { return (n & 0x5555555555555555) != 0; }

}  // namespace

void avx2_forward(u64* dst, const u64* src, const NttTable& table) {
    const WaveModulus m(*table.modulus);
    const bool even = is_power_of_four(table.n);
    const std::size_t parts = even ? 4 : 2;
    if (even) {
        forward_pass4<true, true>(dst, src, table.n, 1, table, m);
    } else {
        forward_pass2(dst, src, table.n, table, m);
    }
    const std::size_t part = table.n / parts;
    const int age = even ? 2 : 1;
    for (std::size_t c = 0; c < parts; ++c) forward_block(dst + c * part, part, parts + c, age, table, m);
}

void avx2_inverse(u64* dst, const u64* src, const NttTable& table) {
    const WaveModulus m(*table.modulus);
    if (is_power_of_four(table.n)) return inverse_block(dst, src, table.n, 1, table, m);
    const std::size_t half = table.n / 2;
    inverse_block(dst, src, half, 3, table, m);
    inverse_block(dst + half, src + half, half, 2, table, m);
    inverse_final2(dst, table.n, table, m);
}

}  // namespace secateur
