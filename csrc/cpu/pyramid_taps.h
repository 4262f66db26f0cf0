// The taps of bilinear upsampling along one axis, as torch.nn.functional.interpolate(size=..., align_corners=False) has
// them: float32 arithmetic, the source position clamped to the map. And the same weights seen from the coarse side.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/pyramid.h"

namespace d2ls {

inline std::vector<PyramidTap> pyramid_taps(int64_t coarse, int64_t fine) {
  std::vector<PyramidTap> taps(fine);
  const float scale = static_cast<float>(coarse) / static_cast<float>(fine);
  for (int64_t i = 0; i < fine; ++i) {
    if (coarse == fine) {
      taps[i] = {i, i, 1.0f, 0.0f};
      continue;
    }
    const float source = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
    const int64_t low = std::min(static_cast<int64_t>(std::floor(source)), coarse - 1);
    const float high_weight = std::clamp(source - static_cast<float>(low), 0.0f, 1.0f);
    taps[i] = {low, std::min(low + 1, coarse - 1), 1.0f - high_weight, high_weight};
  }
  return taps;
}

// For every coarse position the fine ones that it reaches, which are neighbours because the taps move only forward.
class PyramidGathers {
 public:
  PyramidGathers(int64_t coarse, int64_t fine) : gathers_(coarse, PyramidGather{fine, 0, nullptr}) {
    const std::vector<PyramidTap> taps = pyramid_taps(coarse, fine);
    for (int64_t i = 0; i < fine; ++i) {
      for (const int64_t q : {taps[i].low, taps[i].high}) {
        gathers_[q].begin = std::min(gathers_[q].begin, i);
        gathers_[q].end = std::max(gathers_[q].end, i + 1);
      }
    }
    for (int64_t q = 0; q < coarse; ++q) {
      PyramidGather& gather = gathers_[q];
      gather.begin = std::min(gather.begin, gather.end);
      for (int64_t i = gather.begin; i < gather.end; ++i) {
        weights_.push_back((taps[i].low == q ? taps[i].low_weight : 0.0f) +
                           (taps[i].high == q ? taps[i].high_weight : 0.0f));
      }
    }
    const float* weights = weights_.data();
    for (PyramidGather& gather : gathers_) {
      gather.weights = weights;
      weights += gather.end - gather.begin;
    }
  }
  const PyramidGather* data() const { return gathers_.data(); }

 private:
  std::vector<PyramidGather> gathers_;
  std::vector<float> weights_;
};

}  // namespace d2ls
