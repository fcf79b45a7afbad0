#include "hoisting.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace secateur {
namespace {

// Row after row; within a row, all rotations of one piece of the digits in turn, which then stays in the first-level cache.
// Special rows come first, because every other row needs their remainders.
class Hoisting {
  public:
    Hoisting(const Ring& ring, const Ciphertext& x, Task& task)
        : ring_(ring), x_(x), task_(task), n_(x.n), live_(x.level + 1), decomposition_(ring, x.level, Sign::nearest()),
          words_(decomposition_.digits() * n_), raised_(n_), digits_(decomposition_.digits()) {}

    void rotate(u64 element, const SwitchKey& key) {
        const Base& special = ring_.by_special().base();
        const GaloisTable& galois = ring_.galois(element);
        rotations_.push_back({&galois, &key, std::make_shared<Ciphertext>(ring_, x_.level, 2),
                              {{special, n_, Sign::nearest()}, {special, n_, Sign::nearest()}},
                              target_pieces(galois)});
    }

    std::vector<Cipher> outputs() {
        decompose();
        const std::size_t rows = ring_.extended_rows(x_.level), polys = 2 * rotations_.size();
        for (std::size_t row = live_; row < rows; ++row) {
            expand(row);
            each_piece(row, [&](Rotation& rotation, std::size_t poly, std::size_t at, const auto& turned) {
                turned(rotation.out->row(poly, 0) + at);  // where the first live row will be
            });
            parallel_for(polys, task_, [&](std::size_t i) {
                rotations_[i / 2].remainder[i % 2].take(row - live_, rotations_[i / 2].out->row(i % 2, 0));
            });
        }
        parallel_for(polys, task_, [&](std::size_t i) { rotations_[i / 2].remainder[i % 2].finish(); });
        for (std::size_t row = 0; row < live_; ++row) {
            const Ntt& prime = ring_.prime(row);
            const Factor inverse = ring_.by_special().inverse(row);
            expand(row);
            parallel_for(polys, task_, [&](std::size_t i) {
                rotations_[i / 2].remainder[i % 2].to(rotations_[i / 2].out->row(i % 2, row), prime);
            });
            each_piece(row, [&](Rotation& rotation, std::size_t poly, std::size_t at, const auto& turned) {
                u64* const out = rotation.out->row(poly, row) + at;
                prime.kernel().sub_multiply_constant(out, turned(nullptr), out, inverse, kPiece, prime.modulus());
            });
        }
        std::vector<Cipher> found;
        for (Rotation& rotation : rotations_) found.push_back(std::move(rotation.out));
        return found;
    }

  private:
    struct Rotation {
        const GaloisTable* galois;
        const SwitchKey* key;
        Cipher out;
        Lifted remainder[2];
        std::vector<std::size_t> target;  // where each piece of the operand goes
    };

    void decompose() {
        parallel_for(live_, task_, [&](std::size_t j) { decomposition_.take(j, x_.row(1, j)); });
        if (ring_.alpha() > 1) {
            parallel_for(digits_.size(), task_, [&](std::size_t d) { decomposition_.finish(d); });
        }
    }

    // The digits modulo one row's prime, and P * c0, which vanishes in special rows.
    void expand(std::size_t row) {
        parallel_for(digits_.size() + (row < live_ ? 1 : 0), task_, [&](std::size_t d) {
            if (d < digits_.size()) {
                digits_[d] = decomposition_.row(d, row, words_.data() + d * n_);
                return;
            }
            const Ntt& prime = ring_.prime(row);
            prime.kernel().multiply_constant(raised_.data(), x_.row(0, row), ring_.by_special().product(row), n_, prime.modulus());
        });
    }

    // finish(rotation, poly, at, turned) for every piece of one row: turned(dst) writes the inner product, in live rows plus
    // (P * c0, 0), after the automorphism, to dst or to scratch for null.
    template <class Finish>
    void each_piece(std::size_t row, const Finish& finish) {
        const Kernel& kernel = ring_.extended(x_.level, row).kernel();
        const auto product = [&](const Rotation& rotation) {
            return InnerProduct(ring_, *rotation.key, x_.level, row, digits_.data(), digits_.size());
        };
        parallel_for(n_ / kPiece, task_, [&](std::size_t piece) {
            Buffer scratch(3 * kPieceStride);
            u64* const sums[2] = {scratch.data(), scratch.data() + kPieceStride};
            for (std::size_t r = 0; r < rotations_.size(); ++r) {
                Rotation& rotation = rotations_[r];
                if (row < live_) {
                    std::memcpy(sums[0], raised_.data() + piece * kPiece, kPiece * sizeof(u64));
                    std::memset(sums[1], 0, kPiece * sizeof(u64));
                }
                const std::size_t at = rotation.target[piece];
                for (std::size_t poly = 0; row < live_ && poly < 2; ++poly) {
                    const u64* const out = rotation.out->row(poly, row) + at;
                    for (std::size_t i = 0; i < kPiece; i += 8) __builtin_prefetch(out + i, 1, 2);
                }
                const bool last = r + 1 == rotations_.size();
                const u64* const ahead = product(rotations_[last ? 0 : r + 1]).words(piece + (last ? 1 : 0));
                product(rotation).piece(sums[0], sums[1], piece, row < live_, ahead);
                for (std::size_t poly = 0; poly < 2; ++poly) {
                    finish(rotation, poly, at, [&](u64* dst) {
                        u64* const to = dst == nullptr ? sums[1] + kPieceStride : dst;
                        kernel.permute(to, sums[poly], piece * kPiece, *rotation.galois, at, kPiece);
                        return to;
                    });
                }
            }
        });
    }

    const Ring& ring_;
    const Ciphertext& x_;
    Task& task_;
    const std::size_t n_, live_;
    Decomposition decomposition_;
    Buffer words_, raised_;
    std::vector<const u64*> digits_;  // of the row at hand
    std::vector<Rotation> rotations_;
};

}  // namespace

std::vector<Cipher> rotate_hoisted(const Ring& ring, const Ciphertext& x, const std::vector<u64>& elements,
                                   const std::map<u64, std::shared_ptr<const SwitchKey>>& keys, Task& task) {
    if (!ring.made(x.chain) || x.size != 2) {
        throw std::invalid_argument("cannot rotate: need a relinearized ciphertext of this ring");
    }
    Hoisting hoisting(ring, x, task);
    for (const u64 element : elements) {
        const auto found = keys.find(element);
        if (found == keys.end() || found->second == nullptr || found->second->level() < x.level) {
            throw std::out_of_range("cannot rotate: need a key for Galois element " + std::to_string(element) + " at level " +
                                    std::to_string(x.level));
        }
        if (!ring.made(found->second->chain()) || found->second->element() != element) {
            throw std::invalid_argument("cannot rotate: need keys of this ring and element");
        }
        hoisting.rotate(element, *found->second);
    }
    return elements.empty() ? std::vector<Cipher>() : hoisting.outputs();
}

}  // namespace secateur
