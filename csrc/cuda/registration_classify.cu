// The backward of classify, registered as in registration.cu.
#include <string>
#include <tuple>

#include "cuda/classify_gradients.h"
#include "cuda/registration.h"

namespace {

using d2ls::cuda::classify_call;
using d2ls::cuda::Kept;
using d2ls::cuda::OnDevice;
using d2ls::cuda::pointer;
using d2ls::cuda::ScalarType;
using d2ls::cuda::Tensor;

// As the pixels; the others float32, as they are.
struct Gradients {
  Tensor x, norm_weight, norm_bias, hyper;

  Gradients(const Tensor& image, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& hyper)
      : x(like(image)), norm_weight(like(norm_weight)), norm_bias(like(norm_bias)), hyper(like(hyper)) {}

  d2ls::cuda::ClassifyGradients pointers() const {
    return {x.mutable_data_ptr(), pointer(norm_weight), pointer(norm_bias), pointer(hyper)};
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {x, norm_weight, norm_bias, hyper}; }

 private:
  static Tensor like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> classify_backward(Tensor image, Tensor norm_weight, Tensor norm_bias,
                                                             Tensor hyper, Tensor grad_logits, int64_t prototypes,
                                                             std::string reduction, double eps) {
  const OnDevice on(image);
  Kept kept;
  const d2ls::cuda::ClassifyCall of =
      classify_call(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, &kept);
  const Gradients gradients(image, norm_weight, norm_bias, hyper);
  const int64_t logits = of.batch * of.classes * of.height * of.width * 16;
  const d2ls::cuda::ClassifyGradientsCall call{of, kept.floats(grad_logits, logits, "grad_logits"),
                                               gradients.pointers()};
  const Tensor scratch = torch::stable::new_empty(image, {classify_gradients_scratch(on.device, of)},
                                                  ScalarType::Float);
  d2ls::cuda::check(classify_gradients(on.device, call, pointer(scratch)));
  return gradients.all();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_classify_backward(Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor grad_logits, "
      "int prototypes, str reduction, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) { m.impl("cuda_classify_backward", TORCH_BOX(&classify_backward)); }
