// The contrastive operators: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "cpu/nce.h"
#include "cpu/ratio.h"
#include "tensors.h"

namespace {

using namespace d2ls;

// The inputs of nce_sums: checked, contiguous, and kept alive as long as the pointers into them are used.
class Contrasted {
 public:
  Contrasted(const Tensor& pixels, const Tensor& entries, const Tensor& target, int64_t prototypes,
             int64_t ignore_index, bool rows, bool columns)
      : pixels_(torch::stable::contiguous(pixels)), target_(torch::stable::contiguous(target)) {
    STD_TORCH_CHECK(pixels.dim() == 3 && pixels.numel() > 0, "d2ls_fast: pixels must be [B, N, C], not empty");
    STD_TORCH_CHECK(entries.dim() == 3 && entries.size(1) > 0 && prototypes > 0 && entries.size(1) % prototypes == 0,
                    "d2ls_fast: entries must be [B, K * prototypes, C]");
    STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long && target.numel() == pixels.size(0) * pixels.size(1),
                    "d2ls_fast: target must be int64 [B, N]");
    in.batch = pixels.size(0);
    in.pixels = pixels.size(1);
    in.channels = pixels.size(2);
    in.prototypes = prototypes;
    in.classes = entries.size(1) / prototypes;
    in.ignore_index = ignore_index;
    in.rows = rows;
    in.columns = columns;
    in.dtype = dtype_of(pixels);
    in.features = pixels_.const_data_ptr();
    entries_ = float_tensor(entries, in.batch * in.vectors() * in.channels, "entries");
    in.entries = floats(entries_);
    in.target = static_cast<const int64_t*>(target_.const_data_ptr());
  }

  Tensor like_pixels() const { return torch::stable::empty_like(pixels_); }
  Tensor like_entries() const { return torch::stable::empty_like(entries_); }
  Tensor by_class() const { return torch::stable::new_empty(entries_, {in.batch, in.classes}); }
  Tensor counts() const { return torch::stable::new_empty(target_, {in.batch, in.classes + 1}); }

  NceInputs in{};

 private:
  Tensor pixels_, entries_, target_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> nce_sums(Tensor pixels, Tensor entries, Tensor target, int64_t prototypes,
                                                    int64_t ignore_index, bool rows, bool columns) {
  const Contrasted given(pixels, entries, target, prototypes, ignore_index, rows, columns);
  Tensor loss = given.by_class(), positive = given.by_class(), log_sum_exp = given.by_class(), count = given.counts();
  nce_forward({given.in, mutable_floats(loss), mutable_floats(positive), mutable_floats(log_sum_exp),
               static_cast<int64_t*>(count.mutable_data_ptr())},
              parallel);
  return {loss, positive, log_sum_exp, count};
}

std::tuple<Tensor, Tensor> nce_sums_backward(Tensor pixels, Tensor entries, Tensor target, Tensor log_sum_exp,
                                             Tensor grad_loss, Tensor grad_positive, Tensor grad_log_sum_exp,
                                             int64_t prototypes, int64_t ignore_index, bool rows, bool columns) {
  const Contrasted given(pixels, entries, target, prototypes, ignore_index, rows, columns);
  const int64_t numel = given.in.batch * given.in.classes;
  const Tensor lse = float_tensor(log_sum_exp, numel, "log_sum_exp");
  const Tensor by_loss = float_tensor(grad_loss, numel, "grad_loss");
  const Tensor by_positive = float_tensor(grad_positive, numel, "grad_positive");
  const Tensor by_lse = float_tensor(grad_log_sum_exp, numel, "grad_log_sum_exp");
  Tensor grad_pixels = given.like_pixels(), grad_entries = given.like_entries();
  nce_backward({given.in, floats(lse), floats(by_loss), floats(by_positive), floats(by_lse),
                grad_pixels.mutable_data_ptr(), mutable_floats(grad_entries)},
               parallel);
  return {grad_pixels, grad_entries};
}

RatioInputs ratio_inputs(const Tensor& dictionary, double eps) {
  STD_TORCH_CHECK(dictionary.dim() == 3 && dictionary.numel() > 0, "d2ls_fast: dictionary must be [B, K, C], not empty");
  return {dictionary.size(0), dictionary.size(1), dictionary.size(2), floats(dictionary), static_cast<float>(eps)};
}

Tensor ratio_contrast(Tensor dictionary, double eps) {
  const Tensor given = float_tensor(dictionary, dictionary.numel(), "dictionary");
  Tensor loss = torch::stable::new_empty(given, std::vector<int64_t>{});
  *mutable_floats(loss) = ratio_forward(ratio_inputs(given, eps));
  return loss;
}

Tensor ratio_contrast_backward(Tensor dictionary, Tensor grad, double eps) {
  const Tensor given = float_tensor(dictionary, dictionary.numel(), "dictionary");
  const Tensor scale = float_tensor(grad, 1, "grad");
  Tensor grad_dictionary = torch::stable::empty_like(given);
  ratio_backward(ratio_inputs(given, eps), *floats(scale), mutable_floats(grad_dictionary));
  return grad_dictionary;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("nce_sums", TORCH_BOX(&nce_sums));
  m.impl("nce_sums_backward", TORCH_BOX(&nce_sums_backward));
  m.impl("ratio_contrast", TORCH_BOX(&ratio_contrast));
  m.impl("ratio_contrast_backward", TORCH_BOX(&ratio_contrast_backward));
}
