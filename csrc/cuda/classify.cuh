// The kernel of classify and classify_labels: one thread for each of a pixel's 16 sub-pixels.
//
// Channel u * 16 + inner * 4 + outer is channel u of the sub-pixel in row 2 (outer / 2) + inner / 2 and column
// 2 (outer % 2) + inner % 2, and the norm of an outer sub-pixel runs over (u, inner): four lanes. The 16 threads of a
// pixel read 16 neighbouring channels at a time, whole 32-byte sectors. Two erf for each of C channels outweigh both
// memory and the few products with the class vectors, so these stay in float32 and use no matrix instruction.
#pragma once

#include "cuda/classify.h"
#include "cuda/products.cuh"

namespace d2ls::cuda {

struct ClassifyArguments {
  const void* x;
  const float *norm_weight, *norm_bias, *hyper;
  float* logits;
  void* labels;
  float* confidence;
  Reduction reduction;
  int height, width, channels, classes, prototypes, blocks_per_image;
  float eps;
};

constexpr int classify_threads = 256, classify_pixels = classify_threads / 16;

D2LS_DEVICE float gelu(float x) { return x * (0.5f + 0.5f * erff(x * 0.7071067811865476f)); }

// A number of type T.
template <class T>
D2LS_DEVICE float number(const T* from) {
  if constexpr (sizeof(T) == 2) {
    return Pair<T>::first(from->bits);
  } else {
    return *from;
  }
}

// A softmax or its denominator over values that come one by one.
struct Running {
  float top = -infinity(), sum = 0;

  D2LS_DEVICE void add(float value) {
    const float highest = fmaxf(top, value);
    sum = sum * power_of_two((top - highest) * log2_e) + power_of_two((value - highest) * log2_e);
    top = highest;
  }
};

// This sub-pixel's UNITS features: both shuffles, the norm and both activations.
template <int UNITS, class T>
D2LS_DEVICE void features(float (&u)[UNITS], const T* pixel, const ClassifyArguments& a) {
  const int lane = thread_index() % 16, inner = lane / 4, units = a.channels / 16;
  float sum = 0, squares = 0;
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    u[i] = i < units ? number(pixel + i * 16 + lane) : 0.0f;
    sum += u[i];
  }
  sum += shuffle_xor(sum, 4);
  sum += shuffle_xor(sum, 8);
  const float mean = sum / (4 * units);
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    u[i] -= mean;
    squares += i < units ? u[i] * u[i] : 0.0f;
  }
  squares += shuffle_xor(squares, 4);
  squares += shuffle_xor(squares, 8);
  const float scale = inverse_root(squares / (4 * units) + a.eps);
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    const int c = 4 * i + inner;
    u[i] = i < units ? gelu(gelu(u[i] * scale * a.norm_weight[c] + a.norm_bias[c])) : 0.0f;
  }
}

// The logit of a class, whose vectors start at `vectors` in shared memory, UNITS floats each.
template <int UNITS>
D2LS_DEVICE float logit(const float (&u)[UNITS], uint32_t vectors, const ClassifyArguments& a) {
  Running running;
  float total = 0;
  for (int p = 0; p < a.prototypes; ++p) {
    float score = 0;
    D2LS_UNROLL
    for (int i = 0; i < UNITS; i += 4) {
      const Four four = load_shared<Four>(vectors + 4 * (p * UNITS + i));
      D2LS_UNROLL
      for (int j = 0; j < 4; ++j) {
        score += u[i + j] * four.value[j];
      }
    }
    if (a.prototypes == 1) {
      return score;
    }
    running.add(score);
    total += score;
  }
  switch (a.reduction) {
    case Reduction::logsumexp:
      return running.top + logf(running.sum);
    case Reduction::max:
      return running.top;
    default:
      return total / a.prototypes;
  }
}

template <class T, int UNITS, bool LABELS>
D2LS_KERNEL(classify_threads, 2) classify_pixels_kernel(ClassifyArguments a) {
  const int64_t image = block_index() / a.blocks_per_image;
  const int vectors = a.classes * a.prototypes, units = a.channels / 16;
  for (int i = thread_index(); i < vectors * UNITS; i += classify_threads) {
    const int unit = i % UNITS;
    store_shared(4 * i, unit < units ? a.hyper[(image * vectors + i / UNITS) * units + unit] : 0.0f);
  }
  block_barrier();
  const int lane = thread_index() % 16, inner = lane / 4, outer = lane % 4, count = a.height * a.width;
  const int first = static_cast<int>(block_index() % a.blocks_per_image) * classify_pixels;
  for (int start = first; start < count; start += a.blocks_per_image * classify_pixels) {
    const int pixel = start + thread_index() / 16;
    // Lanes beyond the image compute its last pixel, as they take part in exchanges, and write nothing.
    const int64_t mine = image * count + smaller(pixel, count - 1);
    float u[UNITS];
    features(u, static_cast<const T*>(a.x) + mine * a.channels, a);
    const int64_t row = pixel / a.width * 4 + outer / 2 * 2 + inner / 2;
    const int64_t at = row * 4 * a.width + pixel % a.width * 4 + outer % 2 * 2 + inner % 2;
    const int64_t plane = static_cast<int64_t>(count) * 16;
    Running running;
    int label = 0;
    for (int k = 0; k < a.classes; ++k) {
      const float value = logit(u, 4 * k * a.prototypes * UNITS, a);
      if constexpr (LABELS) {
        label = value > running.top ? k : label;
        running.add(value);
      } else if (pixel < count) {
        a.logits[(image * a.classes + k) * plane + at] = value;
      }
    }
    if (LABELS && pixel < count) {
      if (a.classes <= 256) {
        static_cast<uint8_t*>(a.labels)[image * plane + at] = static_cast<uint8_t>(label);
      } else {
        static_cast<int16_t*>(a.labels)[image * plane + at] = static_cast<int16_t>(label);
      }
      if (a.confidence != nullptr) {
        a.confidence[image * plane + at] = 1.0f / running.sum;
      }
    }
  }
}

}  // namespace d2ls::cuda
