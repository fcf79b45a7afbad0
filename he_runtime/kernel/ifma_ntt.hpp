// What the two directions of the IFMA transform share: tables, tiles and the order of the passes.
#pragma once

#include "ifma.hpp"

namespace secateur {

void ifma_forward(u64* dst, const u64* src, const NttTable& table);
std::size_t ifma_block(std::size_t n);
void ifma_forward_begin(u64* dst, const u64* src, const Lift* lift, const NttTable& table);
void ifma_forward_end(u64* values, std::size_t begin, Leave leave, const NttTable& table, const Ahead& ahead);
void ifma_inverse(u64* dst, const u64* src, const NttTable& table);

namespace {

constexpr std::size_t kTile = 64;
constexpr std::size_t kTailWords = 112;  // 14 roots for each 16 residues, with quotients

// Passes of three stages, except where only two or four are left above the tile.
inline std::size_t radix_for(std::size_t length) { return length == 4 * kTile || length == 16 * kTile ? 4 : 8; }

template <int kRadix>
inline void load_tree(LaneFactor* w, const u64* roots, std::size_t node) {
    for (int first = 1; first < kRadix; first *= 2) {
        for (int k = 0; k < first; ++k) {
            const u64* entry = roots + 2 * (node * first + k);
            w[first + k] = {splat(entry[0]), splat(entry[1])};
        }
    }
}

// Roots of the stages inside registers: eight, four or two different ones for two registers.
inline LaneFactor tail_octet(const u64* tail, int pair) {
    return {load(tail + 16 * pair), load(tail + 16 * pair + 8)};
}

inline LaneFactor tail_quad(const u64* tail, int pair) {
    const auto* p = reinterpret_cast<const __m256i*>(tail + 64 + 8 * pair);
    return {_mm512_broadcast_i64x4(_mm256_loadu_si256(p)), _mm512_broadcast_i64x4(_mm256_loadu_si256(p + 1))};
}

inline LaneFactor tail_pair(const u64* tail, int pair) {
    const auto* p = reinterpret_cast<const __m128i*>(tail + 96 + 4 * pair);
    return {_mm512_broadcast_i64x2(_mm_loadu_si128(p)), _mm512_broadcast_i64x2(_mm_loadu_si128(p + 1))};
}

inline const u64* tail_of(const NttTable& table, std::size_t node) {
    return table.tail + (node - table.n / kTile) * kTailWords;
}

// From [0, kBound * q) to [0, q).
template <int kBound>
inline Lanes reduce_fully(Lanes x, const LaneModulus& m) {
    if constexpr (kBound > 4) x = reduce_once(x, m.four);
    if constexpr (kBound > 2) x = reduce_once(x, m.twice);
    return reduce_once(x, m.q);
}

}  // namespace
}  // namespace secateur
