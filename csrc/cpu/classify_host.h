// What classification and the segmentation loss share on the host side.
#pragma once

#include <algorithm>

#include "cpu/classify.h"

namespace d2ls {

// The norm's vectors repeated for the four outer sub-pixels, as the channels of a pixel lie.
class NormTable {
 public:
  explicit NormTable(const ClassifyInputs& in) : memory_(2 * in.channels) {
    for (int64_t c = 0; c < in.channels; ++c) {
      memory_.get()[c] = in.norm_weight[c / 4];
      memory_.get()[in.channels + c] = in.norm_bias[c / 4];
    }
    norm = {memory_.get(), memory_.get() + in.channels};
  }
  ClassifyNorm norm;

 private:
  Buffer memory_;
};

// The chunks' partial gradients and, at the end, their sums in the order of the chunks.
class ClassifyPartials {
 public:
  ClassifyPartials(const ClassifyInputs& in, const Chunks& chunks)
      : batch_(in.batch),
        per_image_(chunks.per_image),
        hyper_(in.vectors() * in.depth()),
        quarter_(in.channels / 4),
        stride_(round_up(hyper_ + 2 * quarter_, 16)),
        memory_(chunks.count * stride_) {}

  ClassifyPartial operator[](int64_t task) const {
    float* at = memory_.get() + task * stride_;
    return {at, at + hyper_, at + hyper_ + quarter_};
  }

  void sum(float* grad_hyper, float* grad_norm_weight, float* grad_norm_bias) {
    for (int64_t b = 0; b < batch_; ++b) {
      float* first = memory_.get() + b * per_image_ * stride_;
      sum_chunks(first, per_image_, stride_, hyper_ + 2 * quarter_);
      std::copy(first, first + hyper_, grad_hyper + b * hyper_);
    }
    float* vectors = memory_.get() + hyper_;
    sum_chunks(vectors, batch_, per_image_ * stride_, 2 * quarter_);
    std::copy(vectors, vectors + quarter_, grad_norm_weight);
    std::copy(vectors + quarter_, vectors + 2 * quarter_, grad_norm_bias);
  }

 private:
  int64_t batch_, per_image_, hyper_, quarter_, stride_;
  Buffer memory_;
};

}  // namespace d2ls
