#include "cpu/segmentation.h"

#include <vector>

#include "cpu/classify_host.h"
#include "cpu/kernels.h"

namespace d2ls {
namespace {

const SegmentationKernels& kernels() { return chosen_kernels().segmentation; }

// The class weights, ones where none are given.
std::vector<float> weights_of(const SegmentationInputs& call) {
  const size_t classes = static_cast<size_t>(call.in.classes);
  if (call.class_weights == nullptr) {
    return std::vector<float>(classes, 1.0f);
  }
  return std::vector<float>(call.class_weights, call.class_weights + classes);
}

// scale: 1, or the gradient of the cross-entropy.
SegmentationTerms terms_of(const SegmentationInputs& call, const std::vector<float>& weights, double scale) {
  double sum = 0.0;
  for (const float weight : weights) {
    sum += weight;
  }
  return {weights.data(),
          static_cast<float>(sum),
          static_cast<float>(scale * (1.0 - call.smoothing)),
          static_cast<float>(scale * call.smoothing / static_cast<double>(call.in.classes)),
          nullptr,
          nullptr};
}

}  // namespace

WrongLabel segmentation_forward(const SegmentationForward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const NormTable table(in);
  const std::vector<float> weights = weights_of(call.in);
  const SegmentationTerms terms = terms_of(call.in, weights, 1.0);
  const int64_t rows = 1 + 3 * in.classes;
  std::vector<double> sums(static_cast<size_t>(chunks.count * rows));
  std::vector<WrongLabel> wrong(static_cast<size_t>(chunks.count), WrongLabel{});
  for_chunks(chunks, kernels().scratch(in, false), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    kernels().forward(call.in, terms, table.norm, chunk, {sums.data() + t * rows, wrong.data() + t}, scratch);
  });
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0.0;
    for (int64_t t = 0; t < chunks.count; ++t) {
      sum += sums[static_cast<size_t>(t * rows + r)];
    }
    float* const outputs[] = {call.overlap, call.volume, call.count};
    (r == 0 ? call.cross_entropy[0] : outputs[(r - 1) / in.classes][(r - 1) % in.classes]) = static_cast<float>(sum);
  }
  for (const WrongLabel& label : wrong) {
    if (label.found) return label;
  }
  return {false, 0};
}

void segmentation_backward(const SegmentationBackward& call, const Parallel& parallel) {
  const ClassifyInputs& in = call.in.in;
  const Chunks chunks(in.batch, in.height * in.width);
  const NormTable table(in);
  const std::vector<float> weights = weights_of(call.in);
  SegmentationTerms terms = terms_of(call.in, weights, call.grad_cross_entropy[0]);
  terms.overlap = call.grad_overlap;
  terms.volume = call.grad_volume;
  ClassifyPartials partials(in, chunks);
  for_chunks(chunks, kernels().scratch(in, true), parallel, [&](Chunk chunk, int64_t t, float* scratch) {
    kernels().backward(call.in, terms, table.norm, chunk, partials[t], call.grad_pixels, scratch);
  });
  partials.sum(call.grad_hyper, call.grad_norm_weight, call.grad_norm_bias);
}

}  // namespace d2ls
