// Second stage of attend: the running softmax of the chunks of pixels put together, in order.
#pragma once

#include "cuda/device.h"
#include "cuda/instructions/numbers.cuh"

namespace d2ls::cuda {

struct MergeArguments {
  const float *part_context, *part_max, *part_sum;  // [batch, chunks, rows, channels] and [batch, chunks, rows] twice
  float *context, *log_sum_exp;                     // [batch, rows, channels] and [batch, rows]
  int rows, channels, chunks;
};

constexpr int merge_threads = 128;

// One block a row. Every thread sums all weights itself: there are fewer chunks than it takes to share them.
static D2LS_KERNEL(merge_threads, 1) merge_chunks(MergeArguments a) {
  const int64_t row = block_index() % a.rows, first = block_index() / a.rows * a.chunks * a.rows + row;
  float top = -infinity();
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    top = fmaxf(top, a.part_max[first + static_cast<int64_t>(chunk) * a.rows]);
  }
  float sum = 0, context[2] = {0, 0};  // up to 256 channels
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    const int64_t part = first + static_cast<int64_t>(chunk) * a.rows;
    const float weight = power_of_two((a.part_max[part] - top) * log2_e);
    sum += weight * a.part_sum[part];
    for (int i = 0; i < 2; ++i) {
      const int channel = thread_index() + i * merge_threads;
      if (channel < a.channels) {
        context[i] += weight * a.part_context[part * a.channels + channel];
      }
    }
  }
  for (int i = 0; i < 2; ++i) {
    const int channel = thread_index() + i * merge_threads;
    if (channel < a.channels) {
      a.context[block_index() * a.channels + channel] = context[i] / sum;
    }
  }
  if (thread_index() == 0) {
    a.log_sum_exp[block_index()] = top + logf(sum);
  }
}

// Where the parts of `parts` rows lie in scratch memory, and how many floats they are.
struct Parts {
  float *context, *top, *sum;

  D2LS_EITHER Parts(float* scratch, int64_t parts, int channels)
      : context(scratch), top(scratch + parts * channels), sum(top + parts) {}
  static D2LS_EITHER int64_t floats(int64_t parts, int channels) { return parts * (channels + 2); }
};

inline Error merge(const Device& device, const Parts& parts, float* context, float* log_sum_exp, int64_t batch,
                   int rows, int channels, int chunks) {
  const MergeArguments arguments{parts.context, parts.top, parts.sum, context, log_sum_exp, rows, channels, chunks};
  return launch(device, merge_chunks, batch * rows, merge_threads, 0, arguments);
}

}  // namespace d2ls::cuda
