// The launches of the backward of segmentation_sums.
#include "cuda/classify_gradients_launch.cuh"
#include "cuda/segmentation_labels.cuh"

namespace d2ls::cuda {

// A logit's gradient from those of the sums, by the softmax over the logits of its sub-pixel, computed again.
class LossGradient {
 public:
  struct Arguments {
    LabelArguments labels;
    SegmentationSumsGradients given;
  };

  static uint32_t shared_bytes(int classes) { return (classes + 1) * sizeof(Four); }

  // Keeps the sum of the smoothing's weights and four numbers of every class in shared memory. A barrier of the block
  // has to follow.
  D2LS_DEVICE LossGradient(uint32_t offset, const Arguments& given, const ClassifyArguments& a)
      : terms_(offset), given_(given), a_(a) {
    const float total = *given.given.cross_entropy, smoothing = given.labels.smoothing;
    for (int k = thread_index(); k < a.classes; k += gradient_threads) {
      const float weight = total * given.labels.weight(k);
      store_shared(class_terms(offset, k), Four{{(1 - smoothing) * weight, smoothing / a.classes * weight,
                                          given.given.overlap[k], given.given.volume[k]}});
    }
    if (thread_index() == 0) {
      float sum = 0;
      for (int k = 0; k < a.classes; ++k) {
        sum += smoothing / a.classes * (total * given.labels.weight(k));
      }
      store_shared(offset, sum);
    }
  }

  struct OfSubPixel {
    static constexpr bool needs_logit = true;
    uint32_t all_terms;
    int label;
    float top, inverse, mean, of_label;

    D2LS_DEVICE float operator()(int k, float logit) const {
      const Four terms = load_shared<Four>(class_terms(all_terms, k));
      const float p = power_of_two((logit - top) * log2_e) * inverse;
      // Differences first: they vanish where the prediction is right.
      const float slope = of_label * (k == label ? p - 1 : p) + (p * load_shared<float>(all_terms) - terms.value[1]) +
                          p * (by_probability(terms, k == label) - mean);
      return label >= 0 ? slope : 0.0f;
    }
  };

  D2LS_DEVICE int at(const SubPixel& own) const { return label_of(given_.labels, own, a_.classes); }

  template <int UNITS>
  D2LS_DEVICE OfSubPixel of(const float (&u)[UNITS], int label) const {
    float top = -infinity(), sum = 0, dot = 0;
    D2LS_NO_UNROLL
    for (int k = 0; k < a_.classes; ++k) {
      const float value = logit(u, 4 * k * a_.prototypes * UNITS, a_), highest = fmaxf(top, value);
      const float kept = power_of_two((top - highest) * log2_e), more = power_of_two((value - highest) * log2_e);
      sum = sum * kept + more;
      dot = dot * kept + more * by_probability(load_shared<Four>(class_terms(terms_, k)), k == label);
      top = highest;
    }
    const float of_label = load_shared<float>(class_terms(terms_, label < 0 ? 0 : label));
    return {terms_, label, top, 1.0f / sum, dot / sum, of_label};
  }

 private:
  static D2LS_DEVICE uint32_t class_terms(uint32_t terms, int k) { return terms + 16 * (k + 1); }

  // The gradient of a class's probability.
  static D2LS_DEVICE float by_probability(const Four& terms, bool here) {
    return terms.value[3] + (here ? terms.value[2] : 0.0f);
  }

  uint32_t terms_;
  const Arguments& given_;
  const ClassifyArguments& a_;
};

Error segmentation_gradients(const Device& device, const SegmentationCall& call, const SegmentationSumsGradients& given,
                             const ClassifyGradients& gradients, float* scratch) {
  return launch_gradients<LossGradient>(device, call.of, {LabelArguments(call), given}, gradients, scratch);
}

}  // namespace d2ls::cuda
