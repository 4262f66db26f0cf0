// The gradient of a positional encoding, which waits in float32 until all pixels are done: that of a shared encoding is
// a sum over the images.
#pragma once

#include "cpu/pass.h"

namespace d2ls {

class GradPe {
 public:
  // `grad_pe` is null when it is not wanted.
  GradPe(const PassShape& s, void* grad_pe)
      : s_(s), grad_pe_(grad_pe), memory_(grad_pe != nullptr ? s.batch * s.pixels * s.channels : 0) {}

  // Where the gradient that goes through x + pe of an image belongs, [N, C]; null when it is not wanted.
  float* image(int64_t index) const {
    return grad_pe_ != nullptr ? memory_.get() + index * s_.pixels * s_.channels : nullptr;
  }

  // Once all images are whole; `narrow` is that of the kernels.
  void store(decltype(PassKernels::narrow) narrow, const Parallel& parallel) const {
    if (grad_pe_ == nullptr) return;
    const int64_t image = s_.pixels * s_.channels, images = s_.shared_pe ? 1 : s_.batch;
    parallel(s_.pixels, 64, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * s_.channels, count = (end - begin) * s_.channels;
      if (s_.shared_pe) {
        sum_chunks(memory_.get() + first, s_.batch, image, count);
      }
      for (int64_t b = 0; b < images; ++b) {
        narrow(s_.dtype, memory_.get() + b * image + first, grad_pe_, b * image + first, count);
      }
    });
  }

 private:
  PassShape s_;
  void* grad_pe_;
  Buffer memory_;
};

}  // namespace d2ls
