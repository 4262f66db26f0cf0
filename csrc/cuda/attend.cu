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
    *floats = parts * (call.channels + 2);
    if (scratch == nullptr) {
      return "";
    }
    float* part_max = scratch + parts * call.channels;
    const AttendArguments first{call.x,      call.pe,        call.query, scratch,       part_max,   part_max + parts,
                                call.pixels, call.pe_images, call.rows,  call.channels, row_blocks, cut.chunks,
                                cut.tiles_per_chunk};
    const Error error = launch(device, attend_chunk<Plan, Architecture>, call.batch * row_blocks * cut.chunks,
                               Plan::threads, Plan::shared_bytes, first);
    if (!error.empty()) {
      return error;
    }
    const MergeArguments second{scratch,          part_max,  part_max + parts, call.context,
                                call.log_sum_exp, call.rows, call.channels,    cut.chunks};
    return launch(device, merge_chunks, call.batch * call.rows, merge_threads, 0, second);
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
