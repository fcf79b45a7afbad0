#include "switching.hpp"

#include <algorithm>

namespace secateur {

Decomposition::Decomposition(const Ring& ring, std::size_t level, Sign sign)
    : ring_(&ring), level_(level), sources_(level + 1) {
    for (std::size_t d = 0; d < ring.digits(level); ++d) digits_.emplace_back(ring.digit(level, d), ring.degree(), sign);
}

void Decomposition::take(std::size_t j, const u64* values) {
    sources_[j] = values;
    digits_[j / ring_->alpha()].take(j % ring_->alpha(), values);
}

const u64* Decomposition::row(std::size_t d, std::size_t row, u64* scratch) const {
    if (is_own(d, row)) return sources_[row];
    digits_[d].to(scratch, ring_->extended(level_, row));
    return scratch;
}

const u64* Decomposition::begin(std::size_t d, std::size_t row, u64* scratch) const {
    if (is_own(d, row)) return sources_[row];
    digits_[d].begin(scratch, ring_->extended(level_, row));
    return scratch;
}

InnerProduct::InnerProduct(const Ring& ring, const SwitchKey& key, std::size_t level, std::size_t row,
                           const u64* const* digits, std::size_t count, Leave digits_left)
    : prime_(ring.extended(level, row)), key_(key), key_row_(key.row_of(level, row)), count_(count), digits_left_(digits_left),
      digits_(digits) {}

void InnerProduct::piece(u64* out0, u64* out1, std::size_t piece, bool accumulate, const u64* ahead) const {
    const u64* left[kMostPrimes];
    for (std::size_t d = 0; d < count_; ++d) left[d] = digits_[d] + piece * kPiece;
    prime_.kernel().gadget_pair(out0, out1, left, digits_left_, words(piece), ahead, key_.stride(), count_, accumulate, kPiece,
                                prime_.modulus());
}

// A transform reads a little ahead of where it writes. Places that differ by a multiple of 4096 bytes and 64 to 512 more are taken
// for one by the processor, and each read waits for a write: up to a fifth of the time. Digits begin on a page, their
// transforms go 1024 bytes and a line for each digit beyond one.
constexpr std::size_t kApart = 128;

SwitchedRow::SwitchedRow(const Ring& ring, const SwitchKey& key, const Decomposition& digits, std::size_t level, std::size_t row)
    : prime_(ring.extended(level, row)), stride_(ring.degree() + kPieceStride - kPiece),
      scratch_(kApart + digits.digits() * stride_), digits_(digits.digits()), product_(ring, key, level, row, digits_.data(), digits_.size(), Leave::factors) {
    for (std::size_t d = 0; d < digits_.size(); ++d) {
        u64* const place = scratch_.data() + kApart + d * stride_;
        digits_[d] = digits.begin(d, row, place);
        if (digits_[d] == place) begun_.push_back(place);
    }
}

void SwitchedRow::end_block(std::size_t first, std::size_t pieces) const {
    const std::size_t at = first * kPiece, next = at + pieces * kPiece;
    // A share of the block's words with each digit, in whole cache lines.
    const std::size_t share = begun_.empty() ? 0 : pieces * product_.piece_words() / begun_.size() / 8 * 8;
    for (std::size_t k = 0; k < begun_.size(); ++k) {
        const bool last = k + 1 == begun_.size();
        const u64* const block = !last ? begun_[k + 1] + at : next < prime_.degree() ? begun_[0] + next : nullptr;
        prime_.forward_end(begun_[k], at, Leave::factors, {product_.words(first) + k * share, share, block});
    }
}

namespace {

// Both sums of one extended row, n words each.
void sum_row(const SwitchedRow& row, u64* const (&out)[2]) {
    row.each_block([&](const InnerProduct& product, std::size_t p, std::size_t last) {
        for (; p < last; ++p) product.piece(out[0] + p * kPiece, out[1] + p * kPiece, p, false, nullptr);
    });
}

// dst = the automorphism of (addend + (sum - remainder) / P) modulo the j-th prime; `sum` is overwritten.
void finish_row(const Ring& ring, std::size_t j, u64* sum, const Lifted& remainder, const u64* addend, const GaloisTable* galois,
                u64* dst) {
    const Ntt& prime = ring.prime(j);
    const std::size_t n = prime.degree();
    Buffer scratch(n);
    remainder.to(scratch.data(), prime);
    u64* const added = galois != nullptr ? sum : dst;
    u64* const divided = addend != nullptr ? sum : added;
    ring.by_special().row(divided, sum, scratch.data(), j);
    if (addend != nullptr) prime.kernel().add(added, addend, divided, n, prime.modulus());
    if (galois != nullptr) prime.kernel().permute(dst, added, 0, *galois, 0, n);
}

}  // namespace

// The special rows come first, so that every other is divided, and turned, while its sums are in the cache. Only as many
// others go with them as threads would be idle.
void switch_key(const Ring& ring, const SwitchKey& key, std::size_t level, const u64* values, const u64* const (&addend)[2],
                u64* const (&dst)[2], Task& task) {
    const std::size_t n = ring.degree(), live = level + 1, special = ring.special_count();
    const GaloisTable& galois = ring.galois(key.element());
    const bool turns = key.element() != kIdentity;
    Decomposition digits(ring, level, turns ? Sign::turned(galois) : Sign::none());
    parallel_for(live, task, [&](std::size_t j) { digits.take(j, values + j * n); });
    if (ring.alpha() > 1) parallel_for(digits.digits(), task, [&](std::size_t d) { digits.finish(d); });

    const Base& base = ring.by_special().base();
    Lifted remainder[2] = {{base, n, Sign::nearest()}, {base, n, Sign::nearest()}};
    const std::size_t idle = static_cast<std::size_t>(threads()) - 1 - (special - 1) % static_cast<std::size_t>(threads());
    const std::size_t early = std::min(live, idle);
    Buffer first(2 * (special + early) * n);
    parallel_for(special + early, task, [&](std::size_t k) {
        u64* const out[2] = {first.data() + 2 * k * n, first.data() + (2 * k + 1) * n};
        sum_row({ring, key, digits, level, k < special ? live + k : k - special}, out);
        if (k >= special) return;
        for (int poly = 0; poly < 2; ++poly) remainder[poly].take(k, out[poly]);
    });
    for (Lifted& one : remainder) one.finish();

    parallel_for(live, task, [&](std::size_t index) {
        const std::size_t j = live - 1 - index;
        Buffer own(j < early ? 0 : 2 * n);
        u64* const sums = j < early ? first.data() + 2 * (special + j) * n : own.data();
        u64* const out[2] = {sums, sums + n};
        if (j >= early) sum_row({ring, key, digits, level, j}, out);
        for (int poly = 0; poly < 2; ++poly) {
            const u64* const added = addend[poly] == nullptr ? nullptr : addend[poly] + j * n;
            finish_row(ring, j, out[poly], remainder[poly], added, turns ? &galois : nullptr, dst[poly] + j * n);
        }
    });
}

}  // namespace secateur
