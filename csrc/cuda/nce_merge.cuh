// The second stage of nce_sums: the blocks' denominators over the pixels put together, and a class's entries with them.
#pragma once

#include "cuda/nce_sums.cuh"

namespace d2ls::cuda {

struct NceMergeArguments {
  const float* tops;  // of the first block; sums `entries` behind them, the next block `stride` behind
  float* log_sum_exp;
  int stride, blocks_per_image, classes, prototypes;
};

constexpr int nce_merge_threads = 128;

// One block a class. Zero where no pixel of the image has a label.
static D2LS_KERNEL(nce_merge_threads, 1) nce_merge_kernel(NceMergeArguments a) {
  const int64_t image = block_index() / a.classes;
  const int k = static_cast<int>(block_index() % a.classes), entries = a.classes * a.prototypes;
  Denominator all;
  for (int i = thread_index(); i < a.blocks_per_image * a.prototypes; i += nce_merge_threads) {
    const int64_t at = (image * a.blocks_per_image + i / a.prototypes) * a.stride + k * a.prototypes + i % a.prototypes;
    all.add({a.tops[at], a.tops[at + entries]});
  }
  store_shared(8 * thread_index(), Two{all.top, all.sum});
  block_barrier();
  if (thread_index() == 0) {
    for (int other = 1; other < nce_merge_threads; ++other) {
      const Two two = load_shared<Two>(8 * other);
      all.add({two.first, two.second});
    }
    a.log_sum_exp[block_index()] = all.sum > 0 ? all.log() : 0.0f;
  }
}

}  // namespace d2ls::cuda
