// First stage of attend: the running softmax of 64 query rows over one chunk of the pixels.
//
// Scores are dictionary-major, S = Q (x + pe)^T, so that a row's softmax is within a warp and its weights, as they lie
// in registers, are the left factor of the second product with the same tile of x: x is read once and no weight leaves
// the registers. Tiles arrive by asynchronous copies while the ones before are computed.
#pragma once

#include "cuda/online_softmax.cuh"

namespace d2ls::cuda {

struct AttendArguments {
  const void *x, *pe, *query;
  float *part_context, *part_max, *part_sum;
  int64_t pixels, pe_images;
  int rows, channels, row_blocks, chunks, tiles_per_chunk;
};

template <class Kind, class Architecture, int C>
struct AttendPlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr bool half = sizeof(T) == 2, large = Architecture::large_shared_memory;
  static constexpr int channels = C;
  static constexpr int rows = 64;  // 16 a warp; 7 classes of 8 heads fill 56
  static constexpr int threads = 128;
  // The context alone takes C / 2 registers a thread: two blocks of four warps fill the registers at C = 256, and where
  // one computes its softmax the other multiplies. 163 KB hold two blocks of three stages of 16 pixels, 227 KB two of
  // two stages of 32; float32 has room for one block.
  static constexpr int blocks = half ? 2 : 1;
  static constexpr int pixels = large ? 32 : 16;
  static constexpr int stages = half && !large ? 3 : 2;
  using Query = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  static constexpr uint32_t stage_bytes = 2 * Pixels::bytes;  // x, then pe that becomes x + pe
  static constexpr uint32_t shared_bytes = Query::bytes + stages * stage_bytes;
  static_assert(shared_bytes * blocks <= (large ? 225 : 163) * 1024);
};

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) attend_chunk(AttendArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    using Pixels = typename Plan::Pixels;
    const int thread = thread_index();
    // Blocks that share a tile of pixels are neighbours: it is read from memory once and then from L2.
    const int row_block = static_cast<int>(block_index() % a.row_blocks);
    const int chunk = static_cast<int>(block_index() / a.row_blocks % a.chunks);
    const int64_t image = block_index() / a.row_blocks / a.chunks;
    const int first_row = row_block * Plan::rows, rows = a.rows - first_row;
    const T* query = static_cast<const T*>(a.query) + (image * a.rows + first_row) * a.channels;
    const int64_t first = static_cast<int64_t>(chunk) * a.tiles_per_chunk * Plan::pixels;
    const int64_t left = a.pixels - first;  // pixels from here to the end of the image
    const T* x = static_cast<const T*>(a.x) + (image * a.pixels + first) * a.channels;
    const T* pe = static_cast<const T*>(a.pe) + (image % a.pe_images * a.pixels + first) * a.channels;
    const int tiles = static_cast<int>(
        left < static_cast<int64_t>(a.tiles_per_chunk) * Plan::pixels ? (left + Plan::pixels - 1) / Plan::pixels
                                                                      : a.tiles_per_chunk);

    const auto stage = [](int tile) { return Plan::Query::bytes + tile % Plan::stages * Plan::stage_bytes; };
    // An empty group where there is no such tile, so that the count of groups under way stays the same.
    const auto fetch = [&](int tile) {
      if (tile < tiles) {
        const int64_t start = static_cast<int64_t>(tile) * Plan::pixels;
        const auto source = [&](int row) { return start + row < left ? start + row : -1; };
        Pixels::load(stage(tile), 0, Plan::pixels, x, a.channels, thread, Plan::threads, source);
        Pixels::load(stage(tile) + Pixels::bytes, 0, Plan::pixels, pe, a.channels, thread, Plan::threads, source);
      }
      copy_commit();
    };

    Plan::Query::load(0, 0, Plan::rows, query, a.channels, thread, Plan::threads,
                      [&](int row) { return row < rows ? row : -1; });
    for (int tile = 0; tile < Plan::stages - 1; ++tile) {
      fetch(tile);  // the query is in the first tile's group
    }
    const int row = thread / 32 * 16;
    OnlineSoftmax<T, Plan::pixels, Plan::channels> softmax;
    for (int tile = 0; tile < tiles; ++tile) {
      copy_wait<Plan::stages - 2>();
      const uint32_t here = stage(tile);
      add_encoding(Pixels(), here, here + Pixels::bytes, thread, Plan::threads);
      Plan::Unit::fence();
      block_barrier();  // the tile is complete, and all warps are done with the one whose memory is filled next
      fetch(tile + Plan::stages - 1);
      float scores[Plan::pixels / 8][4] = {};
      Plan::Unit::rows_by_rows(scores, 0, row, here + Pixels::bytes, typename Plan::Query(), Pixels());
      softmax.weigh(scores, left - static_cast<int64_t>(tile) * Plan::pixels);
      Plan::Unit::result_by_tile(softmax.context, scores, here, Pixels());
    }
    copy_wait<0>();
    const int64_t part = (image * a.chunks + chunk) * a.rows + first_row;
    softmax.store(a.part_context + part * a.channels, a.part_max + part, a.part_sum + part, row, rows, a.channels);
  }
}

}  // namespace d2ls::cuda
