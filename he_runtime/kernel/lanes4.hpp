// Four residues below 2^50 as doubles in one AVX2 register.
//
// Integers up to 2^53 are exact in a double and a fused multiply-add gives the exact error of a product, so a modular
// product takes six floating-point instructions, half on the multipliers and half on the adders; 64-bit integer
// multiplication would take four 32-bit products and their sums for each half of one. Residues are signed here, which
// makes sums and differences one instruction each, without corrections.
#pragma once

#include <immintrin.h>

#include "kernel.hpp"

namespace secateur {
namespace {

using Doubles = __m256d;

constexpr int kLanes = 4;

inline Doubles load(const double* p) { return _mm256_loadu_pd(p); }
inline Doubles load_bits(const u64* p) { return _mm256_castsi256_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store_bits(u64* p, Doubles x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_castpd_si256(x)); }
inline Doubles splat(double x) { return _mm256_set1_pd(x); }
inline Doubles splat_bits(u64 x) { return _mm256_castsi256_pd(_mm256_set1_epi64x(static_cast<long long>(x))); }
inline Doubles add(Doubles a, Doubles b) { return _mm256_add_pd(a, b); }
inline Doubles sub(Doubles a, Doubles b) { return _mm256_sub_pd(a, b); }
inline Doubles mul(Doubles a, Doubles b) { return _mm256_mul_pd(a, b); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }      // a * b + c
inline Doubles fms(Doubles a, Doubles b, Doubles c) { return _mm256_fmsub_pd(a, b, c); }      // a * b - c
inline Doubles fnma(Doubles a, Doubles b, Doubles c) { return _mm256_fnmadd_pd(a, b, c); }    // c - a * b

// Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
constexpr double kMagic = 6755399441055744.0;
constexpr double kTwo52 = 4503599627370496.0;

// Integers in [0, 2^52), and back from integers in [0, 2^52).
inline Doubles from_words(const u64* p) {
    const Doubles exponent = splat(kTwo52);
    return sub(_mm256_or_pd(load_bits(p), exponent), exponent);
}
inline void to_words(u64* p, Doubles x) {
    const Doubles exponent = splat(kTwo52);
    store_bits(p, _mm256_xor_pd(add(x, exponent), exponent));
}

struct WaveFactor {
    Doubles value;  // w, centred
    Doubles ratio;  // w / q
};

struct WaveModulus {
    explicit WaveModulus(const Modulus& modulus)
        : q(splat(static_cast<double>(modulus.value))), inverse(splat(modulus.inverse)), magic(splat(kMagic)) {}

    Doubles q;
    Doubles inverse;
    Doubles magic;
};

// x * w mod q for |x| <= B * q: within (1/2 + B/16) * q of zero. The quotient is rounded once, to an integer; the
// rounding of w / q adds at most |x| / 2^54. Both halves of the product are exact, and so is each of the two sums.
inline Doubles mul_lazy(Doubles x, WaveFactor w, const WaveModulus& m) {
    const Doubles quotient = sub(fma(x, w.ratio, m.magic), m.magic);
    const Doubles high = mul(x, w.value);
    const Doubles low = fms(x, w.value, high);
    return add(fnma(quotient, m.q, high), low);
}

// To within q / 2 of zero, and a little.
inline Doubles reduce(Doubles x, const WaveModulus& m) {
    return fnma(sub(fma(x, m.inverse, m.magic), m.magic), m.q, x);
}

// From (-q, q) to [0, q). The comparison is right for -0 too.
inline Doubles wrap(Doubles x, const WaveModulus& m) {
    return add(x, _mm256_and_pd(_mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ), m.q));
}

inline WaveFactor wave_factor(Factor w, const Modulus& modulus) {
    const auto q = static_cast<double>(modulus.value);
    const auto x = static_cast<double>(w.value);
    const double centred = w.value > modulus.value / 2 ? x - q : x;
    return {splat(centred), splat(centred / q)};
}

}  // namespace
}  // namespace secateur
