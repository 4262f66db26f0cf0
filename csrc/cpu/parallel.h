// How the kernels reach the host's threads without knowing torch: the registration file passes torch's own pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace d2ls {

using Range = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t count, int64_t grain, const Range& body)>;

// Hands out the tasks [0, count) one by one: for tasks of unequal cost that each write memory of their own, so that it does
// not matter who does which. Every thread calls work once, which takes tasks until next returns count.
using Next = std::function<int64_t()>;
inline void parallel_tasks(const Parallel& parallel, int64_t count, const std::function<void(const Next&)>& work) {
  std::atomic<int64_t> taken{0};
  const Next next = [&] { return std::min(taken.fetch_add(1, std::memory_order_relaxed), count); };
  parallel(count, 1, [&](int64_t, int64_t) { work(next); });
}

}  // namespace d2ls
