// The second half of a run: giant steps, and the outputs back in the ciphertexts' basis.
#include <cstring>

#include "transform_run.hpp"

namespace secateur {

std::vector<Cipher> Transform::run(const std::vector<Cipher>& inputs, const Keys& keys, Counts& counts, Task& task) const {
    return Run(*this, inputs, keys, counts, task).outputs();
}

std::vector<Cipher> Run::outputs() {
    if (t_.extended_) decompose();
    accumulate();
    digits_.clear();
    if (!t_.extended_ && !t_.giants_) {
        std::vector<Cipher> found(t_.outputs_);
        for (std::size_t g = 0; g < t_.groups_.size(); ++g) {
            found[t_.groups_[g].output] = std::make_shared<Ciphertext>(ring_, level_, 2);
            found[t_.groups_[g].output]->words = std::move(sums_[g]);
        }
        return found;
    }
    start_totals();
    if (t_.giants_) turn_giants();
    return divided();
}

// The sums of groups without a giant step, or zero. Sums in the ciphertexts' basis are raised by P.
void Run::start_totals() {
    std::vector<const Buffer*> standing(t_.outputs_, nullptr);
    for (std::size_t g = 0; g < t_.groups_.size(); ++g) {
        if (t_.groups_[g].element == kIdentity) standing[t_.groups_[g].output] = &sums_[g];
    }
    for (std::size_t i = 0; i < t_.outputs_; ++i) {
        totals_.emplace_back(2 * extended_rows_ * n_);
        for (std::size_t row = 0; row < extended_rows_; ++row) adding_.emplace_back();
    }
    parallel_for(t_.outputs_ * 2 * extended_rows_, task_, [&](std::size_t index) {
        const StageTimer timer(counts_.divide_ns);
        const std::size_t i = index / (2 * extended_rows_), poly = index / extended_rows_ % 2, row = index % extended_rows_;
        u64* dst = totals_[i].data() + (poly * extended_rows_ + row) * n_;
        if (standing[i] == nullptr || row >= rows_) {
            std::memset(dst, 0, n_ * sizeof(u64));
            return;
        }
        const u64* src = standing[i]->data() + (poly * rows_ + row) * n_;
        if (t_.extended_) {
            std::memcpy(dst, src, n_ * sizeof(u64));
        } else {
            const Ntt& prime = ring_.prime(row);
            prime.kernel().multiply_constant(dst, src, ring_.by_special().product(row), n_, prime.modulus());
        }
    });
}

void Run::turn_giants() {
    std::vector<std::size_t> giants;
    for (std::size_t g = 0; g < t_.groups_.size(); ++g) {
        if (t_.groups_[g].element != kIdentity) giants.push_back(g);
    }
    const std::size_t special = ring_.special_count(), count = ring_.digits(level_);
    std::vector<Decomposition> digits;
    for (std::size_t k = 0; k < giants.size(); ++k) digits.emplace_back(ring_, level_, Sign::nearest());
    if (t_.extended_) {  // c1 back to the ciphertexts' basis, in place
        std::vector<Lifted> remainders;
        for (std::size_t k = 0; k < giants.size(); ++k) remainders.emplace_back(ring_.by_special().base(), n_, Sign::nearest());
        parallel_for(giants.size() * special, task_, [&](std::size_t i) {
            const StageTimer timer(counts_.giant_ns);
            remainders[i / special].take(i % special, sum(giants[i / special], 1, live_ + i % special));
        });
        parallel_for(giants.size(), task_, [&](std::size_t k) { remainders[k].finish(); });
        parallel_for(giants.size() * live_, task_, [&](std::size_t i) {
            const StageTimer timer(counts_.giant_ns);
            const std::size_t j = i % live_;
            u64* row = sum(giants[i / live_], 1, j);
            Buffer scratch(n_);
            remainders[i / live_].to(scratch.data(), ring_.prime(j));
            ring_.by_special().row(row, row, scratch.data(), j);
            digits[i / live_].take(j, row);
        });
    } else {
        parallel_for(giants.size() * live_, task_,
                     [&](std::size_t i) {
                         const StageTimer timer(counts_.giant_ns);
                         digits[i / live_].take(i % live_, sum(giants[i / live_], 1, i % live_));
                     });
    }
    if (ring_.alpha() > 1) {
        parallel_for(giants.size() * count, task_, [&](std::size_t i) { digits[i / count].finish(i % count); });
    }
    parallel_for(giants.size() * extended_rows_, task_, [&](std::size_t i) {
        const StageTimer timer(counts_.giant_ns);
        const std::size_t k = i / extended_rows_;  // neighbours in time add to different rows
        turn_giant(giants[k], digits[k], i % extended_rows_);
    });
}

// One row of one giant step, added to its output's total.
void Run::turn_giant(std::size_t group, const Decomposition& digits, std::size_t row) {
    const Group& giant = t_.groups_[group];
    const Ntt& prime = ring_.extended(level_, row);
    const Kernel& kernel = prime.kernel();
    const Modulus& m = prime.modulus();
    const GaloisTable& galois = ring_.galois(giant.element);
    const std::vector<std::size_t> target = target_pieces(galois);
    Buffer pieces(3 * kPieceStride);
    u64* const total[2] = {totals_[giant.output].data() + row * n_, totals_[giant.output].data() + (extended_rows_ + row) * n_};
    u64* const switched[2] = {pieces.data(), pieces.data() + kPieceStride};
    u64* const turned = pieces.data() + 2 * kPieceStride;
    const SwitchedRow switching(ring_, key(giant.element), digits, level_, row);
    switching.each_block([&](const InnerProduct& product, std::size_t piece, std::size_t last) {
        const std::lock_guard<std::mutex> lock(adding_[giant.output * extended_rows_ + row]);
        for (; piece < last; ++piece) {
            if (row < rows_) {
                const u64* const standing = sum(group, 0, row) + piece * kPiece;
                if (t_.extended_) {
                    std::memcpy(switched[0], standing, kPiece * sizeof(u64));
                } else {
                    kernel.multiply_constant(switched[0], standing, ring_.by_special().product(row), kPiece, m);
                }
                std::memset(switched[1], 0, kPiece * sizeof(u64));
            }
            product.piece(switched[0], switched[1], piece, row < rows_, nullptr);
            for (int poly = 0; poly < 2; ++poly) {
                kernel.permute(turned, switched[poly], piece * kPiece, galois, target[piece], kPiece);
                kernel.add(total[poly] + target[piece], total[poly] + target[piece], turned, kPiece, m);
            }
        }
    });
    counts_.giant_words += n_;
}

std::vector<Cipher> Run::divided() {
    const std::size_t special = ring_.special_count();
    const Division& division = ring_.by_special();
    std::vector<Lifted> remainders;
    for (std::size_t i = 0; i < 2 * t_.outputs_; ++i) remainders.emplace_back(division.base(), n_, Sign::nearest());
    parallel_for(remainders.size() * special, task_, [&](std::size_t index) {
        const StageTimer timer(counts_.divide_ns);
        const std::size_t which = index / special, k = index % special;
        remainders[which].take(k, totals_[which / 2].data() + (which % 2 * extended_rows_ + live_ + k) * n_);
    });
    parallel_for(remainders.size(), task_, [&](std::size_t i) { remainders[i].finish(); });
    std::vector<Cipher> found;
    for (std::size_t i = 0; i < t_.outputs_; ++i) found.push_back(std::make_shared<Ciphertext>(ring_, level_, 2));
    parallel_for(remainders.size() * live_, task_, [&](std::size_t index) {
        const StageTimer timer(counts_.divide_ns);
        const std::size_t which = index / live_, j = index % live_;
        u64* dst = found[which / 2]->row(which % 2, j);
        remainders[which].to(dst, ring_.prime(j));
        division.row(dst, totals_[which / 2].data() + (which % 2 * extended_rows_ + j) * n_, dst, j);
        if (j == 0) ++counts_.divisions;
    });
    return found;
}

}  // namespace secateur
