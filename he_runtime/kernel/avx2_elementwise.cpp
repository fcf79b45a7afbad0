// Elementwise operations in four lanes (AVX2 and FMA).

#include "avx2_ntt.hpp"
#include "blake2xb.hpp"
#include "lanes4.hpp"
#include "sums.hpp"

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

void sub_multiply_constant(u64* dst, const u64* a, const u64* b, Factor w, std::size_t n, const Modulus& modulus) {
    const WaveModulus m(modulus);
    const WaveFactor factor = wave_factor(w, modulus);
    for (std::size_t i = 0; i < n; i += 4) {
        const Doubles difference = secateur::sub(from_words(a + i), from_words(b + i));
        to_words(dst + i, wrap(mul_lazy(difference, factor, m), m));
    }
}

// A product below 2^100 is split at 2^50 without carries. Adding it to kHigh = 1.5 * 2^102, where doubles are 2^50 apart,
// rounds it to a multiple of 2^50 whose number is in the low bits; adding what is left, at most 2^49 in size, to
// 1.5 * 2^52 puts that into the low bits of another double. Both are summed as integers, exponents and all, and the
// exponents are taken off at the end.
constexpr double kHigh = 1.5 * 5070602400912917605986812821504.0;
constexpr double kBoth = kHigh + kMagic;

inline u64 bits_of(double x) {
    u64 bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline WaveFactor power_factor(u64 residue, const Modulus& modulus) { return wave_factor({residue, 0}, modulus); }

// Sums of split products.
struct Splits {
    using Value = Doubles;
    using Sum = Words;
    static constexpr std::size_t kWidth = 4;
    static constexpr std::size_t kProducts = 2048;  // sums below 2^61 in size
    static constexpr int kGroup = 4;
    static constexpr bool kWideFactors = false;

    explicit Splits(const Modulus& modulus)
        : m(modulus), two32(power_factor((u64{1} << 32) % modulus.value, modulus)),
          two50(power_factor((u64{1} << 50) % modulus.value, modulus)),
          two82(power_factor(
              mul((u64{1} << 50) % modulus.value, (u64{1} << 32) % modulus.value, modulus), modulus)),
          minus_two61(secateur::sub(_mm256_setzero_pd(), splat(static_cast<double>((u64{1} << 61) % modulus.value)))) {}

    static Doubles value(const u64* p) { return from_words(p); }
    static Doubles constant(u64 w) { return splat(static_cast<double>(w)); }
    static Words zero() { return _mm256_setzero_si256(); }
    static Words load(const u64* p) { return load_words(p); }
    static void store(u64* p, Words x) { store_words(p, x); }

    static void multiply_add(Words& high, Words& low, Doubles x, Doubles y) {
        const Doubles upper = fma(x, y, splat(kHigh));
        const Doubles lower = fma(x, y, secateur::sub(splat(kBoth), upper));
        high = _mm256_add_epi64(high, _mm256_castpd_si256(upper));
        low = _mm256_add_epi64(low, _mm256_castpd_si256(lower));
    }

    void finish(u64* dst, Words high, Words low, std::size_t count) const {
        high = _mm256_sub_epi64(high, splat_word(count * bits_of(kHigh)));
        low = _mm256_sub_epi64(low, splat_word(count * bits_of(kMagic) - (u64{1} << 61)));
        Doubles sum = mul_lazy(top(high), two82, m);
        sum = secateur::add(sum, mul_lazy(bottom(high), two50, m));
        sum = secateur::add(sum, mul_lazy(top(low), two32, m));
        sum = secateur::add(sum, reduce(bottom(low), m));
        to_words(dst, wrap(reduce(secateur::add(sum, minus_two61), m), m));
    }

    static Doubles top(Words x) { return small(_mm256_srli_epi64(x, 32)); }
    static Doubles bottom(Words x) { return small(_mm256_and_si256(x, splat_word(0xffffffff))); }
    static Doubles small(Words x) {
        const Doubles exponent = splat(kTwo52);
        return secateur::sub(_mm256_or_pd(_mm256_castsi256_pd(x), exponent), exponent);
    }

    WaveModulus m;
    WaveFactor two32, two50, two82;
    Doubles minus_two61;
};

void convert(u64* dst, const u64* a, std::size_t n, const Modulus& from, const Modulus& to) {
    if (from.bits > 52) return portable_kernel.convert(dst, a, n, from, to);
    const WaveModulus m(to);
    for (std::size_t i = 0; i < n; i += 4) to_words(dst + i, wrap(reduce(from_words(a + i), m), m));
}

// Comparisons are signed: from q on, and from 2^63 on, a difference or the value itself has its top bit set.
bool all_below(const u64* a, std::size_t n, u64 q) {
    const Words last = splat_word(q - 1);
    Words bad = _mm256_setzero_si256();
    for (std::size_t i = 0; i < n; i += 4) {
        const Words x = load_words(a + i);
        bad = _mm256_or_si256(bad, _mm256_or_si256(x, _mm256_sub_epi64(last, x)));
    }
    return _mm256_movemask_pd(_mm256_castsi256_pd(bad)) == 0;
}

// Both below 2^62, so that the signed comparison is right.
void lift(u64* dst, const u64* src, const Lift& lift, std::size_t n) {
    const Words bound = splat_word(lift.half), more = splat_word(lift.wrap), zero = _mm256_setzero_si256();
    const Words bits[2] = {_mm256_set_epi64x(8, 4, 2, 1), _mm256_set_epi64x(128, 64, 32, 16)};
    for (std::size_t i = 0; i < n; i += 4) {
        const Words x = load_words(src + i);
        Words negative;
        if (lift.signs == nullptr) {
            negative = _mm256_cmpgt_epi64(x, bound);
        } else {
            const Words bit = bits[i / 4 % 2];
            negative = _mm256_cmpeq_epi64(_mm256_and_si256(splat_word(lift.signs[i / 8]), bit), bit);
            negative = _mm256_and_si256(negative, _mm256_cmpgt_epi64(x, zero));
        }
        store_words(dst + i, _mm256_add_epi64(x, _mm256_and_si256(negative, more)));
    }
}

std::size_t block(std::size_t n) { return n; }

void forward_begin(u64* dst, const u64* src, const Lift* how, const NttTable& table) {
    if (how == nullptr) return avx2_forward(dst, src, table);
    lift(dst, src, *how, table.n);
    avx2_forward(dst, dst, table);
}

void forward_end(u64*, std::size_t, Leave, const NttTable&, const Ahead&) {}

void round_quotient(u64* dst, const u64* const* v, const double* inverse, std::size_t count, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 4) {
        Doubles sum = splat(0.5);
        for (std::size_t k = 0; k < count; ++k) {
            sum = secateur::add(sum, _mm256_mul_pd(from_words(v[k] + i), splat(inverse[k])));
        }
        to_words(dst + i, _mm256_floor_pd(sum));
    }
}

