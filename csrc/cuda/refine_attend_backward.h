// refine_attend, backward.
#pragma once

#include "cuda/refine_backward.h"

namespace d2ls::cuda {

// `refine` without through_pe; query, grad_context and grad_query [dictionaries * images, queries, channels] in `type`,
// log_sum_exp and delta [dictionaries * images, queries] as in AttendBackwardCall.
struct RefineAttendBackwardCall {
  RefineBackwardCall refine;
  int queries;
  const void *query, *grad_context;
  const float *log_sum_exp, *delta;
  void* grad_query;
};

// How many floats of scratch memory the call needs.
int64_t refine_attend_backward_scratch(const Device& device, const RefineAttendBackwardCall& call);

Error refine_attend_backward(const Device& device, const RefineAttendBackwardCall& call, float* scratch);

}  // namespace d2ls::cuda
