// One run of a Transform, stage by stage.
#pragma once

#include <deque>

#include "transform.hpp"

namespace secateur {

class Run {
  public:
    Run(const Transform& transform, const std::vector<Cipher>& inputs, const Transform::Keys& keys, Counts& counts, Task& task);
    std::vector<Cipher> outputs();

  private:
    // Digits of one input in every row: `rows` points to digit d of row r at d * rows + r.
    struct Digits {
        std::unique_ptr<Decomposition> decomposition;
        Buffer words;
        std::vector<const u64*> rows;
    };

    const SwitchKey& key(u64 element) const;
    u64* sum(std::size_t group, std::size_t poly, std::size_t row) { return sums_[group].data() + (poly * rows_ + row) * n_; }
    bool is_special(std::size_t row) const { return row > level_; }

    // Inputs with a baby step -> digits.
    void decompose();
    // Per group the sum of products, in the extended basis or, without baby steps, in that of the ciphertexts.
    void accumulate();
    void accumulate_constants();
    void accumulate_span(std::size_t row, std::size_t begin, std::size_t end);
    void rotate_babies(std::size_t row, std::size_t begin, std::size_t end, u64* out, u64* scratch);
    const u64* words(std::size_t baby, std::size_t row, std::size_t at) const;
    void turn_baby(std::size_t index, std::size_t row, std::size_t begin, std::size_t end, u64* out, u64* scratch, const u64* ahead);
    void sum_group(std::size_t group, std::size_t row, std::size_t begin, std::size_t end, const u64* babies, u64* scratch);
    // Groups with a giant step: divided, cut into digits, switched, and added to their output's total.
    void start_totals();
    void turn_giants();
    void turn_giant(std::size_t group, const Decomposition& digits, std::size_t row);
    // Totals divided by the special primes.
    std::vector<Cipher> divided();

    const Transform& t_;
    const Ring& ring_;
    const std::vector<Cipher>& inputs_;
    const Transform::Keys& keys_;
    Counts& counts_;
    Task& task_;
    const std::size_t n_, level_, live_, extended_rows_, rows_;
    std::vector<Digits> digits_;
    std::vector<Buffer> sums_;    // by group: two polynomials of `rows_` rows
    std::vector<Buffer> totals_;  // by output: two polynomials of `extended_rows_` rows
    std::deque<std::mutex> adding_;  // by output and row
};

}  // namespace secateur
