// nce_sums and its backward, registered as in registration.cu.
#include <tuple>
#include <vector>

#include "cuda/nce.h"
#include "cuda/registration.h"

namespace {

using d2ls::cuda::Kept;
using d2ls::cuda::NceCall;
using d2ls::cuda::OnDevice;
using d2ls::cuda::pointer;
using d2ls::cuda::ScalarType;
using d2ls::cuda::Tensor;

NceCall nce_call(const Tensor& pixels, const Tensor& entries, const Tensor& target, int64_t prototypes,
                 int64_t ignore_index, bool rows, bool columns, Kept* kept) {
  STD_TORCH_CHECK(pixels.dim() == 3 && pixels.numel() > 0, "d2ls_fast: pixels must be [B, N, C] and not empty");
  STD_TORCH_CHECK(entries.dim() == 3 && prototypes > 0 && entries.size(1) > 0 && entries.size(1) % prototypes == 0,
                  "d2ls_fast: entries must be [B, K * P, C]");
  const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2);
  NceCall call{};
  call.type = d2ls::cuda::type_of(pixels, false);
  call.batch = b;
  call.pixels = n;
  call.channels = static_cast<int>(c);
  call.classes = static_cast<int>(entries.size(1) / prototypes);
  call.prototypes = static_cast<int>(prototypes);
  call.ignore_index = ignore_index;
  call.rows = rows;
  call.columns = columns;
  call.x = kept->typed(pixels, pixels, b * n * c, "pixels");
  call.entries = kept->floats(entries, b * entries.size(1) * c, "entries");
  call.target = kept->integers(target, b * n, "target");
  return call;
}

Tensor floats(const Tensor& like, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(like, size, ScalarType::Float);
}

// count as float32.
std::tuple<Tensor, Tensor, Tensor, Tensor> nce_sums(Tensor pixels, Tensor entries, Tensor target, int64_t prototypes,
                                                    int64_t ignore_index, bool rows, bool columns) {
  const OnDevice on(pixels);
  Kept kept;
  const NceCall call = nce_call(pixels, entries, target, prototypes, ignore_index, rows, columns, &kept);
  const Tensor loss = floats(pixels, {call.batch, call.classes}), positive = floats(pixels, {call.batch, call.classes});
  const Tensor log_sum_exp = floats(pixels, {call.batch, call.classes});
  const Tensor count = floats(pixels, {call.batch, call.classes + 1});
  const Tensor scratch = floats(pixels, {nce_sums_scratch(on.device, call)});
  d2ls::cuda::check(nce_sums(on.device, call,
                             {pointer(loss), pointer(positive), pointer(log_sum_exp), pointer(count)},
                             pointer(scratch)));
  return {loss, positive, log_sum_exp, count};
}

std::tuple<Tensor, Tensor> nce_sums_backward(Tensor pixels, Tensor entries, Tensor target, Tensor log_sum_exp,
                                             Tensor grad_loss, Tensor grad_positive, Tensor grad_log_sum_exp,
                                             int64_t prototypes, int64_t ignore_index, bool rows, bool columns) {
  const OnDevice on(pixels);
  Kept kept;
  const NceCall of = nce_call(pixels, entries, target, prototypes, ignore_index, rows, columns, &kept);
  const int64_t sums = of.batch * of.classes;
  const Tensor grad_pixels = torch::stable::new_empty(pixels, pixels.sizes());
  const Tensor grad_entries = torch::stable::new_empty(entries, entries.sizes());
  const d2ls::cuda::NceGradientsCall call{of,
                                          kept.floats(log_sum_exp, sums, "log_sum_exp"),
                                          {kept.floats(grad_loss, sums, "grad_loss"),
                                           kept.floats(grad_positive, sums, "grad_positive"),
                                           kept.floats(grad_log_sum_exp, sums, "grad_log_sum_exp")},
                                          grad_pixels.mutable_data_ptr(),
                                          pointer(grad_entries)};
  const Tensor scratch = floats(pixels, {nce_gradients_scratch(on.device, of)});
  d2ls::cuda::check(nce_gradients(on.device, call, pointer(scratch)));
  return {grad_pixels, grad_entries};
}

}  // namespace

#define D2LS_OPTIONS "int prototypes, int ignore_index, bool rows, bool columns"

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def("cuda_nce_sums(Tensor pixels, Tensor entries, Tensor target, " D2LS_OPTIONS
        ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "cuda_nce_sums_backward(Tensor pixels, Tensor entries, Tensor target, Tensor log_sum_exp, Tensor grad_loss, "
      "Tensor grad_positive, Tensor grad_log_sum_exp, " D2LS_OPTIONS ") -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_nce_sums", TORCH_BOX(&nce_sums));
  m.impl("cuda_nce_sums_backward", TORCH_BOX(&nce_sums_backward));
}
