// attend, backward: the gradients of one chunk of the pixels, and the chunk's part of the query's, in one pass.
//
// With S = (x + pe) Q^T recomputed, P = exp(S - lse) and dP = x G^T (G the gradient of the context):
//   dS = P (dP - delta)    dx = P G + dS Q    dQ = dS^T (x + pe)    dpe = dS Q
// Pixel-major, so that P and dS, as they lie in registers, are the left factors of dx. Two groups of warps: one has 16
// pixels a warp and makes dx in slices of one panel of channels (32 registers, not C / 2); the other adds up dQ, 16 rows
// a warp, which takes C / 2 registers a thread for the whole chunk. dS crosses from one to the other through shared
// memory, in two stages with the tiles, as in refine_attend.cuh. More rows than fit are done by further launches, which
// add to dx.
#pragma once

#include "cuda/row_gradient.cuh"

namespace d2ls::cuda {

struct AttendBackwardArguments {
  const void *x, *pe, *query, *grad_context, *add;
  const float *log_sum_exp, *delta;
  void* grad_x;
  float *grad_pe, *part_query;  // [batch, pixels, channels] or null; [batch, chunks, rows, channels]
  int pixels, pe_images, channels, rows, first_row, chunks, tiles_per_chunk;
};

template <class Kind, class Architecture, int C>
struct AttendBackwardPlan {
  using T = typename Kind::Number;
  using Unit = Products<Kind, Architecture>;
  static constexpr bool half = sizeof(T) == 2, large = Architecture::large_shared_memory;
  static constexpr int channels = C;
  // Query and G take 64 KB at C = 256 and both stages of x and x + pe 128 KB; 163 KB hold half of those.
  static constexpr int rows = half ? 64 : 32, pixels = (half ? 64 : 32) / (large ? 1 : 2), stages = 2;
  static constexpr int group = 2 * pixels, threads = group + 2 * rows;
  static constexpr int blocks = 1;
  using Rows = Tile<T, rows, C>;
  using Pixels = Tile<T, pixels, C>;
  using Weights = Tile<T, pixels, rows>;
  using Slice = Tile<T, rows, Rows::panel>;  // of Rows
  static constexpr uint32_t query = 0, grad = Rows::bytes, x = 2 * Rows::bytes, y = x + Pixels::bytes;
  static constexpr uint32_t weights = y + Pixels::bytes, stage_bytes = 2 * Pixels::bytes + Weights::bytes;
  static constexpr uint32_t log_sum_exp = x + stages * stage_bytes, delta = log_sum_exp + rows * sizeof(float);
  static constexpr uint32_t shared_bytes = delta + rows * sizeof(float);
  static_assert(shared_bytes <= (large ? 227 : 163) * 1024);

  static D2LS_DEVICE uint32_t stage(int tile) { return tile % stages * stage_bytes; }
  static D2LS_DEVICE int full(int tile) { return 2 + tile % stages; }
  static D2LS_DEVICE int free(int tile) { return 2 + stages + tile % stages; }
};

// Scores become P, and `grads`, which is dP, becomes dS; both zero but for the first `valid` pixels.
template <class Plan>
D2LS_DEVICE void weights_and_gradients(float (&scores)[Plan::rows / 8][4], float (&grads)[Plan::rows / 8][4],
                                       int valid) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  D2LS_UNROLL
  for (int n = 0; n < Plan::rows / 8; ++n) {
    const Two top = load_shared<Two>(Plan::log_sum_exp + 32 * n + 8 * t);
    const Two delta = load_shared<Two>(Plan::delta + 32 * n + 8 * t);
    D2LS_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float weight = power_of_two((scores[n][i] - (i % 2 ? top.second : top.first)) * log2_e);
      scores[n][i] = g + i / 2 * 8 < valid ? weight : 0.0f;
      grads[n][i] = scores[n][i] * (grads[n][i] - (i % 2 ? delta.second : delta.first));
    }
  }
}

