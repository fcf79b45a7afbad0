// The output nodes of BLAKE2Xb (J.-P. Aumasson et al., "BLAKE2X", 2016): what expands a public seed to a polynomial, as
// SEAL's generator cuts its stream. Nodes are hashed side by side, one in each lane of a register. `Lanes` has:
//   Words, kCount              a register of 64-bit words, as the compiler's vectors are, and how many it holds
//   rotate_right<bits>(x)
//
// Included only by the file of one path each; everything is in an unnamed namespace for the reason given in modulus.hpp.
#pragma once

#include <cstddef>

#include "modulus.hpp"

namespace secateur {
namespace {

constexpr std::size_t kNodes = 64;
constexpr u64 kDigestBytes = 64;
constexpr u64 kBlockBytes = 4096;

constexpr u64 kIv[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                        0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

// RFC 7693, section 2.7; rounds 10 and 11 repeat rounds 0 and 1.
constexpr unsigned char kSigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

template <class Lanes>
struct Blake2xb {
    using Words = typename Lanes::Words;

    // Each root digest (8 words) -> 64 nodes of 8 words, 4096 bytes.
    static void nodes(u64* dst, const u64* roots, std::size_t count) {
        for (std::size_t r = 0; r < count; ++r) {
            for (std::size_t node = 0; node < kNodes; node += Lanes::kCount) {
                some_nodes(dst + (r * kNodes + node) * 8, roots + 8 * r, node);
            }
        }
    }

  private:
    static void mix(Words* v, int a, int b, int c, int d, u64 x, u64 y) {
        v[a] += v[b] + x;
        v[d] = Lanes::template rotate_right<32>(v[d] ^ v[a]);
        v[c] += v[d];
        v[b] = Lanes::template rotate_right<24>(v[b] ^ v[c]);
        v[a] += v[b] + y;
        v[d] = Lanes::template rotate_right<16>(v[d] ^ v[a]);
        v[c] += v[d];
        v[b] = Lanes::template rotate_right<63>(v[b] ^ v[c]);
    }

    // BLAKE2b of one last block of 64 bytes, under the parameters of the nodes from `first` on: the root is the message of all.
    static void some_nodes(u64* dst, const u64* root, u64 first) {
        Words h[8], v[16];
        for (int i = 0; i < 8; ++i) h[i] = Words{} + kIv[i];
        h[0] ^= kDigestBytes | kDigestBytes << 32;  // no key, no fanout, no depth; leaves of a digest's length
        for (std::size_t lane = 0; lane < Lanes::kCount; ++lane) h[1][lane] ^= (first + lane) | kBlockBytes << 32;
        h[2] ^= kDigestBytes << 8;
        for (int i = 0; i < 8; ++i) {
            v[i] = h[i];
            v[i + 8] = Words{} + kIv[i];
        }
        v[12] ^= kDigestBytes;
        v[14] = ~v[14];
        u64 m[16] = {};
        for (int i = 0; i < 8; ++i) m[i] = root[i];
        for (int round = 0; round < 12; ++round) {
            const unsigned char* s = kSigma[round % 10];
            mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
            mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
            mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
            mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
            mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
            mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
            mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
            mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
        }
        for (int i = 0; i < 8; ++i) {
            const Words word = h[i] ^ v[i] ^ v[i + 8];
            for (std::size_t lane = 0; lane < Lanes::kCount; ++lane) dst[8 * lane + i] = word[lane];
        }
    }
};

}  // namespace
}  // namespace secateur
