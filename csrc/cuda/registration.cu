// The CUDA part of the extension: a library of its own, so that the CPU part loads where there is no CUDA runtime.
//
// Checks shapes, allocates, and hands plain pointers to the launchers. Only the stable ABI is used, as in
// ../registration.cpp, and of CUDA only the runtime. Schemas, fakes and gradients of what users call are in
// d2ls_fast/ops; the operators here are what those call on a GPU, some with one more argument: whether TF32 is allowed.
#include <string>
#include <tuple>
#include <vector>

#include "cuda/refine_attend.h"
#include "cuda/registration_inputs.h"

namespace {

using d2ls::cuda::check;
using d2ls::cuda::classify_call;
using d2ls::cuda::Inputs;
using d2ls::cuda::Kept;
using d2ls::cuda::OnDevice;
using d2ls::cuda::pointer;
using d2ls::cuda::ScalarType;
using d2ls::cuda::Tensor;

std::tuple<Tensor, Tensor> attend(Tensor pixels, Tensor pixel_pe, Tensor query, bool tf32) {
  const OnDevice on(pixels);
  Inputs in(pixels, pixel_pe, tf32);
  STD_TORCH_CHECK(query.dim() == 3 && query.size(1) > 0, "d2ls_fast: query must be [B, J, C]");
  const int64_t b = in.refine.images, j = query.size(1), c = in.refine.channels;
  Tensor context = in.empty_floats({b, j, c}), log_sum_exp = in.empty_floats({b, j});
  const d2ls::cuda::AttendCall call{in.refine.type,
                                    b,
                                    in.refine.pixels,
                                    in.refine.channels,
                                    static_cast<int>(j),
                                    in.refine.pe_images,
                                    in.refine.x,
                                    in.refine.pe,
                                    in.typed(query, b * j * c, "query"),
                                    pointer(context),
                                    pointer(log_sum_exp)};
  Tensor scratch = in.empty_floats({d2ls::cuda::attend_scratch(on.device, call)});
  check(d2ls::cuda::attend(on.device, call, pointer(scratch)));
  return {context, log_sum_exp};
}

Tensor refine(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias,
              Tensor norm_weight, Tensor norm_bias, int64_t num_heads, double eps, bool tf32) {
  const OnDevice on(pixels);
  Inputs in(pixels, pixel_pe, tf32);
  in.dictionary(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  Tensor refined = in.like_pixels(in.refine.pixels);
  in.refine.refined = refined.mutable_data_ptr();
  check(d2ls::cuda::refine(on.device, in.refine));
  return refined;
}

std::tuple<Tensor, Tensor, Tensor> refine_attend(Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias,
                                                 Tensor value, Tensor out_bias, Tensor norm_weight, Tensor norm_bias,
                                                 Tensor query, int64_t num_heads, double eps, bool tf32) {
  const OnDevice on(pixels);
  Inputs in(pixels, pixel_pe, tf32);
  in.dictionary(key, key_bias, value, out_bias, norm_weight, norm_bias, num_heads, eps);
  STD_TORCH_CHECK(query.dim() == 3 && query.size(1) > 0, "d2ls_fast: query must be [G * B, J, C]");
  const int64_t j = query.size(1), c = in.refine.channels;
  Tensor refined = in.like_pixels(in.refine.pixels);
  Tensor context = in.empty_floats({in.count(), j, c}), log_sum_exp = in.empty_floats({in.count(), j});
  in.refine.refined = refined.mutable_data_ptr();
  const void* rows = in.typed(query, in.count() * j * c, "query");
  const d2ls::cuda::RefineAttendCall call{in.refine, static_cast<int>(j), rows, pointer(context), pointer(log_sum_exp)};
  Tensor scratch = in.empty_floats({d2ls::cuda::refine_attend_scratch(on.device, call)});
  check(d2ls::cuda::refine_attend(on.device, call, pointer(scratch)));
  return {refined, context, log_sum_exp};
}

Tensor classify(Tensor image, Tensor norm_weight, Tensor norm_bias, Tensor hyper, int64_t prototypes,
                std::string reduction, double eps) {
  const OnDevice on(image);
  Kept kept;
  d2ls::cuda::ClassifyCall call =
      classify_call(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, &kept);
  const std::vector<int64_t> size{call.batch, call.classes, 4 * image.size(1), 4 * image.size(2)};
  Tensor logits = torch::stable::new_empty(image, size, ScalarType::Float);
  call.logits = pointer(logits);
  check(d2ls::cuda::classify(on.device, call));
  return logits;
}

std::tuple<Tensor, Tensor> classify_labels(Tensor image, Tensor norm_weight, Tensor norm_bias, Tensor hyper,
                                           int64_t prototypes, std::string reduction, double eps,
                                           bool return_confidence) {
  const OnDevice on(image);
  Kept kept;
  d2ls::cuda::ClassifyCall call =
      classify_call(image, norm_weight, norm_bias, hyper, prototypes, reduction, eps, &kept);
  const std::vector<int64_t> size{call.batch, 4 * image.size(1), 4 * image.size(2)};
  Tensor labels = torch::stable::new_empty(image, size, call.classes <= 256 ? ScalarType::Byte : ScalarType::Short);
  Tensor confidence =
      torch::stable::new_empty(image, return_confidence ? size : std::vector<int64_t>{0}, ScalarType::Float);
  call.labels = labels.mutable_data_ptr();
  call.confidence = return_confidence ? pointer(confidence) : nullptr;
  check(d2ls::cuda::classify(on.device, call));
  return {labels, confidence};
}

// Architectures that the kernels were compiled for, as nvcc lists them (800 is sm_80), and the runtime's version.
std::string cuda_build_info() {
#define D2LS_TEXT(...) #__VA_ARGS__
#define D2LS_LIST(...) D2LS_TEXT(__VA_ARGS__)
  int runtime = 0;
  const bool known = cudaRuntimeGetVersion(&runtime) == cudaSuccess;
  return std::string("arch=") + D2LS_LIST(__CUDA_ARCH_LIST__) +
         " runtime=" + (known ? std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10) : "unknown");
}

}  // namespace

#define D2LS_DICTIONARY                                                                                          \
  "Tensor pixels, Tensor pixel_pe, Tensor key, Tensor key_bias, Tensor value, Tensor out_bias, Tensor norm_weight, " \
  "Tensor norm_bias, "
#define D2LS_CLASSIFY \
  "Tensor pixels, Tensor norm_weight, Tensor norm_bias, Tensor hyper, int prototypes, str reduction, float eps"

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def("cuda_build_info() -> str");
  m.def("cuda_attend(Tensor pixels, Tensor pixel_pe, Tensor query, bool tf32) -> (Tensor, Tensor)");
  m.def("cuda_refine(" D2LS_DICTIONARY "int num_heads, float eps, bool tf32) -> Tensor");
  m.def("cuda_refine_attend(" D2LS_DICTIONARY
        "Tensor query, int num_heads, float eps, bool tf32) -> (Tensor, Tensor, Tensor)");
  m.def("cuda_classify(" D2LS_CLASSIFY ") -> Tensor");
  m.def("cuda_classify_labels(" D2LS_CLASSIFY ", bool return_confidence) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info));
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_attend", TORCH_BOX(&attend));
  m.impl("cuda_refine", TORCH_BOX(&refine));
  m.impl("cuda_refine_attend", TORCH_BOX(&refine_attend));
  m.impl("cuda_classify", TORCH_BOX(&classify));
  m.impl("cuda_classify_labels", TORCH_BOX(&classify_labels));
}
