// The launches of refine_attend: one pass where the memory of the device holds both halves, otherwise two.
#include "cuda/refine_attend.h"

#include "cuda/merge.cuh"
#include "cuda/refine_attend.cuh"

namespace d2ls::cuda {

namespace {

AttendCall second_pass(const RefineAttendCall& call) {
  const RefineCall& first = call.refine;
  return {first.type,    first.dictionaries * first.images,
          first.pixels,  first.channels,
          call.queries,  first.pe_images,
          first.refined, first.pe,
          call.query,    call.context,
          call.log_sum_exp};
}

// With `scratch` null only the size is found.
Error run(const Device& device, const RefineAttendCall& call, float* scratch, int64_t* floats) {
  const RefineCall& c = call.refine;
  return dispatch(c.type, device.major, c.channels, [&](auto kind, auto architecture, auto channels) -> Error {
    using Kind = decltype(kind);
    using Architecture = decltype(architecture);
    if constexpr (Architecture::large_shared_memory && sizeof(typename Kind::Number) == 2) {
      using Plan = RefineAttendPlan<Kind, Architecture, channels>;
      if (call.queries <= Plan::rows && Entries{c.heads, c.entries}.blocks(Plan::rows) == 1) {
        const int64_t groups = c.images * c.dictionaries;
        const Split cut = split(c.pixels, Plan::pixels, groups, device.multiprocessors);
        const int64_t parts = groups * cut.chunks * call.queries;
        *floats = Parts::floats(parts, c.channels);
        if (scratch == nullptr) {
          return "";
        }
        const Parts to(scratch, parts, c.channels);
        const RefineAttendArguments arguments{c.x, c.pe, c.key, c.value, call.query, c.key_bias, c.out_bias,
                                              c.norm_weight, c.norm_bias, c.refined, to.context, to.top, to.sum,
                                              static_cast<int>(c.pixels), static_cast<int>(c.images),
                                              static_cast<int>(c.pe_images), static_cast<int>(c.dictionaries),
                                              c.channels, c.heads, c.entries, call.queries, cut.chunks,
                                              cut.tiles_per_chunk, c.eps};
        const Error error = launch(device, refine_attend_chunk<Plan, Architecture>, groups * cut.chunks, Plan::threads,
                                   Plan::shared_bytes, arguments);
        return error.empty() ? merge(device, to, call.context, call.log_sum_exp, groups, call.queries, c.channels,
                                     cut.chunks)
                             : error;
      }
    }
    if (scratch == nullptr) {
      *floats = attend_scratch(device, second_pass(call));
      return "";
    }
    const Error error = refine(device, c);
    return error.empty() ? attend(device, second_pass(call), scratch) : error;
  });
}

}  // namespace

int64_t refine_attend_scratch(const Device& device, const RefineAttendCall& call) {
  int64_t floats = 0;
  run(device, call, nullptr, &floats);
  return floats;
}

Error refine_attend(const Device& device, const RefineAttendCall& call, float* scratch) {
  const Error problem = why_not(call.refine);
  int64_t floats = 0;
  return problem.empty() ? run(device, call, scratch, &floats) : problem;
}

}  // namespace d2ls::cuda
