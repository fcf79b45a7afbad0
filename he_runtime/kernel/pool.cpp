#include "pool.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace secateur {
namespace {

// Between the loops of one call a helper keeps its turn for a moment: waking a sleeping thread takes longer than a loop.
constexpr auto kLinger = std::chrono::microseconds(60);
// How often a call that waits for its turn polls.
constexpr auto kPatience = std::chrono::milliseconds(10);

thread_local int held = 0;  // turns of this thread

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct Loop {
    const std::function<void(std::size_t)>& unit;
    Task& task;
    std::size_t count;
    std::atomic<std::size_t> next{0};
    std::atomic<int> helpers{0};
    std::atomic<bool> stopped{false};
    std::mutex failing{};
    std::exception_ptr failure{};

    bool open() const { return !stopped.load(std::memory_order_relaxed) && next.load(std::memory_order_relaxed) < count; }

    void fail() {
        {
            const std::lock_guard<std::mutex> lock(failing);
            if (!failure) failure = std::current_exception();
        }
        stopped = true;
        task.stop();
    }

    // `queue` counts the calls that wait for a turn: a helper makes way for them. The caller, with null, works to the end.
    void work(const std::atomic<int>* queue) {
        while (open() && !task.cancelled() && (queue == nullptr || queue->load(std::memory_order_relaxed) == 0)) {
            const std::size_t index = next.fetch_add(1, std::memory_order_relaxed);
            if (index >= count) return;
            try {
                unit(index);
                task.advance();
                if (queue == nullptr) task.check();
            } catch (...) {
                return fail();
            }
        }
    }

    // By the caller, once no helper can join any more: their last units, and polls meanwhile.
    void await_helpers() {
        while (helpers.load(std::memory_order_acquire) > 0) {
            for (int i = 0; i < 32; ++i) pause();
            if (stopped) {
                std::this_thread::yield();
                continue;
            }
            try {
                task.check();
            } catch (...) {
                fail();
            }
        }
    }
};

int usable_processors() {
    if (const char* forced = std::getenv("SECATEUR_THREADS")) {
        const int count = std::atoi(forced);
        if (count >= 1 && count <= 256) return count;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return std::max(1, std::min(count, 256));
}

class Pool {
  public:
    // Never destroyed: helpers may outlive the statics of a process that exits. A forked child has none of its parent's
    // threads, and starts anew with as many.
    static Pool& instance() {
        static const int registered =
            pthread_atfork(nullptr, nullptr, [] { current() = new Pool(current()->limit_, held > 0 ? 1 : 0); });
        (void)registered;
        return *current();
    }

    int limit() const { return limit_; }

    void set_limit(int count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        limit_ = count;
        free_.notify_all();
        posted_.notify_all();
    }

    void enter(Task& task) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++waiting_;
        while (!free_.wait_for(lock, kPatience, [this] { return turns_ < limit_; })) {
            lock.unlock();
            try {
                task.check();
            } catch (...) {
                --waiting_;
                throw;
            }
            lock.lock();
        }
        --waiting_;
        ++turns_;
        if (turns_ < limit_ && sleeping_ > 0) posted_.notify_all();  // who made way may go on
    }

    void leave() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            --turns_;
            if (waiting_ == 0 && !loops_.empty() && sleeping_ > 0) posted_.notify_one();
        }
        free_.notify_one();
    }

    void run(Loop& loop) {
        post(loop);
        loop.work(nullptr);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            loops_.erase(std::find(loops_.begin(), loops_.end(), &loop));
        }
        loop.await_helpers();
    }

  private:
    Pool(int limit, int turns) : limit_(limit), turns_(turns) {}

    static Pool*& current() {
        static Pool* pool = new Pool(usable_processors(), 0);
        return pool;
    }

    void post(Loop& loop) {
        const std::lock_guard<std::mutex> lock(mutex_);
        loops_.push_back(&loop);
        while (helpers_ + 1 < limit_) {
            try {
                std::thread([this] { help(); }).detach();
            } catch (const std::system_error&) {
                break;  // the system allows no more; those that there are suffice
            }
            ++helpers_;
        }
        ++posts_;
        if (sleeping_ > 0) posted_.notify_all();
    }

    // A loop with units left, or null.
    Loop* find() const {
        for (Loop* loop : loops_) {
            if (loop->open()) return loop;
        }
        return nullptr;
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            ++sleeping_;
            posted_.wait(lock, [this] { return find() != nullptr && turns_ < limit_ && waiting_ == 0; });
            --sleeping_;
            ++turns_;
            while (Loop* loop = find_or_linger(lock)) {
                loop->helpers.fetch_add(1);
                lock.unlock();
                loop->work(&waiting_);
                loop->helpers.fetch_sub(1, std::memory_order_release);
                lock.lock();
            }
            --turns_;
            if (waiting_ > 0) free_.notify_one();
        }
    }

    // The next loop, or null once none has come for a while, or another call waits for the turn.
    Loop* find_or_linger(std::unique_lock<std::mutex>& lock) {
        const auto end = std::chrono::steady_clock::now() + kLinger;
        for (;;) {
            if (waiting_ > 0 || turns_ > limit_) return nullptr;
            if (Loop* loop = find()) return loop;
            const auto seen = posts_.load();
            lock.unlock();
            bool late = false;
            while (posts_.load(std::memory_order_relaxed) == seen && !late) {
                for (int i = 0; i < 32; ++i) pause();
                late = std::chrono::steady_clock::now() >= end;
            }
            lock.lock();
            if (late && posts_.load() == seen) return nullptr;
        }
    }

    std::mutex mutex_;
    std::condition_variable free_, posted_;
    std::vector<Loop*> loops_;
    std::atomic<std::uint64_t> posts_{0};
    std::atomic<int> limit_, waiting_{0};
    int turns_, helpers_ = 0, sleeping_ = 0;
};

}  // namespace

int threads() { return Pool::instance().limit(); }

void set_threads(int count) {
    if (count < 1 || count > 256) throw std::invalid_argument("cannot use " + std::to_string(count) + " threads: need 1 to 256");
    Pool::instance().set_limit(count);
}

Turn::Turn() {
    Task none;
    if (held == 0) Pool::instance().enter(none);
    ++held;
}

Turn::Turn(Task& task) {
    if (held == 0) Pool::instance().enter(task);
    ++held;
}

Turn::~Turn() {
    if (--held == 0) Pool::instance().leave();
}

void parallel_for(std::size_t count, Task& task, const std::function<void(std::size_t)>& unit) {
    task.begin();
    Loop loop{unit, task, count};
    if (count == 1 || threads() == 1) {
        loop.work(nullptr);
    } else {
        Pool::instance().run(loop);
    }
    if (loop.failure) std::rethrow_exception(loop.failure);
    if (task.cancelled()) throw Cancelled();
}

}  // namespace secateur
