// One pass over the pixels: refine them (pixels <- dictionary), let the dictionary attend to the result
// (dictionary <- pixels), or both while a tile is in the cache.
//
//   refine   A = softmax over the entries of each head of key . (x + pe) + key_bias
//            x' = LayerNorm(x + A value + out_bias)
//   attend   P = softmax over the pixels of query . (x' + pe),  context = P x',  log-sum-exp of the scores
//
// The operators attend, refine and refine_attend are this pass without refine, without attend, and whole. A chunk of
// pixels walks its tiles as in flash decoding; the backward recomputes instead of storing anything of size N x J.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/work.h"

namespace d2ls {

struct PassShape {
  int64_t batch;         // B, images
  int64_t dictionaries;  // G, dictionaries that meet the same pixels; entry g * B + b belongs to image b
  int64_t pixels;        // N
  int64_t channels;      // C
  int64_t rows;          // J, query rows of attend; 0: no attend
  int64_t entries;       // K, dictionary entries of refine; 0: no refine
  int64_t heads;         // H of refine
  bool shared_pe;        // pixel_pe is [N, C] rather than [B, N, C]
  Dtype dtype;           // of pixels, pixel_pe, query, key, value, refined and of their gradients
};

struct PassInputs {
  PassShape shape;
  const void* pixels;
  const void* pixel_pe;
  // refine; rows of key and value in head-major order h * K + k
  const void* key;           // [G B, H K, C]
  const float* key_bias;     // [G B, H K]
  const void* value;         // [G B, H K, C]
  const float* out_bias;     // [C]
  const float* norm_weight;  // [C]
  const float* norm_bias;    // [C]
  float eps;
  // attend
  const void* query;  // [G B, J, C]
};

struct PassForward {
  PassInputs in;
  void* refined;       // [G B, N, C]
  float* context;      // [G B, J, C]
  float* log_sum_exp;  // [G B, J]
};

struct PassBackward {
  PassInputs in;
  const float* context;
  const float* log_sum_exp;
  const void* grad_refined;
  const float* grad_context;
  const float* grad_log_sum_exp;
  void* grad_pixels;  // [B, N, C]: the sum over the dictionaries, as grad_pe is
  void* grad_pe;      // null when not wanted
  void* grad_key;
  float* grad_key_bias;
  void* grad_value;
  float* grad_out_bias;
  float* grad_norm_weight;
  float* grad_norm_bias;
  void* grad_query;
};

void pass_forward(const PassForward& call, const Parallel& parallel);
void pass_backward(const PassBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// Sizes after padding to whole vectors. The columns of refine are ordered k * Hp + h, so that the softmax over the
// entries is a reduction over consecutive short vectors of heads; Hp is H padded to such a vector.
struct PassSizes {
  int64_t channels;    // Cp
  int64_t rows;        // Jp
  int64_t heads;       // Hp
  int64_t group_rows;  // K Hp
  int64_t groups;      // K Hp padded to whole vectors
};

// Dictionary-side matrices of one dictionary of one image, zero where padded, in float32; after PassKernels::pack those
// that enter products may be something else. "_t" is the transpose.
struct PassPacked {
  const float* query_t;     // [C, Jp]
  const float* query;       // [J, Cp]  backward
  const float* grad_t;      // [C, Jp]  backward: grad_context
  const float* grad;        // [J, Cp]  backward
  const float* offset;      // [Jp]     backward: grad_context . context - grad_log_sum_exp
  const float* lse;         // [Jp]     backward
  const float* key_t;       // [C, groups]
  const float* key_bias;    // [groups]
  const float* value;       // [group_rows, Cp]
  const float* key;         // [group_rows, Cp]  backward
  const float* value_t;     // [C, groups]       backward
  const float* out_bias;    // [Cp]
  const float* norm_weight; // [Cp]
  const float* norm_bias;   // [Cp]
};

// Partial results of a chunk and one dictionary, float32, to which the kernels add; those of parts that are absent are
// null.
struct PassPartial {
  float* acc;      // forward: [J, Cp]; backward: grad_query [J, Cp]
  float* row_max;  // [Jp], -inf at first; all others zero
  float* row_sum;  // [Jp]
  float* key;      // [group_rows, Cp]
  float* value;    // [group_rows, Cp]
  float* key_bias; // [groups]
  float* vectors;  // [3, Cp]: grad_out_bias, grad_norm_weight, grad_norm_bias
};

// Consecutive pixels of one image, which meet one of its dictionaries.
struct PassStrip {
  int64_t image;
  int64_t dictionary;  // 0 .. G - 1
  int64_t begin;       // first pixel
  int64_t end;
};

struct PassKernels {
  int lanes;        // floats in a vector
  int64_t (*scratch)(const PassSizes& sizes, bool backward);  // floats that a chunk needs
  void (*forward)(const PassForward& call, const PassSizes& sizes, const PassPacked& packed, const PassStrip& strip,
                  const PassPartial& partial, float* scratch);
  // grad_pixels is a sum over the dictionaries; `total`, a strip's pixels x Cp, holds it in float32 from the first to the
  // last of them (null with only one). through_pe [N, C] float32 of the strip's image receives the gradient that went
  // through x + pe, unless null.
  void (*backward)(const PassBackward& call, const PassSizes& sizes, const PassPacked& packed, const PassStrip& strip,
                   const PassPartial& partial, float* through_pe, float* total, float* scratch);
  // dst[i] = src[offset + i] as float32, and the way back.
  void (*widen)(Dtype dtype, const void* src, int64_t offset, float* dst, int64_t count);
  void (*narrow)(Dtype dtype, const float* src, void* dst, int64_t offset, int64_t count);
  // A dictionary-side matrix, in place, to what the kernels' products take: pairs of its rows in bfloat16, or nothing to do.
  void (*pack)(float* matrix, int64_t rows, int64_t columns);
  // The values themselves as products see them.
  void (*round)(float* values, int64_t count);
};

}  // namespace d2ls
