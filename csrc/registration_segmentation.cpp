// The operator segmentation_sums: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "classified.h"
#include "cpu/segmentation.h"

namespace {

using namespace d2ls;

// The inputs: checked, contiguous, and kept alive as long as the pointers into them are used.
class Segmented {
 public:
  Segmented(const Tensor& pixels, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& hyper,
            const Tensor& target, const std::optional<Tensor>& class_weights, double smoothing, int64_t ignore_index,
            int64_t prototypes, const std::string& reduction, double eps)
      : given(pixels, norm_weight, norm_bias, hyper, prototypes, reduction, eps),
        target_(torch::stable::contiguous(target)) {
    in.in = given.in;
    STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long && target.dim() == 3 && target.size(0) == given.in.batch &&
                        target.size(1) <= 4 * given.in.height && target.size(2) <= 4 * given.in.width,
                    "d2ls_fast: target must be int64 [B, H, W] with H <= 4h and W <= 4w");
    in.height = target.size(1);
    in.width = target.size(2);
    in.target = static_cast<const int64_t*>(target_.const_data_ptr());
    if (class_weights.has_value()) {
      class_weights_ = float_tensor(*class_weights, given.in.classes, "class_weights");
      in.class_weights = floats(class_weights_);
    }
    in.smoothing = smoothing;
    in.ignore_index = ignore_index;
  }

  Classified given;
  SegmentationInputs in{};

 private:
  Tensor target_, class_weights_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> segmentation_sums(
    Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor target,
    std::optional<Tensor> class_weights, double smoothing, int64_t ignore_index, int64_t prototypes,
    std::string reduction, double eps) {
  const Segmented segmented(pixels, norm_weight, norm_bias, hyper, target, class_weights, smoothing, ignore_index,
                            prototypes, reduction, eps);
  const Classified& given = segmented.given;
  const int64_t classes = given.in.classes;
  Tensor cross_entropy = given.empty({}), overlap = given.empty({classes});
  Tensor volume = given.empty({classes}), count = given.empty({classes});
  const WrongLabel wrong = segmentation_forward({segmented.in, mutable_floats(cross_entropy), mutable_floats(overlap),
                                                 mutable_floats(volume), mutable_floats(count)},
                                                parallel);
  STD_TORCH_CHECK(!wrong.found, "target must hold classes from 0 to ", classes - 1, " or ignore_index ",
                  segmented.in.ignore_index, ", got the label ", wrong.value);
  return {cross_entropy, overlap, volume, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> segmentation_gradients(
    Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, Tensor target,
    std::optional<Tensor> class_weights, double smoothing, int64_t ignore_index, int64_t prototypes,
    std::string reduction, double eps, Tensor grad_cross_entropy, Tensor grad_overlap, Tensor grad_volume) {
  const Segmented segmented(pixels, norm_weight, norm_bias, hyper, target, class_weights, smoothing, ignore_index,
                            prototypes, reduction, eps);
  const Classified& given = segmented.given;
  const ClassifyInputs& in = given.in;
  const Tensor cross_entropy = float_tensor(grad_cross_entropy, 1, "grad_cross_entropy");
  const Tensor overlap = float_tensor(grad_overlap, in.classes, "grad_overlap");
  const Tensor volume = float_tensor(grad_volume, in.classes, "grad_volume");
  Tensor grad_pixels = given.like_pixels();
  Tensor grad_weight = given.empty({in.channels / 4}), grad_bias = given.empty({in.channels / 4});
  Tensor grad_hyper = given.empty({in.batch, in.vectors(), in.depth()});
  segmentation_backward({segmented.in, floats(cross_entropy), floats(overlap), floats(volume),
                         grad_pixels.mutable_data_ptr(), mutable_floats(grad_weight), mutable_floats(grad_bias),
                         mutable_floats(grad_hyper)},
                        parallel);
  return {grad_pixels, grad_weight, grad_bias, grad_hyper};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("segmentation_sums", TORCH_BOX(&segmentation_sums));
  m.impl("segmentation_sums_backward", TORCH_BOX(&segmentation_gradients));
}
