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

// A call without outputs; `kept` keeps what it points to.
InteractCall interact_call(const Device& device, const Tensor& pixels, const Tensor& pixel_pe, const Tensor& dictionary,
                           const Tensors& looks, const Tensors& refinements, int64_t num_heads, double eps, Kept* kept) {
  STD_TORCH_CHECK(pixels.dim() == 3 && pixels.numel() > 0, "d2ls_fast: pixels must be [B, N, C] and not empty");
  STD_TORCH_CHECK(dictionary.dim() == 3 && dictionary.numel() > 0, "d2ls_fast: dictionary must be [B, K, C]");
  STD_TORCH_CHECK(looks.size() % 10 == 0 && refinements.size() % 10 == 0 && !refinements.empty() && !looks.empty(),
                  "d2ls_fast: looks and refinements must have ten tensors each");
  STD_TORCH_CHECK(looks[0].dim() == 2 && num_heads > 0 && looks[0].size(0) > 0 && looks[0].size(0) % num_heads == 0,
                  "d2ls_fast: num_heads must divide the width of the attention");
  const int64_t b = pixels.size(0), n = pixels.size(1), c = pixels.size(2), k = dictionary.size(1);
  const int64_t inner = looks[0].size(0);
  InteractCall call{};
  call.type = type_of(pixels, false);
  call.batch = b;
  call.pixels = n;
  call.pe_images = pixel_pe.dim() == 2 ? 1 : b;
  call.shape = {static_cast<int>(num_heads), static_cast<int>(k), static_cast<int>(c), static_cast<int>(inner),
                static_cast<float>(eps)};
  call.stages = static_cast<int>(refinements.size() / 10);
  call.looks = static_cast<int>(looks.size() / 10);
  check(why_not(device, call, 1));  // before the parameters: there is room for so many stages only
  call.x = kept->typed(pixels, pixels, b * n * c, "pixels");
  call.pe = kept->typed(pixel_pe, pixels, call.pe_images * n * c, "pixel_pe");
  call.dictionary = kept->floats(dictionary, b * k * c, "dictionary");
  for (int i = 0; i < call.looks; ++i) {
    call.look[i] = look_of(&looks[10 * i], inner, c, kept);
  }
  for (int i = 0; i < call.stages; ++i) {
    call.refine[i] = refinement_of(&refinements[10 * i], inner, c, kept);
  }
  return call;
}

// Runs the call; the last dictionary, and those after each stage.
std::tuple<Tensor, Tensor> run_call(const Device& device, InteractCall call, const Tensor& dictionary) {
  const int64_t b = dictionary.size(0), k = dictionary.size(1), c = dictionary.size(2);
  Tensor stages = torch::stable::new_empty(dictionary, std::vector<int64_t>{call.stages, b, k, c});
  Tensor last = torch::stable::new_empty(dictionary, std::vector<int64_t>{b, k, c});
  call.stage_dictionaries = pointer(stages);
  call.last_dictionary = pointer(last);
  Tensor scratch = torch::stable::new_empty(dictionary, std::vector<int64_t>{interact_scratch(device, call)});
  check(interact(device, call, pointer(scratch)));
  if (call.looks == call.stages) {
    last = torch::stable::clone(torch::stable::select(stages, 0, call.stages - 1));
  }
  return {last, stages};
}

// Operators are named apart from the launchers: a qualified name would find those, and boxing takes any function.
std::tuple<Tensor, Tensor, Tensor> cuda_interact(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensors looks,
                                                 Tensors refinements, int64_t num_heads, double eps,
                                                 bool keep_pixels) {
  const OnDevice on(pixels);
  Kept kept;
  InteractCall call =
      interact_call(on.device, pixels, pixel_pe, dictionary, looks, refinements, num_heads, eps, &kept);
  const std::vector<int64_t> size{call.batch, call.pixels, call.shape.channels};
  Tensor refined = torch::stable::new_empty(pixels, keep_pixels ? size : std::vector<int64_t>{0});
  call.refined = keep_pixels ? refined.mutable_data_ptr() : nullptr;
  const auto [last, stages] = run_call(on.device, call, dictionary);
  return {last, refined, stages};
}

