// Everything that happens to the dictionary between two passes over the pixels: K x C, so small that it is computed in
// double throughout. With t = D' + P, for head h and row r = (image, entry):
//
//   V_h = M_h Wv_h' + bv_h,  D' = LayerNorm(D + V Wo' + bo)                                 update
//   k_h = (t Wk_h' + bk_h) / sqrt(d),  key_h = k_h Wq_h,  key_bias_h = k_h . bq_h           entries
//   v_h = D' Wv_h' + bv_h,  value_h = v_h Wo_h'                                             entries
//   q_h = (t Wq_h' + bq_h) / sqrt(d),  query_h = q_h Wk_h                                   look
//
// each line with the weights of its own attention. Forward and backward alternate between steps that are parallel over
// blocks of rows and steps that are parallel over heads; every sum is made by one task, in a fixed order.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/work.h"

namespace d2ls {

// Parameters as they are stored, float32; all null where a part is absent. I is the width of the attention.
struct StepUpdate {
  const float* context;  // M [B, H K, C]
  const float* value_weight;
  const float* value_bias;
  const float* out_weight;  // [C, I]
  const float* out_bias;
  const float* norm_weight;
  const float* norm_bias;
};

// A projection [I, C] of the tokens and the weight [I, C] that its rows are folded with.
struct StepFold {
  const float* weight;
  const float* bias;
  const float* folding;
  const float* folding_bias;  // [I]; of the key only
};

struct StepValue {
  const float* weight;
  const float* bias;
  const float* out_weight;  // [C, I]
};

struct StepInputs {
  int64_t batch, entries, heads, channels, inner;
  Dtype dtype;  // of the folded rows and their gradients
  double eps;
  const float* dictionary;  // [B, K, C]
  const float* position;    // [B, K, C]
  StepUpdate update;
  StepFold key;
  StepValue value;
  StepFold look;

  int64_t rows() const { return batch * entries; }
  int64_t width() const { return inner / heads; }
};

struct StepForward {
  StepInputs in;
  float* dictionary;
  void* query;  // [B, H K, C], as key and value
  void* key;
  float* key_bias;  // [B, H K]
  void* value;
};

// Gradients of the parts, in the order of the parts' fields.
struct StepFoldGradients {
  float* weight;
  float* bias;
  float* folding;
  float* folding_bias;
};

struct StepBackward {
  StepInputs in;
  const float* grad_dictionary;  // null without update, as are all of an absent part
  const void* grad_query;
  const void* grad_key;
  const float* grad_key_bias;
  const void* grad_value;
  float* to_dictionary;  // [B, K, C]
  float* to_position;    // [B, K, C]
  float* to_context;     // [B, H K, C]
  float *to_value_weight, *to_value_bias, *to_out_weight, *to_out_bias, *to_norm_weight, *to_norm_bias;  // update
  StepFoldGradients to_key;
  float *to_entry_weight, *to_entry_bias, *to_entry_out_weight;  // of value
  StepFoldGradients to_look;
};

void step_forward(const StepForward& call, const Parallel& parallel);
void step_backward(const StepBackward& call, const Parallel& parallel);

// --- the part that is compiled once for every instruction set -------------------------------------------------------

// What the tasks share, [B K] rows each.
struct StepState {
  double* mixed;    // V [., I]
  double* normal;   // [., C] before weight and bias of the norm
  double* inverse;  // [.] 1 / sigma
  double* entry;    // D' [., C]
  double* placed;   // D' + P [., C]
  // backward: gradients of the rows before they are folded (those of a score's side divided by sqrt(d)), and of D', V
  double* query;     // [., I]
  double* key;       // [., I]
  double* value;     // [., I]
  double* total;     // [., C] of the norm's input
  double* to_mixed;  // [., I]
};

struct StepRows {
  int64_t begin, end;
};

struct StepKernels {
  int64_t (*scratch)(const StepInputs& in);  // doubles that a task needs
  void (*mix)(const StepInputs& in, StepState state, StepRows rows, int64_t head, double* scratch);
  void (*advance)(const StepInputs& in, StepState state, StepRows rows, float* dictionary);
  void (*fold)(const StepForward& call, StepState state, StepRows rows, int64_t head, double* scratch);
  void (*unfold)(const StepBackward& call, StepState state, int64_t head, double* scratch);
  // vectors [3, C]: the rows' part of the gradients of norm weight, norm bias and out bias.
  void (*retreat)(const StepBackward& call, StepState state, StepRows rows, double* vectors, double* scratch);
  void (*unmix)(const StepBackward& call, StepState state, int64_t head, double* scratch);
};

constexpr int64_t kStepBlock = 48;  // rows of a task that is parallel over heads too, and of one trip of the others
constexpr int64_t kStepFew = 8;     // rows of a task that is parallel over rows only

}  // namespace d2ls
