// Eight residues below 2^50 in one register, multiplied by the 52-bit units of AVX-512 IFMA.
//
// Included only by files compiled for that instruction set; everything is in an unnamed namespace for the reason given
// in modulus.hpp.
#pragma once

#include <immintrin.h>

#include "kernel.hpp"

namespace secateur {
namespace {

using Lanes = __m512i;

inline Lanes load(const u64* p) { return _mm512_loadu_si512(p); }
inline void store(u64* p, Lanes x) { _mm512_storeu_si512(p, x); }
inline Lanes splat(u64 x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
inline Lanes high52(Lanes a, Lanes b) { return _mm512_madd52hi_epu64(_mm512_setzero_si512(), a, b); }
inline Lanes low52(Lanes a, Lanes b) { return _mm512_madd52lo_epu64(_mm512_setzero_si512(), a, b); }

// x - bound where x >= bound, else x: the wrapped difference is the larger one exactly when x < bound.
inline Lanes reduce_once(Lanes x, Lanes bound) { return _mm512_min_epu64(x, _mm512_sub_epi64(x, bound)); }

struct LaneFactor {
    Lanes value;
    Lanes quotient;  // floor(value * 2^52 / q)
};

inline LaneFactor splat(Factor w) { return {splat(w.value), splat(w.quotient >> 12)}; }

struct LaneModulus {
    explicit LaneModulus(u64 prime)
        : q(splat(prime)), minus_q(splat((u64{1} << 52) - prime)), twice(splat(2 * prime)), four(splat(4 * prime)), mask(splat((u64{1} << 52) - 1)) {}

    Lanes q;
    Lanes minus_q;  // modulo 2^52
    Lanes twice;
    Lanes four;
    Lanes mask;
};

// x * w mod q in [0, 2q), plus 0 or 2^52, for x below 2^52 (the multiplier ignores higher bits). Both low products are
// accumulated with the multiplier's own addition; their sum is right modulo 2^52.
inline Lanes mul_dirty(Lanes x, LaneFactor w, const LaneModulus& m) {
    const Lanes estimate = high52(x, w.quotient);
    return _mm512_madd52lo_epu64(low52(x, w.value), estimate, m.minus_q);
}

inline Lanes mul_lazy(Lanes x, LaneFactor w, const LaneModulus& m) {
    return _mm512_and_si512(mul_dirty(x, w, m), m.mask);
}

// Operands of a pass, from [i, i + 8): as they are, or lifted.
struct Plain {
    const u64* src;
    Lanes operator()(std::size_t i) const { return load(src + i); }
};

struct Centred {
    Centred(const u64* values, const Lift& lift) : src(values), half(splat(lift.half)), wrap(splat(lift.wrap)) {}
    Lanes operator()(std::size_t i) const {
        const Lanes x = load(src + i);
        return _mm512_mask_add_epi64(x, _mm512_cmpgt_epu64_mask(x, half), x, wrap);
    }
    const u64* src;
    Lanes half, wrap;
};

struct Signed {
    Signed(const u64* values, const Lift& lift) : src(values), signs(lift.signs), wrap(splat(lift.wrap)) {}
    Lanes operator()(std::size_t i) const {
        const Lanes x = load(src + i);
        return _mm512_mask_add_epi64(x, _mm512_mask_test_epi64_mask(static_cast<__mmask8>(signs[i / 8]), x, x), x, wrap);
    }
    const u64* src;
    const unsigned char* signs;
    Lanes wrap;
};

}  // namespace
}  // namespace secateur
