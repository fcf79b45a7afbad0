// How fast memory can be read at all: what the benchmarks compare operations on keys with.
#pragma once

#include <cstddef>

#include "kernel.hpp"

namespace secateur {

// The sum of all words modulo 2^64, by the widest loads of the path.
u64 sum_words(const u64* words, std::size_t count, Path path);

}  // namespace secateur
