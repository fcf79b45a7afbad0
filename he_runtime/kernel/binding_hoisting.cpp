// Hoisted rotations in Python, and how fast their keys can be read at all.

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "binding.hpp"
#include "hoisting.hpp"
#include "reading.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace secateur;

namespace {

std::vector<Cipher> rotate_all(const Ring& ring, const Ciphertext& x, const std::vector<u64>& elements,
                               const std::map<u64, std::shared_ptr<SwitchKey>>& keys, Task& task) {
    const std::map<u64, std::shared_ptr<const SwitchKey>> constant(keys.begin(), keys.end());
    const nb::gil_scoped_release release;
    const Turn turn(task);
    return rotate_hoisted(ring, x, elements, constant, task);
}

u64 read_keys(const Ring& ring, const std::vector<std::shared_ptr<SwitchKey>>& keys) {
    for (const auto& key : keys) {
        if (key == nullptr) throw nb::value_error("cannot read keys: got none");
    }
    const nb::gil_scoped_release release;
    const Turn turn;
    u64 total = 0;
    for (const auto& key : keys) total += sum_words(key->words(0, 0), key->bytes() / sizeof(u64), ring.path());
    return total;
}

}  // namespace

void bind_hoisting(nb::module_& module) {
    module.def("rotate_hoisted", &rotate_all, "ring"_a, "x"_a, "elements"_a, "keys"_a, "task"_a,
               "One ciphertext per Galois element; the operand is cut into digits once for all.");
    module.def("read_bandwidth", &read_keys, "ring"_a, "keys"_a,
               "Reads every word of the keys once, on one thread, and returns their sum modulo 2^64.");
}
