// classify and classify_labels, forward: refined pixels and class vectors to logits, or to labels, at four times the
// pixels' resolution. See d2ls_fast/ops/classify.py for the formula.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

enum class Reduction { logsumexp, max, mean };

// Row-major and contiguous: x [batch, height, width, channels] of `type`; norm_weight and norm_bias [channels / 4], hyper
// [batch, classes * prototypes, channels / 16] float32. Either logits [batch, classes, 4 height, 4 width] float32, or
// labels [batch, 4 height, 4 width], uint8 or (above 256 classes) int16, and, unless null, confidence float32 like labels.
struct ClassifyCall {
  Type type;
  Reduction reduction;
  int64_t batch;
  int height, width, channels, classes, prototypes;
  float eps;
  const void* x;
  const float *norm_weight, *norm_bias, *hyper;
  float* logits;
  void* labels;
  float* confidence;
};

Error classify(const Device& device, const ClassifyCall& call);

}  // namespace d2ls::cuda
