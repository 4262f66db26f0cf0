// refine, backward, where the rows of key and value are more than one block: the gradient of u for one chunk of the pixels.
//
// u needs all blocks of rows before the norm can be undone, and their gradients need what that gives: a pass of its own, in
// which a warp has 16 pixels and, as in refine.cuh, u in registers while the blocks come and go.
#pragma once

#include "cuda/refine_backward_plan.cuh"

namespace d2ls::cuda {

template <class Kind, class Architecture, int C>
struct UndoNormPlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  using Backward = RefineBackwardPlan<Kind, Architecture, C, false>;
  static constexpr int channels = C, rows = Backward::rows, pixels = Backward::pixels;
  static constexpr int threads = 2 * pixels, blocks = 1;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  using Sums = SharedSums<C / 16, threads>;  // of the norm's bias and weight
  static constexpr uint32_t key = 0, value = Rows::bytes, x = 2 * Rows::bytes, pe = x + Pixels::bytes;
  static constexpr uint32_t grad = pe + Pixels::bytes, bias = grad + Pixels::bytes;
  static constexpr uint32_t out_bias = bias + rows * sizeof(float), norm_weight = out_bias + C * sizeof(float);
  static constexpr uint32_t sums = norm_weight + C * sizeof(float), shared_bytes = sums + Sums::bytes;
  static_assert(shared_bytes <= (Architecture::large_shared_memory ? 227 : 163) * 1024);
};

// Rows `row` on of a tile to rows `pixel` on of an image, those below `end`.
template <class M, class T>
D2LS_DEVICE void copy_from_tile(uint32_t tile, int row, T* to, int pixel, int end, int channels, M) {
  D2LS_NO_UNROLL
  for (int first = 0; first < channels; first += M::panel) {
    float rows[M::panel / 8][4];
    load_from_tile(rows, tile + first / M::panel * M::panel_bytes, row, M());
    store_rows(rows, to, pixel, end, channels, first);
  }
}

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) undo_norm_chunk(RefineBackwardArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    using Pixels = typename Plan::Pixels;
    using Rows = typename Plan::Rows;
    constexpr int C = Plan::channels;
    const int thread = thread_index(), row = thread / 32 * 16;
    const Chunk chunk = Chunk::of(a, Plan::pixels);
    const int last = smaller(chunk.first + a.tiles_per_chunk * Plan::pixels, a.pixels);
    const Entries entries{a.heads, a.entries};
    const typename Plan::Sums sums{Plan::sums};
    const auto image_of = [&](const void* pixels, int index) {
      return static_cast<const T*>(pixels) + static_cast<int64_t>(from_here(index)) * a.pixels * a.channels;
    };
    // This warp's 16 pixels of the tile at `start`.
    const auto fetch = [&](uint32_t to, const T* pixels, int start) {
      Pixels::load(to, row, row + 16, pixels, a.channels, thread % 32, 32,
                   [&](int r) { return start + r < a.pixels ? start + r : -1; });
    };
    // Key and value of a block of places, by all threads.
    const auto fetch_rows = [&](int block) {
      const auto source = [&](int place) { return entries.row(block * Plan::rows + place); };
      const int64_t first_row = static_cast<int64_t>(from_here(chunk.dictionary)) * a.heads * a.entries;
      Rows::load(Plan::key, 0, Plan::rows, static_cast<const T*>(a.key) + first_row * a.channels, a.channels, thread,
                 Plan::threads, source);
      Rows::load(Plan::value, 0, Plan::rows, static_cast<const T*>(a.value) + first_row * a.channels, a.channels, thread,
                 Plan::threads, source);
      copy_commit();
      for (int place = thread; place < Plan::rows; place += Plan::threads) {
        store_shared(Plan::bias + 4 * place, entries.bias(a.key_bias + first_row, block * Plan::rows + place));
      }
      copy_wait<0>();
      Plan::Unit::fence();
      block_barrier();
    };

    sums.clear();
    for (int i = thread; i < C; i += Plan::threads) {
      store_shared(Plan::out_bias + 4 * i, i < a.channels ? a.out_bias[i] : 0.0f);
      store_shared(Plan::norm_weight + 4 * i, i < a.channels ? a.norm_weight[i] : 0.0f);
    }
    for (int start = chunk.first; start < last; start += Plan::pixels) {
      block_barrier();  // vectors are there, and no thread needs the rows of the tile before
      fetch(Plan::x, image_of(a.x, chunk.image), start);
      fetch(Plan::pe, image_of(a.pe, chunk.image % a.pe_images), start);
      fetch(Plan::grad, image_of(a.grad, chunk.dictionary), start);
      float u[C / 8][4];
      for (int block = 0; block < entries.blocks(Plan::rows); ++block) {
        if (block > 0) {
          block_barrier();
        }
        fetch_rows(block);
        if (block == 0) {
          const auto bias = [&](int c) { return load_shared<Two>(Plan::out_bias + 32 * c + 8 * (thread % 4)); };
          residual(u, Plan::x, row, bias, Pixels());
        }
        float scores[Plan::rows / 8][4] = {};
        Plan::Unit::sum_by_rows(scores, Plan::x, Plan::pe, row, Plan::key, Pixels(), Rows());
        head_softmax(scores, entries, Plan::bias);
        Plan::Unit::result_by_tile(u, scores, Plan::value, Rows());
      }
      Statistics statistics;
      statistics.add(u, 0, a.channels);
      warp_barrier();  // all lanes have read x
      store_in_tile(u, Plan::x, row, Pixels());
      undo_norm<C>(Plan::x, statistics, Plan::grad, row, Plan::norm_weight, a.channels, a.eps, sums, Pixels());
      copy_from_tile(Plan::grad, row, const_cast<T*>(image_of(a.grad_x, chunk.dictionary)), start + row, last,
                     a.channels, Pixels());
    }
    const int64_t part = chunk.part(a.chunks) * (Plan::threads / 32) + thread / 32;
    store_norm_gradient<C>(sums, a.part_norm_weight, a.part_norm_bias, part, a.channels);
  }
}

}  // namespace d2ls::cuda
