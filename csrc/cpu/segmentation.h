// The sums over all labelled pixels that soft cross-entropy and dice are made of, straight from refined pixels and class
// vectors: a tile of logits lives in the cache only. With s_k the logit of class k (see classify.h), p its softmax, y the
// label, w the class weights, e the smoothing:
//
//   cross_entropy = sum (1 - e) w_y (-log p_y) + e / K sum_k w_k (-log p_k)
//   overlap_k     = sum over pixels labelled k of p_k
//   volume_k      = sum p_k
//   count_k       = pixels labelled k
//
// The backward recomputes the tile; nothing of full resolution is stored in either direction.
#pragma once

#include "cpu/classify.h"

namespace d2ls {

struct SegmentationInputs {
  ClassifyInputs in;
  int64_t height;  // of the target, at most 4 in.height; logits beyond it take no part
  int64_t width;
  const int64_t* target;       // [B, height, width]
  const float* class_weights;  // [K]; null: all one
  double smoothing;
  int64_t ignore_index;
};

struct SegmentationForward {
  SegmentationInputs in;
  float* cross_entropy;  // one
  float* overlap;        // [K]
  float* volume;         // [K]
  float* count;          // [K]
};

struct SegmentationBackward {
  SegmentationInputs in;
  const float* grad_cross_entropy;  // one
  const float* grad_overlap;        // [K]
  const float* grad_volume;         // [K]
  void* grad_pixels;
  float* grad_norm_weight;
  float* grad_norm_bias;
  float* grad_hyper;
};

// A label that is neither a class nor the one to ignore.
struct WrongLabel {
  bool found;
  int64_t value;
};

// Where a wrong label was found the sums are of no use.
WrongLabel segmentation_forward(const SegmentationForward& call, const Parallel& parallel);
void segmentation_backward(const SegmentationBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// Factors of the cross-entropy, or of its gradient, and the gradients of overlap and volume (null in the forward).
struct SegmentationTerms {
  const float* weights;  // [K]
  float weight_sum;
  float on;   // of the label's term
  float off;  // of every class's term
  const float* overlap;  // [K]
  const float* volume;   // [K]
};

// A chunk's sums in the order cross_entropy, overlap, volume, count: 1 + 3 K.
struct SegmentationPartial {
  double* sums;
  WrongLabel* wrong;
};

struct SegmentationKernels {
  int64_t (*scratch)(const ClassifyInputs& in, bool backward);  // floats that a chunk needs
  void (*forward)(const SegmentationInputs& in, const SegmentationTerms& terms, const ClassifyNorm& norm, Chunk chunk,
                  const SegmentationPartial& partial, float* scratch);
  void (*backward)(const SegmentationInputs& in, const SegmentationTerms& terms, const ClassifyNorm& norm, Chunk chunk,
                   const ClassifyPartial& partial, void* grad_pixels, float* scratch);
};

}  // namespace d2ls
