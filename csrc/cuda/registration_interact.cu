// Registration of interact; see registration.cu.
#include <tuple>

#include "cuda/interact.h"
#include "cuda/registration.h"

namespace d2ls::cuda {

namespace {

using Tensors = std::vector<Tensor>;

// Of a look ten tensors, as in d2ls_fast/ops/interact.py: query and key, then what dictionary_step calls update.
LookParameters look_of(const Tensor* of, int64_t inner, int64_t c, Kept* kept) {
  const int64_t matrix = inner * c;
  return {{kept->floats(of[0], matrix, "query_weight"), kept->floats(of[1], inner, "query_bias"),
           kept->floats(of[2], matrix, "key_weight")},
          {kept->floats(of[4], matrix, "value_weight"), kept->floats(of[5], inner, "value_bias"),
           kept->floats(of[6], matrix, "out_weight"), kept->floats(of[7], c, "out_bias"),
           kept->floats(of[8], c, "norm_weight"), kept->floats(of[9], c, "norm_bias")}};
}

RefineParameters refinement_of(const Tensor* of, int64_t inner, int64_t c, Kept* kept) {
  const int64_t matrix = inner * c;
  return {{kept->floats(of[0], matrix, "query_weight"), kept->floats(of[1], inner, "query_bias"),
           kept->floats(of[2], matrix, "key_weight"), kept->floats(of[3], inner, "key_bias"),
           kept->floats(of[4], matrix, "value_weight"), kept->floats(of[5], inner, "value_bias"),
           kept->floats(of[6], matrix, "out_weight")},
          kept->floats(of[7], c, "out_bias"),
          kept->floats(of[8], c, "norm_weight"),
          kept->floats(of[9], c, "norm_bias")};
}

// Operators are named apart from the launchers: a qualified name would find those, and boxing takes any function.
std::tuple<Tensor, Tensor, Tensor> cuda_interact(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensors looks,
                                                 Tensors refinements, int64_t num_heads, double eps,
                                                 bool keep_pixels) {
  const OnDevice on(pixels);
  STD_TORCH_CHECK(pixels.dim() == 3 && pixels.numel() > 0, "d2ls_fast: pixels must be [B, N, C] and not empty");
  STD_TORCH_CHECK(dictionary.dim() == 3 && dictionary.numel() > 0, "d2ls_fast: dictionary must be [B, K, C]");
  STD_TORCH_CHECK(looks.size() % 10 == 0 && refinements.size() % 10 == 0 && !refinements.empty() && !looks.empty(),
                  "d2ls_fast: looks and refinements must have ten tensors each");
  STD_TORCH_CHECK(looks[0].dim() == 2 && num_heads > 0 && looks[0].size(0) > 0 && looks[0].size(0) % num_heads == 0,
                  "d2ls_fast: num_heads must divide the width of the attention");
  const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2), k = dictionary.size(1);
  const int64_t inner = looks[0].size(0);
  Kept kept;
  InteractCall call{};
  call.type = type_of(pixels, false);
  call.batch = b;
  call.pixels = n;
  call.pe_images = pixel_pe.dim() == 2 ? 1 : b;
  call.shape = {static_cast<int>(num_heads), static_cast<int>(k), static_cast<int>(c), static_cast<int>(inner),
                static_cast<float>(eps)};
  call.stages = static_cast<int>(refinements.size() / 10);
  call.looks = static_cast<int>(looks.size() / 10);
  check(why_not(on.device, call));  // before the parameters: there is room for so many stages only
  call.x = kept.typed(pixels, pixels, b * n * c, "pixels");
  call.pe = kept.typed(pixel_pe, pixels, call.pe_images * n * c, "pixel_pe");
  call.dictionary = kept.floats(dictionary, b * k * c, "dictionary");
  for (int i = 0; i < call.looks; ++i) {
    call.look[i] = look_of(&looks[10 * i], inner, c, &kept);
  }
  for (int i = 0; i < call.stages; ++i) {
    call.refine[i] = refinement_of(&refinements[10 * i], inner, c, &kept);
  }
  using Size = std::vector<int64_t>;
  Tensor refined = torch::stable::new_empty(pixels, keep_pixels ? Size{b, n, c} : Size{0});
  Tensor stages = torch::stable::new_empty(dictionary, Size{call.stages, b, k, c});
  Tensor last = torch::stable::new_empty(dictionary, Size{b, k, c});
  call.refined = keep_pixels ? refined.mutable_data_ptr() : nullptr;
  call.stage_dictionaries = pointer(stages);
  call.last_dictionary = pointer(last);
  Tensor scratch = torch::stable::new_empty(dictionary, Size{interact_scratch(on.device, call)}, ScalarType::Float);
  check(interact(on.device, call, pointer(scratch)));
  if (call.looks == call.stages) {
    last = torch::stable::clone(torch::stable::select(stages, 0, call.stages - 1));
  }
  return {last, refined, stages};
}

// Why the resident kernel does not take such images on that device, or nothing.
std::string cuda_why_not_interact(int64_t device, int64_t pixels, int64_t channels, int64_t entries, int64_t num_heads,
                                  int64_t inner, int64_t stages, ScalarType dtype) {
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    return "the resident kernel takes bfloat16 and float16 pixels";
  }
  STD_TORCH_CHECK(num_heads > 0, "d2ls_fast: num_heads must be at least 1, got ", num_heads);
  const OnDevice on(static_cast<int32_t>(device));
  InteractCall call{};
  call.type = dtype == ScalarType::Half ? Type::f16 : Type::bf16;
  call.batch = 1;
  call.pixels = pixels;
  call.shape = {static_cast<int>(num_heads), static_cast<int>(entries), static_cast<int>(channels),
                static_cast<int>(inner), 0.0f};
  call.stages = static_cast<int>(stages);
  call.looks = call.stages;
  return why_not(on.device, call);
}

}  // namespace

}  // namespace d2ls::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_interact(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensor[] looks, Tensor[] refinements, "
      "int num_heads, float eps, bool keep_pixels) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cuda_why_not_interact(int device, int pixels, int channels, int entries, int num_heads, int inner, int stages, "
      "ScalarType dtype) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_why_not_interact", TORCH_BOX(&d2ls::cuda::cuda_why_not_interact));
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_interact", TORCH_BOX(&d2ls::cuda::cuda_interact));
}
