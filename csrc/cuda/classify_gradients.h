// classify, backward: from the gradient of the logits to those of the pixels, the norm and the class vectors.
#pragma once

#include "cuda/classify.h"

namespace d2ls::cuda {

// As what they are gradients of: of the pixels in their type, the others float32.
struct ClassifyGradients {
  void* x;
  float *norm_weight, *norm_bias, *hyper;
};

// The outputs of `of` take no part; grad_logits has the shape of its logits.
struct ClassifyGradientsCall {
  ClassifyCall of;
  const float* grad_logits;
  ClassifyGradients gradients;
};

// Floats that `scratch` must hold; the same for segmentation_gradients.
int64_t classify_gradients_scratch(const Device& device, const ClassifyCall& of);

Error classify_gradients(const Device& device, const ClassifyGradientsCall& call, float* scratch);

}  // namespace d2ls::cuda
