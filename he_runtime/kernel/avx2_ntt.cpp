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
// five stages reach 1.25, 1.83, 2.45, 3.10 and 3.80; residues in [0, q) count as two. kFresh bounds a pass that follows.
constexpr int kMaxAge = 5;
constexpr int kFreshAge = 2;

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
        Doubles x = from_words(src + j);
        Doubles y = from_words(src + j + stride);
        split(x, y, w, m);
        store_bits(dst + j, x);
        store_bits(dst + j + stride, y);
    }
}

inline void forward_tile(u64* x, std::size_t node, const NttTable& table, const WaveModulus& m) {
    const double* tail = table.wave_tail + (node - table.n / kTile) * kTailWords;
    const WaveFactor w[4] = {{}, broadcast(table, node), broadcast(table, 2 * node), broadcast(table, 2 * node + 1)};
    Doubles v[4];
    for (int k = 0; k < 4; ++k) v[k] = load_bits(x + kLanes * k);
    for (int k = 0; k < 2; ++k) v[k] = reduce(v[k], m);
    forward4(v, w, m);
    for (int p = 0; p < 2; ++p) {
        const Doubles even = _mm256_unpacklo_pd(v[2 * p], v[2 * p + 1]);
        const Doubles odd = _mm256_unpackhi_pd(v[2 * p], v[2 * p + 1]);
        Doubles a = _mm256_permute2f128_pd(even, odd, 0x20);
        Doubles b = _mm256_permute2f128_pd(even, odd, 0x31);
        split(a, b, tail_pair(tail, p), m);
        Doubles c = _mm256_permute2f128_pd(a, b, 0x20);
        Doubles d = _mm256_permute2f128_pd(a, b, 0x31);
        split(c, d, tail_quad(tail, p), m);
        c = wrap(reduce(c, m), m);
        d = wrap(reduce(d, m), m);
        to_words(x + 8 * p, _mm256_unpacklo_pd(c, d));
        to_words(x + 8 * p + 4, _mm256_unpackhi_pd(c, d));
    }
}

void forward_block(u64* x, std::size_t length, std::size_t node, int age, const NttTable& table, const WaveModulus& m) {
    if (length == kTile) return forward_tile(x, node, table, m);
    if (age + 2 > kMaxAge) {
        forward_pass4<false, true>(x, x, length, node, table, m);
        age = 2;
    } else {
        forward_pass4<false, false>(x, x, length, node, table, m);
        age += 2;
    }
    for (std::size_t c = 0; c < 4; ++c) forward_block(x + c * (length / 4), length / 4, 4 * node + c, age, table, m);
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

inline void inverse_tile(u64* dst, const u64* src, std::size_t node, const NttTable& table, const WaveModulus& m) {
    const double* tail = table.wave_tail + (node - table.n / kTile) * kTailWords;
    const WaveFactor w[4] = {{}, broadcast(table, node), broadcast(table, 2 * node), broadcast(table, 2 * node + 1)};
    Doubles v[4];
    for (int p = 0; p < 2; ++p) {
        // Eight residues e in reverse order; pairs (a, b) are (upper, lower) places.
        const Doubles e = from_words(src + 8 * p);
        const Doubles f = from_words(src + 8 * p + 4);
        const Doubles lower = _mm256_unpacklo_pd(e, f);                   // 0 4 2 6
        const Doubles upper = _mm256_unpackhi_pd(e, f);                   // 1 5 3 7
        Doubles a = _mm256_permute4x64_pd(upper, 0x1b);                   // 7 3 5 1
        Doubles b = _mm256_permute4x64_pd(lower, 0x1b);                   // 6 2 4 0
        join(b, a, tail_quad(tail, 1 - p), m);
        Doubles c = _mm256_permute2f128_pd(a, b, 0x20);                   // 7 3 6 2
        Doubles d = _mm256_permute2f128_pd(a, b, 0x31);                   // 5 1 4 0
        join_reduced(d, c, tail_pair(tail, 1 - p), m);
        const Doubles high = _mm256_unpacklo_pd(d, c);                    // 5 7 4 6
        const Doubles low = _mm256_unpackhi_pd(d, c);                     // 1 3 0 2
        v[2 * p] = _mm256_permute4x64_pd(low, 0x72);                      // 0 1 2 3
        v[2 * p + 1] = _mm256_permute4x64_pd(high, 0x72);                 // 4 5 6 7
    }
    inverse4(v, w, m);
    for (int k = 0; k < 4; ++k) store_bits(dst + kLanes * k, v[k]);
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
    if (length == kTile) return inverse_tile(dst, src, node, table, m);
    const std::size_t part = length / 4;
    for (std::size_t c = 0; c < 4; ++c) inverse_block(dst + c * part, src + c * part, part, 4 * node + 3 - c, table, m);
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
        forward_pass4<true, false>(dst, src, table.n, 1, table, m);
    } else {
        forward_pass2(dst, src, table.n, table, m);
    }
    const std::size_t part = table.n / parts;
    const int age = kFreshAge + (even ? 2 : 1);
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
