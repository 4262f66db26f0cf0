// The operators classify and classify_labels: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "classified.h"

namespace {

using namespace d2ls;

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
