// What a warpgroup of the resident kernel does with its 64 pixels: see interact.cuh.
#pragma once

#include "cuda/head_softmax.cuh"
#include "cuda/interact_plan.cuh"
#include "cuda/online_softmax.cuh"
#include "cuda/refine_attend.cuh"

namespace d2ls::cuda {

// The two warpgroups' softmax over their own pixels as one: each hands half of its channels to the other.
template <class Plan, int GROUP>
struct Halves {
  static constexpr int tiles = Plan::channels / 16, own = GROUP * tiles, other = (1 - GROUP) * tiles;

  static D2LS_DEVICE uint32_t place(int group, int tile) {
    return Plan::exchange + 16 * ((group * tiles + tile) * Plan::group + thread_index() % Plan::group);
  }
  // Of a row, by the group that has it: maximum and sum.
  static D2LS_DEVICE uint32_t stats(int group, int half) {
    const int lane = thread_index() % 32, row = thread_index() % Plan::group / 32 * 16 + lane / 4 + 8 * half;
    return Plan::stats + 8 * (group * Plan::rows + row);
  }

  template <class Softmax>
  static D2LS_DEVICE void give(const Softmax& softmax) {
    D2LS_UNROLL
    for (int c = 0; c < tiles; ++c) {
      const float* four = softmax.context[other + c];
      store_shared(place(GROUP, c), Four{four[0], four[1], four[2], four[3]});
    }
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax.sum[half]);
      if (thread_index() % 4 == 0) {
        store_shared(stats(GROUP, half), Two{softmax.top[half], sum});
      }
    }
  }

  // After a barrier: this half of the channels of the block's part to memory.
  template <class Softmax>
  static D2LS_DEVICE void take(const Softmax& softmax, const Parts& parts, int64_t first, int rows, int channels) {
    const int t = thread_index() % 4;
    channels = from_here(channels);
    float scale[2], scale_of_other[2];
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Two mine = load_shared<Two>(stats(GROUP, half)), others = load_shared<Two>(stats(1 - GROUP, half));
      const float top = fmaxf(mine.first, others.first);
      scale[half] = power_of_two((mine.first - top) * log2_e);
      scale_of_other[half] = power_of_two((others.first - top) * log2_e);
      const int64_t row = thread_index() % Plan::group / 32 * 16 + thread_index() % 32 / 4 + 8 * half;
      if (GROUP == 0 && t == 0 && row < rows) {
        parts.top[first + row] = top;
        parts.sum[first + row] = mine.second * scale[half] + others.second * scale_of_other[half];
      }
    }
    const int row = thread_index() % Plan::group / 32 * 16 + thread_index() % 32 / 4;
    D2LS_UNROLL
    for (int c = 0; c < tiles; ++c) {
      const Four others = load_shared<Four>(place(1 - GROUP, c));
      D2LS_UNROLL
      for (int half = 0; half < 2; ++half) {
        if (row + 8 * half < rows && 8 * (own + c) < channels) {
          const float* two = softmax.context[own + c] + 2 * half;
          *reinterpret_cast<Two*>(parts.context + (first + row + 8 * half) * channels + 8 * (own + c) + 2 * t) = {
              two[0] * scale[half] + others.value[2 * half] * scale_of_other[half],
              two[1] * scale[half] + others.value[2 * half + 1] * scale_of_other[half]};
        }
      }
    }
  }
};

// The tile of this thread's warpgroup: pixels `start` on of an image of `pixels`.
template <class Plan>
struct ResidentTile {
  using T = typename Plan::T;
  using Pixels = typename Plan::Pixels;
  int start, pixels, channels;

  static D2LS_DEVICE int group() { return thread_index() / Plan::group; }
  static D2LS_DEVICE int thread() { return thread_index() % Plan::group; }
  static D2LS_DEVICE int row() { return thread() / 32 * 16; }
  static D2LS_DEVICE uint32_t here() { return group() * Plan::tile_bytes; }
  D2LS_DEVICE bool empty() const { return start >= pixels; }

  // Starts copying the tile's pixels of an image of x or pe.
  D2LS_DEVICE void fetch(uint32_t to, const T* image) const {
    const int first = start, end = pixels;
    Pixels::load(here() + to, 0, Plan::pixels, image, channels, thread(), Plan::group,
                 [=](int r) { return first + r < end ? first + r : -1; });
    copy_commit();
  }

  // Pixels become refined pixels, and their encoding the sum of both.
  D2LS_DEVICE void refine(const RefineParameters& parameters, const Entries& entries, float eps, T* refined) const {
    constexpr int C = Plan::channels;
    const int channels = from_here(this->channels), mine = row();
    float scores[Plan::rows / 8][4] = {};
    Plan::Unit::sum_by_rows(scores, here() + Plan::x, here() + Plan::pe, mine, Plan::key, Pixels(),
                            typename Plan::Rows());
    head_softmax(scores, entries, Plan::bias);
    float rows[C / 8][4];
    const auto out_bias = [&](int c) {
      const float* two = parameters.out_bias + 8 * c + 2 * (thread() % 4);
      return 8 * c < channels ? Two{two[0], two[1]} : Two{0, 0};
    };
    residual(rows, here() + Plan::x, mine, out_bias, Pixels());
    Plan::Unit::result_by_tile(rows, scores, Plan::value, typename Plan::Rows());
    normalise(rows, Norm<C>{Plan::norm}, channels, eps);
    warp_barrier();  // all lanes have read the 16 pixels
    replace_pixels<Plan>(rows, here(), mine);
    Plan::Unit::fence();
    if (refined != nullptr) {
      store_rows(rows, refined, start + mine, pixels, channels);
    }
  }

  template <class Softmax>
  D2LS_DEVICE void attend(Softmax& softmax) const {
    float scores[Plan::pixels / 8][4] = {};
    Plan::Unit::rows_by_rows(scores, Plan::query, row(), here() + Plan::pe, typename Plan::Rows(), Pixels());
    softmax.weigh(scores, pixels - start);
    Plan::Unit::result_by_tile(softmax.context, scores, here() + Plan::x, Pixels());
  }
};

}  // namespace d2ls::cuda
