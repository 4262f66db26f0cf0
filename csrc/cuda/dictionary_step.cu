// The launch of dictionary_step.
#include "cuda/dictionary_step.h"

#include "cuda/dictionary_step.cuh"
#include "cuda/products.cuh"

namespace d2ls::cuda {

namespace {

constexpr int64_t most_members = 48;

// Groups of blocks that share the device, each with an image at a time.
struct Groups {
  int count, members;
};

Groups groups_of(const Device& device, int64_t batch) {
  const int64_t count = batch < device.multiprocessors ? batch : device.multiprocessors;
  const int64_t members = device.multiprocessors / count;
  return {static_cast<int>(count), static_cast<int>(members < most_members ? members : most_members)};
}

int64_t counter_floats(const Groups& groups) { return static_cast<int64_t>(groups.count) * counter_words; }

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// mix_context's, add_update's and fold_rows's.
uint32_t shared_bytes(const StepShape& s) {
  const int64_t update = larger(mix_shared_bytes(s.channels, 0), int64_t{4} * s.entries * s.inner);
  return static_cast<uint32_t>(larger(update, rows_shared_bytes(s)));
}

}  // namespace

Error why_not(const StepShape& s) {
  if (s.channels % 16 != 0 || s.channels < 1 || s.channels > 256) {
    return "the CUDA kernels take channels in multiples of 16 up to 256, got " + std::to_string(s.channels);
  }
  if (s.inner > 256) {
    return "the CUDA kernels take an attention width up to 256, got " + std::to_string(s.inner);
  }
  if (s.entries > 64) {
    return "the CUDA kernels take up to 64 dictionary entries, got " + std::to_string(s.entries);
  }
  return "";
}

int64_t dictionary_step_scratch(const Device& device, const StepCall& call) {
  const StepShape& s = call.shape;
  return counter_floats(groups_of(device, call.batch)) + call.batch * s.entries * (s.inner + s.channels);
}

Error dictionary_step(const Device& device, const StepCall& call, float* scratch) {
  const StepShape& s = call.shape;
  const Groups groups = groups_of(device, call.batch);
  float* sums = scratch + counter_floats(groups);
  float* mixed = sums + call.batch * s.entries * s.channels;
  Error error = why_not(s);
  if (error.empty()) {
    error = clear(device, scratch, counter_floats(groups) * sizeof(float));
  }
  if (!error.empty()) {
    return error;
  }
  return by_type(call.type, [&](auto kind) {
    using T = typename decltype(kind)::Number;
    const StepArguments arguments{call, reinterpret_cast<uint32_t*>(scratch), mixed, sums, groups.count, groups.members};
    return launch_together(device, dictionary_step_kernel<T>, static_cast<int64_t>(groups.count) * groups.members,
                           step_threads, shared_bytes(s), arguments);
  });
}

}  // namespace d2ls::cuda
