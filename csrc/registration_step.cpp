// The operator dictionary_step: checks, allocates and hands plain pointers to the kernels.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/step.h"
#include "tensors.h"

namespace {

using namespace d2ls;

using Tensors = std::vector<Tensor>;

// The inputs: checked, contiguous, and kept alive as long as the pointers into them are used.
class Step {
 public:
  Step(const Tensor& dictionary, const Tensor& position, const std::optional<Tensor>& context, const Tensors& update,
       const Tensors& entries, const Tensors& look, int64_t num_heads, double eps, Dtype dtype)
      : like_(dictionary) {
    STD_TORCH_CHECK(dictionary.dim() == 3 && dictionary.numel() > 0, "d2ls_fast: dictionary must be [B, K, C]");
    STD_TORCH_CHECK(update.size() == (context.has_value() ? 6u : 0u) && (entries.empty() || entries.size() == 7) &&
                        (look.empty() || look.size() == 4) && !(update.empty() && entries.empty() && look.empty()),
                    "d2ls_fast: update (with context), entries and look must have 6, 7 and 4 tensors, or none");
    const Tensor& first = !update.empty() ? update[0] : !entries.empty() ? entries[0] : look[0];
    STD_TORCH_CHECK(first.dim() == 2 && num_heads > 0 && first.size(0) % num_heads == 0 && first.size(0) > 0,
                    "d2ls_fast: num_heads must divide the width of the attention");
    in.batch = dictionary.size(0);
    in.entries = dictionary.size(1);
    in.channels = dictionary.size(2);
    in.heads = num_heads;
    in.inner = first.size(0);
    in.eps = eps;
    in.dtype = dtype;
    const int64_t rows = in.rows() * in.channels, matrix = in.inner * in.channels;
    in.dictionary = keep(dictionary, rows, "dictionary");
    in.position = keep(position, rows, "position");
    if (context.has_value()) {
      in.update = {keep(*context, num_heads * rows, "context"),    keep(update[0], matrix, "value_weight"),
                   keep(update[1], in.inner, "value_bias"),        keep(update[2], matrix, "out_weight"),
                   keep(update[3], in.channels, "out_bias"),       keep(update[4], in.channels, "norm_weight"),
                   keep(update[5], in.channels, "norm_bias")};
    }
    if (!entries.empty()) {
      in.key = {keep(entries[2], matrix, "key_weight"), keep(entries[3], in.inner, "key_bias"),
                keep(entries[0], matrix, "query_weight"), keep(entries[1], in.inner, "query_bias")};
      in.value = {keep(entries[4], matrix, "value_weight"), keep(entries[5], in.inner, "value_bias"),
                  keep(entries[6], matrix, "out_weight")};
    }
    if (!look.empty()) {
      in.look = {keep(look[0], matrix, "query_weight"), keep(look[1], in.inner, "query_bias"),
                 keep(look[2], matrix, "key_weight"), nullptr};
    }
  }

  const float* keep(const Tensor& tensor, int64_t numel, const char* name) {
    kept_.push_back(float_tensor(tensor, numel, name));
    return floats(kept_.back());
  }
  // A gradient of folded rows, in their dtype.
  const void* keep_rows(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(dtype_of(tensor) == in.dtype && tensor.numel() == in.heads * in.rows() * in.channels, "d2ls_fast: ",
                    name, " must have the shape and dtype of what it is the gradient of");
    kept_.push_back(torch::stable::contiguous(tensor));
    return kept_.back().const_data_ptr();
  }
  Tensor empty(const std::vector<int64_t>& size, ScalarType dtype = ScalarType::Float) const {
    return torch::stable::new_empty(like_, size, dtype);
  }
  Tensor folded(bool wanted, ScalarType dtype) const {
    return wanted ? empty({in.batch, in.heads * in.entries, in.channels}, dtype) : empty({0}, dtype);
  }

  StepInputs in{};

 private:
  Tensor like_;
  Tensors kept_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dictionary_step(Tensor dictionary, Tensor position,
                                                                   std::optional<Tensor> context, Tensors update,
                                                                   Tensors entries, Tensors look, int64_t num_heads,
                                                                   double eps, ScalarType dtype) {
  const Step given(dictionary, position, context, update, entries, look, num_heads, eps, dtype_of(dtype));
  const StepInputs& in = given.in;
  const bool keys = !entries.empty();
  using Size = std::vector<int64_t>;
  Tensor next = given.empty(context.has_value() ? Size{in.batch, in.entries, in.channels} : Size{0});
  Tensor query = given.folded(!look.empty(), dtype), key = given.folded(keys, dtype);
  Tensor key_bias = given.empty(keys ? Size{in.batch, in.heads * in.entries} : Size{0});
  Tensor value = given.folded(keys, dtype);
  step_forward({in, mutable_floats(next), query.mutable_data_ptr(), key.mutable_data_ptr(), mutable_floats(key_bias),
                value.mutable_data_ptr()},
               parallel);
  return {next, query, key, key_bias, value};
}

// Gradients of dictionary, position, context, update, entries and look, those of absent parts left out; the key bias of
// look has none.
Tensors dictionary_step_gradients(Tensor dictionary, Tensor position, std::optional<Tensor> context, Tensors update,
                                  Tensors entries, Tensors look, Tensor grad_dictionary, Tensor grad_query,
                                  Tensor grad_key, Tensor grad_key_bias, Tensor grad_value, int64_t num_heads,
                                  double eps) {
  Step given(dictionary, position, context, update, entries, look, num_heads, eps, dtype_of(grad_query));
  StepBackward call{};
  Tensors gradients;
  const auto gradient = [&](const Tensor& of) {
    gradients.push_back(torch::stable::new_empty(of, of.sizes()));
    return mutable_floats(gradients.back());
  };
  const int64_t rows = given.in.rows() * given.in.channels;
  call.to_dictionary = gradient(dictionary);
  call.to_position = gradient(position);
  if (context.has_value()) {
    call.grad_dictionary = given.keep(grad_dictionary, rows, "grad_dictionary");
    call.to_context = gradient(*context);
    float** const to[] = {&call.to_value_weight, &call.to_value_bias,  &call.to_out_weight,
                          &call.to_out_bias,     &call.to_norm_weight, &call.to_norm_bias};
    for (size_t i = 0; i < update.size(); ++i) *to[i] = gradient(update[i]);
  }
  if (!entries.empty()) {
    call.grad_key = given.keep_rows(grad_key, "grad_key");
    call.grad_key_bias = given.keep(grad_key_bias, given.in.heads * given.in.rows(), "grad_key_bias");
    call.grad_value = given.keep_rows(grad_value, "grad_value");
    float** const to[] = {&call.to_key.folding,   &call.to_key.folding_bias, &call.to_key.weight,      &call.to_key.bias,
                          &call.to_entry_weight, &call.to_entry_bias,       &call.to_entry_out_weight};
    for (size_t i = 0; i < entries.size(); ++i) *to[i] = gradient(entries[i]);
  }
  if (!look.empty()) {
    call.grad_query = given.keep_rows(grad_query, "grad_query");
    float** const to[] = {&call.to_look.weight, &call.to_look.bias, &call.to_look.folding};
    for (size_t i = 0; i < 3; ++i) *to[i] = gradient(look[i]);
  }
  call.in = given.in;
  step_backward(call, parallel);
  return gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CPU, m) {
  m.impl("dictionary_step", TORCH_BOX(&dictionary_step));
  m.impl("dictionary_step_backward", TORCH_BOX(&dictionary_step_gradients));
}
