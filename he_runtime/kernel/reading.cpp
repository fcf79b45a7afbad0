#include "reading.hpp"

namespace secateur {
namespace {

// Enough independent sums that the loop waits for memory, never for an addition. Inlined into functions of different
// instruction sets, each of which the compiler vectorizes for its own.
static inline __attribute__((always_inline)) u64 sum(const u64* words, std::size_t count) {
    constexpr std::size_t kSums = 64;
    u64 sums[kSums] = {};
    std::size_t i = 0;
    for (; i + kSums <= count; i += kSums) {
        for (std::size_t k = 0; k < kSums; ++k) sums[k] += words[i + k];
    }
    u64 total = 0;
    for (std::size_t k = 0; k < kSums; ++k) total += sums[k];
    for (; i < count; ++i) total += words[i];
    return total;
}

#ifdef SECATEUR_X86
__attribute__((target("avx512f,prefer-vector-width=512"))) u64 sum512(const u64* words, std::size_t count) {
    return sum(words, count);
}
__attribute__((target("avx2"))) u64 sum256(const u64* words, std::size_t count) { return sum(words, count); }
#endif

}  // namespace

u64 sum_words(const u64* words, std::size_t count, Path path) {
#ifdef SECATEUR_X86
    if (path == Path::ifma) return sum512(words, count);
    if (path == Path::avx2) return sum256(words, count);
#endif
    static_cast<void>(path);
    return sum(words, count);
}

}  // namespace secateur
