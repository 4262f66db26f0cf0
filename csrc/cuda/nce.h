// nce_sums, the part of pixel_dictionary_nce that runs over the pixels, and its backward. See d2ls_fast/ops/_nce.py.
#pragma once

#include "cuda/device.h"

namespace d2ls::cuda {

// Row-major and contiguous: x [batch, pixels, channels] of `type`; entries [batch, classes * prototypes, channels]
// float32; target [batch, pixels].
struct NceCall {
  Type type;
  int64_t batch, pixels;
  int channels, classes, prototypes;
  int64_t ignore_index;
  bool rows, columns;  // which sums are wanted
  const void* x;
  const float* entries;
  const int64_t* target;
};

// [batch, classes] float32, those that are not wanted zero; count [batch, classes + 1], the last the labels that are
// neither a class nor ignored.
struct NceSums {
  float *loss, *positive, *log_sum_exp, *count;
};

struct NceSumsGradients {
  const float *loss, *positive, *log_sum_exp;
};

int64_t nce_sums_scratch(const Device& device, const NceCall& call);
Error nce_sums(const Device& device, const NceCall& call, const NceSums& sums, float* scratch);

// log_sum_exp is the forward's; grad_x of `type`, grad_entries float32.
struct NceGradientsCall {
  NceCall of;
  const float* log_sum_exp;
  NceSumsGradients given;
  void* grad_x;
  float* grad_entries;
};

int64_t nce_gradients_scratch(const Device& device, const NceCall& of);
Error nce_gradients(const Device& device, const NceGradientsCall& call, float* scratch);

}  // namespace d2ls::cuda
