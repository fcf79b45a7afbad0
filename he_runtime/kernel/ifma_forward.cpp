// Forward transform in eight 52-bit lanes: butterflies in [0, 4q) (Harvey 2014) for q < 2^50, in [0, 8q) for q < 2^49.
//
// A pass does two or three stages on a block in registers (radix 4 or 8). Blocks are finished depth first, so that all
// below the first pass or two stays in the first-level cache. Tiles of 64 residues get their last six stages in eight
// registers, three between registers and three inside them.

#include "ifma_ntt.hpp"

namespace secateur {
namespace {

// Primes below 2^49 have room for values in [0, 8q): a stage adds 2q, so every other goes without a reduction. Products may then be
// left with rubbish above bit 52, which the multiplier does not read and the next reduction clears.
enum class Room { none, some };
enum class Step { skip, reduce };  // of a stage, where there is room

template <Room kRoom, Step kStep, bool kClean = true>
inline void split(Lanes& x, Lanes& y, LaneFactor w, const LaneModulus& m) {
    if constexpr (kRoom == Room::none) {
        x = reduce_once(x, m.twice);
    } else if constexpr (kStep == Step::reduce) {
        x = reduce_once(_mm512_and_si512(x, m.mask), m.four);
    }
    const Lanes t = kRoom == Room::none && kClean ? mul_lazy(y, w, m) : mul_dirty(y, w, m);
    y = _mm512_sub_epi64(_mm512_add_epi64(x, m.twice), t);
    x = _mm512_add_epi64(x, t);
}

// Three stages on eight registers; w[k] is the root of tree entry k, entry 1 being the whole block.
template <Room kRoom, Step kStep>
inline void stage1(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 2; ++k) split<kRoom, kStep>(v[k], v[k + 4], w[1], m);
    for (int k = 2; k < 4; ++k) split<kRoom, kStep, false>(v[k], v[k + 4], w[1], m);
}
template <Room kRoom, Step kStep>
inline void stage2(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 8; k += 4) {
        split<kRoom, kStep>(v[k], v[k + 2], w[2 + k / 4], m);
        split<kRoom, kStep, false>(v[k + 1], v[k + 3], w[2 + k / 4], m);
    }
}
template <Room kRoom, Step kStep>
inline void stage3(Lanes* v, const LaneFactor* w, const LaneModulus& m) {
    for (int k = 0; k < 4; ++k) split<kRoom, kStep>(v[2 * k], v[2 * k + 1], w[4 + k], m);
}

template <Room kRoom, Step kFirst, int kRadix, class Source>
void pass(u64* dst, const Source src, std::size_t length, const u64* roots, std::size_t node, const LaneModulus& m) {
    LaneFactor w[kRadix];
    load_tree<kRadix>(w, roots, node);
    const std::size_t stride = length / kRadix;
    for (std::size_t j = 0; j < stride; j += 8) {
        Lanes v[kRadix];
        for (int k = 0; k < kRadix; ++k) v[k] = src(j + k * stride);
        if constexpr (kRadix == 8) {
            stage1<kRoom, kFirst>(v, w, m);
            stage2<kRoom, Step::skip>(v, w, m);
            stage3<kRoom, Step::reduce>(v, w, m);
        } else {
            split<kRoom, kFirst>(v[0], v[2], w[1], m);
            split<kRoom, kFirst, false>(v[1], v[3], w[1], m);
            for (int k = 0; k < 2; ++k) split<kRoom, Step::skip>(v[2 * k], v[2 * k + 1], w[2 + k], m);
        }
        for (int k = 0; k < kRadix; ++k) store(dst + j + k * stride, v[k]);
    }
}

template <Room kRoom, Step kFirst, class Source>
void pass(u64* dst, const Source& src, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m) {
    if (radix_for(length) == 8) {
        pass<kRoom, kFirst, 8>(dst, src, length, table.roots, node, m);
    } else {
        pass<kRoom, kFirst, 4>(dst, src, length, table.roots, node, m);
    }
}

inline void shuffle(Lanes& a, Lanes& b, Lanes first, Lanes second) {
    const Lanes x = _mm512_permutex2var_epi64(a, first, b);
    b = _mm512_permutex2var_epi64(a, second, b);
    a = x;
}

template <Room kRoom>
inline Lanes reduced(Lanes x, const LaneModulus& m) {
    return kRoom == Room::none ? reduce_fully<4>(x, m) : reduce_fully<8>(_mm512_and_si512(x, m.mask), m);
}

