// The kernel of dictionary_step: groups of blocks, each taking images in turn through the phases.
//
// A step reads 1 MB of weights (C = 256) and multiplies 1.6 million numbers: nothing for a device, but 16,000 cycles for
// one block, whose share of L2 is 64 bytes a cycle. With 48 blocks to an image (phase 3 has 24 items of 8 heads, or 48
// halves) it is some 400, and the two barriers of about 1 us each are what is left. A barrier of a cluster would take a
// quarter of that but joins at most 8 blocks, which need 2,000 cycles: as long, and on Hopper only.
#pragma once

#include "cuda/instructions/grid.cuh"
#include "cuda/step_rows.cuh"

namespace d2ls::cuda {

struct StepArguments {
  StepCall call;
  uint32_t* counters;  // of every group, counter_words apart
  float *mixed, *sums;  // [batch, entries, inner] and [batch, entries, channels]
  int groups, members;
};

template <class T>
D2LS_KERNEL(step_threads, 1) dictionary_step_kernel(StepArguments a) {
  const StepShape& s = a.call.shape;
  const int group = static_cast<int>(block_index() / a.members);
  const Crew crew{static_cast<int>(block_index() % a.members), a.members, 0};
  GroupBarrier barrier{a.counters, group, static_cast<uint32_t>(a.members)};
  const int64_t tokens = s.entries * s.channels, rows = s.heads * tokens;
  const auto of_image = [](void* matrix, int64_t start) {
    return matrix == nullptr ? nullptr : static_cast<T*>(matrix) + start;
  };
  for (int64_t image = group; image < a.call.batch; image += a.groups) {
    float* sums = nullptr;
    if (a.call.context != nullptr) {
      float* mixed = a.mixed + image * s.entries * s.inner;
      sums = a.sums + image * tokens;
      mix_context(s, a.call.update, {a.call.context + image * rows, nullptr, nullptr, 1}, mixed, crew);
      barrier.meet();
      add_update(s, a.call.update, mixed, sums, crew);
      barrier.meet();
    }
    const Tokens entries{a.call.dictionary + image * tokens, sums, a.call.position + image * tokens,
                         sums == nullptr ? nullptr : a.call.updated + image * tokens};
    const StepRows to{of_image(a.call.query, image * rows), of_image(a.call.key, image * rows),
                      of_image(a.call.value, image * rows),
                      a.call.key == nullptr ? nullptr : a.call.key_bias + image * s.heads * s.entries};
    fold_rows<T>(s, a.call.update, a.call.entries, a.call.look, entries, to, crew);
  }
}

}  // namespace d2ls::cuda
