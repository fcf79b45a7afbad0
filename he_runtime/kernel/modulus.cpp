#include "modulus.hpp"

#include <stdexcept>
#include <string>

namespace secateur {
namespace {

u64 power_slow(u64 base, u64 exponent, u64 q) {
    u64 result = 1;
    for (base %= q; exponent != 0; exponent >>= 1) {
        if (exponent & 1) result = static_cast<u64>(static_cast<u128>(result) * base % q);
        base = static_cast<u64>(static_cast<u128>(base) * base % q);
    }
    return result;
}

// floor(2^shift / q) for shift < 128; the callers choose shift so that it fits 64 bits.
u64 power_of_two_over(int shift, u64 q) { return static_cast<u64>((static_cast<u128>(1) << shift) / q); }

}  // namespace

bool is_prime(u64 x) {
    // Miller-Rabin with the first twelve primes decides every integer below 3.3e24 (Sorenson and Webster, 2015).
    constexpr u64 kWitnesses[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
    if (x < 2) return false;
    for (const u64 p : kWitnesses) {
        if (x % p == 0) return x == p;
    }
    u64 odd = x - 1;
    int twos = 0;
    for (; (odd & 1) == 0; odd >>= 1) ++twos;
    for (const u64 p : kWitnesses) {
        u64 y = power_slow(p, odd, x);
        bool witness = y != 1 && y != x - 1;
        for (int i = 1; witness && i < twos; ++i) {
            y = static_cast<u64>(static_cast<u128>(y) * y % x);
            witness = y != x - 1;
        }
        if (witness) return false;
    }
    return true;
}

Factor make_factor(u64 w, const Modulus& modulus) {
    return {w, static_cast<u64>((static_cast<u128>(w) << 64) / modulus.value)};
}

Modulus make_modulus(u64 q) {
    if (q >> kMaxBits != 0 || q < 3 || !is_prime(q)) {
        throw std::invalid_argument("cannot use modulus " + std::to_string(q) + ": need an odd prime below 2^60");
    }
    Modulus m{};
    m.value = q;
    while (q >> m.bits != 0) ++m.bits;
    m.barrett = power_of_two_over(2 * m.bits + 3, q);
    if (is_narrow(m)) m.barrett52 = power_of_two_over(m.bits + 50, q);
    m.one = make_factor(1, m);
    m.two64 = make_factor(power_slow(2, 64, q), m);
    m.two52 = make_factor(power_slow(2, 52, q), m);
    m.two104 = make_factor(power_slow(2, 104, q), m);
    m.inverse = 1.0 / static_cast<double>(q);
    return m;
}

u64 power(u64 base, u64 exponent, const Modulus& modulus) { return power_slow(base, exponent, modulus.value); }

}  // namespace secateur