// Two neighbouring tiles, stage by stage in turn: the stages of one are a chain that is too long for the processor to
// see past, those of the other fill its gaps. Sixteen residues e in two registers are shuffled so that the roots of a
// stage repeat along the lanes: two alternate in the first stage, four in the second, eight differ in the third.
template <Room kRoom, Leave kLeave>
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
    for (int i = 0; i < 2; ++i) stage1<kRoom, Step::reduce>(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) stage2<kRoom, Step::skip>(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) stage3<kRoom, Step::reduce>(v[i], w[i], m);
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {  // lanes 0 8 1 9 2 10 3 11 and 4 12 5 13 6 14 7 15 of e
            shuffle(v[i][2 * p], v[i][2 * p + 1], low, high);
            split<kRoom, Step::skip>(v[i][2 * p], v[i][2 * p + 1], tail_pair(tails[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {  // 0 4 8 12 1 5 9 13 and 2 6 10 14 3 7 11 15
            shuffle(v[i][2 * p], v[i][2 * p + 1], low, high);
            split<kRoom, Step::reduce>(v[i][2 * p], v[i][2 * p + 1], tail_quad(tails[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int p = 0; p < 4; ++p) {  // 0 4 8 12 2 6 10 14 and 1 5 9 13 3 7 11 15
            const Lanes a = v[i][2 * p];
            const Lanes b = v[i][2 * p + 1];
            v[i][2 * p] = _mm512_shuffle_i64x2(a, b, 0x44);
            v[i][2 * p + 1] = _mm512_shuffle_i64x2(a, b, 0xee);
            split<kRoom, Step::skip>(v[i][2 * p], v[i][2 * p + 1], tail_octet(tails[i], p), m);
        }
    }
    for (int i = 0; i < 2; ++i) {
        if constexpr (kLeave == Leave::residues) {
            for (int k = 0; k < 8; ++k) v[i][k] = reduced<kRoom>(v[i][k], m);
        }
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

template <Room kRoom, Step kFirst, Leave kLeave, class Source, class Fetch>
void block(u64* dst, const Source& src, std::size_t length, std::size_t node, const NttTable& table, const LaneModulus& m,
           Fetch& fetch) {
    pass<kRoom, kFirst>(dst, src, length, node, table, m);
    const std::size_t radix = radix_for(length);
    const std::size_t part = length / radix;
    if (part == kTile) {
        for (std::size_t c = 0; c < radix; c += 2) {
            fetch();
            tiles<kRoom, kLeave>(dst + c * part, radix * node + c, table, m);
        }
    } else {
        for (std::size_t c = 0; c < radix; ++c) {
            block<kRoom, Step::reduce, kLeave>(dst + c * part, Plain{dst + c * part}, part, radix * node + c, table, m, fetch);
        }
    }
}

// The passes above blocks of `until` values, or all of them where that is the whole.
template <Room kRoom, Step kFirst, class Source>
void begin(u64* dst, const Source& src, std::size_t length, std::size_t node, std::size_t until, const NttTable& table,
           const LaneModulus& m) {
    if (until == table.n) {
        NoFetching none;
        return block<kRoom, kFirst, Leave::residues>(dst, src, length, node, table, m, none);
    }
    pass<kRoom, kFirst>(dst, src, length, node, table, m);
    const std::size_t radix = radix_for(length);
    const std::size_t part = length / radix;
    for (std::size_t c = 0; c < radix && part > until; ++c) {
        begin<kRoom, Step::reduce>(dst + c * part, Plain{dst + c * part}, part, radix * node + c, until, table, m);
    }
}

constexpr std::size_t kMostBlock = 4096;  // and its roots fit the second-level cache many times

bool has_room(const NttTable& table) { return table.modulus->value < u64{1} << 49; }

template <class Source>
void start(u64* dst, const Source& src, const NttTable& table, std::size_t until) {
    const LaneModulus m(table.modulus->value);
    if (has_room(table)) {
        begin<Room::some, Step::skip>(dst, src, table.n, 1, until, table, m);
    } else {
        begin<Room::none, Step::reduce>(dst, src, table.n, 1, until, table, m);
    }
}

template <Room kRoom, Leave kLeave>
void end_block(u64* values, std::size_t node, const NttTable& table, const Ahead& ahead) {
    const std::size_t length = ifma_block(table.n);
    Fetching fetching(ahead, length);
    block<kRoom, Step::reduce, kLeave>(values, Plain{values}, length, node, table, LaneModulus(table.modulus->value), fetching);
}

}  // namespace

std::size_t ifma_block(std::size_t n) {
    if (n <= kMostBlock) return n;
    while (n > kMostBlock) n /= radix_for(n);
    return n;
}

void ifma_forward(u64* dst, const u64* src, const NttTable& table) { start(dst, Plain{src}, table, table.n); }

void ifma_forward_begin(u64* dst, const u64* src, const Lift* lift, const NttTable& table) {
    const std::size_t until = ifma_block(table.n);
    if (lift == nullptr) {
        start(dst, Plain{src}, table, until);
    } else if (lift->signs == nullptr) {
        start(dst, Centred(src, *lift), table, until);
    } else {
        start(dst, Signed(src, *lift), table, until);
    }
}

void ifma_forward_end(u64* values, std::size_t begin, Leave leave, const NttTable& table, const Ahead& ahead) {
    if (ifma_block(table.n) == table.n) return;
    constexpr decltype(&end_block<Room::none, Leave::residues>) ends[2][2] = {
        {end_block<Room::none, Leave::residues>, end_block<Room::none, Leave::factors>},
        {end_block<Room::some, Leave::residues>, end_block<Room::some, Leave::factors>}};
    ends[has_room(table)][leave == Leave::factors](values + begin, (table.n + begin) / ifma_block(table.n), table, ahead);
}

}  // namespace secateur
