// The label of a sub-pixel.
#pragma once

#include "cuda/classify_features.cuh"
#include "cuda/segmentation.h"

namespace d2ls::cuda {

struct LabelArguments {
  const int64_t* target;
  const float* class_weights;
  int height, width;
  int64_t ignore_index;
  float smoothing;

  explicit LabelArguments(const SegmentationCall& call)
      : target(call.target), class_weights(call.class_weights), height(call.target_height), width(call.target_width),
        ignore_index(call.ignore_index), smoothing(call.smoothing) {}

  D2LS_DEVICE float weight(int k) const { return class_weights == nullptr ? 1.0f : class_weights[k]; }
};

constexpr int no_label = -1, wrong_label = -2;

// A class, or no_label where there is none: ignored, beyond the target, beyond the image.
D2LS_DEVICE int label_of(const LabelArguments& a, const SubPixel& own, int classes) {
  if (!own.inside || own.row >= a.height || own.column >= a.width) {
    return no_label;
  }
  const int64_t label = a.target[(own.image * a.height + own.row) * a.width + own.column];
  if (label == a.ignore_index) {
    return no_label;
  }
  return label >= 0 && label < classes ? static_cast<int>(label) : wrong_label;
}

}  // namespace d2ls::cuda
