// The operators classify and classify_labels: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "cpu/classify.h"
#include "tensors.h"

namespace {

using namespace d2ls;

Reduction reduction_of(const std::string& name) {
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

Tensor classify(Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, int64_t prototypes,
                std::string reduction, double eps) {
  const Classified given(pixels, norm_weight, norm_bias, hyper, prototypes, reduction, eps);
  const ClassifyInputs& in = given.in;
  Tensor logits = given.empty({in.batch, in.classes, 4 * in.height, 4 * in.width});
  classify_forward({in, mutable_floats(logits), nullptr, false, nullptr}, parallel);
  return logits;
}

std::tuple<Tensor, Tensor> classify_labels(Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper,
                                           int64_t prototypes, std::string reduction, double eps,
                                           bool return_confidence) {
  const Classified given(pixels, norm_weight, norm_bias, hyper, prototypes, reduction, eps);
  const ClassifyInputs& in = given.in;
  const std::vector<int64_t> size{in.batch, 4 * in.height, 4 * in.width};
  const bool wide = in.classes > 256;
  Tensor labels = given.empty(size, wide ? ScalarType::Short : ScalarType::Byte);
  Tensor confidence = given.empty(return_confidence ? size : std::vector<int64_t>{0});
  classify_forward({in, nullptr, labels.mutable_data_ptr(), wide, return_confidence ? mutable_floats(confidence) : nullptr},
                   parallel);
  return {labels, confidence};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> classify_gradients(Tensor pixels, Tensor norm_weight, Tensor norm_bias,
                                                              Tensor hyper, Tensor grad_logits, int64_t prototypes,
                                                              std::string reduction, double eps) {
  const Classified given(pixels, norm_weight, norm_bias, hyper, prototypes, reduction, eps);
  const ClassifyInputs& in = given.in;
  const Tensor grad = float_tensor(grad_logits, in.batch * in.classes * 16 * in.height * in.width, "grad_logits");
  Tensor grad_pixels = given.like_pixels();
  Tensor grad_weight = given.empty({in.channels / 4}), grad_bias = given.empty({in.channels / 4});
  Tensor grad_hyper = given.empty({in.batch, in.vectors(), in.depth()});
  classify_backward({in, floats(grad), grad_pixels.mutable_data_ptr(), mutable_floats(grad_weight),
                     mutable_floats(grad_bias), mutable_floats(grad_hyper)},
                    parallel);
  return {grad_pixels, grad_weight, grad_bias, grad_hyper};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("classify", TORCH_BOX(&classify));
  m.impl("classify_labels", TORCH_BOX(&classify_labels));
  m.impl("classify_backward", TORCH_BOX(&classify_gradients));
}
