// The gradient of dictionary rows, W^T Y over the pixels of a chunk: what one group of warps of the backward passes does.
#pragma once

#include "cuda/pixel_rows.cuh"

namespace d2ls::cuda {

template <int TILES>
D2LS_DEVICE void copy_rows(float (&to)[TILES][4], const float (&from)[TILES][4]) {
  D2LS_UNROLL
  for (int n = 0; n < TILES; ++n) {
    D2LS_UNROLL
    for (int i = 0; i < 4; ++i) {
      to[n][i] = from[n][i];
    }
  }
}

// 16 rows of weights to rows `row` on of a tile, rounded.
template <class M, int TILES>
D2LS_DEVICE void store_weights(const float (&weights)[TILES][4], uint32_t tile, int row, M) {
  using T = typename M::Number;
  const auto to = pairs(M(), tile, row);
  D2LS_UNROLL
  for (int n = 0; n < TILES; ++n) {
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float *two = weights[n] + 2 * half;
      const uint32_t word = to.at(8 * half, 8 * n / M::per_word);
      if constexpr (sizeof(T) == 2) {
        store_shared(word, Pair<T>::pack(two[0], two[1]));
      } else {
        store_shared(word, Two{two[0], two[1]});
      }
    }
  }
}

// The sum over all tiles of W^T Y for rows `row` to row + 15, those below `rows`, written to `to`. `weights` and `y` are
// where a stage has W and Y.
template <class Plan>
D2LS_DEVICE void add_up_rows(float* to, int tiles, int rows, int channels, int row, uint32_t weights, uint32_t y) {
  float total[Plan::channels / 8][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t here = Plan::stage(tile);
    named_barrier_wait(Plan::full(tile), Plan::threads);
    Plan::Unit::columns_by_tile(total, here + weights, row, here + y, typename Plan::Weights(),
                                typename Plan::Pixels());
    if (tile + 2 < tiles) {  // nobody waits for the last two
      named_barrier_arrive(Plan::free(tile), Plan::threads);
    }
  }
  store_rows(total, to, row, rows, channels);
}

}  // namespace d2ls::cuda
