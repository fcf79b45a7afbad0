// Rotations of one ciphertext that share its digits (Halevi, Shoup, CRYPTO 2018, section 5).
#pragma once

#include <map>

#include "evaluator.hpp"

namespace secateur {

// x under each automorphism, a ciphertext each, in the order of `elements`; repeated ones are computed again. Every element
// needs a key that reaches the operand's level: std::out_of_range without one. Digits are centred, so results have
// apply_galois's value and at most its noise, but not its bits. Takes memory for one row of digits at a time.
std::vector<Cipher> rotate_hoisted(const Ring& ring, const Ciphertext& x, const std::vector<u64>& elements,
                                   const std::map<u64, std::shared_ptr<const SwitchKey>>& keys, Task& task);

}  // namespace secateur
