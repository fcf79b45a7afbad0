// What evaluation works on: ciphertexts, keys in the order in which they are read, encoded operands.
#pragma once

#include <memory>
#include <vector>

#include "ring.hpp"

namespace secateur {

// `size` polynomials (two, or three after a product) of level + 1 rows in evaluation form.
struct Ciphertext {
    Ciphertext(const Ring& ring, std::size_t level_, std::size_t size_)
        : chain(ring.chain()), level(level_), size(size_), n(ring.degree()), words(size_ * (level_ + 1) * ring.degree()) {}

    u64* row(std::size_t poly, std::size_t j) { return words.data() + (poly * (level + 1) + j) * n; }
    const u64* row(std::size_t poly, std::size_t j) const { return words.data() + (poly * (level + 1) + j) * n; }

    Origin chain;
    std::size_t level, size, n;
    Buffer words;
};

// Polynomials are worked on in pieces of this many words where several must stay in the first-level cache together.
constexpr std::size_t kPiece = 512;

// From one piece to the next where many are read side by side: a cache line more, so that they do not all compete for the
// same few places of the first-level cache. Measured with IFMA on cached operands: sums of 14 products 1.9 times faster.
constexpr std::size_t kPieceStride = kPiece + 8;

// The piece that an automorphism takes to the one at `at`. Aligned pieces stay together: in bit-reversed order a piece is a
// residue class of exponents modulo n / kPiece.
inline std::size_t source_piece(const GaloisTable& galois, std::size_t at) { return galois.source[at / 8] / kPiece; }

// Where it takes each piece.
inline std::vector<std::size_t> target_pieces(const GaloisTable& galois) {
    std::vector<std::size_t> target(galois.n / kPiece);
    for (std::size_t at = 0; at < galois.n; at += kPiece) target[source_piece(galois, at)] = at;
    return target;
}

// A key-switching key for ciphertexts of one level and below. Memory order is that of use, so that the processor reads one
// stream: row, eight residues, digit, then the two polynomials.
class SwitchKey {
  public:
    // `element` is the automorphism that the key is used after; 1 for none.
    SwitchKey(const Ring& ring, std::size_t level, u64 element)
        : chain_(ring.chain()), element_(element), n_(ring.degree()), level_(level), digits_(ring.digits(level)),
          words_(ring.extended_rows(level) * 2 * ring.digits(level) * ring.degree()) {}

    const Origin& chain() const { return chain_; }
    u64 element() const { return element_; }
    std::size_t level() const { return level_; }
    std::size_t digits() const { return digits_; }
    std::size_t bytes() const { return words_.size() * sizeof(u64); }

    // Row of an extended polynomial at `level` -> row of the key: its special rows follow more live ones.
    std::size_t row_of(std::size_t level, std::size_t row) const { return row <= level ? row : row + level_ - level; }

    // From eight residues to the next.
    std::size_t stride() const { return 2 * digits_ * 8; }
    // Where residue `at`, a multiple of eight, of a row begins.
    const u64* words(std::size_t key_row, std::size_t at) const { return words_.data() + (key_row * n_ + at) * 2 * digits_; }

    // One polynomial of a digit under one row, from n words.
    void set(const Ring& ring, std::size_t digit, int poly, std::size_t key_row, const u64* values);

  private:
    Origin chain_;
    u64 element_;
    std::size_t n_, level_, digits_;
    Buffer words_;
};

// An encoded operand at a level, with the special rows too if `extended`. Three forms: residues of every row; one
// integer for all slots, by its residues; or integer coefficients, which are transformed at each use.
class Plaintext {
  public:
    enum class Form { rows, constant, compact };

    // `coefficients` are integers, coefficient i of X^(i * n / count).
    static Plaintext rows(const Ring& ring, std::size_t level, bool extended, const double* coefficients, std::size_t count);
    static Plaintext compact(const Ring& ring, std::size_t level, bool extended, const double* coefficients, std::size_t count);
    static Plaintext constant(const Ring& ring, std::size_t level, bool extended, const std::vector<u64>& residues);
    // Residues of every row, each below its prime, in memory that its owner keeps for as long as the operand lives.
    static Plaintext borrowed(const Ring& ring, std::size_t level, bool extended, const u64* residues);

    const Origin& chain() const { return chain_; }
    Form form() const { return form_; }
    std::size_t level() const { return level_; }
    bool extended() const { return extended_; }
    // Of its own: none of what it borrows.
    std::size_t bytes() const;

    const u64* row(std::size_t row) const { return rows_ + row * n_; }
    u64 residue(std::size_t row) const { return residues_[row]; }
    // n words of a row, whatever the form.
    void expand(u64* dst, std::size_t row, const Ntt& prime) const;

  private:
    Plaintext(Form form, const Ring& ring, std::size_t level, bool extended)
        : chain_(ring.chain()), form_(form), n_(ring.degree()), level_(level), extended_(extended) {}

    Origin chain_;
    Form form_;
    std::size_t n_, level_;
    bool extended_;
    Buffer words_;
    const u64* rows_ = nullptr;  // in words_, or borrowed
    std::vector<u64> residues_;
    std::vector<std::int32_t> small_;
    std::vector<double> wide_;  // coefficients beyond 32 bits
};

}  // namespace secateur
