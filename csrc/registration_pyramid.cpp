// The operator fuse_pyramid: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cpu/pyramid.h"
#include "tensors.h"

namespace {

using namespace d2ls;

// Maps [B, c, h, w] that keep the strides they have where the pixels follow each other evenly and the channels of a pixel
// or the pixels of a channel are neighbours: contiguous or channels-last, and slices of such. Others are copied.
Tensor evenly_strided(const Tensor& map) {
  const bool even = map.size(2) == 1 || map.stride(2) == map.size(3) * map.stride(3);
  return even && (map.stride(1) == 1 || map.stride(3) == 1) ? map : torch::stable::contiguous(map);
}

PyramidMap map_of(const Tensor& map, void* data) { return {data, map.stride(0), map.stride(1), map.stride(3)}; }

// A gradient for the map, channels-last where its channels are neighbours (as the fake in Python has it).
Tensor empty_like_map(const Tensor& map) {
  const int64_t b = map.size(0), c = map.size(1), h = map.size(2), w = map.size(3);
  if (map.stride(1) != 1) {
    return torch::stable::new_empty(map, {b, c, h, w});
  }
  return torch::stable::transpose(torch::stable::transpose(torch::stable::new_empty(map, {b, h, w, c}), 1, 3), 2, 3);
}

// The inputs: checked, and kept alive as long as the pointers into them are used.
class Pyramid {
 public:
  Pyramid(const std::vector<Tensor>& features, const std::vector<Tensor>& weights) {
    STD_TORCH_CHECK(!features.empty() && features.size() == weights.size(),
                    "d2ls_fast: weights must be as many as features, and at least one");
    STD_TORCH_CHECK(weights[0].dim() == 2 && weights[0].size(0) > 0, "d2ls_fast: weights must be [C, c]");
    in.channels = weights[0].size(0);
    in.dtype = dtype_of(features[0]);
    for (size_t i = 0; i < features.size(); ++i) {
      const Tensor &feature = features[i], &weight = weights[i];
      STD_TORCH_CHECK(feature.dim() == 4 && feature.numel() > 0, "d2ls_fast: features must be [B, c, h, w], not empty");
      in.batch = features[0].size(0);
      STD_TORCH_CHECK(feature.size(0) == in.batch, "d2ls_fast: features must have one batch size");
      STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == in.channels && weight.size(1) == feature.size(1),
                      "d2ls_fast: weights must be [C, c] with the c of their features");
      STD_TORCH_CHECK(feature.scalar_type() == features[0].scalar_type() &&
                          weight.scalar_type() == features[0].scalar_type(),
                      "d2ls_fast: features and weights must have one dtype");
      const Tensor map = evenly_strided(feature);
      const Tensor matrix = torch::stable::contiguous(weight);
      kept_.push_back(map);
      kept_.push_back(matrix);
      PyramidLevel level{feature.size(1), feature.size(2), feature.size(3)};
      level.feature = map_of(map, const_cast<void*>(map.const_data_ptr()));
      level.weight = matrix.const_data_ptr();
      in.levels.push_back(level);
    }
  }

  int64_t pixels() const { return in.levels.front().pixels(); }

  PyramidInputs in{};

 private:
  std::vector<Tensor> kept_;
};

Tensor fuse_pyramid(std::vector<Tensor> features, std::vector<Tensor> weights, Tensor bias) {
  const Pyramid given(features, weights);
  const PyramidInputs& in = given.in;
  const Tensor vector = float_tensor(bias, in.channels, "bias");
  Tensor fused = torch::stable::new_empty(features[0], {in.batch, given.pixels(), in.channels});
  pyramid_forward(in, floats(vector), fused.mutable_data_ptr(), parallel);
  return fused;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor> fuse_pyramid_backward(Tensor grad_fused,
                                                                                   std::vector<Tensor> features,
                                                                                   std::vector<Tensor> weights,
                                                                                   bool need_features) {
  Pyramid given(features, weights);
  PyramidInputs& in = given.in;
  STD_TORCH_CHECK(grad_fused.numel() == in.batch * given.pixels() * in.channels &&
                      grad_fused.scalar_type() == features[0].scalar_type(),
                  "d2ls_fast: grad_fused must be [B, h w, C] in the dtype of features");
  const Tensor grad = torch::stable::contiguous(grad_fused);
  std::vector<Tensor> grad_features, grad_weights;
  for (size_t i = 0; i < features.size(); ++i) {
    if (need_features) {
      grad_features.push_back(empty_like_map(features[i]));
      in.levels[i].grad_feature = map_of(grad_features[i], grad_features[i].mutable_data_ptr());
    }
    grad_weights.push_back(torch::stable::new_empty(weights[i], {in.channels, in.levels[i].channels}));
    in.levels[i].grad_weight = grad_weights[i].mutable_data_ptr();
  }
  Tensor grad_bias = torch::stable::new_empty(features[0], {in.channels}, ScalarType::Float);
  pyramid_backward(in, grad.const_data_ptr(), mutable_floats(grad_bias), parallel);
  return {grad_features, grad_weights, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("fuse_pyramid", TORCH_BOX(&fuse_pyramid));
  m.impl("fuse_pyramid_backward", TORCH_BOX(&fuse_pyramid_backward));
}
