// The neck in one operator: the maps of all levels, each multiplied by its own matrix at its own size, upsampled to the
// finest and added.
//
//   fused[n] = sum over the levels i of up(f_i A_i^T)[n] + bias
//
// Upsampling is bilinear with align_corners=False; its taps are those of torch.nn.functional.interpolate(size=...).
// Forward: the products of the coarse levels; then one pass over the finest level's pixels that starts a tile from bias and
// upsampled products and multiplies its own map into it, so that the result is written once and nothing else has its size.
// Backward: the adjoint of the upsampling in gather form (a coarse pixel sums its fine pixels), then each level's products.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/work.h"

namespace d2ls {

// Where element (image, channel, pixel) of a map is; the stride of channels or that of pixels is 1.
struct PyramidMap {
  void* data;
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t pixel_stride;

  int64_t offset(int64_t batch, int64_t channel, int64_t pixel) const {
    return batch * batch_stride + channel * channel_stride + pixel * pixel_stride;
  }
};

struct PyramidLevel {
  int64_t channels;  // c
  int64_t height;
  int64_t width;
  PyramidMap feature;       // only read
  const void* weight;       // A, [C, c]
  PyramidMap grad_feature;  // backward; data is null when not wanted
  void* grad_weight;        // backward, [C, c]

  int64_t pixels() const { return height * width; }
};

// Finest level first. Maps, weights, result and their gradients are of one dtype.
struct PyramidInputs {
  int64_t batch;
  int64_t channels;  // C
  Dtype dtype;
  std::vector<PyramidLevel> levels;
};

void pyramid_forward(const PyramidInputs& in, const float* bias, void* fused, const Parallel& parallel);
// Besides what the levels name: grad_bias [C].
void pyramid_backward(const PyramidInputs& in, const void* grad_fused, float* grad_bias, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// A fine row (or column) is low_weight * coarse row low + high_weight * coarse row high.
struct PyramidTap {
  int64_t low;
  int64_t high;
  float low_weight;
  float high_weight;
};

// A coarse row (or column) is the sum of weights[i] * fine row begin + i.
struct PyramidGather {
  int64_t begin;
  int64_t end;
  const float* weights;
};

// What the kernels need to know of the whole. "Padded" is to whole vectors.
struct PyramidShape {
  int64_t channels;  // C
  int64_t padded;    // Cp
  int64_t height;    // of the finest level
  int64_t width;
  Dtype dtype;
};

// Pixels [begin, end) of an image of a level, and its channels [first_channel, last_channel).
struct PyramidPart {
  int64_t batch;
  int64_t begin;
  int64_t end;
  int64_t first_channel;
  int64_t last_channel;
};

// A coarse level seen from the fine grid; products [B, h_i w_i, Cp].
struct PyramidCoarse {
  int64_t height;
  int64_t width;
  float* product;             // forward: read; backward: its gradient, written
  const PyramidTap* rows;     // forward, [h]
  const PyramidTap* columns;  // forward, [w]
  const PyramidGather* row_gathers;     // backward, [h_i]
  const PyramidGather* column_gathers;  // backward, [w_i]
};

struct PyramidKernels {
  int64_t lanes;            // floats of a vector
  int64_t gather_channels;  // of a gather
  int64_t (*scratch)(const PyramidShape& shape, int64_t level_channels);  // floats that all but gather need
  // product [T, Cp] = feature weight_t over a part; weight_t [c, Cp].
  void (*multiply)(const PyramidShape& shape, const PyramidLevel& level, const float* weight_t, const PyramidPart& part,
                   float* product, float* scratch);
  // The result over a part of the finest level; bias [Cp].
  void (*sum)(const PyramidShape& shape, const PyramidLevel& level, const float* weight_t, const float* bias,
              const PyramidCoarse* coarse, int64_t coarse_levels, const PyramidPart& part, void* fused, float* scratch);
  // Gradients of the coarse products over gather_channels channels from first_channel on, in the band-th of bands equal
  // shares of every level's rows. scratch: the widened fine rows of the band, or null where the gradient can be read as is.
  void (*gather)(const PyramidShape& shape, const void* grad_fused, const PyramidCoarse* coarse, int64_t coarse_levels,
                 int64_t batch, int64_t first_channel, int64_t band, int64_t bands, float* scratch);
  // grad_weight_t [channels of the part, Cp] of a part and, where wanted, the gradient of the map. weight [C, c padded].
  // grad is the gradient of the product: that of the result for the finest level (grad_bias [Cp] is then written, unless
  // null), otherwise coarse [B, h_i w_i, Cp].
  void (*backward)(const PyramidShape& shape, const PyramidLevel& level, const float* weight, const void* grad_fused,
                   const float* coarse, const PyramidPart& part, float* grad_weight_t, float* grad_bias, float* scratch);
  // dst[i] = src[offset + i] as float32, and the way back.
  void (*widen)(Dtype dtype, const void* src, int64_t offset, float* dst, int64_t count);
  void (*narrow)(Dtype dtype, const float* src, void* dst, int64_t offset, int64_t count);
};

// Fine rows that the band-th of bands shares of the coarse rows reach into.
struct PyramidRows {
  int64_t begin;
  int64_t end;
};

inline PyramidRows pyramid_band_rows(const PyramidCoarse* coarse, int64_t coarse_levels, int64_t band, int64_t bands) {
  PyramidRows rows{0, 0};
  for (int64_t i = 0; i < coarse_levels; ++i) {
    for (int64_t q = coarse[i].height * band / bands; q < coarse[i].height * (band + 1) / bands; ++q) {
      const PyramidGather& gather = coarse[i].row_gathers[q];
      if (gather.begin == gather.end) {
        continue;
      }
      const bool first = rows.begin == rows.end;
      rows.begin = first || gather.begin < rows.begin ? gather.begin : rows.begin;
      rows.end = first || gather.end > rows.end ? gather.end : rows.end;
    }
  }
  return rows;
}

}  // namespace d2ls
