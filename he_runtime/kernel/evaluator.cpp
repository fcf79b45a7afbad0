#include "evaluator.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace secateur {
namespace {

void need(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("cannot evaluate: need ") + what);
}

Cipher make(const Ring& ring, std::size_t level, std::size_t size) { return std::make_shared<Ciphertext>(ring, level, size); }

void check(const Ring& ring, const Ciphertext& x) {
    need(ring.made(x.chain), "a ciphertext of this ring");
}

void check_key(const Ring& ring, const Ciphertext& x, const SwitchKey& key) {
    need(ring.made(key.chain()), "a key of this ring");
    need(key.level() >= x.level, "a key that reaches the operand's level");
}

void check_plain(const Ring& ring, const Ciphertext& x, const Plaintext& p) {
    need(ring.made(p.chain()), "a plaintext of this ring");
    need(p.level() == x.level, "a plaintext of the operand's level");
}

// unit(polynomial, row) over all of a ciphertext.
template <class Unit>
void each_row(const Ciphertext& x, Task& task, const Unit& unit) {
    const std::size_t live = x.level + 1;
    parallel_for(x.size * live, task, [&](std::size_t i) { unit(i / live, i % live); });
}

}  // namespace

Cipher add(const Ring& ring, const Ciphertext& x, const Ciphertext& y, Task& task) {
    check(ring, x);
    check(ring, y);
    need(x.level == y.level, "operands of one level");
    const Ciphertext& more = x.size >= y.size ? x : y;
    const std::size_t common = std::min(x.size, y.size);
    const Cipher out = make(ring, x.level, more.size);
    each_row(*out, task, [&](std::size_t poly, std::size_t j) {
        const Ntt& prime = ring.prime(j);
        if (poly >= common) {
            std::memcpy(out->row(poly, j), more.row(poly, j), out->n * sizeof(u64));
        } else {
            prime.kernel().add(out->row(poly, j), x.row(poly, j), y.row(poly, j), out->n, prime.modulus());
        }
    });
    return out;
}

Cipher add_plain(const Ring& ring, const Ciphertext& x, const Plaintext& p, Task& task) {
    check(ring, x);
    check_plain(ring, x, p);
    const Cipher out = make(ring, x.level, x.size);
    each_row(*out, task, [&](std::size_t poly, std::size_t j) {
        u64* dst = out->row(poly, j);
        const Ntt& prime = ring.prime(j);
        if (poly > 0) {
            std::memcpy(dst, x.row(poly, j), out->n * sizeof(u64));
            return;
        }
        if (p.form() == Plaintext::Form::rows) {
            prime.kernel().add(dst, x.row(0, j), p.row(j), out->n, prime.modulus());
            return;
        }
        p.expand(dst, j, prime);
        prime.kernel().add(dst, x.row(0, j), dst, out->n, prime.modulus());
    });
    return out;
}

Cipher mul_plain(const Ring& ring, const Ciphertext& x, const Plaintext& p, Task& task) {
    check(ring, x);
    check_plain(ring, x, p);
    const Cipher out = make(ring, x.level, x.size);
    parallel_for(x.level + 1, task, [&](std::size_t j) {
        const Ntt& prime = ring.prime(j);
        const Modulus& m = prime.modulus();
        Buffer scratch(p.form() == Plaintext::Form::compact ? x.n : 0);
        if (scratch.size() > 0) p.expand(scratch.data(), j, prime);
        for (std::size_t poly = 0; poly < x.size; ++poly) {
            if (p.form() == Plaintext::Form::constant) {
                prime.kernel().multiply_constant(out->row(poly, j), x.row(poly, j), make_factor(p.residue(j), m), x.n, m);
            } else {
                const u64* operand = scratch.size() > 0 ? scratch.data() : p.row(j);
                prime.kernel().multiply(out->row(poly, j), x.row(poly, j), operand, x.n, m);
            }
        }
    });
    return out;
}