std::tuple<Tensor, Tensor> cuda_interact_labels(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensors looks,
                                                Tensors refinements, int64_t num_heads, double eps,
                                                Tensors hypernetwork, Tensor norm_weight, Tensor norm_bias,
                                                int64_t height, int64_t width, int64_t prototypes,
                                                std::string reduction, double classifier_eps,
                                                bool return_confidence) {
  const OnDevice on(pixels);
  Kept kept;
  InteractCall call =
      interact_call(on.device, pixels, pixel_pe, dictionary, looks, refinements, num_heads, eps, &kept);
  STD_TORCH_CHECK(height > 0 && width > 0 && height * width == call.pixels, "d2ls_fast: height x width must be N");
  STD_TORCH_CHECK(hypernetwork.size() == 6, "d2ls_fast: hypernetwork must have six tensors");
  STD_TORCH_CHECK(prototypes > 0 && call.shape.entries % prototypes == 0, "d2ls_fast: prototypes must divide K * P");
  const int64_t c = call.shape.channels;
  call.hyper = {kept.floats(hypernetwork[0], c * c, "first_weight"),  kept.floats(hypernetwork[1], c, "first_bias"),
                kept.floats(hypernetwork[2], c * c, "second_weight"), kept.floats(hypernetwork[3], c, "second_bias"),
                kept.floats(hypernetwork[4], c / 16 * c, "third_weight"),
                kept.floats(hypernetwork[5], c / 16, "third_bias")};
  ClassifyCall& classify = call.classify;
  classify.type = call.type;
  classify.reduction = reduction_of(reduction);
  classify.batch = call.batch;
  classify.height = static_cast<int>(height);
  classify.width = static_cast<int>(width);
  classify.channels = call.shape.channels;
  classify.classes = static_cast<int>(call.shape.entries / prototypes);
  classify.prototypes = static_cast<int>(prototypes);
  classify.eps = static_cast<float>(classifier_eps);
  classify.norm_weight = kept.floats(norm_weight, c / 4, "norm_weight");
  classify.norm_bias = kept.floats(norm_bias, c / 4, "norm_bias");
  const std::vector<int64_t> size{call.batch, 4 * height, 4 * width};
  Tensor labels = torch::stable::new_empty(pixels, size, ScalarType::Byte);  // there are at most 64 entries
  Tensor confidence =
      torch::stable::new_empty(pixels, return_confidence ? size : std::vector<int64_t>{0}, ScalarType::Float);
  classify.labels = labels.mutable_data_ptr();
  classify.confidence = return_confidence ? pointer(confidence) : nullptr;
  run_call(on.device, call, dictionary);
  return {labels, confidence};
}

// Why that device cannot hold so many of such images at once, or nothing.
std::string cuda_why_not_interact(int64_t device, int64_t images, int64_t pixels, int64_t channels, int64_t entries, int64_t num_heads,
                                  int64_t inner, int64_t stages, ScalarType dtype) {
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    return "the resident kernel takes bfloat16 and float16 pixels";
  }
  STD_TORCH_CHECK(num_heads > 0, "d2ls_fast: num_heads must be at least 1, got ", num_heads);
  const OnDevice on(static_cast<int32_t>(device));
  InteractCall call{};
  call.type = dtype == ScalarType::Half ? Type::f16 : Type::bf16;
  call.batch = images;
  call.pixels = pixels;
  call.shape = {static_cast<int>(num_heads), static_cast<int>(entries), static_cast<int>(channels),
                static_cast<int>(inner), 0.0f};
  call.stages = static_cast<int>(stages);
  call.looks = call.stages;
  return why_not(on.device, call, images);
}

}  // namespace

}  // namespace d2ls::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(d2ls_fast, m) {
  m.def(
      "cuda_interact(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensor[] looks, Tensor[] refinements, "
      "int num_heads, float eps, bool keep_pixels) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cuda_interact_labels(Tensor pixels, Tensor pixel_pe, Tensor dictionary, Tensor[] looks, Tensor[] refinements, "
      "int num_heads, float eps, Tensor[] hypernetwork, Tensor norm_weight, Tensor norm_bias, int height, int width, "
      "int prototypes, str reduction, float classifier_eps, bool return_confidence) -> (Tensor, Tensor)");
  m.def(
      "cuda_why_not_interact(int device, int images, int pixels, int channels, int entries, int num_heads, int inner, int stages, "
      "ScalarType dtype) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CompositeExplicitAutograd, m) {
  m.impl("cuda_why_not_interact", TORCH_BOX(&d2ls::cuda::cuda_why_not_interact));
}

STABLE_TORCH_LIBRARY_IMPL(d2ls_fast, CUDA, m) {
  m.impl("cuda_interact", TORCH_BOX(&d2ls::cuda::cuda_interact));
  m.impl("cuda_interact_labels", TORCH_BOX(&d2ls::cuda::cuda_interact_labels));
}
