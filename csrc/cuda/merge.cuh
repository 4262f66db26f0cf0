// Second stage of attend: the running softmax of the chunks of pixels put together, in order.
#pragma once

#include "cuda/device.h"
#include "cuda/instructions/numbers.cuh"
#include "cuda/instructions/sync.cuh"
#include "cuda/tile.cuh"

namespace d2ls::cuda {

struct MergeArguments {
  const float *part_context, *part_max, *part_sum;  // [batch, chunks, rows, channels] and [batch, chunks, rows] twice
  float *context, *log_sum_exp;                     // [batch, rows, channels] and [batch, rows]
  int rows, channels, chunks;
};

// Four groups of 64 threads, four channels each: a group takes every fourth chunk, so that with a chunk for each of 132 SMs
// a thread has 33 loads, eight of them under way at a time, rather than 132 one after the other.
constexpr int merge_groups = 4, merge_group = 64, merge_threads = merge_groups * merge_group;
constexpr int merge_channels = 4 * merge_group;
constexpr uint32_t merge_shared_bytes = merge_groups * (merge_channels + 2) * sizeof(float);

// One block a row.
static D2LS_KERNEL(merge_threads, 1) merge_chunks(MergeArguments a) {
  constexpr uint32_t tops = merge_groups * merge_channels * sizeof(float), sums = tops + merge_groups * sizeof(float);
  const int group = thread_index() / merge_group, channel = 4 * (thread_index() % merge_group);
  const int64_t row = block_index() % a.rows, first = block_index() / a.rows * a.chunks * a.rows + row;
  float top = -infinity(), sum = 0;
  D2LS_UNROLL_EIGHT
  for (int chunk = group; chunk < a.chunks; chunk += merge_groups) {
    top = fmaxf(top, a.part_max[first + static_cast<int64_t>(chunk) * a.rows]);
  }
  Four context{};
  D2LS_UNROLL_EIGHT
  for (int chunk = group; chunk < a.chunks; chunk += merge_groups) {
    const int64_t part = first + static_cast<int64_t>(chunk) * a.rows;
    const float weight = power_of_two((a.part_max[part] - top) * log2_e);
    sum += weight * a.part_sum[part];
    if (channel < a.channels) {
      const Four four = *reinterpret_cast<const Four*>(a.part_context + part * a.channels + channel);
      D2LS_UNROLL
      for (int i = 0; i < 4; ++i) {
        context.value[i] += weight * four.value[i];
      }
    }
  }
  store_shared(4 * (group * merge_channels + channel), context);
  if (channel == 0) {
    store_shared(tops + 4 * group, top);
    store_shared(sums + 4 * group, sum);
  }
  block_barrier();
  if (group != 0) {
    return;
  }
  const Four all_tops = load_shared<Four>(tops), all_sums = load_shared<Four>(sums);
  D2LS_UNROLL
  for (int i = 0; i < merge_groups; ++i) {
    top = fmaxf(top, all_tops.value[i]);
  }
  sum = 0;
  context = {};
  D2LS_UNROLL
  for (int i = 0; i < merge_groups; ++i) {  // a group without chunks has top -infinity: weight 0
    const float weight = power_of_two((all_tops.value[i] - top) * log2_e);
    const Four four = load_shared<Four>(4 * (i * merge_channels + channel));
    sum += weight * all_sums.value[i];
    D2LS_UNROLL
    for (int j = 0; j < 4; ++j) {
      context.value[j] += weight * four.value[j];
    }
  }
  if (channel < a.channels) {
    D2LS_UNROLL
    for (int j = 0; j < 4; ++j) {
      context.value[j] /= sum;
    }
    *reinterpret_cast<Four*>(a.context + block_index() * a.channels + channel) = context;
  }
  if (channel == 0) {
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
  return launch(device, merge_chunks, batch * rows, merge_threads, merge_shared_bytes, arguments);
}

}  // namespace d2ls::cuda
