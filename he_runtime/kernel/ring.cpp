#include "ring.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string>

namespace secateur {
namespace {

std::vector<const Ntt*> pointers(const std::vector<std::unique_ptr<Ntt>>& tables, std::size_t first, std::size_t count) {
    std::vector<const Ntt*> found;
    for (std::size_t i = first; i < first + count; ++i) found.push_back(tables[i].get());
    return found;
}

double bits_of(const std::vector<const Ntt*>& primes) {
    double bits = 0;
    for (const Ntt* prime : primes) bits += std::log2(static_cast<double>(prime->modulus().value));
    return bits;
}

}  // namespace

Ring::Ring(std::size_t n, const std::vector<u64>& primes, const std::vector<u64>& special, std::size_t alpha, Path path)
    : n_(n), alpha_(alpha), path_(path), chain_(std::make_shared<const Chain>(Chain{n, alpha, primes, special})) {
    std::set<u64> every(primes.begin(), primes.end());
    every.insert(special.begin(), special.end());
    if (primes.empty() || special.empty() || every.size() != primes.size() + special.size()) {
        throw std::invalid_argument("cannot use these primes: need distinct live and special ones, at least one each");
    }
    if (every.size() > kMostPrimes) throw std::invalid_argument("cannot use more than 64 primes");
    if (alpha == 0 || alpha > kMostPrimes - 1) throw std::invalid_argument("cannot use digits of " + std::to_string(alpha) + " primes: need 1 to 63");
    for (const u64 q : primes) primes_.push_back(std::make_unique<Ntt>(n, make_modulus(q), path));
    for (const u64 q : special) special_.push_back(std::make_unique<Ntt>(n, make_modulus(q), path));
    galois_ = std::vector<std::atomic<const Galois*>>(n);
    const std::vector<const Ntt*> live = pointers(primes_, 0, primes_.size());
    by_special_ = std::make_unique<Division>(pointers(special_, 0, special_.size()), live);
    by_prime_.push_back(nullptr);
    for (std::size_t level = 1; level < primes_.size(); ++level) {
        by_prime_.push_back(std::make_unique<Division>(pointers(primes_, level, 1), pointers(primes_, 0, level)));
    }
    const double special_bits = bits_of(pointers(special_, 0, special_.size()));
    for (std::size_t first = 0; first < primes_.size(); first += alpha) {
        std::vector<std::unique_ptr<Base>> bases;
        for (std::size_t count = 1; count <= std::min(alpha, primes_.size() - first); ++count) {
            const auto members = pointers(primes_, first, count);
            if (alpha > 1 && bits_of(members) > special_bits + 1e-9) {
                throw std::invalid_argument("cannot use digits of " + std::to_string(alpha) +
                                            " primes: their product exceeds that of the special primes");
            }
            bases.push_back(std::make_unique<Base>(members));
        }
        digits_.push_back(std::move(bases));
    }
}

const Base& Ring::digit(std::size_t level, std::size_t d) const {
    return *digits_[d][std::min(alpha_, level + 1 - digit_start(d)) - 1];
}

const GaloisTable& Ring::galois(u64 element) const {
    const bool known = element % 2 == 1 && element < 2 * n_;
    const Galois* found = known ? galois_[element / 2].load(std::memory_order_acquire) : nullptr;
    if (found != nullptr) return found->table();
    const std::lock_guard<std::mutex> lock(building_);
    if (known) found = galois_[element / 2].load(std::memory_order_relaxed);
    if (found == nullptr) {
        built_.push_back(std::make_unique<Galois>(n_, element));  // throws for unknown ones
        found = built_.back().get();
        galois_[element / 2].store(found, std::memory_order_release);
    }
    return found->table();
}

}  // namespace secateur
