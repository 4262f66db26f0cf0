// The operators of the pixel pass: checks, allocates and hands plain pointers to the kernels.
//
// Only the stable ABI is used (torch 2.10 is the floor), so that one binary serves later versions of torch, and no Python
// is linked, so that it serves every version of Python. Schemas, fakes and gradients are in d2ls_fast/ops.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa.h"
#include "cpu/pass.h"
#include "tensors.h"

namespace {

using d2ls::dtype_of;
using d2ls::float_tensor;
using d2ls::floats;
using d2ls::mutable_floats;
using d2ls::parallel;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The inputs of a pass: checked, contiguous, and kept alive as long as the pointers into them are used.
class Inputs {
 public:
  Inputs(const Tensor& pixels, const Tensor& pixel_pe) : pixels_(pixels), pixel_pe_(pixel_pe) {
    STD_TORCH_CHECK(pixels.dim() == 3, "d2ls_fast: pixels must be [B, N, C]");
    const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2);
    STD_TORCH_CHECK(b > 0 && n > 0 && c > 0, "d2ls_fast: pixels must not be empty");
    STD_TORCH_CHECK((pixel_pe.dim() == 2 || (pixel_pe.dim() == 3 && pixel_pe.size(0) == b)) &&
                        pixel_pe.size(pixel_pe.dim() - 2) == n && pixel_pe.size(pixel_pe.dim() - 1) == c,
                    "d2ls_fast: pixel_pe must be [N, C] or [B, N, C] with the N and C of pixels");
    pass.shape = {b, 1, n, c, 0, 0, 0, pixel_pe.dim() == 2, dtype_of(pixels)};
    pass.pixels = data(pixels, "pixels", &pixels_);
    pass.pixel_pe = data(pixel_pe, "pixel_pe", &pixel_pe_);
  }

  void attend(const Tensor& query) {
    pass.shape.rows = rows_of(query, "query");
    pass.query = data(query, "query", &query_);
  }

  void refine(const Tensor& key, const Tensor& key_bias, const Tensor& value, const Tensor& out_bias,
              const Tensor& norm_weight, const Tensor& norm_bias, int64_t num_heads, double eps) {
    STD_TORCH_CHECK(key.dim() == 3 && key.size(0) > 0 && key.size(0) % pass.shape.batch == 0,
                    "d2ls_fast: key must be [G * B, J, C] with the B of pixels");
    pass.shape.dictionaries = key.size(0) / pass.shape.batch;
    const int64_t rows = rows_of(key, "key"), c = pass.shape.channels;
    STD_TORCH_CHECK(rows_of(value, "value") == rows, "d2ls_fast: value must have the rows of key");
    STD_TORCH_CHECK(num_heads > 0 && rows % num_heads == 0, "d2ls_fast: num_heads must divide the rows of key");
    pass.shape.heads = num_heads;
    pass.shape.entries = rows / num_heads;
    pass.key = data(key, "key", &key_);
    pass.value = data(value, "value", &value_);
    pass.key_bias = vector(key_bias, count() * rows, "key_bias", &key_bias_);
    pass.out_bias = vector(out_bias, c, "out_bias", &out_bias_);
    pass.norm_weight = vector(norm_weight, c, "norm_weight", &norm_weight_);
    pass.norm_bias = vector(norm_bias, c, "norm_bias", &norm_bias_);
    pass.eps = static_cast<float>(eps);
  }

  // Same shape and dtype as an input, contiguous.
  Tensor like_pixels() const { return torch::stable::empty_like(pixels_); }
  Tensor like_pixel_pe() const { return torch::stable::empty_like(pixel_pe_); }
  // [G B, rows, C], where G is 1 without refine.
  Tensor rows_like_pixels(int64_t rows) const {
    return torch::stable::new_empty(pixels_, {count(), rows, pass.shape.channels});
  }
  Tensor empty_floats(const std::vector<int64_t>& size) const {
    return torch::stable::new_empty(pixels_, size, ScalarType::Float);
  }
  // Dictionaries of all images, G B.
  int64_t count() const { return pass.shape.dictionaries * pass.shape.batch; }
  Tensor nothing() const { return torch::stable::new_empty(pixels_, {0}); }

