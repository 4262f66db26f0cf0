// The backward of attend, refine and refine_attend, registered as in registration.cu.
#include <tuple>

#include "cuda/attend_backward.h"
#include "cuda/refine_attend_backward.h"
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
                                            grad_query.mutable_data_ptr(),
                                            nullptr};
  const Tensor scratch = in.empty_floats({attend_backward_scratch(on.device, call)});
  d2ls::cuda::check(attend_backward(on.device, call, pointer(scratch)));
  return {grad_pixels, grad_pe, grad_query};
}

// The gradients of refine's arguments, in their order.
struct Gradients {
  Tensor pixels, pixel_pe, key, key_bias, value, out_bias, norm_weight, norm_bias;

  d2ls::cuda::RefineBackwardCall call(const Inputs& in, const void* grad_refined) const {
    return {in.refine,
            grad_refined,
            nullptr,
            pixels.mutable_data_ptr(),
            pixel_pe.numel() == 0 ? nullptr : pixel_pe.mutable_data_ptr(),
            key.mutable_data_ptr(),
            value.mutable_data_ptr(),
            pointer(key_bias),
            pointer(out_bias),
            pointer(norm_weight),
            pointer(norm_bias)};
  }
};

using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Eight refine_backward(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias,
                      Tensor norm_weight, Tensor norm_bias, Tensor grad_refined, int64_t num_heads, double eps,
                      bool need_pe_grad, bool tf32) {
  const OnDevice on(pixels);
  Inputs in(pixels, pixel_pe, tf32);
  in.dictionary(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  const Gradients of{like(pixels),   like_where(need_pe_grad, pixel_pe), like(key),         like(key_bias), like(value),
                     like(out_bias), like(norm_weight),                  like(norm_bias)};
  const int64_t refined = in.count() * in.refine.pixels * in.refine.channels;
  const d2ls::cuda::RefineBackwardCall call = of.call(in, in.typed(grad_refined, refined, "grad_refined"));
  const Tensor scratch = in.empty_floats({refine_backward_scratch(on.device, call)});
  d2ls::cuda::check(refine_backward(on.device, call, pointer(scratch)));
  return {of.pixels, of.pixel_pe, of.key, of.key_bias, of.value, of.out_bias, of.norm_weight, of.norm_bias};
}

Nine refine_attend_backward(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias,
                            Tensor norm_weight, Tensor norm_bias, Tensor query, Tensor log_sum_exp,
                            Tensor grad_refined, Tensor grad_context, Tensor delta, int64_t num_heads, double eps,
                            bool need_pe_grad, bool tf32) {
  const OnDevice on(pixels);
  Inputs in(pixels, pixel_pe, tf32);
  in.dictionary(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  STD_TORCH_CHECK(query.dim() == 3 && query.size(1) > 0, "d2ls_fast: query must be [G * B, J, C]");
  const Gradients of{like(pixels),   like_where(need_pe_grad, pixel_pe), like(key),         like(key_bias), like(value),
                     like(out_bias), like(norm_weight),                  like(norm_bias)};
  const Tensor grad_query = like(query);
  const int64_t refined = in.count() * in.refine.pixels * in.refine.channels, rows = in.count() * query.size(1);
  const d2ls::cuda::RefineAttendBackwardCall call{of.call(in, in.typed(grad_refined, refined, "grad_refined")),
                                                  static_cast<int>(query.size(1)),
                                                  in.typed(query, rows * in.refine.channels, "query"),
                                                  in.typed(grad_context, rows * in.refine.channels, "grad_context"),
                                                  in.floats(log_sum_exp, rows, "log_sum_exp"),
                                                  in.floats(delta, rows, "delta"),
                                                  grad_query.mutable_data_ptr()};
  const Tensor scratch = in.empty_floats({refine_attend_backward_scratch(on.device, call)});
  d2ls::cuda::check(refine_attend_backward(on.device, call, pointer(scratch)));
  return {of.pixels,   of.pixel_pe,    of.key,       of.key_bias, of.value,
          of.out_bias, of.norm_weight, of.norm_bias, grad_query};
}

}  // namespace

#define D2LS_DICTIONARY                                                                                              \
  "Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias, Tensor norm_weight, " \
  "Tensor norm_bias, "
#define D2LS_EIGHT "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_attend_backward(Tensor pixels, Tensor pixel_pe, Tensor query, Tensor log_sum_exp, Tensor grad_context, "
      "Tensor delta, bool need_pe_grad, bool tf32) -> (Tensor, Tensor, Tensor)");
  m.def("cuda_refine_backward(" D2LS_DICTIONARY
        "Tensor grad_refined, int num_heads, float eps, bool need_pe_grad, bool tf32) -> (" D2LS_EIGHT ")");
  m.def("cuda_refine_attend_backward(" D2LS_DICTIONARY
        "Tensor query, Tensor log_sum_exp, Tensor grad_refined, Tensor grad_context, Tensor delta, int num_heads, "
        "float eps, bool need_pe_grad, bool tf32) -> (" D2LS_EIGHT ", Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_attend_backward", TORCH_BOX(&attend_backward));
  m.impl("cuda_refine_backward", TORCH_BOX(&refine_backward));
  m.impl("cuda_refine_attend_backward", TORCH_BOX(&refine_attend_backward));
}
