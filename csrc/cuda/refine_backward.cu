// The launches of refine's backward: one pass where all rows of key and value fit, otherwise one that undoes the norm
// and then one for every block of rows. In float32, where 32 rows fit and the model has 56, it is always the latter,
// which also has one width of channels only: fewer kernels to compile.
#include "cuda/refine_backward.h"

#include "cuda/combine_parts.cuh"
#include "cuda/refine_backward_kernel.cuh"
#include "cuda/scratch.h"
#include "cuda/undo_norm_kernel.cuh"

namespace d2ls::cuda {

namespace {

// The pass, or the passes, over the pixels; `du` is memory for the gradient of u, which several need.
template <class Kind, class Architecture, int C>
Error passes(const Device& device, RefineBackwardArguments a, int64_t grid, void* du) {
  using Undo = UndoNormPlan<Kind, Architecture, 256>;
  using Rest = RefineBackwardPlan<Kind, Architecture, 256, false>;
  if constexpr (sizeof(typename Kind::Number) == 2) {
    using Plan = RefineBackwardPlan<Kind, Architecture, C, true>;
    if (du == nullptr) {
      return launch(device, refine_backward_chunk<Plan, Architecture>, grid, Plan::threads, Plan::shared_bytes, a);
    }
  }
  RefineBackwardArguments first = a;
  first.grad_x = du;
  a.grad = du;
  Error error = launch(device, undo_norm_chunk<Undo, Architecture>, grid, Undo::threads, Undo::shared_bytes, first);
  const int blocks = Entries{a.heads, a.entries}.blocks(Rest::rows);
  for (; a.block < blocks && error.empty(); ++a.block) {
    error = launch(device, refine_backward_chunk<Rest, Architecture>, grid, Rest::threads, Rest::shared_bytes, a);
    a.add_pe = true;
  }
  return error;
}

// With `memory` null only the size of the scratch memory is found.
template <class Kind, class Architecture, int C>
Error run(const Device& device, const RefineBackwardCall& call, float* memory, int64_t* floats) {
  using Plan = RefineBackwardPlan<Kind, Architecture, C, true>;
  using T = typename Plan::T;
  const RefineCall& c = call.refine;
  const int64_t count = c.images * c.dictionaries, image = c.pixels * c.channels, rows = c.heads * c.entries;
  const Split cut = split(c.pixels, Plan::pixels, count, device.multiprocessors);
  const int64_t parts = count * cut.chunks, warps = Plan::pixel_group / 32, row_warps = Plan::row_group / 32;
  Scratch scratch(memory);
  float* part_key = scratch.take(parts * rows * c.channels);
  float* part_value = scratch.take(parts * rows * c.channels);
  float* part_key_bias = scratch.take(parts * warps * rows);
  float* part_norm_weight = scratch.take(parts * warps * c.channels);
  float* part_norm_bias = scratch.take(parts * warps * c.channels);
  float* part_out_bias = scratch.take(parts * row_warps * c.channels);
  float* part_pe = call.through_pe;
  if (call.grad_pe != nullptr && part_pe == nullptr) {
    part_pe = scratch.take(count * image);
  }
  void* grad_x = call.grad_x;
  if (c.dictionaries > 1) {
    grad_x = scratch.take(count * image, c.type);
  }
  void* du = nullptr;
  if (sizeof(T) == 4 || Entries{c.heads, c.entries}.blocks(Plan::rows) > 1) {
    du = scratch.take(count * image, c.type);
  }
  *floats = scratch.used();
  if (memory == nullptr) {
    return "";
  }
  const RefineBackwardArguments arguments{
      c.x, c.pe, c.key, c.value, call.grad_refined, c.key_bias, c.out_bias, c.norm_weight, grad_x, part_pe, part_key,
      part_value, part_key_bias, part_norm_weight, part_norm_bias, part_out_bias, static_cast<int>(c.pixels),
      static_cast<int>(c.images), static_cast<int>(c.pe_images), static_cast<int>(c.dictionaries), c.channels, c.heads, c.entries, 0, cut.chunks,
      cut.tiles_per_chunk, call.through_pe != nullptr, c.eps};
  // Of each sum: the parts, where it goes, how many sums, of how many parts, of what size.
  const auto floats_to = [&](auto to_type, const float* from, void* to, int64_t groups, int64_t of, int64_t size) {
    return [=, &device] { return combine_parts<float, decltype(to_type)>(device, from, to, groups, of, size); };
  };
  return in_turn(
      [&] { return passes<Kind, Architecture, C>(device, arguments, parts, du); },
      floats_to(T(), part_key, call.grad_key, count, cut.chunks, rows * c.channels),
      floats_to(T(), part_value, call.grad_value, count, cut.chunks, rows * c.channels),
      floats_to(0.0f, part_key_bias, call.grad_key_bias, count, cut.chunks * warps, rows),
      floats_to(0.0f, part_norm_weight, call.grad_norm_weight, 1, parts * warps, c.channels),
      floats_to(0.0f, part_norm_bias, call.grad_norm_bias, 1, parts * warps, c.channels),
      floats_to(0.0f, part_out_bias, call.grad_out_bias, 1, parts * row_warps, c.channels),
      [&]() -> Error {
        return c.dictionaries == 1
                   ? ""
                   : combine_parts<T, T>(device, grad_x, call.grad_x, 1, c.dictionaries, c.images * image);
      },
      [&]() -> Error {
        return call.grad_pe == nullptr ? ""
                                       : combine_parts<float, T>(device, part_pe, call.grad_pe, 1,
                                                                 count / c.pe_images, c.pe_images * image);
      });
}

Error dispatched(const Device& device, const RefineBackwardCall& call, float* memory, int64_t* floats) {
  return dispatch(call.refine.type, device.major, call.refine.channels,
                  [&](auto kind, auto architecture, auto channels) -> Error {
                    return run<decltype(kind), decltype(architecture), channels>(device, call, memory, floats);
                  });
}

}  // namespace

int64_t refine_backward_scratch(const Device& device, const RefineBackwardCall& call) {
  int64_t floats = 0;
  dispatched(device, call, nullptr, &floats);
  return floats;
}

Error refine_backward(const Device& device, const RefineBackwardCall& call, float* scratch) {
  const Error problem = why_not(call.refine);
  int64_t floats = 0;
  return problem.empty() ? dispatched(device, call, scratch, &floats) : problem;
}

}  // namespace d2ls::cuda
