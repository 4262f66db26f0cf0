// refine, backward. See kernels/refine.py for the formulas.
#pragma once

#include "cuda/refine.h"

namespace d2ls::cuda {

// `refine` as in the forward, without what is `refined`. grad_refined as that is; gradients as the tensors they belong to,
// grad_pe null where it is not wanted. `through_pe` is null or [dictionaries * images, pixels, channels] float32 that
// is added to grad_pe.
struct RefineBackwardCall {
  RefineCall refine;
  const void* grad_refined;
  float* through_pe;
  void *grad_x, *grad_pe, *grad_key, *grad_value;
  float *grad_key_bias, *grad_out_bias, *grad_norm_weight, *grad_norm_bias;
};

// How many floats of scratch memory the call needs.
int64_t refine_backward_scratch(const Device& device, const RefineBackwardCall& call);

Error refine_backward(const Device& device, const RefineBackwardCall& call, float* scratch);

}  // namespace d2ls::cuda
