// attend on the CPU: softmax over the pixels of query . (pixels + pe), times the pixels.
//
// One pass over the pixels in the manner of flash decoding. The pixels are cut into chunks whose number depends on the
// shape only, never on the number of threads, so that results are bitwise repeatable on any machine with the same
// instruction set. A chunk walks its pixels in tiles that stay in the second-level cache.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace d2ls {

enum class Dtype { f32, bf16, f16 };

struct AttendShape {
  int64_t batch;
  int64_t pixels;     // N
  int64_t rows;       // J
  int64_t channels;   // C
  bool shared_pe;     // pixel_pe is [N, C] rather than [B, N, C]
  Dtype dtype;        // of pixels, pixel_pe, query and of their gradients
};

struct AttendForward {
  AttendShape shape;
  const void* pixels;
  const void* pixel_pe;
  const void* query;
  float* context;      // [B, J, C]
  float* log_sum_exp;  // [B, J]
};

struct AttendBackward {
  AttendShape shape;
  const void* pixels;
  const void* pixel_pe;
  const void* query;
  const float* context;
  const float* log_sum_exp;
  const float* grad_context;
  const float* grad_log_sum_exp;
  void* grad_pixels;
  void* grad_pe;  // null when not wanted
  void* grad_query;
};

void attend_forward(const AttendForward& call, const Parallel& parallel);
void attend_backward(const AttendBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// Query-side matrices of one batch entry, in float32 and padded to whole vectors.
struct AttendPacked {
  const float* query_t;  // [C, Jp]
  const float* query;    // [J, Cp]   (backward)
  const float* grad_t;   // [C, Jp]   (backward) grad_context transposed
  const float* grad;     // [J, Cp]   (backward)
  const float* offset;   // [Jp]      (backward) grad_context . context - grad_log_sum_exp
  const float* lse;      // [Jp]      (backward)
};

struct AttendChunk {
  int64_t batch;
  int64_t begin;  // first pixel
  int64_t end;
};

struct AttendKernels {
  int lanes;  // floats in a vector: what J and C are padded to
  // Bytes of scratch a chunk needs.
  int64_t (*scratch)(const AttendShape& shape);
  // acc [J, Cp], row_max [Jp], row_sum [Jp] of one chunk.
  void (*forward)(const AttendForward& call, const AttendPacked& packed, AttendChunk chunk, float* acc, float* row_max,
                  float* row_sum, void* scratch);
  // Writes grad_pixels of the chunk and, when asked, grad_scores . query to through_scores [N, C] (float32); adds up
  // grad_query [J, Cp] of the chunk.
  void (*backward)(const AttendBackward& call, const AttendPacked& packed, AttendChunk chunk, float* grad_query,
                   float* through_scores, void* scratch);
  // dst[i] = src[i] as float32, and the way back.
  void (*widen)(Dtype dtype, const void* src, int64_t offset, float* dst, int64_t count);
  void (*narrow)(Dtype dtype, const float* src, void* dst, int64_t offset, int64_t count);
};

AttendKernels attend_kernels_portable();
AttendKernels attend_kernels_avx2();
AttendKernels attend_kernels_avx512();

}  // namespace d2ls
