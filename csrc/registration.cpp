// The one file that knows torch: checks, allocates and hands plain pointers to the kernels.
//
// Only the stable ABI is used (torch 2.10 is the floor), so that one binary serves later versions of torch, and no Python
// is linked, so that it serves every version of Python. Schemas, fakes and gradients are in d2ls_fast/ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "cpu/attend.h"
#include "cpu/isa.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel(int64_t count, int64_t grain, const d2ls::Range& body) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
}

d2ls::Dtype dtype_of(const Tensor& pixels) {
  switch (pixels.scalar_type()) {
    case ScalarType::Float:
      return d2ls::Dtype::f32;
    case ScalarType::BFloat16:
      return d2ls::Dtype::bf16;
    case ScalarType::Half:
      return d2ls::Dtype::f16;
    default:
      STD_TORCH_CHECK(false, "d2ls_fast: the CPU kernels take float32, bfloat16 and float16 pixels");
  }
}

d2ls::AttendShape attend_shape(const Tensor& pixels, const Tensor& pixel_pe, const Tensor& query) {
  STD_TORCH_CHECK(pixels.dim() == 3, "attend: pixels must be [B, N, C]");
  const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2);
  STD_TORCH_CHECK(b > 0 && n > 0 && c > 0, "attend: pixels must not be empty");
  STD_TORCH_CHECK((pixel_pe.dim() == 2 || (pixel_pe.dim() == 3 && pixel_pe.size(0) == b)) &&
                      pixel_pe.size(pixel_pe.dim() - 2) == n && pixel_pe.size(pixel_pe.dim() - 1) == c,
                  "attend: pixel_pe must be [N, C] or [B, N, C] with the N and C of pixels");
  STD_TORCH_CHECK(query.dim() == 3 && query.size(0) == b && query.size(2) == c && query.size(1) > 0,
                  "attend: query must be [B, J, C] with the B and C of pixels and J > 0");
  STD_TORCH_CHECK(pixel_pe.scalar_type() == pixels.scalar_type() && query.scalar_type() == pixels.scalar_type(),
                  "attend: pixel_pe and query must have the dtype of pixels");
  return {b, n, query.size(1), c, pixel_pe.dim() == 2, dtype_of(pixels)};
}

// A contiguous float32 tensor of exactly this shape, for what the backward receives from the forward or from autograd.
Tensor float_like(const Tensor& tensor, int64_t numel, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.numel() == numel, "attend_backward: ", name,
                  " must be float32 with the shape that attend returned");
  return torch::stable::contiguous(tensor);
}

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }

std::tuple<Tensor, Tensor> attend(Tensor pixels, Tensor pixel_pe, Tensor query) {
  const d2ls::AttendShape shape = attend_shape(pixels, pixel_pe, query);
  pixels = torch::stable::contiguous(pixels);
  pixel_pe = torch::stable::contiguous(pixel_pe);
  query = torch::stable::contiguous(query);
  Tensor context = torch::stable::new_empty(query, {shape.batch, shape.rows, shape.channels}, ScalarType::Float);
  Tensor log_sum_exp = torch::stable::new_empty(query, {shape.batch, shape.rows}, ScalarType::Float);
  d2ls::attend_forward({shape, pixels.const_data_ptr(), pixel_pe.const_data_ptr(), query.const_data_ptr(),
                        static_cast<float*>(context.mutable_data_ptr()),
                        static_cast<float*>(log_sum_exp.mutable_data_ptr())},
                       parallel);
  return {context, log_sum_exp};
}

std::tuple<Tensor, Tensor, Tensor> attend_backward(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor context,
                                                   Tensor log_sum_exp, Tensor grad_context, Tensor grad_log_sum_exp,
                                                   bool need_pe_grad) {
  const d2ls::AttendShape shape = attend_shape(pixels, pixel_pe, query);
  pixels = torch::stable::contiguous(pixels);
  pixel_pe = torch::stable::contiguous(pixel_pe);
  query = torch::stable::contiguous(query);
  const int64_t rows = shape.batch * shape.rows;
  context = float_like(context, rows * shape.channels, "context");
  log_sum_exp = float_like(log_sum_exp, rows, "log_sum_exp");
  grad_context = float_like(grad_context, rows * shape.channels, "grad_context");
  grad_log_sum_exp = float_like(grad_log_sum_exp, rows, "grad_log_sum_exp");
  Tensor grad_pixels = torch::stable::empty_like(pixels);
  Tensor grad_pe = need_pe_grad ? torch::stable::empty_like(pixel_pe) : torch::stable::new_empty(pixel_pe, {0});
  Tensor grad_query = torch::stable::empty_like(query);
  d2ls::attend_backward({shape, pixels.const_data_ptr(), pixel_pe.const_data_ptr(), query.const_data_ptr(),
                         floats(context), floats(log_sum_exp), floats(grad_context), floats(grad_log_sum_exp),
                         grad_pixels.mutable_data_ptr(), need_pe_grad ? grad_pe.mutable_data_ptr() : nullptr,
                         grad_query.mutable_data_ptr()},
                        parallel);
  return {grad_pixels, grad_pe, grad_query};
}

// What was built and what is used, for `d2ls-fast info`.
std::string build_info() {
  return std::string("isa=") + d2ls::isa_name(d2ls::isa()) + " torch_target=" D2LS_TORCH_TARGET " compiler=" __VERSION__;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) { m.def("build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_BOX(&build_info)); }

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("attend", TORCH_BOX(&attend));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
}