// dx (and dpe) of a warp's 16 pixels, the first of which is pixel `pixel` of the image.
template <class Plan>
D2LS_DEVICE void store_pixel_gradients(const AttendBackwardArguments& a, const float (&weights)[Plan::rows / 8][4],
                                       const float (&grads)[Plan::rows / 8][4], int image, int pixel) {
  using T = typename Plan::T;
  using Slice = typename Plan::Slice;
  const int64_t start = static_cast<int64_t>(image) * a.pixels * a.channels;
  D2LS_NO_UNROLL
  for (int first = 0; first < from_here(a.channels); first += Plan::Rows::panel) {
    const uint32_t panel = first / Plan::Rows::panel * Plan::Rows::panel_bytes;
    float total[Plan::Rows::panel / 8][4] = {};
    Plan::Unit::result_by_tile(total, grads, Plan::query + panel, Slice());
    if (a.grad_pe != nullptr) {
      store_encoding_gradient(total, a.grad_pe + start, a.first_row > 0, pixel, a.pixels, a.channels, first);
    }
    Plan::Unit::result_by_tile(total, weights, Plan::grad + panel, Slice());
    if (a.add != nullptr) {
      add_rows(total, static_cast<const T*>(a.add) + start, pixel, a.pixels, a.channels, first);
    }
    store_rows(total, static_cast<T*>(a.grad_x) + start, pixel, a.pixels, a.channels, first);
  }
}

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) attend_backward_chunk(AttendBackwardArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    using Pixels = typename Plan::Pixels;
    using Rows = typename Plan::Rows;
    const int image = static_cast<int>(block_index() / a.chunks), chunk = static_cast<int>(block_index() % a.chunks);
    const int first = chunk * a.tiles_per_chunk * Plan::pixels;
    const int tiles = smaller(a.tiles_per_chunk, (a.pixels - first + Plan::pixels - 1) / Plan::pixels);
    const int rows = smaller(a.rows - a.first_row, Plan::rows);

    if (thread_index() < Plan::group) {
      const int thread = thread_index(), row = thread / 32 * 16;
      const int64_t first_row = static_cast<int64_t>(image) * a.rows + a.first_row;
      const auto fetch = [&](int tile) {
        const int start = first + tile * Plan::pixels;
        const auto source = [&](int r) { return start + r < a.pixels ? start + r : -1; };
        const auto image_of = [&](const void* pixels, int index) {
          return static_cast<const T*>(pixels) + static_cast<int64_t>(from_here(index)) * a.pixels * a.channels;
        };
        Pixels::load(Plan::stage(tile) + Plan::x, 0, Plan::pixels, image_of(a.x, image), a.channels, thread,
                     Plan::group, source);
        Pixels::load(Plan::stage(tile) + Plan::y, 0, Plan::pixels, image_of(a.pe, image % a.pe_images), a.channels,
                     thread, Plan::group, source);
        copy_commit();
      };
      const auto source = [&](int r) { return r < rows ? r : -1; };
      Rows::load(Plan::query, 0, Plan::rows, static_cast<const T*>(a.query) + first_row * a.channels, a.channels, thread,
                 Plan::group, source);
      Rows::load(Plan::grad, 0, Plan::rows, static_cast<const T*>(a.grad_context) + first_row * a.channels, a.channels,
                 thread, Plan::group, source);
      fetch(0);
      for (int r = thread; r < Plan::rows; r += Plan::group) {
        store_shared(Plan::log_sum_exp + 4 * r, r < rows ? a.log_sum_exp[first_row + r] : infinity());  // P = 0
        store_shared(Plan::delta + 4 * r, r < rows ? a.delta[first_row + r] : 0.0f);
      }
      block_barrier();

      for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t here = Plan::stage(tile);
        copy_wait<0>();
        add_encoding(Pixels(), here + Plan::x, here + Plan::y, thread, Plan::group);
        Plan::Unit::fence();
        named_barrier_wait(1, Plan::group);  // the tile is complete, and this group is done with the one before
        if (tile + 1 < tiles) {
          if (tile > 0) {
            named_barrier_wait(Plan::free(tile + 1), Plan::threads);
          }
          fetch(tile + 1);
        }
        float weights[Plan::rows / 8][4] = {}, grads[Plan::rows / 8][4] = {};
        Plan::Unit::rows_by_rows(weights, here + Plan::y, row, Plan::query, Pixels(), Rows());
        Plan::Unit::rows_by_rows(grads, here + Plan::x, row, Plan::grad, Pixels(), Rows());
        const int pixel = first + tile * Plan::pixels + row;
        weights_and_gradients<Plan>(weights, grads, a.pixels - pixel);
        store_in_tile(grads, here + Plan::weights, row, typename Plan::Weights());
        named_barrier_arrive(Plan::full(tile), Plan::threads);
        store_pixel_gradients<Plan>(a, weights, grads, image, pixel);
      }
    } else {
      block_barrier();
      const int row = (thread_index() - Plan::group) / 32 * 16;
      float total[Plan::channels / 8][4] = {};
      add_up_rows<Plan>(total, tiles, row, Plan::threads, Plan::stages, [](int tile) {
        const uint32_t here = Plan::stage(tile);
        return Handover{here + Plan::weights, here + Plan::y, Plan::full(tile), Plan::free(tile)};
      });
      const int64_t part = (static_cast<int64_t>(image) * a.chunks + chunk) * a.rows + a.first_row;
      store_parts(total, a.part_query + part * a.channels, row, a.channels, [&](int r) { return r < rows ? r : -1; });
    }
  }
}

}  // namespace d2ls::cuda
