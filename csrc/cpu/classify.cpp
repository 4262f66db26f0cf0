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
  for_chunks(chunks, kernels().scratch(in, false), parallel, [&](Chunk chunk, int64_t, float* scratch) {
    kernels().forward(call, table.norm, chunk, scratch);
  });
}

void classify_backward(const ClassifyBackward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const NormTable table(in);
  ClassifyPartials partials(in, chunks);
  for_chunks(chunks, kernels().scratch(in, true), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    kernels().backward(call, table.norm, chunk, partials[t], scratch);
  });
  partials.sum(call.grad_hyper, call.grad_norm_weight, call.grad_norm_bias);
}

}  // namespace d2ls
