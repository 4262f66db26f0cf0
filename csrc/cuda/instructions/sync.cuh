// Barriers, fences and exchange between the lanes of a warp.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/instructions/shared.cuh"

namespace d2ls::cuda {

// All threads of the block.
D2LS_DEVICE void block_barrier() {
#ifdef __CUDACC__
  __syncthreads();
#else
  using namespace emulator;
  meet(block->barriers[0], 0, static_cast<int>(block->threads.size()), "block_barrier", nullptr, [](void**) {});
#endif
}

// The threads of a warp; orders their accesses to shared memory.
D2LS_DEVICE void warp_barrier() {
#ifdef __CUDACC__
  __syncwarp();
#else
  emulator::meet_warp("warp_barrier", nullptr, [](void**) {});
#endif
}

// Barrier `id` (1 to 15) of `threads` threads, some of which may only announce themselves and go on.
D2LS_DEVICE void named_barrier_wait(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::meet(emulator::block->barriers[id], 0, threads, "named barrier", nullptr, [](void**) {});
#endif
}

D2LS_DEVICE void named_barrier_arrive(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::Meeting& barrier = emulator::block->barriers[id];
  barrier.what = "named barrier";
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
#endif
}

// Makes this thread's writes to shared memory, landed copies too, visible to wgmma. Before the barrier, by every writer.
D2LS_DEVICE void fence_for_products() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#else
  using namespace emulator;
  for (const uint32_t unit : self->unfenced) {
    if (block->writer[unit] == self->index) {
      block->writer[unit] = -1;
    }
  }
  self->unfenced.clear();
#endif
}

// The value of the lane whose number differs in the bits of `mask`.
template <class T>
D2LS_DEVICE T shuffle_xor(T value, int mask) {
#ifdef __CUDACC__
  return __shfl_xor_sync(0xffffffffu, value, mask);
#else
  struct {
    T given, got;
    int mask;
  } exchange{value, {}, mask};
  emulator::meet_warp("shuffle_xor", &exchange, [](void** all) {
    using Exchange = decltype(exchange);
    for (int lane = 0; lane < 32; ++lane) {
      auto* mine = static_cast<Exchange*>(all[lane]);
      mine->got = static_cast<Exchange*>(all[lane ^ mine->mask])->given;
    }
  });
  return exchange.got;
#endif
}

// Word j of lane t of a quad goes to word t of its lane j.
D2LS_DEVICE void quad_transpose(uint32_t (&words)[4]) {
  D2LS_UNROLL
  for (int mask = 1; mask <= 2; mask *= 2) {
    const bool upper = thread_index() & mask;
    D2LS_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
      const int low = mask == 1 ? 2 * pair : pair, high = low + mask;
      const uint32_t got = shuffle_xor(upper ? words[low] : words[high], mask);
      (upper ? words[low] : words[high]) = got;
    }
  }
}

// Over the four lanes that hold one row of a product.
D2LS_DEVICE float quad_max(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}

D2LS_DEVICE float quad_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

}  // namespace d2ls::cuda
