// The operators attend_projected and refine_projected: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cpu/projected.h"
#include "tensors.h"

namespace {

using namespace d2ls;

// The pixels and their positional encoding: checked, contiguous, and kept alive as long as the pointers are used.
class Image {
 public:
  Image(const Tensor& pixels, const Tensor& pixel_pe)
      : pixels_(torch::stable::contiguous(pixels)), pixel_pe_(torch::stable::contiguous(pixel_pe)) {
    STD_TORCH_CHECK(pixels.dim() == 3 && pixels.numel() > 0, "d2ls_fast: pixels must be [B, N, C], not empty");
    const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2), dims = pixel_pe.dim();
    STD_TORCH_CHECK((dims == 2 || (dims == 3 && pixel_pe.size(0) == b)) && pixel_pe.size(dims - 2) == n &&
                        pixel_pe.size(dims - 1) == c && pixel_pe.scalar_type() == pixels.scalar_type(),
                    "d2ls_fast: pixel_pe must be [N, C] or [B, N, C] with the N, C and dtype of pixels");
    pass.shape.batch = b;
    pass.shape.pixels = n;
    pass.shape.channels = c;
    pass.shape.shared_pe = dims == 2;
    pass.shape.dtype = dtype_of(pixels);
    pass.pixels = pixels_.const_data_ptr();
    pass.pixel_pe = pixel_pe_.const_data_ptr();
  }

  // Sets heads and entries from a dictionary side [G B, K, D]; returns D.
  int64_t entries(const Tensor& rows, int64_t num_heads, const char* name) {
    STD_TORCH_CHECK(rows.dim() == 3 && rows.numel() > 0 && rows.size(0) % pass.shape.batch == 0,
                    "d2ls_fast: ", name, " must be [G * B, K, D] with the B of pixels");
    STD_TORCH_CHECK(num_heads > 0 && rows.size(2) % num_heads == 0, "d2ls_fast: num_heads must divide the width of ",
                    name);
    pass.shape.heads = num_heads;
    pass.shape.entries = rows.size(1);
    return rows.size(2);
  }

  Tensor like_pixels() const { return torch::stable::empty_like(pixels_); }
  Tensor like_pixel_pe(bool wanted) const {
    return wanted ? torch::stable::empty_like(pixel_pe_) : torch::stable::new_empty(pixels_, {0});
  }
  Tensor empty(const std::vector<int64_t>& size) const { return torch::stable::new_empty(pixels_, size); }
  Tensor empty_floats(const std::vector<int64_t>& size) const {
    return torch::stable::new_empty(pixels_, size, ScalarType::Float);
  }

  PassInputs pass{};

 private:
  Tensor pixels_, pixel_pe_;
};

class AttendInputs {
 public:
  AttendInputs(const Tensor& pixels, const Tensor& pixel_pe, const Tensor& query, const Tensor& key_weight,
               const Tensor& value_weight, int64_t num_heads)
      : image(pixels, pixel_pe) {
    const int64_t width = image.entries(query, num_heads, "query");
    const PassShape& s = image.pass.shape;
    query_ = float_tensor(query, s.batch * s.entries * width, "query");
    key_weight_ = float_tensor(key_weight, width * s.channels, "key_weight");
    value_weight_ = float_tensor(value_weight, width * s.channels, "value_weight");
    in = {image.pass, width, floats(query_), floats(key_weight_), floats(value_weight_)};
  }
  Image image;
  AttendProjectedInputs in{};

 private:
  Tensor query_, key_weight_, value_weight_;
};

