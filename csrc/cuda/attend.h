// attend, forward: softmax over the pixels of query . (x + pe), times x. See kernels/attend.py for the formulas.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

// Row-major and contiguous: pixels [batch, pixels, channels], pe [pe_images, pixels, channels] where image i of pe
// belongs to images i, i + pe_images, .., query [batch, rows, channels], all of `type`; context [batch, rows, channels]
// and log_sum_exp [batch, rows] float32.
struct AttendCall {
  Type type;
  int64_t batch, pixels;
  int channels, rows;
  int64_t pe_images;
  const void *x, *pe, *query;
  float *context, *log_sum_exp;
};

// How many floats of scratch memory the call needs.
int64_t attend_scratch(const Device& device, const AttendCall& call);

Error attend(const Device& device, const AttendCall& call, float* scratch);

}  // namespace d2ls::cuda
