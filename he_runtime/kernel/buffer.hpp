// Words for polynomials, kept for reuse: fresh pages from the operating system cost as much as an operation on them.
#pragma once

#include <cstddef>
#include <utility>

#include "modulus.hpp"

namespace secateur {

// Uninitialized words that start on a cache line, polynomials on a page, and on a large page where there are enough for one.
// Movable only.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(std::size_t words);
    ~Buffer();
    Buffer(Buffer&& other) noexcept : words_(std::exchange(other.words_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(words_, other.words_);
        std::swap(size_, other.size_);
        return *this;
    }

    u64* data() { return words_; }
    const u64* data() const { return words_; }
    std::size_t size() const { return size_; }

  private:
    u64* words_ = nullptr;
    std::size_t size_ = 0;
};

// Bytes of freed buffers that are kept, and a way to give them back.
std::size_t cached_bytes();
void release_cached();

}  // namespace secateur
