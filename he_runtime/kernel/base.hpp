// From the residues of a few primes to those of another: what digits and divisions are made of.
#pragma once

#include <vector>

#include "buffer.hpp"
#include "galois.hpp"
#include "ntt.hpp"

namespace secateur {

// Which residues of a single prime q stand for negative integers: those above q / 2; or none, as in SEAL's digits; or those that
// an automorphism turns negative afterwards, so that its digits are those of the polynomial it was applied to.
struct Sign {
    bool centred;
    const GaloisTable* before;  // null for none

    static Sign nearest() { return {true, nullptr}; }
    static Sign none() { return {false, nullptr}; }
    static Sign turned(const GaloisTable& galois) { return {false, &galois}; }
};

// A product of distinct primes. An integer modulo it, given by its residues, is taken as the one nearest to zero
// (Halevi, Polyakov, Shoup, CT-RSA 2019, section 2.2: the overflow of the sum is found in floating point, exact but for
// integers within 2^-40 of half the product, where either neighbour will do).
class Base {
  public:
    explicit Base(std::vector<const Ntt*> primes);

    std::size_t size() const { return primes_.size(); }
    const Ntt& prime(std::size_t i) const { return *primes_[i]; }

    // The product modulo another prime.
    u64 product(const Modulus& target) const;

    // Coefficients of row i -> what `convert` wants of it, in place.
    void prepare(u64* row, std::size_t i) const;

    // How often the product must be taken off, from all prepared rows, for n coefficients.
    void quotient(u64* dst, const u64* rows, std::size_t n) const;

    // Values modulo the target, whose transform is begun. `quotient` is unused for one prime.
    void begin(u64* dst, const u64* rows, const u64* quotient, const Ntt& target, Sign sign) const;

  private:
    void begin_one(u64* dst, const u64* row, const Ntt& target, Sign sign) const;

    std::vector<const Ntt*> primes_;
    std::vector<Factor> inverses_;     // (product / prime)^-1 modulo the prime
    std::vector<double> reciprocals_;  // 1 / prime
    bool narrow_;
};

// A polynomial modulo a base, as coefficients, on its way to other primes.
class Lifted {
  public:
    Lifted(const Base& base, std::size_t n, Sign sign);

    // Row i from its values in evaluation form; rows may be taken at once on several threads.
    void take(std::size_t i, const u64* values);
    // After all rows; nothing to do for a base of one prime.
    void finish();
    // Values modulo the target, in evaluation form; or begun, to be ended block by block.
    void to(u64* dst, const Ntt& target) const;
    void begin(u64* dst, const Ntt& target) const;

  private:
    const Base* base_;
    std::size_t n_;
    Sign sign_;
    Buffer rows_, quotient_;
};

// Division by a base, rounded to the nearest: the live rows minus what the base's rows say, times its inverse.
class Division {
  public:
    Division(std::vector<const Ntt*> by, const std::vector<const Ntt*>& live);

    const Base& base() const { return base_; }
    // The product modulo the j-th live prime, and its inverse there.
    Factor product(std::size_t j) const { return products_[j]; }
    Factor inverse(std::size_t j) const { return inverses_[j]; }
    // dst = (values - remainder) / product modulo the j-th live prime; `remainder` holds what Lifted::to left there.
    void row(u64* dst, const u64* values, const u64* remainder, std::size_t j) const;

  private:
    Base base_;
    std::vector<const Ntt*> live_;
    std::vector<Factor> products_, inverses_;
};

}  // namespace secateur
