// Runs every operation and linear transforms of many shapes on small rings: each path and number of threads against the
// portable path on one thread, words of ciphertexts in buffers of their own size, so that a build with sanitizers sees
// what reads past them; several callers at once; cancelled calls; operands of other rings. Exits 1 on a difference.

#include <cstdio>
#include <random>
#include <string>
#include <thread>

#include "hoisting.hpp"
#include "transform.hpp"

using namespace secateur;

namespace {

constexpr std::size_t kDegree = 1024;

std::atomic<int> failures{0};

void check(bool good, const std::string& what) {
    if (good) return;
    ++failures;
    std::fprintf(stderr, "wrong: %s\n", what.c_str());
}

template <class Error, class Call>
void refuses(Call call, const std::string& what) {
    try {
        call();
        check(false, what + " was accepted");
    } catch (const Error&) {
    }
}

struct Case {
    const char* name;
    std::vector<int> bits, special;
    std::size_t alpha;
};

const Case kCases[] = {
    {"seal", {45, 30, 24, 49}, {50}, 1},      {"seal, wide", {59, 24, 55, 60}, {59}, 1},
    {"seal, small special", {50, 45}, {30}, 1}, {"one prime", {40}, {50}, 1},
    {"hybrid-1", {40, 40, 40}, {45, 45}, 1},  {"hybrid-2", {45, 40, 40, 40, 40}, {48, 48}, 2},
    {"hybrid-3", {45, 24, 40, 49}, {50, 49, 48}, 3}, {"hybrid-2, wide", {60, 57, 55}, {60, 60}, 2},
};

std::unique_ptr<Ring> ring_of(const Case& c, Path path) {
    std::vector<u64> found;
    const auto prime = [&](int bits) {
        for (u64 q = ((u64{1} << bits) - 2) / (2 * kDegree) * 2 * kDegree + 1;; q -= 2 * kDegree) {
            bool fresh = is_prime(q);
            for (const u64 other : found) fresh = fresh && other != q;
            if (fresh) return found.push_back(q), q;
        }
    };
    std::vector<u64> primes, special;
    for (const int bits : c.special) special.push_back(prime(bits));
    for (const int bits : c.bits) primes.push_back(prime(bits));
    return std::make_unique<Ring>(kDegree, primes, special, c.alpha, path);
}

// The same numbers in every ring of a case.
struct Operands {
    explicit Operands(const Ring& ring_) : ring(ring_), generator(7) {
        const std::size_t top = ring.max_level();
        for (int i = 0; i < 3; ++i) inputs.push_back(cipher(top, 2));
        product = cipher(top, 3);
        for (const u64 element : {kIdentity, u64{3}, u64{5}, u64{9}, u64{2 * kDegree - 1}}) keys[element] = key(top, element);
        std::vector<double> coefficients(kDegree);
        for (double& c : coefficients) c = static_cast<double>(static_cast<std::int64_t>(generator() % 2000001) - 1000000);
        std::vector<double> wide(64, 0x1p60), some(coefficients.begin(), coefficients.begin() + 32);
        wide[3] = -0x1p70;
        std::vector<u64> residues;
        for (std::size_t r = 0; r < ring.extended_rows(top); ++r) residues.push_back(ring.extended(top, r).modulus().value - 1 - r);
        const auto keep = [&](Plaintext plain) { plaintexts.push_back(std::make_shared<const Plaintext>(std::move(plain))); };
        for (const auto& values : {coefficients, wide, some}) {
            keep(Plaintext::rows(ring, top, true, values.data(), values.size()));
            keep(Plaintext::compact(ring, top, true, values.data(), values.size()));
        }
        keep(Plaintext::constant(ring, top, true, residues));
        keep(Plaintext::borrowed(ring, top, true, plaintexts[0]->row(0)));
    }

    void fill(u64* row, u64 q) {
        const u64 extremes[] = {0, 1, q - 1};
        for (std::size_t i = 0; i < kDegree; ++i) row[i] = generator() % 8 == 0 ? extremes[generator() % 3] : generator() % q;
    }
    Cipher cipher(std::size_t level, std::size_t size) {
        const Cipher x = std::make_shared<Ciphertext>(ring, level, size);
        for (std::size_t p = 0; p < size; ++p) {
            for (std::size_t j = 0; j <= level; ++j) fill(x->row(p, j), ring.prime(j).modulus().value);
        }
        return x;
    }
    std::shared_ptr<SwitchKey> key(std::size_t level, u64 element) {
        auto made = std::make_shared<SwitchKey>(ring, level, element);
        std::vector<u64> values(kDegree);
        for (std::size_t d = 0; d < made->digits(); ++d) {
            for (std::size_t r = 0; r < ring.extended_rows(level); ++r) {
                for (int poly = 0; poly < 2; ++poly) {
                    fill(values.data(), ring.extended(level, r).modulus().value);
                    made->set(ring, d, poly, r, values.data());
                }
            }
        }
        return made;
    }

