// The backward of attend, registered as in registration.cu.
#include <tuple>

#include "cuda/attend_backward.h"
#include "cuda/registration_inputs.h"

namespace {

using d2ls::cuda::Inputs;
using d2ls::cuda::OnDevice;
using d2ls::cuda::pointer;
using d2ls::cuda::Tensor;

Tensor like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }
// Empty where the gradient is not wanted.
Tensor like_where(bool wanted, const Tensor& tensor) {
  return wanted ? like(tensor) : torch::stable::new_empty(tensor, {0});
}

std::tuple<Tensor, Tensor, Tensor> attend_backward(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor log_sum_exp,
                                                   Tensor grad_context, Tensor delta, bool need_pe_grad, bool tf32) {
  const OnDevice on(pixels);
  Inputs in(pixels, pixel_pe, tf32);
  STD_TORCH_CHECK(query.dim() == 3 && query.size(1) > 0, "d2ls_fast: query must be [B, J, C]");
  const int64_t b = in.refine.images, j = query.size(1), c = in.refine.channels;
  const Tensor grad_pixels = like(pixels), grad_query = like(query);
  const Tensor grad_pe = like_where(need_pe_grad, pixel_pe);
  const d2ls::cuda::AttendBackwardCall call{in.refine.type,
                                            b,
                                            in.refine.pixels,
                                            in.refine.channels,
                                            static_cast<int>(j),
                                            in.refine.pe_images,
                                            in.refine.x,
                                            in.refine.pe,
                                            in.typed(query, b * j * c, "query"),
                                            in.typed(grad_context, b * j * c, "grad_context"),
                                            in.floats(log_sum_exp, b * j, "log_sum_exp"),
                                            in.floats(delta, b * j, "delta"),
                                            nullptr,
                                            grad_pixels.mutable_data_ptr(),
                                            need_pe_grad ? grad_pe.mutable_data_ptr() : nullptr,
                                            grad_query.mutable_data_ptr()};
  const Tensor scratch = in.empty_floats({attend_backward_scratch(on.device, call)});
  d2ls::cuda::check(attend_backward(on.device, call, pointer(scratch)));
  return {grad_pixels, grad_pe, grad_query};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_attend_backward(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor log_sum_exp, Tensor grad_context, "
      "Tensor delta, bool need_pe_grad, bool tf32) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) { m.impl("cuda_attend_backward", TORCH_BOX(&attend_backward)); }
