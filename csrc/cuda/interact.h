// interact, forward: the whole interaction of dictionary and pixels in one launch, the pixels held in shared memory.
// See d2ls_fast/ops/interact.py for what it computes.
#pragma once

#include "cuda/classify.h"
#include "cuda/dictionary_step.h"

namespace d2ls::cuda {

constexpr int most_stages = 6;

// Of one look of the dictionary at the pixels, and of one stage's update of the pixels.
struct LookParameters {
  LookWeights look;
  UpdateWeights update;
};
struct RefineParameters {
  EntriesWeights entries;
  const float *out_bias, *norm_weight, *norm_bias;  // [channels]
};

// From the last dictionary to the class vectors: three layers, two with ReLU; weights [channels, channels] twice, then
// [channels / 16, channels].
struct HyperWeights {
  const float *first_weight, *first_bias, *second_weight, *second_bias, *third_weight, *third_bias;
};

// Row-major and contiguous: x [batch, pixels, channels], pe [pe_images, pixels, channels], which is 1 or batch, and refined
// like x, of `type`; dictionary [batch, entries, channels], stage_dictionaries [stages, batch, entries, channels] and
// last_dictionary like dictionary, float32. Looks are as many as stages, or one more.
// Where classify has labels they are made from the refined pixels on the spot, after a last look; its x, hyper and logits
// are not used.
struct InteractCall {
  Type type;
  int64_t batch, pixels, pe_images;
  StepShape shape;
  int stages, looks;
  const void *x, *pe;
  const float* dictionary;
  LookParameters look[most_stages + 1];
  RefineParameters refine[most_stages];
  void* refined;                                // null: not wanted
  float *stage_dictionaries, *last_dictionary;  // the last: after a look that belongs to no stage
  HyperWeights hyper;
  ClassifyCall classify;
};

// Why the device cannot hold so many images of such a call at once, or nothing. Of the call only widths and counts are
// looked at.
Error why_not(const Device& device, const InteractCall& call, int64_t images);

// How many floats of scratch memory the call needs.
int64_t interact_scratch(const Device& device, const InteractCall& call);

// A batch larger than the device holds goes in waves, one launch each.
Error interact(const Device& device, const InteractCall& call, float* scratch);

}  // namespace d2ls::cuda
