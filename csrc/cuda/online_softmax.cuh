// The running softmax over pixels of 16 rows of scores in a warp: a lane has those of rows g and g + 8.
#pragma once

#include "cuda/products.cuh"

namespace d2ls::cuda {

template <class T, int PIXELS, int C>
struct OnlineSoftmax {
  float top[2] = {-infinity(), -infinity()};
  float sum[2] = {0, 0};  // of this lane's columns
  float context[C / 8][4] = {};

  // Scores become weights relative to the new maximum, and what was summed is rescaled to it. The first `valid` pixels
  // count, at least one: the new maximum is then finite, and the first rescale is 2^-infinity = 0.
  D2LS_DEVICE void weigh(float (&scores)[PIXELS / 8][4], int64_t valid) {
    const int t = thread_index() % 4;
    if (valid < PIXELS) {
      D2LS_UNROLL
      for (int n = 0; n < PIXELS / 8; ++n) {
        D2LS_UNROLL
        for (int i = 0; i < 4; ++i) {
          scores[n][i] = 8 * n + 2 * t + i % 2 < valid ? scores[n][i] : -infinity();
        }
      }
    }
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      float highest = top[half];
      D2LS_UNROLL
      for (int n = 0; n < PIXELS / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      highest = quad_max(highest);
      const float rescale = power_of_two((top[half] - highest) * log2_e);
      top[half] = highest;
      sum[half] *= rescale;
      D2LS_UNROLL
      for (int n = 0; n < PIXELS / 8; ++n) {
        // Summed as rounded for the product, so that the context is a true mean and the backward's delta agrees.
        const Two weights = rounded<T>({power_of_two((scores[n][2 * half] - highest) * log2_e),
                                        power_of_two((scores[n][2 * half + 1] - highest) * log2_e)});
        scores[n][2 * half] = weights.first;
        scores[n][2 * half + 1] = weights.second;
        sum[half] += weights.first + weights.second;
      }
      D2LS_UNROLL
      for (int c = 0; c < C / 8; ++c) {
        context[c][2 * half] *= rescale;
        context[c][2 * half + 1] *= rescale;
      }
    }
  }

  // Writes rows row + g and row + g + 8 of a part that has `rows` rows of `channels` columns.
  D2LS_DEVICE void store(float* part_context, float* part_max, float* part_sum, int row, int rows, int channels) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    D2LS_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[half]);
      const int64_t mine = row + g + 8 * half;
      if (mine >= rows) {
        continue;
      }
      D2LS_UNROLL
      for (int c = 0; c < C / 8; ++c) {
        if (8 * c < channels) {
          float* to = part_context + mine * channels + 8 * c + 2 * t;
          to[0] = context[c][2 * half];
          to[1] = context[c][2 * half + 1];
        }
      }
      if (t == 0) {
        part_max[mine] = top[half];
        part_sum[mine] = total;
      }
    }
  }
};

}  // namespace d2ls::cuda
