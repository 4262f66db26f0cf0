// The kernel of refine: one chunk of the pixels of an image, updated by one dictionary.
//
// Pixel-major: a warp has 16 pixels from the first product to the LayerNorm, all in registers, so that heads' softmax
// and norm are exchanges between four lanes. Key and value stay in shared memory. A warp fetches its own next pixels as
// soon as its scores are computed (x is by then in registers), and waits for no other warp.
#pragma once

#include "cuda/head_softmax.cuh"
#include "cuda/pixel_rows.cuh"

namespace d2ls::cuda {

struct RefineArguments {
  const void *x, *pe, *key, *value;
  const float *key_bias, *out_bias, *norm_weight, *norm_bias;
  void* refined;
  int64_t pixels, images, pe_images;
  int dictionaries, channels, heads, entries, chunks, tiles_per_chunk;
  float eps;
};

template <class Kind, class Architecture, int C>
struct RefinePlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr bool half = sizeof(T) == 2, large = Architecture::large_shared_memory;
  static constexpr int channels = C;
  // Rows of key and value at a time; with 64 in 16 bits 64 KB at C = 256. The rest is for pixels, 1 KB each.
  static constexpr int rows = half ? 64 : 32;
  static constexpr int warps = half ? (large ? 8 : 6) : (large ? 4 : 2);
  static constexpr int threads = 32 * warps, pixels = 16 * warps;
  // Shared memory, and C / 2 registers a thread for the update alone, have room for one.
  static constexpr int blocks = 1;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  static constexpr uint32_t value = Rows::bytes, x = 2 * Rows::bytes, pe = x + Pixels::bytes, end = pe + Pixels::bytes;
  static constexpr uint32_t shared_bytes = end + Vectors<C>::bytes;
  static_assert(shared_bytes <= (large ? 227 : 163) * 1024);
};

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) refine_chunk(RefineArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    constexpr int C = Plan::channels;
    const int thread = thread_index(), row = thread / 32 * 16;
    // Blocks that share a tile of pixels are neighbours: it is read from memory once and then from L2.
    const int64_t image = block_index() / a.dictionaries / a.chunks;
    const int64_t first = block_index() / a.dictionaries % a.chunks * a.tiles_per_chunk * Plan::pixels;
    const int64_t dictionary = block_index() % a.dictionaries * a.images + image;
    const Entries entries{a.heads, a.entries};
    const int64_t first_row = dictionary * a.heads * a.entries;
    const T* x = static_cast<const T*>(a.x) + image * a.pixels * a.channels;
    const T* pe = static_cast<const T*>(a.pe) + image % a.pe_images * a.pixels * a.channels;
    const int64_t end = first + static_cast<int64_t>(a.tiles_per_chunk) * Plan::pixels;
    const int64_t last = end < a.pixels ? end : a.pixels;
    const int row_blocks = (a.heads * 8 * entries.tiles() + Plan::rows - 1) / Plan::rows;
    const Vectors<C> vectors{Plan::end};

    const auto fetch = [&](int64_t start) {
      const auto source = [&](int r) { return start + r < a.pixels ? start + r : -1; };
      Plan::Pixels::load(Plan::x, row, row + 16, x, a.channels, thread % 32, 32, source);
      Plan::Pixels::load(Plan::pe, row, row + 16, pe, a.channels, thread % 32, 32, source);
      copy_commit();
    };
    // Key and value of a block of places, by all threads.
    const auto fetch_rows = [&](int block) {
      const auto source = [&](int place) { return entries.row(block * Plan::rows + place); };
      const int64_t start = first_row * a.channels;
      Plan::Rows::load(0, 0, Plan::rows, static_cast<const T*>(a.key) + start, a.channels, thread, Plan::threads,
                       source);
      Plan::Rows::load(Plan::value, 0, Plan::rows, static_cast<const T*>(a.value) + start, a.channels, thread,
                       Plan::threads, source);
      copy_commit();
      copy_wait<0>();
      Plan::Unit::fence();
      block_barrier();
    };

    vectors.load(a.out_bias, a.norm_weight, a.norm_bias, a.channels, Plan::threads);
    fetch(first);
    fetch_rows(0);
    int loaded = 0;
    for (int64_t start = first; start < last; start += Plan::pixels) {
      copy_wait<0>();
      warp_barrier();
      float rows[C / 8][4];
      residual(rows, Plan::x, row, vectors, typename Plan::Pixels());
      for (int block = 0; block < row_blocks; ++block) {
        if (block != loaded) {  // all threads go through the same blocks
          block_barrier();
          fetch_rows(block);
          loaded = block;
        }
        float scores[Plan::rows / 8][4] = {};
        Plan::Unit::sum_by_rows(scores, Plan::x, Plan::pe, row, 0, typename Plan::Pixels(), typename Plan::Rows());
        if (block == row_blocks - 1 && start + Plan::pixels < last) {
          warp_barrier();
          fetch(start + Plan::pixels);
        }
        head_softmax(scores, entries, a.key_bias + first_row, block * Plan::rows);
        Plan::Unit::result_by_tile(rows, scores, Plan::value, typename Plan::Rows());
      }
      normalise(rows, vectors, a.channels, a.eps);
      store_rows(rows, static_cast<T*>(a.refined) + dictionary * a.pixels * a.channels, start + row, last, a.channels);
    }
  }
}

}  // namespace d2ls::cuda
