// A launch whose blocks are all there at once and wait for each other through counters in memory.
#pragma once

#include "cuda/emulator/block.h"

namespace d2ls::cuda::emulator {

inline uint64_t arrivals = 0;  // at any counter: what a waiting thread looks at

inline void arrive(uint32_t* counter) {
  ++*counter;
  ++arrivals;
}

inline void wait_until(const uint32_t* counter, uint32_t count) {
  while (*counter < count) {
    wait_for(arrivals, arrivals, "group barrier");
  }
}

// One block at a time, each as far as it comes without the others; the last one first if `descending`.
inline std::string run_together(Order order, int64_t blocks, int64_t room, int threads, uint32_t shared_bytes,
                                const std::function<void()>& kernel) {
  if (blocks > room) {
    return std::to_string(blocks) + " blocks are to run at once, the device has room for " + std::to_string(room);
  }
  const std::function<void()> body = body_of(kernel);
  std::vector<std::unique_ptr<Block>> all;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t index = order.descending ? blocks - 1 - i : i;
    all.push_back(fresh(order, index, threads, shared_bytes, static_cast<int>(i) * threads, body));
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& one : all) {
      moved |= advance(*one);
      if (!one->error.empty()) {
        return one->error;
      }
    }
  }
  for (const auto& one : all) {
    const std::string error = ending(*one);
    if (!error.empty()) {
      return error;
    }
  }
  return "";
}

}  // namespace d2ls::cuda::emulator
