// The launches of attend.
#include "cuda/attend.h"

#include "cuda/attend.cuh"
#include "cuda/merge.cuh"

namespace d2ls::cuda {

namespace {

// With `scratch` null only the size is found.
Error run(const Device& device, const AttendCall& call, float* scratch, int64_t* floats) {
  return dispatch(call.type, device.major, call.channels, [&](auto kind, auto architecture, auto channels) -> Error {
    using Architecture = decltype(architecture);
    using Plan = AttendPlan<decltype(kind), Architecture, channels>;
    const int row_blocks = (call.rows + Plan::rows - 1) / Plan::rows;
    const int64_t device_blocks = static_cast<int64_t>(device.multiprocessors) * Plan::blocks;
    const Split cut = split(call.pixels, Plan::pixels, call.batch * row_blocks, device_blocks);
    const int64_t parts = call.batch * cut.chunks * call.rows;
    *floats = Parts::floats(parts, call.channels);
    if (scratch == nullptr) {
      return "";
    }
    const Parts to(scratch, parts, call.channels);
    const AttendArguments arguments{call.x,         call.pe,     call.query,     to.context,
                                    to.top,         to.sum,      call.pixels,    call.pe_images,
                                    call.rows,      call.channels, row_blocks,   cut.chunks,
                                    cut.tiles_per_chunk};
    const Error error = launch(device, attend_chunk<Plan, Architecture>, call.batch * row_blocks * cut.chunks,
                               Plan::threads, Plan::shared_bytes, arguments);
    return error.empty() ? merge(device, to, call.context, call.log_sum_exp, call.batch, call.rows, call.channels,
                                 cut.chunks)
                         : error;
  });
}

}  // namespace

int64_t attend_scratch(const Device& device, const AttendCall& call) {
  int64_t floats = 0;
  run(device, call, nullptr, &floats);
  return floats;
}

Error attend(const Device& device, const AttendCall& call, float* scratch) {
  int64_t floats = 0;
  return run(device, call, scratch, &floats);
}

}  // namespace d2ls::cuda