  const void* data(const Tensor& tensor, const char* name, Tensor* kept) const {
    STD_TORCH_CHECK(tensor.scalar_type() == pixels_.scalar_type(), "d2ls_fast: ", name, " must have the dtype of pixels");
    *kept = torch::stable::contiguous(tensor);
    return kept->const_data_ptr();
  }

  d2ls::PassInputs pass{};

 private:
  int64_t rows_of(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == count() && tensor.size(2) == pass.shape.channels &&
                        tensor.size(1) > 0,
                    "d2ls_fast: ", name, " must be [", count(), ", J, C] with the C of pixels and J > 0");
    return tensor.size(1);
  }

  static const float* vector(const Tensor& tensor, int64_t numel, const char* name, Tensor* kept) {
    *kept = float_tensor(tensor, numel, name);
    return floats(*kept);
  }

  Tensor pixels_, pixel_pe_, query_, key_, key_bias_, value_, out_bias_, norm_weight_, norm_bias_;
};

std::tuple<Tensor, Tensor> attend(Tensor pixels, Tensor pixel_pe, Tensor query) {
  Inputs in(pixels, pixel_pe);
  in.attend(query);
  const d2ls::PassShape& s = in.pass.shape;
  Tensor context = in.empty_floats({s.batch, s.rows, s.channels});
  Tensor log_sum_exp = in.empty_floats({s.batch, s.rows});
  d2ls::pass_forward({in.pass, nullptr, mutable_floats(context), mutable_floats(log_sum_exp)}, parallel);
  return {context, log_sum_exp};
}

