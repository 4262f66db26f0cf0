// The first two phases of a dictionary step: from attend's context to the sum that the norm of the next dictionary takes.
//
// A phase is work items that the blocks of a group share, worker w taking items w, w + workers, ..; between two phases the
// group meets at a barrier, which is the caller's. Results between phases lie in memory (L2). Weights are read from L2 once
// by whom they concern: a warp takes a row of them, whole lines at a time, and multiplies it with all entries, which lie in
// shared memory. Everything is float32 and exact, as in kernels/dictionary_step.py.
#pragma once

#include "cuda/dictionary_step.h"
#include "cuda/warp_dot.cuh"

namespace d2ls::cuda {

constexpr int step_threads = 256, step_warps = step_threads / 32;

// One of the blocks that work on an image's step; its shared memory is free from `shared` on.
struct Crew {
  int worker, workers;
  uint32_t shared;
};

// attend's context of an image, [rows, channels]; or, where `top` is given, of `chunks` chunks of its pixels, to be put
// together: context [chunks, rows, channels] relative to the maxima top [chunks, rows], whose weights sum to sum.
struct ContextParts {
  const float *context, *top, *sum;
  int chunks;
};

// The chunks' weights in the whole, for one row, to shared memory at `to`, 8 bytes apart. By one warp.
D2LS_DEVICE void weigh_chunks(const ContextParts& parts, int rows, int row, uint32_t to) {
  const int lane = thread_index() % 32;
  float top = -infinity(), sum = 0;
  for (int chunk = lane; chunk < parts.chunks; chunk += 32) {  // memory is waited for once
    const Two both{parts.top[chunk * rows + row], parts.sum[chunk * rows + row]};
    store_shared(to + 8 * chunk, both);
    top = fmaxf(top, both.first);
  }
  top = warp_max(top);
  for (int chunk = lane; chunk < parts.chunks; chunk += 32) {
    const Two both = load_shared<Two>(to + 8 * chunk);
    const float weight = power_of_two((both.first - top) * log2_e);
    sum += weight * both.second;
    store_shared(to + 8 * chunk, weight);
  }
  const float scale = 1.0f / warp_sum(sum);
  for (int chunk = lane; chunk < parts.chunks; chunk += 32) {
    store_shared(to + 8 * chunk, load_shared<float>(to + 8 * chunk) * scale);
  }
}

// Threads that put chunks together: 4 channels each, in up to 8 sums of every 8th chunk that are added in order.
D2LS_DEVICE constexpr int mix_sums(int channels) { return smaller(step_threads / (channels / 4), 8); }

D2LS_EITHER constexpr uint32_t mix_shared_bytes(int channels, int chunks) {
  return 8 * channels * sizeof(float) + (chunks + 1) / 2 * 16;
}

// Phase 1, an item a row (h, k): its context M, put together, and V_kh = Wv_h M + bv_h to mixed [entries, inner].
D2LS_DEVICE void mix_context(const StepShape& s, const UpdateWeights& u, const ContextParts& parts, float* mixed,
                             const Crew& crew) {
  const int rows = s.heads * s.entries, quads = s.channels / 4, width = s.inner / s.heads;
  const int sums = mix_sums(s.channels), thread = thread_index();
  const uint32_t weights = crew.shared + 8 * s.channels * sizeof(float);
  block_barrier();  // shared memory is free
  for (int row = crew.worker; row < rows; row += crew.workers) {
    if (parts.top != nullptr && thread < 32) {
      weigh_chunks(parts, rows, row, weights);
    }
    block_barrier();
    if (thread < sums * quads) {
      const int first = thread / quads, quad = thread % quads;
      Four total{};
      D2LS_UNROLL_SIXTEEN
      for (int chunk = first; chunk < parts.chunks; chunk += sums) {
        const Four part = load_four(parts.context + (static_cast<int64_t>(chunk) * rows + row) * s.channels + 4 * quad);
        const float weight = parts.top == nullptr ? 1.0f : load_shared<float>(weights + 8 * chunk);
        D2LS_UNROLL
        for (int i = 0; i < 4; ++i) {
          total.value[i] += weight * part.value[i];
        }
      }
      store_shared(crew.shared + 16 * thread, total);
    }
    block_barrier();
    const Share mean = Share::of(s.channels, [&](int quad) {
      Four total{};
      for (int i = 0; i < sums; ++i) {
        total = sum_of(total, load_shared<Four>(crew.shared + 16 * (i * quads + quad)));
      }
      return total;
    });
    const int head = row / s.entries, entry = row % s.entries;
    D2LS_UNROLL_TWICE
    for (int i = thread / 32; i < width; i += step_warps) {
      const int inner = head * width + i;
      const float* weight = u.value_weight + static_cast<int64_t>(inner) * s.channels;
      const float product = Share::of(s.channels, [&](int quad) { return load_four(weight + 4 * quad); }).times(mean);
      if (thread % 32 == 0) {
        mixed[entry * s.inner + inner] = product + u.value_bias[inner];
      }
    }
  }
}

// Phase 2, an item a channel c, one a warp: Wo_c V_k + bo_c to sums [entries, channels].
D2LS_DEVICE void add_update(const StepShape& s, const UpdateWeights& u, const float* mixed, float* sums,
                            const Crew& crew) {
  const int thread = thread_index(), lane = thread % 32, step = crew.workers * step_warps;
  int c = crew.worker * step_warps + thread / 32;
  float weight[8];  // inner is up to 256, of any number
  const auto load_weights = [&] {
    D2LS_UNROLL
    for (int i = 0; i < 8; ++i) {
      weight[i] = c < s.channels && lane + 32 * i < s.inner ? u.out_weight[c * s.inner + lane + 32 * i] : 0.0f;
    }
  };
  load_weights();  // on their way while the others' results come
  block_barrier();
  for (int i = thread; i < s.entries * s.inner; i += step_threads) {
    store_shared(crew.shared + 4 * i, mixed[i]);
  }
  block_barrier();
  for (; c < s.channels; c += step, load_weights()) {
    for (int entry = 0; entry < s.entries; ++entry) {
      float product = 0;
      D2LS_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (lane + 32 * i < s.inner) {
          product += weight[i] * load_shared<float>(crew.shared + 4 * (entry * s.inner + lane + 32 * i));
        }
      }
      product = warp_sum(product);
      if (lane == 0) {
        sums[entry * s.channels + c] = product + u.out_bias[c];
      }
    }
  }
}

}  // namespace d2ls::cuda
