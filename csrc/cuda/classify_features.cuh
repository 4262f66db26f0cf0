// A sub-pixel's features and scores, for the kernels that have one thread for each of a pixel's 16 sub-pixels.
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
  float eps, norm_share;  // norm_share: one over the numbers of a norm
};

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

// Where this thread's sub-pixel lies: its pixel, as numbered in the batch, and its place in the image of labels.
struct SubPixel {
  int64_t pixel, image;
  int row, column;
  bool inside;

  // `pixel` of `image`; threads beyond the image compute its last pixel, as they take part in exchanges.
  D2LS_DEVICE SubPixel(const ClassifyArguments& a, int64_t image, int pixel) : image(image) {
    const int count = a.height * a.width, last = smaller(pixel, count - 1);
    const int lane = thread_index() % 16, inner = lane / 4, outer = lane % 4;
    this->pixel = image * count + last;
    row = last / a.width * 4 + outer / 2 * 2 + inner / 2;
    column = last % a.width * 4 + outer % 2 * 2 + inner % 2;
    inside = pixel < count;
  }

  // In an image of full resolution.
  D2LS_DEVICE int64_t at(const ClassifyArguments& a) const { return static_cast<int64_t>(row) * 4 * a.width + column; }
};

// This sub-pixel's share of the normalised pixel, zero in padded units; returns one over the standard deviation.
// read(c, lane) gives channel c + lane of the pixel: apart, so that an address is found once and c a constant beside it.
template <int UNITS, class Read>
D2LS_DEVICE float normalised_from(float (&u)[UNITS], const Read& read, const ClassifyArguments& a) {
  const int lane = thread_index() % 16, units = a.channels / 16;
  float sum = 0, squares = 0;
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    u[i] = i < units ? read(i * 16, lane) : 0.0f;
    sum += u[i];
  }
  sum += shuffle_xor(sum, 4);
  sum += shuffle_xor(sum, 8);
  const float mean = sum * a.norm_share;
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    u[i] = i < units ? u[i] - mean : 0.0f;
    squares += u[i] * u[i];
  }
  squares += shuffle_xor(squares, 4);
  squares += shuffle_xor(squares, 8);
  const float scale = inverse_root(squares * a.norm_share + a.eps);
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    u[i] *= scale;
  }
  return scale;
}

template <int UNITS, class T>
D2LS_DEVICE float normalised(float (&u)[UNITS], const T* pixel, const ClassifyArguments& a) {
  return normalised_from(u, [=](int first, int lane) { return number(pixel + first + lane); }, a);
}

// This sub-pixel's UNITS features: both shuffles, the norm and both activations.
template <int UNITS, class Read>
D2LS_DEVICE void features_from(float (&u)[UNITS], const Read& read, const ClassifyArguments& a) {
  const int inner = thread_index() % 16 / 4, units = a.channels / 16;
  normalised_from(u, read, a);
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    const int c = 4 * i + inner;
    u[i] = i < units ? gelu(gelu(u[i] * a.norm_weight[c] + a.norm_bias[c])) : 0.0f;
  }
}

template <int UNITS, class T>
D2LS_DEVICE void features(float (&u)[UNITS], const T* pixel, const ClassifyArguments& a) {
  features_from(u, [=](int first, int lane) { return number(pixel + first + lane); }, a);
}

// The score of a class vector in shared memory, UNITS floats.
template <int UNITS>
D2LS_DEVICE float score(const float (&u)[UNITS], uint32_t vector) {
  float sum = 0;
  D2LS_UNROLL
  for (int i = 0; i < UNITS; i += 4) {
    const Four four = load_shared<Four>(vector + 4 * i);
    D2LS_UNROLL
    for (int j = 0; j < 4; ++j) {
      sum += u[i + j] * four.value[j];
    }
  }
  return sum;
}

// The logit of a class, whose vectors start at `vectors` in shared memory, UNITS floats each.
template <int UNITS>
D2LS_DEVICE float logit(const float (&u)[UNITS], uint32_t vectors, const ClassifyArguments& a) {
  Running running;
  float total = 0;
  D2LS_NO_UNROLL
  for (int p = 0; p < a.prototypes; ++p) {
    const float value = score(u, vectors + 4 * p * UNITS);
    if (a.prototypes == 1) {
      return value;
    }
    running.add(value);
    total += value;
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

// The class of the largest logit, the first of equals, and its share of the softmax to element `to` of the image of labels.
template <int UNITS>
D2LS_DEVICE void store_label(const float (&u)[UNITS], uint32_t vectors, const ClassifyArguments& a, int64_t to,
                             bool inside) {
  Running running;
  int label = 0;
  for (int k = 0; k < a.classes; ++k) {
    const float value = logit(u, vectors + 4 * k * a.prototypes * UNITS, a);
    label = value > running.top ? k : label;
    running.add(value);
  }
  if (!inside) {
    return;
  }
  if (a.classes <= 256) {
    static_cast<uint8_t*>(a.labels)[to] = static_cast<uint8_t>(label);
  } else {
    static_cast<int16_t*>(a.labels)[to] = static_cast<int16_t>(label);
  }
  if (a.confidence != nullptr) {
    a.confidence[to] = 1.0f / running.sum;
  }
}

// The class vectors of an image to shared memory, UNITS floats each. A barrier of the block has to follow.
template <int UNITS>
D2LS_DEVICE void load_vectors(int64_t image, const ClassifyArguments& a, int threads) {
  const int vectors = a.classes * a.prototypes, units = a.channels / 16;
  for (int i = thread_index(); i < vectors * UNITS; i += threads) {
    const int unit = i % UNITS;
    store_shared(4 * i, unit < units ? a.hyper[(image * vectors + i / UNITS) * units + unit] : 0.0f);
  }
}

D2LS_EITHER ClassifyArguments classify_arguments(const ClassifyCall& call, int blocks_per_image) {
  return {call.x,      call.norm_weight, call.norm_bias, call.hyper,    call.logits,  call.labels,     call.confidence,
          call.reduction, call.height,   call.width,     call.channels, call.classes, call.prototypes, blocks_per_image,
          call.eps,    4.0f / call.channels};
}

// So many blocks share an image that the batch fills the device once. From shapes and the device alone: results repeat.
inline int blocks_an_image(const Device& device, const ClassifyCall& call, int blocks_an_sm, int pixels_a_block) {
  const int tiles = (call.height * call.width + pixels_a_block - 1) / pixels_a_block;
  const int64_t blocks = static_cast<int64_t>(blocks_an_sm) * device.multiprocessors;
  const int64_t wanted = (blocks + call.batch - 1) / call.batch;
  return static_cast<int>(wanted < tiles ? wanted : tiles);
}

inline Error check_classify(const ClassifyCall& call) {
  if (static_cast<int64_t>(call.height) * call.width > 1 << 26) {
    return "the CUDA kernels take up to 2^26 pixels an image to classify, got " + std::to_string(call.height) + " x " +
           std::to_string(call.width);
  }
  return "";
}

// So many class vectors, with their gradients or sums, fit into the 160 KB of shared memory that every GPU served has.
constexpr int gradient_vectors = 400;

inline Error check_gradients(const ClassifyCall& call) {
  const int64_t vectors = static_cast<int64_t>(call.classes) * call.prototypes;
  if (vectors > gradient_vectors) {
    return "the CUDA kernels take the gradients of up to " + std::to_string(gradient_vectors) +
           " class vectors, got " + std::to_string(vectors);
  }
  return check_classify(call);
}

}  // namespace d2ls::cuda
