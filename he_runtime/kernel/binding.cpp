// Python module _kernel: the ring arithmetic on NumPy arrays, for tests and benchmarks. Every length, type and range is
// checked here, because the routines behind trust their callers; the interpreter's lock is released around them.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "binding.hpp"
#include "galois.hpp"
#include "ntt.hpp"

namespace nb = nanobind;
using namespace secateur;

Path path_named(const std::string& name) {
    for (const Path path : {Path::portable, Path::avx2, Path::ifma}) {
        if (name == path_name(path)) {
            if (path_available(path)) return path;
            throw nb::value_error(("cannot use path " + name + ": this machine lacks its instructions").c_str());
        }
    }
    throw nb::value_error(("cannot use path " + name + ": need portable, avx2 or ifma").c_str());
}

namespace {

// nanobind refuses other types, strides and dimensions with TypeError before we see them; the binding asks for any
// array instead and says itself, with ValueError, what is wrong.
using AnyArray = nb::ndarray<nb::numpy>;
using AnyReadOnly = nb::ndarray<nb::numpy, nb::ro>;

template <class Array>
void check_array(const Array& array, std::size_t n, const char* name) {
    const auto fail = [name](const std::string& got, const std::string& need) {
        throw nb::value_error(("cannot use array '" + std::string(name) + "': got " + got + ", need " + need).c_str());
    };
    if (array.dtype() != nb::dtype<u64>()) fail("another element type", "uint64");
    if (array.ndim() != 1) fail(std::to_string(array.ndim()) + " dimensions", "1");
    if (array.shape(0) > 1 && array.stride(0) != 1) fail("a strided array", "a contiguous one");
    if (n % 8 != 0) fail("length " + std::to_string(n), "a multiple of 8");
    if (array.shape(0) != n) fail("length " + std::to_string(array.shape(0)), std::to_string(n));
}

u64* output(const AnyArray& array, std::size_t n, const char* name = "dst") {
    check_array(array, n, name);
    return static_cast<u64*>(array.data());
}

const u64* input(const AnyReadOnly& array, std::size_t n, u64 q, const char* name, const Kernel& kernel) {
    check_array(array, n, name);
    const u64* p = static_cast<const u64*>(array.data());
    if (!kernel.all_below(p, n, q)) {
        throw nb::value_error(
            ("cannot use array '" + std::string(name) + "': a value is not below " + std::to_string(q)).c_str());
    }
    return p;
}

// The same array or none of it in common.
void check_overlap(const u64* dst, const u64* src, std::size_t n, bool same_allowed) {
    if (dst == src && same_allowed) return;
    if (dst < src + n && src < dst + n) throw nb::value_error("cannot use overlapping arrays; try separate ones");
}

std::size_t length_of(const AnyArray& array) { return array.ndim() == 1 ? array.shape(0) : 0; }

// One prime and the routines for it.
struct Field {
    Field(u64 q, const std::string& path) : modulus(make_modulus(q)), kernel(kernel_for(path_named(path), modulus)) {}

    using Binary = void (*Kernel::*)(u64*, const u64*, const u64*, std::size_t, const Modulus&);

    void binary(Binary operation, AnyArray dst, AnyReadOnly a, AnyReadOnly b) const {
        const std::size_t n = length_of(dst);
        u64* out = output(dst, n);
        const u64* x = input(a, n, modulus.value, "a", kernel);
        const u64* y = input(b, n, modulus.value, "b", kernel);
        check_overlap(out, x, n, true);
        check_overlap(out, y, n, true);
        nb::gil_scoped_release release;
        (kernel.*operation)(out, x, y, n, modulus);
    }

    void negate(AnyArray dst, AnyReadOnly a) const {
        const std::size_t n = length_of(dst);
        u64* out = output(dst, n);
        const u64* x = input(a, n, modulus.value, "a", kernel);
        check_overlap(out, x, n, true);
        nb::gil_scoped_release release;
        kernel.negate(out, x, n, modulus);
    }

    void multiply_constant(AnyArray dst, AnyReadOnly a, u64 w) const {
        const std::size_t n = length_of(dst);
        u64* out = output(dst, n);
        const u64* x = input(a, n, modulus.value, "a", kernel);
        check_overlap(out, x, n, true);
        const Factor factor = checked_factor(w);
        nb::gil_scoped_release release;
        kernel.multiply_constant(out, x, factor, n, modulus);
    }

    using Arrays = std::vector<AnyReadOnly>;

    // Checked pointers to operands that must not overlap the results.
    std::vector<const u64*> operands(const Arrays& arrays, std::size_t n, u64 limit, const char* name,
                                     std::initializer_list<const u64*> results) const {
        std::vector<const u64*> pointers;
        for (const AnyReadOnly& array : arrays) {
            pointers.push_back(input(array, n, limit, name, kernel));
            for (const u64* result : results) check_overlap(result, pointers.back(), n, false);
        }
        return pointers;
    }

