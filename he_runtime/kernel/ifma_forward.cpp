// Forward transform in eight 52-bit lanes: butterflies in [0, 4q) (Harvey 2014), q < 2^50.
//
// A pass does two or three stages on a block in registers (radix 4 or 8). Blocks are finished depth first, so that all
// below the first pass or two stays in the first-level cache. Tiles of 64 residues get their last six stages in eight
// registers, three between registers and three inside them.

#include "ifma_ntt.hpp"

namespace secateur {
namespace {

// kClean = false leaves rubbish above bit 52 of both results: enough where the next stage multiplies both, since the
// multiplier does not read it.
template <bool kClean = true>
inline void split(Lanes& x, Lanes& y, LaneFactor w, const LaneModulus& m) {
    x = reduce_once(x, m.twice);
    const Lanes t = kClean ? mul_lazy(y, w, m) : mul_dirty(y, w, m);
    y = _mm512_sub_epi64(_mm512_add_epi64(x, m.twice), t);
    x = _mm512_add_epi64(x, t);
}

// Three stages on eight registers; w[k] is the root of tree entry k, entry 1 being the whole block.
inline void stage1(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 2; ++k) split(v[k], v[k + 4], w[1], m);
    for (int k = 2; k < 4; ++k) split<false>(v[k], v[k + 4], w[1], m);
}
inline void stage2(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 8; k += 4) {
        split(v[k], v[k + 2], w[2 + k / 4], m);
        split<false>(v[k + 1], v[k + 3], w[2 + k / 4], m);
    }
}
inline void stage3(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 4; ++k) split(v[2 * k], v[2 * k + 1], w[4 + k], m);
}

template <int kRadix, class Source>
void pass(u64* dst, const Source src, std::size_t length, const u64* roots, std::size_t node, const LaneModulus& m) {
    LaneFactor w[kRadix];
    load_tree<kRadix>(w, roots, node);
    const std::size_t stride = length / kRadix;
    for (std::size_t j = 0; j < stride; j += 8) {
        Lanes v[kRadix];
        for (int k = 0; k < kRadix; ++k) v[k] = src(j + k * stride);
        if constexpr (kRadix == 8) {
            stage1(v, w, m);
            stage2(v, w, m);
            stage3(v, w, m);
        } else {
            split(v[0], v[2], w[1], m);
            split<false>(v[1], v[3], w[1], m);
            for (int k = 0; k < 2; ++k) split(v[2 * k], v[2 * k + 1], w[2 + k], m);
        }
        for (int k = 0; k < kRadix; ++k) store(dst + j + k * stride, v[k]);
    }
}

template <class Source>
void pass(u64* dst, const Source& src, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m) {
    if (radix_for(length) == 8) {
        pass<8>(dst, src, length, table.roots, node, m);
    } else {
        pass<4>(dst, src, length, table.roots, node, m);
    }
}

inline void shuffle(Lanes& a, Lanes& b, Lanes first, Lanes second) {
    const Lanes x = _mm512_permutex2var_epi64(a, first, b);
    b = _mm512_permutex2var_epi64(a, second, b);
    a = x;
}

