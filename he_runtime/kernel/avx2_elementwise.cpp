// Elementwise operations in four lanes (AVX2 and FMA).

#include "avx2_ntt.hpp"
#include "lanes4.hpp"

namespace secateur {
namespace {

using Words = __m256i;

inline Words load_words(const u64* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_words(u64* p, Words x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline Words splat_word(u64 x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }

// x + q where x < 0, else x.
inline Words wrap_words(Words x, Words q) {
    return _mm256_add_epi64(x, _mm256_and_si256(_mm256_cmpgt_epi64(_mm256_setzero_si256(), x), q));
}

void add(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const Words q = splat_word(modulus.value);
    for (std::size_t i = 0; i < n; i += 4) {
        const Words sum = _mm256_add_epi64(load_words(a + i), load_words(b + i));
        store_words(dst + i, wrap_words(_mm256_sub_epi64(sum, q), q));
    }
}

void sub(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const Words q = splat_word(modulus.value);
    for (std::size_t i = 0; i < n; i += 4) {
        store_words(dst + i, wrap_words(_mm256_sub_epi64(load_words(a + i), load_words(b + i)), q));
    }
}

void negate(u64* dst, const u64* a, std::size_t n, const Modulus& modulus) {
    const Words q = splat_word(modulus.value);
    for (std::size_t i = 0; i < n; i += 4) {
        store_words(dst + i, wrap_words(_mm256_sub_epi64(_mm256_setzero_si256(), load_words(a + i)), q));
    }
}

void multiply(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& modulus) {
    const WaveModulus m(modulus);
    for (std::size_t i = 0; i < n; i += 4) {
        const Doubles x = from_words(a + i);
        const Doubles y = from_words(b + i);
        const Doubles high = mul(x, y);
        const Doubles low = fms(x, y, high);
        const Doubles quotient = secateur::sub(fma(high, m.inverse, m.magic), m.magic);
        to_words(dst + i, wrap(secateur::add(fnma(quotient, m.q, high), low), m));
    }
}

void multiply_constant(u64* dst, const u64* a, Factor w, std::size_t n, const Modulus& modulus) {
    const WaveModulus m(modulus);
    const WaveFactor factor = wave_factor(w, modulus);
    for (std::size_t i = 0; i < n; i += 4) to_words(dst + i, wrap(mul_lazy(from_words(a + i), factor, m), m));
}

// A product below 2^100 is split at 2^52 by a fused multiply-add that rounds towards zero into the binade of 2^104: its
// significand is the high half, and what a second one leaves of the product, moved up by 2^52, has the low half in its
// significand. Both are added up as integers, exponents and all; the exponents are taken off once at the end.
constexpr std::size_t kProducts = 1024;

}  // namespace

const Kernel avx2_kernel = {"avx2", avx2_forward, avx2_inverse, add, sub, negate, multiply, multiply_constant,
                            portable_kernel.dot, portable_kernel.convert, portable_kernel.permute};

}  // namespace secateur
