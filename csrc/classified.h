// The inputs of classification as the kernels take them. Only files that register operators include this.
#pragma once

#include <string>
#include <vector>

#include "cpu/classify.h"
#include "tensors.h"

namespace d2ls {

inline Reduction reduction_of(const std::string& name) {
  if (name == "max") return Reduction::max;
  if (name == "mean") return Reduction::mean;
  STD_TORCH_CHECK(name == "logsumexp", "d2ls_fast: reduction must be logsumexp, max or mean, got ", name);
  return Reduction::logsumexp;
}

// The inputs: checked, contiguous, and kept alive as long as the pointers into them are used.
class Classified {
 public:
  Classified(const Tensor& pixels, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& hyper,
             int64_t prototypes, const std::string& reduction, double eps)
      : pixels_(torch::stable::contiguous(pixels)) {
    STD_TORCH_CHECK(pixels.dim() == 4 && pixels.numel() > 0 && pixels.size(3) % 16 == 0,
                    "d2ls_fast: pixels must be [B, h, w, C], not empty, C a multiple of 16");
    in.batch = pixels.size(0);
    in.height = pixels.size(1);
    in.width = pixels.size(2);
    in.channels = pixels.size(3);
    in.dtype = dtype_of(pixels);
    in.pixels = pixels_.const_data_ptr();
    STD_TORCH_CHECK(hyper.dim() == 3 && hyper.size(1) > 0 && prototypes > 0 && hyper.size(1) % prototypes == 0,
                    "d2ls_fast: hyper must be [B, K * prototypes, C/16]");
    in.prototypes = prototypes;
    in.classes = hyper.size(1) / prototypes;
    in.reduction = reduction_of(reduction);
    in.eps = static_cast<float>(eps);
    hyper_ = float_tensor(hyper, in.batch * in.vectors() * in.depth(), "hyper");
    norm_weight_ = float_tensor(norm_weight, in.channels / 4, "norm_weight");
    norm_bias_ = float_tensor(norm_bias, in.channels / 4, "norm_bias");
    in.hyper = floats(hyper_);
    in.norm_weight = floats(norm_weight_);
    in.norm_bias = floats(norm_bias_);
  }

  Tensor like_pixels() const { return torch::stable::empty_like(pixels_); }
  Tensor empty(const std::vector<int64_t>& size, ScalarType dtype = ScalarType::Float) const {
    return torch::stable::new_empty(pixels_, size, dtype);
  }

  ClassifyInputs in{};

 private:
  Tensor pixels_, norm_weight_, norm_bias_, hyper_;
};

}  // namespace d2ls
