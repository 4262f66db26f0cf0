// The gradient of dictionary rows, W^T Y over the pixels of a chunk: what one group of warps of the backward passes does.
#pragma once

#include "cuda/pixel_rows.cuh"

namespace d2ls::cuda {

// Where a tile's W and Y are, and the barriers that say that they are there and that they are no longer needed.
struct Handover {
  uint32_t weights, y;
  int full, free;
};

// total += W^T Y of all tiles, for rows `row` to row + 15. at(tile) is the tile's Handover; `threads` are those of the two
// groups that hand over; the group that fills does not wait for the last `stages` tiles.
template <class Plan, class At>
D2LS_DEVICE void add_up_rows(float (&total)[Plan::channels / 8][4], int tiles, int row, int threads, int stages,
                             const At& at) {
  for (int tile = 0; tile < tiles; ++tile) {
    const Handover here = at(tile);
    named_barrier_wait(here.full, threads);
    Plan::Unit::columns_by_tile(total, here.weights, row, here.y, typename Plan::Weights(), typename Plan::Pixels());
    if (tile + stages < tiles) {
      named_barrier_arrive(here.free, threads);
    }
  }
}

// Writes 16 rows of a sum: row r of the block goes to row row_of(r) of a matrix of `channels` columns, unless negative.
template <int TILES, class RowOf>
D2LS_DEVICE void store_parts(const float (&total)[TILES][4], float* to, int row, int channels, const RowOf& row_of) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  D2LS_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int mine = row_of(row + g + 8 * half);
    D2LS_UNROLL
    for (int c = 0; c < TILES; ++c) {
      if (mine >= 0 && 8 * c < channels) {
        *reinterpret_cast<Two*>(to + static_cast<int64_t>(mine) * channels + 8 * c + 2 * t) = {total[c][2 * half],
                                                                                            total[c][2 * half + 1]};
      }
    }
  }
}

}  // namespace d2ls::cuda
