// The tables of one parameter set: transforms, automorphisms, digits and divisions. Immutable but for a cache of
// automorphisms; shared by all threads.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "base.hpp"
#include "galois.hpp"

namespace secateur {

constexpr std::size_t kMostPrimes = 64;  // SEAL's bound too

// What residues are residues of. Operands made for another chain are refused wherever they come in.
struct Chain {
    std::size_t n, alpha;
    std::vector<u64> primes, special;

    bool operator==(const Chain& other) const {
        return n == other.n && alpha == other.alpha && primes == other.primes && special == other.special;
    }
};
using Origin = std::shared_ptr<const Chain>;

// Rows of an extended polynomial at level l: the primes 0..l, then the special ones.
class Ring {
  public:
    // `alpha` primes make a digit of key switching; 1 with a single special prime is SEAL's gadget. Throws
    // std::invalid_argument for primes that are equal or unfit for the degree, more than 64 of them, or a special product
    // below a digit's.
    Ring(std::size_t n, const std::vector<u64>& primes, const std::vector<u64>& special, std::size_t alpha, Path path);
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;

    std::size_t degree() const { return n_; }
    std::size_t max_level() const { return primes_.size() - 1; }
    std::size_t special_count() const { return special_.size(); }
    std::size_t extended_rows(std::size_t level) const { return level + 1 + special_.size(); }
    Path path() const { return path_; }
    const Origin& chain() const { return chain_; }
    bool made(const Origin& chain) const { return chain == chain_ || *chain == *chain_; }

    const Ntt& prime(std::size_t i) const { return *primes_[i]; }
    const Ntt& extended(std::size_t level, std::size_t row) const {
        return row <= level ? *primes_[row] : *special_[row - level - 1];
    }

    std::size_t alpha() const { return alpha_; }
    std::size_t digits(std::size_t level) const { return level / alpha_ + 1; }
    std::size_t digit_start(std::size_t d) const { return d * alpha_; }
    // Primes of digit d that are live at the level.
    const Base& digit(std::size_t level, std::size_t d) const;

    // Division by the special primes; its live primes are all primes.
    const Division& by_special() const { return *by_special_; }
    // Division by the prime of a level above 0.
    const Division& by_prime(std::size_t level) const { return *by_prime_[level]; }

    // The automorphism of an odd element below 2n; built at its first use.
    const GaloisTable& galois(u64 element) const;

  private:
    std::size_t n_, alpha_;
    Path path_;
    Origin chain_;
    std::vector<std::unique_ptr<Ntt>> primes_, special_;
    std::vector<std::vector<std::unique_ptr<Base>>> digits_;  // by digit and count of live primes - 1
    std::unique_ptr<Division> by_special_;
    std::vector<std::unique_ptr<Division>> by_prime_;
    // Looked up for every piece of work, so without a lock once built. By (element - 1) / 2.
    mutable std::vector<std::atomic<const Galois*>> galois_;
    mutable std::mutex building_;
    mutable std::vector<std::unique_ptr<const Galois>> built_;
};

}  // namespace secateur
