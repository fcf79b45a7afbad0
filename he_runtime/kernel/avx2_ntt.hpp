#pragma once

#include "kernel.hpp"

namespace secateur {

void avx2_forward(u64* dst, const u64* src, const NttTable& table);
void avx2_inverse(u64* dst, const u64* src, const NttTable& table);

}  // namespace secateur
