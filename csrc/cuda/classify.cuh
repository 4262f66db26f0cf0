// The kernel of classify and classify_labels.
#pragma once

#include "cuda/classify_features.cuh"

namespace d2ls::cuda {

constexpr int classify_threads = 256, classify_pixels = classify_threads / 16;
constexpr int classify_blocks_an_sm = 4;

template <class T, int UNITS, bool LABELS>
D2LS_KERNEL(classify_threads, classify_blocks_an_sm) classify_pixels_kernel(ClassifyArguments a) {
  const int64_t image = block_index() / a.blocks_per_image;
  load_vectors<UNITS>(image, a, classify_threads);
  block_barrier();
  const int count = a.height * a.width;
  const int64_t plane = static_cast<int64_t>(count) * 16;
  const int first = static_cast<int>(block_index() % a.blocks_per_image) * classify_pixels;
  for (int start = first; start < count; start += a.blocks_per_image * classify_pixels) {
    const SubPixel own(a, image, start + thread_index() / 16);
    const int64_t at = own.at(a);
    float u[UNITS];
    features(u, static_cast<const T*>(a.x) + own.pixel * a.channels, a);
    if constexpr (LABELS) {
      store_label(u, 0, a, image * plane + at, own.inside);
    } else {
      for (int k = 0; k < a.classes; ++k) {
        const float value = logit(u, 4 * k * a.prototypes * UNITS, a);
        if (own.inside) {
          a.logits[(image * a.classes + k) * plane + at] = value;
        }
      }
    }
  }
}

}  // namespace d2ls::cuda
