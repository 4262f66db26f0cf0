#include "cpu/classify_host.h"

#include "cpu/kernels.h"

namespace d2ls {
namespace {

const ClassifyKernels& kernels() { return chosen_kernels().classify; }

}  // namespace

void classify_forward(const ClassifyForward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const NormTable table(in);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().scratch(in, false));
    for (int64_t t = begin; t < end; ++t) {
      kernels().forward(call, table.norm, chunks[t], scratch.get());
    }
  });
}

void classify_backward(const ClassifyBackward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const NormTable table(in);
  ClassifyPartials partials(in, chunks);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().scratch(in, true));
    for (int64_t t = begin; t < end; ++t) {
      kernels().backward(call, table.norm, chunks[t], partials[t], scratch.get());
    }
  });
  partials.sum(call.grad_hyper, call.grad_norm_weight, call.grad_norm_bias);
}

}  // namespace d2ls
