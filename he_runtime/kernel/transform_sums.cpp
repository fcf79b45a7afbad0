// The first half of a run: digits of the inputs, baby steps, products and their sums.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "transform_run.hpp"

namespace secateur {
namespace {

constexpr std::size_t kSpans = 8;       // units of work per row
constexpr std::size_t kExpanded = 8;    // compact operands transformed at a time
constexpr std::size_t kColumn = 128;    // words of many inputs that stay cached while every output is summed

}  // namespace

Run::Run(const Transform& transform, const std::vector<Cipher>& inputs, const Transform::Keys& keys, Counts& counts, Task& task)
    : t_(transform), ring_(*transform.ring_), inputs_(inputs), keys_(keys), counts_(counts), task_(task), n_(ring_.degree()),
      level_(transform.level_), live_(level_ + 1), extended_rows_(ring_.extended_rows(level_)),
      rows_(transform.extended_ ? extended_rows_ : live_) {
    if (inputs.size() != t_.inputs_) throw std::invalid_argument("cannot evaluate: need as many inputs as the transform has");
    for (const Cipher& x : inputs) {
        if (x == nullptr || !ring_.made(x->chain) || x->level != level_ || x->size != 2) {
            throw std::invalid_argument("cannot evaluate: need relinearized operands of the transform's ring and level");
        }
    }
    for (const Baby& baby : t_.babies_) {
        if (baby.element != kIdentity) key(baby.element);
    }
    for (const Group& group : t_.groups_) {
        if (group.element != kIdentity) key(group.element);
    }
}

const SwitchKey& Run::key(u64 element) const {
    const auto found = keys_.find(element);
    const bool known = found != keys_.end() && found->second != nullptr;
    if (known && (!ring_.made(found->second->chain()) || found->second->element() != element)) {
        throw std::invalid_argument("cannot rotate: need keys of the transform's ring, each for its element");
    }
    if (!known || found->second->level() < level_) {
        throw std::out_of_range("cannot rotate: need a key for Galois element " + std::to_string(element) + " at level " +
                                std::to_string(level_));
    }
    return *found->second;
}

void Run::decompose() {
    digits_.resize(inputs_.size());
    std::vector<std::size_t> turned;
    for (const Baby& baby : t_.babies_) {
        if (baby.element == kIdentity || digits_[baby.input].decomposition) continue;
        digits_[baby.input].decomposition = std::make_unique<Decomposition>(ring_, level_, Sign::nearest());
        turned.push_back(baby.input);
    }
    parallel_for(turned.size() * live_, task_, [&](std::size_t i) {
        const StageTimer timer(counts_.decompose_ns);
        const std::size_t input = turned[i / live_], j = i % live_;
        digits_[input].decomposition->take(j, inputs_[input]->row(1, j));
    });
    const std::size_t count = ring_.digits(level_), rows = extended_rows_;
    if (ring_.alpha() > 1) {
        parallel_for(turned.size() * count, task_, [&](std::size_t i) { digits_[turned[i / count]].decomposition->finish(i % count); });
    }
    for (const std::size_t input : turned) {
        digits_[input].words = Buffer(count * rows * n_);
        digits_[input].rows.resize(count * rows);
    }
    parallel_for(turned.size() * count * rows, task_, [&](std::size_t i) {
        const StageTimer timer(counts_.decompose_ns);
        Digits& of = digits_[turned[i / (count * rows)]];
        const std::size_t place = i % (count * rows);
        of.rows[place] = of.decomposition->row(place / rows, place % rows, of.words.data() + place * n_);
        if (place == 0) ++counts_.decompositions;
    });
}

void Run::accumulate() {
    for (std::size_t g = 0; g < t_.groups_.size(); ++g) sums_.emplace_back(2 * rows_ * n_);
    if (t_.constant_ && !t_.extended_) return accumulate_constants();
    // A compact operand is transformed row by row, so its row is one unit.
    const std::size_t spans = t_.compact_ ? 1 : std::min(kSpans, n_ / kPiece), length = n_ / spans;
    parallel_for(rows_ * spans, task_, [&](std::size_t i) {
        const std::size_t begin = i % spans * length;
        const std::size_t step = t_.compact_ ? length : std::min(length, 2 * kPiece);
        for (std::size_t at = begin; at < begin + length; at += step) accumulate_span(i / spans, at, at + step);
    });
}

// One integer for all slots per operand, and nothing to rotate: one feature per ciphertext.
void Run::accumulate_constants() {
    const std::size_t spans = std::min(kSpans, n_ / kPiece), length = n_ / spans;
    parallel_for(live_ * spans, task_, [&](std::size_t i) {
        const StageTimer timer(counts_.product_ns);
        const std::size_t row = i / spans, begin = i % spans * length;
        const Ntt& prime = ring_.prime(row);
        std::vector<u64> weights;
        for (const Cell& cell : t_.cells_) weights.push_back(t_.plaintexts_[cell.plaintext]->residue(row));
        std::vector<const u64*> sources(t_.cells_.size());
        for (std::size_t at = begin; at < begin + length; at += kColumn) {
            for (std::size_t poly = 0; poly < 2; ++poly) {
                for (std::size_t c = 0; c < t_.cells_.size(); ++c) {
                    sources[c] = inputs_[t_.babies_[t_.cells_[c].baby].input]->row(poly, row) + at;
                }
                for (std::size_t g = 0; g < t_.groups_.size(); ++g) {
                    const std::size_t first = t_.first_cell_[g], count = t_.first_cell_[g + 1] - first;
                    prime.kernel().dot_constants(sum(g, poly, row) + at, sources.data() + first, weights.data() + first, count,
                                                 false, kColumn, prime.modulus());
                }
            }
            counts_.product_words += t_.cells_.size() * kColumn;
            task_.check_within();
        }
    });
}

// All groups in the words [begin, end) of one row: the rotated inputs first, which stay cached, then every product.
void Run::accumulate_span(std::size_t row, std::size_t begin, std::size_t end) {
    const std::size_t length = end - begin;
    Buffer babies(t_.extended_ ? 2 * t_.babies_.size() * length : 0);
    Buffer scratch(2 * kPieceStride + (t_.compact_ ? kExpanded * n_ : kExpanded * length));
    if (t_.extended_) {
        const StageTimer timer(counts_.hoisted_ns);
        rotate_babies(row, begin, end, babies.data(), scratch.data());
    }
    const StageTimer timer(counts_.product_ns);
    for (std::size_t g = 0; g < t_.groups_.size(); ++g) sum_group(g, row, begin, end, babies.data(), scratch.data());
}

// P * c0 and the inner product, in the order of the babies; those without a step vanish in special rows.
void Run::rotate_babies(std::size_t row, std::size_t begin, std::size_t end, u64* out, u64* scratch) {
    const Ntt& prime = ring_.extended(level_, row);
    const std::size_t length = end - begin;
    std::vector<std::size_t> turned;
    for (std::size_t b = 0; b < t_.babies_.size(); ++b) {
        const Baby& baby = t_.babies_[b];
        if (baby.element != kIdentity) {
            turned.push_back(b);
        } else if (!is_special(row)) {
            const Factor p = ring_.by_special().product(row);
            for (std::size_t poly = 0; poly < 2; ++poly) {
                const u64* const x = inputs_[baby.input]->row(poly, row) + begin;
                prime.kernel().multiply_constant(out + (2 * b + poly) * length, x, p, length, prime.modulus());
            }
        }
    }
    for (std::size_t k = 0; k < turned.size(); ++k) {
        const u64* const ahead = k + 1 < turned.size() ? words(turned[k + 1], row, begin) : nullptr;
        turn_baby(turned[k], row, begin, end, out + 2 * turned[k] * length, scratch, ahead);
        counts_.hoisted_words += length;
        task_.check_within();
    }
}

// Where the key of a baby step holds what its sums over the piece at `at` need.
const u64* Run::words(std::size_t baby, std::size_t row, std::size_t at) const {
    const u64 element = t_.babies_[baby].element;
    return InnerProduct(ring_, key(element), level_, row, nullptr, 0).words(source_piece(ring_.galois(element), at));
}

// One of them in [begin, end), while the key's words from `ahead` on are fetched for the next.
void Run::turn_baby(std::size_t index, std::size_t row, std::size_t begin, std::size_t end, u64* out, u64* scratch, const u64* ahead) {
    const Baby& baby = t_.babies_[index];
    const Ntt& prime = ring_.extended(level_, row);
    const Kernel& kernel = prime.kernel();
    const GaloisTable& galois = ring_.galois(baby.element);
    const u64* digits[kMostPrimes];
    const std::size_t count = ring_.digits(level_);
    for (std::size_t d = 0; d < count; ++d) digits[d] = digits_[baby.input].rows[d * extended_rows_ + row];
    const InnerProduct product(ring_, key(baby.element), level_, row, digits, count);
    for (std::size_t at = begin; at < end; at += kPiece) {
        const std::size_t piece = source_piece(galois, at);
        u64* const sums[2] = {scratch, scratch + kPieceStride};
        if (!is_special(row)) {
            const u64* const x = inputs_[baby.input]->row(0, row) + piece * kPiece;
            kernel.multiply_constant(sums[0], x, ring_.by_special().product(row), kPiece, prime.modulus());
            std::memset(sums[1], 0, kPiece * sizeof(u64));
        }
        const bool last = at + kPiece == end;
        product.piece(sums[0], sums[1], piece, !is_special(row), last ? ahead : product.words(source_piece(galois, at + kPiece)));
        for (std::size_t poly = 0; poly < 2; ++poly) {
            kernel.permute(out + poly * (end - begin) + at - begin, sums[poly], piece * kPiece, galois, at, kPiece);
        }
    }
}

void Run::sum_group(std::size_t group, std::size_t row, std::size_t begin, std::size_t end, const u64* babies, u64* scratch) {
    const Ntt& prime = ring_.extended(level_, row);
    const std::size_t length = end - begin;
    std::vector<const u64*> left, right[2];
    bool accumulate = false;
    const auto flush = [&] {
        task_.check_within();
        prime.kernel().dot_pair(sum(group, 0, row) + begin, sum(group, 1, row) + begin, left.data(), right[0].data(),
                                right[1].data(), left.size(), accumulate, length, prime.modulus());
        accumulate = true;
        left.clear();
        right[0].clear();
        right[1].clear();
    };
    std::size_t expanded = 0;
    for (std::size_t c = t_.first_cell_[group]; c < t_.first_cell_[group + 1]; ++c) {
        const std::size_t b = t_.cells_[c].baby;
        const Plaintext& plain = *t_.plaintexts_[t_.cells_[c].plaintext];
        if (t_.extended_ && t_.babies_[b].element == kIdentity && is_special(row)) {
            counts_.skipped_words += length;
            continue;
        }
        const u64* operand;
        if (plain.form() == Plaintext::Form::rows) {
            operand = plain.row(row) + begin;
        } else {
            u64* place = scratch + expanded++ * length;
            if (plain.form() == Plaintext::Form::compact) {
                plain.expand(place, row, prime);
            } else {
                std::fill(place, place + length, plain.residue(row));
            }
            operand = place;
        }
        left.push_back(operand);
        for (int poly = 0; poly < 2; ++poly) {
            right[poly].push_back(t_.extended_ ? babies + (2 * b + poly) * length : inputs_[t_.babies_[b].input]->row(poly, row) + begin);
        }
        counts_.product_words += length;
        if (expanded == kExpanded) {
            flush();
            expanded = 0;
        }
    }
    if (!left.empty() || !accumulate) flush();
}

}  // namespace secateur
