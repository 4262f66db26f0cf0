// The launches of the backward of nce_sums.
#include "cuda/nce_gradients.cuh"

#include "cuda/sum_parts.cuh"

namespace d2ls::cuda {

int64_t nce_gradients_scratch(const Device& device, const NceCall& of) {
  return of.batch * nce_blocks(device, of) * of.classes * of.prototypes * of.channels;
}

Error nce_gradients(const Device& device, const NceGradientsCall& call, float* scratch) {
  const NceCall& of = call.of;
  if (const Error error = check_nce(of); !error.empty()) {
    return error;
  }
  const int blocks = nce_blocks(device, of);
  const NceLayout layout{of.classes * of.prototypes, of.channels};
  const NceGradientArguments arguments{{of, scratch, blocks}, call.log_sum_exp, call.given, call.grad_x};
  const Error error = by_type(of.type, [&](auto kind) {
    return launch(device, nce_gradients_kernel<typename decltype(kind)::Number>, of.batch * blocks, nce_threads,
                  layout.bytes(), arguments);
  });
  const int size = layout.entries * layout.channels;
  return !error.empty() ? error : sum_parts(device, size, {{scratch, call.grad_entries, of.batch, blocks, size}});
}

}  // namespace d2ls::cuda
