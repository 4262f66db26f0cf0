#include "cpu/classify.h"

#include <algorithm>

namespace d2ls {
namespace {

const ClassifyKernels& kernels() {
  static const ClassifyKernels chosen = [] {
#if defined(__x86_64__)
    if (isa() == Isa::avx512) return classify_kernels_avx512();
    if (isa() == Isa::avx2) return classify_kernels_avx2();
#endif
    return classify_kernels_portable();
  }();
  return chosen;
}

// The norm's vectors repeated for the four outer sub-pixels, as the channels of a pixel lie.
class Norm {
 public:
  explicit Norm(const ClassifyInputs& in) : memory_(2 * in.channels) {
    for (int64_t c = 0; c < in.channels; ++c) {
      memory_.get()[c] = in.norm_weight[c / 4];
      memory_.get()[in.channels + c] = in.norm_bias[c / 4];
    }
    norm = {memory_.get(), memory_.get() + in.channels};
  }
  ClassifyNorm norm;

 private:
  Buffer memory_;
};

}  // namespace

void classify_forward(const ClassifyForward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const Norm norm(in);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().scratch(in, false));
    for (int64_t t = begin; t < end; ++t) {
      kernels().forward(call, norm.norm, chunks[t], scratch.get());
    }
  });
}

void classify_backward(const ClassifyBackward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const Norm norm(in);
  const int64_t hyper = in.vectors() * in.depth(), quarter = in.channels / 4;
  const int64_t stride = round_up(hyper + 2 * quarter, 16);
  const Buffer partials(chunks.count * stride);
  parallel(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(kernels().scratch(in, true));
    for (int64_t t = begin; t < end; ++t) {
      float* at = partials.get() + t * stride;
      kernels().backward(call, norm.norm, chunks[t], {at, at + hyper, at + hyper + quarter}, scratch.get());
    }
  });
  for (int64_t b = 0; b < in.batch; ++b) {
    float* first = partials.get() + b * chunks.per_image * stride;
    sum_chunks(first, chunks.per_image, stride, hyper + 2 * quarter);
    std::copy(first, first + hyper, call.grad_hyper + b * hyper);
  }
  float* vectors = partials.get() + hyper;
  sum_chunks(vectors, in.batch, chunks.per_image * stride, 2 * quarter);
  std::copy(vectors, vectors + quarter, call.grad_norm_weight);
  std::copy(vectors + quarter, vectors + 2 * quarter, call.grad_norm_bias);
}

}  // namespace d2ls
