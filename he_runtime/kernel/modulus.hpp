// Arithmetic modulo one prime below 2^60, and the constants that the vector paths need for primes below 2^50.
//
// Only plain data and functions defined in modulus.cpp or marked `static inline` live here: the vector paths are
// compiled with their own instruction sets, and an ordinary inline function emitted there could be the copy that the
// linker keeps for everybody, which would crash on an older CPU.
#pragma once

#include <cstdint>

namespace secateur {

using u64 = std::uint64_t;
using u128 = unsigned __int128;

// The largest primes (exclusive): 60 bits everywhere, 50 bits in the vector paths. Below 2^50 a residue in [0, 4q)
// still fits the 52-bit multiplier of AVX-512 IFMA and the 53-bit significand of a double.
constexpr int kMaxBits = 60;
constexpr int kNarrowBits = 50;

// A constant w in [0, q) with floor(w * 2^64 / q): x * w mod q costs two products and no division (Shoup). The
// quotient for 52-bit multipliers is this one shifted right by 12.
struct Factor {
    u64 value;
    u64 quotient;
};

struct Modulus {
    u64 value;       // the prime q
    int bits;        // bit length of q
    u64 barrett;     // floor(2^(2 * bits + 3) / q), less than 2^64
    u64 barrett52;   // floor(2^(bits + 50) / q), less than 2^51; for narrow primes
    Factor one;      // reduces any 64-bit integer
    Factor two64;    // 2^64 mod q: folds the high word of a 128-bit sum
    Factor two52;    // 2^52 mod q: folds the high accumulator of 52-bit products
    Factor two104;   // 2^104 mod q
    double inverse;  // 1 / q, for quotients estimated in floating point
};

// True when the vector paths can take the prime.
static inline bool is_narrow(const Modulus& m) { return m.bits <= kNarrowBits; }

// The constants of q. Throws std::invalid_argument unless q is an odd prime below 2^60.
Modulus make_modulus(u64 q);

// True for primes; exact for every 64-bit integer.
bool is_prime(u64 x);

// w with its Shoup quotient; w must be below q.
Factor make_factor(u64 w, const Modulus& modulus);

static inline u64 mul_high(u64 a, u64 b) { return static_cast<u64>((static_cast<u128>(a) * b) >> 64); }

static inline u64 reduce_once(u64 x, u64 q) { return x >= q ? x - q : x; }

// x * w mod q in [0, 2q), for any 64-bit x.
static inline u64 mul_lazy(u64 x, Factor w, u64 q) { return x * w.value - mul_high(x, w.quotient) * q; }

static inline u64 mul(u64 x, Factor w, u64 q) { return reduce_once(mul_lazy(x, w, q), q); }

// a * b mod q for a, b in [0, q): Barrett on the top bits of the product. The estimate of the quotient is at most one
// too small: 1/2 from the bits cut from the product, 1/8 from those cut from the constant, less than 1 from the floor.
static inline u64 mul(u64 a, u64 b, const Modulus& m) {
    const u128 product = static_cast<u128>(a) * b;
    const u64 top = static_cast<u64>(product >> (m.bits - 2));
    const u64 estimate = static_cast<u64>((static_cast<u128>(top) * m.barrett) >> (m.bits + 5));
    return reduce_once(static_cast<u64>(product) - estimate * m.value, m.value);
}

// x mod q for any 128-bit x.
static inline u64 reduce(u128 x, const Modulus& m) {
    const u64 q = m.value;
    const u64 high = mul_lazy(static_cast<u64>(x >> 64), m.two64, q);
    const u64 low = mul_lazy(static_cast<u64>(x), m.one, q);
    return reduce_once(reduce_once(high + low, 2 * q), q);
}

// base^exponent mod q.
u64 power(u64 base, u64 exponent, const Modulus& modulus);

}  // namespace secateur
