// segmentation_sums: cross-entropy and dice of classify's logits as few sums over pixels, without logits, and backward.
// See d2ls_fast/ops/segmentation_loss.py for the formula.
#pragma once

#include "cuda/classify_gradients.h"

namespace d2ls::cuda {

// The outputs of `of` take no part. target [batch, target_height, target_width], at most (4 height, 4 width);
// class_weights [classes] or null, which is ones.
struct SegmentationCall {
  ClassifyCall of;
  const int64_t* target;
  const float* class_weights;
  int target_height, target_width;
  int64_t ignore_index;
  float smoothing;
};

// cross_entropy and wrong, the number of labels that are none, one number each; the others [classes].
struct SegmentationSums {
  float *cross_entropy, *wrong, *overlap, *volume, *count;
};

// cross_entropy one number, the others [classes].
struct SegmentationSumsGradients {
  const float *cross_entropy, *overlap, *volume;
};

int64_t segmentation_sums_scratch(const Device& device, const SegmentationCall& call);
Error segmentation_sums(const Device& device, const SegmentationCall& call, const SegmentationSums& sums,
                        float* scratch);

// `scratch` as classify_gradients_scratch says.
Error segmentation_gradients(const Device& device, const SegmentationCall& call, const SegmentationSumsGradients& given,
                             const ClassifyGradients& gradients, float* scratch);

}  // namespace d2ls::cuda
