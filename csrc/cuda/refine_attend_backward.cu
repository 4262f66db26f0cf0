// The launches of refine_attend's backward: x' once more, attend's gradient added to that of x', refine's.
//
// Not one pass: key, value, query and the gradient of the context take 128 KB at C = 256, a tile of 64 pixels with its
// encoding and gradient 96 KB, so that nothing of 227 KB is left for dS or for the tile that comes next; and the three sums
// over pixels are 192 KB of the 256 KB of registers, before u and its gradient.
#include "cuda/refine_attend_backward.h"

#include "cuda/attend_backward.h"
#include "cuda/scratch.h"

namespace d2ls::cuda {

namespace {

// With `memory` null only the size is found.
Error run(const Device& device, const RefineAttendBackwardCall& call, float* memory, int64_t* floats) {
  const RefineCall& c = call.refine.refine;
  const int64_t count = c.images * c.dictionaries, numbers = count * c.pixels * c.channels;
  Scratch scratch(memory);
  RefineCall forward = c;
  forward.refined = scratch.take(numbers, c.type);
  RefineBackwardCall backward = call.refine;
  void* grad = scratch.take(numbers, c.type);
  backward.grad_refined = grad;
  backward.through_pe = call.refine.grad_pe == nullptr ? nullptr : scratch.take(numbers);
  const AttendBackwardCall attended{c.type, count, c.pixels, c.channels, call.queries, c.pe_images, forward.refined,
                                    c.pe, call.query, call.grad_context, call.log_sum_exp, call.delta,
                                    call.refine.grad_refined, grad, nullptr, call.grad_query, backward.through_pe};
  float* own = scratch.take(0);  // one after the other, both use what follows
  const int64_t first = attend_backward_scratch(device, attended), second = refine_backward_scratch(device, backward);
  *floats = scratch.used() + (first > second ? first : second);
  if (memory == nullptr) {
    return "";
  }
  return in_turn([&] { return refine(device, forward); }, [&] { return attend_backward(device, attended, own); },
                 [&] { return refine_backward(device, backward, own); });
}

}  // namespace

int64_t refine_attend_backward_scratch(const Device& device, const RefineAttendBackwardCall& call) {
  int64_t floats = 0;
  run(device, call, nullptr, &floats);
  return floats;
}

Error refine_attend_backward(const Device& device, const RefineAttendBackwardCall& call, float* scratch) {
  int64_t floats = 0;
  return run(device, call, scratch, &floats);
}

}  // namespace d2ls::cuda
