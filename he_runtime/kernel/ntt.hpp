// Tables of the negacyclic number-theoretic transform modulo one prime.
#pragma once

#include <vector>

#include "aligned.hpp"
#include "kernel.hpp"

namespace secateur {

constexpr std::size_t kMinDegree = 1024;
constexpr std::size_t kMaxDegree = 65536;

// The least primitive 2n-th root of unity modulo q (SEAL's choice). Throws std::invalid_argument without one.
u64 minimal_root(std::size_t n, const Modulus& modulus);

class Ntt {
  public:
    // Tables for one path; a prime of more than 50 bits takes the portable one whatever is asked. Throws
    // std::invalid_argument unless n is a power of two in [1024, 65536] and q = 1 mod 2n.
    Ntt(std::size_t n, const Modulus& modulus, Path path);
    Ntt(const Ntt&) = delete;
    Ntt& operator=(const Ntt&) = delete;

    // Forward takes coefficients, in [0, 4q), to values in bit-reversed order; inverse goes back, from [0, q). Both leave
    // [0, q). dst may be src.
    void forward(u64* dst, const u64* src) const { kernel_->forward(dst, src, table_); }
    // Forward in two parts, as kernel.hpp has it; the second once for each block.
    void forward_begin(u64* dst, const u64* src, const Lift* lift) const { kernel_->forward_begin(dst, src, lift, table_); }
    void forward_end(u64* values, std::size_t begin, Leave leave, const Ahead& ahead) const {
        kernel_->forward_end(values, begin, leave, table_, ahead);
    }
    std::size_t block() const { return kernel_->block(table_.n); }
    void inverse(u64* dst, const u64* src) const { kernel_->inverse(dst, src, table_); }

    std::size_t degree() const { return table_.n; }
    const Modulus& modulus() const { return modulus_; }
    const Kernel& kernel() const { return *kernel_; }
    u64 root() const { return root_; }

  private:
    Modulus modulus_;
    const Kernel* kernel_;
    u64 root_;
    NttTable table_{};
    AlignedVector<u64> words_;
    AlignedVector<double> waves_;
};

}  // namespace secateur
