// Automorphisms in the evaluation domain.
#pragma once

#include <vector>

#include "kernel.hpp"

namespace secateur {

class Galois {
  public:
    // Throws std::invalid_argument unless n is a power of two in [1024, 65536] and the element odd and below 2n.
    Galois(std::size_t n, u64 element);
    Galois(const Galois&) = delete;
    Galois& operator=(const Galois&) = delete;

    const GaloisTable& table() const { return table_; }

  private:
    std::vector<std::uint32_t> source_;
    GaloisTable table_{};
};

}  // namespace secateur
