// The kernel of the backward of classify and of segmentation_sums, which differ in where a logit's gradient comes from.
//
// One thread a sub-pixel, as in the forward, which is computed again: two erf for each of C channels are most of the
// work here too. What a block sums over its sub-pixels it keeps on chip to its end: the norm's gradients in registers,
// those of the class vectors in shared memory, one copy a warp. 128 registers, hence four blocks of four warps an SM.
#pragma once

#include "cuda/classify_gradients.h"
#include "cuda/vector_gradients.cuh"

namespace d2ls::cuda {

constexpr int gradient_threads = 128, gradient_warps = gradient_threads / 32, gradient_pixels = gradient_threads / 16;
constexpr int gradient_blocks_an_sm = 4;

template <class LogitGradient>
struct GradientArguments {
  ClassifyArguments of;
  typename LogitGradient::Arguments logits;
  void* grad_x;
  float* parts;  // a row a block: gradients of norm_weight, norm_bias, hyper
};

struct Gelu {
  float value, slope;

  D2LS_DEVICE explicit Gelu(float x) {
    const float below = 0.5f + 0.5f * erff(x * 0.7071067811865476f);
    value = x * below;
    slope = below + x * 0.3989422804014327f * power_of_two(-0.5f * log2_e * x * x);
  }
};

// Four lanes hold the numbers of a norm.
D2LS_DEVICE float norm_mean(float sum, const ClassifyArguments& a) {
  sum += shuffle_xor(sum, 4);
  return (sum + shuffle_xor(sum, 8)) * a.norm_share;
}

// Weight and bias of the norm in shared memory, by unit for the inner of this thread, zero in padded units.
template <int UNITS>
class NormVectors {
 public:
  // A barrier of the block has to follow.
  D2LS_DEVICE NormVectors(uint32_t offset, const ClassifyArguments& a)
      : end_(offset + bytes), own_(offset + 4 * (thread_index() % 16 / 4)) {
    for (int i = thread_index(); i < 4 * UNITS; i += gradient_threads) {
      store_shared(offset + 4 * i, 4 * i < a.channels ? a.norm_weight[i] : 0.0f);
      store_shared(offset + 4 * (4 * UNITS + i), 4 * i < a.channels ? a.norm_bias[i] : 0.0f);
    }
  }
  D2LS_DEVICE float weight(int unit) const { return load_shared<float>(own_ + 16 * unit); }
  D2LS_DEVICE float bias(int unit) const { return load_shared<float>(own_ + 16 * (UNITS + unit)); }
  D2LS_DEVICE uint32_t end() const { return end_; }

  static constexpr uint32_t bytes = 32 * UNITS;

 private:
  uint32_t end_, own_;
};

template <class T>
D2LS_DEVICE void store_number(T* to, float value) {
  if constexpr (sizeof(T) == 2) {
    to->bits = static_cast<uint16_t>(Pair<T>::pack(value, 0));
  } else {
    *to = value;
  }
}

// One number of a lane of a warp: the sum over the warp's lanes of equal inner, in all of them.
D2LS_DEVICE float sum_of_equal_inner(float value) {
  value = quad_sum(value);
  return value + shuffle_xor(value, 16);
}

template <class T, int UNITS, class LogitGradient>
D2LS_KERNEL(gradient_threads, gradient_blocks_an_sm) classify_gradients_kernel(GradientArguments<LogitGradient> a) {
  const ClassifyArguments& of = a.of;
  const int block = static_cast<int>(block_index()), image = block / of.blocks_per_image;
  const int count = of.height * of.width, units = of.channels / 16, vectors = of.classes * of.prototypes;
  const int inner = thread_index() % 16 / 4, warp = thread_index() / 32;
  const VectorGradients<UNITS> all(vectors, warp);
  const NormVectors<UNITS> norm(VectorGradients<UNITS>::bytes(vectors, gradient_warps), of);
  const LogitGradient logit_gradient(norm.end(), a.logits, of);
  load_vectors<UNITS>(image, of, gradient_threads);
  all.clear();
  block_barrier();

  float grad_weight[UNITS] = {}, grad_bias[UNITS] = {};
  const int first = block % of.blocks_per_image * gradient_pixels;
  for (int start = first; start < count; start += of.blocks_per_image * gradient_pixels) {
    const SubPixel own(of, image, start + thread_index() / 16);
    const auto place = logit_gradient.at(own);
    float normal[UNITS], u[UNITS], grad[UNITS] = {};
    all.put_aside(UNITS, {{normalised(normal, static_cast<const T*>(of.x) + own.pixel * of.channels, of)}});
    D2LS_UNROLL
    for (int i = 0; i < UNITS; i += 4) {
      Four slope;
      D2LS_UNROLL
      for (int n = 0; n < 4; ++n) {
        const Gelu outer(normal[i + n] * norm.weight(i + n) + norm.bias(i + n)), both(outer.value);
        u[i + n] = both.value;
        slope.value[n] = outer.slope * both.slope;
      }
      all.put_aside(i, slope);
      warp_barrier();  // or ptxas computes all slopes last, and their arguments fill the registers
    }
    all.add(grad, u, logit_gradient.of(u, place), of);

    float sum = 0, tilt = 0;
    Four slope;
    D2LS_UNROLL
    for (int i = 0; i < UNITS; ++i) {
      slope = i % 4 == 0 ? all.taken_back(i) : slope;
      grad[i] *= slope.value[i % 4];
      grad_bias[i] += grad[i];
      grad_weight[i] += grad[i] * normal[i];
      grad[i] *= norm.weight(i);
      sum += grad[i];
      tilt += grad[i] * normal[i];
    }
    sum = norm_mean(sum, of);
    tilt = norm_mean(tilt, of);
    const float scale = all.taken_back(UNITS).value[0];
    T* to = static_cast<T*>(a.grad_x) + own.pixel * of.channels + thread_index() % 16;
    D2LS_UNROLL
    for (int i = 0; i < UNITS; ++i) {
      if (own.inside && i < units) {
        store_number(to + i * 16, (grad[i] - sum - normal[i] * tilt) * scale);
      }
    }
  }

  // Of every warp, over what it needs no more.
  D2LS_UNROLL
  for (int i = 0; i < UNITS; ++i) {
    const float weight = sum_of_equal_inner(grad_weight[i]), bias = sum_of_equal_inner(grad_bias[i]);
    if (thread_index() % 4 == 0 && thread_index() % 32 < 16) {
      store_shared(all.rows() + 4 * (4 * i + inner), weight);
      store_shared(all.rows() + 4 * (4 * UNITS + 4 * i + inner), bias);
    }
  }
  block_barrier();
  const int length = of.channels / 4;
  float* part = a.parts + block_index() * (2 * length + vectors * units);
  for (int i = thread_index(); i < 2 * length; i += gradient_threads) {
    float sum = 0;
    const int at = i < length ? i : 4 * UNITS + i - length;
    for (int w = 0; w < gradient_warps; ++w) {
      sum += load_shared<float>(VectorGradients<UNITS>(vectors, w).rows() + 4 * at);
    }
    part[i] = sum;
  }
  for (int i = thread_index(); i < vectors * units; i += gradient_threads) {
    float sum = 0;
    for (int w = 0; w < gradient_warps; ++w) {
      sum += VectorGradients<UNITS>(vectors, w).sum(i / units, i % units);
    }
    part[2 * length + i] = sum;
  }
}

}  // namespace d2ls::cuda
