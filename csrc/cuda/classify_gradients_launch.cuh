// How the backward of classify and of segmentation_sums is launched: the kernel, then the sums of its blocks' sums.
#pragma once

#include "cuda/classify_gradients.cuh"
#include "cuda/sum_parts.cuh"

namespace d2ls::cuda {

inline int gradient_blocks(const Device& device, const ClassifyCall& of) {
  return blocks_an_image(device, of, gradient_blocks_an_sm, gradient_pixels);
}

template <class LogitGradient>
Error launch_gradients(const Device& device, const ClassifyCall& of, const typename LogitGradient::Arguments& logits,
                       const ClassifyGradients& gradients, float* scratch) {
  if (const Error error = check_gradients(of); !error.empty()) {
    return error;
  }
  return by_type(of.type, [&](auto kind) {
    return by_channels(of.channels, [&](auto channels) -> Error {
      using T = typename decltype(kind)::Number;
      constexpr int width = channels / 16;
      const int vectors = of.classes * of.prototypes, norm = of.channels / 4, units = of.channels / 16;
      const uint32_t shared = VectorGradients<width>::bytes(vectors, gradient_warps) + NormVectors<width>::bytes +
                              LogitGradient::shared_bytes(of.classes);
      const int blocks = gradient_blocks(device, of);
      const GradientArguments<LogitGradient> arguments{classify_arguments(of, blocks), logits, gradients.x, scratch};
      const Error error = launch(device, classify_gradients_kernel<T, width, LogitGradient>, of.batch * blocks,
                                 gradient_threads, shared, arguments);
      const int stride = 2 * norm + vectors * units;
      return !error.empty() ? error
                            : sum_parts(device, stride,
                                        {{scratch, gradients.norm_weight, 1, of.batch * blocks, norm},
                                         {scratch + norm, gradients.norm_bias, 1, of.batch * blocks, norm},
                                         {scratch + 2 * norm, gradients.hyper, of.batch, blocks, vectors * units}});
    });
  });
}

}  // namespace d2ls::cuda
