// Pixels and dictionaries from tensors: what the operators of attend and refine and their gradients begin with.
#pragma once

#include <vector>

#include "cuda/refine.h"
#include "cuda/registration.h"

namespace d2ls::cuda {

// Pixels with their encoding, and the dictionary that refine takes.
class Inputs {
 public:
  Inputs(const Tensor& pixels, const Tensor& pixel_pe, bool tf32) : pixels_(pixels) {
    STD_TORCH_CHECK(pixels.dim() == 3 && pixels.numel() > 0, "d2ls_fast: pixels must be [B, N, C] and not empty");
    const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2);
    const int64_t images = pixel_pe.dim() == 2 ? 1 : b;
    refine.type = type_of(pixels, tf32);
    refine.images = b;
    refine.dictionaries = 1;
    refine.pixels = n;
    refine.channels = static_cast<int>(c);
    refine.pe_images = images;
    refine.x = typed(pixels, b * n * c, "pixels");
    refine.pe = typed(pixel_pe, images * n * c, "pixel_pe");
  }

  void dictionary(const Tensor& key, const Tensor& key_bias, const Tensor& value, const Tensor& out_bias,
                  const Tensor& norm_weight, const Tensor& norm_bias, int64_t num_heads, double eps) {
    STD_TORCH_CHECK(key.dim() == 3 && key.size(0) > 0 && key.size(0) % refine.images == 0 && num_heads > 0 &&
                        key.size(1) > 0 && key.size(1) % num_heads == 0,
                    "d2ls_fast: key must be [G * B, J, C] with the B of pixels, and num_heads divide J");
    const int64_t c = refine.channels, rows = key.size(0) * key.size(1);
    refine.dictionaries = key.size(0) / refine.images;
    refine.heads = static_cast<int>(num_heads);
    refine.entries = static_cast<int>(key.size(1) / num_heads);
    refine.eps = static_cast<float>(eps);
    refine.key = typed(key, rows * c, "key");
    refine.value = typed(value, rows * c, "value");
    refine.key_bias = kept_.floats(key_bias, rows, "key_bias");
    refine.out_bias = kept_.floats(out_bias, c, "out_bias");
    refine.norm_weight = kept_.floats(norm_weight, c, "norm_weight");
    refine.norm_bias = kept_.floats(norm_bias, c, "norm_bias");
  }

  const void* typed(const Tensor& tensor, int64_t numel, const char* name) {
    return kept_.typed(tensor, pixels_, numel, name);
  }
  const float* floats(const Tensor& tensor, int64_t numel, const char* name) {
    return kept_.floats(tensor, numel, name);
  }
  // [G B, rows, C] like pixels.
  Tensor like_pixels(int64_t rows) const {
    return torch::stable::new_empty(pixels_, {count(), rows, static_cast<int64_t>(refine.channels)});
  }
  Tensor empty_floats(const std::vector<int64_t>& size) const {
    return torch::stable::new_empty(pixels_, size, ScalarType::Float);
  }
  int64_t count() const { return refine.dictionaries * refine.images; }

  RefineCall refine{};

 private:
  Tensor pixels_;
  Kept kept_;
};

}  // namespace d2ls::cuda