    u64* sum(AnyArray& dst, std::size_t n, bool accumulate) const {
        if (accumulate) input(AnyReadOnly(dst), n, modulus.value, "dst", kernel);
        return output(dst, n);
    }

    static void check_counts(std::size_t left, std::size_t right) {
        if (left != right) throw nb::value_error("cannot multiply lists of different lengths");
    }

    void dot(AnyArray dst, const Arrays& a, const Arrays& b, bool accumulate) const {
        const std::size_t n = length_of(dst);
        u64* out = sum(dst, n, accumulate);
        check_counts(a.size(), b.size());
        const auto left = operands(a, n, modulus.value, "a", {out});
        const auto right = operands(b, n, modulus.value, "b", {out});
        nb::gil_scoped_release release;
        kernel.dot(out, left.data(), right.data(), left.size(), accumulate, n, modulus);
    }

    void dot_pair(AnyArray dst0, AnyArray dst1, const Arrays& a, const Arrays& b0, const Arrays& b1,
                  bool accumulate) const {
        const std::size_t n = length_of(dst0);
        u64* out0 = sum(dst0, n, accumulate);
        u64* out1 = sum(dst1, n, accumulate);
        check_overlap(out0, out1, n, false);
        check_counts(a.size(), b0.size());
        check_counts(a.size(), b1.size());
        const auto left = operands(a, n, modulus.value, "a", {out0, out1});
        const auto right0 = operands(b0, n, modulus.value, "b0", {out0, out1});
        const auto right1 = operands(b1, n, modulus.value, "b1", {out0, out1});
        nb::gil_scoped_release release;
        kernel.dot_pair(out0, out1, left.data(), right0.data(), right1.data(), left.size(), accumulate, n, modulus);
    }

    void dot_constants(AnyArray dst, const Arrays& a, const std::vector<u64>& w, bool accumulate) const {
        const std::size_t n = length_of(dst);
        u64* out = sum(dst, n, accumulate);
        check_counts(a.size(), w.size());
        const auto left = operands(a, n, u64{1} << (&kernel == &portable_kernel ? kMaxBits : kNarrowBits), "a", {out});
        for (const u64 factor : w) checked_factor(factor);
        nb::gil_scoped_release release;
        kernel.dot_constants(out, left.data(), w.data(), left.size(), accumulate, n, modulus);
    }

    Factor checked_factor(u64 w) const {
        if (w >= modulus.value) throw nb::value_error("cannot use constant: need one below the modulus");
        return make_factor(w, modulus);
    }

    void sub_multiply_constant(AnyArray dst, AnyReadOnly a, AnyReadOnly b, u64 w) const {
        const std::size_t n = length_of(dst);
        u64* out = output(dst, n);
        const u64* x = input(a, n, modulus.value, "a", kernel);
        const u64* y = input(b, n, modulus.value, "b", kernel);
        check_overlap(out, x, n, true);
        check_overlap(out, y, n, true);
        const Factor factor = checked_factor(w);
        nb::gil_scoped_release release;
        kernel.sub_multiply_constant(out, x, y, factor, n, modulus);
    }

    void convert(AnyArray dst, AnyReadOnly a, u64 from) const {
        const std::size_t n = length_of(dst);
        u64* out = output(dst, n);
        const Modulus source = make_modulus(from);
        const u64* x = input(a, n, from, "a", kernel);
        check_overlap(out, x, n, true);
        nb::gil_scoped_release release;
        kernel.convert(out, x, n, source, modulus);
    }

    Modulus modulus;
    const Kernel& kernel;
};

void transform(const Ntt& ntt, AnyArray dst, AnyReadOnly src, bool inverse) {
    u64* out = output(dst, ntt.degree());
    const u64 limit = inverse ? ntt.modulus().value : 4 * ntt.modulus().value;
    const u64* in = input(src, ntt.degree(), limit, "src", ntt.kernel());
    check_overlap(out, in, ntt.degree(), true);
    nb::gil_scoped_release release;
    inverse ? ntt.inverse(out, in) : ntt.forward(out, in);
}

void permute(const Galois& galois, AnyArray dst, AnyReadOnly src, const std::string& path) {
    const std::size_t n = galois.table().n;
    u64* out = output(dst, n);
    check_array(src, n, "src");
    const u64* in = static_cast<const u64*>(src.data());
    check_overlap(out, in, n, false);
    const Kernel& kernel = kernel_of(path_named(path));
    nb::gil_scoped_release release;
    kernel.permute(out, in, 0, galois.table(), 0, n);
}

void blake2xb_nodes(AnyArray dst, AnyReadOnly roots, const std::string& path) {
    const std::size_t words = roots.size();
    check_array(roots, words, "roots");
    if (words % 8 != 0) throw nb::value_error("cannot expand: need 8 words a root");
    u64* out = output(dst, 64 * words);
    const u64* in = static_cast<const u64*>(roots.data());
    if (in < out + 64 * words && out < in + words) throw nb::value_error("cannot use overlapping arrays; try separate ones");
    const Kernel& kernel = kernel_of(path_named(path));
    nb::gil_scoped_release release;
    kernel.blake2xb_nodes(out, in, words / 8);
}

}  // namespace

