#include "ntt.hpp"

#include <stdexcept>
#include <string>

namespace secateur {
namespace {

// Roots in the order of the tree: entry i is root^bitreverse(i), for i < n.
AlignedVector<u64> bit_reversed_powers(std::size_t n, u64 root, const Modulus& m) {
    AlignedVector<u64> powers(n);
    // The children of block i are bitreverse(2i) = bitreverse(i) / 2 and the same plus n / 2.
    std::size_t step = n;
    powers[0] = 1;
    for (std::size_t have = 1; have < n; have *= 2) {
        step /= 2;
        const Factor factor = make_factor(power(root, step, m), m);
        for (std::size_t i = 0; i < have; ++i) powers[have + i] = mul(powers[i], factor, m.value);
    }
    return powers;
}

// The two forms of a root in a table: an integer pair with a quotient of `bits` bits, or a pair of doubles.
struct IntegerForm {
    const Modulus* m;
    int shift;
    u64 value(u64 w) const { return w; }
    u64 quotient(u64 w) const { return make_factor(w, *m).quotient >> shift; }
};

struct DoubleForm {
    const Modulus* m;
    // Centred, because the error of the estimated quotient grows with the root.
    double value(u64 w) const {
        const auto q = static_cast<double>(m->value);
        const auto x = static_cast<double>(w);
        return w > m->value / 2 ? x - q : x;
    }
    double quotient(u64 w) const { return value(w) / static_cast<double>(m->value); }
};

template <class T, class Form>
void append_pairs(AlignedVector<T>& out, const AlignedVector<u64>& roots, std::size_t count, const Form& form) {
    for (std::size_t i = 0; i < count; ++i) {
        out.push_back(form.value(roots[i]));
        out.push_back(form.quotient(roots[i]));
    }
}

template <class T, class Form>
void append_group(AlignedVector<T>& out, const AlignedVector<u64>& roots, std::size_t first, std::size_t count,
                  const std::size_t* order, const Form& form) {
    for (std::size_t i = 0; i < count; ++i) out.push_back(form.value(roots[first + (order ? order[i] : i)]));
    for (std::size_t i = 0; i < count; ++i) out.push_back(form.quotient(roots[first + (order ? order[i] : i)]));
}

// The stages inside registers of `width` lanes, for tiles of width * width residues: per two registers the roots of
// the last stage (lanes hold even pairs before odd ones after the shuffles), then those of the stage before, and so on.
template <class T, class Form>
void append_tail(AlignedVector<T>& out, const AlignedVector<u64>& roots, std::size_t width, const Form& form) {
    static constexpr std::size_t kOrder8[] = {0, 2, 4, 6, 1, 3, 5, 7};
    static constexpr std::size_t kOrder4[] = {0, 2, 1, 3};
    const std::size_t n = roots.size();
    const std::size_t* order = width == 8 ? kOrder8 : kOrder4;
    for (std::size_t tile = 0; tile < n / (width * width); ++tile) {
        for (std::size_t count = width; count >= 2; count /= 2) {
            const std::size_t level = n / 2 * count / width;  // the blocks of this stage are entries level, level + 1..
            for (std::size_t pair = 0; pair < width / 2; ++pair) {
                append_group(out, roots, level + (tile * (width / 2) + pair) * count, count,
                             count == width ? order : nullptr, form);
            }
        }
    }
}

}  // namespace

u64 minimal_root(std::size_t n, const Modulus& m) {
    const u64 q = m.value;
    const u64 order = 2 * static_cast<u64>(n);
    if ((q - 1) % order != 0) {
        throw std::invalid_argument("cannot transform modulo " + std::to_string(q) + ": need a prime that is 1 mod " +
                                    std::to_string(order));
    }
    // x^((q-1)/2n) is primitive exactly when its n-th power is -1, which holds for half of all x.
    u64 root = 0;
    for (u64 x = 2; root == 0; ++x) {
        const u64 candidate = power(x, (q - 1) / order, m);
        if (power(candidate, n, m) == q - 1) root = candidate;
    }
    // The others are its odd powers.
    const Factor square = make_factor(mul(root, root, m), m);
    u64 least = root;
    for (std::size_t i = 1; i < n; ++i) {
        root = mul(root, square, q);
        if (root < least) least = root;
    }
    return least;
}

Ntt::Ntt(std::size_t n, const Modulus& modulus, Path path) : modulus_(modulus), kernel_(&kernel_for(path, modulus)) {
    if (n < kMinDegree || n > kMaxDegree || (n & (n - 1)) != 0) {
        throw std::invalid_argument("cannot transform length " + std::to_string(n) +
                                    ": need a power of two in [1024, 65536]");
    }
    root_ = minimal_root(n, modulus_);
    const AlignedVector<u64> roots = bit_reversed_powers(n, root_, modulus_);
    table_.modulus = &modulus_;
    table_.n = n;
    const u64 q = modulus_.value;
    const u64 inverse_n = q - (q - 1) / n;  // n * (q - 1) / n = -1
    table_.scale = make_factor(inverse_n, modulus_);
    table_.scale_root = make_factor(mul(inverse_n, roots[1], modulus_), modulus_);
    if (kernel_ == &portable_kernel) {
        words_.reserve(2 * n);
        append_pairs(words_, roots, n, IntegerForm{&modulus_, 0});
        table_.roots = words_.data();
        return;
    }
#ifdef SECATEUR_X86
    if (kernel_ == &ifma_kernel) {
        const IntegerForm form{&modulus_, 12};
        words_.reserve(2 * n);
        append_pairs(words_, roots, n / 8, form);
        append_tail(words_, roots, 8, form);
        table_.roots = words_.data();
        table_.tail = words_.data() + n / 4;
        return;
    }
    const DoubleForm form{&modulus_};
    waves_.reserve(2 * n);
    append_pairs(waves_, roots, n / 4, form);
    append_tail(waves_, roots, 4, form);
    table_.waves = waves_.data();
    table_.wave_tail = waves_.data() + n / 2;
#endif
}

}  // namespace secateur
