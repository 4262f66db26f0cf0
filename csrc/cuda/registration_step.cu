// Registration of dictionary_step; see registration.cu.
#include <optional>
#include <tuple>

#include "cuda/dictionary_step.h"
#include "cuda/registration.h"

namespace d2ls::cuda {

namespace {

using Tensors = std::vector<Tensor>;

// A call without outputs; `kept` keeps what it points to.
StepCall step_call(const Tensor& dictionary, const Tensor& position, const std::optional<Tensor>& context,
                   const Tensors& update, const Tensors& entries, const Tensors& look, int64_t num_heads, double eps,
                   Kept* kept) {
  STD_TORCH_CHECK(dictionary.dim() == 3 && dictionary.numel() > 0, "d2ls_fast: dictionary must be [B, K, C]");
  STD_TORCH_CHECK(update.size() == (context.has_value() ? 6u : 0u) && (entries.empty() || entries.size() == 7) &&
                      (look.empty() || look.size() == 4) && !(update.empty() && entries.empty() && look.empty()),
                  "d2ls_fast: update (with context), entries and look must have 6, 7 and 4 tensors, or none");
  const Tensor& first = !update.empty() ? update[0] : !entries.empty() ? entries[0] : look[0];
  STD_TORCH_CHECK(first.dim() == 2 && num_heads > 0 && first.size(0) > 0 && first.size(0) % num_heads == 0,
                  "d2ls_fast: num_heads must divide the width of the attention");
  const int64_t k = dictionary.size(1), c = dictionary.size(2), inner = first.size(0);
  StepCall call{};
  call.batch = dictionary.size(0);
  call.shape = {static_cast<int>(num_heads), static_cast<int>(k), static_cast<int>(c), static_cast<int>(inner),
                static_cast<float>(eps)};
  check(why_not(call.shape));
  const int64_t tokens = call.batch * k * c, matrix = inner * c;
  call.dictionary = kept->floats(dictionary, tokens, "dictionary");
  call.position = kept->floats(position, tokens, "position");
  if (context.has_value()) {
    call.context = kept->floats(*context, num_heads * tokens, "context");
    call.update = {kept->floats(update[0], matrix, "value_weight"), kept->floats(update[1], inner, "value_bias"),
                   kept->floats(update[2], matrix, "out_weight"),   kept->floats(update[3], c, "out_bias"),
                   kept->floats(update[4], c, "norm_weight"),       kept->floats(update[5], c, "norm_bias")};
  }
  if (!entries.empty()) {
    call.entries = {kept->floats(entries[0], matrix, "query_weight"), kept->floats(entries[1], inner, "query_bias"),
                    kept->floats(entries[2], matrix, "key_weight"),   kept->floats(entries[3], inner, "key_bias"),
                    kept->floats(entries[4], matrix, "value_weight"), kept->floats(entries[5], inner, "value_bias"),
                    kept->floats(entries[6], matrix, "out_weight")};
  }
  if (!look.empty()) {
    call.look = {kept->floats(look[0], matrix, "query_weight"), kept->floats(look[1], inner, "query_bias"),
                 kept->floats(look[2], matrix, "key_weight")};
  }
  return call;
}

// Named apart from the launcher: a qualified name would find that, and boxing takes any function.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cuda_dictionary_step(Tensor dictionary, Tensor position,
                                                                        std::optional<Tensor> context, Tensors update,
                                                                        Tensors entries, Tensors look,
                                                                        int64_t num_heads, double eps,
                                                                        ScalarType dtype) {
  const OnDevice on(dictionary);
  Kept kept;
  StepCall call = step_call(dictionary, position, context, update, entries, look, num_heads, eps, &kept);
  using Size = std::vector<int64_t>;
  const Size none{0}, rows{call.batch, num_heads * call.shape.entries, call.shape.channels};
  const auto empty = [&](bool wanted, const Size& size, ScalarType of) {
    return torch::stable::new_empty(dictionary, wanted ? size : none, of);
  };
  const auto pointer_if = [](bool wanted, const Tensor& tensor) {
    return wanted ? tensor.mutable_data_ptr() : nullptr;
  };
  const bool updates = context.has_value(), keys = !entries.empty(), looks = !look.empty();
  const Size tokens{call.batch, call.shape.entries, call.shape.channels};
  Tensor updated = empty(updates, tokens, ScalarType::Float), query = empty(looks, rows, dtype);
  Tensor key = empty(keys, rows, dtype), value = empty(keys, rows, dtype);
  Tensor key_bias = empty(keys, {rows[0], rows[1]}, ScalarType::Float);
  call.type = type_of(query, false);
  call.updated = static_cast<float*>(pointer_if(updates, updated));
  call.query = pointer_if(looks, query);
  call.key = pointer_if(keys, key);
  call.value = pointer_if(keys, value);
  call.key_bias = static_cast<float*>(pointer_if(keys, key_bias));
  Tensor scratch = empty(true, {dictionary_step_scratch(on.device, call)}, ScalarType::Float);
  check(dictionary_step(on.device, call, pointer(scratch)));
  return {updated, query, key, key_bias, value};
}

}  // namespace

}  // namespace d2ls::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_dictionary_step(Tensor dictionary, Tensor position, Tensor? context, Tensor[] update, Tensor[] entries, "
      "Tensor[] look, int num_heads, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_dictionary_step", TORCH_BOX(&d2ls::cuda::cuda_dictionary_step));
}
