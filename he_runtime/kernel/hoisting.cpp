#include "hoisting.hpp"

#include <cstring>
#include <stdexcept>
#include <string>

namespace secateur {
namespace {

// Row after row, all rotations of a row in turn: its digits then stay cached, and each key is read once, from its start to
// its end. Special rows come first, because every other row needs their remainders.
class Hoisting {
  public:
    Hoisting(const Ring& ring, const Ciphertext& x, Task& task)
        : ring_(ring), x_(x), task_(task), n_(x.n), live_(x.level + 1), decomposition_(ring, x.level, true),
          words_(decomposition_.digits() * n_), raised_(n_), digits_(decomposition_.digits()) {}

    void rotate(u64 element, const SwitchKey& key) {
        const Base& special = ring_.by_special().base();
        rotations_.push_back({&ring_.galois(element), &key, std::make_shared<Ciphertext>(ring_, x_.level, 2),
                              {{special, n_, true}, {special, n_, true}}});
    }

    std::vector<Cipher> outputs() {
        decompose();
        const std::size_t rows = ring_.extended_rows(x_.level);
        for (std::size_t row = live_; row < rows; ++row) {
            expand(row);
            parallel_for(rotations_.size(), task_, [&](std::size_t r) { special_row(rotations_[r], row); });
        }
        if (ring_.special_count() > 1) {
            parallel_for(2 * rotations_.size(), task_, [&](std::size_t i) { rotations_[i / 2].remainder[i % 2].finish(); });
        }
        for (std::size_t row = 0; row < live_; ++row) {
            expand(row);
            parallel_for(rotations_.size(), task_, [&](std::size_t r) { live_row(rotations_[r], row); });
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

    void special_row(Rotation& rotation, std::size_t row) {
        const InnerProduct product(ring_, *rotation.key, x_.level, row, digits_.data(), digits_.size(), rotation.galois);
        Buffer sums(2 * n_), scratch(product.scratch_words());
        u64* const out[2] = {sums.data(), sums.data() + n_};
        for (std::size_t p = 0; p < n_ / kPiece; ++p) {
            product.piece(out[0] + p * kPiece, out[1] + p * kPiece, p, false, scratch.data());
        }
        for (int poly = 0; poly < 2; ++poly) rotation.remainder[poly].take(row - live_, out[poly]);
    }

    // (P * c0, 0) and the inner product, divided piece by piece while they are cached.
    void live_row(Rotation& rotation, std::size_t row) {
        const Ntt& prime = ring_.prime(row);
        const Kernel& kernel = prime.kernel();
        const Factor inverse = ring_.by_special().inverse(row);
        const InnerProduct product(ring_, *rotation.key, x_.level, row, digits_.data(), digits_.size(), rotation.galois);
        Buffer remainders(2 * n_), scratch(product.scratch_words());
        for (int poly = 0; poly < 2; ++poly) rotation.remainder[poly].to(remainders.data() + poly * n_, prime);
        for (std::size_t at = 0; at < n_; at += kPiece) {
            u64* const out[2] = {rotation.out->row(0, row) + at, rotation.out->row(1, row) + at};
            kernel.permute(out[0], raised_.data(), *rotation.galois, at, kPiece);
            std::memset(out[1], 0, kPiece * sizeof(u64));
            product.piece(out[0], out[1], at / kPiece, true, scratch.data());
            for (int poly = 0; poly < 2; ++poly) {
                const u64* remainder = remainders.data() + poly * n_ + at;
                kernel.sub_multiply_constant(out[poly], out[poly], remainder, inverse, kPiece, prime.modulus());
            }
        }
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
        if (!ring.made(found->second->chain())) throw std::invalid_argument("cannot rotate: need keys of this ring");
        hoisting.rotate(element, *found->second);
    }
    return elements.empty() ? std::vector<Cipher>() : hoisting.outputs();
}

}  // namespace secateur