NB_MODULE(_kernel, module) {
    bind_evaluator(module);
    bind_hoisting(module);
    module.def("paths", [] {
        std::vector<std::string> names;
        for (const Path path : {Path::portable, Path::avx2, Path::ifma}) {
            if (path_available(path)) names.emplace_back(path_name(path));
        }
        return names;
    }, "The paths that this machine can run, slowest first.");
    module.def("default_path", [] { return std::string(path_name(default_path())); },
               "The path of this process; SECATEUR_KERNEL forces one. Raises RuntimeError if that is unavailable.");

    module.def("blake2xb_nodes", &blake2xb_nodes, nb::arg("dst"), nb::arg("roots"), nb::arg("path"),
               "BLAKE2Xb on one path: each root digest of 8 words to 512, for seeds of public polynomials.");

    nb::class_<Ntt>(module, "Ntt", "Transforms of length n modulo the prime q on one path.")
        .def("__init__", [](Ntt* self, std::size_t n, u64 q, const std::string& path) {
            new (self) Ntt(n, make_modulus(q), path_named(path));
        }, nb::arg("n"), nb::arg("q"), nb::arg("path"))
        .def_prop_ro("root", &Ntt::root, "The least primitive 2n-th root of unity.")
        .def_prop_ro("path", [](const Ntt& ntt) { return std::string(ntt.kernel().name); })
        .def("forward", [](const Ntt& ntt, AnyArray dst, AnyReadOnly src) { transform(ntt, dst, src, false); },
             nb::arg("dst"), nb::arg("src"), "Coefficients, below 4q, to values in bit-reversed order; dst may be src.")
        .def("inverse", [](const Ntt& ntt, AnyArray dst, AnyReadOnly src) { transform(ntt, dst, src, true); },
             nb::arg("dst"), nb::arg("src"), "Values in bit-reversed order to coefficients; dst may be src.");

    nb::class_<Field>(module, "Field", "Elementwise operations modulo the prime q on one path.")
        .def(nb::init<u64, const std::string&>(), nb::arg("q"), nb::arg("path"))
        .def_prop_ro("path", [](const Field& field) { return std::string(field.kernel.name); })
        .def("add", [](const Field& f, AnyArray dst, AnyReadOnly a, AnyReadOnly b) { f.binary(&Kernel::add, dst, a, b); },
             nb::arg("dst"), nb::arg("a"), nb::arg("b"))
        .def("sub", [](const Field& f, AnyArray dst, AnyReadOnly a, AnyReadOnly b) { f.binary(&Kernel::sub, dst, a, b); },
             nb::arg("dst"), nb::arg("a"), nb::arg("b"))
        .def("multiply",
             [](const Field& f, AnyArray dst, AnyReadOnly a, AnyReadOnly b) { f.binary(&Kernel::multiply, dst, a, b); },
             nb::arg("dst"), nb::arg("a"), nb::arg("b"))
        .def("negate", &Field::negate, nb::arg("dst"), nb::arg("a"))
        .def("multiply_constant", &Field::multiply_constant, nb::arg("dst"), nb::arg("a"), nb::arg("w"))
        .def("sub_multiply_constant", &Field::sub_multiply_constant, nb::arg("dst"), nb::arg("a"), nb::arg("b"),
             nb::arg("w"), "(a - b) * w.")
        .def("dot_constants", &Field::dot_constants, nb::arg("dst"), nb::arg("a"), nb::arg("w"),
             nb::arg("accumulate") = false, "dst (or 0) + sum of a[k] * w[k]; a[k] may be residues of other primes.")
        .def("dot", &Field::dot, nb::arg("dst"), nb::arg("a"), nb::arg("b"), nb::arg("accumulate") = false,
             "dst (or 0) + sum of a[k] * b[k].")
        .def("dot_pair", &Field::dot_pair, nb::arg("dst0"), nb::arg("dst1"), nb::arg("a"), nb::arg("b0"), nb::arg("b1"),
             nb::arg("accumulate") = false, "Two sums with the same left operands.")
        .def("convert", &Field::convert, nb::arg("dst"), nb::arg("a"), nb::arg("from_q"),
             "Residues modulo another prime, as integers, reduced modulo this one.");

    nb::class_<Galois>(module, "Galois", "The automorphism X -> X^element on values in evaluation order.")
        .def(nb::init<std::size_t, u64>(), nb::arg("n"), nb::arg("element"))
        .def("permute", &permute, nb::arg("dst"), nb::arg("src"), nb::arg("path"));
}
