// The evaluator in Python. Shapes, types and residues of what comes in are checked here; the interpreter's lock is
// released and a turn taken for every call that computes.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

#include "binding.hpp"
#include "transform.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace secateur;

namespace {

using Residues = nb::ndarray<nb::numpy, nb::ro>;
using Cells = nb::ndarray<const std::int64_t, nb::numpy, nb::ndim<2>, nb::c_contig>;
using Integers = nb::ndarray<const double, nb::numpy, nb::ndim<1>, nb::c_contig>;

// Without the interpreter's lock, and with a turn.
struct Computing {
    explicit Computing(Task& task) : turn(task) {}

    nb::gil_scoped_release release;
    Turn turn;
};

// (rows, n) residues, each below its prime.
const u64* checked(const Residues& array, std::size_t n, const std::vector<const Ntt*>& primes) {
    const auto fail = [](const std::string& got) { throw nb::value_error(("cannot use residues: got " + got).c_str()); };
    if (array.dtype() != nb::dtype<u64>()) fail("another element type than uint64");
    if (array.ndim() != 2 || array.shape(0) != primes.size() || array.shape(1) != n) {
        fail("another shape than (" + std::to_string(primes.size()) + ", " + std::to_string(n) + ")");
    }
    if (array.stride(1) != 1 || (primes.size() > 1 && array.stride(0) != static_cast<std::int64_t>(n))) fail("a strided array");
    const u64* words = static_cast<const u64*>(array.data());
    for (std::size_t r = 0; r < primes.size(); ++r) {
        if (!primes[r]->kernel().all_below(words + r * n, n, primes[r]->modulus().value)) fail("a value that is not below its prime");
    }
    return words;
}

std::size_t checked_level(const Ring& ring, std::size_t level) {
    if (level > ring.max_level()) throw nb::value_error("cannot use this level: the ring has fewer primes");
    return level;
}

std::vector<const Ntt*> rows_of(const Ring& ring, std::size_t level, bool extended) {
    std::vector<const Ntt*> found;
    for (std::size_t r = 0; r < (extended ? ring.extended_rows(level) : level + 1); ++r) found.push_back(&ring.extended(level, r));
    return found;
}

Cipher upload(const Ring& ring, std::size_t level, const std::vector<Residues>& polys) {
    checked_level(ring, level);
    if (polys.size() < 2 || polys.size() > 3) throw nb::value_error("cannot use a ciphertext: need two or three polynomials");
    auto out = std::make_shared<Ciphertext>(ring, level, polys.size());
    const auto primes = rows_of(ring, level, false);
    for (std::size_t p = 0; p < polys.size(); ++p) {
        std::memcpy(out->row(p, 0), checked(polys[p], ring.degree(), primes), (level + 1) * ring.degree() * sizeof(u64));
    }
    return out;
}

void download(const Ciphertext& x, nb::ndarray<u64, nb::numpy, nb::ndim<3>, nb::c_contig> dst) {
    if (dst.shape(0) != x.size || dst.shape(1) != x.level + 1 || dst.shape(2) != x.n) {
        throw nb::value_error("cannot download: need an array (polynomials, level + 1, n)");
    }
    std::memcpy(dst.data(), x.row(0, 0), x.words.size() * sizeof(u64));
}

std::shared_ptr<SwitchKey> make_key(const Ring& ring, std::size_t level, u64 element, const std::vector<std::pair<Residues, Residues>>& digits) {
    checked_level(ring, level);
    if (digits.size() != ring.digits(level)) {
        throw nb::value_error(("cannot use a key: got " + std::to_string(digits.size()) + " digits, need " +
                               std::to_string(ring.digits(level))).c_str());
    }
    const auto primes = rows_of(ring, level, true);
    auto key = std::make_shared<SwitchKey>(ring, level, element);
    for (std::size_t d = 0; d < digits.size(); ++d) {
        for (int poly = 0; poly < 2; ++poly) {
            const u64* words = checked(poly == 0 ? digits[d].first : digits[d].second, ring.degree(), primes);
            for (std::size_t r = 0; r < primes.size(); ++r) key->set(ring, d, poly, r, words + r * ring.degree());
        }
    }
    return key;
}

std::shared_ptr<Plaintext> encode(const Ring& ring, std::size_t level, bool extended, Integers coefficients, bool compact) {
    checked_level(ring, level);
    const std::size_t count = coefficients.shape(0);
    if (count == 0 || ring.degree() % count != 0) throw nb::value_error("cannot encode: need a number of coefficients that divides n");
    const double* values = coefficients.data();
    for (std::size_t i = 0; i < count; ++i) {
        if (!(values[i] == std::nearbyint(values[i])) || std::isinf(values[i])) throw nb::value_error("cannot encode: need whole numbers");
    }
    nb::gil_scoped_release release;
    return std::make_shared<Plaintext>(compact ? Plaintext::compact(ring, level, extended, values, count)
                                               : Plaintext::rows(ring, level, extended, values, count));
}

std::shared_ptr<Plaintext> constant(const Ring& ring, std::size_t level, bool extended, const std::vector<u64>& residues) {
    const auto primes = rows_of(ring, checked_level(ring, level), extended);
    if (residues.size() != primes.size()) throw nb::value_error("cannot encode a constant: need a residue for every row");
    for (std::size_t r = 0; r < primes.size(); ++r) {
        if (residues[r] >= primes[r]->modulus().value) throw nb::value_error("cannot encode a constant: need residues below their primes");
    }
    return std::make_shared<Plaintext>(Plaintext::constant(ring, level, extended, residues));
}

std::shared_ptr<Plaintext> borrow(const Ring& ring, std::size_t level, bool extended, const Residues& residues) {
    const u64* words = checked(residues, ring.degree(), rows_of(ring, checked_level(ring, level), extended));
    if (reinterpret_cast<std::uintptr_t>(words) % 64 != 0) throw nb::value_error("cannot borrow residues: need a start on a cache line");
    return std::make_shared<Plaintext>(Plaintext::borrowed(ring, level, extended, words));
}

void residues(const Ring& ring, const Plaintext& plain, nb::ndarray<u64, nb::numpy, nb::ndim<2>, nb::c_contig> dst) {
    if (!ring.made(plain.chain())) throw nb::value_error("cannot read residues: need a plaintext of this ring");
    const auto primes = rows_of(ring, plain.level(), plain.extended());
    if (dst.shape(0) != primes.size() || dst.shape(1) != ring.degree()) throw nb::value_error("cannot read residues: need an array (rows, n)");
    nb::gil_scoped_release release;
    for (std::size_t r = 0; r < primes.size(); ++r) plain.expand(dst.data() + r * ring.degree(), r, *primes[r]);
}

using Pairs = std::vector<std::pair<std::size_t, u64>>;

std::shared_ptr<Transform> make_transform(const Ring& ring, std::size_t level, std::size_t inputs, std::size_t outputs,
                                          const Pairs& babies, const Pairs& groups, Cells cells,
                                          const std::vector<std::shared_ptr<Plaintext>>& plaintexts) {
    if (cells.shape(1) != 3) throw nb::value_error("cannot make a linear transform: need cells (group, baby, plaintext)");
    std::vector<Baby> left;
    for (const auto& [input, element] : babies) left.push_back({input, element});
    std::vector<Group> right;
    for (const auto& [output, element] : groups) right.push_back({output, element});
    std::vector<Cell> each;
    for (std::size_t c = 0; c < cells.shape(0); ++c) {
        const std::int64_t* cell = cells.data() + 3 * c;
        if (cell[0] < 0 || cell[1] < 0 || cell[2] < 0) throw nb::value_error("cannot make a linear transform: got a negative index");
        each.push_back({static_cast<std::size_t>(cell[0]), static_cast<std::size_t>(cell[1]), static_cast<std::size_t>(cell[2])});
    }
    return std::make_shared<Transform>(ring, level, inputs, outputs, std::move(left), std::move(right), std::move(each),
                                       std::vector<std::shared_ptr<const Plaintext>>(plaintexts.begin(), plaintexts.end()));
}

using Found = std::map<std::string, std::uint64_t>;

std::pair<std::vector<Cipher>, Found> run(const Transform& transform, const std::vector<Cipher>& inputs,
                                          const std::map<u64, std::shared_ptr<SwitchKey>>& keys, Task& task) {
    const Transform::Keys constant(keys.begin(), keys.end());
    Counts counts;
    std::vector<Cipher> outputs;
    {
        const Computing computing(task);
        outputs = transform.run(inputs, constant, counts, task);
    }
    return {outputs, Found{{"decompositions", counts.decompositions}, {"hoisted_words", counts.hoisted_words},
                           {"product_words", counts.product_words}, {"skipped_words", counts.skipped_words},
                           {"giant_words", counts.giant_words}, {"divisions", counts.divisions},
                           {"decompose_ns", counts.decompose_ns}, {"hoisted_ns", counts.hoisted_ns},
                           {"product_ns", counts.product_ns}, {"giant_ns", counts.giant_ns},
                           {"divide_ns", counts.divide_ns}}};
}

template <class Result, class... Arguments>
auto computing(Result (*function)(Arguments...)) {
    return [function](Arguments... arguments) {
        const Computing computing(std::get<sizeof...(Arguments) - 1>(std::tie(arguments...)));
        return function(arguments...);
    };
}

}  // namespace