Tensor refine(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias,
              Tensor norm_weight, Tensor norm_bias, int64_t num_heads, double eps) {
  Inputs in(pixels, pixel_pe);
  in.refine(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  Tensor refined = in.rows_like_pixels(in.pass.shape.pixels);
  d2ls::pass_forward({in.pass, refined.mutable_data_ptr(), nullptr, nullptr}, parallel);
  return refined;
}

std::tuple<Tensor, Tensor, Tensor> refine_attend(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias,
                                                 Tensor value, Tensor out_bias, Tensor norm_weight, Tensor norm_bias,
                                                 Tensor query, int64_t num_heads, double eps) {
  Inputs in(pixels, pixel_pe);
  in.refine(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  in.attend(query);
  const d2ls::PassShape& s = in.pass.shape;
  Tensor refined = in.rows_like_pixels(s.pixels);
  Tensor context = in.empty_floats({in.count(), s.rows, s.channels});
  Tensor log_sum_exp = in.empty_floats({in.count(), s.rows});
  d2ls::pass_forward(
      {in.pass, refined.mutable_data_ptr(), mutable_floats(context), mutable_floats(log_sum_exp)}, parallel);
  return {refined, context, log_sum_exp};
}

// What the backward of attend needs besides the inputs.
struct AttendSaved {
  AttendSaved(const Inputs& in, const Tensor& context, const Tensor& log_sum_exp, const Tensor& grad_context,
              const Tensor& grad_log_sum_exp) {
    const int64_t rows = in.count() * in.pass.shape.rows, numel = rows * in.pass.shape.channels;
    tensors[0] = float_tensor(context, numel, "context");
    tensors[1] = float_tensor(log_sum_exp, rows, "log_sum_exp");
    tensors[2] = float_tensor(grad_context, numel, "grad_context");
    tensors[3] = float_tensor(grad_log_sum_exp, rows, "grad_log_sum_exp");
  }
  void give(d2ls::PassBackward* call) const {
    call->context = floats(tensors[0]);
    call->log_sum_exp = floats(tensors[1]);
    call->grad_context = floats(tensors[2]);
    call->grad_log_sum_exp = floats(tensors[3]);
  }
  Tensor tensors[4];
};

std::tuple<Tensor, Tensor, Tensor> attend_backward(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor context,
                                                   Tensor log_sum_exp, Tensor grad_context, Tensor grad_log_sum_exp,
                                                   bool need_pe_grad) {
  Inputs in(pixels, pixel_pe);
  in.attend(query);
  const AttendSaved saved(in, context, log_sum_exp, grad_context, grad_log_sum_exp);
  Tensor grad_pixels = in.like_pixels();
  Tensor grad_pe = need_pe_grad ? in.like_pixel_pe() : in.nothing();
  Tensor grad_query = in.rows_like_pixels(in.pass.shape.rows);
  d2ls::PassBackward call{};
  call.in = in.pass;
  saved.give(&call);
  call.grad_pixels = grad_pixels.mutable_data_ptr();
  call.grad_pe = need_pe_grad ? grad_pe.mutable_data_ptr() : nullptr;
  call.grad_query = grad_query.mutable_data_ptr();
  d2ls::pass_backward(call, parallel);
  return {grad_pixels, grad_pe, grad_query};
}

// Gradients of pixels, pixel_pe, key, key_bias, value, out_bias, norm_weight, norm_bias, query; those of query and of
// pixel_pe are empty where there is no query or no need. Without a query this is the backward of refine.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> refine_attend_backward(
    Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias, Tensor norm_weight,
    Tensor norm_bias, std::optional<Tensor> query, std::optional<Tensor> context, std::optional<Tensor> log_sum_exp,
    Tensor grad_refined, std::optional<Tensor> grad_context, std::optional<Tensor> grad_log_sum_exp, int64_t num_heads,
    double eps, bool need_pe_grad) {
  Inputs in(pixels, pixel_pe);
  in.refine(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  d2ls::PassBackward call{};
  std::optional<AttendSaved> saved;
  if (query.has_value()) {
    STD_TORCH_CHECK(context.has_value() && log_sum_exp.has_value() && grad_context.has_value() &&
                        grad_log_sum_exp.has_value(),
                    "d2ls_fast: a query needs context, log_sum_exp and their gradients");
    in.attend(*query);
    saved.emplace(in, *context, *log_sum_exp, *grad_context, *grad_log_sum_exp);
    saved->give(&call);
  }
  STD_TORCH_CHECK(grad_refined.numel() == in.pass.shape.dictionaries * pixels.numel(),
                  "d2ls_fast: grad_refined must have the shape of refined");
  Tensor kept;
  call.grad_refined = in.data(grad_refined, "grad_refined", &kept);
  call.in = in.pass;
  const d2ls::PassShape& s = in.pass.shape;
  const int64_t rows = s.heads * s.entries;
  Tensor grad_pixels = in.like_pixels();
  Tensor grad_pe = need_pe_grad ? in.like_pixel_pe() : in.nothing();
  Tensor grad_key = in.rows_like_pixels(rows), grad_value = in.rows_like_pixels(rows);
  Tensor grad_key_bias = in.empty_floats({in.count(), rows});
  Tensor grad_out_bias = in.empty_floats({s.channels}), grad_norm_weight = in.empty_floats({s.channels});
  Tensor grad_norm_bias = in.empty_floats({s.channels});
  Tensor grad_query = query.has_value() ? in.rows_like_pixels(s.rows) : in.nothing();
  call.grad_pixels = grad_pixels.mutable_data_ptr();
  call.grad_pe = need_pe_grad ? grad_pe.mutable_data_ptr() : nullptr;
  call.grad_key = grad_key.mutable_data_ptr();
  call.grad_key_bias = mutable_floats(grad_key_bias);
  call.grad_value = grad_value.mutable_data_ptr();
  call.grad_out_bias = mutable_floats(grad_out_bias);
  call.grad_norm_weight = mutable_floats(grad_norm_weight);
  call.grad_norm_bias = mutable_floats(grad_norm_bias);
  call.grad_query = grad_query.mutable_data_ptr();
  d2ls::pass_backward(call, parallel);
  return {grad_pixels,      grad_pe,        grad_key,   grad_key_bias, grad_value, grad_out_bias,
          grad_norm_weight, grad_norm_bias, grad_query};
}

// What was built and what is used, for `d2ls-fast info`.
std::string build_info() {
  return std::string("isa=") + d2ls::isa_name(d2ls::isa_for_bf16()) + " torch_target=" D2LS_TORCH_TARGET " compiler=" __VERSION__;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) { m.def("build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
  m.impl("refine", TORCH_BOX(&refine));
  m.impl("refine_attend", TORCH_BOX(&refine_attend));
  m.impl("refine_attend_backward", TORCH_BOX(&refine_attend_backward));
}
