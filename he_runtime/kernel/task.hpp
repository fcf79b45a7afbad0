// What a long call reports while it runs, and how it is told to stop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <thread>

namespace secateur {

struct Cancelled : std::runtime_error {
    Cancelled() : std::runtime_error("cancelled") {}
};

// One call. Any thread may cancel it or read its progress; `poll` runs on the calling thread only, every few
// milliseconds, and may throw: then the call stops as if cancelled, and the exception leaves it.
class Task {
  public:
    Task() = default;
    explicit Task(std::function<void()> poll) : poll_(std::move(poll)) {}
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;

    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
    bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

    // Units of work done; a unit is a few rows of one ciphertext.
    std::uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
    void advance() { progress_.fetch_add(1, std::memory_order_relaxed); }

    // By the calling thread, before a loop.
    void begin() {
        caller_ = std::this_thread::get_id();
        stopped_.store(false, std::memory_order_relaxed);
        check();
    }

    // The loop that runs has failed on some thread.
    void stop() { stopped_.store(true, std::memory_order_relaxed); }

    // Within a long unit, on any thread: `check` where it may be called. Throws in a loop that failed elsewhere, too.
    void check_within() {
        if (stopped_.load(std::memory_order_relaxed)) throw Cancelled();
        if (std::this_thread::get_id() == caller_) return check();
        if (cancelled()) throw Cancelled();
    }

    // For the calling thread, between two units. Throws Cancelled, or what `poll` throws.
    void check() {
        if (poll_) {
            const auto now = std::chrono::steady_clock::now();
            if (now - last_ >= kInterval) {
                last_ = now;
                poll_();
            }
        }
        if (cancelled()) throw Cancelled();
    }

  private:
    static constexpr std::chrono::milliseconds kInterval{10};

    std::atomic<bool> cancelled_{false}, stopped_{false};
    std::atomic<std::uint64_t> progress_{0};
    std::function<void()> poll_;
    std::thread::id caller_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace secateur
