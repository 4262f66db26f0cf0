// The launches of the backward of classify.
#include "cuda/classify_gradients.h"

#include "cuda/classify_gradients_launch.cuh"

namespace d2ls::cuda {

// A logit's gradient as it is given.
class GivenGradient {
 public:
  struct Arguments {
    const float* grad_logits;  // [batch, classes, 4 height, 4 width]
  };

  static uint32_t shared_bytes(int) { return 0; }

  D2LS_DEVICE GivenGradient(uint32_t, const Arguments& given, const ClassifyArguments& a) : given_(given), a_(a) {}

  struct OfSubPixel {
    static constexpr bool needs_logit = false;
    const float* from;
    int64_t plane;
    bool inside;

    D2LS_DEVICE float operator()(int k, float) const { return inside ? from[k * plane] : 0.0f; }
  };

  D2LS_DEVICE OfSubPixel at(const SubPixel& own) const {
    const int64_t plane = static_cast<int64_t>(a_.height) * a_.width * 16;
    return {given_.grad_logits + own.image * a_.classes * plane + own.at(a_), plane, own.inside};
  }

  template <int UNITS>
  D2LS_DEVICE OfSubPixel of(const float (&)[UNITS], const OfSubPixel& place) const {
    return place;
  }

 private:
  const Arguments& given_;
  const ClassifyArguments& a_;
};

int64_t classify_gradients_scratch(const Device& device, const ClassifyCall& of) {
  return of.batch * gradient_blocks(device, of) *
         (of.channels / 2 + static_cast<int64_t>(of.classes) * of.prototypes * (of.channels / 16));
}

Error classify_gradients(const Device& device, const ClassifyGradientsCall& call, float* scratch) {
  return launch_gradients<GivenGradient>(device, call.of, {call.grad_logits}, call.gradients, scratch);
}

}  // namespace d2ls::cuda
