// attend, backward. See kernels/attend.py for the formulas.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

// As in AttendCall; grad_context [batch, rows, channels] in `type`, log_sum_exp and delta [batch, rows] float32, with
// delta = grad_context . context - the gradient of log_sum_exp. grad_x [batch, pixels, channels] and grad_query
// [batch, rows, channels] in `type`; `add`, null or of grad_x's shape, is added to grad_x (it may be the same memory).
// grad_pe is null or [pe_images, pixels, channels] in `type`; through_pe is null or where it is left instead, not yet added
// up over images: [batch, pixels, channels] float32.
struct AttendBackwardCall {
  Type type;
  int64_t batch, pixels;
  int channels, rows;
  int64_t pe_images;
  const void *x, *pe, *query, *grad_context;
  const float *log_sum_exp, *delta;
  const void* add;
  void *grad_x, *grad_pe, *grad_query;
  float* through_pe;
};

// How many floats of scratch memory the call needs.
int64_t attend_backward_scratch(const Device& device, const AttendBackwardCall& call);

Error attend_backward(const Device& device, const AttendBackwardCall& call, float* scratch);

}  // namespace d2ls::cuda
