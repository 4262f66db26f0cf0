// refine, backward: the gradients of one chunk of the pixels and the chunk's part of all others, in one pass.
//
// With z = (x + pe) K^T + bias, A its softmax within heads and u = x + A V + out_bias recomputed, x' = LN(u):
//   du = the norm undone    dA = du V^T    dz = A (dA - sum_k A dA)    dx = du + dz K    dpe = dz K
//   dV = A^T du    dK = dz^T (x + pe)    dbias = sum dz    dout_bias = sum du = the sum of dV over the entries of a head
// Both dV and dK take C / 2 registers in each thread of four warps, so each has a group of its own; a third group has 16
// pixels a warp and does the rest, with u in x's place in shared memory and all products that are C wide in slices of
// one panel. It hands A with du to the one and dz with y to the other through shared memory.
#pragma once

#include "cuda/refine_backward_plan.cuh"

namespace d2ls::cuda {

// u = x + A V + out_bias of a warp's 16 pixels, rounded, where x is.
template <class Plan>
D2LS_DEVICE Statistics recompute_update(uint32_t x, int row, int channels) {
  using Pixels = typename Plan::Pixels;
  constexpr int tiles = Plan::Rows::panel / 8;
  Statistics statistics;
  D2LS_UNROLL
  for (int first = 0; first < Plan::channels / 8; first += tiles) {
    const uint32_t slice = x + first / tiles * Pixels::panel_bytes;
    float total[tiles][4];
    const uint32_t out_bias = Plan::out_bias + 32 * first + 8 * (thread_index() % 4);
    const auto bias = [&](int c) { return load_shared<Two>(out_bias + 32 * c); };
    residual(total, slice, row, bias, Pixels());
    Plan::Unit::rows_by_tile(total, Plan::weights, row, Plan::value + first / tiles * Plan::Rows::panel_bytes,
                             typename Plan::Weights(), typename Plan::Slice());
    statistics.add(total, 8 * first, channels);
    store_in_tile(total, slice, row, Pixels());
  }
  return statistics;
}

// dx (and dpe) of a warp's 16 pixels, the first of which is pixel `pixel` of the image.
template <class Plan>
D2LS_DEVICE void store_pixel_gradients(const RefineBackwardArguments& a, uint32_t du, int row, int dictionary,
                                       int pixel) {
  using T = typename Plan::T;
  constexpr int panel = Plan::Rows::panel;
  const int64_t start = static_cast<int64_t>(dictionary) * a.pixels * a.channels;
  D2LS_NO_UNROLL
  for (int first = 0; first < from_here(a.channels); first += panel) {
    float total[panel / 8][4] = {}, own[panel / 8][4];
    Plan::Unit::rows_by_tile(total, Plan::scores, row, Plan::key + first / panel * Plan::Rows::panel_bytes,
                             typename Plan::Weights(), typename Plan::Slice());
    if (a.grad_pe != nullptr) {
      store_encoding_gradient(total, a.grad_pe + start, a.add_pe, pixel, a.pixels, a.channels, first);
    }
    if (a.block == 0) {
      const auto none = [](int) { return Two{0, 0}; };
      residual(own, du + first / panel * Plan::Pixels::panel_bytes, row, none, typename Plan::Pixels());
      D2LS_UNROLL
      for (int i = 0; i < panel / 2; ++i) {
        total[i / 4][i % 4] += own[i / 4][i % 4];
      }
    } else {
      add_rows(total, static_cast<const T*>(a.grad_x) + start, pixel, a.pixels, a.channels, first);
    }
    store_rows(total, static_cast<T*>(a.grad_x) + start, pixel, a.pixels, a.channels, first);
  }
}

// What the warps of pixels do.
template <class Plan>
D2LS_DEVICE void pixel_group(const RefineBackwardArguments& a, const Entries& entries, int tiles) {
  using T = typename Plan::T;
  using Pixels = typename Plan::Pixels;
  using Rows = typename Plan::Rows;
  constexpr int C = Plan::channels;
  const int row = thread_index() / 32 * 16;
  const auto chunk = [] { return load_shared<Chunk>(Plan::chunk); };
  const auto of_image = [&] { return chunk().image; };
  const auto of_encoding = [&] { return chunk().image % a.pe_images; };
  const auto of_dictionary = [&] { return chunk().dictionary; };
  // Rows of a tile that is wanted; an empty group otherwise, so that the count of groups under way stays the same.
  const auto fetch = [&](const void* pixels, const auto& index, uint32_t to, int tile) {
    if (tile < tiles) {
      const int start = chunk().first + tile * Plan::pixels;
      const T* from = static_cast<const T*>(pixels) + static_cast<int64_t>(index()) * a.pixels * a.channels;
      Pixels::load(to, row, row + 16, from, a.channels, thread_index() % 32, 32,
                   [&](int r) { return start + r < a.pixels ? start + r : -1; });
    }
    copy_commit();
  };
  fetch(a.x, of_image, Plan::x(0), 0);
  fetch(a.pe, of_encoding, Plan::y(0), 0);
  fetch(a.grad, of_dictionary, Plan::grad(0), 0);
  const typename Plan::Sums sums{Plan::sums};
  sums.clear();
  for (int tile = 0; tile < tiles; ++tile) {
    copy_wait<1>();  // all but the gradient
    add_encoding(Pixels(), Plan::x(tile), Plan::y(tile), thread_index() % 32, 32, row, row + 16);
    Plan::Unit::fence();
    named_barrier_wait(Plan::together, Plan::pixel_group);
    float weights[Plan::rows / 8][4] = {};
    Plan::Unit::rows_by_rows(weights, Plan::y(tile), row, Plan::key, Pixels(), Rows());
    head_softmax(weights, entries, Plan::bias);
    if (tile > 0) {
      named_barrier_wait(Plan::value_free, Plan::pair);
    }
    store_in_tile(weights, Plan::weights, row, typename Plan::Weights());
    warp_barrier();  // they are read as a factor by other lanes
    fetch(a.x, of_image, Plan::x(tile + 1), tile + 1);
    copy_wait<1>();
    warp_barrier();
    if constexpr (Plan::norm) {
      const Statistics statistics = recompute_update<Plan>(Plan::x(tile), row, a.channels);
      undo_norm<C>(Plan::x(tile), statistics, Plan::grad(tile), row, Plan::norm_weight, a.channels, a.eps, sums,
                   Pixels());
      warp_barrier();  // all lanes have read u
    }
    fetch(a.pe, of_encoding, Plan::y(tile + 1), tile + 1);
    Plan::Unit::fence();
    named_barrier_wait(Plan::together, Plan::pixel_group);
    named_barrier_arrive(Plan::value_full, Plan::pair);
    float grads[Plan::rows / 8][4] = {};
    Plan::Unit::rows_by_rows(grads, Plan::grad(tile), row, Plan::value, Pixels(), Rows());
    load_from_tile(weights, Plan::weights, row, typename Plan::Weights());
    undo_head_softmax(weights, grads, entries);
    store_in_tile(grads, Plan::scores, row, typename Plan::Weights());
    warp_barrier();  // they are read as a factor by other lanes
    named_barrier_arrive(Plan::key_full, Plan::pair);
    D2LS_UNROLL
    for (int n = 0; n < Plan::rows / 8; n += 4) {
      float values[8];
      D2LS_UNROLL
      for (int i = 0; i < 8; ++i) {
        values[i] = grads[n + i / 2][i % 2] + grads[n + i / 2][i % 2 + 2];
      }
      sums.add(C / 16 + n / 4, column_sum(values));
    }
    store_pixel_gradients<Plan>(a, Plan::grad(tile), row, of_dictionary(),
                                chunk().first + tile * Plan::pixels + row);
    if (tile + 1 < tiles) {
      named_barrier_wait(Plan::key_free, Plan::pair);
    }
    fetch(a.grad, of_dictionary, Plan::grad(tile + 1), tile + 1);
  }
  const int64_t part = chunk().part(a.chunks) * (Plan::pixel_group / 32) + thread_index() / 32;
  D2LS_UNROLL
  for (int n = 0; n < Plan::rows / 8; n += 4) {
    const int found = entries.row(a.block * Plan::rows + column_of_sum(n));
    if (found >= 0) {
      a.part_key_bias[part * a.heads * a.entries + found] = sums.get(C / 16 + n / 4);
    }
  }
  if constexpr (Plan::norm) {
    store_norm_gradient<C>(sums, a.part_norm_weight, a.part_norm_bias, part, a.channels);
  }
}

}  // namespace d2ls::cuda