// Two neighbouring tiles, stage by stage in turn: the stages of one are a chain that is too long for the processor to
// see past, those of the other fill its gaps. Sixteen residues e in two registers are shuffled so that the roots of a
// stage repeat along the lanes: two alternate in the first stage, four in the second, eight differ in the third.
void tiles(u64* x, std::size_t node, const NttTable& table, const LaneModulus& m) {
    const Lanes low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const Lanes high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    const Lanes front = _mm512_set_epi64(13, 5, 9, 1, 12, 4, 8, 0);
    const Lanes back = _mm512_set_epi64(15, 7, 11, 3, 14, 6, 10, 2);
    const u64* tails[2] = {tail_of(table, node), tail_of(table, node + 1)};
    LaneFactor w[2][8];
    Lanes v[2][8];
    for (int i = 0; i < 2; ++i) {
        load_tree<8>(w[i], table.roots, node + i);
        for (int k = 0; k < 8; ++k) v[i][k] = load(x + kTile * i + 8 * k);
    }
    for (int i = 0; i < 2; ++i) stage1(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) stage2(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) stage3(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {  // lanes 0 8 1 9 2 10 3 11 and 4 12 5 13 6 14 7 15 of e
            shuffle(v[i][2 * p], v[i][2 * p + 1], low, high);
            split(v[i][2 * p], v[i][2 * p + 1], tail_pair(tails[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {  // 0 4 8 12 1 5 9 13 and 2 6 10 14 3 7 11 15
            shuffle(v[i][2 * p], v[i][2 * p + 1], low, high);
            split(v[i][2 * p], v[i][2 * p + 1], tail_quad(tails[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {  // 0 4 8 12 2 6 10 14 and 1 5 9 13 3 7 11 15
            const Lanes a = v[i][2 * p];
            const Lanes b = v[i][2 * p + 1];
            v[i][2 * p] = _mm512_shuffle_i64x2(a, b, 0x44);
            v[i][2 * p + 1] = _mm512_shuffle_i64x2(a, b, 0xee);
            split(v[i][2 * p], v[i][2 * p + 1], tail_octet(tails[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 8; ++k) v[i][k] = reduce_fully<4>(v[i][k], m);
        for (int p = 0; p < 4; ++p) shuffle(v[i][2 * p], v[i][2 * p + 1], front, back);
        for (int k = 0; k < 8; ++k) store(x + kTile * i + 8 * k, v[i][k]);
    }
}

struct NoFetching {
    void operator()() const {}
};

// A share of what is needed next with every two tiles: in one go it would wait for memory.
class Fetching {
  public:
    Fetching(const Ahead& ahead, std::size_t values) : ahead_(ahead), step_(ahead.count / (values / (2 * kTile))) {}
    void operator()() {
        for (std::size_t i = 0; i < step_; i += 8) __builtin_prefetch(ahead_.words + i, 0, 2);
        ahead_.words += step_;
        if (ahead_.block == nullptr) return;
        for (std::size_t i = 0; i < 2 * kTile; i += 8) __builtin_prefetch(ahead_.block + i, 1, 2);
        ahead_.block += 2 * kTile;
    }

  private:
    Ahead ahead_;
    std::size_t step_;
};

template <class Source, class Fetch>
void block(u64* dst, const Source& src, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m,
           Fetch& fetch) {
    pass(dst, src, length, node, table, m);
    const std::size_t radix = radix_for(length);
    const std::size_t part = length / radix;
    if (part == kTile) {
        for (std::size_t c = 0; c < radix; c += 2) {
            fetch();
            tiles(dst + c * part, radix * node + c, table, m);
        }
    } else {
        for (std::size_t c = 0; c < radix; ++c) {
            block(dst + c * part, Plain{dst + c * part}, part, radix * node + c, table, m, fetch);
        }
    }
}

// The passes above blocks of `until` values, or all of them where that is the whole.
template <class Source>
void begin(u64* dst, const Source& src, std::size_t length, std::size_t node, std::size_t until, const NttTable& table,
           const LaneModulus& m) {
    if (until == table.n) {
        NoFetching none;
        return block(dst, src, length, node, table, m, none);
    }
    pass(dst, src, length, node, table, m);
    const std::size_t radix = radix_for(length);
    const std::size_t part = length / radix;
    for (std::size_t c = 0; c < radix && part > until; ++c) {
        begin(dst + c * part, Plain{dst + c * part}, part, radix * node + c, until, table, m);
    }
}

constexpr std::size_t kMostBlock = 4096;  // and its roots fit the second-level cache many times

}  // namespace

std::size_t ifma_block(std::size_t n) {
    if (n <= kMostBlock) return n;
    while (n > kMostBlock) n /= radix_for(n);
    return n;
}

void ifma_forward(u64* dst, const u64* src, const NttTable& table) {
    NoFetching none;
    block(dst, Plain{src}, table.n, 1, table, LaneModulus(table.modulus->value), none);
}

void ifma_forward_begin(u64* dst, const u64* src, const Lift* lift, const NttTable& table) {
    const LaneModulus m(table.modulus->value);
    const std::size_t until = ifma_block(table.n);
    if (lift == nullptr) {
        begin(dst, Plain{src}, table.n, 1, until, table, m);
    } else if (lift->signs == nullptr) {
        begin(dst, Centred(src, *lift), table.n, 1, until, table, m);
    } else {
        begin(dst, Signed(src, *lift), table.n, 1, until, table, m);
    }
}

void ifma_forward_end(u64* values, std::size_t begin, const NttTable& table, const Ahead& ahead) {
    const std::size_t length = ifma_block(table.n);
    if (length == table.n) return;
    Fetching fetching(ahead, length);
    block(values + begin, Plain{values + begin}, length, (table.n + begin) / length, table,
          LaneModulus(table.modulus->value), fetching);
}

}  // namespace secateur
