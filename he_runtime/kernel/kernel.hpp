// One set of routines per instruction set, all with the same results bit for bit, and the choice between them.
//
// Every routine takes residues in [0, q), unless it says otherwise, and leaves residues in [0, q); n is a multiple of 8; dst may be the same array
// as a source, but must not overlap one otherwise. Pointers need no alignment; 64 bytes is faster. Lengths and ranges
// are the callers' duty: the binding checks what comes from Python.
#pragma once

#include <cstddef>

#include "modulus.hpp"

namespace secateur {

enum class Path : int { portable = 0, avx2 = 1, ifma = 2 };

// What a transform reads; owned by Ntt (ntt.hpp), laid out for one path. Entry i of a tree of roots is
// psi^bitreverse(i), psi the least primitive 2N-th root of unity: entry 1 is used by the first stage of the forward
// transform, and the halves of block i use entries 2i and 2i + 1.
struct NttTable {
    const Modulus* modulus;
    std::size_t n;
    const u64* roots;     // portable: (root, 64-bit quotient) pairs; ifma: (root, 52-bit quotient), then tail tiles
    const u64* tail;      // ifma: for each 16 residues the roots of the last three stages, in lane order
    const double* waves;  // avx2: (centred root, root / q) pairs, then tail tiles for each 8 residues
    const double* wave_tail;
    Factor scale;         // N^-1
    Factor scale_root;    // N^-1 * inverse root of the last inverse stage
};

// Blocks come from all over a polynomial, so they are fetched this many ahead.
constexpr std::size_t kGaloisAhead = 16;

// The automorphism X -> X^g on values in evaluation order, as SEAL applies it. Eight neighbouring values come from one
// block of eight: source[i] is 8 * (that block) + (row of `lanes` that orders it).
struct GaloisTable {
    std::size_t n;
    const std::uint32_t* source;  // n / 8 entries, and kGaloisAhead more to fetch ahead
    u64 lanes[8][8];
    const unsigned char* signs;   // bit i % 8 of byte i / 8: whether coefficient i changes its sign
};

// How residues modulo one prime become integers, and those values modulo another prime: negative integers get `wrap`, which is
// minus the first prime there. Residues above `half` are negative; or, with `signs`, those that are not zero and whose bit is
// set, as GaloisTable has it. All integers are below 2^62.
struct Lift {
    u64 half, wrap;
    const unsigned char* signs;
};

// What the end of a transform leaves: residues in [0, q), or what gadget_pair of the same path takes for them.
enum class Leave { residues, factors };

// Words to fetch while something is computed, and the start of a block to fetch; either may be null.
struct Ahead {
    const u64* words;
    std::size_t count;
    const u64* block;
};

struct Kernel {
    const char* name;
    // Forward takes values in [0, 4q): residues of another prime of about the same size need no reduction first.
    void (*forward)(u64* dst, const u64* src, const NttTable& table);
    void (*inverse)(u64* dst, const u64* src, const NttTable& table);
    // The forward transform in two parts, so that each block of `block(n)` values can be used as soon as it is ended, while it is
    // in the cache. Begins with a lift, unless that is null; what is lifted must be below 4q. Where block(n) is n nothing is
    // left to end.
    std::size_t (*block)(std::size_t n);
    void (*forward_begin)(u64* dst, const u64* src, const Lift* lift, const NttTable& table);
    // Ends the block at `begin`, and meanwhile asks for what is needed next, for the second-level cache.
    void (*forward_end)(u64* values, std::size_t begin, Leave leave, const NttTable& table, const Ahead& ahead);
    void (*add)(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& m);
    void (*sub)(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& m);
    void (*negate)(u64* dst, const u64* a, std::size_t n, const Modulus& m);
    void (*multiply)(u64* dst, const u64* a, const u64* b, std::size_t n, const Modulus& m);
    void (*multiply_constant)(u64* dst, const u64* a, Factor w, std::size_t n, const Modulus& m);
    // (a - b) * w: the last step of a division by a prime.
    void (*sub_multiply_constant)(u64* dst, const u64* a, const u64* b, Factor w, std::size_t n, const Modulus& m);
    // dst = (accumulate ? dst : 0) + sum over k < count of a[k] * b[k]. dst must not be one of the operands.
    void (*dot)(u64* dst, const u64* const* a, const u64* const* b, std::size_t count, bool accumulate, std::size_t n,
                const Modulus& m);
    // Two such sums with the same left operands, which are read once: an operand times both polynomials of ciphertexts.
    void (*dot_pair)(u64* dst0, u64* dst1, const u64* const* a, const u64* const* b0, const u64* const* b1,
                     std::size_t count, bool accumulate, std::size_t n, const Modulus& m);
    // Two sums of a[k] times a key, whose words come in the order of use, one stream: for every eight residues, for every
    // k, eight words of the first polynomial and eight of the second; from one eight to the next are `stride` words. At
    // most 64 operands, in the form that `a_left` says. As many words as are read of the key are fetched into the second-level
    // cache from `ahead` on, if not null.
    void (*gadget_pair)(u64* dst0, u64* dst1, const u64* const* a, Leave a_left, const u64* key, const u64* ahead,
                        std::size_t stride, std::size_t count, bool accumulate, std::size_t n, const Modulus& m);
    // dst = (accumulate ? dst : 0) + sum of a[k] * w[k], w[k] in [0, q). The a[k] may be residues of other primes, taken
    // as integers: below 2^50 on the vector paths, 2^60 on the portable one. Extends residues to another base.
    void (*dot_constants)(u64* dst, const u64* const* a, const u64* w, std::size_t count, bool accumulate, std::size_t n,
                          const Modulus& m);
    // Residues modulo `from` taken as integers in [0, from) and reduced modulo `to`.
    void (*convert)(u64* dst, const u64* a, std::size_t n, const Modulus& from, const Modulus& to);
    // Whether all n values are below q: what a residue must be before any routine here sees it.
    bool (*all_below)(const u64* a, std::size_t n, u64 q);
    void (*lift)(u64* dst, const u64* src, const Lift& lift, std::size_t n);
    // dst = sum of v[k] * inverse[k], rounded to the nearest integer; the sum is below 2^32. How often a base's product must
    // be taken off a sum of its residues' integers. The same on every path for primes below 2^50.
    void (*round_quotient)(u64* dst, const u64* const* v, const double* inverse, std::size_t count, std::size_t n);
    // Values [begin, begin + count) after the automorphism; multiples of 8. Any 64-bit values. dst must not overlap src, which
    // starts with value `from` of the polynomial and holds all that are needed.
    void (*permute)(u64* dst, const u64* src, std::size_t from, const GaloisTable& table, std::size_t begin, std::size_t count);
    // The output nodes of BLAKE2Xb: each root digest of 8 words to 512. No residues; neither array may overlap the other.
    void (*blake2xb_nodes)(u64* dst, const u64* roots, std::size_t count);
};

extern const Kernel portable_kernel;
#ifdef SECATEUR_X86
extern const Kernel avx2_kernel;
extern const Kernel ifma_kernel;
#endif

const char* path_name(Path path);

// True when this CPU (and this build) can run the path.
bool path_available(Path path);

// The path of this process: SECATEUR_KERNEL if it is set, else the fastest available one. Throws std::runtime_error
// when the variable names a path that does not exist or that this machine lacks.
Path default_path();

// The routines of a path, which must be available.
const Kernel& kernel_of(Path path);

// The routines for one prime on a path: a prime of more than 50 bits always gets the portable ones.
const Kernel& kernel_for(Path path, const Modulus& modulus);

}  // namespace secateur
