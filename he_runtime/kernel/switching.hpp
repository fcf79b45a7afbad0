// Key switching: digits, inner products with a key, division by the special primes.
#pragma once

#include "ciphertext.hpp"
#include "pool.hpp"

namespace secateur {

// A polynomial at a level as digits, coefficients ready for any row.
class Decomposition {
  public:
    Decomposition(const Ring& ring, std::size_t level, Sign sign);

    std::size_t digits() const { return digits_.size(); }
    // Row j in evaluation form; the pointer is kept. Different rows may be taken at once.
    void take(std::size_t j, const u64* values);
    // After the rows of digit d.
    void finish(std::size_t d) { digits_[d].finish(); }
    // Digit d modulo extended row `row`, in evaluation form: in `scratch`, or where it was taken from.
    const u64* row(std::size_t d, std::size_t row, u64* scratch) const;
    // The same with a transform that is only begun, if it is in `scratch`.
    const u64* begin(std::size_t d, std::size_t row, u64* scratch) const;

  private:
    bool is_own(std::size_t d, std::size_t row) const { return row <= level_ && row / ring_->alpha() == d; }

    const Ring* ring_;
    std::size_t level_;
    std::vector<Lifted> digits_;
    std::vector<const u64*> sources_;
};

// Two sums over the digits of one piece: out0, out1 (+)= digits * key. Digits and sums are those from before the key's
// automorphism, which is left to do.
class InnerProduct {
  public:
    InnerProduct(const Ring& ring, const SwitchKey& key, std::size_t level, std::size_t row, const u64* const* digits,
                 std::size_t count, Leave digits_left = Leave::residues);
    // Meanwhile as many of the key's words are fetched from `ahead` on, unless that is null.
    void piece(u64* out0, u64* out1, std::size_t piece, bool accumulate, const u64* ahead) const;
    // The key's words for a piece, and how many they are.
    const u64* words(std::size_t piece) const { return key_.words(key_row_, piece * kPiece); }
    std::size_t piece_words() const { return kPiece / 8 * key_.stride(); }

  private:
    const Ntt& prime_;
    const SwitchKey& key_;
    std::size_t key_row_, count_;
    Leave digits_left_;
    const u64* const* digits_;
};

// One row of a key switch whose digits are used but once: they are transformed block by block, and each block is used while
// it is in the cache, where the key's words for it have arrived meanwhile. Measured with IFMA at N = 16384 and 32768: rotations
// take 0.83 and 0.90 of the time (docs/decisions/0031).
class SwitchedRow {
  public:
    SwitchedRow(const Ring& ring, const SwitchKey& key, const Decomposition& digits, std::size_t level, std::size_t row);

    // use(product, first, last) for pieces [first, last) of each block, in order.
    template <class Use>
    void each_block(const Use& use) const {
        const std::size_t pieces = prime_.block() / kPiece;
        for (std::size_t first = 0; first < prime_.degree() / kPiece; first += pieces) {
            end_block(first, pieces);
            use(product_, first, first + pieces);
        }
    }

  private:
    void end_block(std::size_t first, std::size_t pieces) const;

    const Ntt& prime_;
    const std::size_t stride_;
    Buffer scratch_;
    std::vector<u64*> begun_;
    std::vector<const u64*> digits_;
    InnerProduct product_;
};

// dst[i] = the key's automorphism of (addend[i] + what the key switches polynomial `values` to), level + 1 rows each, as SEAL
// rounds it after the automorphism. Rows are n apart; an addend may be null.
void switch_key(const Ring& ring, const SwitchKey& key, std::size_t level, const u64* values, const u64* const (&addend)[2],
                u64* const (&dst)[2], Task& task);

}  // namespace secateur
