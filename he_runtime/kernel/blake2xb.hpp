// The output nodes of BLAKE2Xb (J.-P. Aumasson et al., "BLAKE2X", 2016): what expands a public seed to a polynomial.
#pragma once

#include <cstddef>

#include "modulus.hpp"

namespace secateur {

// Each root digest (8 words) -> 64 nodes of 8 words: 4096 bytes, as SEAL's generator cuts its stream. out: 512 words a root.
void blake2xb_nodes(u64* out, const u64* roots, std::size_t count);

}  // namespace secateur