// Each half of eight comes from one half of its source block, because the lowest bit of the reversed position keeps its
// parity under an odd multiplier; within it the order is a permutation of four.
void permute(u64* dst, const u64* src, std::size_t from, const GaloisTable& table, std::size_t begin, std::size_t count) {
    const std::uint32_t* source = table.source + begin / 8;
    Words order[8][2];
    std::size_t half[8][2];
    for (int top = 0; top < 8; ++top) {
        for (int h = 0; h < 2; ++h) {
            const u64* lane = table.lanes[top] + 4 * h;
            half[top][h] = lane[0] & 4;
            const auto word = [lane](int i) { return static_cast<long long>(2 * (lane[i] & 3) | (2 * (lane[i] & 3) + 1) << 32); };
            order[top][h] = _mm256_set_epi64x(word(3), word(2), word(1), word(0));
        }
    }
    for (std::size_t i = 0; i < count / 8; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(src + source[i + kGaloisAhead] - from), _MM_HINT_T0);
        const u64* block = src + (source[i] & ~std::uint32_t{7}) - from;
        const std::uint32_t top = source[i] & 7;
        for (int h = 0; h < 2; ++h) {
            const Words x = load_words(block + half[top][h]);
            store_words(dst + 8 * i + 4 * h, _mm256_permutevar8x32_epi32(x, order[top][h]));
        }
    }
}

// Four nodes of BLAKE2Xb.
struct Quads {
    typedef u64 Words __attribute__((vector_size(32)));
    static constexpr std::size_t kCount = 4;
    template <int bits>
    static Words rotate_right(Words x) {
        const auto y = reinterpret_cast<__m256i>(x);
        if constexpr (bits == 32) return reinterpret_cast<Words>(_mm256_shuffle_epi32(y, 0xb1));
        if constexpr (bits == 24) return reinterpret_cast<Words>(_mm256_shuffle_epi8(y, bytes_from(3)));
        if constexpr (bits == 16) return reinterpret_cast<Words>(_mm256_shuffle_epi8(y, bytes_from(2)));
        return (x >> bits) | (x << (64 - bits));
    }

  private:
    // Of every word the bytes from that one on, then those before it.
    static __m256i bytes_from(long long first) {
        const long long low = 0x0706050403020100, high = 0x0f0e0d0c0b0a0908;
        const auto turned = [&](long long word) {
            return static_cast<long long>(static_cast<u64>(word) >> (8 * first) | static_cast<u64>(word) << (64 - 8 * first));
        };
        return _mm256_set_epi64x(turned(high), turned(low), turned(high), turned(low));
    }
};

}  // namespace

const Kernel avx2_kernel = {
    "avx2",            avx2_forward,  avx2_inverse,
    block,             forward_begin, forward_end,
    add,               sub,           negate,
    multiply,          multiply_constant, sub_multiply_constant,
    Sums<Splits>::dot, Sums<Splits>::dot_pair, Sums<Splits>::gadget_pair, Sums<Splits>::dot_constants,
    convert,           all_below,     lift,
    round_quotient,    permute,       Blake2xb<Quads>::nodes,
};

}  // namespace secateur
