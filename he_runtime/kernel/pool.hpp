// Threads shared by all calls of the process: at most `threads()` compute at any time, however many requests run at once.
//
// A call holds a turn (Turn) while it computes; further turns are lent to helper threads that join its loops. With as
// many calls as threads each runs alone, and with one call it gets every thread. Which thread does what never changes a
// result: units write to places of their own, or add residues, which is exact in any order.
#pragma once

#include <cstddef>
#include <functional>

#include "task.hpp"

namespace secateur {

// Threads that may compute at once; at first as many as the process may use (its affinity), or SECATEUR_THREADS.
int threads();
void set_threads(int count);  // 1 to 256; calls in progress finish with the former number

// Held by a calling thread while it computes; waits until a turn is free, and meanwhile polls the task, which may throw.
// A thread that holds one already (a call from within `poll`) takes no second.
class Turn {
  public:
    explicit Turn(Task& task);
    Turn();  // with nothing to poll
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
};

// unit(0), .., unit(count - 1), in any order and on any threads; returns when all are done. The caller holds a Turn. When
// the task is cancelled, or a unit throws, no further unit starts and this throws.
void parallel_for(std::size_t count, Task& task, const std::function<void(std::size_t)>& unit);

}  // namespace secateur