    const Ring& ring;
    std::mt19937_64 generator;
    std::vector<Cipher> inputs;
    Cipher product;
    Transform::Keys keys;
    std::vector<std::shared_ptr<const Plaintext>> plaintexts;
};

constexpr std::size_t kConstant = 6;  // of the plaintexts

// Babies and groups; every cell, or two of three, of the plaintexts from `first` on, `count` of them in turn.
struct Shape {
    const char* name;
    std::vector<Baby> babies;
    std::vector<Group> groups;
    std::size_t outputs, first, count, sparse;
};

const Shape kShapes[] = {
    {"full", {{0, 1}, {0, 3}, {1, 5}, {2, 1}}, {{0, 1}, {0, 9}, {1, 3}, {1, 1}}, 2, 0, 7, 0},
    {"sparse, compact", {{0, 3}, {1, 1}, {2, 3}, {2, 9}}, {{0, 9}, {1, 5}, {1, 9}}, 2, 1, 1, 3},
    {"rows alone", {{0, 5}, {1, 9}}, {{0, 1}}, 1, 0, 1, 0},
    {"no babies", {{0, 1}, {1, 1}, {2, 1}}, {{0, 3}, {1, 1}, {1, 5}}, 2, 0, 7, 0},
    {"no rotation", {{0, 1}, {1, 1}}, {{0, 1}, {1, 1}}, 2, 0, 6, 0},
    {"constants", {{0, 1}, {1, 1}, {2, 1}}, {{0, 1}, {1, 1}, {2, 1}}, 3, kConstant, 1, 3},
    {"constants, giants", {{0, 1}, {1, 1}}, {{0, 2 * kDegree - 1}, {0, 1}}, 1, kConstant, 1, 0},
};

Transform transform_of(const Operands& x, const Shape& shape) {
    std::vector<Cell> cells;
    std::size_t next = 0;
    for (std::size_t g = 0; g < shape.groups.size(); ++g) {
        for (std::size_t b = 0; b < shape.babies.size(); ++b) {
            const std::size_t place = next++;
            if (shape.sparse == 0 || place % shape.sparse != 1) cells.push_back({g, b, shape.first + place % shape.count});
        }
    }
    return Transform(x.ring, x.ring.max_level(), 3, shape.outputs, shape.babies, shape.groups, cells, x.plaintexts);
}

void append(std::vector<u64>& all, const Cipher& x) { all.insert(all.end(), x->words.data(), x->words.data() + x->words.size()); }

// Everything that can be evaluated, one after the other.
std::vector<u64> everything(const Operands& x) {
    std::vector<u64> all;
    Task task;
    Turn turn(task);
    const Ring& ring = x.ring;
    const Ciphertext &a = *x.inputs[0], &b = *x.inputs[1];
    append(all, add(ring, a, *x.product, task));
    for (const auto& plain : x.plaintexts) {
        append(all, add_plain(ring, *x.product, *plain, task));
        append(all, mul_plain(ring, a, *plain, task));
    }
    append(all, multiply(ring, a, b, task));
    append(all, square(ring, a, task));
    append(all, relinearize(ring, *x.product, *x.keys.at(kIdentity), task));
    for (const u64 element : {u64{3}, u64{2 * kDegree - 1}}) append(all, apply_galois(ring, a, element, *x.keys.at(element), task));
    for (const Cipher& y : rotate_hoisted(ring, a, {3, 9, 3}, x.keys, task)) append(all, y);
    Cipher low = x.product;
    for (std::size_t level = ring.max_level(); level > 0; --level) {
        append(all, mod_switch(ring, *low, task));
        append(all, low = rescale(ring, *low, task));
        append(all, relinearize(ring, *low, *x.keys.at(kIdentity), task));  // a key above the operand's level
    }
    for (const Shape& shape : kShapes) {
        Counts counts;
        for (const Cipher& y : transform_of(x, shape).run(x.inputs, x.keys, counts, task)) append(all, y);
    }
    return all;
}

void test_paths(const Case& c) {
    const auto reference_ring = ring_of(c, Path::portable);
    set_threads(1);
    const std::vector<u64> expected = everything(Operands(*reference_ring));
    for (const Path path : {Path::portable, Path::avx2, Path::ifma}) {
        if (!path_available(path)) continue;
        const auto ring = ring_of(c, path);
        const Operands operands(*ring);
        for (const int count : {1, 3}) {
            set_threads(count);
            check(everything(operands) == expected,
                  std::string(c.name) + " on " + path_name(path) + " with " + std::to_string(count) + " threads");
        }
    }
}

// More callers than threads, each with its own operands.
void test_callers(const Case& c) {
    const auto ring = ring_of(c, default_path());
    const Operands operands(*ring);
    set_threads(2);
    const std::vector<u64> expected = everything(operands);
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) callers.emplace_back([&] { check(everything(operands) == expected, "several callers"); });
    for (std::thread& caller : callers) caller.join();
}

