// The launch of refine.
#include "cuda/refine.h"

#include "cuda/refine.cuh"

namespace d2ls::cuda {

namespace {

template <class Plan, class Architecture>
Error run(const Device& device, const RefineCall& call) {
  const int64_t groups = call.images * call.dictionaries;
  const Split cut = split(call.pixels, Plan::pixels, groups, static_cast<int64_t>(device.multiprocessors) * Plan::blocks);
  const RefineArguments arguments{call.x, call.pe, call.key, call.value, call.key_bias, call.out_bias,
                                  call.norm_weight, call.norm_bias, call.refined, static_cast<int>(call.pixels),
                                  static_cast<int>(call.images), static_cast<int>(call.pe_images),
                                  static_cast<int>(call.dictionaries), call.channels, call.heads, call.entries,
                                  cut.chunks, cut.tiles_per_chunk, call.eps};
  return launch(device, refine_chunk<Plan, Architecture>, groups * cut.chunks, Plan::threads, Plan::shared_bytes,
                arguments);
}

}  // namespace

Error why_not(const RefineCall& call) {
  const int entries = call.type == Type::bf16 || call.type == Type::f16 ? 64 : 32;
  if (call.entries > entries) {
    return "the CUDA kernels take up to " + std::to_string(entries) + " entries a head, got " +
           std::to_string(call.entries);
  }
  if (call.pixels > 1 << 30) {
    return "the CUDA kernels take up to 2^30 pixels an image, got " + std::to_string(call.pixels);
  }
  return "";
}

Error refine(const Device& device, const RefineCall& call) {
  const Error problem = why_not(call);
  if (!problem.empty()) {
    return problem;
  }
  return dispatch(call.type, device.major, call.channels, [&](auto kind, auto architecture, auto channels) -> Error {
    using Architecture = decltype(architecture);
    using Plan = RefinePlan<decltype(kind), Architecture, channels, true>;
    if (Entries{call.heads, call.entries}.blocks(Plan::rows) == 1) {
      return run<Plan, Architecture>(device, call);
    }
    return run<RefinePlan<decltype(kind), Architecture, channels, false>, Architecture>(device, call);
  });
}

}  // namespace d2ls::cuda
