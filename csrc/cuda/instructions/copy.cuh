// Asynchronous copies from global to shared memory, 16 bytes each (cp.async), waited for in groups.
#pragma once

#include "cuda/instructions/shared.cuh"

namespace d2ls::cuda {

// Copies 16 bytes, or writes zeros where `valid` is false; `from` must be an address in either case.
D2LS_DEVICE void copy_async(uint32_t to, const void* from, bool valid) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  using namespace emulator;
  shared(to, 16);
  self->copies.back().push_back({to, valid ? from : nullptr});
  if (block->order.early) {
    valid ? std::memcpy(shared(to, 16), from, 16) : std::memset(shared(to, 16), 0, 16);
  }
#endif
}

// Closes the group of the copies issued since the last call.
D2LS_DEVICE void copy_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  emulator::self->copies.emplace_back();
#endif
}

// Waits until at most GROUPS of this thread's groups are under way. Others see the bytes after a barrier.
template <int GROUPS>
D2LS_DEVICE void copy_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(GROUPS) : "memory");
#else
  using namespace emulator;
  auto& groups = self->copies;
  while (static_cast<int>(groups.size()) - 1 > GROUPS) {
    for (const Copy& copy : groups.front()) {
      if (!block->order.early) {
        copy.from ? std::memcpy(shared(copy.to, 16), copy.from, 16) : std::memset(shared(copy.to, 16), 0, 16);
      }
      written(copy.to);
    }
    groups.erase(groups.begin());
  }
#endif
}

}  // namespace d2ls::cuda
