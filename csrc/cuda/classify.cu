// The launches of classify and classify_labels.
#include "cuda/classify.h"

#include "cuda/classify.cuh"

namespace d2ls::cuda {

Error classify(const Device& device, const ClassifyCall& call) {
  if (const Error error = check_classify(call); !error.empty()) {
    return error;
  }
  return by_type(call.type, [&](auto kind) {
    return by_channels(call.channels, [&](auto channels) -> Error {
      using T = typename decltype(kind)::Number;
      constexpr int units = channels / 16;
      const int64_t shared = static_cast<int64_t>(call.classes) * call.prototypes * units * sizeof(float);
      if (shared > 80 * 1024) {  // two blocks an SM; four where there are half as many vectors
        return "the CUDA kernels take up to " + std::to_string(20480 / units) + " class vectors, got " +
               std::to_string(call.classes * call.prototypes);
      }
      const int blocks = blocks_an_image(device, call, classify_blocks_an_sm, classify_pixels);
      const auto kernel = call.logits == nullptr ? classify_pixels_kernel<T, units, true>
                                                 : classify_pixels_kernel<T, units, false>;
      return launch(device, kernel, call.batch * blocks, classify_threads, static_cast<uint32_t>(shared),
                    classify_arguments(call, blocks));
    });
  });
}

}  // namespace d2ls::cuda
