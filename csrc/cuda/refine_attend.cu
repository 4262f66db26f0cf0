// The launches of refine_attend: two passes over the pixels.
#include "cuda/refine_attend.h"

namespace d2ls::cuda {

namespace {

AttendCall second_pass(const RefineAttendCall& call) {
  const RefineCall& first = call.refine;
  return {first.type,   first.dictionaries * first.images,
          first.pixels, first.channels,
          call.queries, first.pe_images,
          first.refined, first.pe,
          call.query,   call.context,
          call.log_sum_exp};
}

}  // namespace

int64_t refine_attend_scratch(const Device& device, const RefineAttendCall& call) {
  return attend_scratch(device, second_pass(call));
}

Error refine_attend(const Device& device, const RefineAttendCall& call, float* scratch) {
  const Error error = refine(device, call.refine);
  return error.empty() ? attend(device, second_pass(call), scratch) : error;
}

}  // namespace d2ls::cuda
