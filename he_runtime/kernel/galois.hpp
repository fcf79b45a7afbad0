// Automorphisms in the evaluation domain.
#pragma once

#include <vector>

#include "kernel.hpp"

namespace secateur {

constexpr u64 kIdentity = 1;  // the Galois element of no automorphism

class Galois {
  public:
    // Throws std::invalid_argument unless n is a power of two in [1024, 65536] and the element odd and below 2n.
    Galois(std::size_t n, u64 element);
    Galois(const Galois&) = delete;
    Galois& operator=(const Galois&) = delete;

    const GaloisTable& table() const { return table_; }

  private:
    std::vector<std::uint32_t> source_;
    std::vector<unsigned char> signs_;
    GaloisTable table_{};
};

}  // namespace secateur
