// The single operations, bit for bit as SEAL computes them. Operands are checked here: std::invalid_argument says what is
// wrong. Every call needs a Turn and returns a new ciphertext; a cancelled one throws and leaves nothing.
#pragma once

#include "switching.hpp"

namespace secateur {

using Cipher = std::shared_ptr<Ciphertext>;  // never changed once returned

Cipher add(const Ring& ring, const Ciphertext& x, const Ciphertext& y, Task& task);
Cipher add_plain(const Ring& ring, const Ciphertext& x, const Plaintext& p, Task& task);
Cipher mul_plain(const Ring& ring, const Ciphertext& x, const Plaintext& p, Task& task);
Cipher multiply(const Ring& ring, const Ciphertext& x, const Ciphertext& y, Task& task);
Cipher square(const Ring& ring, const Ciphertext& x, Task& task);
// Three polynomials to two, with the key for s^2.
Cipher relinearize(const Ring& ring, const Ciphertext& x, const SwitchKey& key, Task& task);
// Division by the last prime, rounded; one level down.
Cipher rescale(const Ring& ring, const Ciphertext& x, Task& task);
Cipher mod_switch(const Ring& ring, const Ciphertext& x, Task& task);
// The automorphism of `element`, then its key.
Cipher apply_galois(const Ring& ring, const Ciphertext& x, u64 element, const SwitchKey& key, Task& task);

}  // namespace secateur
