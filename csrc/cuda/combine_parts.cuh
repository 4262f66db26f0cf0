// Second stage of the backward passes: the partial sums of chunks, images or dictionaries added up, in a fixed order.
#pragma once

#include "cuda/device.h"
#include "cuda/instructions/sync.cuh"
#include "cuda/tile.cuh"

namespace d2ls::cuda {

// to[group][i] = the sum over p of from[group][p][i]; [groups, parts, size] to [groups, size].
struct CombineArguments {
  const void* from;
  void* to;
  int64_t size, columns, blocks;  // columns: blocks of 64 results of a group; blocks: of all groups
  int64_t parts;
  int turns;  // warps that share the parts of a result: 1 or all of the block
};

constexpr int combine_warps = 8, combine_threads = 32 * combine_warps;
constexpr uint32_t combine_shared_bytes = combine_threads * sizeof(Two);

// Two neighbouring numbers of type T in memory; an odd row of 32-bit numbers may end after the first.
template <class T>
struct Neighbours {
  static D2LS_DEVICE Two load(const void* from, int64_t at, bool both) {
    if constexpr (sizeof(T) == 2) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(from) + at);
      return {Pair<T>::first(word), Pair<T>::second(word)};
    } else {
      const float* two = static_cast<const float*>(from) + at;
      return {two[0], both ? two[1] : 0.0f};
    }
  }
  static D2LS_DEVICE void store(void* to, int64_t at, bool both, const Two& two) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint32_t*>(static_cast<T*>(to) + at) = Pair<T>::pack(two.first, two.second);
    } else {
      static_cast<float*>(to)[at] = two.first;
      if (both) {
        static_cast<float*>(to)[at + 1] = two.second;
      }
    }
  }
};

// A warp reads whole lines of every part. Few results of many parts: the warps of a block take turns with the parts.
template <class From, class To>
D2LS_KERNEL(combine_threads, 1) combine_parts_kernel(CombineArguments a) {
  const int warp = thread_index() / 32;
  const int64_t block = block_index() * (combine_warps / a.turns) + warp / a.turns;
  const int64_t group = block / a.columns;
  const int64_t at = block < a.blocks ? (block - group * a.columns) * 64 + thread_index() % 32 * 2 : a.size;
  const bool both = at + 1 < a.size;
  Two sum{0, 0};
  if (at < a.size) {
    for (int64_t part = warp % a.turns; part < a.parts; part += a.turns) {
      const Two two = Neighbours<From>::load(a.from, (group * a.parts + part) * a.size + at, both);
      sum.first += two.first;
      sum.second += two.second;
    }
  }
  if (a.turns > 1) {
    store_shared(8 * thread_index(), sum);
    block_barrier();
    for (int other = 1; other < combine_warps && warp == 0; ++other) {
      const Two two = load_shared<Two>(8 * (32 * other + thread_index()));
      sum.first += two.first;
      sum.second += two.second;
    }
  }
  if (at < a.size && warp % a.turns == 0) {
    Neighbours<To>::store(a.to, group * a.size + at, both, sum);
  }
}

template <class From, class To>
Error combine_parts(const Device& device, const void* from, void* to, int64_t groups, int64_t parts, int64_t size) {
  const int turns = parts >= 2 * combine_warps ? combine_warps : 1;
  const int64_t columns = (size + 63) / 64, per_block = combine_warps / turns;
  const CombineArguments arguments{from, to, size, columns, groups * columns, parts, turns};
  return launch(device, combine_parts_kernel<From, To>, (groups * columns + per_block - 1) / per_block,
                combine_threads, combine_shared_bytes, arguments);
}

}  // namespace d2ls::cuda
