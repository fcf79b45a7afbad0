// Key switching: digits, inner products with a key, division by the special primes.
#pragma once

#include "ciphertext.hpp"
#include "pool.hpp"

namespace secateur {

// A polynomial at a level as digits, coefficients ready for any row. Digits are centred, but for SEAL's bits.
class Decomposition {
  public:
    Decomposition(const Ring& ring, std::size_t level, bool centred);

    std::size_t digits() const { return digits_.size(); }
    // Row j in evaluation form; the pointer is kept. Different rows may be taken at once.
    void take(std::size_t j, const u64* values);
    // After the rows of digit d.
    void finish(std::size_t d) { digits_[d].finish(); }
    // Digit d modulo extended row `row`, in evaluation form: in `scratch`, or where it was taken from.
    const u64* row(std::size_t d, std::size_t row, u64* scratch) const;

  private:
    const Ring* ring_;
    std::size_t level_;
    std::vector<Lifted> digits_;
    std::vector<const u64*> sources_;
};

// Two sums over the digits of one piece: out0, out1 (+)= digits * key. With an automorphism, digits are read through it.
class InnerProduct {
  public:
    InnerProduct(const Ring& ring, const SwitchKey& key, std::size_t level, std::size_t row, const u64* const* digits,
                 std::size_t count, const GaloisTable* galois);
    void piece(u64* out0, u64* out1, std::size_t piece, bool accumulate, u64* scratch) const;
    // Words of scratch that a piece takes.
    std::size_t scratch_words() const { return galois_ == nullptr ? 0 : count_ * kPieceStride; }

  private:
    const Ntt& prime_;
    const SwitchKey& key_;
    std::size_t key_row_, count_;
    const u64* const* digits_;
    const GaloisTable* galois_;
};

// dst[i] = addend[i] + what the key switches polynomial `values` (level + 1 rows) to, as SEAL rounds it. Rows are n apart; an
// addend may be its dst, or null.
void switch_key(const Ring& ring, const SwitchKey& key, std::size_t level, const u64* values, const u64* const (&addend)[2],
                u64* const (&dst)[2], Task& task);

}  // namespace secateur
