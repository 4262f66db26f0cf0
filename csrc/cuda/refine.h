// refine, forward: every pixel updated by the dictionary, residual and LayerNorm included. See kernels/refine.py.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

// Row-major and contiguous: x [images, pixels, channels], pe [pe_images, pixels, channels], which is 1 or images, key and
// value [dictionaries * images, heads * entries, channels], dictionary g * images + b belonging to image b; refined
// [dictionaries * images, pixels, channels]; all of `type`. key_bias [dictionaries * images, heads * entries], out_bias,
// norm_weight and norm_bias [channels] float32.
struct RefineCall {
  Type type;
  int64_t images, dictionaries, pixels;
  int channels, heads, entries;
  int64_t pe_images;
  float eps;
  const void *x, *pe, *key, *value;
  const float *key_bias, *out_bias, *norm_weight, *norm_bias;
  void* refined;
};

Error refine(const Device& device, const RefineCall& call);

// Why the kernels do not take the call, or nothing.
Error why_not(const RefineCall& call);

}  // namespace d2ls::cuda
