// The backward of classify, and segmentation_sums with its own, registered as in registration.cu.
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/registration.h"
#include "cuda/segmentation.h"

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

// The arguments of segmentation_sums, without outputs; `kept` keeps what they point to.
d2ls::cuda::SegmentationCall segmentation_call(const d2ls::cuda::ClassifyCall& of, const Tensor& target,
                                               const std::optional<Tensor>& class_weights, double smoothing,
                                               int64_t ignore_index, Kept* kept) {
  STD_TORCH_CHECK(target.dim() == 3 && target.size(1) <= 4 * static_cast<int64_t>(of.height) &&
                      target.size(2) <= 4 * static_cast<int64_t>(of.width),
                  "d2ls_fast: target must be [B, H, W], at most (4h, 4w)");
  const int64_t height = target.size(1), width = target.size(2);
  return {of,
          kept->integers(target, of.batch * height * width, "target"),
          class_weights ? kept->floats(*class_weights, of.classes, "class_weights") : nullptr,
          static_cast<int>(height),
          static_cast<int>(width),
          ignore_index,
          static_cast<float>(smoothing)};
}

// The sums, and how many labels are neither a class nor ignored.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> segmentation_sums(
    Tensor image, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor target,
    std::optional<Tensor> class_weights, double smoothing, int64_t ignore_index, int64_t prototypes,
    std::string reduction, double eps) {
  const OnDevice on(image);
  Kept kept;
  const auto of = classify_call(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, &kept);
  const auto call = segmentation_call(of, target, class_weights, smoothing, ignore_index, &kept);
  const auto floats = [&](const std::vector<int64_t>& size) {
    return torch::stable::new_empty(image, size, ScalarType::Float);
  };
  const Tensor cross_entropy = floats({}), wrong = floats({});
  const Tensor overlap = floats({of.classes}), volume = floats({of.classes}), count = floats({of.classes});
  const Tensor scratch = floats({segmentation_sums_scratch(on.device, call)});
  d2ls::cuda::check(segmentation_sums(
      on.device, call,
      {pointer(cross_entropy), pointer(wrong), pointer(overlap), pointer(volume), pointer(count)}, pointer(scratch)));
  return {cross_entropy, overlap, volume, count, wrong};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> segmentation_sums_backward(
    Tensor image, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor target,
    std::optional<Tensor> class_weights, double smoothing, int64_t ignore_index, int64_t prototypes,
    std::string reduction, double eps, Tensor grad_cross_entropy, Tensor grad_overlap, Tensor grad_volume) {
  const OnDevice on(image);
  Kept kept;
  const auto of = classify_call(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, &kept);
  const auto call = segmentation_call(of, target, class_weights, smoothing, ignore_index, &kept);
  const d2ls::cuda::SegmentationSumsGradients given{kept.floats(grad_cross_entropy, 1, "grad_cross_entropy"),
                                                    kept.floats(grad_overlap, of.classes, "grad_overlap"),
                                                    kept.floats(grad_volume, of.classes, "grad_volume")};
  const Gradients gradients(image, norm_weight, norm_bias, hyper);
  const Tensor scratch = torch::stable::new_empty(image, {classify_gradients_scratch(on.device, of)},
                                                  ScalarType::Float);
  d2ls::cuda::check(segmentation_gradients(on.device, call, given, gradients.pointers(), pointer(scratch)));
  return gradients.all();
}

}  // namespace

#define D2LS_SEGMENTATION                                                                                          \
  "Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor target, Tensor? class_weights, float " \
  "smoothing, int ignore_index, int prototypes, str reduction, float eps"

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_classify_backward(Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor grad_logits, "
      "int prototypes, str reduction, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("cuda_segmentation_sums(" D2LS_SEGMENTATION ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cuda_segmentation_sums_backward(" D2LS_SEGMENTATION
        ", Tensor grad_cross_entropy, Tensor grad_overlap, Tensor grad_volume) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_classify_backward", TORCH_BOX(&classify_backward));
  m.impl("cuda_segmentation_sums", TORCH_BOX(&segmentation_sums));
  m.impl("cuda_segmentation_sums_backward", TORCH_BOX(&segmentation_sums_backward));
}
