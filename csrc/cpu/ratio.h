// The contrastive ratio over a dictionary D [B, K, C], with mu_k = mean_b D_bk and m = mean_k mu_k:
//
//   mean_bk |D_bk - mu_k|^2 / (2 / (K - 1) sum_k |mu_k - m|^2 + eps);  0 where K = 1
//
// The whole dictionary is a few hundred kilobytes at most, so one thread and plain loops serve.
#pragma once

#include <cstdint>

namespace d2ls {

struct RatioInputs {
  int64_t batch;
  int64_t entries;
  int64_t channels;
  const float* dictionary;
  float eps;
};

float ratio_forward(const RatioInputs& in);
void ratio_backward(const RatioInputs& in, float grad, float* grad_dictionary);

}  // namespace d2ls
