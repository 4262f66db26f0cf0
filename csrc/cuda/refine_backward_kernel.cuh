// The kernel of refine's backward: one chunk of the pixels of an image and one dictionary, by three groups of warps.
#pragma once

#include "cuda/refine_backward.cuh"

namespace d2ls::cuda {

// The sum over the entries of the first head of 16 rows of dV from `row` on: this warp's part of the gradient of out_bias.
template <int TILES>
D2LS_DEVICE void store_out_bias(const float (&total)[TILES][4], float* to, int row, int entries, int channels) {
  const int g = thread_index() % 32 / 4;
  D2LS_UNROLL
  for (int tile = 0; tile < TILES; tile += 4) {
    float values[8];
    D2LS_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float* two = total[tile + i / 2] + i % 2;
      values[i] = (row + g < entries ? two[0] : 0.0f) + (row + g + 8 < entries ? two[2] : 0.0f);
    }
    const float sum = column_sum(values);
    const int column = column_of_sum(tile);
    if (column < channels) {
      to[column] = sum;
    }
  }
}

template <class Plan, class Architecture>
D2LS_KERNEL(Plan::threads, Plan::blocks) refine_backward_chunk(RefineBackwardArguments a) {
  if constexpr (compiled_here<Architecture>()) {
    using T = typename Plan::T;
    const Chunk chunk = Chunk::of(a, Plan::pixels);
    const int tiles = smaller(a.tiles_per_chunk, (a.pixels - chunk.first + Plan::pixels - 1) / Plan::pixels);
    const Entries entries{a.heads, a.entries};
    const auto row_of = [&](int place) { return entries.row(a.block * Plan::rows + place); };

    const int64_t first_row = static_cast<int64_t>(chunk.dictionary) * a.heads * a.entries;
    Plan::Rows::load(Plan::key, 0, Plan::rows, static_cast<const T*>(a.key) + first_row * a.channels, a.channels,
                     thread_index(), Plan::threads, row_of);
    Plan::Rows::load(Plan::value, 0, Plan::rows, static_cast<const T*>(a.value) + first_row * a.channels, a.channels,
                     thread_index(), Plan::threads, row_of);
    copy_commit();
    for (int place = thread_index(); place < Plan::rows; place += Plan::threads) {
      store_shared(Plan::bias + 4 * place, entries.bias(a.key_bias + first_row, a.block * Plan::rows + place));
    }
    for (int i = thread_index(); i < Plan::channels; i += Plan::threads) {
      store_shared(Plan::out_bias + 4 * i, i < a.channels ? a.out_bias[i] : 0.0f);
      store_shared(Plan::norm_weight + 4 * i, i < a.channels ? a.norm_weight[i] : 0.0f);
    }
    if (thread_index() == 0) {
      store_shared(Plan::chunk, chunk);
    }
    copy_wait<0>();
    Plan::Unit::fence();
    block_barrier();

    if (thread_index() < Plan::pixel_group) {
      pixel_group<Plan>(a, entries, tiles);
    } else {
      const int row = (thread_index() - Plan::pixel_group) % Plan::row_group / 32 * 16;
      float total[Plan::channels / 8][4] = {};
      if (thread_index() < Plan::pair) {
        add_up_rows<Plan>(total, tiles, row, Plan::pair, 1, [&](int tile) {
          return Handover{Plan::weights, Plan::grad(tile), Plan::value_full, Plan::value_free};
        });
        const int64_t part = load_shared<Chunk>(Plan::chunk).part(a.chunks);
        store_parts(total, a.part_value + part * a.heads * a.entries * a.channels, row, a.channels, row_of);
        if (a.block == 0) {
          store_out_bias(total, a.part_out_bias + (part * (Plan::row_group / 32) + row / 16) * a.channels, row,
                         a.entries, a.channels);
        }
      } else {
        add_up_rows<Plan>(total, tiles, row, Plan::pair, 1, [&](int tile) {
          return Handover{Plan::scores, Plan::y(tile), Plan::key_full, Plan::key_free};
        });
        const int64_t part = load_shared<Chunk>(Plan::chunk).part(a.chunks);
        store_parts(total, a.part_key + part * a.heads * a.entries * a.channels, row, a.channels, row_of);
      }
    }
  }
}

}  // namespace d2ls::cuda
