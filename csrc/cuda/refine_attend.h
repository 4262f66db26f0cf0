// refine, then attend on its result.
#pragma once

#include "cuda/attend.h"
#include "cuda/refine.h"

namespace d2ls::cuda {

struct RefineAttendCall {
  RefineCall refine;
  int queries;        // rows of query
  const void* query;  // [dictionaries * images, queries, channels]
  float *context, *log_sum_exp;
};

// How many floats of scratch memory the call needs.
int64_t refine_attend_scratch(const Device& device, const RefineAttendCall& call);

Error refine_attend(const Device& device, const RefineAttendCall& call, float* scratch);

}  // namespace d2ls::cuda
