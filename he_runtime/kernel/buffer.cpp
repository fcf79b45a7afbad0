#include "buffer.hpp"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace secateur {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kLargePage = std::size_t{2} << 20;
constexpr std::size_t kMostCached = std::size_t{256} << 20;

struct Cache {
    std::mutex mutex;
    std::map<std::size_t, std::vector<u64*>> freed;  // by words
    std::size_t bytes = 0;
};

Cache& cache() {
    static Cache* instance = new Cache;  // buffers of Python objects may be freed after statics
    // A child must not find the lock held by a thread that it does not have.
    static const int registered = pthread_atfork([] { instance->mutex.lock(); }, [] { instance->mutex.unlock(); },
                                                 [] { instance->mutex.unlock(); });
    (void)registered;
    return *instance;
}

u64* fresh(std::size_t words) {
    const std::size_t bytes = words * sizeof(u64);
    const std::size_t alignment = bytes >= 4 * kLargePage ? kLargePage : bytes >= 8 * kPage ? kPage : kLine;
    void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (p == nullptr) throw std::bad_alloc();
    // A hint only: long streams of keys and operands then miss fewer translations.
    if (alignment == kLargePage) madvise(p, bytes, MADV_HUGEPAGE);
    return static_cast<u64*>(p);
}

}  // namespace

Buffer::Buffer(std::size_t words) : size_(words) {
    if (words == 0) return;
    {
        Cache& kept = cache();
        const std::lock_guard<std::mutex> lock(kept.mutex);
        const auto found = kept.freed.find(words);
        if (found != kept.freed.end() && !found->second.empty()) {
            words_ = found->second.back();
            found->second.pop_back();
            kept.bytes -= words * sizeof(u64);
            return;
        }
    }
    words_ = fresh(words);
}

Buffer::~Buffer() {
    if (words_ == nullptr) return;
    Cache& kept = cache();
    {
        const std::lock_guard<std::mutex> lock(kept.mutex);
        if (kept.bytes + size_ * sizeof(u64) <= kMostCached) {
            kept.freed[size_].push_back(words_);
            kept.bytes += size_ * sizeof(u64);
            return;
        }
    }
    std::free(words_);
}

std::size_t cached_bytes() {
    const std::lock_guard<std::mutex> lock(cache().mutex);
    return cache().bytes;
}

void release_cached() {
    const std::lock_guard<std::mutex> lock(cache().mutex);
    for (auto& [words, pointers] : cache().freed) {
        for (u64* p : pointers) std::free(p);
        pointers.clear();
    }
    cache().bytes = 0;
}

}  // namespace secateur
