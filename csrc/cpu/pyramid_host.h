// What a call of the pyramid allocates on the host side.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pyramid.h"

namespace d2ls {

inline PyramidShape pyramid_shape(const PyramidInputs& in) {
  const PyramidLevel& finest = in.levels.front();
  return {in.channels, round_up(in.channels, chosen_kernels().pyramid.lanes), finest.height, finest.width, in.dtype};
}

// Floats that a task needs.
inline int64_t pyramid_scratch(const PyramidInputs& in, const PyramidShape& shape) {
  int64_t widest = 0;
  for (const PyramidLevel& level : in.levels) {
    widest = std::max(widest, level.channels);
  }
  return chosen_kernels().pyramid.scratch(shape, widest);
}

// The weights of all levels in float32: transposed to [c, Cp], or as they are with rows padded to [C, cp].
class PyramidWeights {
 public:
  PyramidWeights(const PyramidInputs& in, const PyramidShape& shape, bool transposed, const Parallel& parallel) {
    int64_t total = 0;
    for (const PyramidLevel& level : in.levels) {
      starts_.push_back(total);
      const int64_t stride = round_up(level.channels, chosen_kernels().pyramid.lanes);
      total += transposed ? level.channels * shape.padded : in.channels * stride;
    }
    memory_ = std::make_unique<Buffer>(total);
    parallel(static_cast<int64_t>(in.levels.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        (transposed ? pack_transposed : pack)(in, in.levels[i], shape, memory_->get() + starts_[i]);
      }
    });
  }
  const float* operator[](int64_t level) const { return memory_->get() + starts_[level]; }

 private:
  static void pack(const PyramidInputs& in, const PyramidLevel& level, const PyramidShape&, float* to) {
    const int64_t stride = round_up(level.channels, chosen_kernels().pyramid.lanes);
    for (int64_t row = 0; row < in.channels; ++row, to += stride) {
      chosen_kernels().pyramid.widen(in.dtype, level.weight, row * level.channels, to, level.channels);
      std::fill(to + level.channels, to + stride, 0.0f);
    }
  }
  static void pack_transposed(const PyramidInputs& in, const PyramidLevel& level, const PyramidShape& shape, float* to) {
    constexpr int64_t kBlock = 16;  // a cache line of every row at a time
    float line[kBlock];
    for (int64_t c = 0; c < level.channels; c += kBlock) {
      const int64_t count = std::min(kBlock, level.channels - c);
      for (int64_t row = 0; row < shape.padded; ++row) {
        std::fill(line, line + kBlock, 0.0f);
        if (row < in.channels) {
          chosen_kernels().pyramid.widen(in.dtype, level.weight, row * level.channels + c, line, count);
        }
        for (int64_t i = 0; i < count; ++i) {
          to[(c + i) * shape.padded + row] = line[i];
        }
      }
    }
  }

  std::vector<int64_t> starts_;
  std::unique_ptr<Buffer> memory_;
};

// The products of the coarse levels, or their gradients: [B, h_i w_i, Cp] each.
class CoarseMaps {
 public:
  CoarseMaps(const PyramidInputs& in, const PyramidShape& shape) {
    int64_t total = 0;
    for (size_t i = 1; i < in.levels.size(); ++i) {
      total += in.batch * in.levels[i].pixels() * shape.padded;
    }
    memory_ = std::make_unique<Buffer>(total);
    float* at = memory_->get();
    for (size_t i = 1; i < in.levels.size(); ++i) {
      const PyramidLevel& level = in.levels[i];
      levels.push_back({level.height, level.width, at, nullptr, nullptr, nullptr, nullptr});
      at += in.batch * level.pixels() * shape.padded;
    }
  }
  int64_t count() const { return static_cast<int64_t>(levels.size()); }
  std::vector<PyramidCoarse> levels;

 private:
  std::unique_ptr<Buffer> memory_;
};

}  // namespace d2ls