// Never more units at once than threads, over all calls; and as many where one call has many units.
void test_turns() {
    for (const int limit : {1, 2, 3}) {
        set_threads(limit);
        std::atomic<int> running{0}, most{0}, done{0};
        const auto call = [&] {
            for (int loop = 0; loop < 50; ++loop) {
                Task task;
                const Turn turn(task);
                parallel_for(20, task, [&](std::size_t) {
                    const int now = ++running;
                    for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {}
                    std::this_thread::sleep_for(std::chrono::microseconds(20));
                    --running;
                    ++done;
                });
            }
        };
        std::vector<std::thread> callers;
        for (int i = 0; i < 5; ++i) callers.emplace_back(call);
        for (std::thread& caller : callers) caller.join();
        check(most == limit && done == 5 * 50 * 20, "several calls on " + std::to_string(limit) + " threads");
        most = done = 0;
        for (int attempt = 0; attempt < 20 && most < limit; ++attempt) call();
        check(most == limit, "one call on " + std::to_string(limit) + " threads");
    }
}

// Stopped after any number of units, by the task and by its poll.
void test_cancelled(const Case& c) {
    const auto ring = ring_of(c, default_path());
    const Operands operands(*ring);
    const Transform transform = transform_of(operands, kShapes[0]);
    for (std::uint64_t after = 0; after < 60; after += 3) {
        Task task;
        std::atomic<bool> done{false};
        std::thread other([&] {
            while (task.progress() < after && !done) std::this_thread::yield();
            task.cancel();
        });
        try {
            Turn turn(task);
            Counts counts;
            transform.run(operands.inputs, operands.keys, counts, task);
        } catch (const Cancelled&) {
        }
        done = true;
        other.join();
        refuses<Cancelled>([&] { add(*ring, *operands.inputs[0], *operands.inputs[1], task); }, "a cancelled task");
    }
    int polls = 0;
    Task task([&] {
        if (++polls == 2) throw std::length_error("enough");
    });
    refuses<std::length_error>([&] { for (;;) everything(operands), task.check(); }, "a poll that throws");
}

void test_refusals() {
    const auto ring = ring_of(kCases[0], Path::portable);
    const Operands good(*ring);
    Task task;
    Turn turn(task);
    for (const Case& c : {kCases[1], kCases[3], kCases[5]}) {
        const auto other = ring_of(c, Path::portable);
        const Operands bad(*other);
        using Bad = std::invalid_argument;
        const Ciphertext& x = *good.inputs[0];
        refuses<Bad>([&] { add(*ring, x, *bad.inputs[0], task); }, "another ring's ciphertext");
        refuses<Bad>([&] { mul_plain(*ring, x, *bad.plaintexts[1], task); }, "another ring's plaintext");
        refuses<Bad>([&] { apply_galois(*ring, x, 3, *bad.keys.at(3), task); }, "another ring's key");
        Counts counts;
        const Transform transform = transform_of(good, kShapes[0]);
        refuses<Bad>([&] { transform.run(bad.inputs, good.keys, counts, task); }, "another ring's inputs");
        refuses<Bad>([&] { transform.run(good.inputs, bad.keys, counts, task); }, "another ring's keys");
        refuses<Bad>([&] { Transform(*ring, 3, 1, 1, {{0, 1}}, {{0, 1}}, {{0, 0, 0}}, bad.plaintexts); }, "its plaintexts");
    }
}

}  // namespace

int main() {
    for (const Case& c : kCases) test_paths(c);
    test_callers(kCases[0]);
    test_callers(kCases[5]);
    test_turns();
    test_cancelled(kCases[5]);
    test_refusals();
    if (failures == 0) std::printf("all agree\n");
    return failures == 0 ? 0 : 1;
}
