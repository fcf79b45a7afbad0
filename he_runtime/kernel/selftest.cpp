// Runs every routine of every available path on arrays of exact size, compares them with the portable path, and that
// with definitions. Meant for a build with sanitizers; the tests in Python look closer at values. Exits 1 on a difference.

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "galois.hpp"
#include "ntt.hpp"

using namespace secateur;

namespace {

int failures = 0;
std::mt19937_64 generator(20240229);

void check(bool good, const std::string& what) {
    if (good) return;
    ++failures;
    std::fprintf(stderr, "wrong: %s\n", what.c_str());
}

// Exactly n words on the heap, so that a sanitizer sees the first one past either end.
struct Vector {
    explicit Vector(std::size_t size, u64 value = 0) : n(size), words(new u64[size]) {
        for (std::size_t i = 0; i < n; ++i) words[i] = value;
    }
    Vector(std::size_t size, const Modulus& m) : Vector(size) {
        const u64 extremes[] = {0, 1, m.value - 1};
        for (std::size_t i = 0; i < n; ++i) {
            words[i] = generator() % 4 == 0 ? extremes[generator() % 3] : generator() % m.value;
        }
    }
    u64* data() const { return words.get(); }
    u64& operator[](std::size_t i) const { return words[i]; }
    Vector copy() const {
        Vector other(n);
        std::memcpy(other.data(), data(), n * sizeof(u64));
        return other;
    }
    bool operator==(const Vector& other) const { return std::memcmp(data(), other.data(), n * sizeof(u64)) == 0; }

