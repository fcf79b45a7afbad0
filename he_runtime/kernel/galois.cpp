#include "galois.hpp"

#include <stdexcept>
#include <string>

#include "ntt.hpp"

namespace secateur {
namespace {

std::size_t reverse_bits(std::size_t x, int bits) {
    std::size_t result = 0;
    for (int i = 0; i < bits; ++i, x >>= 1) result = result << 1 | (x & 1);
    return result;
}

}  // namespace

// Position i holds the value at psi^(2k+1), k = bitreverse(i); after X -> X^g it holds the one from psi^(g(2k+1)), so
// from exponent index g*k + (g-1)/2 mod n. Eight neighbours share all but the three highest bits of k: their sources
// share all but the three highest bits of the index, so they are one block of eight too, and the order within it depends
// on g and on the highest bits of the first source only.
Galois::Galois(std::size_t n, u64 element) {
    if (n < kMinDegree || n > kMaxDegree || (n & (n - 1)) != 0) {
        throw std::invalid_argument("cannot permute length " + std::to_string(n) +
                                    ": need a power of two in [1024, 65536]");
    }
    if ((element & 1) == 0 || element >= 2 * n) {
        throw std::invalid_argument("cannot use Galois element " + std::to_string(element) +
                                    ": need an odd number below " + std::to_string(2 * n));
    }
    int log = 0;
    while ((std::size_t{1} << log) < n) ++log;
    source_.resize(n / 8 + kGaloisAhead);
    for (std::size_t block = 0; block < n / 8; ++block) {
        const std::size_t k = reverse_bits(8 * block, log);
        const std::size_t index = (element * k + (element - 1) / 2) & (n - 1);
        const std::size_t top = index >> (log - 3);
        source_[block] = static_cast<std::uint32_t>((reverse_bits(index, log) & ~std::size_t{7}) + top);
    }
    for (std::size_t top = 0; top < 8; ++top) {
        for (std::size_t lane = 0; lane < 8; ++lane) {
            table_.lanes[top][lane] = reverse_bits((top + element * reverse_bits(lane, 3)) & 7, 3);
        }
    }
    signs_.resize(n / 8);
    for (std::size_t i = 0; i < n; ++i) signs_[i / 8] |= static_cast<unsigned char>(((element * i & (2 * n - 1)) >= n) << i % 8);
    table_.n = n;
    table_.source = source_.data();
    table_.signs = signs_.data();
}

}  // namespace secateur
