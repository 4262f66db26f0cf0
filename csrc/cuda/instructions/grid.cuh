// A barrier of several blocks of a launch that runs all of them at once (launch_together).
#pragma once

#include "cuda/instructions/sync.cuh"
#ifndef __CUDACC__
#include "cuda/emulator/grid.h"
#endif

namespace d2ls::cuda {

// Counts this thread in; what its block wrote before a barrier of the block is seen by who waits for the count.
D2LS_DEVICE void count_in(uint32_t* counter) {
#ifdef __CUDACC__
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;\n" ::"l"(counter) : "memory");
#else
  emulator::arrive(counter);
#endif
}

D2LS_DEVICE void wait_for_count(const uint32_t* counter, uint32_t count) {
#ifdef __CUDACC__
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < count);
#else
  emulator::wait_until(counter, count);
#endif
}

constexpr int counter_words = 32;  // a counter has a line of its own

// Every block of a group comes equally often. The counter starts as zero and only grows, so that nobody has to reset it
// while others still look at it.
struct GroupBarrier {
  uint32_t* counters;  // of all groups, counter_words apart
  int group;
  uint32_t members;
  uint32_t awaited = 0;

  D2LS_DEVICE void meet() {
    awaited += members;
    block_barrier();
    if (thread_index() == 0) {
      uint32_t* counter = counters + from_here(group) * counter_words;
      count_in(counter);
      wait_for_count(counter, awaited);
    }
    block_barrier();
  }
};

}  // namespace d2ls::cuda