    std::size_t n;
    std::unique_ptr<u64[]> words;
};

Modulus prime_below(u64 limit, std::size_t n) {
    const u64 step = 2 * static_cast<u64>(n);
    for (u64 q = (limit - 2) / step * step + 1; q > step; q -= step) {
        if (is_prime(q)) return make_modulus(q);
    }
    throw std::invalid_argument("no such prime");
}

u64 exact(u128 x, const Modulus& m) { return static_cast<u64>(x % m.value); }

// What a transform leaves for products, times keys of q - 1 throughout: the largest sums there are.
void test_factors(const Ntt& ntt, const Vector& x, const Vector& expected, const std::string& name) {
    const std::size_t n = ntt.degree();
    const Modulus& m = ntt.modulus();
    Vector raised(n), left(n), out0(n), out1(n);
    for (std::size_t i = 0; i < n; ++i) raised[i] = x[i] + m.value * 3;
    ntt.forward_begin(left.data(), raised.data(), nullptr);
    for (std::size_t at = 0; at < n; at += ntt.block()) ntt.forward_end(left.data(), at, Leave::factors, {});
    for (const std::size_t count : {1, 3, 4, 15, 16, 64}) {
        const std::vector<const u64*> digits(count, left.data());
        const std::vector<u64> key(16 * count, m.value - 1);
        ntt.kernel().gadget_pair(out0.data(), out1.data(), digits.data(), Leave::factors, key.data(), nullptr, 0, count, false, n, m);
        bool good = out0 == out1;
        for (std::size_t i = 0; i < n; ++i) good &= exact(static_cast<u128>(expected[i]) * count + out0[i], m) == 0;
        check(good, name + " products of " + std::to_string(count) + " factors");
    }
}

void test_transforms(std::size_t n, const Modulus& m, Path path) {
    const std::string name = std::string(path_name(path)) + " n " + std::to_string(n) + " q " + std::to_string(m.value);
    const Ntt ntt(n, m, path);
    const Ntt reference(n, m, Path::portable);
    const Vector x(n, m);
    Vector values(n), expected(n), back(n);
    ntt.forward(values.data(), x.data());
    reference.forward(expected.data(), x.data());
    check(values == expected, name + " forward");
    // In two parts, blocks from the last to the first; what is asked for ahead is only fetched.
    Vector parts(n);
    ntt.forward_begin(parts.data(), x.data(), nullptr);
    for (std::size_t at = n; at > 0; at -= ntt.block()) {
        ntt.forward_end(parts.data(), at - ntt.block(), Leave::residues, {values.data(), n / 16 * 8, at < n ? parts.data() : nullptr});
    }
    check(parts == expected && n % ntt.block() == 0, name + " forward in two parts");
    const Lift lift{m.value / 2, m.value, nullptr};  // the same residues, lifted by a multiple of the prime
    ntt.forward_begin(parts.data(), x.data(), &lift);
    for (std::size_t at = 0; at < n; at += ntt.block()) ntt.forward_end(parts.data(), at, Leave::residues, {});
    check(parts == expected, name + " lifted forward in two parts");
    test_factors(ntt, x, expected, name);
    ntt.inverse(back.data(), values.data());
    check(back == x, name + " inverse");
    for (std::size_t i = 0; i < n; ++i) back[i] += m.value * (i % 4);
    ntt.forward(back.data(), back.data());
    check(back == expected, name + " forward in place from [0, 4q)");
    ntt.inverse(back.data(), back.data());
    check(back == x, name + " inverse in place");
    // The first value is the one at the root itself.
    u64 sum = 0;
    for (std::size_t i = n; i-- > 0;) sum = exact(static_cast<u128>(sum) * ntt.root() + x[i], m);
    check(sum == values[0], name + " first value");
}

void test_elementwise(std::size_t n, const Modulus& m, Path path) {
    const std::string name = std::string(path_name(path)) + " n " + std::to_string(n) + " q " + std::to_string(m.value);
    const Kernel& kernel = kernel_for(path, m);
    const Vector a(n, m), b(n, m);
    Vector out(n);
    const u64 q = m.value;
    const auto expect = [&](const char* what, auto definition) {
        bool good = true;
        for (std::size_t i = 0; i < n; ++i) good &= out[i] == exact(definition(i), m);
        check(good, name + " " + what);
    };
    kernel.add(out.data(), a.data(), b.data(), n, m);
    expect("add", [&](std::size_t i) { return static_cast<u128>(a[i]) + b[i]; });
    kernel.sub(out.data(), a.data(), b.data(), n, m);
    expect("sub", [&](std::size_t i) { return static_cast<u128>(a[i]) + q - b[i]; });
    kernel.negate(out.data(), a.data(), n, m);
    expect("negate", [&](std::size_t i) { return static_cast<u128>(q) - a[i]; });
    kernel.multiply(out.data(), a.data(), b.data(), n, m);
    expect("multiply", [&](std::size_t i) { return static_cast<u128>(a[i]) * b[i]; });
    kernel.multiply_constant(out.data(), a.data(), make_factor(q - 1, m), n, m);
    expect("multiply_constant", [&](std::size_t i) { return static_cast<u128>(a[i]) * (q - 1); });
    kernel.sub_multiply_constant(out.data(), a.data(), b.data(), make_factor(q - 1, m), n, m);
    expect("sub_multiply_constant", [&](std::size_t i) { return (static_cast<u128>(a[i]) + q - b[i]) * (q - 1); });
    for (const u64 from : {u64{3}, u64{65537}, (u64{1} << 50) - 27, (u64{1} << 60) - 93}) {
        const Modulus source = make_modulus(from);
        const Vector x(n, source);
        kernel.convert(out.data(), x.data(), n, source, m);
        expect("convert", [&](std::size_t i) { return static_cast<u128>(x[i]); });
    }
    check(kernel.all_below(a.data(), n, q), name + " all_below");
    for (const u64 bad : {q, q + 1, u64{1} << 63, ~u64{0}}) {
        const Vector x = a.copy();
        x[n - 1] = bad;
        check(!kernel.all_below(x.data(), n, q), name + " all_below of a greater value");
    }
}

void test_dot(std::size_t n, std::size_t count, const Modulus& m, Path path) {
    const Kernel& kernel = kernel_for(path, m);
    const Vector top(n, m.value - 1), a(n, m), b(n, m);
    std::unique_ptr<const u64*[]> left(new const u64*[count]), right(new const u64*[count]);
    for (std::size_t k = 0; k < count; ++k) {
        right[k] = k % 5 == 0 ? b.data() : top.data();
    }
    // Constants times integers that need not be residues.
    const Vector w(count, m);
    const bool portable = &kernel == &portable_kernel;
    const Vector wide(n, make_modulus(portable ? (u64{1} << 60) - 93 : (u64{1} << 50) - 27));
    for (std::size_t k = 0; k < count; ++k) left[k] = wide.data();
    for (const bool accumulate : {false, true}) {
        const Vector out = b.copy();
        kernel.dot_constants(out.data(), left.get(), w.data(), count, accumulate, n, m);
        bool good = true;
        for (std::size_t i = 0; i < n; ++i) {
            u64 sum = accumulate ? b[i] : 0;
            for (std::size_t k = 0; k < count; ++k) sum = exact(static_cast<u128>(wide[i]) * w[k] + sum, m);
            good &= out[i] == sum;
        }
        check(good, std::string(path_name(path)) + " dot_constants of " + std::to_string(count));
    }
    for (std::size_t k = 0; k < count; ++k) left[k] = k % 3 == 0 ? a.data() : top.data();
    for (const bool accumulate : {false, true}) {
        const Vector out = b.copy();
        kernel.dot(out.data(), left.get(), right.get(), count, accumulate, n, m);
        bool good = true;
        for (std::size_t i = 0; i < n; ++i) {
            u64 sum = accumulate ? b[i] : 0;
            for (std::size_t k = 0; k < count; ++k) sum = exact(static_cast<u128>(left[k][i]) * right[k][i] + sum, m);
            good &= out[i] == sum;
        }
        check(good, std::string(path_name(path)) + " dot of " + std::to_string(count));
        const Vector first = b.copy(), second = a.copy(), alone = a.copy();
        kernel.dot_pair(first.data(), second.data(), left.get(), right.get(), left.get(), count, accumulate, n, m);
        kernel.dot(alone.data(), left.get(), left.get(), count, accumulate, n, m);
        check(first == out && second == alone, std::string(path_name(path)) + " dot_pair of " + std::to_string(count));
    }
}

void test_permute(std::size_t n, u64 element, Path path) {
    const Galois galois(n, element);
    const Modulus m = prime_below(u64{1} << 50, n);
    const Ntt ntt(n, m, path);
    const Vector x(n, m);
    Vector image(n), values(n), out(n);
    for (std::size_t i = 0; i < n; ++i) {
        const u64 target = element * i % (2 * n);
        image[target % n] = target < n || x[i] == 0 ? x[i] : m.value - x[i];
    }
    ntt.forward(values.data(), x.data());
    ntt.forward(image.data(), image.data());
    ntt.kernel().permute(out.data(), values.data(), 0, galois.table(), 0, n);
    check(out == image, std::string(path_name(path)) + " permute by " + std::to_string(element));
}

void test_blake2xb(std::size_t count, Path path) {
    std::vector<u64> roots(8 * count), out(512 * count), expected(512 * count);
    for (std::size_t i = 0; i < roots.size(); ++i) roots[i] = 0x9e3779b97f4a7c15 * (i + 1);
    portable_kernel.blake2xb_nodes(expected.data(), roots.data(), count);
    kernel_of(path).blake2xb_nodes(out.data(), roots.data(), count);
    check(out == expected, std::string(path_name(path)) + " blake2xb_nodes of " + std::to_string(count));
}

template <class Call>
void test_refusal(Call call, const char* what) {
    try {
        call();
        check(false, std::string(what) + " was accepted");
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace

int main() {
    for (const Path path : {Path::portable, Path::avx2, Path::ifma}) {
        if (!path_available(path)) continue;
        std::printf("%s\n", path_name(path));
        for (std::size_t n = kMinDegree; n <= kMaxDegree; n *= 2) {
            for (const int bits : {23, 40, 48, 49, 50, 51, 60}) test_transforms(n, prime_below(u64{1} << bits, n), path);
        }
        for (const int bits : {2, 3, 17, 31, 32, 33, 49, 50, 51, 60}) {
            const Modulus m = prime_below(u64{1} << bits, 1);
            for (const std::size_t n : {8, 16, 24, 72, 256, 1000}) {
                test_elementwise(n, m, path);
                for (const std::size_t count : {0, 1, 2, 3, 4, 5, 6, 7, 12, 17}) test_dot(n, count, m, path);
            }
            for (const std::size_t count : {15, 16, 255, 256, 2048, 2049, 4092, 4093, 8191}) test_dot(8, count, m, path);
        }
        for (const std::size_t count : {0, 1, 3}) test_blake2xb(count, path);
        for (const std::size_t n : {kMinDegree, 2 * kMinDegree, kMaxDegree}) {
            for (const u64 element : {u64{1}, u64{3}, u64{5}, u64{n + 1}, u64{2 * n - 1}}) test_permute(n, element, path);
        }
    }
    test_refusal([] { make_modulus(u64{1} << 60); }, "2^60");
    test_refusal([] { make_modulus(65535); }, "a composite");
    test_refusal([] { Ntt(1000, make_modulus(65537), Path::portable); }, "a length of 1000");
    test_refusal([] { Ntt(65536, make_modulus(65537), Path::portable); }, "a prime without roots");
    test_refusal([] { Galois(1024, 2); }, "an even element");
    if (failures == 0) std::printf("all agree\n");
    return failures == 0 ? 0 : 1;
}
