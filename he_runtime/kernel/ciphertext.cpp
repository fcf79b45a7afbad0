#include "ciphertext.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace secateur {
namespace {

// An integer in a double modulo q, exactly: beyond 53 bits it is a smaller integer times a power of two.
u64 residue_of(double integer, const Modulus& m) {
    int exponent = 0;
    const double mantissa = std::frexp(std::fabs(integer), &exponent);
    u64 result;
    if (exponent <= 62) {
        result = static_cast<u64>(std::fabs(integer)) % m.value;
    } else {
        const u64 top = static_cast<u64>(std::ldexp(mantissa, 53)) % m.value;
        result = mul(top, power(2, static_cast<u64>(exponent - 53), m), m);
    }
    return integer < 0 && result != 0 ? m.value - result : result;
}

template <class Integer>
void transform_row(u64* dst, const Integer* coefficients, std::size_t count, const Ntt& prime) {
    const std::size_t n = prime.degree(), stride = n / count;
    const Modulus& m = prime.modulus();
    if (stride > 1) std::memset(dst, 0, n * sizeof(u64));
    for (std::size_t i = 0; i < count; ++i) {
        if constexpr (sizeof(Integer) == 4) {
            const std::int64_t c = coefficients[i];
            const u64 size = mul(static_cast<u64>(c < 0 ? -c : c), m.one, m.value);
            dst[i * stride] = c < 0 && size != 0 ? m.value - size : size;
        } else {
            dst[i * stride] = residue_of(coefficients[i], m);
        }
    }
    prime.forward(dst, dst);
}

}  // namespace

void SwitchKey::set(const Ring& ring, std::size_t digit, int poly, std::size_t key_row, const u64* values) {
    const GaloisTable& galois = ring.galois(element_);
    u64* const dst = words_.data() + key_row * n_ * 2 * digits_ + (2 * digit + poly) * 8;
    for (std::size_t i = 0; i < n_ / 8; ++i, values += 8) {
        u64* const block = dst + (galois.source[i] / 8) * stride();
        const u64* const lane = galois.lanes[galois.source[i] & 7];
        for (std::size_t j = 0; j < 8; ++j) block[lane[j]] = values[j];
    }
}

Plaintext Plaintext::rows(const Ring& ring, std::size_t level, bool extended, const double* coefficients, std::size_t count) {
    Plaintext plain(Form::rows, ring, level, extended);
    const std::size_t rows = extended ? ring.extended_rows(level) : level + 1;
    plain.words_ = Buffer(rows * ring.degree());
    plain.rows_ = plain.words_.data();
    for (std::size_t r = 0; r < rows; ++r) {
        transform_row(plain.words_.data() + r * ring.degree(), coefficients, count, ring.extended(level, r));
    }
    return plain;
}

Plaintext Plaintext::compact(const Ring& ring, std::size_t level, bool extended, const double* coefficients, std::size_t count) {
    Plaintext plain(Form::compact, ring, level, extended);
    const bool small = std::all_of(coefficients, coefficients + count, [](double c) { return std::fabs(c) < 2147483648.0; });
    if (small) {
        plain.small_.assign(coefficients, coefficients + count);
    } else {
        plain.wide_.assign(coefficients, coefficients + count);
    }
    return plain;
}

Plaintext Plaintext::constant(const Ring& ring, std::size_t level, bool extended, const std::vector<u64>& residues) {
    Plaintext plain(Form::constant, ring, level, extended);
    plain.residues_ = residues;
    return plain;
}

Plaintext Plaintext::borrowed(const Ring& ring, std::size_t level, bool extended, const u64* residues) {
    Plaintext plain(Form::rows, ring, level, extended);
    plain.rows_ = residues;
    return plain;
}

std::size_t Plaintext::bytes() const {
    return words_.size() * sizeof(u64) + residues_.size() * sizeof(u64) + small_.size() * 4 + wide_.size() * 8;
}

void Plaintext::expand(u64* dst, std::size_t row, const Ntt& prime) const {
    switch (form_) {
        case Form::rows: std::memcpy(dst, this->row(row), n_ * sizeof(u64)); break;
        case Form::constant: std::fill(dst, dst + n_, residues_[row]); break;
        case Form::compact:
            if (!small_.empty()) {
                transform_row(dst, small_.data(), small_.size(), prime);
            } else {
                transform_row(dst, wide_.data(), wide_.size(), prime);
            }
    }
}

}  // namespace secateur