std::tuple<Tensor, Tensor> attend_projected(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor key_weight,
                                            Tensor value_weight, int64_t num_heads) {
  const AttendInputs given(pixels, pixel_pe, query, key_weight, value_weight, num_heads);
  const PassShape& s = given.in.pass.shape;
  Tensor mixed = given.image.empty_floats({s.batch, s.entries, given.in.width});
  Tensor log_sum_exp = given.image.empty_floats({s.batch, s.heads, s.entries});
  attend_projected_forward({given.in, mutable_floats(mixed), mutable_floats(log_sum_exp)}, parallel);
  return {mixed, log_sum_exp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attend_projected_gradients(
    Tensor pixels, Tensor pixel_pe, Tensor query, Tensor key_weight, Tensor value_weight, Tensor mixed,
    Tensor log_sum_exp, Tensor grad_mixed, Tensor grad_log_sum_exp, int64_t num_heads, bool need_pe_grad) {
  const AttendInputs given(pixels, pixel_pe, query, key_weight, value_weight, num_heads);
  const PassShape& s = given.in.pass.shape;
  const int64_t width = given.in.width, rows = s.batch * s.heads * s.entries, numel = s.batch * s.entries * width;
  const Tensor saved[] = {float_tensor(mixed, numel, "mixed"), float_tensor(log_sum_exp, rows, "log_sum_exp"),
                          float_tensor(grad_mixed, numel, "grad_mixed"),
                          float_tensor(grad_log_sum_exp, rows, "grad_log_sum_exp")};
  Tensor grad_pixels = given.image.like_pixels(), grad_pe = given.image.like_pixel_pe(need_pe_grad);
  Tensor grad_query = given.image.empty_floats({s.batch, s.entries, width});
  Tensor grad_key_weight = given.image.empty_floats({width, s.channels});
  Tensor grad_value_weight = given.image.empty_floats({width, s.channels});
  attend_projected_backward({given.in, floats(saved[0]), floats(saved[1]), floats(saved[2]), floats(saved[3]),
                             grad_pixels.mutable_data_ptr(), need_pe_grad ? grad_pe.mutable_data_ptr() : nullptr,
                             mutable_floats(grad_query), mutable_floats(grad_key_weight),
                             mutable_floats(grad_value_weight)},
                            parallel);
  return {grad_pixels, grad_pe, grad_query, grad_key_weight, grad_value_weight};
}

class RefineInputs {
 public:
  RefineInputs(const Tensor& pixels, const Tensor& pixel_pe, const Tensor& key, const Tensor& value,
               const Tensor& query_weight, const Tensor& query_bias, const Tensor& out_weight, const Tensor& out_bias,
               const Tensor& norm_weight, const Tensor& norm_bias, int64_t num_heads, double eps)
      : image(pixels, pixel_pe) {
    const int64_t width = image.entries(key, num_heads, "key");
    PassInputs& pass = image.pass;
    const int64_t channels = pass.shape.channels, numel = key.numel();
    pass.out_bias = keep(out_bias, channels, "out_bias");
    pass.norm_weight = keep(norm_weight, channels, "norm_weight");
    pass.norm_bias = keep(norm_bias, channels, "norm_bias");
    pass.eps = static_cast<float>(eps);
    in = {pass,
          width,
          key.size(0) / pass.shape.batch,
          keep(key, numel, "key"),
          keep(value, numel, "value"),
          keep(query_weight, width * channels, "query_weight"),
          keep(query_bias, width, "query_bias"),
          keep(out_weight, channels * width, "out_weight")};
  }
  Image image;
  RefineProjectedInputs in{};

 private:
  const float* keep(const Tensor& tensor, int64_t numel, const char* name) {
    kept_.push_back(float_tensor(tensor, numel, name));
    return floats(kept_.back());
  }
  std::vector<Tensor> kept_;
};

Tensor refine_projected(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor value, Tensor query_weight,
                        Tensor query_bias, Tensor out_weight, Tensor out_bias, Tensor norm_weight, Tensor norm_bias,
                        int64_t num_heads, double eps) {
  const RefineInputs given(pixels, pixel_pe, key, value, query_weight, query_bias, out_weight, out_bias, norm_weight,
                           norm_bias, num_heads, eps);
  const PassShape& s = given.in.pass.shape;
  Tensor refined = given.image.empty({given.in.groups * s.batch, s.pixels, s.channels});
  refine_projected_forward({given.in, refined.mutable_data_ptr()}, parallel);
  return refined;
}

// Gradients in the order of the inputs; that of pixel_pe is empty where it is not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> refine_projected_gradients(
    Tensor pixels, Tensor pixel_pe, Tensor key, Tensor value, Tensor query_weight, Tensor query_bias, Tensor out_weight,
    Tensor out_bias, Tensor norm_weight, Tensor norm_bias, Tensor grad_refined, int64_t num_heads, double eps,
    bool need_pe_grad) {
  const RefineInputs given(pixels, pixel_pe, key, value, query_weight, query_bias, out_weight, out_bias, norm_weight,
                           norm_bias, num_heads, eps);
  const PassShape& s = given.in.pass.shape;
  const int64_t width = given.in.width, dictionaries = given.in.groups * s.batch;
  STD_TORCH_CHECK(grad_refined.numel() == dictionaries * s.pixels * s.channels &&
                      grad_refined.scalar_type() == pixels.scalar_type(),
                  "d2ls_fast: grad_refined must be [G * B, N, C] in the dtype of pixels");
  const Tensor grad = torch::stable::contiguous(grad_refined);
  const Image& image = given.image;
  Tensor grad_pixels = image.like_pixels(), grad_pe = image.like_pixel_pe(need_pe_grad);
  Tensor grad_key = image.empty_floats({dictionaries, s.entries, width});
  Tensor grad_value = image.empty_floats({dictionaries, s.entries, width});
  Tensor grad_query_weight = image.empty_floats({width, s.channels}), grad_query_bias = image.empty_floats({width});
  Tensor grad_out_weight = image.empty_floats({s.channels, width}), grad_out_bias = image.empty_floats({s.channels});
  Tensor grad_norm_weight = image.empty_floats({s.channels}), grad_norm_bias = image.empty_floats({s.channels});
  refine_projected_backward(
      {given.in, grad.const_data_ptr(), grad_pixels.mutable_data_ptr(),
       need_pe_grad ? grad_pe.mutable_data_ptr() : nullptr, mutable_floats(grad_key), mutable_floats(grad_value),
       mutable_floats(grad_query_weight), mutable_floats(grad_query_bias), mutable_floats(grad_out_weight),
       mutable_floats(grad_out_bias), mutable_floats(grad_norm_weight), mutable_floats(grad_norm_bias)},
      parallel);
  return {grad_pixels,     grad_pe,         grad_key,      grad_value,       grad_query_weight,
          grad_query_bias, grad_out_weight, grad_out_bias, grad_norm_weight, grad_norm_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("attend_projected", TORCH_BOX(&attend_projected));
  m.impl("attend_projected_backward", TORCH_BOX(&attend_projected_gradients));
  m.impl("refine_projected", TORCH_BOX(&refine_projected));
  m.impl("refine_projected_backward", TORCH_BOX(&refine_projected_gradients));
}
