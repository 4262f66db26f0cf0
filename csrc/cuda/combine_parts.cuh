// Second stage of the backward passes: the partial sums of chunks, images or dictionaries added up, in order.
#pragma once

#include "cuda/device.h"
#include "cuda/instructions/numbers.cuh"

namespace d2ls::cuda {

// out[group][i] = the sum over p of parts[group][p][i]; [groups, parts, size] to [groups, size], size even.
struct CombineArguments {
  const void* from;
  void* to;
  int64_t size, pairs;  // pairs: of results, in all
  int parts;
};

constexpr int combine_threads = 256;

// Two neighbouring numbers of type T in memory.
template <class T>
struct Neighbours {
  static D2LS_DEVICE void load(const void* from, int64_t at, float (&two)[2]) {
    if constexpr (sizeof(T) == 2) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(from) + at);
      two[0] = Pair<T>::first(word);
      two[1] = Pair<T>::second(word);
    } else {
      two[0] = static_cast<const float*>(from)[at];
      two[1] = static_cast<const float*>(from)[at + 1];
    }
  }
  static D2LS_DEVICE void store(void* to, int64_t at, const float (&two)[2]) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint32_t*>(static_cast<T*>(to) + at) = Pair<T>::pack(two[0], two[1]);
    } else {
      static_cast<float*>(to)[at] = two[0];
      static_cast<float*>(to)[at + 1] = two[1];
    }
  }
};

// A thread adds up two neighbours: a warp reads whole lines of every part.
template <class From, class To>
D2LS_KERNEL(combine_threads, 1) combine_parts_kernel(CombineArguments a) {
  const int64_t pair = block_index() * combine_threads + thread_index();
  if (pair < a.pairs) {
    const int64_t at = 2 * pair, group = at / a.size;
    const int64_t first = group * a.parts * a.size + (at - group * a.size);
    float sum[2] = {0, 0};
    for (int part = 0; part < a.parts; ++part) {
      float two[2];
      Neighbours<From>::load(a.from, first + part * a.size, two);
      sum[0] += two[0];
      sum[1] += two[1];
    }
    Neighbours<To>::store(a.to, at, sum);
  }
}

template <class From, class To>
Error combine_parts(const Device& device, const void* from, void* to, int64_t groups, int parts, int64_t size) {
  const int64_t pairs = groups * size / 2;
  const CombineArguments arguments{from, to, size, pairs, parts};
  return launch(device, combine_parts_kernel<From, To>, (pairs + combine_threads - 1) / combine_threads,
                combine_threads, 0, arguments);
}

}  // namespace d2ls::cuda
