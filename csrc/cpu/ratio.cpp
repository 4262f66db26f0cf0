#include "cpu/ratio.h"

#include <algorithm>
#include <vector>

namespace d2ls {
namespace {

// Means over the batch [K, C] and their mean [C], and the two sums of squares.
struct Ratio {
  explicit Ratio(const RatioInputs& in) : mean(in.entries * in.channels, 0.0f), centre(in.channels, 0.0f) {
    const int64_t size = in.entries * in.channels;
    const float batch_share = 1.0f / static_cast<float>(in.batch), share = 1.0f / static_cast<float>(in.entries);
    for (int64_t b = 0; b < in.batch; ++b) {
      for (int64_t i = 0; i < size; ++i) mean[i] += in.dictionary[b * size + i];
    }
    for (int64_t i = 0; i < size; ++i) mean[i] *= batch_share;
    for (int64_t k = 0; k < in.entries; ++k) {
      for (int64_t c = 0; c < in.channels; ++c) centre[c] += mean[k * in.channels + c];
    }
    for (float& value : centre) value *= share;
    double within = 0.0, between = 0.0;
    for (int64_t b = 0; b < in.batch; ++b) within += square_distance(in.dictionary + b * size, mean.data(), size);
    for (int64_t k = 0; k < in.entries; ++k) {
      between += square_distance(mean.data() + k * in.channels, centre.data(), in.channels);
    }
    intra = within / static_cast<double>(in.batch * in.entries);
    inter = 2.0 * between / static_cast<double>(in.entries - 1) + in.eps;
  }

  // Eight sums side by side, which the compiler can keep in vectors.
  static double square_distance(const float* a, const float* b, int64_t count) {
    double sum[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      for (int64_t lane = 0; lane < 8; ++lane) {
        const double d = a[i + lane] - b[i + lane];
        sum[lane] += d * d;
      }
    }
    for (; i < count; ++i) {
      const double d = a[i] - b[i];
      sum[i % 8] += d * d;
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }

  std::vector<float> mean, centre;
  double intra, inter;
};

}  // namespace

float ratio_forward(const RatioInputs& in) {
  if (in.entries < 2) {
    return 0.0f;
  }
  const Ratio ratio(in);
  return static_cast<float>(ratio.intra / ratio.inter);
}

void ratio_backward(const RatioInputs& in, float grad, float* grad_dictionary) {
  const int64_t size = in.entries * in.channels;
  if (in.entries < 2) {
    std::fill(grad_dictionary, grad_dictionary + in.batch * size, 0.0f);
    return;
  }
  const Ratio ratio(in);
  const double pull = 2.0 * grad / static_cast<double>(in.batch * in.entries) / ratio.inter;
  const double push =
      4.0 * grad * ratio.intra / (ratio.inter * ratio.inter) / static_cast<double>(in.batch * (in.entries - 1));
  const float towards = static_cast<float>(pull), away = static_cast<float>(push);
  for (int64_t b = 0; b < in.batch; ++b) {
    for (int64_t k = 0; k < in.entries; ++k) {
      const float* mean = ratio.mean.data() + k * in.channels;
      const float* from = in.dictionary + b * size + k * in.channels;
      float* to = grad_dictionary + b * size + k * in.channels;
      for (int64_t c = 0; c < in.channels; ++c) {
        to[c] = towards * (from[c] - mean[c]) - away * (mean[c] - ratio.centre[c]);
      }
    }
  }
}

}  // namespace d2ls
