// Linear transforms over several ciphertexts, double hoisted (Bossuat, Mouchet, Troncoso-Pastoriza, Hubaux,
// EUROCRYPT 2021, section 4): each input is cut into digits once for all baby steps, which stay in the extended basis
// through products and sums; a giant step divides one polynomial by the special primes, and the output both, once.
#pragma once

#include <map>

#include "evaluator.hpp"

namespace secateur {

struct Baby {
    std::size_t input;
    u64 element;
};
struct Group {
    std::size_t output;
    u64 element;
};
struct Cell {
    std::size_t group, baby, plaintext;
};

// What a call did, counted where it was done. Words are those of one row that a unit of work finished, so that sums over
// all rows tell whole operations.
struct Counts {
    std::atomic<std::uint64_t> decompositions{0};  // inputs cut into digits of the extended basis
    std::atomic<std::uint64_t> hoisted_words{0};   // of baby steps: inner products of digits and a key
    std::atomic<std::uint64_t> product_words{0};   // of products with an operand, accumulated; both polynomials together
    std::atomic<std::uint64_t> skipped_words{0};   // the same where P times an operand is zero: special rows of no rotation
    std::atomic<std::uint64_t> giant_words{0};     // of giant steps: divided, cut into digits, switched and added
    std::atomic<std::uint64_t> divisions{0};       // polynomials of outputs divided by the special primes

    // Nanoseconds of all threads together, by stage: what one of each of the above costs.
    std::atomic<std::uint64_t> decompose_ns{0}, hoisted_ns{0}, product_ns{0}, giant_ns{0}, divide_ns{0};
};

// Adds the time until its end to a stage.
class StageTimer {
  public:
    explicit StageTimer(std::atomic<std::uint64_t>& stage) : stage_(stage) {}
    ~StageTimer() {
        const auto spent = std::chrono::steady_clock::now() - start_;
        stage_ += static_cast<std::uint64_t>(std::chrono::nanoseconds(spent).count());
    }
    StageTimer(const StageTimer&) = delete;
    StageTimer& operator=(const StageTimer&) = delete;

  private:
    std::atomic<std::uint64_t>& stage_;
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// out_i = sum over groups of i of galois_group( sum over its cells of plaintext * galois_baby(in) ).
class Transform {
  public:
    // Cells are ordered by group here. Throws std::invalid_argument for indices out of range, a plaintext of another level,
    // one without special rows where a baby step needs them, or an output without a group.
    Transform(const Ring& ring, std::size_t level, std::size_t inputs, std::size_t outputs, std::vector<Baby> babies,
              std::vector<Group> groups, std::vector<Cell> cells, std::vector<std::shared_ptr<const Plaintext>> plaintexts);

    // Whether products are summed in the extended basis, so that plaintexts need special rows: with any baby step.
    static bool extended(const std::vector<Baby>& babies);

    using Keys = std::map<u64, std::shared_ptr<const SwitchKey>>;
    // Every element needs a key that reaches the level: std::out_of_range without one.
    std::vector<Cipher> run(const std::vector<Cipher>& inputs, const Keys& keys, Counts& counts, Task& task) const;

    std::size_t level() const { return level_; }
    const std::vector<Baby>& babies() const { return babies_; }
    const std::vector<Group>& groups() const { return groups_; }

  private:
    friend class Run;
    const Ring* ring_;
    std::size_t level_, inputs_, outputs_;
    std::vector<Baby> babies_;
    std::vector<Group> groups_;
    std::vector<Cell> cells_;
    std::vector<std::size_t> first_cell_;  // of each group, and the end
    std::vector<std::shared_ptr<const Plaintext>> plaintexts_;
    bool extended_, giants_, compact_, constant_;
};

}  // namespace secateur
