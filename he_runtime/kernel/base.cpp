#include "base.hpp"

namespace secateur {
namespace {

u64 reduced(u64 x, const Modulus& m) { return mul(x, m.one, m.value); }

Factor inverse_of(u64 x, const Modulus& m) { return make_factor(power(x, m.value - 2, m), m); }

}  // namespace

Base::Base(std::vector<const Ntt*> primes) : primes_(std::move(primes)), narrow_(true) {
    for (std::size_t i = 0; i < primes_.size(); ++i) {
        const Modulus& m = primes_[i]->modulus();
        u64 others = 1;
        for (std::size_t k = 0; k < primes_.size(); ++k) {
            if (k != i) others = mul(others, reduced(primes_[k]->modulus().value, m), m);
        }
        inverses_.push_back(inverse_of(others, m));
        reciprocals_.push_back(1.0 / static_cast<double>(m.value));
        narrow_ = narrow_ && is_narrow(m);
    }
}

u64 Base::product(const Modulus& target) const {
    u64 result = 1;
    for (const Ntt* prime : primes_) result = mul(result, reduced(prime->modulus().value, target), target);
    return result;
}

void Base::prepare(u64* row, std::size_t i) const {
    if (size() == 1) return;
    const Ntt& prime = *primes_[i];
    prime.kernel().multiply_constant(row, row, inverses_[i], prime.degree(), prime.modulus());
}

void Base::quotient(u64* dst, const u64* rows, std::size_t n) const {
    std::vector<const u64*> sources;
    for (std::size_t i = 0; i < size(); ++i) sources.push_back(rows + i * n);
    const Kernel& kernel = narrow_ ? primes_[0]->kernel() : portable_kernel;
    kernel.round_quotient(dst, sources.data(), reciprocals_.data(), size(), n);
}

void Base::begin(u64* dst, const u64* rows, const u64* quotient, const Ntt& target, Sign sign) const {
    if (size() == 1) return begin_one(dst, rows, target, sign);
    const Modulus& t = target.modulus();
    const std::size_t n = target.degree();
    std::vector<const u64*> sources;
    std::vector<u64> weights;
    for (std::size_t i = 0; i < size(); ++i) {
        u64 others = 1;
        for (std::size_t k = 0; k < size(); ++k) {
            if (k != i) others = mul(others, reduced(primes_[k]->modulus().value, t), t);
        }
        sources.push_back(rows + i * n);
        weights.push_back(others);
    }
    sources.push_back(quotient);
    weights.push_back(reduce_once(t.value - product(t), t.value));
    const Kernel& kernel = narrow_ ? target.kernel() : portable_kernel;
    kernel.dot_constants(dst, sources.data(), weights.data(), sources.size(), false, n, t);
    target.forward_begin(dst, dst, nullptr);
}

void Base::begin_one(u64* dst, const u64* row, const Ntt& target, Sign sign) const {
    const Modulus& from = primes_[0]->modulus();
    const Modulus& to = target.modulus();
    const std::size_t n = target.degree();
    const Lift lift{from.value / 2, to.value - reduced(from.value, to), sign.before == nullptr ? nullptr : sign.before->signs};
    const bool lifts = sign.centred || sign.before != nullptr;
    // The transform takes anything below four times its prime; other residues are reduced first.
    if (from.value + (lifts ? to.value : 0) <= 4 * to.value) {
        return target.forward_begin(dst, row, lifts ? &lift : nullptr);
    }
    if (lifts) target.kernel().lift(dst, row, lift, n);
    (is_narrow(from) ? target.kernel() : portable_kernel).convert(dst, lifts ? dst : row, n, from, to);
    target.forward_begin(dst, dst, nullptr);
}

Lifted::Lifted(const Base& base, std::size_t n, Sign sign)
    : base_(&base), n_(n), sign_(sign), rows_(base.size() * n), quotient_(base.size() > 1 ? n : 0) {}

void Lifted::take(std::size_t i, const u64* values) {
    u64* row = rows_.data() + i * n_;
    base_->prime(i).inverse(row, values);
    base_->prepare(row, i);
}

void Lifted::finish() {
    if (base_->size() > 1) base_->quotient(quotient_.data(), rows_.data(), n_);
}

void Lifted::begin(u64* dst, const Ntt& target) const { base_->begin(dst, rows_.data(), quotient_.data(), target, sign_); }

void Lifted::to(u64* dst, const Ntt& target) const {
    begin(dst, target);
    for (std::size_t at = 0; at < n_; at += target.block()) target.forward_end(dst, at, Leave::residues, {});
}

Division::Division(std::vector<const Ntt*> by, const std::vector<const Ntt*>& live)
    : base_(std::move(by)), live_(live) {
    for (const Ntt* prime : live_) {
        const Modulus& m = prime->modulus();
        const u64 product = base_.product(m);
        products_.push_back(make_factor(product, m));
        inverses_.push_back(inverse_of(product, m));
    }
}

void Division::row(u64* dst, const u64* values, const u64* remainder, std::size_t j) const {
    const Ntt& prime = *live_[j];
    prime.kernel().sub_multiply_constant(dst, values, remainder, inverses_[j], prime.degree(), prime.modulus());
}

}  // namespace secateur
