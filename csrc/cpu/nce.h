// InfoNCE between the pixels of an image and the dictionary: sums per image and class.
//
// With x^_n = x_n / max(|x_n|, 1e-12), entries e_j, s_nj = x^_n . e_j, y_n the label of pixel n and S_nk the log-sum-exp
// of s_nj over the P entries of class k:
//
//   loss_k     = sum over n of class k of (lse_j s_nj - S_nk)      where rows are wanted
//   positive_k = sum over n of class k of S_nk                     where columns are wanted
//   lse_k      = lse over the labelled n of S_nk                   the same
//   count_k    = pixels of class k; count_K = labels that are neither a class nor ignore_index
//
// The backward recomputes the scores; only tiles of them ever exist.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/work.h"

namespace d2ls {

struct NceInputs {
  int64_t batch;
  int64_t pixels;  // N
  int64_t channels;
  int64_t classes;     // K
  int64_t prototypes;  // P
  int64_t ignore_index;
  bool rows;
  bool columns;
  Dtype dtype;            // of features and of their gradient
  const void* features;   // x [B, N, C]
  const float* entries;   // e [B, K P, C]
  const int64_t* target;  // y [B, N]

  int64_t vectors() const { return classes * prototypes; }
};

// [B, K], count [B, K + 1]; sums that are not wanted become zero.
struct NceForward {
  NceInputs in;
  float* loss;
  float* positive;
  float* log_sum_exp;
  int64_t* count;
};

struct NceBackward {
  NceInputs in;
  const float* log_sum_exp;
  const float* grad_loss;
  const float* grad_positive;
  const float* grad_log_sum_exp;
  void* grad_features;
  float* grad_entries;
};

void nce_forward(const NceForward& call, const Parallel& parallel);
void nce_backward(const NceBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// The entries of one image, zero where padded.
struct NcePacked {
  const float* entries_t;  // [C, Jp], J = K P
  const float* entries;    // [J, Cp]; backward
};

// Sums of a chunk.
struct NcePartial {
  double* loss;      // [K]
  double* positive;  // [K]
  int64_t* count;    // [K + 1]
  float* top;        // [J] largest score of the labelled pixels
  float* sum;        // [J] of exp(score - top) over them
};

struct NceKernels {
  int64_t lanes;
  int64_t (*scratch)(const NceInputs& in, bool backward);  // floats that a chunk needs
  void (*forward)(const NceForward& call, const NcePacked& packed, Chunk chunk, const NcePartial& partial,
                  float* scratch);
  // grad_entries [J, Cp] of the chunk
  void (*backward)(const NceBackward& call, const NcePacked& packed, Chunk chunk, float* grad_entries, float* scratch);
};

}  // namespace d2ls
