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
  int pixels, images, pe_images, dictionaries, channels, heads, entries, chunks, tiles_per_chunk;
  float eps;
};

// ONE_BLOCK: all rows of key and value are loaded at once, and stay.
template <class Kind, class Architecture, int C, bool ONE_BLOCK>
struct RefinePlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr bool half = sizeof(T) == 2, large = Architecture::large_shared_memory;
  static constexpr int channels = C;
  static constexpr bool one_block = ONE_BLOCK;
  // Rows of key and value at a time; with 64 in 16 bits 64 KB at C = 256. The rest is for pixels, 1 KB each.
  static constexpr int rows = half ? 64 : 32;
  static constexpr int warps = half ? (large ? 8 : 4) : (large ? 4 : 2);
  static constexpr int threads = 32 * warps, pixels = 16 * warps;
  // Shared memory, and C / 2 registers a thread for the update alone, have room for one.
  static constexpr int blocks = 1;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  static constexpr uint32_t value = Rows::bytes, x = 2 * Rows::bytes, pe = x + Pixels::bytes;
  static constexpr uint32_t bias = pe + Pixels::bytes, norm = bias + rows * sizeof(float);
  static constexpr uint32_t out_bias = norm + Norm<C>::bytes, shared_bytes = out_bias + C * sizeof(float);
  static_assert(shared_bytes <= (large ? 227 : 163) * 1024);
};

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) refine_chunk(RefineArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    constexpr int C = Plan::channels;
    const int thread = thread_index(), row = thread / 32 * 16;
    // Blocks that share a tile of pixels are neighbours: it is read from memory once and then from L2.
    const int image = static_cast<int>(block_index() / a.dictionaries / a.chunks);
    const int first = static_cast<int>(block_index() / a.dictionaries % a.chunks) * a.tiles_per_chunk * Plan::pixels;
    const int dictionary = static_cast<int>(block_index() % a.dictionaries * a.images + image);
    const int last = smaller(first + a.tiles_per_chunk * Plan::pixels, a.pixels);
    const Entries entries{a.heads, a.entries};
    const int row_blocks = Plan::one_block ? 1 : entries.blocks(Plan::rows);
    const Norm<C> norm{Plan::norm};

    // Pointers are found where they are used: as loop invariants they would take registers from the products.
    const auto image_of = [&](const void* pixels, int index) {
      return static_cast<const T*>(pixels) + static_cast<int64_t>(from_here(index)) * a.pixels * a.channels;
    };
    // This warp's 16 pixels of the tile at `start`.
    const auto fetch = [&](int start) {
      const auto source = [&](int r) { return start + r < a.pixels ? start + r : -1; };
      Plan::Pixels::load(Plan::x, row, row + 16, image_of(a.x, image), a.channels, thread % 32, 32, source);
      Plan::Pixels::load(Plan::pe, row, row + 16, image_of(a.pe, image % a.pe_images), a.channels, thread % 32, 32,
                         source);
      copy_commit();
    };
    // Key and value of a block of places, by all threads.
    const auto fetch_rows = [&](int block) {
      const auto source = [&](int place) { return entries.row(block * Plan::rows + place); };
      const int64_t first_row = static_cast<int64_t>(from_here(dictionary)) * a.heads * a.entries;
      Plan::Rows::load(0, 0, Plan::rows, static_cast<const T*>(a.key) + first_row * a.channels, a.channels, thread,
                       Plan::threads, source);
      Plan::Rows::load(Plan::value, 0, Plan::rows, static_cast<const T*>(a.value) + first_row * a.channels, a.channels,
                       thread, Plan::threads, source);
      copy_commit();
      for (int place = thread; place < Plan::rows; place += Plan::threads) {
        store_shared(Plan::bias + 4 * place, entries.bias(a.key_bias + first_row, block * Plan::rows + place));
      }
      copy_wait<0>();
      Plan::Unit::fence();
      block_barrier();
    };

    norm.load(a.norm_weight, a.norm_bias, a.channels, Plan::threads);
    for (int i = thread; i < C; i += Plan::threads) {
      store_shared(Plan::out_bias + 4 * i, i < a.channels ? a.out_bias[i] : 0.0f);
    }
    fetch(first);
    fetch_rows(0);
    for (int start = first; start < last; start += Plan::pixels) {
      copy_wait<0>();
      warp_barrier();
      float rows[C / 8][4];
      residual(
          rows, Plan::x, row, [&](int c) { return load_shared<Two>(Plan::out_bias + 32 * c + 8 * (thread % 4)); },
          typename Plan::Pixels());
      for (int block = 0; block < row_blocks; ++block) {
        if (!Plan::one_block && (block > 0 || start > first)) {  // all threads go through the same blocks
          block_barrier();
          fetch_rows(block);
        }
        float scores[Plan::rows / 8][4] = {};
        Plan::Unit::sum_by_rows(scores, Plan::x, Plan::pe, row, 0, typename Plan::Pixels(), typename Plan::Rows());
        if (block == row_blocks - 1 && start + Plan::pixels < last) {
          warp_barrier();
          fetch(start + Plan::pixels);
        }
        head_softmax(scores, entries, Plan::bias);
        Plan::Unit::result_by_tile(rows, scores, Plan::value, typename Plan::Rows());
      }
      normalise(rows, norm, a.channels, a.eps);
      store_rows(rows, const_cast<T*>(image_of(a.refined, dictionary)), start + row, last, a.channels);
    }
  }
}

}  // namespace d2ls::cuda
