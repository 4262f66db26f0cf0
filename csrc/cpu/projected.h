// The interaction for many dictionary entries: a tile of pixels is projected to the width of the attention in the cache,
// and every head attends there. Beside the pass with folded projections (pass.h), whose cost grows with H K C a pixel,
// this one's grows with C D + K D.
//
//   attend   s_hkn = q_hk . W_K,h (x_n + pe_n),   mixed_hk = softmax over the pixels of s, times W_V,h x_n
//   refine   z_nhk = k_hk . (W_Q,h (x_n + pe_n) + b_Q,h),   x' = LayerNorm(x + W_O [softmax over k of z, times v_hk]_h + b_O)
//
// The dictionary side and the parameters are float32. The backward recomputes tile by tile.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/pass.h"
#include "cpu/work.h"

namespace d2ls {

// The pixels, and for refine the norm, come as in a pass: of its shape, `heads` and `entries` count those here.
struct AttendProjectedInputs {
  PassInputs pass;
  int64_t width;              // D
  const float* query;         // [B, K, D], scaled
  const float* key_weight;    // [D, C]
  const float* value_weight;  // [D, C]
};

struct AttendProjectedForward {
  AttendProjectedInputs in;
  float* mixed;        // [B, K, D]
  float* log_sum_exp;  // [B, H, K]
};

struct AttendProjectedBackward {
  AttendProjectedInputs in;
  const float* mixed;
  const float* log_sum_exp;
  const float* grad_mixed;
  const float* grad_log_sum_exp;
  void* grad_pixels;
  void* grad_pe;  // null when not wanted
  float* grad_query;
  float* grad_key_weight;
  float* grad_value_weight;
};

struct RefineProjectedInputs {
  PassInputs pass;
  int64_t width;              // D
  int64_t groups;             // G: dictionary g * B + b belongs to image b
  const float* key;           // [G B, K, D], scaled
  const float* value;         // [G B, K, D]
  const float* query_weight;  // [D, C]
  const float* query_bias;    // [D]
  const float* out_weight;    // [C, D]
};

struct RefineProjectedForward {
  RefineProjectedInputs in;
  void* refined;  // [G B, N, C]
};

struct RefineProjectedBackward {
  RefineProjectedInputs in;
  const void* grad_refined;
  void* grad_pixels;
  void* grad_pe;  // null when not wanted
  float* grad_key;
  float* grad_value;
  float* grad_query_weight;
  float* grad_query_bias;
  float* grad_out_weight;
  float* grad_out_bias;
  float* grad_norm_weight;
  float* grad_norm_bias;
};

void attend_projected_forward(const AttendProjectedForward& call, const Parallel& parallel);
void attend_projected_backward(const AttendProjectedBackward& call, const Parallel& parallel);
void refine_projected_forward(const RefineProjectedForward& call, const Parallel& parallel);
void refine_projected_backward(const RefineProjectedBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// Sizes after padding to whole vectors.
struct ProjectedSizes {
  PassSizes pass;    // of which only `channels`, Cp, counts
  int64_t heads;     // H
  int64_t depth;     // d = D / H
  int64_t depths;    // dp
  int64_t width;     // D
  int64_t widths;    // Dp
  int64_t stride;    // of rows [T, Dp]: a vector more, so that the last head may be read as a whole vector
  int64_t entries;   // K
  int64_t columns;   // Kp
  int64_t groups;    // G
  bool backward;
};

// Matrices of one call, zero where padded; "_t" is the transpose. Those of the backward only may be null.
struct AttendProjectedPacked {
  const float* key_weight_t;    // [C, Dp]
  const float* value_weight_t;  // [C, Dp]
  const float* query_t;         // [D, Kp]  forward, of the image
  const float* key_weight;      // [D, Cp]  backward
  const float* value_weight;    // [D, Cp]  backward
  const float* offset;          // [H, K]   backward, of the image: grad_mixed . mixed - grad_log_sum_exp
};

struct RefineProjectedPacked {
  PassPacked norm;            // of which out_bias, norm_weight and norm_bias, [Cp]
  const float* query_weight_t;  // [C, Dp]
  const float* query_bias;      // [Dp]
  const float* out_weight_t;    // [D, Cp]
  const float* query_weight;    // [D, Cp]  backward
  const float* out_weight;      // [C, Dp]  backward
};

// Partial results of a chunk.
struct AttendProjectedPartial {
  float* mixed_t;  // forward [H, d, Kp], relative to row_max
  float* row_max;  // forward [H, Kp]
  float* row_sum;  // forward [H, Kp]
  float* query;         // backward [H, K, dp]
  float* key_weight;    // backward [D, Cp]
  float* value_weight;  // backward [D, Cp]
};

struct RefineProjectedPartial {
  float* key;           // [G, H, K, dp]
  float* value;         // [G, H, K, dp]
  float* query_weight;  // [D, Cp]
  float* out_weight_t;  // [D, Cp]
  float* query_bias;    // [D]
  float* vectors;       // [3, Cp]: of out_bias, norm_weight, norm_bias
};

struct ProjectedKernels {
  int lanes;
  int64_t (*attend_scratch)(const ProjectedSizes& sizes);  // floats that a chunk needs
  int64_t (*refine_scratch)(const ProjectedSizes& sizes);
  void (*attend_forward)(const AttendProjectedForward& call, const ProjectedSizes& sizes,
                         const AttendProjectedPacked& packed, Chunk chunk, const AttendProjectedPartial& partial,
                         float* scratch);
  // through_pe [N, C] float32 of the chunk's image receives the gradient that went through x + pe, unless null.
  void (*attend_backward)(const AttendProjectedBackward& call, const ProjectedSizes& sizes,
                          const AttendProjectedPacked& packed, Chunk chunk, const AttendProjectedPartial& partial,
                          float* through_pe, float* scratch);
  void (*refine_forward)(const RefineProjectedForward& call, const ProjectedSizes& sizes,
                         const RefineProjectedPacked& packed, Chunk chunk, float* scratch);
  void (*refine_backward)(const RefineProjectedBackward& call, const ProjectedSizes& sizes,
                          const RefineProjectedPacked& packed, Chunk chunk, const RefineProjectedPartial& partial,
                          float* through_pe, float* scratch);
  void (*narrow)(Dtype dtype, const float* src, void* dst, int64_t offset, int64_t count);
};

}  // namespace d2ls