Cipher multiply(const Ring& ring, const Ciphertext& x, const Ciphertext& y, Task& task) {
    check(ring, x);
    check(ring, y);
    need(x.level == y.level && x.size == 2 && y.size == 2, "operands of one level and two polynomials each");
    const Cipher out = make(ring, x.level, 3);
    parallel_for(x.level + 1, task, [&](std::size_t j) {
        const Ntt& prime = ring.prime(j);
        const u64* const left[] = {x.row(0, j), x.row(1, j)};
        const u64* const right[] = {y.row(1, j), y.row(0, j)};
        prime.kernel().multiply(out->row(0, j), x.row(0, j), y.row(0, j), x.n, prime.modulus());
        prime.kernel().dot(out->row(1, j), left, right, 2, false, x.n, prime.modulus());
        prime.kernel().multiply(out->row(2, j), x.row(1, j), y.row(1, j), x.n, prime.modulus());
    });
    return out;
}

Cipher square(const Ring& ring, const Ciphertext& x, Task& task) {
    check(ring, x);
    need(x.size == 2, "an operand of two polynomials");
    const Cipher out = make(ring, x.level, 3);
    parallel_for(x.level + 1, task, [&](std::size_t j) {
        const Ntt& prime = ring.prime(j);
        const Modulus& m = prime.modulus();
        u64* middle = out->row(1, j);
        prime.kernel().multiply(out->row(0, j), x.row(0, j), x.row(0, j), x.n, m);
        prime.kernel().multiply(middle, x.row(0, j), x.row(1, j), x.n, m);
        prime.kernel().add(middle, middle, middle, x.n, m);
        prime.kernel().multiply(out->row(2, j), x.row(1, j), x.row(1, j), x.n, m);
    });
    return out;
}

Cipher relinearize(const Ring& ring, const Ciphertext& x, const SwitchKey& key, Task& task) {
    check(ring, x);
    check_key(ring, x, key);
    need(x.size == 3, "a product of three polynomials");
    need(key.element() == kIdentity, "a key without an automorphism");
    const Cipher out = make(ring, x.level, 2);
    switch_key(ring, key, x.level, x.row(2, 0), {x.row(0, 0), x.row(1, 0)}, {out->row(0, 0), out->row(1, 0)}, task);
    return out;
}

Cipher rescale(const Ring& ring, const Ciphertext& x, Task& task) {
    check(ring, x);
    need(x.level > 0, "a level above 0");
    const Division& division = ring.by_prime(x.level);
    std::vector<Lifted> last;
    for (std::size_t poly = 0; poly < x.size; ++poly) last.emplace_back(division.base(), x.n, Sign::nearest());
    parallel_for(x.size, task, [&](std::size_t poly) { last[poly].take(0, x.row(poly, x.level)); });
    const Cipher out = make(ring, x.level - 1, x.size);
    each_row(*out, task, [&](std::size_t poly, std::size_t j) {
        u64* dst = out->row(poly, j);
        last[poly].to(dst, ring.prime(j));
        division.row(dst, x.row(poly, j), dst, j);
    });
    return out;
}

Cipher mod_switch(const Ring& ring, const Ciphertext& x, Task& task) {
    check(ring, x);
    need(x.level > 0, "a level above 0");
    const Cipher out = make(ring, x.level - 1, x.size);
    each_row(*out, task, [&](std::size_t poly, std::size_t j) {
        std::memcpy(out->row(poly, j), x.row(poly, j), x.n * sizeof(u64));
    });
    return out;
}

Cipher apply_galois(const Ring& ring, const Ciphertext& x, u64 element, const SwitchKey& key, Task& task) {
    check(ring, x);
    check_key(ring, x, key);
    need(x.size == 2, "a relinearized operand");
    need(key.element() == element, "a key for this Galois element");
    const Cipher out = make(ring, x.level, 2);
    switch_key(ring, key, x.level, x.row(1, 0), {x.row(0, 0), nullptr}, {out->row(0, 0), out->row(1, 0)}, task);
    return out;
}

}  // namespace secateur