void bind_evaluator(nb::module_& module) {
    module.def("threads", &threads, "Threads that may compute at once, over all calls of the process.");
    module.def("set_threads", &set_threads, "count"_a);
    module.def("cached_bytes", &cached_bytes, "Bytes of freed polynomials that are kept for reuse.");
    module.def("release_cached", &release_cached, "Give them back.");

    nb::class_<Task>(module, "Task", "One call: its progress, and how to stop it.")
        .def("__init__", [](Task* self, nb::object poll) {
            if (poll.is_none()) {
                new (self) Task();
            } else {
                new (self) Task([poll = nb::cast<nb::callable>(poll)] {
                    nb::gil_scoped_acquire acquire;
                    poll();
                });
            }
        }, "poll"_a = nb::none(), "`poll` is called every few milliseconds by the thread that computes; if it raises, the call stops.")
        .def("cancel", &Task::cancel)
        .def_prop_ro("progress", &Task::progress, "Units of work done.");

    nb::class_<Ring>(module, "Ring", "The tables of one parameter set; `alpha` primes make a digit.")
        .def("__init__", [](Ring* self, std::size_t n, const std::vector<u64>& primes, const std::vector<u64>& special,
                            std::size_t alpha, const std::string& path) {
            new (self) Ring(n, primes, special, alpha, path_named(path));
        }, "n"_a, "primes"_a, "special"_a, "alpha"_a, "path"_a)
        .def_prop_ro("path", [](const Ring& ring) { return std::string(path_name(ring.path())); });

    nb::class_<Ciphertext>(module, "Ciphertext")
        .def_prop_ro("level", [](const Ciphertext& x) { return x.level; })
        .def_prop_ro("size", [](const Ciphertext& x) { return x.size; });
    nb::class_<SwitchKey>(module, "SwitchKey")
        .def_prop_ro("level", &SwitchKey::level)
        .def_prop_ro("bytes", &SwitchKey::bytes);
    nb::class_<Plaintext>(module, "Plaintext")
        .def_prop_ro("level", &Plaintext::level)
        .def_prop_ro("extended", &Plaintext::extended)
        .def_prop_ro("bytes", &Plaintext::bytes);

    module.def("upload", &upload, "ring"_a, "level"_a, "polys"_a, "Polynomials (level + 1, n) in evaluation form.");
    module.def("download", &download, "x"_a, "dst"_a.noconvert(), "Fills (polynomials, level + 1, n).");
    module.def("make_key", &make_key, "ring"_a, "level"_a, "element"_a, "digits"_a);
    module.def("encode", &encode, "ring"_a, "level"_a, "extended"_a, "coefficients"_a.noconvert(), "compact"_a);
    module.def("constant", &constant, "ring"_a, "level"_a, "extended"_a, "residues"_a);

    module.def("borrow", &borrow, "ring"_a, "level"_a, "extended"_a, "residues"_a.noconvert(), nb::keep_alive<0, 4>(),
               "An operand that reads (rows, n) residues where they are; they must not change while it lives.");
    module.def("residues", &residues, "ring"_a, "plain"_a, "dst"_a.noconvert(), "Fills (rows, n).");

    module.def("add", computing(&add), "ring"_a, "x"_a, "y"_a, "task"_a);
    module.def("add_plain", computing(&add_plain), "ring"_a, "x"_a, "plain"_a, "task"_a);
    module.def("mul_plain", computing(&mul_plain), "ring"_a, "x"_a, "plain"_a, "task"_a);
    module.def("mul", computing(&multiply), "ring"_a, "x"_a, "y"_a, "task"_a);
    module.def("square", computing(&square), "ring"_a, "x"_a, "task"_a);
    module.def("relinearize", computing(&relinearize), "ring"_a, "x"_a, "key"_a, "task"_a);
    module.def("rescale", computing(&rescale), "ring"_a, "x"_a, "task"_a);
    module.def("mod_switch", computing(&mod_switch), "ring"_a, "x"_a, "task"_a);
    module.def("apply_galois", computing(&apply_galois), "ring"_a, "x"_a, "element"_a, "key"_a, "task"_a);

    nb::class_<Transform>(module, "Transform")
        .def_static("make", &make_transform, "ring"_a, "level"_a, "inputs"_a, "outputs"_a, "babies"_a, "groups"_a, "cells"_a.noconvert(),
                    "plaintexts"_a, nb::keep_alive<0, 1>())
        .def("run", &run, "inputs"_a, "keys"_a, "task"_a);
}
