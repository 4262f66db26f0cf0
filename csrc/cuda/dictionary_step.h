// dictionary_step, forward: the next dictionary, and the rows folded from it. See kernels/dictionary_step.py.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

// Widths that every image shares; inner is heads times the width of a head.
struct StepShape {
  int heads, entries, channels, inner;
  float eps;
};

// Weights [inner, channels], or [channels, inner] for out_weight; vectors as long as what they are added to. A part that is
// absent has null pointers.
struct UpdateWeights {
  const float *value_weight, *value_bias, *out_weight, *out_bias, *norm_weight, *norm_bias;
};
struct EntriesWeights {
  const float *query_weight, *query_bias, *key_weight, *key_bias, *value_weight, *value_bias, *out_weight;
};
struct LookWeights {
  const float *query_weight, *query_bias, *key_weight;
};

// Row-major and contiguous, float32: dictionary, position and updated [batch, entries, channels], context
// [batch, heads * entries, channels]; query, key and value [batch, heads * entries, channels] of `type`, key_bias
// [batch, heads * entries] float32.
struct StepCall {
  Type type;
  int64_t batch;
  StepShape shape;
  const float *dictionary, *position, *context;
  UpdateWeights update;
  EntriesWeights entries;
  LookWeights look;
  float* updated;
  void *query, *key, *value;
  float* key_bias;
};

// Why the kernels do not take these widths, or nothing.
Error why_not(const StepShape& shape);

// How many floats of scratch memory the call needs.
int64_t dictionary_step_scratch(const Device& device, const StepCall& call);

Error dictionary_step(const Device& device, const StepCall& call, float* scratch);

}  // namespace d2ls::cuda
