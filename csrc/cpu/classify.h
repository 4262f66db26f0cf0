// From refined pixels and class vectors to scores at four times the resolution, in one pass.
//
//   U       = GELU(shuffle(GELU(LayerNorm(shuffle(x)))))      [C/16] for each of the 16 sub-pixels of a pixel
//   s_kp    = hyper_kp . U
//   logit_k = logsumexp, max or mean of s_kp over the prototypes p
//
// Both shuffles only rename the channels of a pixel: channel c * 16 + inner * 4 + outer is channel c
// of the sub-pixel at row 2 * (outer / 2) + inner / 2 and column 2 * (outer % 2) + inner % 2, and the norm of an outer
// sub-pixel runs over (c, inner). So the 16 sub-pixels are the lanes of a vector and nothing has to be transposed.
// The backward recomputes U; nothing of full resolution is stored but the gradient that comes in.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/work.h"

namespace d2ls {

enum class Reduction { logsumexp, max, mean };

struct ClassifyInputs {
  int64_t batch;
  int64_t height;  // of the grid of pixels
  int64_t width;
  int64_t channels;    // C, a multiple of 16
  int64_t classes;     // K
  int64_t prototypes;  // P
  Reduction reduction;
  Dtype dtype;               // of pixels and of their gradient
  const void* pixels;        // [B, h, w, C]
  const float* norm_weight;  // [C/4]
  const float* norm_bias;    // [C/4]
  const float* hyper;        // [B, K P, C/16]
  float eps;

  int64_t vectors() const { return classes * prototypes; }
  int64_t depth() const { return channels / 16; }
};

// Either logits or labels; confidence may come with the labels. The absent ones are null.
struct ClassifyForward {
  ClassifyInputs in;
  float* logits;     // [B, K, 4h, 4w]
  void* labels;      // [B, 4h, 4w], uint8 or int16
  bool wide_labels;  // int16
  float* confidence; // [B, 4h, 4w], the softmax probability of the label
};

struct ClassifyBackward {
  ClassifyInputs in;
  const float* grad_logits;
  void* grad_pixels;
  float* grad_norm_weight;
  float* grad_norm_bias;
  float* grad_hyper;
};

void classify_forward(const ClassifyForward& call, const Parallel& parallel);
void classify_backward(const ClassifyBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// Weight and bias of the norm, once for every channel of a pixel: [C].
struct ClassifyNorm {
  const float* weight;
  const float* bias;
};

// Partial gradients of a chunk.
struct ClassifyPartial {
  float* hyper;        // [K P, C/16]
  float* norm_weight;  // [C/4]
  float* norm_bias;    // [C/4]
};

struct ClassifyKernels {
  int64_t (*scratch)(const ClassifyInputs& in, bool backward);  // floats that a chunk needs
  void (*forward)(const ClassifyForward& call, const ClassifyNorm& norm, Chunk chunk, float* scratch);
  void (*backward)(const ClassifyBackward& call, const ClassifyNorm& norm, Chunk chunk, const ClassifyPartial& partial,
                   float* scratch);
};

}  // namespace d2ls
