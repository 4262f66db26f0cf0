// The launches of attend's backward.
#include "cuda/attend_backward.h"

#include "cuda/attend_backward.cuh"
#include "cuda/combine_parts.cuh"

namespace d2ls::cuda {

namespace {

// With `scratch` null only the size is found.
Error run(const Device& device, const AttendBackwardCall& call, float* scratch, int64_t* floats) {
  return dispatch(call.type, device.major, call.channels, [&](auto kind, auto architecture, auto channels) -> Error {
    using Architecture = decltype(architecture);
    using Plan = AttendBackwardPlan<decltype(kind), Architecture, channels>;
    using T = typename Plan::T;
    const Split cut = split(call.pixels, Plan::pixels, call.batch, device.multiprocessors);
    const int64_t parts = call.batch * cut.chunks * call.rows * call.channels;
    const int64_t image = call.pixels * call.channels;
    const bool combined = call.grad_pe != nullptr && call.through_pe == nullptr;
    *floats = parts + (combined ? call.batch * image : 0);
    if (scratch == nullptr) {
      return "";
    }
    float* part_pe = combined ? scratch + parts : call.through_pe;
    for (int first_row = 0; first_row < call.rows; first_row += Plan::rows) {
      const AttendBackwardArguments arguments{
          call.x, call.pe, call.query, call.grad_context, first_row == 0 ? call.add : call.grad_x, call.log_sum_exp,
          call.delta, call.grad_x, part_pe, scratch, static_cast<int>(call.pixels), static_cast<int>(call.pe_images),
          call.channels, call.rows, first_row, cut.chunks, cut.tiles_per_chunk};
      const Error error = launch(device, attend_backward_chunk<Plan, Architecture>, call.batch * cut.chunks,
                                 Plan::threads, Plan::shared_bytes, arguments);
      if (!error.empty()) {
        return error;
      }
    }
    if (combined) {
      const Error error = combine_parts<float, T>(device, part_pe, call.grad_pe, 1,
                                              call.batch / call.pe_images, call.pe_images * image);
      if (!error.empty()) {
        return error;
      }
    }
    return combine_parts<float, T>(device, scratch, call.grad_query, call.batch, cut.chunks,
                               static_cast<int64_t>(call.rows) * call.channels);
  });
}

}  // namespace

int64_t attend_backward_scratch(const Device& device, const AttendBackwardCall& call) {
  int64_t floats = 0;
  run(device, call, nullptr, &floats);
  return floats;
}

Error attend_backward(const Device& device, const AttendBackwardCall& call, float* scratch) {
  if (call.pixels > 1 << 30) {
    return "the CUDA kernels take up to 2^30 pixels an image, got " + std::to_string(call.pixels);
  }
  int64_t floats = 0;
  return run(device, call, scratch, &floats);
}

}  // namespace d2ls::cuda
